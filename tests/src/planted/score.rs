//! How many answers are right.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::answer::Answer;
use super::kind::Kind;

/// The answer where nothing was slow.
const NOTHING: &str = "nothing";
/// The row of the recordings without a fault.
const NO_FAULT: &str = "no fault";

/// A recording, and what was said of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The fault in it.
    pub fault: Option<Kind>,
    /// How long that lasted.
    pub lasts: Duration,
    /// The cause that was named first.
    pub answer: Option<Answer>,
}

impl Outcome {
    /// Whether the answer names the fault, or no fault was there and nothing was slow.
    #[must_use]
    pub fn is_right(&self) -> bool {
        match (self.fault, &self.answer) {
            (None, None) => true,
            (Some(kind), Some(answer)) => kind.is_named_by(answer),
            _ => false,
        }
    }

    fn named(&self) -> String {
        self.answer.as_ref().map_or_else(|| NOTHING.to_owned(), Answer::to_string)
    }
}

/// All recordings.
#[derive(Clone, Debug, Default)]
pub struct Score {
    /// Each recording, in their order.
    pub outcomes: Vec<Outcome>,
    /// Number of recordings that were made again, by what had disturbed them: the hypervisor, or a program of this name.
    pub disturbed: BTreeMap<String, u64>,
    /// Faults and stretches without one of which every recording was disturbed.
    pub given_up: u64,
    /// The kinds that cannot be planted here, with the reason.
    pub left_out: Vec<(Kind, String)>,
}

/// One row of the confusion matrix.
struct Row<'s> {
    name: &'static str,
    outcomes: Vec<&'s Outcome>,
}

impl Row<'_> {
    fn right(&self) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.is_right()).count()
    }

    /// What was named first, and how often.
    fn named(&self) -> BTreeMap<String, usize> {
        let mut named = BTreeMap::new();
        for outcome in &self.outcomes {
            *named.entry(outcome.named()).or_default() += 1;
        }
        named
    }

    /// The median time of the fault in the answers that are right.
    fn found(&self) -> Option<Duration> {
        let right = self.outcomes.iter().filter(|outcome| outcome.is_right());
        let mut times: Vec<_> = right.filter_map(|it| Some(it.answer.as_ref()?.time)).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }
}

impl Score {
    fn of(&self, fault: Option<Kind>) -> Vec<&Outcome> {
        self.outcomes.iter().filter(|outcome| outcome.fault == fault).collect()
    }

    fn rows(&self) -> Vec<Row<'_>> {
        let kinds =
            Kind::all().map(|kind| Row { name: kind.name(), outcomes: self.of(Some(kind)) });
        let last = Row { name: NO_FAULT, outcomes: self.of(None) };
        kinds.chain([last]).filter(|row| !row.outcomes.is_empty()).collect()
    }

    /// Number of disturbed recordings.
    #[must_use]
    pub fn disturbed_in_all(&self) -> u64 {
        self.disturbed.values().sum()
    }

    /// Number of planted faults.
    #[must_use]
    pub fn faults(&self) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.fault.is_some()).count()
    }

    /// Number of faults whose cause was named first.
    #[must_use]
    pub fn right(&self) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.fault.is_some() && outcome.is_right()).count()
    }

    /// Share of the faults whose cause was named first.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        share(self.right(), self.faults())
    }

    /// Number of recordings without a fault for which a cause was named.
    #[must_use]
    pub fn false_alarms(&self) -> usize {
        self.of(None).iter().filter(|outcome| !outcome.is_right()).count()
    }

    /// Their share.
    #[must_use]
    pub fn false_alarm_rate(&self) -> f64 {
        share(self.false_alarms(), self.of(None).len())
    }

    /// The kinds of which less than half were named rightly: a rule is wrong there, not a single run.
    #[must_use]
    pub fn mostly_wrong(&self) -> Vec<&'static str> {
        let is_wrong = |row: &Row<'_>| 2 * row.right() < row.outcomes.len();
        self.rows().iter().filter(|row| is_wrong(row)).map(|row| row.name).collect()
    }

    /// The same recordings, judged by a report that takes the worker for the front end and the front end for the worker.
    #[must_use]
    pub fn with_subjects_swapped(&self) -> Self {
        let mut swapped = self.clone();
        for answer in swapped.outcomes.iter_mut().filter_map(|outcome| outcome.answer.as_mut()) {
            answer.subject = match answer.subject.as_str() {
                "worker" => "front-end".to_owned(),
                "front-end" => "worker".to_owned(),
                other => other.to_owned(),
            };
        }
        swapped
    }

    /// The confusion matrix, with accuracy and false alarms.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text =
            format!("{:<16} {:>6} {:>6} {:>9}  named first\n", "planted", "n", "right", "found");
        for row in self.rows() {
            let found = row.found().map_or_else(|| "-".to_owned(), milliseconds);
            let mut named: Vec<_> = row.named().into_iter().collect();
            named.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            let named: Vec<_> =
                named.iter().map(|(name, count)| format!("{name} {count}")).collect();
            let (count, right) = (row.outcomes.len(), row.right());
            let named = named.join(", ");
            let _ = writeln!(text, "{:<16} {count:>6} {right:>6} {found:>9}  {named}", row.name);
        }
        let (faults, stretches) = (self.faults(), self.of(None).len());
        let accuracy = 100.0 * self.accuracy();
        let _ =
            writeln!(text, "\naccuracy      {accuracy:.1} %: {} of {faults} faults", self.right());
        let alarms = self.false_alarms();
        let rate = 100.0 * self.false_alarm_rate();
        let _ = writeln!(
            text,
            "false alarms  {rate:.1} %: {alarms} of {stretches} recordings without a fault"
        );
        let again: Vec<_> = self.disturbed.iter().map(|(by, n)| format!("{by} {n}")).collect();
        let _ = writeln!(
            text,
            "disturbed     {} recordings, which were made again ({}); {} given up",
            self.disturbed_in_all(),
            again.join(", "),
            self.given_up
        );
        for (kind, reason) in &self.left_out {
            let _ = writeln!(text, "left out      {}: {reason}", kind.name());
        }
        text
    }

    /// The same for programs, with each answer that is wrong.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let row = |row: &Row<'_>| {
            json!({
                "planted": row.name,
                "count": row.outcomes.len(),
                "right": row.right(),
                "found_ns_median": row.found().map(|time| time.as_nanos() as u64),
                "named": row.named(),
            })
        };
        let wrong = |outcome: &Outcome| {
            let answer = outcome.answer.as_ref();
            json!({
                "planted": outcome.fault.map_or(NO_FAULT, Kind::name),
                "lasts_ms": outcome.lasts.as_millis() as u64,
                "named": outcome.named(),
                "culprit": answer.map(|answer| &answer.culprit),
                "words": answer.map(|answer| &answer.words),
            })
        };
        let is_wrong = |outcome: &&Outcome| !outcome.is_right();
        let left_out =
            |(kind, reason): &(Kind, String)| json!({"planted": kind.name(), "reason": reason});
        json!({
            "faults": self.faults(),
            "right": self.right(),
            "accuracy": self.accuracy(),
            "without_fault": self.of(None).len(),
            "false_alarms": self.false_alarms(),
            "disturbed": self.disturbed,
            "given_up": self.given_up,
            "matrix": self.rows().iter().map(row).collect::<Vec<_>>(),
            "wrong": self.outcomes.iter().filter(is_wrong).map(wrong).collect::<Vec<_>>(),
            "left_out": self.left_out.iter().map(left_out).collect::<Vec<_>>(),
        })
    }
}

fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each kind three times, named rightly, and as many recordings without a fault.
    fn all_right() -> Score {
        let mut score = Score::default();
        for (kind, ms) in Kind::all().flat_map(|kind| [10, 30, 20].map(|ms| (kind, ms))) {
            let accepted = kind.accepted()[0];
            let [subject, cause, culprit] =
                [accepted.subject, accepted.cause, accepted.culprit].map(str::to_owned);
            let time = Duration::from_millis(ms);
            let answer = Answer { subject, cause, culprit, time, words: String::new() };
            score.outcomes.push(Outcome { fault: Some(kind), lasts: time, answer: Some(answer) });
            score.outcomes.push(Outcome { fault: None, lasts: Duration::ZERO, answer: None });
        }
        score
    }

    #[test]
    fn right_answers_are_counted_and_shown() {
        let score = all_right();
        assert_eq!((score.accuracy(), score.false_alarms()), (1.0, 0));
        assert!(score.mostly_wrong().is_empty());
        let text = score.to_text();
        assert!(
            text.contains("daemon stopped        3      3   20.0 ms  worker stopped 3\n"),
            "{text}"
        );
        assert!(text.contains("accuracy      100.0 %"), "{text}");
        let json = score.to_json();
        assert_eq!(json["matrix"][0]["found_ns_median"], 20_000_000);
        assert_eq!(json["wrong"], json!([]));
    }

    #[test]
    fn a_report_that_confuses_the_subjects_or_one_kind_is_found_out() {
        let swapped = all_right().with_subjects_swapped();
        assert!(swapped.accuracy() < 0.5, "{}", swapped.to_text());
        assert!(swapped.mostly_wrong().contains(&"hog at worker"));
        let mut one_kind = all_right();
        for outcome in &mut one_kind.outcomes {
            if outcome.fault == Some(Kind::TokenBucket) {
                outcome.answer = None;
            }
        }
        assert_eq!(one_kind.mostly_wrong(), ["token bucket"]);
    }

    #[test]
    fn an_alarm_without_a_fault_is_a_false_one() {
        let mut score = all_right();
        let answer = score.outcomes[0].answer.clone();
        score.outcomes.push(Outcome { fault: None, lasts: Duration::ZERO, answer });
        assert_eq!((score.false_alarms(), score.accuracy()), (1, 1.0));
        assert_eq!(score.to_json()["wrong"][0]["planted"], NO_FAULT);
    }
}
