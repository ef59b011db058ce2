//! A distribution of times: exact count, mean, minimum and maximum, and percentiles to three digits.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Upper end of the percentile buckets. Longer times share one bucket; minimum, mean and maximum stay exact.
const HISTOGRAM_MAX_NS: u64 = 3600 * NS_PER_SECOND;
const NS_PER_SECOND: u64 = 1_000_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;

/// The rate of a recorder's clock. Converts ticks to nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct TickRate {
    ticks_per_second: u64,
    ns_per_tick: f64,
}

impl TickRate {
    /// A clock of this many ticks a second; 0 counts as 1.
    #[must_use]
    pub fn new(ticks_per_second: u64) -> Self {
        let ticks_per_second = ticks_per_second.max(1);
        Self { ticks_per_second, ns_per_tick: NS_PER_SECOND as f64 / ticks_per_second as f64 }
    }

    /// Converts `ticks` to seconds.
    #[must_use]
    pub fn seconds(&self, ticks: u64) -> f64 {
        ticks as f64 / self.ticks_per_second as f64
    }

    /// Converts `seconds` to ticks; negative values count as 0.
    #[must_use]
    pub fn ticks(&self, seconds: f64) -> u64 {
        (seconds * self.ticks_per_second as f64) as u64
    }

    /// Converts `ticks` to nanoseconds, rounded once.
    #[must_use]
    pub fn ns(&self, ticks: u64) -> u64 {
        (ticks as f64 * self.ns_per_tick).round() as u64
    }

    /// The mean of `count` times whose sum is `ticks`, in nanoseconds.
    #[must_use]
    pub fn mean_ns(&self, ticks: i128, count: u64) -> f64 {
        ticks as f64 / count as f64 * self.ns_per_tick
    }
}

/// Collects times. The time of a burst counts once for each of its packets.
#[derive(Clone, Debug)]
pub struct Distribution {
    histogram_ns: Histogram<u64>,
    count: u64,
    sum_ticks: u128,
    min_ticks: u64,
    max_ticks: u64,
}

impl Distribution {
    /// An empty distribution. Its memory is reserved here and does not grow.
    ///
    /// # Panics
    /// Never: the bounds are constants that the histogram accepts.
    #[must_use]
    pub fn new() -> Self {
        let histogram_ns = Histogram::new_with_bounds(1, HISTOGRAM_MAX_NS, SIGNIFICANT_DIGITS)
            .expect("constant bounds that the histogram takes");
        Self { histogram_ns, count: 0, sum_ticks: 0, min_ticks: u64::MAX, max_ticks: 0 }
    }

    /// Adds a burst of `packets` packets that took `ticks` each.
    #[inline]
    pub fn add(&mut self, ticks: u64, packets: u16, rate: TickRate) {
        if packets == 0 {
            return;
        }
        self.histogram_ns.saturating_record_n(rate.ns(ticks), u64::from(packets));
        self.count += u64::from(packets);
        self.sum_ticks += u128::from(ticks) * u128::from(packets);
        self.min_ticks = self.min_ticks.min(ticks);
        self.max_ticks = self.max_ticks.max(ticks);
    }

    /// Empties it but keeps its memory.
    pub fn clear(&mut self) {
        if self.count == 0 {
            return;
        }
        self.histogram_ns.reset();
        (self.count, self.sum_ticks) = (0, 0);
        (self.min_ticks, self.max_ticks) = (u64::MAX, 0);
    }

    /// Number of packets added.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The time that this share of the packets (0 to 1) did not exceed, in nanoseconds.
    #[must_use]
    pub fn quantile_ns(&self, quantile: f64, rate: TickRate) -> u64 {
        if self.count == 0 {
            return 0;
        }
        // The histogram returns the upper end of a bucket, which can exceed the largest time that was added.
        let (min_ns, max_ns) = (rate.ns(self.min_ticks), rate.ns(self.max_ticks));
        self.histogram_ns.value_at_quantile(quantile).clamp(min_ns, max_ns)
    }

    /// The histogram's own buckets: time in nanoseconds, and number of packets.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.histogram_ns
            .iter_recorded()
            .map(|bucket| (bucket.value_iterated_to(), bucket.count_since_last_iteration()))
    }

    /// The figures, if there are any packets.
    #[must_use]
    pub fn figures(&self, rate: TickRate) -> Option<Figures> {
        if self.count == 0 {
            return None;
        }
        let (min_ns, max_ns) = (rate.ns(self.min_ticks), rate.ns(self.max_ticks));
        let at = |quantile| self.quantile_ns(quantile, rate);
        Some(Figures {
            mean_ns: rate.mean_ns(i128::try_from(self.sum_ticks).unwrap_or(i128::MAX), self.count),
            min_ns,
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            max_ns,
        })
    }
}

impl Default for Distribution {
    fn default() -> Self {
        Self::new()
    }
}

/// The figures of a distribution. Field names are those of `ringscope stats --json`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// The mean: the exact sum of ticks, converted once.
    pub mean_ns: f64,
    /// The shortest time.
    pub min_ns: u64,
    /// The median: half of the packets took no longer.
    pub p50_ns: u64,
    /// The 90th percentile.
    pub p90_ns: u64,
    /// The 99th percentile.
    pub p99_ns: u64,
    /// The 99.9th percentile.
    pub p999_ns: u64,
    /// The longest time.
    pub max_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const GHZ: u64 = 1_000_000_000;

    #[test]
    fn a_burst_counts_once_for_each_of_its_packets() {
        let rate = TickRate::new(2 * GHZ);
        let mut times = Distribution::new();
        times.add(200, 9, rate);
        times.add(2000, 1, rate);
        let figures = times.figures(rate).unwrap();
        assert_eq!(times.count(), 10);
        assert!((figures.mean_ns - 190.0).abs() < 1e-9);
        assert_eq!((figures.min_ns, figures.max_ns), (100, 1000));
        assert_eq!((figures.p50_ns, figures.p90_ns, figures.p99_ns), (100, 100, 1000));
    }

    #[test]
    fn percentiles_are_within_three_digits_and_never_beyond_the_extremes() {
        let rate = TickRate::new(GHZ);
        let mut times = Distribution::new();
        for ns in 1..=100_000 {
            times.add(ns, 1, rate);
        }
        let figures = times.figures(rate).unwrap();
        for (found, expected) in [
            (figures.p50_ns, 50_000),
            (figures.p90_ns, 90_000),
            (figures.p99_ns, 99_000),
            (figures.p999_ns, 99_900),
        ] {
            assert!(found.abs_diff(expected) <= expected / 1000, "{found}, expected {expected}");
        }
        assert_eq!(figures.max_ns, 100_000);
    }

    #[test]
    fn a_time_beyond_the_histogram_saturates_and_max_stays_exact() {
        let rate = TickRate::new(GHZ);
        let mut times = Distribution::new();
        times.add(2 * HISTOGRAM_MAX_NS, 1, rate);
        times.add(u64::MAX, u16::MAX, rate);
        let figures = times.figures(rate).unwrap();
        assert_eq!(figures.min_ns, 2 * HISTOGRAM_MAX_NS);
        assert_eq!(figures.max_ns, u64::MAX);
    }

    #[test]
    fn nothing_gives_no_figures_and_zero_is_a_time() {
        let rate = TickRate::new(GHZ);
        let mut times = Distribution::new();
        times.add(50, 0, rate);
        assert_eq!(times.figures(rate), None);
        times.add(0, 3, rate);
        assert_eq!(times.figures(rate).unwrap().max_ns, 0);
        times.clear();
        assert_eq!(times.figures(rate), None);
    }
}
