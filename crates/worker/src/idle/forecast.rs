//! When a queue pair's next work is due, learned from the idle gaps before.
//!
//! Traffic that cares for latency is often periodic: a control cycle, the frame interval of a stream, requests and
//! their responses. A worker that sleeps through the gaps is woken up for every packet; one that polls through them
//! uses up a CPU. With a forecast it sleeps until shortly before the next packet is due, and polls only around that
//! moment.
//!
//! The length of a gap depends on what came before it: a guest answers a request soon, and the next request comes long
//! after the response. So gaps are learned separately by the directions of the work before them. Gaps that end while
//! the worker still polls are not learned: it did not sleep in them.
//!
//! Periodic traffic skips periods: a frame is lost, or its sender misses a slot. So a long gap may be several
//! periods, and when a period passes without a packet, the worker waits for the next one.

use std::ops::Range;

/// The directions in which a queue pair moved bursts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Worked(u8);

impl Worked {
    const KINDS: usize = 4;

    pub const fn new(received: bool, transmitted: bool) -> Self {
        Self(received as u8 | (transmitted as u8) << 1)
    }
}

/// The forecast of one queue pair. Times and lengths in ticks.
#[derive(Debug, Default)]
pub struct Forecast {
    /// One for each combination of directions before the gap.
    gaps: [Gaps; Worked::KINDS],
    /// What the pair did before the present gap.
    after: Worked,
    /// When the present gap began.
    since: u64,
}

impl Forecast {
    /// The pair worked, and is idle since `now`.
    pub const fn begin(&mut self, worked: Worked, now: u64) {
        (self.after, self.since) = (worked, now);
    }

    /// The gap ended at `now`, give or take `inexact`. `budget` as for [`due`](Self::due).
    pub fn learn(&mut self, now: u64, inexact: u64, budget: u64) {
        if self.after != Worked::default() {
            let gaps = &mut self.gaps[usize::from(self.after.0)];
            gaps.learn(now.saturating_sub(self.since), budget);
            gaps.inexact = inexact;
        }
    }

    /// The time span, not over at `now`, in which to poll for the end of the gap. None unless the gaps are regular enough
    /// that polling for at most `budget` before and after the expected moment mostly meets it.
    pub fn due(&self, now: u64, budget: u64) -> Option<Range<u64>> {
        let gaps = &self.gaps[usize::from(self.after.0)];
        let Lengths { mean, deviation, learned } = gaps.lengths;
        if learned < Lengths::ENOUGH || deviation >= budget {
            return None;
        }
        let around = budget.min((4 * deviation).saturating_add(gaps.inexact)).max(budget / NARROW);
        let periods = if gaps.may_skip(budget) { PERIODS_MAX } else { 1 };
        let likely = (1..=periods).map(|n| self.since.saturating_add(n.saturating_mul(mean)));
        let due = likely.map(|likely| likely.saturating_sub(around)..likely.saturating_add(around));
        due.into_iter().find(|due| now < due.end)
    }
}

/// Number of periods in a row for which the worker polls without a packet. A gap of up to this many periods still
/// counts as a measurement of the period.
const PERIODS_MAX: u64 = 4;
/// Shortest polling before and after the expected moment, as a fraction of the budget: one in this many.
const NARROW: u64 = 8;
/// Shortest period, in budgets, for which skipped periods are looked for. Gaps without a period are then a quarter of
/// it off on average, which is twice the budget, so they are not polled for.
const SPARSE: u64 = 8;
/// Number of gaps in a row shorter than the period after which the period is learned from the start.
const SHORT_MAX: u8 = 3;

/// Idle gaps of one or several periods each: a packet was lost, or its sender had nothing to send.
#[derive(Clone, Copy, Debug, Default)]
struct Gaps {
    /// Of one period.
    lengths: Lengths,
    /// Number of gaps shorter than the period, since the last one that matched it.
    short: u8,
    /// Measuring error of the last gap, whose end the worker slept through. If all gaps had the same error, their
    /// deviation would not show it.
    inexact: u64,
}

impl Gaps {
    const fn may_skip(&self, budget: u64) -> bool {
        self.lengths.mean >= SPARSE.saturating_mul(budget)
    }

    /// A gap lasted `length`.
    fn learn(&mut self, length: u64, budget: u64) {
        let mean = self.lengths.mean;
        let is_period = |length: u64| length.abs_diff(mean) < mean / 8;
        if is_period(length) {
            self.short = 0;
        } else if length < mean {
            self.short += 1;
            if self.short == SHORT_MAX {
                *self = Self::default();
            }
        }
        let skipped = if self.may_skip(budget) { PERIODS_MAX - 1 } else { 0 };
        // Only a whole number of periods confirms the period: the traffic may have changed to another one.
        let one = (0..=skipped)
            .filter_map(|n| length.checked_sub(n.saturating_mul(mean)))
            .find(|&one| is_period(one));
        self.lengths.learn(one.unwrap_or(length));
    }
}

/// Mean and mean deviation of a length that is measured again and again, as RFC 6298 (section 2) does it for round trip
/// times. Ticks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lengths {
    mean: u64,
    deviation: u64,
    learned: u32,
}

impl Lengths {
    /// Measurements needed before there is a forecast.
    const ENOUGH: u32 = 4;

    /// One more measurement.
    pub fn learn(&mut self, length: u64) {
        let error = length.abs_diff(self.mean);
        if self.learned == 0 {
            (self.mean, self.deviation) = (length, length / 2);
        } else {
            // One outlier must not undo what many measurements have shown: it counts as four deviations at most. A
            // period that really changes is followed all the same, because each outlier almost doubles the deviation.
            let error = error.min(self.deviation.saturating_mul(4).saturating_add(self.mean / 64));
            self.deviation = self.deviation - self.deviation / 4 + error / 4;
            let step = error / 8;
            self.mean =
                if length < self.mean { self.mean - step } else { self.mean.saturating_add(step) };
        }
        self.learned = self.learned.saturating_add(1);
    }

    /// The usual length, once there are enough measurements.
    pub fn usual(&self) -> Option<u64> {
        (self.learned >= Self::ENOUGH).then_some(self.mean)
    }

    /// An upper bound that is rarely exceeded, once there are enough measurements.
    pub fn most(&self) -> Option<u64> {
        (self.learned >= Self::ENOUGH)
            .then_some(self.mean.saturating_add(self.deviation.saturating_mul(4)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: u64 = 200;
    const RECEIVED: Worked = Worked::new(true, false);
    const TRANSMITTED: Worked = Worked::new(false, true);

    /// A pair that receives after each of these gaps: for each gap, whether the worker was awake at its end.
    fn awake(gaps: impl IntoIterator<Item = u64>) -> Vec<bool> {
        let mut forecast = Forecast::default();
        let mut now = 1_000_000;
        gaps.into_iter()
            .map(|gap| {
                forecast.begin(RECEIVED, now);
                now += gap;
                let awake = is_awake(&forecast, now);
                forecast.learn(now, 0, BUDGET);
                awake
            })
            .collect()
    }

    /// Whether the worker polls at `moment`.
    fn is_awake(forecast: &Forecast, moment: u64) -> bool {
        forecast.due(moment, BUDGET).is_some_and(|due| due.contains(&moment))
    }

    fn share(awake: &[bool]) -> f64 {
        awake.iter().filter(|&&it| it).count() as f64 / awake.len() as f64
    }

    /// Evenly spread over 0 .. `below`, the same each run.
    fn noise(below: u64) -> impl Iterator<Item = u64> {
        let mut state = 1_u64;
        std::iter::repeat_with(move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        })
    }

    #[test]
    fn a_period_with_jitter_is_met() {
        for (jitter, least) in [(1, 1.0), (100, 0.98), (300, 0.95), (600, 0.5)] {
            let awake = awake(noise(jitter).map(|extra| 3000 + extra).take(1000));
            assert!(share(&awake[50..]) >= least, "jitter {jitter}: {}", share(&awake[50..]));
        }
    }

    #[test]
    fn irregular_gaps_are_slept_through() {
        let mut forecast = Forecast::default();
        let mut polled = 0;
        for gap in noise(20_000).take(1000) {
            forecast.begin(TRANSMITTED, 0);
            polled += usize::from(forecast.due(0, BUDGET).is_some());
            forecast.learn(200 + gap, 0, BUDGET);
        }
        assert!(polled < 10, "{polled} of 1000");
    }

    #[test]
    fn one_late_packet_does_not_undo_the_forecast() {
        let periodic = |late| std::iter::repeat_n(3000, 50).chain([late]).chain([3000; 20]);
        for late in [300, 5000, 3_000_000] {
            let awake = awake(periodic(late));
            assert!(awake[49] && !awake[50], "{late}");
            assert!(share(&awake[51..]) > 0.9, "{late}: {:?}", &awake[51..]);
        }
    }

    #[test]
    fn a_new_period_is_learned() {
        for next in [600, 1000, 2900, 50_000] {
            let awake = awake([3000; 100].into_iter().chain([next; 200]));
            assert!(share(&awake[240..]) >= 1.0, "{next}: {:?}", &awake[240..]);
        }
    }

    #[test]
    fn skipped_periods_are_met() {
        for (rare, jitter) in [(2, 1), (2, 100), (3, 100), (10, 100)] {
            let periods = noise(rare * 3).map(|it| if it < 3 { 2 + it } else { 1 });
            let gaps = periods.zip(noise(jitter)).map(|(periods, extra)| periods * 3000 + extra);
            let awake = awake(gaps.take(1000));
            assert!(
                share(&awake[100..]) >= 0.95,
                "1 in {rare}, {jitter}: {}",
                share(&awake[100..])
            );
        }
    }

    #[test]
    fn a_period_is_met_though_it_was_always_measured_too_early_or_too_late() {
        for off in [-60, 60] {
            let mut forecast = Forecast::default();
            for n in 0..50 {
                forecast.begin(RECEIVED, 0);
                let is_met = is_awake(&forecast, 3000);
                assert!(is_met || n < 20, "off by {off}");
                let (length, inexact) = if is_met { (3000, 0) } else { (3000 + off, 60) };
                forecast.learn(u64::try_from(length).unwrap(), inexact, BUDGET);
            }
        }
    }

    #[test]
    fn a_sender_that_is_gone_is_polled_for_a_few_periods_only() {
        let mut forecast = Forecast::default();
        (0..50).for_each(|_| {
            forecast.begin(RECEIVED, 0);
            forecast.learn(3000, 0, BUDGET);
        });
        assert!(is_awake(&forecast, PERIODS_MAX * 3000));
        assert_eq!(forecast.due(PERIODS_MAX * 3000 + BUDGET, BUDGET), None);
    }

    #[test]
    fn a_period_after_sustained_load_is_learned() {
        for load in [250, 300, 900, 1700, 2500] {
            let awake = awake(noise(load).map(|gap| 200 + gap).take(500).chain([3000; 200]));
            assert!(share(&awake[560..]) >= 0.99, "{load}: {:?}", &awake[560..]);
        }
    }

    #[test]
    fn request_and_response_are_learned_separately() {
        let mut forecast = Forecast::default();
        let mut now = 0;
        for _ in 0..50 {
            for (worked, gap) in [(RECEIVED, 300), (TRANSMITTED, 2700)] {
                forecast.begin(worked, now);
                now += gap;
                forecast.learn(now, 0, BUDGET);
            }
        }
        forecast.begin(RECEIVED, 0);
        assert!(is_awake(&forecast, 300));
        forecast.begin(TRANSMITTED, 0);
        assert!(is_awake(&forecast, 2700));
    }
}
