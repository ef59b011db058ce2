//! `clock`: the CPU's counter and `CLOCK_MONOTONIC`, read at the same moments. A host and a User Mode Linux guest on it have
//! different clocks, but both read the counter of the CPU itself. So their clocks can be compared by it.
//!
//! A QEMU guest reads another counter. Its clock is compared by a page that it shares with the host (`clock_page`), or, with
//! KVM, by its clock device (`clock_page`, `ptp`) or by the offset of its counter, which KVM knows.

use std::thread::sleep;
use std::time::Duration;

use burst_trace::Clock;
use rustix::time::{DynamicClockId, clock_gettime_dynamic};
use serde::{Deserialize, Serialize};

use crate::clock::now_ns;
use crate::clock_page::{self, PageArgs};
use crate::{Error, print_json};

/// Readings for one pair, if not given: enough that one of them is not interrupted.
pub const READINGS: u32 = 64;

#[derive(Debug, clap::Args)]
#[command(after_long_help = clock_page::EXAMPLES)]
pub struct Args {
    /// Readings for each pair; the quickest one counts.
    #[arg(
        long, value_name = "N", default_value_t = READINGS, conflicts_with_all = ["page", "guest", "ptp"],
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    readings: u32,
    /// Time between the two pairs.
    #[arg(
        long, value_name = "SECONDS", default_value_t = 1, conflicts_with_all = ["page", "guest", "ptp"],
        value_parser = clap::value_parser!(u64).range(1..=60)
    )]
    seconds: u64,
    #[command(flatten)]
    page: PageArgs,
}

/// One moment on both clocks: `CLOCK_MONOTONIC` was read between two readings of the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockPair {
    /// The counter before, ticks.
    pub before: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub monotonic_ns: u64,
    /// The counter after, ticks.
    pub after: u64,
}

/// Both clocks of a machine at two moments, as `ringscope agent clock` prints them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockPairs {
    /// Which counter: `tsc` (x86-64) or `cntvct` (aarch64).
    pub counter: String,
    /// The two moments, the earlier one first.
    pub pairs: [ClockPair; 2],
    /// This machine's `CLOCK_TAI`, by which programs for time-sensitive networks count.
    #[serde(default)]
    pub tai: Option<TaiClock>,
}

/// `CLOCK_TAI` of a machine, compared with its `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaiClock {
    /// What it is ahead, nanoseconds.
    pub ahead_ns: i64,
    /// By how much that may be wrong, nanoseconds.
    pub bound_ns: u64,
}

impl TaiClock {
    /// This machine's, by the quickest of this number of readings. `None` before Linux 3.10, which has no such clock.
    #[must_use]
    pub fn here(readings: u32) -> Option<Self> {
        let read = || {
            let before = now_ns();
            let tai = clock_gettime_dynamic(DynamicClockId::Tai).ok()?;
            let duration = now_ns().saturating_sub(before);
            let tai_ns = tai.tv_sec * 1_000_000_000 + tai.tv_nsec;
            let ahead_ns = tai_ns - (before + duration / 2).cast_signed();
            Some(Self { ahead_ns, bound_ns: duration.div_ceil(2) })
        };
        (0..readings.max(1)).filter_map(|_| read()).min_by_key(|it| it.bound_ns)
    }
}

impl ClockPairs {
    /// Takes a pair, does something, and takes a second pair. Each pair is the quickest of this number of readings. The
    /// pairs are `None` if this CPU has no counter that programs can read.
    pub fn around<T>(readings: u32, between: impl FnOnce() -> T) -> (Option<Self>, T) {
        let clock = Clock::of_cpu();
        let first = clock.map(|clock| pair(&clock, readings));
        let result = between();
        let pairs = clock.zip(first).map(|(clock, first)| Self {
            counter: clock.kind().name().into(),
            pairs: [first, pair(&clock, readings)],
            tai: TaiClock::here(readings),
        });
        (pairs, result)
    }
}

/// The quickest of these readings: a thread that is interrupted within a reading reads two different moments.
fn pair(clock: &Clock, readings: u32) -> ClockPair {
    let read = || {
        let before = clock.now();
        let monotonic_ns = now_ns();
        ClockPair { before, monotonic_ns, after: clock.now() }
    };
    // If the counter goes back, as when a virtual machine moves, the difference is huge, and another reading counts.
    let duration = |it: &ClockPair| it.after.wrapping_sub(it.before);
    (1..readings)
        .map(|_| read())
        .fold(read(), |best, next| if duration(&next) < duration(&best) { next } else { best })
}

pub fn run(args: &Args) -> Result<(), Error> {
    if args.page.is_given() {
        return clock_page::run(&args.page);
    }
    let wait = || sleep(Duration::from_secs(args.seconds));
    let (pairs, ()) = ClockPairs::around(args.readings, wait);
    print_json(&pairs.ok_or(Error::NoCounter)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_within_its_brackets_and_comes_before_the_next() {
        let between = || {
            sleep(Duration::from_millis(10));
            7
        };
        let (pairs, result) = ClockPairs::around(READINGS, between);
        assert_eq!(result, 7);
        let Some(ClockPairs { pairs: [first, second], .. }) = pairs else {
            assert_eq!(Clock::of_cpu().map(|it| it.kind()), None);
            return;
        };
        assert!(first.before <= first.after && second.before <= second.after);
        assert!(first.after < second.before, "{first:?} {second:?}");
        let between_ns = second.monotonic_ns - first.monotonic_ns;
        assert!(between_ns >= 10_000_000, "{between_ns} ns");
    }

    #[test]
    fn tai_is_the_same_time_of_the_day_give_or_take_leap_seconds() {
        let clock = TaiClock::here(READINGS).unwrap();
        let of_day = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let tai_ns = now_ns().cast_signed() + clock.ahead_ns;
        let apart_s = (i128::from(tai_ns) - of_day.as_nanos().cast_signed()) / 1_000_000_000;
        assert!((-1..100).contains(&apart_s), "{apart_s} s");
        assert!(clock.bound_ns < 1_000_000, "{clock:?}");
    }

    #[test]
    fn pairs_are_read_as_they_are_printed() {
        let pair = ClockPair { before: 5, monotonic_ns: 6, after: u64::MAX };
        let tai = Some(TaiClock { ahead_ns: -3, bound_ns: 2 });
        let pairs = ClockPairs { counter: "tsc".into(), pairs: [pair, pair], tai };
        let text = serde_json::to_string(&pairs).unwrap();
        assert_eq!(serde_json::from_str::<ClockPairs>(&text).unwrap(), pairs);
    }
}
