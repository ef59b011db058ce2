//! When exactly a split ring's sides are told (virtio 1.2, 2.7.7, 2.7.9, 2.7.10).

use crate::common::{Ring, Shape, write};
use virtqueue::QueueSetup;
use virtqueue::layout::ENTRIES;

/// Indices on both sides of the wrap.
fn around_the_wrap() -> impl Iterator<Item = u16> {
    (0..40).map(|n| 65516_u16.wrapping_add(n))
}

fn used_event_at(setup: &QueueSetup) -> u64 {
    setup.driver_area + ENTRIES as u64 + 2 * u64::from(setup.size)
}

fn avail_event_at(setup: &QueueSetup) -> u64 {
    setup.device_area + ENTRIES as u64 + 8 * u64::from(setup.size)
}

#[test]
fn the_driver_is_signalled_exactly_when_its_used_event_is_passed() {
    for start in around_the_wrap() {
        for count in 1..=8 {
            for offset in -10..=10_i16 {
                for shape in [Shape::split(8), Shape::split(8).in_order()] {
                    let mut ring = Ring::new(shape.starting_at(start).with_event_index());
                    assert!(ring.queue.needs_notification(), "the first answer after a start");
                    let event = start.wrapping_add_signed(offset);
                    write(&ring.memory, used_event_at(&ring.driver.setup()), &event.to_le_bytes());
                    ring.offer(count);
                    ring.complete_all();
                    let passed = (0..count).any(|n| start.wrapping_add(n) == event);
                    assert_eq!(ring.queue.needs_notification(), passed, "{start} {count} {offset}");
                    assert!(!ring.queue.needs_notification(), "twice for one burst");
                }
            }
        }
    }
}

#[test]
fn the_device_is_kicked_exactly_when_its_avail_event_is_passed() {
    for start in around_the_wrap() {
        for count in 1..=8 {
            for offset in -10..=10_i16 {
                let mut ring = Ring::new(Shape::split(8).starting_at(start).with_event_index());
                let event = start.wrapping_add_signed(offset);
                write(&ring.memory, avail_event_at(&ring.driver.setup()), &event.to_le_bytes());
                ring.offer(count);
                let passed = (0..count).any(|n| start.wrapping_add(n) == event);
                assert_eq!(ring.driver.needs_notification(), passed, "{start} {count} {offset}");
            }
        }
    }
}

#[test]
fn any_used_event_costs_one_signal_a_round_at_most() {
    for event in [0_u16, 1, 7, 8, 0x7fff, 0x8000, 0xfffe, 0xffff] {
        let mut ring = Ring::new(Shape::split(8).starting_at(65530).with_event_index());
        let _ = ring.queue.needs_notification();
        write(&ring.memory, used_event_at(&ring.driver.setup()), &event.to_le_bytes());
        let mut signals = 0;
        for _ in 0..=u16::MAX {
            ring.offer(1);
            ring.complete_all();
            signals += u32::from(ring.queue.needs_notification());
            ring.reap();
        }
        assert_eq!(signals, 1, "{event}");
    }
}

#[test]
fn only_the_defined_flag_suppresses() {
    for flags in 0..=u16::MAX {
        if flags > 0x40 && flags < 0xffc0 && flags.count_ones() != 8 {
            continue;
        }
        let mut ring = Ring::new(Shape::split(8));
        write(&ring.memory, ring.driver.setup().driver_area, &flags.to_le_bytes());
        ring.offer(1);
        ring.complete_all();
        assert_eq!(ring.queue.needs_notification(), flags & 1 == 0, "{flags:#x}");
    }
}
