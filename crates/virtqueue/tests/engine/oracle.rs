//! The split engine and the `virtio-queue` crate's `Queue`, side by side over the same chains: heads,
//! buffers, used rings and decisions to notify must agree.

use std::sync::Arc;

use crate::common::{DATA, END, RING, SEAM, Shape, buffer, mapping, read};
use guest_memory::memory::Mapping;
use guest_memory::{GuestMemory, GuestSlice};
use proptest::prelude::*;
use virtio_queue::{Queue as Oracle, QueueOwnedT, QueueT};
use virtqueue::driver::{Buffer, Driver};
use virtqueue::layout::{descriptor_table_len, device_area_len, driver_area_len};
use virtqueue::{Access, Chains, Queue};
use vm_memory::{
    Address as _, Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _,
};

const SIZE: u16 = 16;
/// The oracle has a ring of its own: the same bytes, but for the device area that it writes itself.
const ORACLE_RING: u64 = RING + 0x8000;
const TABLES: u64 = DATA + 0x8_0000;

/// A step of both sides.
#[derive(Clone, Debug)]
enum Step {
    /// The driver offers a chain of buffers with these places and lengths.
    Offer { is_indirect: bool, buffers: Vec<(u64, u32)> },
    /// The driver publishes what it offered.
    Publish,
    /// The device takes up to `take` chains, puts `put_back` of them back, completes and publishes the
    /// rest with these lengths, and asks whether to signal.
    Serve { take: usize, put_back: usize, lens: u32 },
    /// The driver takes used entries and sets its `used_event` so much ahead of what it has seen.
    Reap { ahead: i16 },
    /// The device arms its kick. (It has taken everything: only then do both have the same rule.)
    Arm,
}

fn place() -> impl Strategy<Value = (u64, u32)> {
    prop_oneof![
        4 => (DATA..DATA + 0x4_0000, 0_u32..3000),
        2 => (SEAM - 2000..SEAM + 100, 0_u32..4000),
        1 => (DATA..DATA + 64, Just(0)),
        1 => (END - 0x1_0000..END - 0x8000, 0x7000_u32..0x8000),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<bool>(), prop::collection::vec(place(), 1..=6))
            .prop_map(|(is_indirect, buffers)| Step::Offer { is_indirect, buffers }),
        3 => Just(Step::Publish),
        3 => (0_usize..8, 0_usize..4, 0_u32..5000)
            .prop_map(|(take, put_back, lens)| Step::Serve { take, put_back, lens }),
        2 => (-3_i16..6).prop_map(|ahead| Step::Reap { ahead }),
        1 => Just(Step::Arm),
    ]
}

/// Both engines over one guest memory.
struct Pair {
    map: Arc<Mapping>,
    memory: Arc<GuestMemory>,
    access: Access,
    driver: Driver,
    ours: Queue,
    oracle: Oracle,
    /// How many tables were made: each chain has one to itself.
    tables: u64,
    reaped: u16,
}

impl Pair {
    fn new(start: u16, event_index: bool, access: Access) -> Self {
        let map = mapping();
        let memory = Arc::new(GuestMemory::new(Arc::clone(&map)));
        let mut shape = Shape::split(SIZE);
        shape.options.event_index = event_index;
        let driver = Driver::new(&memory, RING, shape.options, start);
        let mut ours = Queue::new(&driver.setup(), &memory).unwrap();
        let at = |address: u64| GuestAddress(address - RING + ORACLE_RING);
        let setup = driver.setup();
        let mut oracle = Oracle::new(SIZE).unwrap();
        oracle.try_set_desc_table_address(at(setup.descriptor_table)).unwrap();
        oracle.try_set_avail_ring_address(at(setup.driver_area)).unwrap();
        oracle.try_set_used_ring_address(at(setup.device_area)).unwrap();
        oracle.set_event_idx(event_index);
        oracle.set_next_avail(start);
        oracle.set_next_used(start);
        oracle.set_ready(true);
        assert!(
            ours.needs_notification(),
            "the first answer after a start, which the oracle has not"
        );
        let pair = Self { map, memory, access, driver, ours, oracle, tables: 0, reaped: start };
        pair.mirror_driver();
        // Where both device areas begin.
        let len = device_area_len(SIZE);
        let bytes = read(&pair.memory, setup.device_area, len);
        pair.map.write_slice(&bytes, at(setup.device_area)).unwrap();
        pair
    }

    /// Copies what the driver wrote into the oracle's ring.
    fn mirror_driver(&self) {
        let setup = self.driver.setup();
        for (at, len) in [
            (setup.descriptor_table, descriptor_table_len(SIZE)),
            (setup.driver_area, driver_area_len(SIZE)),
        ] {
            let bytes = read(&self.memory, at, len);
            self.map.write_slice(&bytes, GuestAddress(at - RING + ORACLE_RING)).unwrap();
        }
    }

    fn offer(&mut self, is_indirect: bool, buffers: &[(u64, u32)]) {
        let buffers: Vec<Buffer> =
            buffers.iter().map(|&(at, len)| buffer(self.access, at, len)).collect();
        if is_indirect {
            let table = TABLES + self.tables % 1024 * 128;
            self.tables += 1;
            let _ = self.driver.add_indirect(&buffers, table);
        } else {
            let _ = self.driver.add(&buffers);
        }
    }

    /// Where a chain's bytes lie in this process, by the oracle and vm-memory.
    fn expected(&self, descriptors: &[(u64, u32)]) -> Vec<(usize, usize)> {
        let mut runs = Vec::new();
        for &(mut at, len) in descriptors {
            let mut left = u64::from(len);
            while left > 0 {
                let region = self.map.find_region(GuestAddress(at)).expect("guest memory");
                let offset = at - region.start_addr().raw_value();
                let took = left.min(region.len() - offset);
                runs.push((region.as_ptr().addr() + offset as usize, took as usize));
                at += took;
                left -= took;
            }
        }
        runs
    }

    fn serve(&mut self, take: usize, put_back: usize, lens: u32) -> Result<(), TestCaseError> {
        let memory = Arc::clone(&self.memory);
        let available = usize::from(self.ours.available_descriptors().unwrap());
        let mut chains = Chains::new();
        self.ours.take(&memory, self.access, take, &mut chains).unwrap();
        prop_assert_eq!(chains.len(), take.min(available));
        for n in 0..take {
            let oracle = self.oracle.pop_descriptor_chain(&*self.map);
            let (ours, oracle) = match (chains.all().get(n), oracle) {
                (Some(ours), Some(oracle)) => (ours, oracle),
                (None, None) => break,
                (ours, oracle) => panic!("{ours:?} here, {:?} there", oracle.is_some()),
            };
            prop_assert_eq!((ours.id, ours.fault), (oracle.head_index(), None));
            let writes = self.access == Access::Write;
            let descriptors: Vec<(u64, u32)> = oracle
                .inspect(|descriptor| assert_eq!(descriptor.is_write_only(), writes))
                .map(|descriptor| (descriptor.addr().0, descriptor.len()))
                .collect();
            prop_assert_eq!(ours.len, descriptors.iter().map(|(_, len)| len).sum::<u32>());
            let runs: Vec<(usize, usize)> = GuestSlice::as_iovecs(chains.buffers(ours))
                .iter()
                .map(|iovec| (iovec.iov_base.addr(), iovec.iov_len))
                .collect();
            prop_assert_eq!(runs, self.expected(&descriptors));
        }
        let done = chains.len().saturating_sub(put_back);
        (done..chains.len()).for_each(|_| self.oracle.go_to_previous_position());
        self.ours.put_back(chains.truncate(done));
        prop_assert_eq!(self.ours.next_available(), self.oracle.next_avail());
        for (n, len) in (0..chains.len()).zip(lens..) {
            self.oracle.add_used(&*self.map, chains.all()[n].id, len).unwrap();
            chains.set_written(n, len);
        }
        self.ours.complete_written(chains.all());
        self.ours.publish();
        let signal = self.ours.needs_notification();
        prop_assert_eq!(signal, self.oracle.needs_notification(&*self.map).unwrap());
        Ok(())
    }

    fn reap(&mut self, ahead: i16) {
        while self.driver.used().is_some() {
            self.reaped = self.reaped.wrapping_add(1);
        }
        let setup = self.driver.setup();
        let event = self.reaped.wrapping_add_signed(ahead);
        let at = setup.driver_area + driver_area_len(SIZE) as u64 - 2;
        crate::common::write(&self.memory, at, &event.to_le_bytes());
    }

    fn arm(&mut self) {
        if self.ours.available_descriptors().unwrap() > 0 {
            return;
        }
        self.ours.enable_notification();
        let news = self.oracle.enable_notification(&*self.map).unwrap();
        assert_eq!(self.ours.available_descriptors().unwrap() > 0, news);
    }

    fn run(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Offer { is_indirect, ref buffers } => self.offer(is_indirect, buffers),
            Step::Publish => self.driver.publish(),
            Step::Serve { take, put_back, lens } => self.serve(take, put_back, lens)?,
            Step::Reap { ahead } => self.reap(ahead),
            Step::Arm => self.arm(),
        }
        self.mirror_driver();
        let (at, len) = (self.driver.setup().device_area, device_area_len(SIZE));
        let theirs = read(&self.memory, at - RING + ORACLE_RING, len);
        prop_assert_eq!(read(&self.memory, at, len), theirs, "device areas after {:?}", step);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn both_engines_do_the_same(
        start in prop_oneof![Just(0_u16), 65500_u16..=65535, any::<u16>()],
        event_index: bool,
        writes: bool,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let access = if writes { Access::Write } else { Access::Read };
        let mut pair = Pair::new(start, event_index, access);
        for step in &steps {
            pair.run(step)?;
        }
    }
}
