//! Which cause took most of the time of some bursts.

use std::collections::BTreeMap;

use burst_trace::{BurstTimes, Interruption, InterruptionCause, Interruptions, Subject};

/// Most kinds that are kept. Further ones are left out, so that a recording with very many of them takes little memory.
const KINDS_MAX: usize = 256;

/// The time that each cause and culprit took from bursts.
#[derive(Clone, Debug, Default)]
pub struct Blame {
    kinds: BTreeMap<Kind, Blamed>,
    /// The time of all bursts, for each of their packets, ticks.
    whole: u128,
}

/// Interruptions of one cause, by one culprit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    subject: Subject,
    cause: InterruptionCause,
    /// The culprit's process, or the number of the interrupt, softirq or system call.
    who: u32,
}

/// What one cause and culprit took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blamed {
    /// The interruption that took most of a burst's time.
    pub longest: Interruption,
    /// Its time within that burst, ticks.
    longest_ticks: u64,
    /// The time of all, for each packet of a burst, ticks.
    pub ticks: u128,
}

impl Blame {
    /// Adds those of the `interruptions` that the burst's worker had between the burst's first boundary and its last.
    pub fn add(&mut self, burst: &BurstTimes, packets: u16, interruptions: &Interruptions) {
        let subject = Subject::Worker(burst.worker.into());
        let total = u128::from(burst.last.saturating_sub(burst.first));
        self.whole = self.whole.saturating_add(total * u128::from(packets));
        for interruption in interruptions.during(subject, burst.first, burst.last) {
            let within = interruption.within(burst.first, burst.last);
            let ticks = u128::from(within) * u128::from(packets);
            let kind = Kind::of(interruption);
            if self.kinds.len() >= KINDS_MAX && !self.kinds.contains_key(&kind) {
                continue;
            }
            let none = Blamed { longest: *interruption, longest_ticks: within, ticks: 0 };
            let blamed = self.kinds.entry(kind).or_insert(none);
            blamed.ticks = blamed.ticks.saturating_add(ticks);
            if within > blamed.longest_ticks {
                (blamed.longest, blamed.longest_ticks) = (*interruption, within);
            }
        }
    }

    /// What took most time; `None` without any interruption.
    #[must_use]
    pub fn most(&self) -> Option<&Blamed> {
        self.kinds.values().max_by_key(|blamed| blamed.ticks)
    }

    /// Which part of the time of all bursts it took: from 0 to 1, or a little more where several overlap.
    #[must_use]
    pub fn share(&self, blamed: &Blamed) -> f64 {
        blamed.ticks as f64 / self.whole.max(1) as f64
    }
}

impl Kind {
    fn of(interruption: &Interruption) -> Self {
        let Interruption { subject, cause, culprit, .. } = *interruption;
        let who = match cause {
            InterruptionCause::Preempted => culprit.process,
            _ => interruption.which(),
        };
        Self { subject, cause, who }
    }
}

#[cfg(test)]
mod tests {
    use burst_trace::fixture::{culprit, preempted};

    use super::*;

    /// A preemption of worker 0 by this process.
    fn preempted_by(process: u32, start: u64, end: u64) -> Interruption {
        Interruption { culprit: culprit("hog", process), ..preempted(start, end) }
    }

    /// A burst of worker 0 between these times.
    fn burst(first: u64, last: u64) -> BurstTimes {
        BurstTimes {
            first,
            last,
            stages: [0; burst_trace::stage::STAGES_MAX],
            ring: 1,
            worker: 0,
            is_polled: false,
            wakeup: None,
        }
    }

    #[test]
    fn short_interruptions_of_one_culprit_outweigh_a_longer_one_of_another() {
        let mut interruptions = Interruptions::default();
        for it in [preempted_by(7, 100, 130), preempted_by(8, 140, 160), preempted_by(8, 180, 205)]
        {
            interruptions.add(&it);
        }
        let mut blame = Blame::default();
        assert_eq!(blame.most(), None);
        blame.add(&burst(90, 200), 2, &interruptions);
        let most = blame.most().unwrap();
        // 20 and 20 within the burst, for two packets.
        assert_eq!((most.longest.culprit.process, most.ticks), (8, 80));
        assert!((blame.share(most) - 80.0 / 220.0).abs() < 1e-9);
    }

    #[test]
    fn any_numbers_are_bounded() {
        let mut interruptions = Interruptions::default();
        for process in 0..2 * KINDS_MAX as u32 {
            interruptions.add(&preempted_by(process, 0, u64::MAX));
        }
        let mut blame = Blame::default();
        for _ in 0..3 {
            blame.add(&burst(0, u64::MAX), u16::MAX, &interruptions);
        }
        assert_eq!(blame.kinds.len(), KINDS_MAX);
        assert_eq!(blame.most().unwrap().ticks, 3 * u128::from(u64::MAX) * u128::from(u16::MAX));
    }
}
