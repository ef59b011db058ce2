//! A program in real time that takes a CPU away from all others.

use std::hint::spin_loop;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::undo::Undo;
use crate::beside::{run_on, set_policy};
use crate::qemu::Failure;

/// Its name, by which it is to be recognised.
pub const NAME: &str = "planted-hog";
/// Its priority in `SCHED_FIFO`.
pub const PRIORITY: u32 = 50;

/// A thread that waits for its next CPU.
#[derive(Debug)]
pub struct Hog {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

/// A CPU to take, for how long, and whom to tell.
type Order = (usize, Duration, Sender<()>);

impl Hog {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn start() -> Result<Self, Failure> {
        let (orders, next) = channel::<Order>();
        let thread = Builder::new().name(NAME.to_owned()).spawn(move || {
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
        Ok(Self { orders: Some(orders), thread: Some(thread) })
    }

    /// Takes a CPU for this long.
    ///
    /// # Errors
    /// If the thread has ended.
    pub fn take(&self, cpu: usize, lasts: Duration) -> Result<Undo, Failure> {
        let (done, end) = channel();
        let orders = self.orders.as_ref().ok_or("the hog has ended")?;
        orders.send((cpu, lasts, done)).map_err(|_| "the hog has ended")?;
        Ok(Undo::new(move || Ok(end.recv().map_err(|_| "the hog has ended")?)))
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        drop(self.orders.take());
        // A panic there was reported.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
