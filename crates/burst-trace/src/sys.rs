//! The system calls of the recorder that have no safe form elsewhere.
#![allow(unsafe_code, reason = "fallocate and adjtimex are not in std")]

use std::io;
use std::os::fd::RawFd;

/// Reserves `bytes` of disk space for the file `fd` and gives it that length.
pub fn fallocate(fd: RawFd, bytes: u64) -> io::Result<()> {
    let len = libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: plain numbers; the kernel checks the descriptor.
    match unsafe { libc::posix_fallocate(fd, 0, len) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The most by which `CLOCK_REALTIME` is wrong, microseconds, as the kernel accounts for it; `None` if nothing synchronises it.
pub fn realtime_error_us() -> Option<u64> {
    // SAFETY: all-zero is a valid timex: plain numbers. With no mode set, the call only reads.
    let mut time: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `time` is a timex that the call fills.
    let state = unsafe { libc::adjtimex(&raw mut time) };
    let is_known = state >= 0 && time.status & libc::STA_UNSYNC == 0;
    u64::try_from(time.maxerror).ok().filter(|_| is_known)
}
