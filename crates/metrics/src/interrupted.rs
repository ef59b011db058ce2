//! The time in which threads did not run, by cause.
//!
//! A worker's interruption counts as far as a burst of this worker was under way. Bursts and interruptions come from
//! different writers, so both wait until they are old enough. Bursts of one worker may overlap: their union counts, so no
//! time counts twice. All interruptions of the front end count.

use burst_trace::{BurstRecord, Interruption, InterruptionCause, Interruptions, Subject};

/// Most bursts that wait. Beyond that, they are joined as they are.
const WAITING_MAX: usize = 1 << 20;

/// The causes that have a length.
const CAUSES: [InterruptionCause; 9] = [
    InterruptionCause::Preempted,
    InterruptionCause::Throttled,
    InterruptionCause::Stopped,
    InterruptionCause::Blocked,
    InterruptionCause::PageFault,
    InterruptionCause::Interrupt,
    InterruptionCause::Softirq,
    InterruptionCause::Hypervisor,
    InterruptionCause::KvmExit,
];

/// One guest's interruptions.
#[derive(Debug, Default)]
pub(crate) struct Interrupted {
    /// The bursts that wait, of each worker: first and last boundary, ticks.
    bursts: Vec<Worker>,
    /// Number of bursts that wait.
    waiting: usize,
    interruptions: Interruptions,
    /// Ticks, in the order of [`CAUSES`].
    workers: [u64; CAUSES.len()],
    front_end: [u64; CAUSES.len()],
}

#[derive(Debug, Default)]
struct Worker {
    bursts: Vec<(u64, u64)>,
    /// Up to here its time has been counted, ticks.
    counted: u64,
}

impl Interrupted {
    /// Adds a burst. It waits for its interruptions.
    pub(crate) fn add_burst(&mut self, burst: &BurstRecord) {
        let worker = usize::from(burst.worker);
        if worker >= self.bursts.len() {
            self.bursts.resize_with(worker + 1, Worker::default);
        }
        self.bursts[worker].bursts.push((burst.first, burst.last));
        self.waiting += 1;
        if self.waiting >= WAITING_MAX {
            self.count_before(u64::MAX);
        }
    }

    /// Adds an interruption.
    pub(crate) fn add(&mut self, interruption: &Interruption) {
        match interruption.subject {
            Subject::Worker(_) => self.interruptions.add(interruption),
            Subject::FrontEnd => {
                add(&mut self.front_end, interruption.cause, interruption.total());
            }
            Subject::FarEnd => {}
        }
    }

    /// Counts the bursts that ended before `until`, ticks, and forgets them and the interruptions that no later burst can have.
    pub(crate) fn count_before(&mut self, until: u64) {
        let Self { bursts, interruptions, workers, .. } = self;
        let mut oldest = until;
        for (number, worker) in (0..).zip(bursts) {
            let all = std::mem::take(&mut worker.bursts);
            let is_old = |it: &(u64, u64)| it.1 < until || until == u64::MAX;
            let (mut old, young) = all.into_iter().partition::<Vec<_>, _>(is_old);
            worker.bursts = young;
            oldest = worker.bursts.iter().fold(oldest, |oldest, it| oldest.min(it.0));
            old.sort_unstable();
            for (first, last) in old {
                let first = first.max(worker.counted);
                if first >= last {
                    continue;
                }
                for interruption in interruptions.during(Subject::Worker(number), first, last) {
                    add(workers, interruption.cause, interruption.within(first, last));
                }
                worker.counted = last;
            }
        }
        interruptions.forget_before(oldest);
        self.waiting = self.bursts.iter().map(|worker| worker.bursts.len()).sum();
    }

    /// The causes and subjects, with their time so far, ticks. A cause without any is 0, so that its first interruption shows
    /// as a change. Exits of KVM are there if they are measured (`sees_exits`), and only of the front end.
    pub(crate) fn times(
        &self,
        sees_exits: bool,
    ) -> impl Iterator<Item = (InterruptionCause, &'static str, u64)> {
        let has = move |&(cause, subject, _): &(InterruptionCause, &'static str, u64)| {
            let is_of_front_end = subject == Subject::FrontEnd.name();
            cause != InterruptionCause::KvmExit || sees_exits && is_of_front_end
        };
        let of = |subject: Subject, ticks: [u64; CAUSES.len()]| {
            CAUSES.into_iter().zip(ticks).map(move |(cause, ticks)| (cause, subject.name(), ticks))
        };
        of(Subject::Worker(0), self.workers)
            .chain(of(Subject::FrontEnd, self.front_end))
            .filter(has)
    }
}

fn add(ticks: &mut [u64; CAUSES.len()], of: InterruptionCause, more: u64) {
    if let Some(n) = CAUSES.iter().position(|cause| *cause == of) {
        ticks[n] = ticks[n].saturating_add(more);
    }
}

#[cfg(test)]
mod tests {
    use burst_trace::Culprit;

    use super::*;

    fn interruption(
        subject: Subject,
        cause: InterruptionCause,
        start: u64,
        end: u64,
    ) -> Interruption {
        Interruption {
            start,
            end,
            subject,
            thread: 5,
            cause,
            culprit: Culprit::default(),
            detail: 0,
            cpu: 1,
            writer: 9,
        }
    }

    fn burst(worker: u8, first: u64, last: u64) -> BurstRecord {
        BurstRecord { worker, first, last, packets: 1, ring: 1, ..BurstRecord::default() }
    }

    fn ticks(of: &Interrupted, subject: &str, cause: InterruptionCause) -> u64 {
        of.times(true).find(|it| (it.0, it.1) == (cause, subject)).unwrap().2
    }

    #[test]
    fn a_workers_interruption_counts_once_and_only_within_its_bursts() {
        use InterruptionCause::{Interrupt, Preempted};
        let mut interrupted = Interrupted::default();
        // Two bursts of one turn begin together.
        for it in [burst(0, 100, 150), burst(0, 100, 180), burst(0, 190, 220), burst(1, 0, 900)] {
            interrupted.add_burst(&it);
        }
        interrupted.add(&interruption(Subject::Worker(0), Preempted, 90, 200));
        interrupted.add(&interruption(Subject::Worker(0), Interrupt, 110, 113));
        interrupted.add(&interruption(Subject::Worker(2), Preempted, 100, 200));
        interrupted.count_before(200);
        assert_eq!(ticks(&interrupted, "worker", Preempted), 80);
        assert_eq!(ticks(&interrupted, "worker", Interrupt), 3);
        interrupted.count_before(1000);
        assert_eq!(ticks(&interrupted, "worker", Preempted), 90);
        interrupted.count_before(2000);
        assert_eq!(ticks(&interrupted, "worker", Preempted), 90, "each counts once");
    }

    #[test]
    fn all_of_the_front_end_counts_and_nothing_of_the_far_end() {
        let mut interrupted = Interrupted::default();
        for subject in [Subject::FrontEnd, Subject::FarEnd, Subject::FrontEnd] {
            interrupted.add(&interruption(subject, InterruptionCause::Throttled, 100, 107));
        }
        assert_eq!(ticks(&interrupted, "front-end", InterruptionCause::Throttled), 14);
        assert_eq!(interrupted.times(true).map(|it| it.2).sum::<u64>(), 14);
    }

    #[test]
    fn any_numbers_are_taken_and_no_more_bursts_wait_than_there_is_room_for() {
        let mut interrupted = Interrupted::default();
        let worker = Subject::Worker(0);
        for (start, end) in [(0, u64::MAX), (9, 0), (u64::MAX, u64::MAX)] {
            interrupted.add(&interruption(worker, InterruptionCause::Blocked, start, end));
        }
        for it in [burst(0, 9, 0), burst(0, 5, 25)] {
            interrupted.add_burst(&it);
        }
        interrupted.count_before(100);
        assert_eq!(ticks(&interrupted, "worker", InterruptionCause::Blocked), 20);
        for _ in 0..=WAITING_MAX {
            interrupted.add_burst(&burst(0, 0, u64::MAX));
        }
        assert_eq!(interrupted.waiting, 1);
        assert_eq!(ticks(&interrupted, "worker", InterruptionCause::Blocked), u64::MAX - 5);
    }
}
