//! A descriptor that libbpf-rs tells by its number only.
#![allow(unsafe_code, reason = "a number becomes a descriptor that is borrowed")]

use std::os::fd::BorrowedFd;

use libbpf_rs::RingBuffer;

/// What becomes readable when there is something in the buffer.
pub fn readable<'b>(buffer: &'b RingBuffer<'_>) -> BorrowedFd<'b> {
    // SAFETY: the buffer's own epoll instance, which is open until the buffer is dropped; it is borrowed that long.
    unsafe { BorrowedFd::borrow_raw(buffer.epoll_fd()) }
}
