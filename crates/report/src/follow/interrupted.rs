//! The interruptions of a live recorder, and which of them fell into a burst.
//!
//! An interruption is stored some milliseconds after its end. Its burst has often been stored before. So interruptions are kept
//! for some seconds, and then forgotten.

use std::mem;

use burst_trace::{BurstRecord, Interruption, Interruptions, Subject};

use crate::causes::{Blame, Blamed};

/// Most interruptions that come before older ones are forgotten: memory is bounded whatever the recorder holds.
const COMING_MAX: usize = 1 << 16;

/// The latest interruptions.
#[derive(Debug, Default)]
pub struct Latest {
    coming: Interruptions,
    /// Number of interruptions in `coming`.
    count: usize,
    before: Interruptions,
}

/// The time in which a burst's worker did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted {
    /// Its time between the burst's first boundary and its last, ticks.
    pub not_running: u64,
    /// What took most of it; `None` if nothing is known.
    pub most: Option<Blamed>,
}

impl Latest {
    /// Adds an interruption.
    pub fn add(&mut self, interruption: &Interruption) {
        if self.count >= COMING_MAX {
            self.age();
        }
        self.coming.add(interruption);
        self.count += 1;
    }

    /// Forgets those that came before the last call.
    pub fn age(&mut self) {
        self.before = mem::take(&mut self.coming);
        self.count = 0;
    }

    /// Those of `burst`, as far as they have come by now.
    #[must_use]
    pub fn of(&self, burst: &BurstRecord) -> Interrupted {
        let times = burst.times();
        let subject = Subject::Worker(times.worker.into());
        let mut blame = Blame::default();
        let mut not_running = 0_u64;
        for interruptions in [&self.before, &self.coming] {
            blame.add(&times, 1, interruptions);
            let ticks = interruptions.not_running(subject, times.first, times.last);
            not_running = not_running.saturating_add(ticks);
        }
        Interrupted { not_running: not_running.min(burst.total()), most: blame.most().copied() }
    }
}

#[cfg(test)]
mod tests {
    use burst_trace::fixture::preempted;

    use super::*;

    fn burst(first: u64, last: u64) -> BurstRecord {
        BurstRecord { first, last, packets: 1, ring: 1, ..BurstRecord::default() }
    }

    #[test]
    fn a_burst_has_those_that_came_before_and_after_it_until_they_are_forgotten() {
        let mut latest = Latest::default();
        latest.add(&preempted(100, 130));
        latest.age();
        latest.add(&preempted(150, 250));
        let of = |latest: &Latest, first, last| {
            let Interrupted { not_running, most } = latest.of(&burst(first, last));
            (not_running, most.map(|most| most.ticks))
        };
        assert_eq!(of(&latest, 110, 200), (70, Some(70)));
        assert_eq!(of(&latest, 130, 150), (0, None));
        latest.age();
        assert_eq!(of(&latest, 110, 200), (50, Some(50)));
        latest.age();
        assert_eq!(of(&latest, 110, 200), (0, None));
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        let mut latest = Latest::default();
        for n in 0..3 * COMING_MAX as u64 {
            latest.add(&preempted(n, u64::MAX));
        }
        assert_eq!(latest.count, COMING_MAX);
        assert_eq!(latest.of(&burst(0, COMING_MAX as u64)).not_running, 0, "forgotten");
        assert_eq!(latest.of(&burst(u64::MAX, u64::MAX)).not_running, 0);
    }
}
