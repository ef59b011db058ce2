//! From exchanges and pairs to bounds of the offset.
//!
//! ```text
//! host's clock     before ------------------ after          before ---- after
//!                         \              /
//! guest's counter    before clock after   counter   counter ...   before clock after
//!                    (a pair)             (an exchange)           (the next pair)
//! ```
//!
//! The guest's clock was read between the pair's two readings of the counter, and the exchange's counter between two times
//! of the host. The counter's ticks between pair and exchange become nanoseconds by the least and the highest rate that
//! the guest's counter can have. Both follow from the first and the last pair, with [`SLEWED`].
//!
//! Each exchange gives a bound of its own. Those that are kept are the corners of the convex hulls: a line that is within
//! these is within all others, too. So nothing is lost if the clocks drift apart at a constant rate, and if they do not,
//! each bound still holds.

use std::collections::BTreeSet;

use super::page::Reading;
use super::{ClockBound, Error};

/// Exchanges between two pairs: some microseconds, so that the rate's error is some nanoseconds.
pub const EXCHANGES_APART: usize = 32;
/// Most bounds of one run. The hulls of 20,000 exchanges have about 30 corners.
pub const BOUNDS_MAX: usize = 64;
/// A kernel slews its clock by up to 500 parts in a million (`adjtimex(2)`), so the rate in a part of the run differs from
/// the rate of the whole run by no more than this.
const SLEWED: f64 = 1e-3;

/// A question that the guest has answered with its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The host's `CLOCK_MONOTONIC` before the question, nanoseconds.
    pub before_ns: u64,
    /// The guest's counter, ticks.
    pub counter: u64,
    /// The host's `CLOCK_MONOTONIC` after the answer, nanoseconds.
    pub after_ns: u64,
}

impl Exchange {
    /// Time between question and answer, nanoseconds.
    pub const fn duration_ns(&self) -> u64 {
        self.after_ns.saturating_sub(self.before_ns)
    }
}

/// What was taken in one run: a pair, [`EXCHANGES_APART`] exchanges, a pair, and so on.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// The pairs.
    pub pairs: Vec<Reading>,
    /// The exchanges.
    pub exchanges: Vec<Exchange>,
    /// The guest's last counter, ticks, and its last clock, nanoseconds.
    last: (u64, u64),
}

impl Taken {
    /// # Errors
    /// If the guest's counter or its clock went back.
    pub fn add_pair(&mut self, pair: Reading) -> Result<(), Error> {
        self.advance(pair.before)?;
        self.advance(pair.after)?;
        if pair.clock_ns < self.last.1 {
            let found = format!("{} ns after {} ns", pair.clock_ns, self.last.1);
            return Err(Error::Nonsense { expected: "a clock that goes forward", found });
        }
        self.last.1 = pair.clock_ns;
        self.pairs.push(pair);
        Ok(())
    }

    /// # Errors
    /// If the guest's counter went back.
    pub fn add_exchange(&mut self, exchange: Exchange) -> Result<(), Error> {
        self.advance(exchange.counter)?;
        self.exchanges.push(exchange);
        Ok(())
    }

    fn advance(&mut self, counter: u64) -> Result<(), Error> {
        if counter < self.last.0 {
            let found = format!("{counter} after {}", self.last.0);
            return Err(Error::Nonsense { expected: "a counter that goes forward", found });
        }
        self.last.0 = counter;
        Ok(())
    }
}

/// The bounds that say most, in the order of time. Exchanges after the last pair are left out.
///
/// # Errors
/// If the pairs are no clock's.
pub fn of(taken: &Taken) -> Result<Vec<ClockBound>, Error> {
    let rate = Rate::of(&taken.pairs)?;
    let mut all = Vec::new();
    for (pairs, exchanges) in
        taken.pairs.windows(2).zip(taken.exchanges.chunks_exact(EXCHANGES_APART))
    {
        for exchange in exchanges {
            all.push(bound(rate, pairs, exchange)?);
        }
    }
    Ok(telling(&all))
}

/// The bounds that say most, of bounds in the order of time: at most [`BOUNDS_MAX`].
pub fn telling(all: &[ClockBound]) -> Vec<ClockBound> {
    let mut corners: BTreeSet<usize> = hull(all, |it| it.high_ns.into()).collect();
    corners.extend(hull(all, |it| -i128::from(it.low_ns)));
    let step = corners.len().div_ceil(BOUNDS_MAX - 1).max(1);
    let mut kept: BTreeSet<usize> = corners.into_iter().step_by(step).collect();
    kept.extend((0..all.len()).min_by_key(|&at| all[at].width_ns()));
    kept.into_iter().map(|at| all[at]).collect()
}

/// The corners of the convex hull below the points that these bounds have, in the order of time (Andrew's monotone chain).
fn hull(all: &[ClockBound], height: impl Fn(&ClockBound) -> i128) -> impl Iterator<Item = usize> {
    let mut corners: Vec<(usize, i128, i128)> = Vec::new();
    for (at, bound) in all.iter().enumerate() {
        let new = (at, i128::from(bound.host_ns), height(bound));
        // A corner that is not below the line from the one before it to the new one is none.
        while let [.., (_, x0, y0), (_, x1, y1)] = corners[..]
            && (y1 - y0).saturating_mul(new.1 - x0) >= (new.2 - y0).saturating_mul(x1 - x0)
        {
            corners.pop();
        }
        corners.push(new);
    }
    corners.into_iter().map(|(at, ..)| at)
}

/// The bound by an exchange, and the pairs before and after it.
fn bound(rate: Rate, pairs: &[Reading], exchange: &Exchange) -> Result<ClockBound, Error> {
    let (mut low, mut high) = (i128::MIN, i128::MAX);
    for pair in pairs {
        let clock = i128::from(pair.clock_ns);
        let since = |counter: u64| i128::from(exchange.counter) - i128::from(counter);
        // Counters and clocks are read without the fractions of their ticks and nanoseconds.
        low = low.max(clock.saturating_add(rate.least_ns(since(pair.after) - 1)));
        high = high.min((clock + 1).saturating_add(rate.most_ns(since(pair.before) + 1)));
    }
    let nonsense = || Error::Nonsense {
        expected: "a clock and a counter of steady rates",
        found: format!("a clock of {low} to {high} ns at the counter {}", exchange.counter),
    };
    if low > high {
        return Err(nonsense());
    }
    let ahead =
        |guest: i128, host: i128| i64::try_from(guest.saturating_sub(host)).map_err(|_| nonsense());
    let (before, after) = (i128::from(exchange.before_ns), i128::from(exchange.after_ns));
    Ok(ClockBound {
        host_ns: exchange.before_ns + exchange.duration_ns() / 2,
        low_ns: ahead(low, after + 1)?,
        high_ns: ahead(high, before)?,
    })
}

/// Ticks of the guest's counter in a nanosecond of its clock.
#[derive(Clone, Copy, Debug)]
struct Rate {
    least: f64,
    most: f64,
}

impl Rate {
    fn of(pairs: &[Reading]) -> Result<Self, Error> {
        let (Some(first), Some(last)) = (pairs.first(), pairs.last()) else {
            return Err(no_advance(0, 0));
        };
        let ns = last.clock_ns.saturating_sub(first.clock_ns);
        let ticks = last.before.saturating_sub(first.after);
        if ns < 2 || ticks < 2 {
            return Err(no_advance(ticks, ns));
        }
        let ticks_most = last.after.saturating_sub(first.before);
        // Counters and clocks are read without the fractions of their ticks and nanoseconds.
        Ok(Self {
            least: (ticks as f64 - 1.0) / (ns as f64 + 1.0) * (1.0 - SLEWED),
            most: (ticks_most as f64 + 1.0) / (ns as f64 - 1.0) * (1.0 + SLEWED),
        })
    }

    /// The shortest time of these ticks, nanoseconds; of ticks below 0, the longest time back.
    fn least_ns(self, ticks: i128) -> i128 {
        let rate = if ticks < 0 { self.least } else { self.most };
        (ticks as f64 / rate).floor() as i128
    }

    /// The longest time of these ticks, nanoseconds; of ticks below 0, the shortest time back.
    fn most_ns(self, ticks: i128) -> i128 {
        let rate = if ticks < 0 { self.most } else { self.least };
        (ticks as f64 / rate).ceil() as i128
    }
}

fn no_advance(ticks: u64, ns: u64) -> Error {
    let found = format!("{ticks} ticks in {ns} ns");
    Error::Nonsense { expected: "a clock and a counter that advance during a run", found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_within_the_corners_is_within_all_bounds() {
        // Widths as of random delays, on a line with a drift; a reading every 100 ns.
        let mut random = 7_u64;
        let mut delay = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 54).cast_signed()
        };
        let mut all = Vec::new();
        for n in 0..5_000_i64 {
            let offset = 1_000 + n / 50;
            let (low_ns, high_ns) = (offset - 40 - delay(), offset + 40 + delay());
            all.push(ClockBound { host_ns: n.unsigned_abs() * 100, low_ns, high_ns });
        }
        let corners: Vec<_> = hull(&all, |it| it.high_ns.into()).collect();
        assert!((2..40).contains(&corners.len()), "{corners:?}");
        assert!(corners.is_sorted() && corners[0] == 0 && corners.ends_with(&[4_999]));
        // Between two corners, all others are on the line or above.
        for pair in corners.windows(2) {
            let [a, b] = [&all[pair[0]], &all[pair[1]]];
            let slope = (b.high_ns - a.high_ns) as f64 / (b.host_ns - a.host_ns) as f64;
            for it in &all[pair[0]..pair[1]] {
                let line = a.high_ns as f64 + (it.host_ns - a.host_ns) as f64 * slope;
                assert!(it.high_ns as f64 >= line - 1e-6, "{it:?}, {line}");
            }
        }
    }

    #[test]
    fn bounds_are_few_whatever_the_guest_answers() {
        let pair = |at: u64| Reading { before: at, clock_ns: at, after: at };
        let mut taken = Taken::default();
        taken.add_pair(pair(0)).unwrap();
        for n in 1..=4_000_u64 {
            // Bounds on a parabola: each is a corner.
            let before_ns = 1_000 * n - n * n / 16;
            let exchange = Exchange { before_ns, counter: 1_000 * n, after_ns: before_ns + 10 };
            taken.add_exchange(exchange).unwrap();
            if n % 32 == 0 {
                taken.add_pair(pair(1_000 * n)).unwrap();
            }
        }
        let found = of(&taken).unwrap();
        assert!((32..=BOUNDS_MAX).contains(&found.len()), "{}", found.len());
    }
}
