//! A ring with both its sides, in a guest of two adjacent memory regions.

use std::ops::Range;
use std::sync::Arc;

use guest_memory::memory::Mapping;
use guest_memory::{GuestMemory, GuestSlice};
use virtqueue::driver::{Buffer, Driver, PackedDriver, Returned, RingOptions, SplitDriver};
use virtqueue::layout::{
    DESC_F_AVAIL, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_USED, Descriptor, PackedDescriptor,
    device_area_len,
};
use virtqueue::{Access, Chain, ChainFault, Chains, Queue, QueueSetup, RingError};
use vm_memory::GuestAddress;

/// Where the rings lie.
pub const RING: u64 = 0x1_0000;
/// Where buffers and indirect tables may lie; 1 MiB on either side of `SEAM`.
pub const DATA: u64 = 0x10_0000;
/// Where the first region ends and the second, adjacent one begins.
pub const SEAM: u64 = 0x20_0000;
/// The end of guest memory.
pub const END: u64 = 0x30_0000;

/// The guest's memory as vm-memory maps it.
pub fn mapping() -> Arc<Mapping> {
    let ranges = [(GuestAddress(0), SEAM as usize), (GuestAddress(SEAM), (END - SEAM) as usize)];
    Arc::new(Mapping::from_ranges(&ranges).unwrap())
}

/// A guest's memory.
pub fn memory() -> Arc<GuestMemory> {
    Arc::new(GuestMemory::new(mapping()))
}

/// A buffer that the device reads.
pub const fn readable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: false }
}

/// A buffer that the device writes.
pub const fn writable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: true }
}

/// A buffer for this access.
pub const fn buffer(access: Access, address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: matches!(access, Access::Write) }
}

/// A split descriptor that ends its chain.
pub const fn last(address: u64, len: u32) -> Descriptor {
    Descriptor { address, len, flags: 0, next: 0 }
}

/// A split descriptor that goes on at `next`.
pub const fn goes_on(address: u64, len: u32, next: u16) -> Descriptor {
    Descriptor { address, len, flags: DESC_F_NEXT, next }
}

/// A split descriptor that names an indirect table.
pub const fn indirect(address: u64, len: u32) -> Descriptor {
    Descriptor { address, len, flags: DESC_F_INDIRECT, next: 0 }
}

/// A packed descriptor with these flags.
pub const fn packed(address: u64, len: u32, flags: u16) -> PackedDescriptor {
    PackedDescriptor { address, len, id: 5, flags }
}

/// A split descriptor as it lies in memory.
pub fn bytes_of(descriptor: Descriptor) -> Vec<u8> {
    descriptor.to_words().iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A packed descriptor as it lies in memory.
pub fn packed_bytes_of(descriptor: PackedDescriptor) -> Vec<u8> {
    [descriptor.address, descriptor.tail()].iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Fills guest memory.
pub fn write(memory: &GuestMemory, address: u64, bytes: &[u8]) {
    memory.write(address, bytes).unwrap();
}

/// Reads guest memory.
pub fn read(memory: &GuestMemory, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read(address, &mut bytes).unwrap();
    bytes
}

/// Two little-endian bytes of guest memory.
pub fn read_u16(memory: &GuestMemory, address: u64) -> u16 {
    let mut bytes = [0; 2];
    memory.read(address, &mut bytes).unwrap();
    u16::from_le_bytes(bytes)
}

/// All of guest memory.
pub fn snapshot(memory: &GuestMemory) -> Vec<u8> {
    read(memory, 0, END as usize)
}

/// Checks that all of guest memory but these ranges is as it was.
#[track_caller]
pub fn assert_unchanged_but(memory: &GuestMemory, before: &[u8], ranges: &[Range<u64>]) {
    let mut after = snapshot(memory);
    for range in ranges {
        let range = range.start as usize..range.end as usize;
        after[range.clone()].copy_from_slice(&before[range]);
    }
    if before != after {
        let at = before.iter().zip(&after).position(|(before, after)| before != after);
        panic!("guest memory changed at {:#x?}", at.unwrap());
    }
}

/// The bytes of a chain's slices, one after the other.
pub fn gather(slices: &[GuestSlice<'_>]) -> Vec<u8> {
    let mut bytes = vec![0; slices.iter().map(GuestSlice::len).sum()];
    let mut at = 0;
    for slice in slices {
        at += slice.read(0, &mut bytes[at..]);
    }
    bytes
}

/// Writes `bytes` over a chain's slices. Returns how many fitted.
pub fn scatter(slices: &[GuestSlice<'_>], bytes: &[u8]) -> usize {
    slices.iter().fold(0, |at, slice| at + slice.write(0, &bytes[at..]))
}

/// What to set a ring up with.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub options: RingOptions,
    pub start: u16,
}

impl Shape {
    pub const fn split(size: u16) -> Self {
        Self { options: RingOptions { indirect: true, ..RingOptions::of(size) }, start: 0 }
    }

    /// It starts in the first lap, whose wrap counter is 1 (2.8.1).
    pub const fn packed(size: u16) -> Self {
        let options = RingOptions { packed: true, indirect: true, ..RingOptions::of(size) };
        Self { options, start: 0x8000 }
    }

    pub const fn starting_at(mut self, start: u16) -> Self {
        self.start = start;
        self
    }

    /// It starts `count` chains before the index or the ring comes to its end.
    pub fn ending_in(self, count: u16) -> Self {
        let start = if self.options.packed {
            self.options.size.saturating_sub(count) | 0x8000
        } else {
            count.wrapping_neg()
        };
        self.starting_at(start)
    }

    pub const fn with_event_index(mut self) -> Self {
        self.options.event_index = true;
        self
    }

    pub const fn in_order(mut self) -> Self {
        self.options.in_order = true;
        self
    }

    pub const fn without_indirect(mut self) -> Self {
        self.options.indirect = false;
        self
    }
}

/// Every format, in order and not.
pub fn shapes(size: u16) -> impl Iterator<Item = Shape> {
    let formats = [Shape::split(size), Shape::packed(size)];
    formats.into_iter().flat_map(|shape| [shape, shape.in_order()])
}

/// A ring with both its sides.
pub struct Ring {
    pub memory: Arc<GuestMemory>,
    pub driver: Driver,
    pub queue: Queue,
}

impl Ring {
    /// The driver adds `count` chains of one descriptor, and publishes them.
    pub fn offer(&mut self, count: u16) {
        self.offer_chains(count, 1);
    }

    /// The driver adds `count` chains of `slots` descriptors each, and publishes them.
    pub fn offer_chains(&mut self, count: u16, slots: usize) {
        for _ in 0..count {
            self.driver.add(&vec![readable(DATA, 1); slots]).expect("free descriptors");
        }
        self.driver.publish();
    }

    /// The device takes all chains and gives them back.
    pub fn complete_all(&mut self) {
        let memory = Arc::clone(&self.memory);
        let chains = self.take_all(&memory, Access::Read).unwrap();
        self.queue.complete_read(chains.all());
        self.queue.publish();
    }

    pub fn new(shape: Shape) -> Self {
        Self::over(memory(), shape)
    }

    pub fn over(memory: Arc<GuestMemory>, shape: Shape) -> Self {
        let driver = Driver::new(&memory, RING, shape.options, shape.start);
        let queue = Queue::new(&driver.setup(), &memory).unwrap();
        Self { memory, driver, queue }
    }

    /// The driver, for what only that of a split ring can do.
    pub fn split(&mut self) -> &mut SplitDriver {
        match &mut self.driver {
            Driver::Split(driver) => driver,
            Driver::Packed(_) => panic!("a packed ring"),
        }
    }

    /// The driver, for what only that of a packed ring can do.
    pub fn packed(&mut self) -> &mut PackedDriver {
        match &mut self.driver {
            Driver::Split(_) => panic!("a split ring"),
            Driver::Packed(driver) => driver,
        }
    }

    /// Stops the device's side, and starts it again with what it said on stopping.
    pub fn restart(&mut self) {
        self.restart_at(self.queue.next_available());
    }

    /// The same with another position.
    pub fn restart_at(&mut self, next_available: u16) {
        let setup = QueueSetup { next_available, ..self.driver.setup() };
        self.queue = Queue::new(&setup, &self.memory).unwrap();
    }

    /// Takes what is available, as much as one burst may have.
    pub fn take_all<'m>(
        &mut self,
        memory: &'m GuestMemory,
        access: Access,
    ) -> Result<Chains<'m>, RingError> {
        let mut chains = Chains::new();
        if self.queue.available_descriptors()? > 0 {
            self.queue.take(memory, access, usize::MAX, &mut chains)?;
        }
        Ok(chains)
    }

    /// Takes the one chain that must be available.
    pub fn take_one<'m>(
        &mut self,
        memory: &'m GuestMemory,
        access: Access,
    ) -> Result<(Chain, Chains<'m>), RingError> {
        let chains = self.take_all(memory, access)?;
        assert_eq!(chains.len(), 1, "one chain is available");
        assert_eq!(self.queue.available_descriptors()?, 0, "and no more");
        Ok((chains.all()[0], chains))
    }

    /// What becomes of the one chain that the driver just offered; and the chain, to complete it.
    pub fn outcome_and_chain(&mut self, access: Access) -> Result<(Outcome, Chain), RingError> {
        self.driver.publish();
        let memory = Arc::clone(&self.memory);
        let (chain, chains) = self.take_one(&memory, access)?;
        let bytes = gather(chains.buffers(&chain));
        let outcome = match chain.fault {
            None => {
                assert_eq!(bytes.len(), chain.len as usize);
                Outcome::Bytes(bytes)
            }
            Some(fault) => {
                assert_eq!((bytes.len(), chain.len), (0, 0), "a refused chain has no buffers");
                Outcome::Refused(fault)
            }
        };
        Ok((outcome, chain))
    }

    /// What becomes of the one chain that the driver just offered.
    pub fn outcome(&mut self, access: Access) -> Result<Outcome, RingError> {
        self.outcome_and_chain(access).map(|(outcome, _)| outcome)
    }

    /// Completes and publishes one chain, and takes it back on the driver's side.
    #[track_caller]
    pub fn give_back(&mut self, mut chain: Chain, len: u32) {
        chain.len = len;
        self.queue.complete_written(&[chain]);
        self.queue.publish();
        assert_eq!(self.driver.used(), Some(Returned { id: chain.id, len }));
        assert_eq!(self.driver.used(), None);
    }

    /// What becomes of the one chain that a hostile driver offered. Checks that guest memory is as before
    /// but for what says that a refused chain is given back with length 0, and that the ring goes on then.
    pub fn hostile_outcome(&mut self, access: Access) -> Result<Outcome, RingError> {
        self.driver.publish();
        let before = snapshot(&self.memory);
        let at = self.queue.next_available();
        let outcome = self.outcome_and_chain(access);
        assert_unchanged_but(&self.memory, &before, &[]);
        let (outcome, chain) = outcome?;
        if let Outcome::Refused(_) = outcome {
            self.queue.complete_written(&[chain]);
            self.queue.publish();
            assert_unchanged_but(&self.memory, &before, &[self.used_words(at)]);
            self.serves_a_good_chain(chain.slots);
        }
        Ok(outcome)
    }

    /// Where the device writes that the chain that began at this position is used.
    pub fn used_words(&self, at: u16) -> Range<u64> {
        let setup = self.driver.setup();
        if setup.packed {
            let word = setup.descriptor_table + u64::from(at & 0x7fff) * 16 + 8;
            return word..word + 8;
        }
        setup.device_area..setup.device_area + device_area_len(setup.size) as u64
    }

    /// A chain that was refused is seen to be used with length 0, and the next, good one is served.
    fn serves_a_good_chain(&mut self, slots: u16) {
        match &mut self.driver {
            Driver::Split(driver) => {
                assert_eq!(driver.used().map(|used| used.len), Some(0));
                driver.write_descriptor(7, last(DATA, 3));
                driver.offer_raw(7);
            }
            Driver::Packed(driver) => {
                assert_eq!(driver.used().map(|used| used.len), Some(0));
                // The driver knows nothing of raw lists: it goes on at the second descriptor.
                (1..slots).for_each(|_| assert_eq!(driver.used(), None));
                driver.offer_raw(packed(DATA, 3, 0));
            }
        }
        let at = self.queue.next_available();
        let (outcome, chain) = self.outcome_and_chain(Access::Read).unwrap();
        assert_eq!(outcome, Outcome::Bytes(read(&self.memory, DATA, 3)));
        self.queue.complete_read(&[chain]);
        self.queue.publish();
        match &mut self.driver {
            Driver::Split(driver) => assert_eq!(driver.used(), Some(Returned { id: 7, len: 0 })),
            Driver::Packed(_) => {
                let used = if at & 0x8000 != 0 { DESC_F_AVAIL | DESC_F_USED } else { 0 };
                let tail = PackedDescriptor { id: chain.id, ..packed(0, 0, used) }.tail();
                let word = read(&self.memory, self.used_words(at).start, 8);
                assert_eq!(word, tail.to_le_bytes());
            }
        }
    }

    /// The driver takes back all that is used.
    pub fn reap(&mut self) -> Vec<Returned> {
        std::iter::from_fn(|| self.driver.used()).collect()
    }
}

/// What became of a chain.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Bytes(Vec<u8>),
    Refused(ChainFault),
}
