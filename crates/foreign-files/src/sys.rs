//! Descriptors that a helper inherited.
#![allow(unsafe_code, reason = "close_range(2) has no safe form: it closes what others may own")]

use std::io;

/// Closes all descriptors above the standard three.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: plain numbers. `helper::run` calls this before it opens anything, in a process that owns no descriptor but
    // the standard three.
    let result = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
