//! A timer that ends a system call that blocks.
//!
//! A write to an eventfd blocks when its counter is full and `O_NONBLOCK` is off, and the front end can cause both at
//! any moment. A worker that serves several guests must not wait for that. A signal ends such a write with
//! `EINTR`, so a timer sends the thread one every [`PERIOD`] while it writes signals. The handler does nothing.
//!
//! A timer for each thread, not a watchdog thread: it needs no wake-up when the worker wakes up, it fires again if the
//! first signal arrives just before the write, and it is off when the worker sleeps. It costs a busy
//! worker 100 interruptions a second, and a worker that sleeps two system calls for each sleep. A worker with a single guest
//! has no timer: the control plane interrupts it when it does not answer ([`crate::mailbox`]).

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::sys::{self, SignalTimer};

/// Longest time that a system call blocks.
pub const PERIOD: Duration = Duration::from_millis(10);

/// The timer of one thread.
#[derive(Debug)]
pub struct Alarm {
    timer: SignalTimer,
    is_armed: AtomicBool,
}

impl Alarm {
    /// For the calling thread only. Off at first.
    ///
    /// # Errors
    /// What the system answers.
    pub fn new() -> io::Result<Self> {
        sys::accept_interruptions()?;
        Ok(Self { timer: SignalTimer::new()?, is_armed: AtomicBool::new(false) })
    }

    /// Ends every system call that blocks, from now on.
    #[inline]
    pub fn arm(&self) {
        if !self.is_armed.load(Ordering::Relaxed) {
            self.set(true);
        }
    }

    /// Interrupts nothing from now on.
    #[inline]
    pub fn disarm(&self) {
        if self.is_armed.load(Ordering::Relaxed) {
            self.set(false);
        }
    }

    #[cold]
    fn set(&self, armed: bool) {
        self.timer.set(if armed { PERIOD } else { Duration::ZERO });
        self.is_armed.store(armed, Ordering::Relaxed);
    }
}
