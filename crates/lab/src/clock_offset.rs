//! The offset between the clocks of two ends on one machine, by the CPU's counter, which both read
//! (`ringscope agent clock`).

use agent::{ClockPair, ClockPairs, TaiClock};
use serde::{Deserialize, Serialize};

/// Longest time between the host's two pairs, nanoseconds. For a longer time the counter's rate is not constant enough.
const APART_MAX_NS: u64 = 3600 * 1_000_000_000;

/// The clock of an end, compared with the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockOffset {
    /// What the end's `CLOCK_MONOTONIC` is ahead of the host's, nanoseconds.
    pub ahead_ns: i64,
    /// By how much that may be wrong, nanoseconds.
    pub bound_ns: u64,
}

/// Why two clocks cannot be compared.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClockMisfit {
    /// They have different counters.
    #[error(
        "expected both ends to read the same counter, found {host} and {end}: they are different machines"
    )]
    Counter {
        /// The host's.
        host: String,
        /// The end's.
        end: String,
    },
    /// Readings that no clock gives.
    #[error(
        "expected two readings in the order of time and at most an hour apart, found {found:?}; read the clock again"
    )]
    Order {
        /// The readings.
        found: [ClockPair; 2],
    },
    /// The end's counter starts at another time.
    #[error(
        "expected the end's counter to be between {from} and {to}, which the host read before and after it, found {found}: it \
         is not the host's counter; of all guests, only User Mode Linux on this host reads that"
    )]
    Origin {
        /// The host's counter before, ticks.
        from: u64,
        /// The host's counter after, ticks.
        to: u64,
        /// The end's, ticks.
        found: u64,
    },
    /// The end's counter, or its clock, has another rate.
    #[error(
        "expected the end's clock to be ahead by the same time in both readings, found {first} ns and {second} ns, which may be \
         wrong by {bound} ns together: its counter or its clock does not have the host's rate"
    )]
    Rate {
        /// By the first reading, nanoseconds.
        first: i128,
        /// By the second reading, nanoseconds.
        second: i128,
        /// The sum of both bounds, nanoseconds.
        bound: i128,
    },
}

/// The clocks of a variant's ends. `None`: it cannot be compared with the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// The talker's.
    pub talker: Option<ClockOffset>,
    /// The responder's.
    pub responder: Option<ClockOffset>,
    /// The talker's `CLOCK_TAI`, compared with its `CLOCK_MONOTONIC`.
    #[serde(default)]
    pub talker_tai: Option<TaiClock>,
    /// The responder's.
    #[serde(default)]
    pub responder_tai: Option<TaiClock>,
}

impl ClockOffset {
    /// The host's own clock.
    pub const NONE: Self = Self { ahead_ns: 0, bound_ns: 0 };

    /// Compares two clocks. The host's first pair was read before the end's two pairs, and its second one after them.
    ///
    /// # Errors
    /// If the counters are not the same one, or do not advance at the same rate.
    pub fn between(host: &ClockPairs, end: &ClockPairs) -> Result<Self, ClockMisfit> {
        if host.counter != end.counter {
            let (host, end) = (host.counter.clone(), end.counter.clone());
            return Err(ClockMisfit::Counter { host, end });
        }
        check_order(host.pairs)?;
        check_order(end.pairs)?;
        let (from, to) = (host.pairs[0].before, host.pairs[1].after);
        let outside = end.pairs.iter().flat_map(|it| [it.before, it.after]);
        if let Some(found) = outside.into_iter().find(|it| !(from..=to).contains(it)) {
            return Err(ClockMisfit::Origin { from, to, found });
        }
        let [first, second] = end.pairs.map(|it| Estimate::of(host.pairs, it));
        let bound = first.bound_ns + second.bound_ns;
        if (first.ahead_ns - second.ahead_ns).abs() > bound {
            let (first, second) = (first.ahead_ns, second.ahead_ns);
            return Err(ClockMisfit::Rate { first, second, bound });
        }
        let best = if second.bound_ns < first.bound_ns { second } else { first };
        let order = |_| ClockMisfit::Order { found: end.pairs };
        Ok(Self {
            ahead_ns: best.ahead_ns.try_into().map_err(order)?,
            bound_ns: best
                .bound_ns
                .try_into()
                .map_err(|_| ClockMisfit::Order { found: end.pairs })?,
        })
    }

    /// The end's `CLOCK_TAI`, compared with the host's `CLOCK_MONOTONIC`.
    #[must_use]
    pub const fn with_tai(self, tai: TaiClock) -> Self {
        Self {
            ahead_ns: self.ahead_ns.saturating_add(tai.ahead_ns),
            bound_ns: self.bound_ns.saturating_add(tai.bound_ns),
        }
    }

    /// A time of the end's clock, on the host's. `None` if it is before the host's clock began.
    #[must_use]
    pub const fn on_host(&self, end_ns: u64) -> Option<u64> {
        if self.ahead_ns < 0 {
            end_ns.checked_add(self.ahead_ns.unsigned_abs())
        } else {
            end_ns.checked_sub(self.ahead_ns.unsigned_abs())
        }
    }
}

/// Both clocks of a machine that works go forward.
fn check_order(found: [ClockPair; 2]) -> Result<(), ClockMisfit> {
    let [first, second] = found;
    let apart = second.monotonic_ns.checked_sub(first.monotonic_ns);
    let in_order = first.before <= first.after
        && first.after < second.before
        && second.before <= second.after
        && apart.is_some_and(|apart| apart > 0 && apart <= APART_MAX_NS);
    if in_order { Ok(()) } else { Err(ClockMisfit::Order { found }) }
}

/// An offset by one pair of the end, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Estimate {
    ahead_ns: i128,
    bound_ns: i128,
}

impl Estimate {
    /// The host's clock at the end's counter lies on the line through the host's two pairs. A clock was read at any moment
    /// within its pair, so the middle is wrong by at most half of the pair's duration. On the line, the larger one of
    /// the host's two errors is the largest.
    fn of(host: [ClockPair; 2], end: ClockPair) -> Self {
        // Twice the middle, so that nothing is rounded.
        let middle = |it: ClockPair| i128::from(it.before) + i128::from(it.after);
        let [first, second] = host;
        let ticks = middle(second) - middle(first);
        let ns = i128::from(second.monotonic_ns) - i128::from(first.monotonic_ns);
        let half = |it: ClockPair| (i128::from(it.after) - i128::from(it.before)) * ns / ticks + 1;
        let host_ns = i128::from(first.monotonic_ns) + (middle(end) - middle(first)) * ns / ticks;
        Self {
            ahead_ns: i128::from(end.monotonic_ns) - host_ns,
            bound_ns: half(first).max(half(second)) + half(end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3 ticks a nanosecond; each reading takes `width` ticks, and the clock is read in its middle.
    fn pairs(at_ns: [u64; 2], ahead_ns: u64, width: u64) -> ClockPairs {
        let pair = |at: u64| ClockPair {
            before: 3 * at - width / 2,
            monotonic_ns: at + ahead_ns,
            after: 3 * at + width / 2,
        };
        ClockPairs { counter: "tsc".into(), pairs: at_ns.map(pair), tai: None }
    }

    const HOST_NS: [u64; 2] = [1_000_000_000, 3_500_000_000];
    const END_NS: [u64; 2] = [1_500_000_000, 2_500_000_000];

    fn host() -> ClockPairs {
        pairs(HOST_NS, 0, 60)
    }

    #[test]
    fn an_offset_and_its_bound_are_found() {
        let end = pairs(END_NS, 7_000_000_123, 30_000);
        let offset = ClockOffset::between(&host(), &end).unwrap();
        assert_eq!(offset.ahead_ns, 7_000_000_123);
        // Half of 20 ns and half of 10 us, each rounded up.
        assert_eq!(offset.bound_ns, 10 + 1 + 5_000 + 1);
        assert_eq!(offset.on_host(8_000_000_123), Some(1_000_000_000));
        assert_eq!(offset.on_host(0), None);
    }

    #[test]
    fn a_time_of_tai_is_on_the_hosts_clock() {
        let end = ClockOffset { ahead_ns: -50, bound_ns: 3 };
        let tai = end.with_tai(TaiClock { ahead_ns: 1_000, bound_ns: 4 });
        assert_eq!((tai.on_host(1_960), tai.bound_ns), (Some(1_010), 7));
    }

    #[test]
    fn an_end_can_be_behind_the_host() {
        let mut end = pairs(END_NS, 0, 60);
        for pair in &mut end.pairs {
            pair.monotonic_ns -= 900_000_000;
        }
        let offset = ClockOffset::between(&host(), &end).unwrap();
        assert_eq!(offset.ahead_ns, -900_000_000);
        assert_eq!(offset.on_host(1_000), Some(900_001_000));
        assert_eq!(offset.on_host(u64::MAX), None);
    }

    #[test]
    fn the_narrower_reading_counts_and_the_bound_holds_wherever_the_clock_was_read() {
        let mut end = pairs(END_NS, 5_000, 60);
        end.pairs[0].before -= 60_000;
        let offset = ClockOffset::between(&host(), &end).unwrap();
        assert_eq!((offset.ahead_ns, offset.bound_ns), (5_000, 22));
        // The clock was read at the very end of its pair.
        let mut end = pairs(END_NS, 5_000, 60_000);
        for pair in &mut end.pairs {
            pair.monotonic_ns += 10_000;
        }
        let offset = ClockOffset::between(&host(), &end).unwrap();
        assert!(offset.ahead_ns.abs_diff(5_000) <= offset.bound_ns, "{offset:?}");
    }

    #[test]
    fn a_counter_of_another_kind_origin_or_rate_is_refused() {
        let mut other = pairs(END_NS, 5, 60);
        other.counter = "cntvct".into();
        let found = ClockOffset::between(&host(), &other);
        assert!(matches!(found, Err(ClockMisfit::Counter { .. })), "{found:?}");
        // The counter of an emulated guest is the host's plus a constant.
        let mut other = pairs(END_NS, 5, 60);
        for pair in &mut other.pairs {
            pair.before += 30_000_000_000;
            pair.after += 30_000_000_000;
        }
        let found = ClockOffset::between(&host(), &other);
        assert!(matches!(found, Err(ClockMisfit::Origin { .. })), "{found:?}");
        // One part in a million within a second.
        let mut other = pairs(END_NS, 5, 60);
        other.pairs[1].monotonic_ns += 1_000;
        let found = ClockOffset::between(&host(), &other);
        assert!(matches!(found, Err(ClockMisfit::Rate { .. })), "{found:?}");
    }

    #[test]
    fn readings_that_no_clock_gives_are_refused() {
        let good = host();
        let broken = |change: fn(&mut [ClockPair; 2])| {
            let mut broken = good.clone();
            change(&mut broken.pairs);
            broken
        };
        let all = [
            broken(|it| it.swap(0, 1)),
            broken(|it| it[1] = it[0]),
            broken(|it| it[0].before = u64::MAX),
            broken(|it| it[1].before = 0),
            broken(|it| it[1].monotonic_ns = it[0].monotonic_ns),
            broken(|it| it[1].monotonic_ns = u64::MAX),
        ];
        for broken in all {
            for (host, end) in [(&good, &broken), (&broken, &good)] {
                let found = ClockOffset::between(host, end);
                assert!(matches!(found, Err(ClockMisfit::Order { .. })), "{found:?}");
            }
        }
    }
}
