//! A ring with both its sides, in a guest of two adjacent memory regions.
#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;

use guest_memory::memory::Mapping;
use guest_memory::{Cursor, GuestMemory, GuestSlice};
use virtqueue::driver::{Buffer, SplitDriver};
use virtqueue::layout::{DESC_F_INDIRECT, DESC_F_NEXT, Descriptor};
use virtqueue::{Access, Broken, Chain, ChainFault, Slices, SplitQueue, Taken};
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

/// A descriptor that goes on at `next`.
pub const fn goes_on(address: u64, len: u32, next: u16) -> Descriptor {
    Descriptor { address, len, flags: DESC_F_NEXT, next }
}

/// A descriptor that names an indirect table.
pub const fn indirect(address: u64, len: u32) -> Descriptor {
    Descriptor { address, len, flags: DESC_F_INDIRECT, next: 0 }
}

/// Fills guest memory.
pub fn write(memory: &GuestMemory, address: u64, bytes: &[u8]) {
    let (mut at, len) = (0, bytes.len() as u64);
    memory
        .translate(address, len, &mut Cursor::default(), |run| at += run.write(0, &bytes[at..]))
        .unwrap();
}

/// Reads guest memory.
pub fn read(memory: &GuestMemory, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut at = 0;
    memory
        .translate(address, len as u64, &mut Cursor::default(), |run| {
            at += run.read(0, &mut bytes[at..]);
        })
        .unwrap();
    bytes
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
#[derive(Clone, Copy)]
pub struct Shape {
    pub size: u16,
    pub start: u16,
    pub event_index: bool,
    pub indirect: bool,
}

impl Shape {
    pub const fn of(size: u16) -> Self {
        Self { size, start: 0, event_index: false, indirect: true }
    }

    pub const fn starting_at(mut self, start: u16) -> Self {
        self.start = start;
        self
    }

    pub const fn with_event_index(mut self) -> Self {
        self.event_index = true;
        self
    }

    pub const fn without_indirect(mut self) -> Self {
        self.indirect = false;
        self
    }
}

/// A ring with both its sides.
pub struct Ring {
    pub memory: Arc<GuestMemory>,
    pub driver: SplitDriver,
    pub queue: SplitQueue,
}

impl Ring {
    pub fn new(shape: Shape) -> Self {
        Self::over(memory(), shape)
    }

    pub fn over(memory: Arc<GuestMemory>, shape: Shape) -> Self {
        let driver = SplitDriver::new(&memory, RING, shape.size, shape.event_index, shape.indirect)
            .starting_at(shape.start);
        let queue = SplitQueue::new(&driver.setup(), &memory).unwrap();
        Self { memory, driver, queue }
    }

    /// Takes all that is available, in one burst; stops where the burst is full.
    pub fn take_all<'m>(
        &mut self,
        memory: &'m GuestMemory,
        access: Access,
        slices: &mut Slices<'m>,
    ) -> Result<Vec<Taken>, Broken> {
        self.queue.available()?;
        let mut all = Vec::new();
        while let Some(taken) = self.queue.take(memory, access, slices)? {
            all.push(taken);
            if taken == Taken::Full {
                break;
            }
        }
        Ok(all)
    }

    /// Takes the one chain that must be available.
    pub fn take_one<'m>(
        &mut self,
        memory: &'m GuestMemory,
        access: Access,
        slices: &mut Slices<'m>,
    ) -> Result<Taken, Broken> {
        assert_eq!(self.queue.available()?, 1, "one chain is available");
        let taken = self.queue.take(memory, access, slices)?.expect("a chain");
        assert!(self.queue.take(memory, access, slices)?.is_none(), "and no more");
        Ok(taken)
    }

    /// What becomes of the one chain that the driver just offered.
    pub fn outcome(&mut self, access: Access) -> Result<Outcome, Broken> {
        self.driver.publish();
        let memory = Arc::clone(&self.memory);
        let mut slices = Slices::new();
        Ok(match self.take_one(&memory, access, &mut slices)? {
            Taken::Chain(chain) => Outcome::Bytes(gather(chain.of(&slices))),
            Taken::Refused { fault, .. } => Outcome::Refused(fault),
            Taken::Full => Outcome::Full,
        })
    }

    /// Completes and publishes one chain, and takes it back on the driver's side.
    pub fn give_back(&mut self, head: u16, len: u32) {
        self.queue.complete(head, len);
        self.queue.publish();
        let used = self.driver.used().expect("a used entry");
        assert_eq!((used.head, used.len), (head, len));
    }
}

/// What became of a chain.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Bytes(Vec<u8>),
    Refused(ChainFault),
    Full,
}

/// The chain in `taken`.
#[track_caller]
pub fn chain(taken: Taken) -> Chain {
    match taken {
        Taken::Chain(chain) => chain,
        other => panic!("expected a chain, found {other:?}"),
    }
}
