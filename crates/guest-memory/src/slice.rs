//! A checked run of guest bytes.
#![allow(unsafe_code, reason = "copies to and from guest memory")]

use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::prefetch;
use crate::sum::Sum;
use crate::summed_copy::{self, copy_summing};

/// A contiguous run of guest bytes, mapped in this process for at least `'m`.
///
/// Its layout is that of `iovec`: a list of slices goes to `readv` and `writev` without conversion.
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

    /// Its address in this process. For comparison only; not to be dereferenced.
    #[inline]
    pub(crate) fn address(&self) -> usize {
        self.base() as usize
    }

    /// Whether its length is 0.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.iovec.iov_len == 0
    }

    /// Copies bytes out of guest memory, from `offset` on, into `to`: as many as both have. Returns their number.
    #[inline]
    pub fn read(&self, offset: usize, to: &mut [u8]) -> usize {
        let count = self.len().saturating_sub(offset).min(to.len());
        if count > 0 {
            // SAFETY: `offset + count <= len`, all of it mapped (constructor); `to` is ours and cannot
            // overlap guest memory. The guest may write meanwhile: then `to` holds a mix of old and
            // new bytes, which is data from the guest either way and is checked after this copy.
            unsafe { copy(self.base().add(offset), to.as_mut_ptr(), count) };
            // The copy is checked and used: the compiler must not read guest memory again in its place. This emits no
            // instruction.
            compiler_fence(Ordering::SeqCst);
        }
        count
    }

    /// Copies the first `N` bytes out of guest memory; `None` if there are fewer. A fixed size needs no loop.
    #[inline]
    #[must_use]
    pub fn read_front<const N: usize>(&self) -> Option<[u8; N]> {
        if self.len() < N {
            return None;
        }
        let mut bytes = [0; N];
        // SAFETY: the first `N` bytes are in bounds and mapped (constructor); the rest as in `read`.
        unsafe { ptr::copy_nonoverlapping(self.base(), bytes.as_mut_ptr(), N) };
        compiler_fence(Ordering::SeqCst);
        Some(bytes)
    }

    /// Copies `from` into guest memory from `offset` on, as much as fits. Returns the number of bytes.
    #[inline]
    pub fn write(&self, offset: usize, from: &[u8]) -> usize {
        let count = self.len().saturating_sub(offset).min(from.len());
        if count > 0 {
            // SAFETY: as in `read`, the other way.
            unsafe { copy(from.as_ptr(), self.base().add(offset), count) };
        }
        count
    }

    /// Writes `bytes` at the front, unless they do not fit or are there already: a cache line that is only read stays in
    /// the guest's cache, too. Returns whether they fit.
    #[inline]
    pub fn write_differing<const N: usize>(&self, bytes: &[u8; N]) -> bool {
        if self.len() < N {
            return false;
        }
        let mut there = [0; N];
        // SAFETY: the first `N` bytes are in bounds and mapped (constructor). If the guest
        // writes in between, it may find its own bytes there, and harms only itself.
        unsafe {
            ptr::copy_nonoverlapping(self.base(), there.as_mut_ptr(), N);
            if there != *bytes {
                ptr::copy_nonoverlapping(bytes.as_ptr(), self.base(), N);
            }
        }
        true
    }

    /// Copies `from`, from its `from_offset` on, to `offset` of this slice, as much as fits. Returns the number of bytes.
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

    /// As [`copy_from`](Self::copy_from), and appends the bytes to `sum`. Each byte is read once, so the sum is that of
    /// the stored bytes, even if the guest writes meanwhile.
    #[inline]
    pub fn copy_from_summing(
        &self,
        offset: usize,
        from: &GuestSlice<'_>,
        from_offset: usize,
        sum: &mut Sum,
    ) -> usize {
        let room = self.len().saturating_sub(offset);
        let count = from.len().saturating_sub(from_offset).min(room);
        if count > 0 {
            // SAFETY: as in `copy_from`.
            let total = unsafe {
                copy_summing(from.base().add(from_offset), self.base().add(offset), count)
            };
            sum.append(total, count % 2 == 1);
        }
        count
    }

    /// Appends all the bytes to `sum`. If the guest writes meanwhile, the sum is of no use to anybody else.
    #[inline]
    pub fn add_to(&self, sum: &mut Sum) {
        // SAFETY: all of it is mapped (constructor).
        let total = unsafe { summed_copy::sum(self.base(), self.len()) };
        sum.append(total, self.len() % 2 == 1);
    }

    /// The bytes from `offset` on, at most `len`; fewer, or none, where the slice ends.
    #[inline]
    #[must_use]
    pub fn part(&self, offset: usize, len: usize) -> Self {
        let offset = offset.min(self.len());
        // SAFETY: `offset + len` stays within this slice, which is mapped for as long as `'m` (constructor).
        unsafe { Self::new(self.base().add(offset), len.min(self.len() - offset)) }
    }

    /// Prefetches the cache lines of the first bytes after a header of `header_len` bytes, for reading.
    #[inline]
    pub fn prefetch_to_read(&self, header_len: usize) {
        let first = self.base().wrapping_add(header_len);
        prefetch::to_read(first);
        prefetch::to_read(first.wrapping_add(prefetch::LINE - 1));
    }

    /// The same for writing. The header's line is prefetched for reading only: a header that is there already is not
    /// written (see [`write_differing`](Self::write_differing)), and the line stays in the guest's cache.
    #[inline]
    pub fn prefetch_to_write(&self, header_len: usize) {
        let first = self.base().wrapping_add(header_len);
        prefetch::to_read(self.base());
        prefetch::to_write(first);
        prefetch::to_write(first.wrapping_add(prefetch::LINE - 1));
    }

    /// The slices in the kernel's representation.
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

/// Copies `count` bytes. Most frames at a high rate are short: up to two cache lines are copied without a call, as pieces
/// from the front and from the back that meet or overlap in the middle.
///
/// # Safety
/// Both ranges must be mapped. If they overlap, the result is a mix of their bytes.
#[inline]
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, count: usize) {
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
