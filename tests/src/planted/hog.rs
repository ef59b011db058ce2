//! A program in real time that takes a CPU away from all others.

use std::hint::spin_loop;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::standby::Standby;
use super::undo::Undo;
use crate::beside::{run_on, set_policy};
use crate::qemu::Failure;

/// Its name, by which it is to be recognised.
pub const NAME: &str = "planted-hog";
/// Its priority in `SCHED_FIFO`.
pub const PRIORITY: u32 = 50;

/// A thread that waits for its next CPU.
#[derive(Debug)]
pub struct Hog(Standby<Order>);

/// A CPU to take, for how long, and whom to tell.
type Order = (usize, Duration, Sender<()>);

impl Hog {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn start() -> Result<Self, Failure> {
        let thread = Standby::start(NAME, |next: Receiver<Order>| {
            set_policy(&["--fifo", "--pid", &PRIORITY.to_string()]);
            for (cpu, lasts, done) in next {
                run_on(cpu);
                let begun = Instant::now();
                while begun.elapsed() < lasts {
                    spin_loop();
                }
                // Nobody may wait for it any more.
                let _ = done.send(());
            }
        })?;
        Ok(Self(thread))
    }

    /// Takes a CPU for this long.
    ///
    /// # Errors
    /// If the thread has ended.
    pub fn take(&self, cpu: usize, lasts: Duration) -> Result<Undo, Failure> {
        let (done, end) = channel();
        self.0.order((cpu, lasts, done))?;
        Ok(Undo::new(move || Ok(end.recv().map_err(|_| "the hog has ended")?)))
    }
}
