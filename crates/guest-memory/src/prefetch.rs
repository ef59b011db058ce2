//! Prefetching cache lines.
#![allow(unsafe_code, reason = "prefetch instructions")]

/// Bytes of a cache line.
pub const LINE: usize = 64;

/// The line at `at` will be read.
#[inline]
pub fn to_read(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect but on time, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The line at `at` will be written: this CPU requests it exclusively.
#[inline]
pub fn to_write(at: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // In assembler, because the compiler turns its own hint into a prefetch for reading when it builds for every x86-64
    // CPU. CPUs without the instruction execute it as a no-op (Intel's and AMD's manuals, PREFETCHW).
    //
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}
