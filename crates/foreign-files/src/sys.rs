//! Descriptors that a helper inherited, and processes that the starter does not wait for.
#![allow(
    unsafe_code,
    reason = "close_range(2) has no safe form: it closes what others may own; signal(2) has none either"
)]

use std::io;

/// Closes all descriptors above the standard three.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: plain numbers. `helper::run` calls this before it opens anything, in a process that owns no descriptor but
    // the standard three.
    let result = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// From now on the kernel removes processes that this one started when they end (`SIGCHLD` ignored, `wait(2)`).
pub fn leave_no_zombies() -> io::Result<()> {
    // SAFETY: both arguments are numbers; SIG_IGN is no function that could run.
    let before = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}
