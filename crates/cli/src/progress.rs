//! A line on the terminal that shows how far a long job is.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// A progress line. It is shown only if standard error is a terminal.
pub struct Progress {
    is_shown: bool,
    is_open: bool,
}

impl Progress {
    pub fn new() -> Self {
        Self { is_shown: io::stderr().is_terminal(), is_open: false }
    }

    /// Shows `line` in place of the last one.
    pub fn show(&mut self, line: impl FnOnce() -> String) {
        if self.is_shown {
            self.is_open = true;
            // Go to the start of the line and clear it.
            let _ = write!(io::stderr(), "\r\x1b[2K{}", line());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_open {
            let _ = write!(io::stderr(), "\r\x1b[2K");
        }
    }
}

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
