//! Descriptors by number.
#![allow(unsafe_code, reason = "looking at descriptors that the framework owns")]

use std::os::fd::{BorrowedFd, RawFd};

/// The descriptor with this number, for questions only.
///
/// Its owner may close it meanwhile: then the kernel's answer is an error, or is of another descriptor of
/// ours, and the caller checks what it was told.
pub fn borrow<'a>(number: RawFd) -> BorrowedFd<'a> {
    // SAFETY: not -1, because numbers come from /proc/self/fd; only queries are made with it, and none of
    // them relies on the descriptor being a particular one.
    unsafe { BorrowedFd::borrow_raw(number) }
}
