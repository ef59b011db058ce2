//! Progress of a job with a known number of steps.

use std::time::{Duration, Instant};

use agent::Progress;

/// Jobs shorter than this show no progress.
const SILENCE: Duration = Duration::from_secs(2);
/// Number of steps between two reads of the clock.
const STEPS_PER_CHECK: usize = 1 << 16;

/// Progress of a job with a known number of steps, in percent.
pub struct Countdown {
    line: Progress,
    steps: usize,
    of: usize,
    started: Instant,
}

impl Countdown {
    /// A job of `of` steps.
    pub fn new(of: usize) -> Self {
        Self { line: Progress::new(), steps: 0, of: of.max(1), started: Instant::now() }
    }

    /// Counts a step.
    #[inline]
    pub fn step(&mut self) {
        self.steps += 1;
        if self.steps.is_multiple_of(STEPS_PER_CHECK) && self.started.elapsed() > SILENCE {
            let percent = self.steps * 100 / self.of;
            self.line.show(|| format!("reading: {percent} %"));
        }
    }
}
