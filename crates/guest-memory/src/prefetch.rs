//! Asking the CPU for cache lines before they are needed.
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

/// The line at `at` will be written: this CPU asks to have it alone.
#[inline]
pub fn to_write(at: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // Written out, because the compiler makes an ordinary prefetch of its hint for writing, as long as it
    // builds for every x86-64 CPU. Those without the instruction take it for one that does nothing
    // (Intel's and AMD's manuals, PREFETCHW).
    //
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}
