//! Host pages shared with the kernel, such as the UMEM of an AF_XDP socket.
#![allow(unsafe_code, reason = "slices of a mapping")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use memmap2::{Advice, MmapOptions, MmapRaw};
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _, GuestRegionMmap};

use crate::{GuestMemory, GuestSlice};

/// Page-aligned host memory that others read and write concurrently. Like guest memory it is accessed only by copies.
/// It is left out of core files.
#[derive(Debug)]
pub struct HostMemory {
    map: MmapRaw,
    /// The guest's regions, mapped after the host pages.
    guest: Box<[Alias]>,
}

/// A region of a guest, mapped a second time.
#[derive(Clone, Copy, Debug)]
struct Alias {
    /// Where the guest's own mapping of it begins in this process.
    address: usize,
    /// Length in bytes.
    len: usize,
    /// Where it begins in the [`HostMemory`].
    offset: usize,
}

impl HostMemory {
    /// Maps `len` bytes of zeroes, in huge pages where the system gives some.
    ///
    /// # Errors
    /// What the system answers (`mmap(2)`).
    pub fn new(len: usize) -> io::Result<Self> {
        Self::of_map(MmapRaw::from(MmapOptions::new().len(len).map_anon()?))
    }

    /// Maps the first `len` bytes of `file`, which stays at least that long, in huge pages where the system gives some.
    ///
    /// # Errors
    /// What the system answers (`mmap(2)`).
    pub fn of_file(file: &File, len: usize) -> io::Result<Self> {
        Self::of_map(MmapOptions::new().len(len).map_raw(file)?)
    }

    fn of_map(map: MmapRaw) -> io::Result<Self> {
        // Works without huge pages, too.
        let _ = map.advise(Advice::HugePage);
        map.advise(Advice::DontDump)?;
        Ok(Self { map, guest: Box::default() })
    }

    /// Maps `len` bytes of zeroes, a multiple of the page size, and after them all memory of a guest in one piece: an
    /// offset then names any byte of a guest's buffers.
    ///
    /// # Errors
    /// `Unsupported` when a region has no file; else what the system answers (`mmap(2)`), `EINVAL` when a region
    /// does not begin or end at a page of its file.
    pub fn before_guest(len: usize, guest: &GuestMemory) -> io::Result<Self> {
        let all = usize::try_from(guest.len()).map_err(io::Error::other)?;
        let map = MmapRaw::from(MmapOptions::new().len(len + all).map_anon()?);
        let mut offset = len;
        let mut aliases = Vec::new();
        for region in guest.map().iter() {
            let alias = Alias {
                address: region.as_ptr() as usize,
                len: usize::try_from(region.len()).map_err(io::Error::other)?,
                offset,
            };
            map_region(&map, region, alias)?;
            aliases.push(alias);
            offset += alias.len;
        }
        map.advise(Advice::DontDump)?;
        Ok(Self { map, guest: aliases.into() })
    }

    /// The offset in this memory of the bytes of `slice`; `None` if they are not memory of the mapped guest.
    #[inline]
    #[must_use]
    pub fn offset_of(&self, slice: &GuestSlice<'_>) -> Option<u64> {
        let address = slice.address();
        self.guest.iter().find_map(|alias| {
            let at = address.wrapping_sub(alias.address);
            let fits = at < alias.len && slice.len() <= alias.len - at;
            fits.then(|| (alias.offset + at) as u64)
        })
    }

    /// Where it begins in this process.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.map.as_ptr() as u64
    }

    /// Length in bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there are no bytes: never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.len() == 0
    }

    /// The `len` bytes at `offset`, if it has them.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "checked against the mapping's length")]
    pub fn slice(&self, offset: u64, len: u32) -> Option<GuestSlice<'_>> {
        let end = offset.checked_add(u64::from(len))?;
        if end > self.map.len() as u64 {
            return None;
        }
        // SAFETY: in bounds of a mapping, readable and writable, that lives as long as the borrow.
        Some(unsafe { GuestSlice::new(self.map.as_mut_ptr().add(offset as usize), len as usize) })
    }
}

/// Puts a guest's region in its place of `map`, instead of the zeroes that are there.
fn map_region(map: &MmapRaw, region: &GuestRegionMmap<()>, at: Alias) -> io::Result<()> {
    let file = region.file_offset().ok_or(io::ErrorKind::Unsupported)?;
    let start = libc::off_t::try_from(file.start()).map_err(io::Error::other)?;
    // SAFETY: the range lies in `map` (its length is that of all regions and what comes before them), nothing refers to
    // it yet, and `map` unmaps it.
    let mapped = unsafe {
        libc::mmap(
            map.as_mut_ptr().add(at.offset).cast(),
            at.len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED,
            file.file().as_raw_fd(),
            start,
        )
    };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Mapping;
    use std::sync::Arc;
    use vm_memory::{FileOffset, GuestAddress};

    fn guest(file: &std::fs::File, ranges: &[(u64, usize, u64)]) -> GuestMemory {
        let ranges = ranges.iter().map(|&(address, len, start)| {
            let file = FileOffset::new(file.try_clone().unwrap(), start);
            (GuestAddress(address), len, Some(file))
        });
        GuestMemory::new(Arc::new(Mapping::from_ranges_with_files(ranges).unwrap()))
    }

    #[test]
    #[cfg_attr(miri, ignore = "files cannot be mapped there")]
    fn a_guest_is_mapped_in_one_piece_behind_our_own_pages() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x4000).unwrap();
        let guest = guest(&file, &[(0x1000, 0x1000, 0x2000), (0x8000, 0x2000, 0)]);
        let host = HostMemory::before_guest(0x3000, &guest).unwrap();
        assert_eq!(host.len(), 0x6000);
        for (address, offset) in [(0x1010, 0x3010), (0x8000, 0x4000), (0x9ff0, 0x5ff0)] {
            guest.write(address, &address.to_le_bytes()).unwrap();
            let slice = guest.contiguous(address, 8).unwrap();
            assert_eq!(host.offset_of(&slice), Some(offset));
            let mut bytes = [0; 8];
            host.slice(offset, 8).unwrap().read(0, &mut bytes);
            assert_eq!(u64::from_le_bytes(bytes), address);
        }
        assert_eq!(host.offset_of(&host.slice(0, 8).unwrap()), None);
    }

    #[test]
    fn memory_without_a_file_cannot_be_mapped_again() {
        let ranges = [(GuestAddress(0), 0x1000)];
        let guest = GuestMemory::new(Arc::new(Mapping::from_ranges(&ranges).unwrap()));
        let error = HostMemory::before_guest(0x1000, &guest).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }
}
