//! The region table: where guest-physical addresses are mapped in this process.
#![allow(unsafe_code, reason = "pointers into mappings that `map` keeps alive")]

use std::io;
use std::sync::Arc;

use file_mapping::Guard;
use vm_memory::{
    Address, GuestMemoryBackend as _, GuestMemoryMmap, GuestMemoryRegion as _, GuestRegionMmap,
};

use crate::slice::GuestSlice;

/// The mapping type of the vhost-user framework, without dirty tracking of its own.
pub type Mapping = GuestMemoryMmap<()>;

/// An address range is not entirely guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmapped {
    /// First byte of the range, guest-physical.
    pub address: u64,
    /// Length of the range in bytes.
    pub len: u64,
}

#[derive(Clone, Copy, Debug)]
struct Region {
    start: u64,
    len: u64,
    host: *mut u8,
}

/// The guest's memory as the front end described it last. It never changes: a new table is a new value, and the old
/// mappings live until its last [`Arc`] is dropped.
#[derive(Debug)]
pub struct GuestMemory {
    /// By address; no two overlap.
    regions: Box<[Region]>,
    /// Host address and index of each region, by host address.
    by_host: Box<[(usize, usize)]>,
    /// The parts of rings that were set up, by address.
    #[cfg(loom)]
    pub(crate) modelled:
        std::sync::Mutex<std::collections::BTreeMap<u64, Arc<crate::words::Words>>>,
    /// One for each region, if guarded; dropped before the mappings.
    guards: Box<[Arc<Guard>]>,
    /// Owns the mappings that `regions` points into.
    map: Arc<Mapping>,
}

// SAFETY: the pointers lead into mappings owned by `map`, which is Send and Sync; they are only used
// for volatile and atomic access, which any thread may make while the guest itself writes there too.
unsafe impl Send for GuestMemory {}
// SAFETY: as above; no method hands out a reference into guest memory.
unsafe impl Sync for GuestMemory {}

/// Region of the last translation, kept between bursts: most buffers of a guest lie in one region.
#[derive(Clone, Copy, Debug, Default)]
pub struct LastRegion {
    region: usize,
}

/// Translates guest-physical ranges one after another. It looks first in the region of the last one.
#[derive(Clone, Copy, Debug)]
pub struct Translator<'m> {
    memory: &'m GuestMemory,
    index: usize,
    region: Region,
}

impl<'m> Translator<'m> {
    /// The range as one run, if it lies in one region. The next look begins in that region.
    #[inline]
    #[must_use]
    pub fn find(&mut self, address: u64, len: u64) -> Option<GuestSlice<'m>> {
        let hit = self.region.whole(address, len);
        if hit.is_some() { hit } else { self.elsewhere(address, len) }
    }

    /// Translates the `len` bytes at guest-physical `address`: calls `each` with every contiguous run. There are several
    /// where the range crosses into an adjacent region. The translator keeps the last one.
    ///
    /// # Errors
    /// [`Unmapped`] when a part of the range is not guest memory, or the range wraps 64 bits; `each` may have been
    /// called for a part of it.
    #[inline]
    pub fn translate(
        &mut self,
        address: u64,
        len: u64,
        mut each: impl FnMut(GuestSlice<'m>),
    ) -> Result<(), Unmapped> {
        if let Some(slice) = self.find(address, len) {
            each(slice);
            return Ok(());
        }
        self.translate_across(address, len, &mut each)
    }

    /// The region of the last translation, for the next loop.
    #[inline]
    #[must_use]
    pub const fn last_region(&self) -> LastRegion {
        LastRegion { region: self.index }
    }

    /// The memory that it translates into.
    #[inline]
    #[must_use]
    pub const fn memory(&self) -> &'m GuestMemory {
        self.memory
    }

    #[cold]
    #[inline(never)]
    fn elsewhere(&mut self, address: u64, len: u64) -> Option<GuestSlice<'m>> {
        let (index, region) = self.memory.locate(address)?;
        let slice = region.whole(address, len)?;
        (self.index, self.region) = (index, *region);
        Some(slice)
    }

    #[cold]
    fn translate_across(
        &mut self,
        address: u64,
        len: u64,
        each: &mut dyn FnMut(GuestSlice<'m>),
    ) -> Result<(), Unmapped> {
        let unmapped = Unmapped { address, len };
        address.checked_add(len).ok_or(unmapped)?;
        let (first, _) = self.memory.locate(address).ok_or(unmapped)?;
        let (mut at, mut left) = (address, len);
        // A range that continues past a region's end continues in the next region.
        for (index, region) in self.memory.regions.iter().enumerate().skip(first) {
            let part = region.front(at, left).ok_or(unmapped)?;
            (self.index, self.region) = (index, *region);
            let took = part.len() as u64;
            each(part);
            if took == left {
                return Ok(());
            }
            at += took;
            left -= took;
        }
        Err(unmapped)
    }
}

impl GuestMemory {
    /// Takes over a mapping.
    #[must_use]
    pub fn new(map: Arc<Mapping>) -> Self {
        // The mapping has them in this order already, and does not let them overlap.
        let regions: Box<[Region]> = map
            .iter()
            .map(|region: &GuestRegionMmap<()>| Region {
                start: region.start_addr().raw_value(),
                len: region.len(),
                host: region.as_ptr(),
            })
            .collect();
        debug_assert!(regions.is_sorted_by(|a, b| a.start.saturating_add(a.len) <= b.start));
        let hosts = regions.iter().map(|region| region.host.addr());
        let mut by_host: Box<[_]> = hosts.zip(0..).collect();
        by_host.sort_unstable();
        Self {
            regions,
            by_host,
            #[cfg(loom)]
            modelled: std::sync::Mutex::default(),
            guards: Box::default(),
            map,
        }
    }

    /// Takes over a mapping of files that other processes may shorten: a missing page then reads as zeroes
    /// ([`is_torn`](Self::is_torn)). The memory is left out of core files. `before` is the guest's previous table; regions
    /// that are in both keep their guards.
    ///
    /// # Errors
    /// What `madvise(2)` answers; `OutOfMemory` when too many files are mapped.
    pub fn guarded(map: Arc<Mapping>, before: Option<&Self>) -> io::Result<Self> {
        let mut memory = Self::new(map);
        let guard = |region: &Region| {
            let left = before.and_then(|before| before.guard_of(region));
            left.map_or_else(|| region.guard().map(Arc::new), |guard| Ok(Arc::clone(guard)))
        };
        memory.guards = memory.regions.iter().map(guard).collect::<io::Result<_>>()?;
        Ok(memory)
    }

    /// Whether a page of the guest's memory was missing and read as zeroes: its file became shorter, or the file system is
    /// full. It stays so until the front end gives new memory.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.guards.iter().any(|guard| guard.is_torn())
    }

    fn guard_of(&self, wanted: &Region) -> Option<&Arc<Guard>> {
        let same = |it: &Region| it.host == wanted.host && it.len == wanted.len;
        let at = self.regions.iter().position(same)?;
        self.guards.get(at)
    }

    /// The mapping that it was made of.
    pub(crate) fn map(&self) -> &Mapping {
        &self.map
    }

    /// Total bytes of guest memory.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.regions.iter().map(|region| region.len).sum()
    }

    /// Whether there is no guest memory at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// A translator that begins with region `last`.
    #[inline]
    #[must_use]
    pub fn translator(&self, last: LastRegion) -> Translator<'_> {
        let region = self.regions.get(last.region).copied().unwrap_or(Region::NONE);
        Translator { memory: self, index: last.region, region }
    }

    /// The one contiguous run of the range.
    ///
    /// # Errors
    /// [`Unmapped`] when a part of the range is not guest memory, or it lies in more than one region.
    pub fn contiguous(&self, address: u64, len: u64) -> Result<GuestSlice<'_>, Unmapped> {
        self.locate(address)
            .and_then(|(_, region)| region.whole(address, len))
            .ok_or(Unmapped { address, len })
    }

    /// The only region that can hold `address`, and its index. A binary search: a guest with hundreds of regions whose
    /// descriptors alternate between them must not cause a linear search for each.
    fn locate(&self, address: u64) -> Option<(usize, &Region)> {
        let index =
            self.regions.partition_point(|region| region.start <= address).checked_sub(1)?;
        Some((index, &self.regions[index]))
    }

    /// The guest-physical address of the first byte of `slice`, if it is of this memory.
    pub(crate) fn guest_address(&self, slice: &GuestSlice<'_>) -> Option<u64> {
        let host = slice.address();
        let after = self.by_host.partition_point(|&(start, _)| start <= host);
        let (start, index) = self.by_host[after.checked_sub(1)?];
        let (region, offset) = (self.regions[index], (host - start) as u64);
        (offset < region.len).then(|| region.start + offset)
    }

    /// Copies guest memory from guest-physical `address` on into `bytes`, for the driver's side. The device's side
    /// translates once and keeps the slices.
    ///
    /// # Errors
    /// [`Unmapped`] when a part of the range is not guest memory.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Unmapped> {
        let mut at = 0;
        self.translator(LastRegion::default()).translate(address, bytes.len() as u64, |run| {
            at += run.read(0, &mut bytes[at..]);
        })
    }

    /// Copies `bytes` into guest memory from guest-physical `address` on; see [`read`](Self::read).
    ///
    /// # Errors
    /// [`Unmapped`] when a part of the range is not guest memory; what lies before it may be written.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Unmapped> {
        let mut at = 0;
        self.translator(LastRegion::default()).translate(address, bytes.len() as u64, |run| {
            at += run.write(0, &bytes[at..]);
        })
    }
}

impl Region {
    /// No memory at all.
    const NONE: Self = Self { start: 0, len: 0, host: std::ptr::null_mut() };

    #[expect(clippy::cast_possible_truncation, reason = "a mapping's length fits usize")]
    fn guard(&self) -> io::Result<Guard> {
        let len = self.len as usize;
        // SAFETY: the region is a mapping of the `GuestMemory` that is being made; the advice changes no byte of it.
        if unsafe { libc::madvise(self.host.cast(), len, libc::MADV_DONTDUMP) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping outlives the guard, which the `GuestMemory` drops first; a table that shares the
        // guard keeps the same region mapped itself. References into guest memory are only ever made to atomics.
        unsafe { Guard::new(self.host, len, libc::PROT_READ | libc::PROT_WRITE) }
    }

    /// The range as one slice, when it lies in this region with all its bytes.
    #[inline]
    fn whole<'m>(&self, address: u64, len: u64) -> Option<GuestSlice<'m>> {
        let offset = address.wrapping_sub(self.start);
        if offset >= self.len || len > self.len - offset {
            return None;
        }
        Some(self.slice(offset, len))
    }

    /// As much of the front of the range as lies in this region: at least one byte, unless the range is
    /// empty.
    fn front<'m>(&self, address: u64, len: u64) -> Option<GuestSlice<'m>> {
        let offset = address.wrapping_sub(self.start);
        (offset < self.len).then(|| self.slice(offset, len.min(self.len - offset)))
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "a mapping's length fits usize")]
    fn slice<'m>(&self, offset: u64, len: u64) -> GuestSlice<'m> {
        // SAFETY: both callers checked that `offset..offset + len` lies in this mapping; the mapping
        // outlives `'m`, the borrow of the `GuestMemory` that owns it.
        unsafe { GuestSlice::new(self.host.add(offset as usize), len as usize) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    /// Two adjacent regions, a hole, and one more.
    fn memory() -> GuestMemory {
        let ranges = [(0x1000, 0x1000), (0x2000, 0x1000), (0x8000, 0x1000)]
            .map(|(at, len)| (GuestAddress(at), len));
        GuestMemory::new(Arc::new(Mapping::from_ranges(&ranges).unwrap()))
    }

    fn runs(memory: &GuestMemory, address: u64, len: u64) -> Result<Vec<usize>, Unmapped> {
        let mut runs = Vec::new();
        memory
            .translator(LastRegion::default())
            .translate(address, len, |it| runs.push(it.len()))?;
        Ok(runs)
    }

    #[test]
    fn a_range_in_one_region_is_one_run_whichever_region_was_last() {
        let memory = memory();
        for region in 0..4 {
            let mut translator = memory.translator(LastRegion { region });
            let mut runs = Vec::new();
            translator.translate(0x8000, 0x1000, |slice| runs.push(slice.len())).unwrap();
            assert_eq!(runs, [0x1000]);
            assert_eq!(translator.last_region().region, 2);
        }
    }

    #[test]
    fn a_range_over_adjacent_regions_is_two_runs() {
        assert_eq!(runs(&memory(), 0x1ff0, 0x20), Ok(vec![0x10, 0x10]));
    }

    #[test]
    fn what_is_not_guest_memory_is_unmapped() {
        let memory = memory();
        for (address, len) in [
            (0, 1),
            (0xfff, 2),
            (0x2fff, 2),
            (0x8fff, 2),
            (0x7fff, 0),
            (u64::MAX, 1),
            (u64::MAX - 4, 16),
            (0x1000, u64::MAX),
        ] {
            assert_eq!(runs(&memory, address, len), Err(Unmapped { address, len }), "{address:#x}");
        }
    }

    #[test]
    fn every_region_of_many_is_found_whichever_region_was_last() {
        // Pairs of adjacent pages with a hole after each.
        let start = |n: u64| n / 2 * 0x3000 + n % 2 * 0x1000;
        let ranges: Vec<_> = (0..100).map(|n| (GuestAddress(start(n)), 0x1000)).collect();
        let memory = GuestMemory::new(Arc::new(Mapping::from_ranges(&ranges).unwrap()));
        let mut translator = memory.translator(LastRegion::default());
        for n in (0..100).chain((0..100).rev()) {
            let mut found = Vec::new();
            translator.translate(start(n), 0x1000, |it| found.push(it.address())).unwrap();
            assert_eq!(found, [memory.regions[n as usize].host as usize]);
            let over_the_end = runs(&memory, start(n) + 0xfff, 2);
            let unmapped = Unmapped { address: start(n) + 0xfff, len: 2 };
            assert_eq!(over_the_end, if n % 2 == 0 { Ok(vec![1, 1]) } else { Err(unmapped) });
            assert!(memory.contiguous(start(n) + 0xfff, 2).is_err());
        }
    }

    #[test]
    fn bytes_written_through_one_run_are_read_through_another() {
        let memory = memory();
        let mut whole = Vec::new();
        memory.translator(LastRegion::default()).translate(0x1ffe, 4, |it| whole.push(it)).unwrap();
        assert_eq!(whole[0].write(0, &[1, 2]), 2);
        assert_eq!(whole[1].write(0, &[3, 4]), 2);
        let mut bytes = [0; 2];
        memory.contiguous(0x1fff, 1).unwrap().read(0, &mut bytes[..1]);
        memory.contiguous(0x2000, 1).unwrap().read(0, &mut bytes[1..]);
        assert_eq!(bytes, [2, 3]);
        memory.write(0x1fff, &[8, 9]).unwrap();
        memory.read(0x1fff, &mut bytes).unwrap();
        assert_eq!(bytes, [8, 9]);
        assert!(memory.write(0x2fff, &[0; 2]).is_err() && memory.read(0, &mut bytes).is_err());
        assert!(memory.contiguous(0x1fff, 2).is_err());
    }

    #[test]
    #[cfg_attr(miri, ignore = "files cannot be mapped there")]
    fn a_file_that_is_shortened_tears_the_memory_and_what_is_left_of_it_in_the_next_table() {
        use vm_memory::FileOffset;
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x4000).unwrap();
        let place = |start| Some(FileOffset::new(file.try_clone().unwrap(), start));
        let regions =
            [(GuestAddress(0), 0x2000, place(0)), (GuestAddress(0x2000), 0x2000, place(0x2000))];
        let map = Mapping::from_ranges_with_files(regions).unwrap();
        let (rest, _removed) = map.remove_region(GuestAddress(0), 0x2000).unwrap();
        let memory = GuestMemory::guarded(Arc::new(map), None).unwrap();
        let other = GuestMemory::guarded(
            Arc::new(Mapping::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap()),
            None,
        );
        memory.write(0x2000, b"there").unwrap();
        file.set_len(0x2000).unwrap();
        assert!(!memory.is_torn());
        let mut bytes = [1; 5];
        memory.read(0x3000, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 5]);
        assert!(memory.is_torn() && !other.unwrap().is_torn());
        assert!(GuestMemory::guarded(Arc::new(rest), Some(&memory)).unwrap().is_torn());
    }

    #[test]
    #[cfg_attr(miri, ignore = "there are no core files there")]
    fn guarded_memory_is_left_out_of_core_files() {
        let map = Arc::new(Mapping::from_ranges(&[(GuestAddress(0), 0x3000)]).unwrap());
        let memory = GuestMemory::guarded(Arc::clone(&map), None).unwrap();
        let start = format!("{:x}-", memory.regions[0].host.addr());
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let of_region = maps.split(&start).nth(1).expect("its mapping");
        let flags = of_region.lines().find(|line| line.starts_with("VmFlags:")).unwrap();
        assert!(flags.split(' ').any(|flag| flag == "dd"), "{flags}");
    }
}
