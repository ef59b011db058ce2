//! Descriptors that were handed over by number, and signals that the parent process ignores.
#![allow(
    unsafe_code,
    reason = "ownership of a descriptor by number, and sigaction has no safe form"
)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Whether `signal` is ignored: by `nohup`, or by a shell without job control for a command in the background.
pub fn is_ignored(signal: i32) -> bool {
    // SAFETY: an all-zero sigaction is valid; the call changes no action and fills `current`, which outlives it.
    unsafe {
        let mut current: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut current) == 0
            && current.sa_sigaction == libc::SIG_IGN
    }
}

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
