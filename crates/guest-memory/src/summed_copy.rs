//! Sums of guest bytes for the Internet checksum, while they are copied or alone: each byte is read once.
#![allow(unsafe_code, reason = "copies to and from guest memory")]

use std::ptr;

use crate::sum::add;

/// Copies `count` bytes and returns the sum of their 16-bit words, modulo 2^16 - 1, but 0 only if all are (see [`Sum`]).
///
/// Every piece is loaded into a register, then stored and summed from there. The compiler cannot load it again after the
/// store, because the two ranges may overlap.
///
/// # Safety
/// As for [`copy`](crate::slice::copy).
#[inline]
pub(crate) unsafe fn copy_summing(from: *const u8, to: *mut u8, count: usize) -> u64 {
    // SAFETY: by the caller's word.
    unsafe { summing::<true>(from, to, count) }
}

/// The same sum of `count` bytes, which are not copied. The guest may write meanwhile: then the sum is that of no bytes that
/// were ever there together.
///
/// # Safety
/// The range must be mapped.
#[inline]
pub(crate) unsafe fn sum(from: *const u8, count: usize) -> u64 {
    // SAFETY: by the caller's word; without `COPIES` nothing is stored.
    unsafe { summing::<false>(from, ptr::null_mut(), count) }
}

/// [`copy_summing`], or only the sum: then `to` is any pointer.
///
/// # Safety
/// As for the two functions.
#[inline]
unsafe fn summing<const COPIES: bool>(from: *const u8, to: *mut u8, count: usize) -> u64 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if count >= WIDE && std::arch::is_x86_feature_detected!("avx2") {
        let wide = count - count % WIDE;
        // SAFETY: this CPU has the instructions, and both parts are mapped by the caller's word.
        return unsafe {
            let total = summing_wide::<COPIES>(from, to, wide);
            let (from, to) = (from.add(wide), to.wrapping_add(wide));
            add(total, summing_words::<COPIES>(from, to, count - wide))
        };
    }
    // SAFETY: by the caller's word.
    unsafe { summing_words::<COPIES>(from, to, count) }
}

/// Bytes of one step of [`summing_wide`]: two registers.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const WIDE: usize = 64;

/// [`summing`] of a multiple of [`WIDE`] bytes, 32 to a register.
///
/// # Safety
/// As for [`summing`], and the CPU has AVX2.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx2")]
unsafe fn summing_wide<const COPIES: bool>(from: *const u8, to: *mut u8, count: usize) -> u64 {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi64, _mm256_loadu_si256, _mm256_setzero_si256, _mm256_slli_epi64,
        _mm256_srli_epi64, _mm256_storeu_si256, _mm256_sub_epi64,
    };
    const REGISTER: usize = size_of::<__m256i>();
    // In each 64-bit lane: the sum of the words without its carries, and the sum of their upper halves, which does not
    // overflow below 2^38 bytes. The sum of the lower halves does not overflow either, and follows from these two.
    let mut all = [_mm256_setzero_si256(); WIDE / REGISTER];
    let mut high = all;
    for at in (0..count).step_by(WIDE) {
        for n in 0..WIDE / REGISTER {
            let at = at + n * REGISTER;
            // SAFETY: 32 bytes more are within `count`, all of it mapped.
            let words = unsafe {
                let words = _mm256_loadu_si256(from.add(at).cast());
                if COPIES {
                    _mm256_storeu_si256(to.add(at).cast(), words);
                }
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

/// [`summing`] on every CPU: by words of 64 bits, then the rest.
///
/// # Safety
/// As for [`summing`].
#[inline]
unsafe fn summing_words<const COPIES: bool>(from: *const u8, to: *mut u8, count: usize) -> u64 {
    const WORD: usize = size_of::<u64>();
    // SAFETY: in every call below `at` and the number's bytes are within `count`, all of it mapped.
    let word = |at: usize| unsafe { number::<u64, COPIES>(from.add(at), to.wrapping_add(at)) };
    let words = count - count % WORD;
    // Two sums, so that neither waits for the other's carry.
    let (mut total, mut other) = (0, 0);
    for at in (WORD..words).step_by(2 * WORD) {
        total = add(total, word(at - WORD));
        other = add(other, word(at));
    }
    if !words.is_multiple_of(2 * WORD) {
        total = add(total, word(words - WORD));
    }
    let mut at = words;
    // SAFETY: as above; fewer than 8 bytes are made of 4, 2 and 1.
    unsafe {
        if count & 4 != 0 {
            total = add(total, number::<u32, COPIES>(from.add(at), to.wrapping_add(at)).into());
            at += 4;
        }
        if count & 2 != 0 {
            total = add(total, number::<u16, COPIES>(from.add(at), to.wrapping_add(at)).into());
            at += 2;
        }
        if count & 1 != 0 {
            let last = number::<u8, COPIES>(from.add(at), to.wrapping_add(at));
            total = add(total, u16::from_ne_bytes([last, 0]).into());
        }
    }
    add(total, other)
}

/// Reads one number, copies it if that is wanted, and returns it.
///
/// # Safety
/// As for [`summing`], with the number's size.
#[inline]
unsafe fn number<N: Copy, const COPIES: bool>(from: *const u8, to: *mut u8) -> N {
    // SAFETY: by the caller's word.
    unsafe {
        let number = from.cast::<N>().read_unaligned();
        if COPIES {
            to.cast::<N>().write_unaligned(number);
        }
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sum;

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
                    summing_words::<true>(from.as_ptr(), other, count),
                ]
            };
            // SAFETY: it has 300 bytes.
            assert_eq!(unsafe { super::sum(from.as_ptr(), count) }, totals[0], "{count} bytes");
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
