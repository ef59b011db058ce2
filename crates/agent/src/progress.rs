//! A line on the terminal that shows how far a long job is.

use std::io::{self, IsTerminal, Write};

/// To the start of the line, and clear it.
const CLEAR: &str = "\r\x1b[2K";

/// A progress line. It is shown only if standard error is a terminal.
#[derive(Debug)]
pub struct Progress {
    is_shown: bool,
    is_open: bool,
}

impl Progress {
    /// A line that is not shown yet.
    #[must_use]
    pub fn new() -> Self {
        Self { is_shown: io::stderr().is_terminal(), is_open: false }
    }

    /// Shows `line` in place of the last one.
    pub fn show(&mut self, line: impl FnOnce() -> String) {
        if self.is_shown {
            self.is_open = true;
            let _ = write!(io::stderr(), "{CLEAR}{}", line());
        }
    }

    /// Writes a sentence that stays, also if standard error is no terminal.
    pub fn say(&mut self, sentence: &str) {
        self.clear();
        let _ = writeln!(io::stderr(), "ringscope: {sentence}");
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.is_open) {
            let _ = write!(io::stderr(), "{CLEAR}");
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
