//! A whole file, mapped and registered.
#![allow(unsafe_code, reason = "a mapping is registered by address")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::atomic::AtomicU64;

use memmap2::{MmapOptions, MmapRaw};

use crate::Guard;

/// A whole file, mapped shared. It may be shortened while it is mapped.
#[derive(Debug)]
pub struct FileMapping {
    // Field order is drop order: the registration ends before the mapping does.
    guard: Guard,
    map: MmapRaw,
}

impl FileMapping {
    /// Maps all of `file` for reading.
    ///
    /// # Errors
    /// The error of `mmap(2)`; `InvalidInput` for an empty file; `OutOfMemory` when too many files are mapped.
    pub fn read_only(file: &File) -> io::Result<Self> {
        Self::register(MmapOptions::new().map_raw_read_only(file)?, libc::PROT_READ)
    }

    /// Maps all of `file` for reading and writing.
    ///
    /// # Errors
    /// As [`read_only`](Self::read_only).
    pub fn writable(file: &File) -> io::Result<Self> {
        Self::register(MmapOptions::new().map_raw(file)?, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// Maps the `len` bytes of `file` from byte `offset` on, for reading and writing. `file` is not asked for its length.
    ///
    /// # Errors
    /// As [`read_only`](Self::read_only); `InvalidInput` also if `offset` is not a multiple of 4096.
    pub fn part(file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        // Words in it must be aligned.
        if len == 0 || !offset.is_multiple_of(4096) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let map = MmapOptions::new().offset(offset).len(len).map_raw(file.as_raw_fd())?;
        Self::register(map, libc::PROT_READ | libc::PROT_WRITE)
    }

    fn register(map: MmapRaw, protection: i32) -> io::Result<Self> {
        // SAFETY: `map` lives as long as the guard (field order), and hands out raw pointers only.
        let guard = unsafe { Guard::new(map.as_ptr(), map.len(), protection)? };
        Ok(Self { guard, map })
    }

    /// Pointer to the first byte. A read-only mapping must not be written to.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    /// Length in bytes: the file's length when it was mapped.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether the length is 0.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.len() == 0
    }

    /// Whether an access found a page missing: the file became shorter, or its file system is full.
    #[inline]
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.guard.is_torn()
    }
}

/// A whole file, mapped for reading and writing, as words that another process or a guest reads and writes at the same time.
#[derive(Debug)]
pub struct SharedWords(FileMapping);

impl SharedWords {
    /// Maps all of `file`.
    ///
    /// # Errors
    /// As [`FileMapping::writable`].
    pub fn map(file: &File) -> io::Result<Self> {
        FileMapping::writable(file).map(Self)
    }

    /// Maps a part of `file`.
    ///
    /// # Errors
    /// As [`FileMapping::part`].
    pub fn map_part(file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        FileMapping::part(file, offset, len).map(Self)
    }

    /// The words of the file; bytes at its end that are no whole word are left out.
    #[inline]
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        let len = self.0.len() / size_of::<AtomicU64>();
        // SAFETY: the mapping is readable, writable, aligned to a page, and at least this long, and it lives as long as
        // `self`. Any bytes are valid atomics, also while another process changes them.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast::<AtomicU64>(), len) }
    }

    /// Whether an access found a page missing: the file became shorter.
    #[inline]
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.0.is_torn()
    }
}
