//! A timer that ends a system call that blocks.
//!
//! A write to an eventfd blocks when its counter is full and `O_NONBLOCK` is off. The front end can cause both at any
//! moment. A worker that serves several guests must not wait for that. A POSIX signal ends such a write with `EINTR`.
//! So a timer sends one to the thread every [`PERIOD`] while the thread writes to eventfds. The handler does nothing.
//!
//! Each thread has its own timer. Compared with a watchdog thread, a timer needs no wake-up when the worker wakes up,
//! fires again if its first signal arrives just before the write, and is off while the worker sleeps. A busy worker
//! pays 100 interruptions a second. A worker that sleeps pays two system calls for each sleep. A worker with a single
//! guest has no timer: the control plane interrupts it when it does not answer ([`crate::mailbox`]).

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
    /// An alarm for the calling thread only. It is off at first.
    ///
    /// # Errors
    /// When the system refuses the signal handler or the timer.
    pub fn new() -> io::Result<Self> {
        sys::accept_interruptions()?;
        Ok(Self { timer: SignalTimer::new()?, is_armed: AtomicBool::new(false) })
    }

    /// From now on, ends every system call of the thread that blocks.
    #[inline]
    pub fn arm(&self) {
        if !self.is_armed.load(Ordering::Relaxed) {
            self.set(true);
        }
    }

    /// Switches the alarm off.
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
