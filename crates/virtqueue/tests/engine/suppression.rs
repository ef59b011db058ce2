//! Who is told of what, whatever the format: no wake-up is lost, and none is sent that nobody wants
//! (virtio 1.2, 2.7.7, 2.7.9, 2.7.10, 2.8.10).

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crate::common::{DATA, Ring, Shape, readable};
use virtqueue::{Access, Chains};

/// Ring positions, formats and modes to try.
fn shapes() -> impl Iterator<Item = Shape> {
    let starts = (0..20).flat_map(|n| {
        [8, 7].into_iter().map(move |size| {
            Shape::packed(size).starting_at((n % size) | if n & 1 == 0 { 0x8000 } else { 0 })
        })
    });
    let around_the_wrap = (0..40).map(|n| Shape::split(8).starting_at(65516_u16.wrapping_add(n)));
    starts
        .chain(around_the_wrap)
        .flat_map(|shape| [shape, shape.with_event_index()])
        .flat_map(|shape| [shape, shape.in_order()])
}

impl Ring {
    /// The device takes all there is, completes up to `most` chains and puts the others back. Returns how
    /// many it completed.
    fn complete(&mut self, most: usize) -> usize {
        let memory = Arc::clone(&self.memory);
        let mut chains = self.take_all(&memory, Access::Read).unwrap();
        let rest = chains.truncate(most);
        self.queue.put_back(rest);
        self.queue.complete_read(chains.all());
        chains.len()
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
                ring.driver.disable_notification();
                ring.offer(before);
                ring.complete(8);
                ring.queue.publish();
                let _ = ring.queue.needs_notification();
                assert_eq!(ring.reap().len(), usize::from(before));
                ring.offer(3);
                ring.complete(2);
                let (mut device, mut driver) = (0, 0);
                let (mut signalled, mut seen) = (false, 0);
                for driver_steps in order {
                    match (driver_steps, if driver_steps { driver } else { device }) {
                        (false, 0) => ring.queue.publish(),
                        (false, _) => signalled = ring.queue.needs_notification(),
                        (true, 0) => ring.driver.enable_notification(),
                        (true, _) => seen = ring.reap().len(),
                    }
                    *(if driver_steps { &mut driver } else { &mut device }) += 1;
                }
                assert!(signalled || seen == 2, "asleep: {shape:?} {before} {order:?}");
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
                ring.queue.disable_notification();
                ring.offer(left + 1);
                let _ = ring.driver.needs_notification();
                assert_eq!(ring.complete(1), 1);
                assert!(!ring.queue.has_grown(), "by nothing");
                let (mut device, mut driver) = (0, 0);
                let (mut kicked, mut seen) = (false, false);
                for device_steps in order {
                    match (device_steps, if device_steps { device } else { driver }) {
                        (false, 0) => ring.offer(2),
                        (false, _) => kicked = ring.driver.needs_notification(),
                        (true, 0) => ring.queue.enable_notification(),
                        (true, _) => seen = ring.queue.has_grown(),
                    }
                    *(if device_steps { &mut device } else { &mut driver }) += 1;
                }
                assert!(kicked || seen, "asleep: {shape:?} {left} {order:?}");
            }
        }
    }
}

#[test]
fn a_side_that_polls_is_left_alone() {
    for shape in shapes() {
        let mut ring = Ring::new(shape);
        let _ = ring.queue.needs_notification();
        // Both wanted to be told once, and then no more.
        ring.driver.enable_notification();
        ring.queue.enable_notification();
        ring.offer(1);
        assert!(ring.driver.needs_notification());
        ring.complete(1);
        ring.queue.publish();
        assert!(ring.queue.needs_notification());
        ring.driver.disable_notification();
        ring.queue.disable_notification();
        for _ in 0..100 {
            ring.reap();
            ring.offer(5);
            assert!(!ring.driver.needs_notification());
            assert_eq!(ring.complete(8), 5);
            ring.queue.publish();
            assert!(!ring.queue.needs_notification());
        }
    }
}

#[test]
fn a_device_that_starts_over_signals_what_another_published() {
    for shape in shapes() {
        let mut ring = Ring::new(shape);
        ring.driver.enable_notification();
        ring.offer(2);
        ring.complete(2);
        ring.queue.publish();
        // It ends here, before it has signalled; another takes over.
        ring.restart();
        assert!(ring.queue.needs_notification());
        // Without an event the flags of a split ring say always.
        let split_flags = !shape.options.packed && !shape.options.event_index;
        assert_eq!(ring.queue.needs_notification(), split_flags);
    }
}

#[test]
fn a_device_that_starts_over_does_not_signal_a_driver_that_polls() {
    for shape in shapes().filter(|shape| shape.options.packed || !shape.options.event_index) {
        let mut ring = Ring::new(shape);
        ring.driver.disable_notification();
        ring.offer(2);
        ring.complete(2);
        ring.queue.publish();
        ring.restart();
        assert!(!ring.queue.needs_notification());
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

/// The device's thread: serves one chain at a time, and sleeps whenever there is none.
fn serve(
    Ring { memory, mut queue, .. }: Ring,
    count: usize,
    call: &mpsc::Sender<()>,
    kicked: &mpsc::Receiver<()>,
) -> usize {
    let mut done = 0;
    while done < count {
        queue.disable_notification();
        while queue.available_descriptors().unwrap() > 0 {
            let mut chains = Chains::new();
            queue.take(&memory, Access::Read, 1, &mut chains).unwrap();
            assert_eq!((chains.len(), chains.all()[0].fault), (1, None));
            queue.complete_read(chains.all());
            queue.publish();
            done += 1;
            if queue.needs_notification() {
                let _ = call.send(());
            }
        }
        queue.enable_notification();
        if done < count && queue.available_descriptors().unwrap() == 0 && !sleep(kicked) {
            break;
        }
    }
    done
}

#[test]
fn two_threads_that_sleep_whenever_they_can_lose_no_wake_up() {
    let formats = [Shape::split(4).starting_at(64_000), Shape::packed(4), Shape::packed(3)];
    for shape in formats.into_iter().flat_map(|shape| [shape, shape.in_order()]) {
        for shape in [shape, shape.with_event_index()] {
            let memory = crate::common::memory();
            // Each thread uses one side.
            let ring = Ring::over(Arc::clone(&memory), shape);
            let Ring { mut driver, .. } = Ring::over(memory, shape);
            let (kick, kicked) = mpsc::channel();
            let (call, called) = mpsc::channel();
            let count = 3000;
            let device = std::thread::spawn(move || serve(ring, count, &call, &kicked));
            let (mut offered, mut reaped) = (0, 0);
            while reaped < count {
                while offered < count && driver.add(&[readable(DATA, 1)]).is_some() {
                    offered += 1;
                    driver.publish();
                    if driver.needs_notification() {
                        let _ = kick.send(());
                    }
                }
                driver.enable_notification();
                let before = reaped;
                while driver.used().is_some() {
                    reaped += 1;
                }
                if reaped == before {
                    sleep(&called);
                }
                driver.disable_notification();
            }
            drop(kick);
            assert_eq!(device.join().unwrap(), count);
        }
    }
}
