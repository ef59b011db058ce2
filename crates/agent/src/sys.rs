//! The system calls of the agent that have no safe form.
#![allow(unsafe_code, reason = "the scheduling class and locked memory have no safe form")]

use std::io;

/// Puts the calling thread, and those that it starts from now on, into the real-time class `SCHED_FIFO`
/// (`sched_setscheduler(2)`).
pub fn run_in_real_time(priority: u8) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority.into() };
    // SAFETY: the structure has plain numbers and outlives the call.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) })
}

/// Keeps all memory of this process in RAM, also what it maps later (`mlockall(2)`).
pub fn lock_memory() -> io::Result<()> {
    // SAFETY: the call takes a plain number and changes no content.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) })
}

fn check(answer: i32) -> io::Result<()> {
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
