//! Descriptors that were handed over by number.
#![allow(unsafe_code, reason = "ownership of a descriptor by number")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes over the descriptor `fd`, which whoever started us left open for us.
pub fn take_fd(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers; the kernel checks the descriptor.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open (just asked), above standard error (the flags' ranges), and called once for each
    // descriptor that the plan names, which are different ones (`Plan::new`), before anything of ours is opened under
    // that number (`main::run`).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
