//! Descriptors that were handed over by number.
#![allow(unsafe_code, reason = "ownership of a descriptor by number")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use vhost_control::SocketError;

/// Takes over the descriptor `fd`, which whoever started us left open for us.
pub fn take_fd(fd: RawFd) -> Result<OwnedFd, SocketError> {
    // SAFETY: plain numbers; the kernel checks the descriptor.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        let found = io::Error::last_os_error().to_string();
        return Err(SocketError::Descriptor { fd, found });
    }
    // SAFETY: it is open (just asked), above standard error (the flag's range), and called for the one
    // descriptor of the command line before anything of ours is opened under that number (`main::run`).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
