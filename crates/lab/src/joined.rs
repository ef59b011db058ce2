//! The probes of one measurement, each with the parts of its round trip.
//!
//! With a recording of ringscoped, the parts are those of `ringscope report --probes`. Without one, the stamps of both
//! ends leave one part between them: everything from the talker's driver to the responder's stack, and back.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use burst_trace::{ReadError, Source};
use report::Initiator;
use report::journey::stamps::{ProbeId, Stamp, Stamps, StampsError};
use report::journey::{
    ClockBounds, HostClocks, Journeys, KnownClock, Misfit, Part, REMAINDER, Relation, Side,
};
use serde_json::Value;

use crate::clock_offset::{ClockOffset, Clocks};
use crate::kept::{CLOCK, CLOCKS, RECORDING, SENT, TURNED};
use crate::samples::Sample;
use crate::talker::Talker;

/// Why probes cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Stamps cannot be used.
    #[error(transparent)]
    Stamps(#[from] StampsError),
    /// A recording cannot be read.
    #[error("cannot read {path}: {source}")]
    Recording {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: ReadError,
    },
    /// Stamps and records do not fit.
    #[error(transparent)]
    Misfit(#[from] Misfit),
}

/// A probe that came back.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub id: ProbeId,
    /// The round trip from the intended time, nanoseconds.
    pub round_trip_ns: i64,
    /// By how much what lies between two clocks may be wrong, nanoseconds.
    pub bound_ns: i64,
    /// The times of the measurement's parts, nanoseconds; `None` if not measured. Their sum is the round trip.
    pub parts_ns: Vec<Option<i64>>,
}

/// The probes of a measurement.
#[derive(Clone, Debug)]
pub(crate) struct Joined {
    /// In the order of time.
    pub parts: Vec<Part>,
    pub probes: Vec<Probe>,
}

/// The talker's program sends a probe after its time.
const LATE: Part = Part { side: Side::Host, stage: "late", tier: "H" };
/// The talker's queueing discipline waits for its gate.
const GATE: Part = Part { side: Side::Host, stage: "gate", tier: "H" };
/// The parts without a recording.
const WITHOUT: [Part; 6] = [
    Part { side: Side::Host, stage: "host-send", tier: "H" },
    Part { side: Side::Guest, stage: "guest-receive", tier: "G" },
    Part { side: Side::Guest, stage: "guest-turn", tier: "G" },
    Part { side: Side::Guest, stage: "guest-send", tier: "G" },
    Part { side: Side::Host, stage: "host-receive", tier: "H" },
    REMAINDER,
];

impl Joined {
    /// The same probes of a talker whose kernel sends them: they are never late, but may wait for a gate.
    pub(crate) fn of_talker(mut self, talker: Talker) -> Self {
        if talker.has_launch_times()
            && let Some(first) = self.parts.first_mut()
        {
            *first = GATE;
        }
        self
    }

    /// Joins the stamps in a measurement's directory, with its recording if there is one.
    pub(crate) fn read(directory: &Path, samples: &[Sample]) -> Result<Self, JoinError> {
        // Records are joined on the host's clock.
        let clock = recorded_talker(directory).unwrap_or(ClockOffset::NONE);
        // A probe's stamps and its sample have the time of sending in common.
        let late = samples
            .iter()
            .filter_map(|it| Some((clock.on_host(it.sent)?, it.sent.saturating_sub(it.intended))));
        let late: HashMap<u64, u64> = late.collect();
        let probe = |id, sent: u64, round_trip_ns: i64, bound_ns, times: &[Option<i64>]| {
            let late = late.get(&sent).copied().unwrap_or(0);
            let late = i64::try_from(late).unwrap_or(i64::MAX);
            Probe {
                id,
                round_trip_ns: round_trip_ns.saturating_add(late),
                bound_ns,
                parts_ns: [Some(late)].into_iter().chain(times.iter().copied()).collect(),
            }
        };
        let with_late = |parts: &[Part]| [&[LATE], parts].concat();
        if !is_recorded(directory) {
            let (sender, echo) = stamps(directory)?;
            let mut probes = Vec::new();
            for (&id, sent) in &sender.probes {
                let turn = echo.probes.get(&id);
                if let Some((round_trip, times)) = turn.and_then(|turn| without_records(sent, turn))
                {
                    probes.push(probe(id, sent.sent, round_trip, 0, &times.map(Some)));
                }
            }
            return Ok(Self { parts: with_late(&WITHOUT), probes });
        }
        let joined = journeys(directory, &recording(directory)?)?;
        let probes = joined.journeys.iter();
        let probes =
            probes.map(|it| probe(it.id, it.sent_ns, it.round_trip_ns, it.bound_ns, &it.parts));
        Ok(Self { parts: with_late(&joined.parts), probes: probes.collect() })
    }
}

/// The stamps of both ends of a measurement.
pub(crate) fn stamps(directory: &Path) -> Result<(Stamps, Stamps), JoinError> {
    Ok((Stamps::read(&directory.join(SENT))?, Stamps::read(&directory.join(TURNED))?))
}

/// How the clocks of both ends differ from the host's. Without the file, or with a spoilt one, no clock can be compared.
pub(crate) fn clocks(directory: &Path) -> Clocks {
    let text = fs::read_to_string(directory.join(CLOCKS)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// The talker's clock, for joining its stamps with a recording. `None` if it cannot be compared with the host's.
fn recorded_talker(directory: &Path) -> Option<ClockOffset> {
    // Without a recording, stamps are compared only with those of the same end. In directories without the other file, the
    // talker is on the host.
    if is_recorded(directory) && directory.join(CLOCKS).exists() {
        clocks(directory).talker
    } else {
        Some(ClockOffset::NONE)
    }
}

/// Whether there is a recording with which the talker's stamps can be joined.
pub(crate) fn is_recorded(directory: &Path) -> bool {
    directory.join(RECORDING).exists()
}

/// The recording of a measurement.
pub(crate) fn recording(directory: &Path) -> Result<Source, JoinError> {
    let path = directory.join(RECORDING);
    Source::open(&path).map_err(|source| JoinError::Recording { path, source })
}

/// The round trips of a measurement, by its recording.
pub(crate) fn journeys(directory: &Path, source: &Source) -> Result<Journeys, JoinError> {
    let (mut sender, echo) = stamps(directory)?;
    let talker = recorded_talker(directory);
    let known = known_clock(directory, source);
    let mut joined = if let Some(talker) = &talker {
        sender.probes = on_host(talker, sender.probes);
        Journeys::join(source, Initiator::Host, &sender, Some(&echo), &known)
    } else {
        Journeys::join_far(source, &sender, Some(&echo), &known)
    };
    joined.check()?;
    for journey in &mut joined.journeys {
        let bound_ns = talker.map_or(0, |it| it.bound_ns);
        journey.bound_ns = journey.bound_ns.saturating_add_unsigned(bound_ns);
    }
    Ok(joined)
}

/// What is known of the responder's clock. One that could be compared with the host's by the CPU's counter is the host's plus a
/// constant. Without bounds by a clock page, or with a spoilt file of them, the probes bound it alone.
fn known_clock(directory: &Path, source: &Source) -> KnownClock {
    let relation = match clocks(directory).responder {
        Some(_) => Relation::Constant,
        None => Relation::Drifting,
    };
    let host = HostClocks::new(source, &Value::Null);
    KnownClock { relation, bounds: ClockBounds::read(&directory.join(CLOCK), &host).ok() }
}

/// The talker's stamps on the host's clock. One from before the host's clock began is none.
fn on_host(talker: &ClockOffset, probes: HashMap<ProbeId, Stamp>) -> HashMap<ProbeId, Stamp> {
    let moved = |stamp: Stamp| {
        Some(Stamp {
            sent: talker.on_host(stamp.sent)?,
            sent_kernel: stamp.sent_kernel.and_then(|it| talker.on_host(it)),
            received_kernel: stamp.received_kernel.and_then(|it| talker.on_host(it)),
            received: stamp.received.and_then(|it| talker.on_host(it)),
            ..Stamp::default()
        })
    };
    probes.into_iter().filter_map(|(id, stamp)| Some((id, moved(stamp)?))).collect()
}

/// Round trip and parts of a probe, by the stamps of both ends. `None` if one is missing.
fn without_records(sent: &Stamp, turned: &Stamp) -> Option<(i64, [i64; 6])> {
    let between = |from: u64, to: u64| to.cast_signed().wrapping_sub(from.cast_signed());
    let (received, arrived) = (sent.received?, turned.received?);
    let round_trip = between(sent.sent, received);
    let known = [
        between(sent.sent, sent.sent_kernel?),
        between(turned.received_kernel?, arrived),
        between(arrived, turned.sent),
        between(turned.sent, turned.sent_kernel?),
        between(sent.received_kernel?, received),
    ];
    let [send, receive, turn, reply, came] = known;
    Some((round_trip, [send, receive, turn, reply, came, round_trip - known.iter().sum::<i64>()]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::composition::Composition;

    #[test]
    fn the_talkers_stamps_are_moved_to_the_hosts_clock() {
        let id = ProbeId { run: 1, sequence: 2 };
        let stamp = Stamp {
            sent: 1100,
            sent_kernel: Some(1110),
            received_kernel: None,
            received: Some(1200),
            ..Stamp::default()
        };
        let talker = ClockOffset { ahead_ns: 1000, bound_ns: 3 };
        let moved = on_host(&talker, [(id, stamp)].into());
        let expected = Stamp {
            sent: 100,
            sent_kernel: Some(110),
            received_kernel: None,
            received: Some(200),
            ..Stamp::default()
        };
        assert_eq!(moved, [(id, expected)].into());
        let before = ClockOffset { ahead_ns: 2000, bound_ns: 3 };
        assert!(on_host(&before, [(id, stamp)].into()).is_empty());
    }

    #[test]
    fn parts_without_a_recording_add_up() {
        let dir = tempfile::tempdir().unwrap();
        let head = "run,sequence,sent_ns,sent_kernel_ns,received_kernel_ns,received_ns\n";
        // The responder's clock is another one.
        for (name, stamps) in
            [(SENT, "1,50,100,103,190,200\n"), (TURNED, "1,50,7020,7025,7000,7011\n")]
        {
            std::fs::write(dir.path().join(name), format!("{head}{stamps}")).unwrap();
        }
        let samples = [Sample { intended: 92, sent: 100, received: Some(200) }];
        let joined = Joined::read(dir.path(), &samples).unwrap();
        let [probe] = &joined.probes[..] else { panic!("{joined:?}") };
        assert_eq!(probe.round_trip_ns, 108);
        assert_eq!(probe.parts_ns, [8, 3, 11, 9, 5, 10, 62].map(Some));
        let mut composition = Composition::default();
        composition.add(&joined);
        assert_eq!(composition.round_trip_ns, 108.0);
        assert_eq!(composition.shares.iter().map(|it| it.mean_ns).sum::<f64>(), 108.0);
    }
}
