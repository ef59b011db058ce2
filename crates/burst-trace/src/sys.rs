//! The system calls of the recorder that have no safe form elsewhere.
#![allow(unsafe_code, reason = "fallocate is not in std")]

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
