//! Guest memory that the back end can map: a memory file, mapped shared.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use guest_memory::GuestMemory;
use guest_memory::memory::Mapping;
use rustix::fs::{MemfdFlags, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{
    Address as _, FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _,
    GuestRegionMmap, MmapRegion,
};

use crate::{Error, RegionOptions};

/// Guest memory in one memory file, region after region.
#[derive(Debug)]
pub struct SharedMemory {
    map: Arc<Mapping>,
    memory: Arc<GuestMemory>,
    file: Arc<File>,
    /// Bytes that are still free, by region.
    free: Vec<Range<u64>>,
}

impl SharedMemory {
    /// Makes these regions, which may be adjacent but not overlap.
    ///
    /// # Errors
    /// When the system has no memory, or the regions overlap or are not aligned.
    pub fn new(regions: &[RegionOptions]) -> Result<Self, Error> {
        Self::in_file(regions, memory_file()?, false)
    }

    /// Makes these regions in `file`, one after the other, mapped privately if `private`. The file may be shortened later:
    /// missing pages then read as zeroes.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn in_file(
        regions: &[RegionOptions],
        file: Arc<File>,
        private: bool,
    ) -> Result<Self, Error> {
        let mut regions = regions.to_vec();
        regions.sort_by_key(|region| region.address);
        file.set_len(regions.iter().map(|region| region.len).sum())
            .map_err(Error::system("sizing guest memory"))?;
        let wrong =
            |error: &dyn std::fmt::Display| Error::Options(format!("guest memory: {error}"));
        let sharing = if private { libc::MAP_PRIVATE } else { libc::MAP_SHARED };
        let mut offset = 0;
        let mut mapped = Vec::new();
        for region in &regions {
            let place = FileOffset::from_arc(Arc::clone(&file), offset);
            offset += region.len;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = sharing | libc::MAP_NORESERVE;
            let len = region.len as usize;
            let mapping = MmapRegion::build(Some(place), len, protection, flags);
            let mapping = mapping.map_err(|error| wrong(&error))?;
            let mapping = GuestRegionMmap::new(mapping, GuestAddress(region.address));
            mapped.push(mapping.ok_or_else(|| wrong(&"a region that wraps"))?);
        }
        let map = Arc::new(Mapping::from_regions(mapped).map_err(|error| wrong(&error))?);
        let memory = GuestMemory::guarded(Arc::clone(&map), None);
        let memory = Arc::new(memory.map_err(Error::system("guarding guest memory"))?);
        let free = regions.iter().map(|region| region.address..region.address + region.len);
        Ok(Self { map, memory, file, free: free.collect() })
    }

    /// The memory, for the driver's side of rings and for what a test wants to write there.
    #[must_use]
    pub const fn guest(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The file behind it.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The regions as a front end describes them.
    ///
    /// # Panics
    /// Never: every region has a file.
    #[must_use]
    pub fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let info = VhostUserMemoryRegionInfo::from_guest_region;
        self.map.iter().map(|region| info(region).expect("a region with a file")).collect()
    }

    /// Guest-physical addresses and lengths of the regions.
    #[must_use]
    pub fn spans(&self) -> Vec<RegionOptions> {
        let span = |it: &GuestRegionMmap<()>| RegionOptions {
            address: it.start_addr().raw_value(),
            len: it.len(),
        };
        self.map.iter().map(span).collect()
    }

    /// The front-end address of a guest-physical address. Messages have ring addresses of this kind.
    #[must_use]
    pub fn user_address(&self, address: u64) -> Option<u64> {
        let region = self.map.find_region(GuestAddress(address))?;
        Some(region.as_ptr().addr() as u64 + (address - region.start_addr().raw_value()))
    }

    /// Allocates `len` bytes in one region, at a multiple of 4096.
    ///
    /// # Errors
    /// When no region has that much left.
    pub fn allocate(&mut self, len: u64) -> Result<u64, Error> {
        let full = Error::MemoryFull { wanted: len };
        let rounded = len.next_multiple_of(4096);
        let region = self.free.iter_mut().find(|free| free.end - free.start >= rounded);
        let region = region.ok_or(full)?;
        let address = region.start;
        region.start += rounded;
        Ok(address)
    }

    /// Allocates `len` bytes that may cross adjacent regions.
    ///
    /// # Errors
    /// When there is no free piece of that length.
    pub fn allocate_across(&mut self, len: u64) -> Result<u64, Error> {
        let rounded = len.next_multiple_of(4096);
        for first in 0..self.free.len() {
            let start = self.free[first].start;
            let mut end = start;
            for last in first..self.free.len() {
                // The next region's rest must begin where this one's ends.
                if self.free[last].start != end {
                    break;
                }
                end = self.free[last].end;
                if end - start >= rounded {
                    for taken in &mut self.free[first..last] {
                        taken.start = taken.end;
                    }
                    self.free[last].start = start + rounded;
                    return Ok(start);
                }
            }
        }
        Err(Error::MemoryFull { wanted: len })
    }
}

/// A new memory file.
pub(crate) fn memory_file() -> Result<Arc<File>, Error> {
    let file = memfd_create("ringscope-guest", MemfdFlags::CLOEXEC);
    Ok(Arc::new(File::from(file.map_err(Error::system("making a memory file"))?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn region(address: u64, len: u64) -> RegionOptions {
        RegionOptions { address, len }
    }

    #[test]
    fn rings_stay_in_a_region_and_buffers_cross_into_adjacent_ones() {
        let regions = [region(0x8000, 0x2000), region(0, 0x2000), region(0x2000, 0x3000)];
        let mut memory = SharedMemory::new(&regions).unwrap();
        assert_eq!(memory.allocate(1).unwrap(), 0);
        assert_eq!(memory.allocate(0x2000).unwrap(), 0x2000);
        assert!(memory.allocate(0x3000).is_err());
        assert_eq!(memory.allocate_across(0x1000).unwrap(), 0x1000);
        assert_eq!(memory.allocate_across(0x1001).unwrap(), 0x8000);
        assert!(memory.allocate_across(0x1001).is_err());
        assert_eq!(memory.allocate_across(0x1000).unwrap(), 0x4000);
        let mut memory = SharedMemory::new(&regions).unwrap();
        assert_eq!(memory.allocate_across(0x4001).unwrap(), 0);
        assert_eq!(memory.allocate(0x2000).unwrap(), 0x8000);
    }

    #[test]
    fn the_file_holds_the_regions_one_after_the_other() {
        use std::os::unix::fs::FileExt as _;
        let memory = SharedMemory::new(&[region(0x4000, 0x1000), region(0, 0x2000)]).unwrap();
        memory.guest().write(0x4001, b"second").unwrap();
        let mut bytes = [0; 6];
        memory.file().read_exact_at(&mut bytes, 0x2001).unwrap();
        assert_eq!(&bytes, b"second");
        let offsets: Vec<u64> = memory.regions().iter().map(|info| info.mmap_offset).collect();
        assert_eq!(offsets, [0, 0x2000]);
        let user = memory.user_address(0x4001).unwrap();
        assert_eq!(user, memory.regions()[1].userspace_addr + 1);
        assert_eq!(memory.user_address(0x3000), None);
    }
}
