//! Who is told of what: no wake-up is lost, and none is sent that nobody wants (virtio 1.2, 2.7.7, 2.7.9,
//! 2.7.10).

mod common;

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use common::{DATA, Ring, Shape, readable, write};
use virtqueue::layout::ENTRIES;
use virtqueue::{Access, QueueSetup, Slices, Taken};

/// Indices on both sides of the wrap.
fn around_the_wrap() -> impl Iterator<Item = u16> {
    (0..40).map(|n| 65516_u16.wrapping_add(n))
}

/// Ring positions and modes to try.
fn shapes() -> impl Iterator<Item = Shape> {
    around_the_wrap().flat_map(|start| {
        let flags = Shape::of(8).starting_at(start);
        [flags, flags.with_event_index()]
    })
}

fn used_event_at(setup: &QueueSetup) -> u64 {
    setup.driver_area + ENTRIES as u64 + 2 * u64::from(setup.size)
}

fn avail_event_at(setup: &QueueSetup) -> u64 {
    setup.device_area + ENTRIES as u64 + 8 * u64::from(setup.size)
}

impl Ring {
    /// The driver adds `count` chains and publishes them.
    fn offer(&mut self, count: u16) {
        for _ in 0..count {
            self.driver.add(&[readable(DATA, 1)]).expect("a free descriptor");
        }
        self.driver.publish();
    }

    /// The device takes up to `most` chains and completes them. Returns how many there were.
    fn complete(&mut self, most: u16) -> u16 {
        let memory = Arc::clone(&self.memory);
        let count = self.queue.available().unwrap().min(most);
        for _ in 0..count {
            let taken = self.queue.take(&memory, Access::Read, &mut Slices::new()).unwrap();
            let Some(Taken::Chain(chain)) = taken else { panic!("{taken:?}") };
            self.queue.complete(chain.head, 0);
        }
        count
    }

    /// The driver takes back all that is used.
    fn reap(&mut self) -> usize {
        std::iter::from_fn(|| self.driver.used()).count()
    }
}

#[test]
fn the_driver_is_signalled_exactly_when_its_used_event_is_passed() {
    for start in around_the_wrap() {
        for count in 1..=8 {
            for offset in -10..=10_i16 {
                let mut ring = Ring::new(Shape::of(8).starting_at(start).with_event_index());
                assert!(ring.queue.wants_signal(), "the first answer after a start");
                let event = start.wrapping_add_signed(offset);
                write(&ring.memory, used_event_at(&ring.driver.setup()), &event.to_le_bytes());
                ring.offer(count);
                ring.complete(count);
                ring.queue.publish();
                let passed = (0..count).any(|n| start.wrapping_add(n) == event);
                assert_eq!(ring.queue.wants_signal(), passed, "{start} {count} {offset}");
                assert!(!ring.queue.wants_signal(), "twice for one burst");
            }
        }
    }
}

#[test]
fn the_device_is_kicked_exactly_when_its_avail_event_is_passed() {
    for start in around_the_wrap() {
        for count in 1..=8 {
            for offset in -10..=10_i16 {
                let mut ring = Ring::new(Shape::of(8).starting_at(start).with_event_index());
                let event = start.wrapping_add_signed(offset);
                write(&ring.memory, avail_event_at(&ring.driver.setup()), &event.to_le_bytes());
                ring.offer(count);
                let passed = (0..count).any(|n| start.wrapping_add(n) == event);
                assert_eq!(ring.driver.wants_kick(), passed, "{start} {count} {offset}");
            }
        }
    }
}

/// All orders of two threads' two steps each: `false` is a step of the first.
const ORDERS: [[bool; 4]; 6] = [
    [false, false, true, true],
    [false, true, false, true],
    [false, true, true, false],
    [true, false, false, true],
    [true, false, true, false],
    [true, true, false, false],
];

#[test]
fn a_driver_that_goes_to_sleep_is_woken_or_sees_the_used_entry_itself() {
    for shape in shapes() {
        for before in 0..4 {
            for order in ORDERS {
                let mut ring = Ring::new(shape);
                // A history: entries that the driver polled for, without wanting a signal.
                ring.driver.disarm_signal();
                ring.offer(before);
                ring.complete(before);
                ring.queue.publish();
                let _ = ring.queue.wants_signal();
                assert_eq!(ring.reap(), usize::from(before));
                ring.offer(3);
                ring.complete(2);
                let (mut device, mut driver) = (0, 0);
                let (mut signalled, mut seen) = (false, 0);
                for driver_steps in order {
                    match (driver_steps, if driver_steps { driver } else { device }) {
                        (false, 0) => ring.queue.publish(),
                        (false, _) => signalled = ring.queue.wants_signal(),
                        (true, 0) => ring.driver.arm_signal(),
                        (true, _) => seen = ring.reap(),
                    }
                    *(if driver_steps { &mut driver } else { &mut device }) += 1;
                }
                let (start, mode) = (shape.start, shape.event_index);
                assert!(signalled || seen == 2, "asleep: {start} {mode} {before} {order:?}");
            }
        }
    }
}

#[test]
fn a_device_that_goes_to_sleep_is_kicked_or_sees_the_chain_itself() {
    for shape in shapes() {
        // Chains that the device has seen and leaves: too few for the frame that it holds.
        for left in 0..4 {
            for order in ORDERS {
                let mut ring = Ring::new(shape);
                ring.queue.disarm_kick();
                ring.offer(left + 1);
                let _ = ring.driver.wants_kick();
                assert_eq!(ring.complete(1), 1);
                let (mut device, mut driver) = (0, 0);
                let (mut kicked, mut seen) = (false, 0);
                for device_steps in order {
                    match (device_steps, if device_steps { device } else { driver }) {
                        (false, 0) => ring.offer(2),
                        (false, _) => kicked = ring.driver.wants_kick(),
                        (true, 0) => ring.queue.arm_kick(),
                        (true, _) => seen = ring.queue.available().unwrap(),
                    }
                    *(if device_steps { &mut device } else { &mut driver }) += 1;
                }
                let (start, mode) = (shape.start, shape.event_index);
                assert!(kicked || seen == left + 2, "asleep: {start} {mode} {left} {order:?}");
            }
        }
    }
}

#[test]
fn a_side_that_polls_is_left_alone() {
    for shape in shapes() {
        let mut ring = Ring::new(shape);
        let _ = ring.queue.wants_signal();
        // Both wanted to be told once, and then no more.
        ring.driver.arm_signal();
        ring.queue.arm_kick();
        ring.offer(1);
        assert!(ring.driver.wants_kick());
        ring.complete(1);
        ring.queue.publish();
        assert!(ring.queue.wants_signal());
        ring.driver.disarm_signal();
        ring.queue.disarm_kick();
        for _ in 0..100 {
            ring.reap();
            ring.offer(5);
            assert!(!ring.driver.wants_kick());
            assert_eq!(ring.complete(8), 5);
            ring.queue.publish();
            assert!(!ring.queue.wants_signal());
        }
    }
}

#[test]
fn a_device_that_starts_over_signals_what_another_published() {
    for start in around_the_wrap() {
        let mut ring = Ring::new(Shape::of(8).starting_at(start).with_event_index());
        ring.driver.arm_signal();
        ring.offer(2);
        ring.complete(2);
        ring.queue.publish();
        // It ends here, before it has signalled; another takes over.
        let setup =
            QueueSetup { next_available: ring.queue.next_available(), ..ring.driver.setup() };
        let mut next = virtqueue::SplitQueue::new(&setup, &ring.memory).unwrap();
        assert!(next.wants_signal());
        assert!(!next.wants_signal());
    }
}

/// HOSTILE 44.
#[test]
fn any_used_event_costs_one_signal_a_round_at_most() {
    for event in [0_u16, 1, 7, 8, 0x7fff, 0x8000, 0xfffe, 0xffff] {
        let mut ring = Ring::new(Shape::of(8).starting_at(65530).with_event_index());
        let _ = ring.queue.wants_signal();
        write(&ring.memory, used_event_at(&ring.driver.setup()), &event.to_le_bytes());
        let mut signals = 0;
        for _ in 0..=u16::MAX {
            ring.offer(1);
            ring.complete(1);
            ring.queue.publish();
            signals += u32::from(ring.queue.wants_signal());
            ring.reap();
        }
        assert_eq!(signals, 1, "{event}");
    }
}

/// HOSTILE 44.
#[test]
fn only_the_defined_flag_suppresses() {
    for flags in 0..=u16::MAX {
        let mut ring = Ring::new(Shape::of(8));
        if flags > 0x40 && flags < 0xffc0 && flags.count_ones() != 8 {
            continue;
        }
        write(&ring.memory, ring.driver.setup().driver_area, &flags.to_le_bytes());
        ring.offer(1);
        ring.complete(1);
        ring.queue.publish();
        assert_eq!(ring.queue.wants_signal(), flags & 1 == 0, "{flags:#x}");
    }
}

/// Sleeps until there is news. Fails where a lost wake-up would hang.
fn sleep(on: &mpsc::Receiver<()>) -> bool {
    match on.recv_timeout(Duration::from_secs(10)) {
        Ok(()) => true,
        Err(RecvTimeoutError::Disconnected) => false,
        Err(RecvTimeoutError::Timeout) => panic!("a wake-up was lost"),
    }
}

#[test]
fn two_threads_that_sleep_whenever_they_can_lose_no_wake_up() {
    for event_index in [false, true] {
        let mut shape = Shape::of(4).starting_at(64_000);
        shape.event_index = event_index;
        let Ring { memory, mut driver, mut queue } = Ring::new(shape);
        let (kick, kicked) = mpsc::channel();
        let (call, called) = mpsc::channel();
        let count = 3000;
        let device = std::thread::spawn(move || {
            let mut done = 0;
            while done < count {
                queue.disarm_kick();
                while queue.available().unwrap() > 0 {
                    let taken = queue.take(&memory, Access::Read, &mut Slices::new()).unwrap();
                    let Some(Taken::Chain(chain)) = taken else { panic!("{taken:?}") };
                    queue.complete(chain.head, 0);
                    queue.publish();
                    done += 1;
                    if queue.wants_signal() {
                        let _ = call.send(());
                    }
                }
                queue.arm_kick();
                if done < count && queue.available().unwrap() == 0 && !sleep(&kicked) {
                    break;
                }
            }
            done
        });
        let (mut offered, mut reaped) = (0, 0);
        while reaped < count {
            while offered < count && driver.add(&[readable(DATA, 1)]).is_some() {
                offered += 1;
                driver.publish();
                if driver.wants_kick() {
                    let _ = kick.send(());
                }
            }
            driver.arm_signal();
            let before = reaped;
            while driver.used().is_some() {
                reaped += 1;
            }
            if reaped == before {
                sleep(&called);
            }
            driver.disarm_signal();
        }
        drop(kick);
        assert_eq!(device.join().unwrap(), count);
    }
}
