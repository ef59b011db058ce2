//! Interruptions, added up by whom they held up and why.

use std::cmp::Reverse;
use std::collections::HashMap;

use burst_trace::{Culprit, Interruption, InterruptionCause, Subject};
use serde::Serialize;

use crate::causes::in_short;
use crate::figures::TickRate;

/// Most rows of workers, of the front end, and of the far end: what happens between bursts hides nothing that happens in one.
const ROWS_MAX: usize = 10;
/// Most kinds of interruptions that are kept apart. Those of further culprits are added up by their cause.
const KINDS_MAX: usize = 1 << 12;

/// All interruptions of a worker, or of the threads of another process, for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InterruptionRow {
    /// Whose threads did not run: `worker`, `front-end` or `far-end`.
    pub subject: &'static str,
    /// The worker's number, if it was a worker.
    pub worker: Option<u32>,
    /// The cause's name.
    pub cause: &'static str,
    /// Who or what was responsible, if it has a name.
    pub culprit: Option<NamedCulprit>,
    /// Number of interruptions.
    pub count: u64,
    /// Their sum, ns. Those of several threads at the same time count for each.
    pub total_ns: u64,
    /// The longest, ns.
    pub longest_ns: u64,
    /// The cause in words: `preempted by hog (fifo 50)`.
    pub words: String,
}

/// A thread or an interrupt, as it is named in reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamedCulprit {
    /// The name of the thread or interrupt.
    pub name: String,
    /// Scheduling policy and priority, if it is a thread.
    pub class: Option<String>,
}

impl InterruptionRow {
    /// Whose threads did not run: `worker 0`, `front end`.
    #[must_use]
    pub fn who(&self) -> String {
        match self.worker {
            Some(number) => format!("worker {number}"),
            None => self.subject.replace('-', " "),
        }
    }
}

impl NamedCulprit {
    /// The culprit's name; `None` if it has none.
    #[must_use]
    pub fn of(culprit: &Culprit) -> Option<Self> {
        let name = culprit.name();
        (!name.is_empty()).then(|| Self { name, class: class(culprit) })
    }
}

/// The culprit's scheduling policy and priority, if it is a thread.
#[must_use]
pub fn class(culprit: &Culprit) -> Option<String> {
    (culprit.thread != 0).then(|| culprit.class())
}

/// A short name: the culprit's, and the cause: `hog (preempted)`.
#[must_use]
pub fn short(interruption: &Interruption) -> String {
    let cause = interruption.cause.name();
    match interruption.culprit.name().as_str() {
        "" => cause.into(),
        name => format!("{name} ({cause})"),
    }
}

/// Interruptions, added up by whom they held up, why, and by which culprit.
#[derive(Debug, Default)]
pub struct InterruptionSums {
    kinds: HashMap<Kind, Sum>,
}

/// Interruptions that are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    subject: Subject,
    cause: InterruptionCause,
    /// Without its numbers: short-lived processes of one name are one culprit.
    culprit: Culprit,
    /// 0 where it is a time.
    detail: u32,
}

#[derive(Clone, Copy, Debug)]
struct Sum {
    count: u64,
    ticks: u64,
    longest: u64,
    /// One of them, for its words.
    example: Interruption,
}

impl Kind {
    fn of(interruption: &Interruption) -> Self {
        let &Interruption { subject, cause, culprit, .. } = interruption;
        let culprit = Culprit { process: 0, thread: 0, ..culprit };
        Self { subject, cause, culprit, detail: interruption.which() }
    }
}

impl InterruptionSums {
    /// Adds an interruption.
    pub fn add(&mut self, interruption: &Interruption) {
        let mut kind = Kind::of(interruption);
        let mut example = *interruption;
        if self.kinds.len() >= KINDS_MAX && !self.kinds.contains_key(&kind) {
            kind = Kind { culprit: Culprit::default(), detail: 0, ..kind };
            example = Interruption { culprit: kind.culprit, detail: 0, ..example };
        }
        let none = Sum { count: 0, ticks: 0, longest: 0, example };
        let sum = self.kinds.entry(kind).or_insert(none);
        let ticks = interruption.total();
        sum.count += 1;
        sum.ticks = sum.ticks.saturating_add(ticks);
        sum.longest = sum.longest.max(ticks);
    }

    /// Those that took most time: the largest first, at most ten of each: workers, front end and far end.
    #[must_use]
    pub fn rows(&self, rate: TickRate) -> Vec<InterruptionRow> {
        let mut kinds: Vec<_> = self.kinds.iter().collect();
        kinds.sort_unstable_by_key(|(kind, sum)| {
            let Kind { subject, cause, culprit, detail } = **kind;
            (Reverse((sum.ticks, sum.count)), subject, cause, culprit.command, detail)
        });
        let row = |(kind, sum): (&Kind, &Sum)| InterruptionRow {
            subject: kind.subject.name(),
            worker: match kind.subject {
                Subject::Worker(number) => Some(number),
                Subject::FrontEnd | Subject::FarEnd => None,
            },
            cause: kind.cause.name(),
            culprit: NamedCulprit::of(&sum.example.culprit),
            count: sum.count,
            total_ns: rate.ns(sum.ticks),
            longest_ns: rate.ns(sum.longest),
            words: in_short(&sum.example),
        };
        let mut shown = HashMap::new();
        let is_shown = |(kind, _): &(&Kind, &Sum)| {
            let count = shown.entry(kind.subject.name()).or_insert(0);
            *count += 1;
            *count <= ROWS_MAX
        };
        kinds.into_iter().filter(is_shown).map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use burst_trace::fixture::{culprit, preempted};

    use super::*;

    fn interruption(cause: InterruptionCause, name: &str, detail: u32) -> Interruption {
        let process = u32::from(cause == InterruptionCause::Preempted);
        Interruption { cause, culprit: culprit(name, process), detail, ..preempted(100, 200) }
    }

    #[test]
    fn a_short_name_is_that_of_culprit_and_cause() {
        assert_eq!(short(&interruption(InterruptionCause::Preempted, "hog", 0)), "hog (preempted)");
        assert_eq!(short(&interruption(InterruptionCause::Throttled, "", 0)), "throttled");
    }

    #[test]
    fn interruptions_of_one_name_are_one_row_and_the_longest_rows_come_first() {
        let mut sums = InterruptionSums::default();
        let hog = interruption(InterruptionCause::Preempted, "hog", 0);
        let other = Culprit { process: 9, thread: 10, ..hog.culprit };
        sums.add(&interruption(InterruptionCause::PageFault, "", 0));
        sums.add(&hog);
        sums.add(&Interruption { end: 400, culprit: other, ..hog });
        // Stolen time is no part of the kind.
        for stolen in [20, 30] {
            sums.add(&interruption(InterruptionCause::Hypervisor, "", stolen));
        }
        let rows = sums.rows(TickRate::new(1_000_000_000));
        let found: Vec<_> =
            rows.iter().map(|row| (row.cause, row.count, row.total_ns, row.longest_ns)).collect();
        let expected =
            [("preempted", 2, 400, 300), ("page-fault", 1, 100, 100), ("hypervisor", 2, 50, 30)];
        assert_eq!(found, expected);
        assert_eq!(rows[0].who(), "worker 0");
        let name = NamedCulprit { name: "hog".into(), class: Some("fifo 50".into()) };
        assert_eq!((&rows[0].culprit, &rows[1].culprit), (&Some(name), &None));
    }

    #[test]
    fn any_number_of_culprits_takes_little_memory() {
        let mut sums = InterruptionSums::default();
        for number in 0..2 * KINDS_MAX as u32 {
            sums.add(&interruption(InterruptionCause::Interrupt, "", number));
        }
        assert_eq!(sums.kinds.len(), KINDS_MAX + 1);
        let last = interruption(InterruptionCause::Throttled, "", 0);
        sums.add(&Interruption { end: 101, subject: Subject::FrontEnd, ..last });
        let rows = sums.rows(TickRate::new(1_000_000_000));
        assert_eq!((rows.len(), rows[0].count), (ROWS_MAX + 1, KINDS_MAX as u64));
        assert_eq!(rows[ROWS_MAX].who(), "front end");
    }
}
