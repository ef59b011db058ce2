//! A descriptor that libbpf-rs tells by its number only, and one that it has no call for.
#![allow(unsafe_code, reason = "numbers become descriptors")]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd};

use libbpf_rs::RingBuffer;

/// What becomes readable when there is something in the buffer.
pub fn readable<'b>(buffer: &'b RingBuffer<'_>) -> BorrowedFd<'b> {
    // SAFETY: the buffer's own epoll instance, which is open until the buffer is dropped; it is borrowed that long.
    unsafe { BorrowedFd::borrow_raw(buffer.epoll_fd()) }
}

/// Has the kernel count how often every program runs and how long, until what is returned is dropped
/// (`BPF_ENABLE_STATS`).
pub fn count_runs() -> io::Result<OwnedFd> {
    // SAFETY: a call without pointers.
    let fd = unsafe { libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME) };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
