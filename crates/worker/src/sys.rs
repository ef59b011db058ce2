//! The system calls of the worker.
#![allow(unsafe_code, reason = "scheduling calls and ownership of the epoll descriptor")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::policy::Scheduling;

/// A new epoll instance, closed when dropped.
pub fn new_epoll() -> io::Result<OwnedFd> {
    let fd = epoll::create(true)?;
    // SAFETY: the descriptor was just made and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Applies `scheduling` to the calling thread.
pub fn schedule(scheduling: Scheduling) -> io::Result<()> {
    if let Some(cpu) = scheduling.cpu {
        // SAFETY: an all-zero cpu_set_t is a valid, empty set; CPU_SET checks its index by wrapping into
        // the set's words, and `assemble` only passes CPUs below CPU_SETSIZE.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            check(libc::sched_setaffinity(0, size_of_val(&set), &raw const set))?;
        }
    }
    if let Some(priority) = scheduling.fifo {
        let parameters = libc::sched_param { sched_priority: priority.into() };
        // SAFETY: plain numbers in a structure that outlives the call.
        check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) })?;
    }
    Ok(())
}

/// Makes reads and writes of an eventfd return at once, whatever the front end made it.
pub fn set_nonblocking(file: &File) -> io::Result<()> {
    let fd = file.as_raw_fd();
    // SAFETY: plain numbers; the kernel checks the descriptor.
    unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        check(flags)?;
        check(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK))
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
