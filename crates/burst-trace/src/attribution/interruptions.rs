//! Which interruptions fell into which time.
//!
//! Another writer than the worker stores them, a little later than the bursts they fell into. Nothing joins them but time: a
//! worker's interruption belongs to a stage of a burst as far as it lies between the stage's boundaries.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::interruption::{Interruption, InterruptionCause, Subject};
use crate::record::Record;
use crate::source::Source;

/// Most interruptions of one subject that are kept. Beyond that, the shorter half is left out.
const KEPT_MAX: usize = 1 << 20;

/// Most interruptions that are considered for one time: the latest ones.
const CANDIDATES_MAX: usize = 1024;

/// The interruptions of some time, to be asked which fell into a burst's stages.
#[derive(Clone, Debug, Default)]
pub struct Interruptions {
    of: BTreeMap<Subject, Series>,
}

/// Those of one subject, in the order of their beginnings.
#[derive(Clone, Debug, Default)]
struct Series {
    all: Vec<Interruption>,
    /// The latest end of each and all before it, ticks: it never falls.
    latest: Vec<u64>,
    /// Shorter ones are left out, ticks.
    shortest: u64,
}

impl Interruptions {
    /// Those of a recorder or recording.
    #[must_use]
    pub fn read(source: &Source) -> Self {
        let mut all = Self::default();
        source.read(|record| {
            if let Record::Interruption(interruption) = record {
                all.of.entry(interruption.subject).or_default().gather(*interruption);
            }
        });
        all.of.values_mut().for_each(Series::sort);
        all.of.retain(|_, series| !series.all.is_empty());
        all
    }

    /// Adds one, in any order.
    pub fn add(&mut self, interruption: &Interruption) {
        self.of.entry(interruption.subject).or_default().add(*interruption);
    }

    /// Forgets those that ended before `until`, ticks.
    pub fn forget_before(&mut self, until: u64) {
        for series in self.of.values_mut() {
            series.all.retain(|it| it.end >= until);
            series.measure_from(0);
        }
        self.of.retain(|_, series| !series.all.is_empty());
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// All, one subject after the other, in the order of their beginnings.
    pub fn iter(&self) -> impl Iterator<Item = &Interruption> {
        self.of.values().flat_map(|series| &series.all)
    }

    /// Those of `subject` that overlap the time from `from` to `to`, ticks, in the order of their beginnings. A debug message
    /// ([`InterruptionCause::Printk`]) has no length, and belongs to the time that it is in.
    pub fn during(
        &self,
        subject: Subject,
        from: u64,
        to: u64,
    ) -> impl Iterator<Item = &Interruption> {
        let of = self.of.get(&subject).map(|series| series.overlapping(from, to));
        of.unwrap_or_default().iter().filter(move |it| {
            it.start < to && it.end > from
                || it.cause == InterruptionCause::Printk && (from..=to).contains(&it.start)
        })
    }

    /// How long, between `from` and `to`, the thread did not run: the union of all, ticks. A front end has several threads;
    /// then it is the time in which any of them did not run.
    #[must_use]
    pub fn not_running(&self, subject: Subject, from: u64, to: u64) -> u64 {
        let (mut sum, mut until) = (0, from);
        for it in self.during(subject, from, to) {
            sum += it.within(until, to);
            until = until.max(it.end);
        }
        sum.min(to.saturating_sub(from))
    }
}

impl Series {
    /// Adds one at its place.
    fn add(&mut self, interruption: Interruption) {
        if !self.is_wanted(&interruption) {
            return;
        }
        let at = self.all.partition_point(|it| it.start <= interruption.start);
        self.all.insert(at, interruption);
        self.measure_from(at);
        if self.all.len() > KEPT_MAX {
            self.shorten();
            self.sort();
        }
    }

    /// Adds one at the end. A file may have them in any order, so places are found for all at once, by [`sort`](Self::sort).
    fn gather(&mut self, interruption: Interruption) {
        if self.is_wanted(&interruption) {
            self.all.push(interruption);
            if self.all.len() > KEPT_MAX {
                self.shorten();
            }
        }
    }

    const fn is_wanted(&self, interruption: &Interruption) -> bool {
        interruption.total() >= self.shortest && interruption.end >= interruption.start
    }

    fn sort(&mut self) {
        self.all.sort_by_key(|it| it.start);
        self.measure_from(0);
    }

    /// Leaves out the shorter half. The rest has no order.
    fn shorten(&mut self) {
        self.all.select_nth_unstable_by_key(KEPT_MAX / 2, |it| Reverse(it.total()));
        self.all.truncate(KEPT_MAX / 2);
        let longer = self.all.iter().map(Interruption::total);
        self.shortest = longer.min().unwrap_or(self.shortest);
    }

    /// Renews `latest` from the index `at` on. Interruptions come nearly in order, so that is short.
    fn measure_from(&mut self, at: usize) {
        self.latest.truncate(at);
        let mut latest = self.latest.last().copied().unwrap_or(0);
        for it in &self.all[at..] {
            latest = latest.max(it.end);
            self.latest.push(latest);
        }
    }

    /// A part that has all that overlap this time, but for the earliest of very many.
    fn overlapping(&self, from: u64, to: u64) -> &[Interruption] {
        let end = self.all.partition_point(|it| it.start <= to);
        let begin = self.latest.partition_point(|latest| *latest < from).min(end);
        &self.all[begin.max(end.saturating_sub(CANDIDATES_MAX))..end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interruption::Culprit;

    const WORKER: Subject = Subject::Worker(0);

    fn interruption(subject: Subject, start: u64, end: u64) -> Interruption {
        Interruption {
            start,
            end,
            subject,
            thread: 1,
            cause: InterruptionCause::Preempted,
            culprit: Culprit::default(),
            detail: 0,
            cpu: 0,
            writer: 1,
        }
    }

    fn starts(all: &Interruptions, from: u64, to: u64) -> Vec<u64> {
        all.during(WORKER, from, to).map(|it| it.start).collect()
    }

    #[test]
    fn those_that_overlap_a_time_are_found_whatever_their_order() {
        let mut all = Interruptions::default();
        for (start, end) in [(500, 510), (100, 900), (300, 310), (950, 960), (305, 308)] {
            all.add(&interruption(WORKER, start, end));
        }
        all.add(&interruption(Subject::Worker(1), 0, 1000));
        assert_eq!(starts(&all, 0, 100), []);
        assert_eq!(starts(&all, 0, 101), [100]);
        assert_eq!(starts(&all, 306, 505), [100, 300, 305, 500]);
        assert_eq!(starts(&all, 899, 950), [100]);
        assert_eq!(starts(&all, 900, 951), [950]);
        // Each instant counts once.
        assert_eq!(all.not_running(WORKER, 50, 200), 100);
        assert_eq!(all.not_running(WORKER, 890, 955), 10 + 5);
        assert_eq!(all.not_running(Subject::FrontEnd, 0, 1000), 0);
        assert_eq!(all.not_running(WORKER, 20, 10), 0);
    }

    #[test]
    fn stolen_time_counts_up_to_what_was_stolen_and_a_message_has_no_length() {
        let mut all = Interruptions::default();
        let stolen = Interruption {
            cause: InterruptionCause::Hypervisor,
            detail: 30,
            ..interruption(WORKER, 100, 200)
        };
        all.add(&stolen);
        all.add(&Interruption {
            cause: InterruptionCause::Printk,
            ..interruption(WORKER, 150, 150)
        });
        assert_eq!(all.not_running(WORKER, 110, 190), 30);
        assert_eq!(starts(&all, 150, 160), [100, 150]);
        assert_eq!(starts(&all, 151, 160), [100]);
    }

    #[test]
    fn old_ones_are_forgotten() {
        let mut all = Interruptions::default();
        (0..10).for_each(|n| all.add(&interruption(WORKER, n * 10, n * 10 + 5)));
        all.forget_before(50);
        assert_eq!(starts(&all, 0, 1000), [50, 60, 70, 80, 90]);
        all.forget_before(u64::MAX);
        assert!(all.is_empty());
    }

    #[test]
    fn of_too_many_the_shortest_are_left_out() {
        let mut all = Interruptions::default();
        for n in 0..=KEPT_MAX as u64 {
            all.add(&interruption(WORKER, n * 10, n * 10 + 1 + n % 2 * 8));
        }
        assert!(all.iter().count() <= KEPT_MAX);
        assert!(all.iter().all(|it| it.total() == 9));
    }

    #[test]
    fn very_many_in_any_order_and_of_any_length_take_little_time() {
        let count = KEPT_MAX as u64 + 1;
        let mut backwards = Series::default();
        (0..count).rev().for_each(|n| backwards.gather(interruption(WORKER, n, n + 5)));
        let mut longest = Series::default();
        (0..count).for_each(|_| longest.gather(interruption(WORKER, 0, u64::MAX)));
        for mut series in [backwards, longest] {
            series.sort();
            assert_eq!(series.all.len(), KEPT_MAX / 2);
            assert!(series.all.is_sorted_by_key(|it| it.start));
        }
    }

    #[test]
    fn any_numbers_are_borne() {
        let mut all = Interruptions::default();
        for (start, end) in [(0, u64::MAX), (u64::MAX, 0), (u64::MAX, u64::MAX), (0, 0)] {
            all.add(&interruption(WORKER, start, end));
        }
        assert_eq!(all.not_running(WORKER, 0, u64::MAX), u64::MAX);
        assert_eq!(all.not_running(WORKER, 5, 9), 4);
    }
}
