//! A checked run of guest bytes.
#![allow(unsafe_code, reason = "copies to and from guest memory")]

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::prefetch;

/// A contiguous run of guest bytes, mapped in this process for as long as `'m`.
///
/// It is an `iovec` in memory, so that a list of them goes to `readv` and `writev` as it is.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct GuestSlice<'m> {
    iovec: libc::iovec,
    memory: PhantomData<&'m ()>,
}

impl std::fmt::Debug for GuestSlice<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GuestSlice({} bytes)", self.len())
    }
}

impl<'m> GuestSlice<'m> {
    /// # Safety
    /// The `len` bytes at `base` must stay mapped, readable and writable, for as long as `'m`.
    pub(crate) const unsafe fn new(base: *mut u8, len: usize) -> Self {
        Self { iovec: libc::iovec { iov_base: base.cast(), iov_len: len }, memory: PhantomData }
    }

    /// Length in bytes.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.iovec.iov_len
    }

    /// Whether there are no bytes.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.iovec.iov_len == 0
    }

    /// Copies bytes from `offset` on out of guest memory into `to`, as many as there are. Returns how
    /// many.
    #[inline]
    pub fn read(&self, offset: usize, to: &mut [u8]) -> usize {
        let count = self.len().saturating_sub(offset).min(to.len());
        if count > 0 {
            // SAFETY: `offset + count <= len`, all of it mapped (constructor); `to` is ours and cannot
            // overlap guest memory. The guest may write meanwhile: then `to` holds a mix of old and
            // new bytes, which is data from the guest either way and is checked after this copy.
            unsafe { copy(self.base().add(offset), to.as_mut_ptr(), count) };
            // The copy is what gets checked: the compiler must not fetch from guest memory again when
            // it is used. No instruction comes of this.
            compiler_fence(Ordering::SeqCst);
        }
        count
    }

    /// Copies `from` into guest memory from `offset` on, as much as fits. Returns how much.
    #[inline]
    pub fn write(&self, offset: usize, from: &[u8]) -> usize {
        let count = self.len().saturating_sub(offset).min(from.len());
        if count > 0 {
            // SAFETY: as in `read`, the other way.
            unsafe { copy(from.as_ptr(), self.base().add(offset), count) };
        }
        count
    }

    /// Writes `bytes` at the front, if all of them fit, and only where they are not there already: a cache
    /// line that is only read stays where the guest has it, too. Returns whether they fit.
    #[inline]
    pub fn write_differing<const N: usize>(&self, bytes: &[u8; N]) -> bool {
        if self.len() < N {
            return false;
        }
        let mut there = [0; N];
        // SAFETY: the first `N` bytes are in bounds and mapped (constructor). Should the guest write in
        // between, it reads what it wrote itself: its own loss.
        unsafe {
            ptr::copy_nonoverlapping(self.base(), there.as_mut_ptr(), N);
            if there != *bytes {
                ptr::copy_nonoverlapping(bytes.as_ptr(), self.base(), N);
            }
        }
        true
    }

    /// Copies `from`, from its `from_offset` on, to `offset` of this slice, as much as there is and
    /// fits. Returns how much.
    #[inline]
    pub fn copy_from(&self, offset: usize, from: &GuestSlice<'_>, from_offset: usize) -> usize {
        let room = self.len().saturating_sub(offset);
        let count = from.len().saturating_sub(from_offset).min(room);
        if count > 0 {
            // SAFETY: both ranges are in bounds and mapped (constructor). They may overlap, if a guest
            // offers one buffer twice: `copy` allows that.
            unsafe { copy(from.base().add(from_offset), self.base().add(offset), count) };
        }
        count
    }

    /// Has the CPU fetch the cache lines of the first bytes behind a header of `header_len` bytes.
    #[inline]
    pub fn prefetch_to_read(&self, header_len: usize) {
        let first = self.base().wrapping_add(header_len);
        prefetch::to_read(first);
        prefetch::to_read(first.wrapping_add(prefetch::LINE - 1));
    }

    /// The same for writing there. The header's line is only fetched for reading: a header that is there
    /// already is not written (see [`write_differing`](Self::write_differing)), and the guest keeps its copy.
    #[inline]
    pub fn prefetch_to_write(&self, header_len: usize) {
        let first = self.base().wrapping_add(header_len);
        prefetch::to_read(self.base());
        prefetch::to_write(first);
        prefetch::to_write(first.wrapping_add(prefetch::LINE - 1));
    }

    /// The slices as the kernel takes them.
    #[inline]
    #[must_use]
    pub const fn as_iovecs(slices: &[Self]) -> &[libc::iovec] {
        // SAFETY: `repr(transparent)` over `iovec`.
        unsafe { std::slice::from_raw_parts(slices.as_ptr().cast(), slices.len()) }
    }

    #[inline]
    const fn base(&self) -> *mut u8 {
        self.iovec.iov_base.cast()
    }
}

/// Copies `count` bytes. Most frames of a fast guest are short: up to two cache lines go without a call, as pieces
/// from the front and pieces from the back that meet or overlap in the middle.
///
/// # Safety
/// Both ranges must be mapped. Where they overlap, what arrives is bytes of the two in some order.
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, count: usize) {
    const STEP: usize = size_of::<u128>();
    let step = |at: usize| {
        // SAFETY: `at + STEP <= count` in every call below, all of it mapped.
        unsafe {
            let bytes = from.add(at).cast::<u128>().read_unaligned();
            to.add(at).cast::<u128>().write_unaligned(bytes);
        }
    };
    match count {
        65..=128 => {
            (0..4).for_each(|n| step(n * STEP));
            (1..=4).for_each(|n| step(count - n * STEP));
        }
        32..=64 => {
            (0..2).for_each(|n| step(n * STEP));
            (1..=2).for_each(|n| step(count - n * STEP));
        }
        STEP..32 => {
            step(0);
            step(count - STEP);
        }
        // SAFETY: by the caller's word.
        _ => unsafe { ptr::copy(from, to, count) },
    }
}

/// Host bytes of our own that can stand in a scatter list beside guest memory: the spare room at its end.
///
/// Like guest memory they are only reached by copies, so a shared borrow is enough to have them written.
pub struct Spare {
    bytes: Box<[UnsafeCell<u8>]>,
}

// SAFETY: the bytes belong to whoever owns the value; nothing refers to them from elsewhere.
unsafe impl Send for Spare {}

impl std::fmt::Debug for Spare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Spare({} bytes)", self.bytes.len())
    }
}

impl Spare {
    /// Room for `len` bytes. Pages that are never written are never used.
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
