//! Two descriptors: one that libbpf-rs gives as a plain number, and one that it has no call for.
#![allow(unsafe_code, reason = "numbers become descriptors")]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd};

use libbpf_rs::RingBuffer;

/// A descriptor that is readable when the buffer holds records.
pub fn readable<'b>(buffer: &'b RingBuffer<'_>) -> BorrowedFd<'b> {
    // SAFETY: this is the buffer's own epoll instance. It stays open until the buffer is dropped, and the result
    // borrows the buffer.
    unsafe { BorrowedFd::borrow_raw(buffer.epoll_fd()) }
}

/// Makes the kernel count the runs and the run time of every program until the result is dropped
/// (`BPF_ENABLE_STATS`).
pub fn count_runs() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = unsafe { libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME) };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the descriptor is new, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
