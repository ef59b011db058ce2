//! `CLOCK_MONOTONIC` in nanoseconds. All namespaces of a machine share it, so stamps of an agent in a namespace can be
//! compared with stamps of the daemon.

use rustix::time::{ClockId, DynamicClockId, clock_gettime, clock_gettime_dynamic};
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Number of readings for one offset between two clocks.
const READINGS: u32 = 5;

/// How far another clock is ahead of `CLOCK_MONOTONIC`, nanoseconds. The quickest of a few readings counts: a thread that is
/// interrupted during a reading reads two different moments.
///
/// # Errors
/// If the kernel has no such clock.
pub fn ahead_ns(clock: DynamicClockId<'_>) -> io::Result<i64> {
    let (mut quickest, mut ahead) = (i64::MAX, 0);
    for _ in 0..READINGS {
        let before = now_ns() as i64;
        let there = clock_gettime_dynamic(clock)?;
        let after = now_ns() as i64;
        if after - before < quickest {
            quickest = after - before;
            ahead = there.tv_sec * 1_000_000_000 + there.tv_nsec - (before + after) / 2;
        }
    }
    Ok(ahead)
}

/// How far `CLOCK_REALTIME` is ahead of `CLOCK_MONOTONIC`: the interval that all readings of both leave. The kernel adds the
/// same to both clocks, so the difference changes only when the time of day is set. Where [`TIMERS`] can be read, the interval
/// is the kernel's own number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealtimeAhead {
    low_ns: i64,
    high_ns: i64,
}

/// The kernel's timers, with the offset of each of its clocks to `CLOCK_MONOTONIC`; for root only
/// (kernel/time/timer_list.c).
const TIMERS: &str = "/proc/timer_list";
/// `HRTIMER_BASE_REALTIME` (include/linux/hrtimer_defs.h), as [`TIMERS`] names it.
const REALTIME_BASE: &str = " clock 1:";

/// What all threads have read so far.
static REALTIME: Mutex<Option<RealtimeAhead>> = Mutex::new(None);

impl RealtimeAhead {
    /// Reads both clocks this many times, and returns what is known then.
    #[must_use]
    pub fn read(times: u32) -> Self {
        let mut shared = REALTIME.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = shared.unwrap_or_else(|| Self::reading().by_kernel());
        for _ in 0..times {
            let reading = Self::reading();
            // Without a common part, the time of day was set.
            known = known.and(reading).unwrap_or_else(|| reading.by_kernel());
        }
        *shared = Some(known);
        known
    }

    fn reading() -> Self {
        let before = now_ns() as i64;
        let there = clock_gettime(ClockId::Realtime);
        let after = now_ns() as i64;
        let there_ns = there.tv_sec * 1_000_000_000 + there.tv_nsec;
        Self { low_ns: there_ns - after, high_ns: there_ns - before }
    }

    /// The number that the kernel gives, unless it contradicts this reading: in a time namespace, or while the time of day is
    /// being set. Then this reading.
    fn by_kernel(self) -> Self {
        let timers = std::fs::read_to_string(TIMERS).unwrap_or_default();
        let exact = realtime_offset(&timers).map(|ns| Self { low_ns: ns, high_ns: ns });
        exact.and_then(|exact| self.and(exact)).unwrap_or(self)
    }

    fn and(self, other: Self) -> Option<Self> {
        let low_ns = self.low_ns.max(other.low_ns);
        let high_ns = self.high_ns.min(other.high_ns);
        (low_ns <= high_ns).then_some(Self { low_ns, high_ns })
    }

    /// The interval: at least, and at most, nanoseconds.
    #[must_use]
    pub const fn bounds_ns(self) -> [i64; 2] {
        [self.low_ns, self.high_ns]
    }

    /// The middle of the interval, nanoseconds.
    #[must_use]
    pub const fn ns(self) -> i64 {
        self.low_ns + (self.high_ns - self.low_ns) / 2
    }

    /// By how much the middle may be wrong, nanoseconds.
    #[must_use]
    pub const fn error_ns(self) -> u64 {
        self.high_ns.abs_diff(self.low_ns).div_ceil(2)
    }
}

/// The offset of `CLOCK_REALTIME` in the list of timers, nanoseconds.
fn realtime_offset(timers: &str) -> Option<i64> {
    let mut lines = timers.lines();
    lines.find(|line| *line == REALTIME_BASE)?;
    let offset = lines.find_map(|line| line.trim_start().strip_prefix(".offset:"))?;
    offset.split_whitespace().next()?.parse().ok()
}

/// Sleeps until the given time.
pub fn sleep_until(at_ns: u64) {
    let left = at_ns.saturating_sub(now_ns());
    if left > 0 {
        std::thread::sleep(Duration::from_nanos(left));
    }
}

/// Makes this thread's timers fire on time; by default they are up to 50 us late.
pub fn sharpen_timers() {
    // If refused, more packets are sent late, and these are counted.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_narrow_what_is_known_until_the_time_is_set() {
        let ahead = |low_ns, high_ns| RealtimeAhead { low_ns, high_ns };
        assert_eq!(ahead(0, 100).and(ahead(40, 120)), Some(ahead(40, 100)));
        assert_eq!(ahead(0, 100).and(ahead(101, 120)), None);
        assert_eq!((ahead(-7, 4).ns(), ahead(-7, 4).error_ns()), (-2, 6));
        let (one, many) = (RealtimeAhead::read(1), RealtimeAhead::read(1000));
        assert!(many.error_ns() <= one.error_ns() && one.and(many) == Some(many), "{many:?}");
    }

    #[test]
    fn the_kernels_own_number_counts_if_no_reading_contradicts_it() {
        let list = "\
cpu: 0
 clock 0:
  .base:       00000000f85ce14c
  .offset:     0 nsecs
active timers:
 #0: <0>, tick_nohz_handler, S:01
 clock 1:
  .base:       000000002f3e531c
  .resolution: 1 nsecs
  .offset:     1795942502895829657 nsecs
 clock 2:
  .offset:     12 nsecs
";
        assert_eq!(realtime_offset(list), Some(1_795_942_502_895_829_657));
        // An old kernel without high resolution, and what is no list.
        for list in ["clock 0:\n  .offset: 0 nsecs\n", " clock 1:\n", ""] {
            assert_eq!(realtime_offset(list), None, "{list}");
        }
        if let Ok(list) = std::fs::read_to_string(TIMERS)
            && let Some(exact) = realtime_offset(&list)
        {
            let known = RealtimeAhead::read(1);
            assert_eq!((known.ns(), known.error_ns()), (exact, 0));
        }
        let wrong = RealtimeAhead { low_ns: -7, high_ns: 4 };
        assert_eq!(wrong.by_kernel(), wrong);
    }
}
