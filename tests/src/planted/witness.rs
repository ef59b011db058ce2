//! A witness of what disturbs a recording besides the planted fault, independent of everything that is tested.
//!
//! On each CPU a thread in real time sleeps for half a millisecond, again and again. No program can delay it. When it wakes
//! up late, its CPU did not run: the hypervisor had taken it away. Several short times soon after each other disturb as much as
//! a long one.

use std::collections::VecDeque;
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
/// A turn that is later than this counts: the kernel's own work on that CPU, and the clock's, take less.
const COUNTS: Duration = Duration::from_micros(300);
/// More lateness than this within [`SOON`] disturbs. It is less than half of what counts as slow.
const LATE: Duration = Duration::from_millis(3);
/// Longest time in which short times add up.
const SOON: Duration = Duration::from_millis(16);
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
    let (mut last, mut lateness) = (Instant::now(), Lateness::default());
    while !seen.is_over.load(Ordering::Relaxed) {
        sleep(PERIOD);
        let now = Instant::now();
        // The CPU may be taken away while this thread sleeps, and while it runs.
        if let Some(gap) = lateness.add(last..now) {
            seen.gaps.lock().unwrap_or_else(PoisonError::into_inner).push(gap);
        }
        last = now;
    }
}

/// The latest turns that were late, and by how much.
#[derive(Debug, Default)]
struct Lateness(VecDeque<(Range<Instant>, Duration)>);

impl Lateness {
    /// Adds a turn. Returns the time in which the CPU was away for too long, if that is so.
    fn add(&mut self, turn: Range<Instant>) -> Option<Range<Instant>> {
        let late = (turn.end - turn.start).saturating_sub(PERIOD);
        if late <= COUNTS {
            return None;
        }
        while self.0.front().is_some_and(|(first, _)| turn.end - first.end > SOON) {
            self.0.pop_front();
        }
        self.0.push_back((turn.clone(), late));
        let sum: Duration = self.0.iter().map(|(_, late)| *late).sum();
        let first = self.0.front().map_or(turn.start, |(first, _)| first.start);
        (sum > LATE).then_some(first..turn.end)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_times_add_up_only_if_they_come_soon_after_each_other() {
        let begun = Instant::now();
        let turn = |at_us: u64, late_us: u64| {
            let start = begun + Duration::from_micros(at_us);
            start..start + PERIOD + Duration::from_micros(late_us)
        };
        let mut lateness = Lateness::default();
        assert_eq!(lateness.add(turn(0, 3_100)), Some(turn(0, 3_100)), "a long one");
        let mut lateness = Lateness::default();
        assert_eq!(lateness.add(turn(0, 1_600)), None);
        assert_eq!(lateness.add(turn(5_000, 200)), None, "too short to count");
        let both = turn(0, 1_600).start..turn(9_000, 1_600).end;
        assert_eq!(lateness.add(turn(9_000, 1_600)), Some(both));
        assert_eq!(lateness.add(turn(40_000, 1_600)), None, "too late to add up");
    }
}
