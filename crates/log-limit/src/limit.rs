//! The limit and its clock.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::{Level, log_enabled};

/// Number of lines that pass at once after a quiet time.
pub const LINES_AT_ONCE: u32 = 10;
/// Time after which one more line passes.
const INTERVAL: Duration = Duration::from_secs(1);

/// Log lines with a common prefix and a common limit: [`LINES_AT_ONCE`], then one a second.
///
/// Threads may share it; it takes no lock.
///
/// With the log level `debug` for the target `log_limit` (`RUST_LOG=info,log_limit=debug`) nothing is left out.
#[derive(Debug)]
pub struct LogLimit {
    prefix: Box<str>,
    started: Instant,
    /// When the next line would be due if lines came evenly, in nanoseconds after `started`.
    due: AtomicU64,
    /// Number of lines left out since the last one that passed.
    left_out: AtomicU64,
}

impl LogLimit {
    /// A limit for lines that begin with `prefix`: the guest's name if the daemon has several guests, else empty.
    #[must_use]
    pub fn new(prefix: impl Into<Box<str>>) -> Self {
        Self {
            prefix: prefix.into(),
            started: Instant::now(),
            due: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
        }
    }

    /// The prefix of each line.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// `Some` if a line may be written now, with the text for its end.
    #[must_use]
    pub fn pass(&self) -> Option<LeftOut> {
        self.pass_at(nanoseconds(self.started.elapsed()))
    }

    /// Reports lines that were left out and not reported yet, if a line may be written now. Called when a source of lines
    /// ends, such as a connection.
    pub fn settle(&self) {
        if self.left_out.load(Ordering::Relaxed) > 0 {
            crate::warn!(self, "the log is limited");
        }
    }

    fn pass_at(&self, now: u64) -> Option<LeftOut> {
        let interval = nanoseconds(INTERVAL);
        let ahead_max = interval * u64::from(LINES_AT_ONCE - 1);
        let taken = self.due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| {
            let due = due.max(now);
            (due - now <= ahead_max).then(|| due + interval)
        });
        if taken.is_err() && !log_enabled!(target: "log_limit", Level::Debug) {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(LeftOut(self.left_out.swap(0, Ordering::Relaxed)))
    }
}

impl Drop for LogLimit {
    /// Reports the lines left out: no later line can.
    fn drop(&mut self) {
        let left_out = *self.left_out.get_mut();
        if left_out > 0 {
            log::warn!("{}the log was limited{}", self.prefix, LeftOut(left_out));
        }
    }
}

/// The number of lines left out, as the end of a line; empty if there were none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut(u64);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            1 => write!(f, " (1 line left out)"),
            lines => write!(f, " ({lines} lines left out)"),
        }
    }
}

/// Saturates after 584 years.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// The number of lines that pass of `count` lines at `now`.
    fn passed(limit: &LogLimit, count: u32, now: u64) -> usize {
        (0..count).filter_map(|_| limit.pass_at(now)).count()
    }

    #[test]
    fn some_lines_come_at_once_then_one_a_second() {
        let limit = LogLimit::new("");
        assert_eq!(passed(&limit, 1000, 0), LINES_AT_ONCE as usize);
        for second in 1..100 {
            assert_eq!(passed(&limit, 1000, second * SECOND - 1), 0);
            assert_eq!(passed(&limit, 1000, second * SECOND), 1);
        }
        // After a quiet time the full number passes again.
        assert_eq!(passed(&limit, 1000, 1000 * SECOND), LINES_AT_ONCE as usize);
    }

    #[test]
    fn lines_left_out_are_reported_once_by_the_next_line_that_passes() {
        let limit = LogLimit::new("");
        assert_eq!(passed(&limit, LINES_AT_ONCE + 37, 0), LINES_AT_ONCE as usize);
        assert_eq!(limit.pass_at(SECOND), Some(LeftOut(37)));
        assert_eq!(limit.pass_at(2 * SECOND), Some(LeftOut(0)));
        assert_eq!(LeftOut(37).to_string(), " (37 lines left out)");
        assert_eq!(LeftOut(1).to_string(), " (1 line left out)");
        assert_eq!(LeftOut(0).to_string(), "");
    }

    #[test]
    fn no_line_is_lost_or_reported_twice_between_threads() {
        let limit = LogLimit::new("");
        let (threads, lines) = (4, 1000);
        let count = |_| {
            let passed = (0..lines).filter_map(|_| limit.pass_at(0));
            passed.fold((0, 0), |(passed, left_out), LeftOut(more)| (passed + 1, left_out + more))
        };
        let counted = std::thread::scope(|scope| {
            let all: Vec<_> = (0..threads).map(|n| scope.spawn(move || count(n))).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let passed: u64 = counted.iter().map(|(passed, _)| passed).sum();
        let reported: u64 = counted.iter().map(|(_, left_out)| left_out).sum();
        assert_eq!(passed, LINES_AT_ONCE.into());
        let left_out = limit.left_out.load(Ordering::Relaxed);
        assert_eq!(passed + reported + left_out, threads * lines);
    }
}
