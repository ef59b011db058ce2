//! A checked run of guest bytes.
#![allow(unsafe_code, reason = "copies to and from guest memory")]

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::prefetch;
use crate::sum::{Sum, add};

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

    /// Where it begins in this process: to tell what lies where, not to be dereferenced.
    #[inline]
    pub(crate) fn address(&self) -> usize {
        self.base() as usize
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

    /// Copies the first `N` bytes out of guest memory, if there are so many: what is of a fixed size needs no loop.
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

    /// As [`copy_from`](Self::copy_from), and appends the bytes to `sum`. Each is read once: what was stored is what
    /// was summed, whatever the guest writes meanwhile.
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

    /// The bytes from `offset` on, at most `len` of them: fewer, or none, where the slice ends before.
    #[inline]
    #[must_use]
    pub fn part(&self, offset: usize, len: usize) -> Self {
        let offset = offset.min(self.len());
        // SAFETY: `offset + len` stays within this slice, which is mapped for as long as `'m` (constructor).
        unsafe { Self::new(self.base().add(offset), len.min(self.len() - offset)) }
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

/// Copies `count` bytes and returns the sum of their 16-bit words, modulo 2^16 - 1, but 0 only if all are (see [`Sum`]).
///
/// Every piece is loaded into a register, stored and summed from there. The compiler cannot fetch it from guest memory
/// again once it is stored, because for all that it knows the two may overlap.
///
/// # Safety
/// As for [`copy`].
#[inline]
unsafe fn copy_summing(from: *const u8, to: *mut u8, count: usize) -> u64 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if count >= WIDE && std::arch::is_x86_feature_detected!("avx2") {
        let wide = count - count % WIDE;
        // SAFETY: this CPU has the instructions, and both parts are mapped by the caller's word.
        return unsafe {
            let total = copy_summing_wide(from, to, wide);
            add(total, copy_summing_words(from.add(wide), to.add(wide), count - wide))
        };
    }
    // SAFETY: by the caller's word.
    unsafe { copy_summing_words(from, to, count) }
}

/// What [`copy_summing_wide`] takes at a time: two registers, bytes.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const WIDE: usize = 64;

/// [`copy_summing`] of a multiple of [`WIDE`] bytes, 32 to a register.
///
/// # Safety
/// As for [`copy`], and the CPU has AVX2.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx2")]
unsafe fn copy_summing_wide(from: *const u8, to: *mut u8, count: usize) -> u64 {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi64, _mm256_loadu_si256, _mm256_setzero_si256, _mm256_slli_epi64,
        _mm256_srli_epi64, _mm256_storeu_si256, _mm256_sub_epi64,
    };
    const REGISTER: usize = size_of::<__m256i>();
    // In each 64-bit lane the sum of the words without its carries, and that of their upper halves, which loses none
    // below 2^38 bytes. The sum of the lower halves loses none either, and is told by the two.
    let mut all = [_mm256_setzero_si256(); WIDE / REGISTER];
    let mut high = all;
    for at in (0..count).step_by(WIDE) {
        for n in 0..WIDE / REGISTER {
            let at = at + n * REGISTER;
            // SAFETY: 32 bytes more are within `count`, all of it mapped.
            let words = unsafe {
                let words = _mm256_loadu_si256(from.add(at).cast());
                _mm256_storeu_si256(to.add(at).cast(), words);
                words
            };
            all[n] = _mm256_add_epi64(all[n], words);
            high[n] = _mm256_add_epi64(high[n], _mm256_srli_epi64::<32>(words));
        }
    }
    let high = _mm256_add_epi64(high[0], high[1]);
    let all = _mm256_add_epi64(all[0], all[1]);
    let low = _mm256_sub_epi64(all, _mm256_slli_epi64::<32>(high));
    let mut lanes = [0_u64; REGISTER / 8];
    // SAFETY: 32 bytes of our own.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_add_epi64(low, high)) };
    // An upper half counts what a lower one does: 2^32 is 1 modulo 2^16 - 1.
    lanes.into_iter().fold(0, add)
}

/// [`copy_summing`] on every CPU: by words of 64 bits, then what is left.
///
/// # Safety
/// As for [`copy`].
#[inline]
unsafe fn copy_summing_words(from: *const u8, to: *mut u8, count: usize) -> u64 {
    const WORD: usize = size_of::<u64>();
    // SAFETY: in every call below `at` and the number's bytes are within `count`, all of it mapped.
    let word = |at: usize| unsafe { copy_number::<u64>(from.add(at), to.add(at)) };
    let words = count - count % WORD;
    // Two, so that one need not wait for the other's carry.
    let (mut total, mut other) = (0, 0);
    for at in (WORD..words).step_by(2 * WORD) {
        total = add(total, word(at - WORD));
        other = add(other, word(at));
    }
    if !words.is_multiple_of(2 * WORD) {
        total = add(total, word(words - WORD));
    }
    let mut at = words;
    // SAFETY: as above; 4, 2 and 1 are what fewer than 8 bytes are made of.
    unsafe {
        if count & 4 != 0 {
            total = add(total, copy_number::<u32>(from.add(at), to.add(at)).into());
            at += 4;
        }
        if count & 2 != 0 {
            total = add(total, copy_number::<u16>(from.add(at), to.add(at)).into());
            at += 2;
        }
        if count & 1 != 0 {
            let last = copy_number::<u8>(from.add(at), to.add(at));
            total = add(total, u16::from_ne_bytes([last, 0]).into());
        }
    }
    add(total, other)
}

/// Copies one number and returns it.
///
/// # Safety
/// As for [`copy`], with the number's size.
#[inline]
unsafe fn copy_number<N: Copy>(from: *const u8, to: *mut u8) -> N {
    // SAFETY: by the caller's word.
    unsafe {
        let number = from.cast::<N>().read_unaligned();
        to.cast::<N>().write_unaligned(number);
        number
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_registers_and_narrow_ones_copy_and_sum_the_same() {
        let from: Vec<u8> = (0..300_u16).map(|n| (n * 89) as u8).collect();
        for count in (0..200).chain([256, 299, 300]) {
            let mut expected = Sum::new();
            expected.add_bytes(&from[..count]);
            let mut copies = [vec![0; 300], vec![0; 300]];
            // SAFETY: both have 300 bytes.
            let totals = unsafe {
                let [one, other] = copies.each_mut().map(|copy| copy.as_mut_ptr());
                [
                    copy_summing(from.as_ptr(), one, count),
                    copy_summing_words(from.as_ptr(), other, count),
                ]
            };
            for (copy, total) in copies.iter().zip(totals) {
                let mut sum = Sum::new();
                sum.append(total, count % 2 == 1);
                assert_eq!(sum.fold(), expected.fold(), "{count} bytes");
                assert_eq!(
                    (&copy[..count], &copy[count..]),
                    (&from[..count], &vec![0; 300 - count][..])
                );
            }
        }
    }
}
