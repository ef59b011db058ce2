//! A witness of what disturbs a recording besides the planted fault, independent of everything that is tested.
//!
//! On each CPU a thread in real time sleeps for half a millisecond, again and again. No program can delay it. When it wakes
//! up late, its CPU did not run: the hypervisor had taken it away.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::{Duration, Instant};

use super::hog;
use crate::beside::{run_on, set_policy};
use crate::qemu::Failure;

/// Time from one wake-up to the next.
const PERIOD: Duration = Duration::from_micros(500);
/// A turn of it that takes longer than this disturbs. Two together are still less than what counts as slow.
const LATE: Duration = Duration::from_millis(3);
/// Above that of the planted program.
const PRIORITY: u32 = hog::PRIORITY + 40;

/// A thread on each CPU.
#[derive(Debug)]
pub struct Witness {
    threads: Vec<JoinHandle<()>>,
    seen: Arc<Seen>,
}

/// What the threads share.
#[derive(Debug, Default)]
struct Seen {
    is_over: AtomicBool,
    /// When a CPU did not run.
    gaps: Mutex<Vec<Range<Instant>>>,
}

impl Witness {
    /// Watches these CPUs.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(cpus: &[usize]) -> Result<Self, Failure> {
        let seen = Arc::new(Seen::default());
        let start = |&cpu: &usize| {
            let seen = Arc::clone(&seen);
            Builder::new().name(format!("witness-{cpu}")).spawn(move || watch(cpu, &seen))
        };
        let threads = cpus.iter().map(start).collect::<Result<_, _>>()?;
        Ok(Self { threads, seen })
    }

    /// Forgets what it has seen.
    pub fn forget(&self) {
        self.seen.gaps.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// When it has seen since then that a CPU did not run.
    #[must_use]
    pub fn gaps(&self) -> Vec<Range<Instant>> {
        self.seen.gaps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn watch(cpu: usize, seen: &Seen) {
    run_on(cpu);
    set_policy(&["--fifo", "--pid", &PRIORITY.to_string()]);
    let mut last = Instant::now();
    while !seen.is_over.load(Ordering::Relaxed) {
        sleep(PERIOD);
        let now = Instant::now();
        // The CPU may be taken away while this thread sleeps, and while it runs.
        if now - last > PERIOD + LATE {
            let mut gaps = seen.gaps.lock().unwrap_or_else(PoisonError::into_inner);
            gaps.push(last..now);
        }
        last = now;
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.seen.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic there was reported.
            let _ = thread.join();
        }
    }
}
