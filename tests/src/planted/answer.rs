//! The answer of `ringscope why`.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use crate::qemu::Failure;

/// Fewest bursts of a recording that says something: its traffic ran.
const BURSTS_MIN: u64 = 50;

/// The cause that `ringscope why` names first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whose it is: `worker`, `front-end`, `far-end`, `guest`, `host`.
    pub subject: String,
    /// What happened, as in `preempted`.
    pub cause: String,
    /// The program or the interrupt that did it; empty if none is named.
    pub culprit: String,
    /// The time that it cost.
    pub time: Duration,
    /// The sentence about it.
    pub words: String,
}

impl Answer {
    /// Whether a report is of a recording with traffic in it.
    #[must_use]
    pub fn has_traffic(report: &Value) -> bool {
        report["bursts"].as_u64().is_some_and(|bursts| bursts >= BURSTS_MIN)
    }

    /// The first one of a report (`ringscope why --json`); `None` if nothing was slow.
    ///
    /// # Errors
    /// If the report is of another form, or of a recording without interruptions.
    pub fn first(report: &Value) -> Result<Option<Self>, Failure> {
        let interruptions = &report["interruptions"];
        if interruptions != "on" {
            return Err(format!("expected interruptions to be on, found {interruptions}").into());
        }
        let culprits = report["culprits"].as_array();
        let culprits = culprits.ok_or_else(|| format!("expected culprits, found {report}"))?;
        let Some(first) = culprits.first() else { return Ok(None) };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let answer = Self {
            subject: text(&first["subject"]),
            cause: text(&first["cause"]),
            culprit: text(&first["culprit"]["name"]),
            time: Duration::from_nanos(first["time_ns"].as_u64().unwrap_or(0)),
            words: text(&first["words"]),
        };
        if answer.subject.is_empty() || answer.cause.is_empty() {
            return Err(format!("expected a subject and a cause, found {first}").into());
        }
        Ok(Some(answer))
    }
}

/// Subject and cause, as in `worker preempted`.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.subject, self.cause)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_culprit_is_the_answer_and_without_one_there_is_none() {
        let report = json!({"bursts": 900, "interruptions": "on", "culprits": [
            {"subject": "worker", "cause": "preempted", "culprit": {"name": "hog"}, "time_ns": 3_000_000},
            {"subject": "worker", "cause": "unknown", "culprit": null, "time_ns": 1},
        ]});
        let answer = Answer::first(&report).unwrap().unwrap();
        assert_eq!(
            (answer.to_string().as_str(), answer.culprit.as_str()),
            ("worker preempted", "hog")
        );
        assert_eq!(answer.time, Duration::from_millis(3));
        let nothing = json!({"bursts": 900, "interruptions": "on", "culprits": []});
        assert_eq!(Answer::first(&nothing).unwrap(), None);
    }

    #[test]
    fn a_few_bursts_are_no_traffic() {
        assert!(Answer::has_traffic(&json!({"bursts": 900})));
        for report in [json!({"bursts": 3}), json!({})] {
            assert!(!Answer::has_traffic(&report), "{report}");
        }
    }

    #[test]
    fn a_report_of_another_form_is_an_error() {
        for report in [
            json!({"bursts": 900, "interruptions": "on"}),
            json!({"bursts": 900, "interruptions": "on", "culprits": [{"cause": "preempted"}]}),
            json!({"bursts": 900, "interruptions": "n/a: no root", "culprits": []}),
        ] {
            assert!(Answer::first(&report).is_err(), "{report}");
        }
    }
}
