//! Whether a datapath is worth reading, and when to read one again that failed.

use std::time::Duration;

use crate::clock::{Clock, Deadline};

/// First retry delay after a failed read of a datapath; it doubles with each further failure in a row.
pub const RETRY: Duration = Duration::from_millis(10);
/// Most doublings of [`RETRY`]: up to 640 ms.
const RETRY_DOUBLINGS: u32 = 6;
/// Of later failures in a row, one in this many is logged: about every 10 s, so that a datapath that fails for hours does
/// not use up the log limit of its guest.
const FAILURES_A_LINE: u32 = 16;

/// The reading side of a datapath.
#[derive(Debug, Default)]
pub struct Reads {
    /// It became readable and was not found empty since, or its last read failed.
    may_have_frames: bool,
    failed: Option<Failed>,
}

/// The last read failed.
#[derive(Clone, Copy, Debug)]
struct Failed {
    retry: Deadline,
    /// Failures in a row before this one.
    times: u32,
}

impl Reads {
    /// For a datapath that may have frames already, or that must not be read.
    pub const fn new(active: bool) -> Self {
        Self { may_have_frames: active, failed: None }
    }

    /// The datapath has become readable.
    pub const fn woken(&mut self) {
        self.may_have_frames = true;
    }

    #[inline]
    pub const fn may_have_frames(&self) -> bool {
        self.may_have_frames
    }

    pub const fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Whether it may be read: not before the retry delay after a failure is over. `now`: ticks.
    #[inline]
    pub fn is_due(&self, now: impl FnOnce() -> u64) -> bool {
        self.failed.is_none_or(|failed| failed.retry.is_due(now()))
    }

    /// A read succeeded. `more`: the datapath may have more frames.
    #[inline]
    pub const fn succeeded(&mut self, more: bool) {
        (self.may_have_frames, self.failed) = (more, None);
    }

    /// A read succeeded: the next failure is the first of a row. Whether there may be more frames is as before.
    #[inline]
    pub const fn recovered(&mut self) {
        self.failed = None;
    }

    /// There are no frames. A datapath that failed is read again although nothing reports frames.
    #[inline]
    pub const fn found_nothing(&mut self) {
        self.may_have_frames = self.failed.is_some();
    }

    /// A read failed at `now`. `retry`: [`RETRY`] in ticks. Returns whether the failure is worth a log line.
    #[cold]
    pub fn failed(&mut self, now: u64, retry: u64) -> bool {
        let times = self.failed.map_or(0, |before| before.times.saturating_add(1));
        let retry = Deadline::after(now, retry << times.min(RETRY_DOUBLINGS));
        self.failed = Some(Failed { retry, times });
        self.may_have_frames = true;
        times < RETRY_DOUBLINGS || times.is_multiple_of(FAILURES_A_LINE)
    }

    /// Time until the next read after a failure.
    pub fn retry_in(&self, clock: &Clock) -> Option<Duration> {
        // A timer that is set to no time at all would never fire.
        let left = |failed: Failed| clock.duration_of(failed.retry.left(clock.now()));
        self.failed.map(|failed| left(failed).max(Duration::from_micros(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failures_are_logged_then_one_in_sixteen() {
        let mut reads = Reads::default();
        let logged: Vec<_> = (0..40).filter(|&now| reads.failed(now, 10)).collect();
        assert_eq!(logged, [0, 1, 2, 3, 4, 5, 16, 32]);
        reads.succeeded(false);
        assert!(reads.failed(100, 10), "a success begins the count again");
    }

    #[test]
    fn a_datapath_that_failed_is_not_read_before_its_delay_which_doubles() {
        let mut reads = Reads::new(true);
        let mut now = 1000;
        for delay in [10, 20, 40, 80, 160, 320, 640, 640, 640] {
            assert!(reads.is_due(|| now));
            reads.failed(now, 10);
            assert!(!reads.is_due(|| now), "no delay");
            assert!(!reads.is_due(|| now + delay - 1), "less than {delay}");
            now += delay;
        }
        reads.succeeded(true);
        assert!(reads.is_due(|| now));
    }
}
