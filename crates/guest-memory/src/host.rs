//! Pages of our own that the kernel shares, such as the UMEM of an AF_XDP socket.
#![allow(unsafe_code, reason = "slices of a mapping")]

use memmap2::{Advice, MmapOptions, MmapRaw};

use crate::GuestSlice;

/// Page-aligned host memory that somebody else reads and writes meanwhile. Like guest memory it is only
/// reached by copies.
#[derive(Debug)]
pub struct HostMemory {
    map: MmapRaw,
}

impl HostMemory {
    /// Maps `len` bytes of zeroes, in huge pages where the system gives some.
    ///
    /// # Errors
    /// What the system answers (`mmap(2)`).
    pub fn new(len: usize) -> std::io::Result<Self> {
        let map = MmapRaw::from(MmapOptions::new().len(len).map_anon()?);
        // Without them everything works, too.
        let _ = map.advise(Advice::HugePage);
        Ok(Self { map })
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
