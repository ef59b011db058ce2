//! When exactly a packed ring's sides are told (virtio 1.2, 2.8.10, 2.8.14).

use std::sync::Arc;

use crate::common::{DATA, Ring, Shape, read_u16, readable, write};
use virtqueue::Access;
use virtqueue::layout::{EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE, EVENT_FLAGS, EVENT_OFF_WRAP};

/// All positions of two laps of a ring: slot, and wrap counter in bit 15.
fn positions(size: u16) -> impl Iterator<Item = u16> + Clone {
    (0..size).flat_map(|slot| [slot, slot | 0x8000])
}

/// The position `count` slots after `from`.
fn after(from: u16, count: u16, size: u16) -> u16 {
    (0..count).fold(from, |at, _| {
        let next = at & 0x7fff;
        if next + 1 < size { at + 1 } else { (at ^ 0x8000) & 0x8000 }
    })
}

impl Ring {
    /// What the device asks for.
    fn device_event(&self) -> (u16, u16) {
        let at = self.driver.setup().device_area;
        let [off_wrap, flags] =
            [EVENT_OFF_WRAP, EVENT_FLAGS].map(|field| read_u16(&self.memory, at + field as u64));
        (off_wrap, flags)
    }

    fn write_device_event(&self, off_wrap: u16, flags: u16) {
        let bytes = [off_wrap.to_le_bytes(), flags.to_le_bytes()].concat();
        write(&self.memory, self.driver.setup().device_area, &bytes);
    }
}

/// Every start and every event of small rings, with bursts of some chains of some descriptors each.
fn cases() -> impl Iterator<Item = Case> {
    const BURSTS: [(u16, u16); 7] = [(1, 1), (2, 1), (3, 1), (8, 1), (1, 2), (2, 2), (1, 3)];
    let of_size = |size| {
        let pairs =
            positions(size).flat_map(move |start| positions(size).map(move |at| (start, at)));
        let cases = pairs.flat_map(move |(start, event)| {
            BURSTS.map(|(count, slots)| Case { size, start, event, count, slots })
        });
        cases.filter(|case| case.count * case.slots <= case.size)
    };
    [1, 2, 3, 8].into_iter().flat_map(of_size)
}

#[derive(Clone, Copy, Debug)]
struct Case {
    size: u16,
    /// Where the ring starts, and where the event is.
    start: u16,
    event: u16,
    /// Number of chains, and of descriptors in each.
    count: u16,
    slots: u16,
}

impl Case {
    fn passes_event(&self) -> bool {
        let &Self { size, start, event, count, slots } = self;
        (0..count * slots).any(|slot| after(start, slot, size) == event)
    }
}

#[test]
fn the_driver_is_signalled_exactly_when_its_descriptor_is_used() {
    for case in cases() {
        let Case { size, start, event, count, slots } = case;
        for shape in [Shape::packed(size), Shape::packed(size).in_order()] {
            let mut ring = Ring::new(shape.starting_at(start).with_event_index());
            ring.packed().write_event(event, EVENT_DESC);
            assert!(ring.queue.needs_notification(), "the first answer after a start");
            ring.offer_chains(count, slots.into());
            ring.complete_all();
            assert_eq!(ring.queue.needs_notification(), case.passes_event(), "{case:x?}");
            assert!(!ring.queue.needs_notification(), "twice for one burst: {case:x?}");
        }
    }
}

#[test]
fn the_device_is_kicked_exactly_when_its_descriptor_is_available() {
    for case in cases() {
        let Case { size, start, event, count, slots } = case;
        let mut ring = Ring::new(Shape::packed(size).starting_at(start).with_event_index());
        ring.write_device_event(event, EVENT_DESC);
        ring.offer_chains(count, slots.into());
        assert_eq!(ring.driver.needs_notification(), case.passes_event(), "{case:x?}");
    }
}

#[test]
fn the_modes_always_and_never_need_no_event_index() {
    for shape in [Shape::packed(7), Shape::packed(7).with_event_index()] {
        for start in positions(7) {
            let mut ring = Ring::new(shape.starting_at(start));
            for (flags, wanted) in [(EVENT_ENABLE, true), (EVENT_DISABLE, false)] {
                // Whatever stands beside it.
                for off_wrap in [0, start, 0x7fff, 0xffff] {
                    ring.packed().write_event(off_wrap, flags);
                    ring.write_device_event(off_wrap, flags);
                    for count in 1..4 {
                        ring.offer(count);
                        assert_eq!(ring.driver.needs_notification(), wanted);
                        ring.complete_all();
                        assert_eq!(ring.queue.needs_notification(), wanted);
                        assert!(!ring.queue.needs_notification(), "of nothing new");
                        assert_eq!(ring.reap().len(), usize::from(count));
                    }
                }
            }
        }
    }
}

#[test]
fn the_device_asks_as_it_was_negotiated() {
    for size in [1, 2, 7] {
        for start in positions(size) {
            let mut ring = Ring::new(Shape::packed(size).starting_at(start));
            ring.queue.disable_notification();
            assert_eq!(ring.device_event().1, EVENT_DISABLE);
            ring.queue.enable_notification();
            assert_eq!(ring.device_event().1, EVENT_ENABLE, "DESC only with the event index");
            let mut ring = Ring::new(Shape::packed(size).starting_at(start).with_event_index());
            for seen in 0..3 * size {
                ring.queue.disable_notification();
                assert_eq!(ring.device_event().1, EVENT_DISABLE);
                ring.queue.enable_notification();
                assert_eq!(ring.device_event(), (after(start, seen, size), EVENT_DESC));
                ring.offer(1);
                assert!(ring.driver.needs_notification());
                ring.complete_all();
                ring.reap();
            }
        }
    }
}

/// A device that sleeps on chains too few for its next frame has seen those: it asks for what is behind.
#[test]
fn the_device_asks_for_what_it_has_not_seen() {
    for size in [2, 7, 8] {
        for start in positions(size) {
            let mut ring = Ring::new(Shape::packed(size).starting_at(start).with_event_index());
            let memory = Arc::clone(&ring.memory);
            for offered in 1..size {
                ring.offer(1);
                let _ = ring.driver.needs_notification();
                let chains = ring.take_all(&memory, Access::Read).unwrap();
                assert_eq!(chains.len(), usize::from(offered));
                ring.queue.put_back(offered);
                assert_eq!(ring.queue.next_available(), start);
                ring.queue.enable_notification();
                assert_eq!(ring.device_event().0, after(start, offered, size));
                assert!(!ring.queue.has_grown());
            }
            ring.offer(1);
            assert!(ring.driver.needs_notification() && ring.queue.has_grown());
        }
    }
}

/// The driver shows a batch by its first descriptor, which it writes last: those behind it look available
/// before. What the device has not seen because of that it asks to be kicked for.
#[test]
fn a_batch_that_is_being_written_does_not_lead_the_look_astray() {
    for (first, batch) in [(1, 32), (5, 28), (10, 23), (10, 24), (32, 1), (20, 40)] {
        let mut ring = Ring::new(Shape::packed(64).with_event_index());
        let memory = Arc::clone(&ring.memory);
        ring.offer(first);
        let _ = ring.driver.needs_notification();
        for _ in 0..batch {
            ring.driver.add(&[readable(DATA, 1)]).unwrap();
        }
        let mut chains = virtqueue::Chains::new();
        assert_ne!(ring.queue.available_descriptors(), Ok(0));
        ring.queue.take(&memory, Access::Read, 1, &mut chains).unwrap();
        ring.queue.put_back(1);
        ring.queue.enable_notification();
        let sleeps = !ring.queue.has_grown();
        ring.driver.publish();
        assert!(ring.driver.needs_notification() || !sleeps, "asleep: {first} and {batch}");
    }
}

/// The driver asks for a descriptor that the ring does not have, so for no notification.
#[test]
fn a_descriptor_outside_the_ring_is_never_used() {
    for off_wrap in [8, 9, 100, 0x7fff, 0x8008, 0xffff] {
        let mut ring = Ring::new(Shape::packed(8).with_event_index());
        let _ = ring.queue.needs_notification();
        ring.packed().write_event(off_wrap, EVENT_DESC);
        for _ in 0..100 {
            ring.offer(3);
            ring.complete_all();
            assert!(!ring.queue.needs_notification(), "{off_wrap:#x}");
            ring.reap();
        }
    }
}

#[test]
fn any_event_costs_one_signal_in_two_laps_at_most() {
    for event in positions(7) {
        let mut ring = Ring::new(Shape::packed(7).with_event_index());
        let _ = ring.queue.needs_notification();
        ring.packed().write_event(event, EVENT_DESC);
        let mut signals = 0;
        for _ in 0..14 * 50 {
            ring.offer(1);
            ring.complete_all();
            signals += u32::from(ring.queue.needs_notification());
            ring.reap();
        }
        assert_eq!(signals, 50, "{event:#x}");
    }
}

/// Reserved values cause too many notifications rather than too few, but none without used descriptors.
#[test]
fn only_the_defined_values_suppress() {
    for shape in [Shape::packed(8), Shape::packed(8).with_event_index()] {
        for flags in 0..=u16::MAX {
            if flags > 0x40 && flags < 0xffc0 && flags.count_ones() != 8 {
                continue;
            }
            let mut ring = Ring::new(shape);
            let desc = shape.options.event_index && flags == EVENT_DESC;
            // The first answer after a start depends on nothing but the flags.
            ring.packed().write_event(5, flags);
            assert_eq!(ring.queue.needs_notification(), flags != EVENT_DISABLE, "{flags:#x}");
            assert!(!ring.queue.needs_notification(), "of nothing new: {flags:#x}");
            ring.offer(1);
            ring.complete_all();
            assert_eq!(
                ring.queue.needs_notification(),
                flags != EVENT_DISABLE && !desc,
                "{flags:#x}"
            );
        }
    }
}
