//! Spare room: host bytes at the end of a scatter list.
#![allow(unsafe_code, reason = "bytes that are written through a shared borrow")]

use std::cell::UnsafeCell;

use crate::slice::GuestSlice;

/// Host bytes that stand in a scatter list after guest memory.
///
/// Like guest memory they are accessed only by copies, so a shared borrow is enough to write them.
pub struct Spare {
    bytes: Box<[UnsafeCell<u8>]>,
}

// SAFETY: the value owns the bytes; nothing else refers to them.
unsafe impl Send for Spare {}

impl std::fmt::Debug for Spare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Spare({} bytes)", self.bytes.len())
    }
}

impl Spare {
    /// Room for `len` bytes. Pages that are never written take no memory.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let bytes = vec![0_u8; len].into_boxed_slice();
        // SAFETY: `UnsafeCell<u8>` has the layout of `u8`, so this is the same allocation.
        let bytes = unsafe { Box::from_raw(Box::into_raw(bytes) as *mut [UnsafeCell<u8>]) };
        Self { bytes }
    }

    /// All the bytes.
    #[inline]
    #[must_use]
    pub fn slice(&self) -> GuestSlice<'_> {
        // SAFETY: the allocation lives as long as the borrow, and `UnsafeCell` allows writing through it.
        // `Spare` is not Sync: no other thread reaches the bytes meanwhile.
        unsafe { GuestSlice::new(self.bytes.as_ptr().cast_mut().cast(), self.bytes.len()) }
    }
}
