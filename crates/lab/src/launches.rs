//! Probes with launch times: when the talker's kernel sent them, and why it did not.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use agent::Figures;
use report::journey::stamps::Stamps;
use serde::Serialize;
use serde_json::Value;

use crate::kept::{DISCIPLINES, PING};
use crate::samples::Sample;

/// What became of the probes of a row.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Launches {
    /// Probes that left before they should: no discipline has held them.
    pub early: usize,
    /// Probes that waited for their gate.
    pub gated: usize,
    /// The mean wait for the gate, over all probes, nanoseconds.
    pub gate_mean_ns: f64,
    /// From when a probe should leave until the kernel passed it to the driver.
    pub release: Option<Figures>,
    /// Packets that each discipline has dropped, with those of the warm-up.
    pub dropped: BTreeMap<String, u64>,
    #[serde(skip)]
    pub(crate) unsent: Unsent,
    #[serde(skip)]
    probes: usize,
    #[serde(skip)]
    gate_total_ns: u64,
    #[serde(skip)]
    release_ns: Vec<u64>,
}

/// Probes that did not leave the talker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unsent {
    pub missed: usize,
    pub invalid: usize,
    pub no_buffer: usize,
}

impl Unsent {
    pub(crate) const fn sum(self) -> usize {
        self.missed + self.invalid + self.no_buffer
    }
}

impl Launches {
    /// Adds the probes of a measurement, which is in this directory.
    pub(crate) fn add(&mut self, directory: &Path, samples: &[Sample], sender: &Stamps) {
        let launch = read(directory, PING).get("launch").cloned().unwrap_or_default();
        let count = |name: &str| launch[name].as_u64().unwrap_or(0) as usize;
        self.unsent.missed += count("missed");
        self.unsent.invalid += count("invalid");
        self.unsent.no_buffer += count("no_buffer");
        self.early += count("early");
        let waits = samples.iter().map(|it| it.sent.saturating_sub(it.intended));
        self.gated += waits.clone().filter(|&wait| wait > 0).count();
        self.gate_total_ns += waits.sum::<u64>();
        self.probes += samples.len();
        self.gate_mean_ns = self.gate_total_ns as f64 / self.probes.max(1) as f64;
        let sent = sender.probes.values();
        self.release_ns.extend(sent.filter_map(|it| Some(it.sent_kernel?.saturating_sub(it.sent))));
        self.release = Figures::of(self.release_ns.clone());
        for (kind, dropped) in drops(&read(directory, DISCIPLINES)) {
            *self.dropped.entry(kind).or_default() += dropped;
        }
    }

    /// Probes that the kernel sent this much after they should leave.
    pub(crate) fn late(&self, than_ns: u64) -> usize {
        self.release_ns.iter().filter(|&&ns| ns > than_ns).count()
    }
}

/// A file of the measurement; what is missing or spoilt counts nothing.
fn read(directory: &Path, name: &str) -> Value {
    let text = fs::read_to_string(directory.join(name)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// The packets that etf and taprio have dropped, of what `tc -s -j qdisc show` prints. The sums of mqprio have them, too.
fn drops(disciplines: &Value) -> Vec<(String, u64)> {
    let all = disciplines.as_array().into_iter().flatten();
    let of = |it: &Value| {
        let kind = it["kind"].as_str().filter(|it| ["etf", "taprio"].contains(it))?;
        Some((kind.to_owned(), it["drops"].as_u64().unwrap_or(0)))
    };
    all.filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use report::journey::stamps::{ProbeId, Stamp};

    use super::*;

    #[test]
    fn what_did_not_leave_is_counted_by_its_cause_and_the_gate_is_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let ping =
            r#"{"received": 2, "launch": {"missed": 1, "invalid": 2, "no_buffer": 3, "early": 1}}"#;
        fs::write(path.join(PING), ping).unwrap();
        let disciplines = r#"[{"kind":"mqprio","drops":7},{"kind":"etf","drops":6},{"kind":"pfifo_fast","drops":9}]"#;
        fs::write(path.join(DISCIPLINES), disciplines).unwrap();
        let samples = [
            Sample { intended: 100, sent: 100, received: Some(140) },
            Sample { intended: 200, sent: 260, received: None },
        ];
        let stamp = |sent, sent_kernel| Stamp { sent, sent_kernel, ..Stamp::default() };
        let id = |sequence| ProbeId { run: 1, sequence };
        let probes = [(id(0), stamp(100, Some(130))), (id(1), stamp(260, None))];
        let sender = Stamps { probes: probes.into(), ..Stamps::default() };
        let mut launches = Launches::default();
        for _ in 0..2 {
            launches.add(path, &samples, &sender);
        }
        assert_eq!(launches.unsent, Unsent { missed: 2, invalid: 4, no_buffer: 6 });
        assert_eq!((launches.early, launches.gated, launches.gate_mean_ns), (2, 2, 30.0));
        assert_eq!(launches.release.unwrap().max_ns, 30);
        assert_eq!((launches.late(29), launches.late(30)), (2, 0));
        assert_eq!(launches.dropped, [("etf".to_owned(), 12)].into());
    }

    #[test]
    fn a_measurement_without_launch_times_counts_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut launches = Launches::default();
        launches.add(directory.path(), &[], &Stamps::default());
        assert_eq!(launches, Launches::default());
    }
}
