//! When a queue pair's next work is due, learned from the pauses before.
//!
//! Traffic that cares for latency often keeps a beat: a control cycle, a stream's frame interval, questions and
//! their answers. A worker that sleeps through the pauses is woken up for every packet; one that polls
//! through them burns a CPU. With a forecast it sleeps until shortly before the next packet is due, and
//! polls around that moment only.
//!
//! What a pause follows says how long it is: the guest answers soon after a question went in, and the next
//! question comes long after the answer. So pauses are learned apart for the directions of the work before
//! them. Pauses within the time that is polled anyway are not learned: nobody slept through them.
//!
//! A beat has gaps: a frame is lost, a sender is not scheduled in time and leaves one out. So a long pause may be several
//! beats, and when a beat passes without a packet the next one is waited for.

use std::ops::Range;

/// The directions in which a pair worked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Worked(u8);

impl Worked {
    pub const RECEIVED: Self = Self(1);
    pub const TRANSMITTED: Self = Self(2);
    const KINDS: usize = 4;

    #[inline]
    pub const fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// The forecast of one queue pair. Times and lengths in ticks.
#[derive(Debug, Default)]
pub struct Forecast {
    pauses: [Pauses; Worked::KINDS],
    after: Worked,
    since: u64,
}

impl Forecast {
    /// The pair worked, and rests since `now`.
    pub const fn rest(&mut self, worked: Worked, now: u64) {
        (self.after, self.since) = (worked, now);
    }

    /// The pair's rest is over at `now`, or by so much sooner or later. `budget` as for [`due`](Self::due).
    pub fn learn(&mut self, now: u64, inexact: u64, budget: u64) {
        if self.after != Worked::default() {
            let pauses = &mut self.pauses[usize::from(self.after.0)];
            pauses.learn(now.saturating_sub(self.since), budget);
            pauses.inexact = inexact;
        }
    }

    /// From when to when, not over at `now`, the end of the rest is worth polling for, if so much is known about it that
    /// polling no more than `budget` before and after the likely moment will mostly find it.
    pub fn due(&self, now: u64, budget: u64) -> Option<Range<u64>> {
        let pauses = &self.pauses[usize::from(self.after.0)];
        let Lengths { mean, deviation, learned } = pauses.lengths;
        if learned < Lengths::ENOUGH || deviation >= budget {
            return None;
        }
        let around =
            budget.min((4 * deviation).saturating_add(pauses.inexact)).max(budget / NARROW);
        let beats = if pauses.may_have_gaps(budget) { BEATS_MAX } else { 1 };
        let likely = (1..=beats).map(|beat| self.since.saturating_add(beat.saturating_mul(mean)));
        let due = likely.map(|likely| likely.saturating_sub(around)..likely.saturating_add(around));
        due.into_iter().find(|due| now < due.end)
    }
}

/// A beat with gaps is waited for so many times; and a pause of so many beats still tells of the beat.
const BEATS_MAX: u64 = 4;
/// However well a beat is kept, it is waited for from this part of the budget before its moment, and until as much after it.
const NARROW: u64 = 8;
/// Gaps are looked for where the beat is so many budgets long. Pauses without any beat are then found to be a quarter of
/// one off on average, which is twice the budget: too far to be polled for.
const SPARSE: u64 = 8;
/// After so many pauses that are shorter than the beat, with none that keeps it, another one is learned from the start.
const SHORT_MAX: u8 = 3;

/// Pauses, which may be of several beats: a packet was lost, or its sender had nothing to say.
#[derive(Clone, Copy, Debug, Default)]
struct Pauses {
    /// Of one beat.
    lengths: Lengths,
    /// How many were shorter since one kept the beat.
    short: u8,
    /// How far off the last one may be: nobody was awake for its end. All of them being off by as much, and always met
    /// too early or too late, would not show in their deviation.
    inexact: u64,
}

impl Pauses {
    const fn may_have_gaps(&self, budget: u64) -> bool {
        self.lengths.mean >= SPARSE.saturating_mul(budget)
    }

    /// One took `length`.
    fn learn(&mut self, length: u64, budget: u64) {
        let mean = self.lengths.mean;
        let keeps = |length: u64| length.abs_diff(mean) < mean / 8;
        if keeps(length) {
            self.short = 0;
        } else if length < mean {
            self.short += 1;
            if self.short == SHORT_MAX {
                *self = Self::default();
            }
        }
        let gaps = if self.may_have_gaps(budget) { BEATS_MAX - 1 } else { 0 };
        // Only a whole number of beats tells of the beat: what is known may be another one, which is over.
        let one = (0..=gaps)
            .filter_map(|gap| length.checked_sub(gap.saturating_mul(mean)))
            .find(|&one| keeps(one));
        self.lengths.learn(one.unwrap_or(length));
    }
}

/// How long something that happens again and again takes: mean and mean deviation, followed as RFC 6298
/// (section 2) follows a round trip. Ticks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lengths {
    mean: u64,
    deviation: u64,
    learned: u32,
}

impl Lengths {
    /// How many are learned before any is forecast.
    const ENOUGH: u32 = 4;

    /// It took `length` this time.
    pub fn learn(&mut self, length: u64) {
        let error = length.abs_diff(self.mean);
        if self.learned == 0 {
            (self.mean, self.deviation) = (length, length / 2);
        } else {
            // One that is far out must not undo what many have shown: it counts as four deviations. A beat
            // that really changes is followed all the same, for each of these almost doubles the deviation.
            let error = error.min(self.deviation.saturating_mul(4).saturating_add(self.mean / 64));
            self.deviation = self.deviation - self.deviation / 4 + error / 4;
            let step = error / 8;
            self.mean =
                if length < self.mean { self.mean - step } else { self.mean.saturating_add(step) };
        }
        self.learned = self.learned.saturating_add(1);
    }

    /// How long it takes, if so much is known.
    pub fn usual(&self) -> Option<u64> {
        (self.learned >= Self::ENOUGH).then_some(self.mean)
    }

    /// It mostly takes no longer than this, if so much is known.
    pub fn most(&self) -> Option<u64> {
        (self.learned >= Self::ENOUGH)
            .then_some(self.mean.saturating_add(self.deviation.saturating_mul(4)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: u64 = 200;

    /// A pair that receives after each of these pauses: which of the pauses ended while it was awake.
    fn awake(pauses: impl IntoIterator<Item = u64>) -> Vec<bool> {
        let mut forecast = Forecast::default();
        let mut now = 1_000_000;
        pauses
            .into_iter()
            .map(|pause| {
                forecast.rest(Worked::RECEIVED, now);
                now += pause;
                let awake = is_awake(&forecast, now);
                forecast.learn(now, 0, BUDGET);
                awake
            })
            .collect()
    }

    /// Whether one of the times that are polled holds `moment`.
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
    fn a_beat_is_met_also_when_it_jitters() {
        for (jitter, least) in [(1, 1.0), (100, 0.98), (300, 0.95), (600, 0.5)] {
            let awake = awake(noise(jitter).map(|extra| 3000 + extra).take(1000));
            assert!(share(&awake[50..]) >= least, "jitter {jitter}: {}", share(&awake[50..]));
        }
    }

    #[test]
    fn pauses_without_a_beat_are_slept_through() {
        let mut forecast = Forecast::default();
        let mut polled = 0;
        for pause in noise(20_000).take(1000) {
            forecast.rest(Worked::TRANSMITTED, 0);
            polled += usize::from(forecast.due(0, BUDGET).is_some());
            forecast.learn(200 + pause, 0, BUDGET);
        }
        assert!(polled < 10, "{polled} of 1000");
    }

    #[test]
    fn one_late_packet_does_not_lose_the_beat() {
        let beat = |late| std::iter::repeat_n(3000, 50).chain([late]).chain([3000; 20]);
        for late in [300, 5000, 3_000_000] {
            let awake = awake(beat(late));
            assert!(awake[49] && !awake[50], "{late}");
            assert!(share(&awake[51..]) > 0.9, "{late}: {:?}", &awake[51..]);
        }
    }

    #[test]
    fn another_beat_is_learned() {
        for next in [600, 1000, 2900, 50_000] {
            let awake = awake([3000; 100].into_iter().chain([next; 200]));
            assert!(share(&awake[240..]) >= 1.0, "{next}: {:?}", &awake[240..]);
        }
    }

    #[test]
    fn a_beat_with_gaps_is_met() {
        for (rare, jitter) in [(2, 1), (2, 100), (3, 100), (10, 100)] {
            let gaps = noise(rare * 3).map(|it| if it < 3 { 2 + it } else { 1 });
            let pauses = gaps.zip(noise(jitter)).map(|(beats, extra)| beats * 3000 + extra);
            let awake = awake(pauses.take(1000));
            assert!(
                share(&awake[100..]) >= 0.95,
                "1 in {rare}, {jitter}: {}",
                share(&awake[100..])
            );
        }
    }

    #[test]
    fn a_beat_is_met_though_it_was_only_seen_too_early_or_too_late() {
        for off in [-60, 60] {
            let mut forecast = Forecast::default();
            for beat in 0..50 {
                forecast.rest(Worked::RECEIVED, 0);
                let is_met = is_awake(&forecast, 3000);
                assert!(is_met || beat < 20, "off by {off}");
                let (length, inexact) = if is_met { (3000, 0) } else { (3000 + off, 60) };
                forecast.learn(u64::try_from(length).unwrap(), inexact, BUDGET);
            }
        }
    }

    #[test]
    fn who_has_gone_is_waited_for_a_few_beats_only() {
        let mut forecast = Forecast::default();
        (0..50).for_each(|_| {
            forecast.rest(Worked::RECEIVED, 0);
            forecast.learn(3000, 0, BUDGET);
        });
        assert!(is_awake(&forecast, BEATS_MAX * 3000));
        assert_eq!(forecast.due(BEATS_MAX * 3000 + BUDGET, BUDGET), None);
    }

    #[test]
    fn a_beat_behind_a_rush_is_learned() {
        for rush in [250, 300, 900, 1700, 2500] {
            let awake = awake(noise(rush).map(|pause| 200 + pause).take(500).chain([3000; 200]));
            assert!(share(&awake[560..]) >= 0.99, "{rush}: {:?}", &awake[560..]);
        }
    }

    #[test]
    fn question_and_answer_are_learned_apart() {
        let mut forecast = Forecast::default();
        let mut now = 0;
        for _ in 0..50 {
            for (worked, pause) in [(Worked::RECEIVED, 300), (Worked::TRANSMITTED, 2700)] {
                forecast.rest(worked, now);
                now += pause;
                forecast.learn(now, 0, BUDGET);
            }
        }
        forecast.rest(Worked::RECEIVED, 0);
        assert!(is_awake(&forecast, 300));
        forecast.rest(Worked::TRANSMITTED, 0);
        assert!(is_awake(&forecast, 2700));
    }
}
