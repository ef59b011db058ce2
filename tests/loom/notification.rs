//! No wake-up is lost, in any order of accesses that the memory model allows: both sides' own code under
//! loom. tests/README.md has the command.
#![cfg(loom)]

use std::sync::Arc;

use guest_memory::GuestMemory;
use guest_memory::memory::Mapping;
use loom::model::Builder;
use loom::sync::{Condvar, Mutex};
use virtqueue::driver::{Buffer, Driver, RingOptions};
use virtqueue::{Access, Chains, Queue};
use vm_memory::GuestAddress;

/// How many chains go through a ring of as many descriptors.
const CHAINS: usize = 2;
const BUFFER: Buffer = Buffer { address: 0x2000, len: 1, writable: false };

/// An eventfd that is waited on.
#[derive(Default)]
struct Event {
    happened: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    fn notify(&self) {
        *self.happened.lock().unwrap() = true;
        self.changed.notify_one();
    }

    /// If this is for ever, loom says that all threads are blocked.
    fn wait(&self) {
        let mut happened = self.happened.lock().unwrap();
        while !*happened {
            happened = self.changed.wait(happened).unwrap();
        }
        *happened = false;
    }
}

struct Ring {
    memory: Arc<GuestMemory>,
    driver: Driver,
    queue: Queue,
}

fn ring(options: RingOptions) -> Ring {
    let map = Mapping::from_ranges(&[(GuestAddress(0), 0x3000)]).unwrap();
    let memory = Arc::new(GuestMemory::new(Arc::new(map)));
    let position = if options.packed { 0x8000 } else { u16::MAX };
    let driver = Driver::new(&memory, 0, options, position);
    let mut queue = Queue::new(&driver.setup(), &memory).unwrap();
    // As a worker does at the start.
    queue.disable_notification();
    queue.needs_notification();
    Ring { memory, driver, queue }
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    // Without a bound it takes minutes. With this one, each fence that is taken away is missed.
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(model);
}

/// The driver adds chains, the device sleeps whenever it finds none.
fn kicks(options: RingOptions) {
    check(move || {
        let Ring { memory, mut driver, mut queue } = ring(options);
        let kick = Arc::new(Event::default());
        let device = loom::thread::spawn({
            let kick = Arc::clone(&kick);
            move || {
                let mut taken = 0;
                while taken < CHAINS {
                    queue.enable_notification();
                    if !queue.has_grown() {
                        kick.wait();
                    }
                    queue.disable_notification();
                    while queue.available_descriptors().unwrap() > 0 {
                        let mut chains = Chains::new();
                        queue.take(&memory, Access::Read, 1, &mut chains).unwrap();
                        assert_eq!(chains.all()[0].fault, None);
                        taken += chains.len();
                    }
                }
            }
        });
        for _ in 0..CHAINS {
            driver.add(&[BUFFER]).unwrap();
            driver.publish();
            if driver.needs_notification() {
                kick.notify();
            }
        }
        device.join().unwrap();
    });
}

/// The device gives chains back one by one, the driver sleeps whenever it finds none.
fn signals(options: RingOptions) {
    check(move || {
        let Ring { memory, mut driver, mut queue } = ring(options);
        for _ in 0..CHAINS {
            driver.add(&[BUFFER]).unwrap();
        }
        driver.publish();
        let signal = Arc::new(Event::default());
        let device = loom::thread::spawn({
            let signal = Arc::clone(&signal);
            move || {
                let mut chains = Chains::new();
                queue.available_descriptors().unwrap();
                queue.take(&memory, Access::Read, CHAINS, &mut chains).unwrap();
                assert_eq!(chains.len(), CHAINS);
                for chain in chains.all() {
                    queue.complete_read(std::slice::from_ref(chain));
                    queue.publish();
                    if queue.needs_notification() {
                        signal.notify();
                    }
                }
            }
        });
        let mut returned = 0;
        while returned < CHAINS {
            driver.enable_notification();
            if !driver.has_used() {
                signal.wait();
            }
            driver.disable_notification();
            while let Some(chain) = driver.used() {
                assert_eq!(usize::from(chain.id), returned, "in order");
                returned += 1;
            }
        }
        device.join().unwrap();
    });
}

fn options(packed: bool, event_index: bool) -> RingOptions {
    RingOptions { packed, event_index, ..RingOptions::of(2) }
}

#[test]
fn no_kick_is_lost_in_a_split_ring_with_flags() {
    kicks(options(false, false));
}

#[test]
fn no_kick_is_lost_in_a_split_ring_with_the_event_index() {
    kicks(options(false, true));
}

#[test]
fn no_kick_is_lost_in_a_packed_ring_with_flags() {
    kicks(options(true, false));
}

#[test]
fn no_kick_is_lost_in_a_packed_ring_with_the_event_index() {
    kicks(options(true, true));
}

#[test]
fn no_signal_is_lost_in_a_split_ring_with_flags() {
    signals(options(false, false));
}

#[test]
fn no_signal_is_lost_in_a_split_ring_with_the_event_index() {
    signals(options(false, true));
}

#[test]
fn no_signal_is_lost_in_a_packed_ring_with_flags() {
    signals(options(true, false));
}

#[test]
fn no_signal_is_lost_in_a_packed_ring_with_the_event_index() {
    signals(options(true, true));
}
