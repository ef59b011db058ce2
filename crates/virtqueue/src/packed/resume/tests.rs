use std::collections::VecDeque;
use std::sync::Arc;

use guest_memory::GuestMemory;
use guest_memory::memory::Mapping;
use proptest::prelude::*;
use ring_journal::Journal;
use tempfile::TempDir;
use vm_memory::GuestAddress;

use super::super::kill;
use super::*;
use crate::driver::{Buffer, Driver, Returned, RingOptions};
use crate::{Access, Chains, Queue, QueueSetup, Resumed};

const RING: u64 = 0;
const DATA: u64 = 0x10_000;
const FRESH: u16 = 0x8000;

/// A ring with a driver, and a device that may be killed.
struct Bench {
    directory: TempDir,
    memory: Arc<GuestMemory>,
    driver: Driver,
    writable: bool,
    /// Ids of the chains that the device has.
    offered: VecDeque<u16>,
}

/// What the device writes into a chain.
const fn len_of(id: u16) -> u32 {
    100 + id as u32
}

impl Bench {
    fn new(options: RingOptions, writable: bool) -> Self {
        let map = Mapping::from_ranges(&[(GuestAddress(0), 0x20_000)]).unwrap();
        let memory = Arc::new(GuestMemory::new(Arc::new(map)));
        let driver = Driver::new(&memory, RING, options, FRESH);
        let directory = tempfile::tempdir().unwrap();
        Self { directory, memory, driver, writable, offered: VecDeque::new() }
    }

    fn offer(&mut self, slots: usize) {
        let buffer = Buffer { address: DATA, len: 2000, writable: self.writable };
        if let Some(id) = self.driver.add(&vec![buffer; slots]) {
            self.offered.push_back(id);
        }
    }

    /// A daemon starts, and its front end says what it knows: where the ring began.
    fn start(&self, said: u16) -> (Queue, Option<Result<Resumed, Unfit>>) {
        let path = self.directory.path().join("vm.rings");
        let (journal, _) = Journal::open(&path, 1).unwrap();
        let setup = QueueSetup { next_available: said, ..self.driver.setup() };
        let mut queue = Queue::new(&setup, &self.memory).unwrap();
        let resumed = queue.resume(&setup, journal.slot(0).unwrap());
        (queue, resumed)
    }

    /// The device takes up to `max` chains, and gives them back in steps of `together`.
    fn serve(&self, queue: &mut Queue, max: usize, together: usize) {
        if queue.available_descriptors().unwrap() == 0 {
            return;
        }
        let mut chains = Chains::new();
        let access = if self.writable { Access::Write } else { Access::Read };
        queue.take(&self.memory, access, max, &mut chains).unwrap();
        for some in chains.all().chunks(together) {
            if self.writable {
                let mut written = some.to_vec();
                written.iter_mut().for_each(|chain| chain.len = len_of(chain.id));
                queue.complete_written(&written);
            } else {
                queue.complete_read(some);
            }
            queue.publish();
        }
    }

    /// The driver takes back what it sees: each chain once, in order, with its length.
    fn reap(&mut self) {
        while let Some(Returned { id, len }) = self.driver.used() {
            assert_eq!(Some(id), self.offered.pop_front(), "not the oldest chain");
            assert_eq!(len, if self.writable { len_of(id) } else { 0 });
        }
    }
}

fn options(size: u16, in_order: bool) -> RingOptions {
    RingOptions { packed: true, in_order, ..RingOptions::of(size) }
}

#[derive(Clone, Debug)]
struct Life {
    offers: Vec<usize>,
    stores: u32,
    max: usize,
    together: usize,
    reaps: bool,
}

fn life() -> impl Strategy<Value = Life> {
    let offers = proptest::collection::vec(prop_oneof![4 => Just(1), 1 => 2..4_usize], 0..12);
    (offers, 0..40_u32, 1..20_usize, 1..8_usize, any::<bool>()).prop_map(
        |(offers, stores, max, together, reaps)| Life { offers, stores, max, together, reaps },
    )
}

proptest! {
    #[test]
    fn however_often_the_device_is_killed_each_chain_comes_back_once(
        size in prop_oneof![Just(4_u16), Just(7), Just(16), Just(64)],
        in_order: bool,
        writable: bool,
        lives in proptest::collection::vec(life(), 1..30),
    ) {
        let mut bench = Bench::new(options(size, in_order), writable);
        for Life { offers, stores, max, together, reaps } in lives {
            let (mut queue, resumed) = bench.start(FRESH);
            prop_assert!(!matches!(resumed, Some(Err(_))), "{resumed:?}");
            offers.into_iter().for_each(|slots| bench.offer(slots));
            bench.driver.publish();
            kill::after(stores, || (0..4).for_each(|_| bench.serve(&mut queue, max, together)));
            if reaps {
                bench.reap();
            }
        }
        let (mut queue, resumed) = bench.start(FRESH);
        prop_assert!(matches!(resumed, Some(Ok(_))), "{resumed:?}");
        (0..size).for_each(|_| bench.serve(&mut queue, 64, 64));
        bench.reap();
        prop_assert!(bench.offered.is_empty(), "{:?} are lost", bench.offered);
    }

    #[test]
    fn any_note_moves_the_ring_to_a_position_in_it_or_is_refused(
        size in 1..20_u16,
        offers in proptest::collection::vec(1..3_usize, 0..20),
        used: u16,
        taken: u16,
        group in proptest::option::of((any::<Option<u16>>(), any::<u16>(), any::<u16>())),
        near: bool,
        pending: u64,
    ) {
        let mut bench = Bench::new(options(size, false), true);
        let (mut queue, _) = bench.start(FRESH);
        for slots in offers {
            bench.offer(slots);
            bench.driver.publish();
            bench.serve(&mut queue, 2, 2);
        }
        // Mostly positions that are in the ring.
        let fit = |at: u16| if near { (at % size) | (at & 0x8000) } else { at };
        let group = group.map(|(before, from, to)| Published {
            before: before.map(fit),
            from: fit(from),
            to: fit(to),
        });
        let setup = bench.driver.setup();
        let identity = setup.identity();
        let (used, taken) = (fit(used), fit(taken));
        let entry = Entry { identity, used, taken, published: group, pending };
        let mut queue = Queue::new(&setup, &bench.memory).unwrap();
        let Queue::Packed(ring) = &mut queue else { unreachable!() };
        let before = ring.next_available();
        match ring.resume(&entry, FRESH) {
            Ok(stood) => prop_assert!(stood.again <= size && stood.at & 0x7fff < size),
            Err(_) => prop_assert_eq!(ring.next_available(), before),
        }
        prop_assert!(ring.next_available() & 0x7fff < size);
        // Whatever it is, nothing gets out of hand.
        ring.publish();
        bench.serve(&mut queue, 64, 64);
    }
}

/// A ring that went around some times, and its device was killed.
fn killed(laps: u16) -> Bench {
    let mut bench = Bench::new(options(16, false), false);
    let (mut queue, _) = bench.start(FRESH);
    for _ in 0..laps * 2 + 1 {
        (0..8).for_each(|_| bench.offer(1));
        bench.driver.publish();
        bench.serve(&mut queue, 64, 64);
        bench.reap();
    }
    bench
}

#[test]
fn what_was_taken_and_not_given_back_is_counted() {
    let mut bench = killed(0);
    let (mut queue, resumed) = bench.start(FRESH);
    assert_eq!(resumed, Some(Ok(Resumed { position: FRESH | 8, again: 0 })));
    (0..5).for_each(|_| bench.offer(1));
    bench.driver.publish();
    let mut chains = Chains::new();
    queue.available_descriptors().unwrap();
    queue.take(&bench.memory, Access::Read, 64, &mut chains).unwrap();
    queue.complete_read(&chains.all()[..2]);
    queue.publish();
    let (_, resumed) = bench.start(FRESH);
    assert_eq!(resumed, Some(Ok(Resumed { position: FRESH | 10, again: 3 })));
}

#[test]
fn a_ring_that_was_reset_or_set_up_anew_starts_as_the_front_end_says() {
    for laps in 0..4 {
        let mut bench = killed(laps);
        bench.driver = Driver::new(&bench.memory, RING, options(16, false), FRESH);
        bench.offered.clear();
        (0..16).for_each(|_| bench.offer(1));
        bench.driver.publish();
        let (mut queue, resumed) = bench.start(FRESH);
        assert_eq!(resumed, Some(Err(Unfit::Reset)), "after {laps} laps");
        bench.serve(&mut queue, 64, 64);
        bench.reap();
        assert!(bench.offered.is_empty());
    }
    let bench = killed(1);
    assert_eq!(bench.start(FRESH | 3).1, Some(Err(Unfit::Said { said: FRESH | 3 })));
    let mut bench = killed(1);
    bench.driver = Driver::new(&bench.memory, 0x8000, options(16, false), FRESH);
    assert_eq!(bench.start(FRESH).1, Some(Err(Unfit::Setup)));
}
