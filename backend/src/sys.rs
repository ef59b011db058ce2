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

/// Takes over the descriptor `fd`, which the parent process left open.
pub fn take_fd(fd: RawFd) -> io::Result<OwnedFd> {
    // Processes that this one starts must not have it.
    // SAFETY: plain numbers; the kernel checks the descriptor.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (see above) and is none of the standard three (the flags' ranges, and that of
    // `manager::listening`). `Handed::take_over` calls this once for each descriptor of the plan, all of which differ
    // (`Plan::new`), and for those of the service manager that are not among them, before this process opens anything
    // itself. So nothing else owns the descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
