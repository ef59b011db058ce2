//! The guest's memory, and which of its bytes the device may have changed.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use guest_memory::memory::Mapping;
use guest_memory::{GuestMemory, GuestSlice};
use vm_memory::GuestAddress;

/// Address of the ring's parts: the very start.
pub const RING: u64 = 0;
/// Address at which buffers and indirect tables begin.
pub const DATA: u64 = 0x2000;
/// Address at which the first region ends and the second, adjacent one begins.
pub const SEAM: u64 = 0x4000;
/// Two adjacent regions, a hole, and one more region. Memory mapped around them is not the guest's.
pub const REGIONS: [Range<u64>; 3] = [0..SEAM, SEAM..0x6000, 0x1_0000..0x1_2000];

/// A guest's memory.
pub struct Guest {
    /// As vm-memory maps it.
    pub mapping: Arc<Mapping>,
    /// As the engines see it.
    pub memory: Arc<GuestMemory>,
    /// Address of each region in this process.
    hosts: Vec<(usize, Range<u64>)>,
}

impl Guest {
    fn new(regions: &[Range<u64>]) -> Self {
        let ranges: Vec<_> = regions
            .iter()
            .map(|region| (GuestAddress(region.start), (region.end - region.start) as usize))
            .collect();
        let mapping = Arc::new(Mapping::from_ranges(&ranges).unwrap());
        let memory = Arc::new(GuestMemory::new(Arc::clone(&mapping)));
        let host = |region: &Range<u64>| base(&memory.contiguous(region.start, 1).unwrap());
        let hosts = regions.iter().map(|region| (host(region), region.clone())).collect();
        Self { mapping, memory, hosts }
    }

    /// The memory of all hostile runs: mapping it again for each would take most of the run.
    pub fn hostile() -> &'static Self {
        static GUEST: OnceLock<Guest> = OnceLock::new();
        GUEST.get_or_init(|| Self::new(&REGIONS))
    }

    /// The memory of all honest runs: 128 KiB on either side of [`HONEST_SEAM`].
    pub fn honest() -> &'static Self {
        static GUEST: OnceLock<Guest> = OnceLock::new();
        GUEST.get_or_init(|| Self::new(&[0..HONEST_SEAM, HONEST_SEAM..2 * HONEST_SEAM]))
    }

    /// The guest-physical range of a slice. Panics if it is not within one region.
    pub fn range(&self, slice: &GuestSlice<'_>) -> Range<u64> {
        let (base, len) = (base(slice), slice.len() as u64);
        for (host, region) in &self.hosts {
            let offset = base.wrapping_sub(*host) as u64;
            if offset < region.end - region.start {
                let start = region.start + offset;
                assert!(start + len <= region.end, "a slice past the end of its region");
                return start..start + len;
            }
        }
        panic!("a slice outside guest memory");
    }

    /// Copies all bytes, region by region.
    pub fn copy(&self, to: &mut Vec<u8>) {
        to.clear();
        for (_, region) in &self.hosts {
            let start = to.len();
            to.resize(start + (region.end - region.start) as usize, 0);
            self.memory.read(region.start, &mut to[start..]).unwrap();
        }
    }

    /// Sets all bytes to this one.
    pub fn fill(&self, byte: u8) {
        for (_, region) in &self.hosts {
            let bytes = vec![byte; (region.end - region.start) as usize];
            self.memory.write(region.start, &bytes).unwrap();
        }
    }

    /// The guest-physical address of byte `at` of [`copy`](Self::copy).
    fn address(&self, mut at: u64) -> u64 {
        for (_, region) in &self.hosts {
            let len = region.end - region.start;
            if at < len {
                return region.start + at;
            }
            at -= len;
        }
        unreachable!("past the end of the copy")
    }
}

/// Address at which the honest guest's first region ends and the second, adjacent one begins.
pub const HONEST_SEAM: u64 = 0x2_0000;

fn base(slice: &GuestSlice<'_>) -> usize {
    GuestSlice::as_iovecs(std::slice::from_ref(slice))[0].iov_base.addr()
}

/// The bytes that the device may change: its parts of the ring, and every buffer ever offered for writing. All other
/// bytes are canaries.
#[derive(Default)]
pub struct Canaries {
    allowed: Vec<Range<u64>>,
    before: Vec<u8>,
    after: Vec<u8>,
    /// Whether the checks are off: the device has written over descriptors as told, so it is unknown what is offered
    /// now.
    pub off: bool,
}

impl Canaries {
    /// Allows the device to change these bytes.
    pub fn allow(&mut self, start: u64, len: u64) {
        self.allowed.push(start..start.saturating_add(len));
    }

    /// Whether the device may change all these bytes.
    fn allows(&self, range: &Range<u64>) -> bool {
        let mut at = range.start;
        while at < range.end {
            let next = self.allowed.iter().filter(|it| it.contains(&at)).map(|it| it.end).max();
            let Some(next) = next else { return false };
            at = next;
        }
        true
    }

    /// Checks that the bytes given to the device for writing were offered.
    pub fn check_offered(&self, range: &Range<u64>) {
        assert!(self.off || self.allows(range), "{range:x?} was never offered for writing");
    }

    /// Stores a copy of all bytes.
    pub fn before(&mut self, guest: &Guest) {
        guest.copy(&mut self.before);
    }

    /// Checks that only allowed bytes have changed.
    pub fn after(&mut self, guest: &Guest) {
        guest.copy(&mut self.after);
        if self.after == self.before || self.off {
            return;
        }
        for (at, (before, after)) in self.before.iter().zip(&self.after).enumerate() {
            if before != after {
                let address = guest.address(at as u64);
                let allowed = self.allowed.iter().any(|range| range.contains(&address));
                assert!(allowed, "the byte at {address:#x} was changed");
            }
        }
    }
}
