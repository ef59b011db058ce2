//! One line on a terminal that says how far something is.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// The line. Nothing is shown where standard error is no terminal.
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
            // To the line's beginning, and clear it.
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

/// What lasts no longer needs no word about how far it is.
const SILENCE: Duration = Duration::from_secs(2);
/// Between two looks at the clock.
const STEPS_A_LOOK: usize = 1 << 16;

/// How far something is that takes a known number of steps, in percent.
pub struct Countdown {
    line: Progress,
    steps: usize,
    of: usize,
    started: Instant,
}

impl Countdown {
    /// Of so many steps.
    pub fn new(of: usize) -> Self {
        Self { line: Progress::new(), steps: 0, of: of.max(1), started: Instant::now() }
    }

    /// One more step.
    #[inline]
    pub fn step(&mut self) {
        self.steps += 1;
        if self.steps.is_multiple_of(STEPS_A_LOOK) && self.started.elapsed() > SILENCE {
            let percent = self.steps * 100 / self.of;
            self.line.show(|| format!("reading: {percent} %"));
        }
    }
}
