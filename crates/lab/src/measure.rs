//! One measurement: probes from the talker to the responder and back, with a load beside them or without, and the proof
//! that they went the variant's way.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use agent::{ClockPairs, READINGS, TaiClock};
use rustix::process::Signal;
use serde::Serialize;

use crate::clock_offset::{ClockOffset, Clocks};
use crate::clock_page::PagedClock;
use crate::command::{CommandError, Running, Stop, patient};
use crate::cpus::Cpus;
use crate::end::{End, EndError};
use crate::kept::{
    CLOCKS, DISCIPLINES, OBSTACLE, PING, PRESSURE, PROOF, RECORDING, SAMPLES, SENT, TURNED,
};
use crate::load::{LoadError, Loading};
use crate::others::{self, OthersError};
use crate::peer::PeerError;
use crate::plan::{Load, OtherProbe, Probes, RESPONDER, WARMUP};
use crate::talker::Talker;
use crate::variant::{Built, Counter, VariantError};

/// The talker, in every variant.
pub(crate) const TALKER: &str = "10.77.0.1";
/// UDP port at which the responder answers probes. The variants start ringscoped with `--trace-probe` for this port.
const PROBE_PORT: u16 = 7010;
/// Longest wait for a program to be ready.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// The responder's stamps are in its file when no probe has come for this long; the agent needs 100 ms.
const WRITTEN: Duration = Duration::from_millis(400);
/// Why a measurement has failed.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// A program failed, or the lab was interrupted.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// An end failed.
    #[error(transparent)]
    End(#[from] EndError),
    /// The load failed.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The variant's script failed.
    #[error(transparent)]
    Variant(#[from] VariantError),
    /// Probes of other programs cannot be kept.
    #[error(transparent)]
    Others(#[from] OthersError),
    /// A file cannot be written.
    #[error("cannot write {path}: {source}")]
    File {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What is known of the far host cannot be kept.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The recorder did not start.
    #[error("expected `ringscope record` to begin within {READY_LIMIT:?}, found that it does not")]
    Recorder,
    /// Launch times had no effect.
    #[error(
        "expected the talker's queueing discipline to hold each probe until its time, found that {early} of {sent} left \
         before: it is not on their way"
    )]
    NotHeld {
        /// Probes that left before their time.
        early: u64,
        /// All probes.
        sent: u64,
    },
    /// Frames went another way.
    #[error(
        "expected the {answered} probes that were answered to have passed {place} both ways, found {frames} frames there: they went another way"
    )]
    WrongWay {
        /// The place.
        place: String,
        /// Probes that were answered.
        answered: u64,
        /// Frames that passed it.
        frames: u64,
    },
    /// Packets of a flow went another way.
    #[error(
        "expected the {arrived} packets of 1500 bytes that arrived to have passed {place}, found {frames} frames there: they went another way"
    )]
    FlowWentAnotherWay {
        /// The place.
        place: String,
        /// Packets that arrived.
        arrived: u64,
        /// Frames that passed it, in both directions.
        frames: u64,
    },
    /// A counter is lower than before.
    #[error(
        "expected the counter of {place} to rise, found that it went from {before} down to {after} frames: what counts there was started again"
    )]
    CounterFell {
        /// The place.
        place: String,
        /// Frames before.
        before: u64,
        /// Frames after.
        after: u64,
    },
    /// The sender of a flow failed.
    #[error("expected the report of `ringscope agent udp-send`, found: {0}")]
    Flow(String),
    /// A flow ended too early.
    #[error(
        "expected the flow at {percent} % of the rate to last longer than the probes, found that it ended after a \
         minute: this host is too busy"
    )]
    ShortFlow {
        /// Its share of the rate.
        percent: u8,
    },
}

impl MeasureError {
    /// Whether a signal ended it.
    #[must_use]
    pub const fn is_interruption(&self) -> bool {
        matches!(
            self,
            Self::Command(CommandError::Interrupted)
                | Self::Peer(PeerError::Command(CommandError::Interrupted))
                | Self::End(EndError::Command(CommandError::Interrupted))
                | Self::Load(LoadError::End(EndError::Command(CommandError::Interrupted)))
                | Self::Variant(VariantError::Command(CommandError::Interrupted))
                | Self::Others(OthersError::Command(CommandError::Interrupted))
        )
    }
}

/// A place on the way, with the frames that passed it.
#[derive(Clone, Debug, Serialize)]
pub struct Passed {
    /// The place.
    pub place: String,
    /// Frames during the measurement.
    pub frames: u64,
}

/// A measurement that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Measurement<'a> {
    /// Ends it early.
    pub stop: &'a Stop,
    /// The variant, which is up.
    pub built: &'a Built,
    /// The program that records.
    pub ringscope: &'a Path,
    /// What runs beside the probes.
    pub load: Load,
    /// How the talker is scheduled.
    pub scheduling: Talker,
    /// Whether the talker's queueing discipline is to be set.
    pub has_disciplines: bool,
    /// The CPU of a pinned talker, on the host.
    pub cpu: usize,
    /// CPUs of the parts; `None`: any.
    pub cpus: Option<Cpus>,
    /// The probes.
    pub probes: Probes,
    /// Programs whose probes are sent after these, beside the same load.
    pub others: &'a [OtherProbe],
    /// The directory that keeps everything.
    pub into: &'a Path,
}

impl Measurement<'_> {
    /// Makes it. If its load cannot run in this variant, only that is kept.
    ///
    /// # Errors
    /// If a program fails, probes went another way than the variant's, or it was ended early.
    pub fn make(&self) -> Result<(), MeasureError> {
        let Self { stop, built, into, .. } = *self;
        let Built { talker, responder, .. } = built;
        fs::create_dir_all(into).map_err(|source| file_error(into, source))?;
        if let Some(why) = self.loading().obstacle()? {
            return self.write(OBSTACLE, &why);
        }
        let (talker_clock, talker_tai) = self.clock_of(talker)?;
        let (responder_clock, responder_tai) = self.clock_of(responder)?;
        let clocks =
            Clocks { talker: talker_clock, responder: responder_clock, talker_tai, responder_tai };
        let clocks = serde_json::to_string_pretty(&clocks).expect("an object with string keys");
        self.write(CLOCKS, &clocks)?;
        let mut paged = PagedClock::of(built);
        paged.bound(stop, responder)?;
        let echo = self.start_echo()?;
        let recording = self.start_recording()?;
        if self.has_disciplines {
            self.scheduling.set_up(stop, talker)?;
        }
        let load = self.loading().start()?;
        await_answers(stop, talker)?;
        let (before, joined_before) = (built.counters(stop)?, built.joined());
        let printed = self.send_probes()?;
        let after = built.counters(stop)?;
        // Answers come together when a guest was held up for longer than from one probe to the next.
        let joined = built.joined().saturating_sub(joined_before);
        if self.scheduling.has_launch_times() {
            prove_held(&printed)?;
            self.write(DISCIPLINES, &Talker::counters(stop, talker)?)?;
        }
        if let Some(recording) = recording {
            recording.end(Signal::INT)?;
        }
        others::measure(stop, built, self.others, self.probes, into)?;
        let pressure = load.end(stop, built)?;
        let pressure = serde_json::to_string_pretty(&pressure).expect("a list with string keys");
        self.write(PRESSURE, &pressure)?;
        sleep(patient(WRITTEN));
        responder.end_process(stop, echo)?;
        paged.bound(stop, responder)?;
        paged.keep(into).map_err(|(path, source)| MeasureError::File { path, source })?;
        responder.fetch(stop, &into.join(TURNED))?;
        for name in [SAMPLES, SENT] {
            talker.fetch(stop, &into.join(name))?;
        }
        self.write(PING, &printed)?;
        let passed = passed(before, after)?;
        let proof = serde_json::to_string_pretty(&passed).expect("a list with string keys");
        prove(&passed, answered(&printed), joined)?;
        // Written last: a measurement without it is not complete.
        self.write(PROOF, &proof)
    }

    /// Longest time for the probes.
    fn limit(&self) -> Duration {
        self.probes.duration() + Duration::from_secs(30)
    }

    /// Seconds after which what was started at an end has ended by itself.
    fn lifetime_s(&self) -> u64 {
        self.limit().as_secs() + 60
    }

    fn start_echo(&self) -> Result<u32, MeasureError> {
        let responder = &self.built.responder;
        let stamps = responder.output_path(&self.into.join(TURNED));
        let lifetime = self.lifetime_s();
        let line =
            format!("udp-echo --bind 0.0.0.0:{PROBE_PORT} --timeout {lifetime} --stamps {stamps}");
        Ok(responder.start_agent(self.stop, &line)?)
    }

    /// Compares an end's clock with the host's. `None` if that cannot be done: an emulated guest has a counter of its own, as
    /// every far host has.
    fn clock_of(&self, end: &End) -> Result<(Option<ClockOffset>, Option<TaiClock>), MeasureError> {
        if end.is_on_host() {
            return Ok((Some(ClockOffset::NONE), TaiClock::here(READINGS)));
        }
        if end.is_far() {
            return Ok((None, None));
        }
        let (host, printed) =
            ClockPairs::around(READINGS, || end.agent(self.stop, "clock", READY_LIMIT));
        let printed = match printed {
            // Its CPU has no counter that programs can read.
            Err(CommandError::Failed { .. }) => return Ok((None, None)),
            other => other?,
        };
        let there: Option<ClockPairs> = serde_json::from_str(&printed).ok();
        let both = host.as_ref().zip(there.as_ref());
        let offset = both.and_then(|(host, there)| ClockOffset::between(host, there).ok());
        Ok((offset, there.and_then(|there| there.tai)))
    }

    /// Starts `ringscope record`, if ringscoped is part of the variant, and waits until it records.
    fn start_recording(&self) -> Result<Option<Running>, MeasureError> {
        let Some((dir, name)) = self.built.recorder() else { return Ok(None) };
        let output = self.into.join(RECORDING);
        let mut command = Command::new(self.ringscope);
        command.arg("record").arg("--run-dir").arg(dir).args(["--name", name, "-o"]).arg(&output);
        let mut running = Running::start(&mut command)?;
        let part = self.into.join(format!("{RECORDING}.part"));
        let end = Instant::now() + patient(READY_LIMIT);
        while !part.exists() {
            let ended = running.wait(self.stop, Duration::from_millis(20))?;
            if ended.is_some() || Instant::now() > end {
                return Err(MeasureError::Recorder);
            }
        }
        Ok(Some(running))
    }

    fn loading(&self) -> Loading<'_> {
        let Self { stop, built, ringscope, load, cpus, .. } = *self;
        Loading { stop, built, ringscope, load, cpus, lifetime_s: self.lifetime_s() }
    }

    /// Sends the probes, and returns what `udp-ping` prints.
    fn send_probes(&self) -> Result<String, MeasureError> {
        let (talker, Probes { count, interval_us, size }) = (&self.built.talker, self.probes);
        let [samples, stamps] =
            [SAMPLES, SENT].map(|name| talker.output_path(&self.into.join(name)));
        let cpu = if talker.is_on_host() { self.cpu } else { 0 };
        let line = format!(
            "udp-ping {RESPONDER}:{PROBE_PORT} --count {count} --interval-us {interval_us} --size {size} \
             --warmup {WARMUP} --samples {samples} --stamps {stamps}{}",
            self.scheduling.flags(cpu)
        );
        Ok(talker.agent(self.stop, &line, self.limit())?)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), MeasureError> {
        let path = self.into.join(name);
        fs::write(&path, text).map_err(|source| file_error(&path, source))
    }
}

pub(crate) fn file_error(path: &Path, source: io::Error) -> MeasureError {
    MeasureError::File { path: path.into(), source }
}

/// The responder's agent was started a moment ago: waits until it answers.
fn await_answers(stop: &Stop, talker: &End) -> Result<(), CommandError> {
    let end = Instant::now() + patient(READY_LIMIT);
    let line = format!("udp-ping {RESPONDER}:{PROBE_PORT} --count 5 --warmup 0 --wait-ms 200");
    loop {
        match talker.agent(stop, &line, READY_LIMIT) {
            Err(CommandError::Failed { .. }) if Instant::now() < end => {}
            other => return other.map(drop),
        }
    }
}

/// The frames that passed each place between two readings of the counters.
pub(crate) fn passed(
    before: Vec<Counter>,
    after: Vec<Counter>,
) -> Result<Vec<Passed>, MeasureError> {
    let rise = |(before, after): (Counter, Counter)| {
        let Counter { place, frames: after } = after;
        let before = before.frames;
        match after.checked_sub(before) {
            Some(frames) => Ok(Passed { place, frames }),
            None => Err(MeasureError::CounterFell { place, before, after }),
        }
    };
    before.into_iter().zip(after).map(rise).collect()
}

/// Few probes left before their launch times: the clocks are known to some microseconds only.
fn prove_held(printed: &str) -> Result<(), MeasureError> {
    let report: serde_json::Value = serde_json::from_str(printed).unwrap_or_default();
    let early = report["launch"]["early"].as_u64().unwrap_or(0);
    let sent = report["sent"].as_u64().unwrap_or(0);
    if early > sent / 2 { Err(MeasureError::NotHeld { early, sent }) } else { Ok(()) }
}

/// How many probes came back, by what udp-ping has printed.
fn answered(printed: &str) -> u64 {
    let report: serde_json::Value = serde_json::from_str(printed).unwrap_or_default();
    report["received"].as_u64().unwrap_or(0)
}

/// Every place has seen at least the answered probes, but for those that were joined to others.
fn prove(passed: &[Passed], answered: u64, joined: u64) -> Result<(), MeasureError> {
    match passed.iter().find(|it| it.frames.saturating_add(joined) < answered) {
        None => Ok(()),
        Some(Passed { place, frames }) => {
            Err(MeasureError::WrongWay { place: place.clone(), answered, frames: *frames })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(frames: [u64; 2]) -> Vec<Counter> {
        let place = |(place, frames): (&str, u64)| Counter { place: place.into(), frames };
        ["tap.sent", "tap.received"].into_iter().zip(frames).map(place).collect()
    }

    #[test]
    fn each_place_must_have_seen_each_answered_probe() {
        let passed = passed(counters([5, 7]), counters([105, 106])).unwrap();
        assert!(prove(&passed, 99, 0).is_ok());
        let error = prove(&passed, 100, 0).unwrap_err().to_string();
        assert!(error.contains("tap.received") && error.contains("99 frames"), "{error}");
        assert!(prove(&passed, 100, 1).is_ok() && prove(&passed, 102, 2).is_err());
    }

    #[test]
    fn a_counter_that_was_started_again_proves_nothing() {
        let error = passed(counters([5, 7]), counters([105, 6])).unwrap_err().to_string();
        assert!(error.contains("tap.received to rise"), "{error}");
        assert!(error.contains("from 7 down to 6 frames"), "{error}");
    }

    #[test]
    fn probes_that_nothing_holds_are_no_measurement_of_launch_times() {
        assert!(prove_held(r#"{"sent": 10, "launch": {"early": 5}}"#).is_ok());
        let error = prove_held(r#"{"sent": 10, "launch": {"early": 6}}"#).unwrap_err().to_string();
        assert!(error.contains("6 of 10 left before"), "{error}");
    }

    #[test]
    fn the_answered_probes_are_read_from_the_report() {
        assert_eq!(answered("{\"sent\": 10, \"received\": 9}"), 9);
        assert_eq!(answered("no json"), 0);
    }
}
