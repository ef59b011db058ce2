//! The capacity of a variant: how many packets a second it carries without loss, what CPU time a million of them takes, and
//! how long round trips take at 10, 50 and 90 % of that rate.
//!
//! One end sends UDP packets of 1500 bytes with `udp-send`, the other end counts them with `udp-count`. Both ways are
//! measured, one after the other. [`search`] selects the rates, [`cpu`] reads CPU times, [`figures`] are the results.

pub mod cpu;
pub mod figures;
pub mod search;
pub mod table;

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use agent::SendReport;
use serde::{Deserialize, Serialize};

use crate::command::{CommandError, Stop};
use crate::end::End;
use crate::measure::{MeasureError, Passed, TALKER, file_error, passed};
use crate::plan::{Probes, RESPONDER, Way};
use crate::variant::Built;
use cpu::{CpuUse, Snapshot};
use search::{Limits, Step, Trial, found, step};

/// UDP payload of a packet, bytes: an IPv4 packet of 1500.
const PAYLOAD_BYTES: usize = 1472;
/// UDP port of the counting end.
const PORT: u16 = 7011;
/// UDP port at which the responder answers, and which ringscoped does not follow.
const ECHO_PORT: u16 = 7007;
/// What is searched. Both bounds are then 5 % apart at most.
const LIMITS: Limits = Limits { lowest_pps: 100, highest_pps: 1_000_000, width: 0.05, trials: 12 };
/// Time of sending of one trial.
const TRIAL: Duration = Duration::from_millis(500);
/// No trial begins after this time, so that a slow variant takes no longer than others.
const SEARCH_MAX: Duration = Duration::from_secs(9);
/// Shares of the rate at which round trips are measured, percent.
const PERCENT: [u8; 3] = [10, 50, 90];
/// The share at which CPU time is measured.
const CPU_PERCENT: u8 = 50;
/// Time until the flow has its rate.
const SETTLES: Duration = Duration::from_millis(300);
/// Time in which CPU time is measured.
const CPU_WINDOW: Duration = Duration::from_millis(800);
/// Probes at each share, and those before them.
const PROBES: u64 = 200;
const WARMUP: u64 = 10;
/// Longest time of a flow: probes end it long before.
const FLOW_MAX: Duration = Duration::from_secs(60);
/// Longest time of one program.
const LIMIT: Duration = Duration::from_secs(30);
/// Seconds after which a counting end that was left alone has ended by itself.
const COUNTER_LIFETIME_S: u64 = 90;

/// Everything that was measured one way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Who sent.
    pub way: Way,
    /// UDP payload of each packet, bytes.
    pub payload_bytes: usize,
    /// What was searched.
    pub limits: Limits,
    /// All trials, in the order of time.
    pub trials: Vec<Trial>,
    /// What was measured at shares of the rate without loss.
    pub loaded: Vec<Loaded>,
    /// Why something is missing.
    pub trouble: Option<String>,
}

/// What was measured beside a flow.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Loaded {
    /// Its share of the rate without loss, percent.
    pub percent: u8,
    /// What was sent, and what arrived.
    pub flow: Trial,
    /// Round trips beside it; `None` if no probe came back.
    pub probes: Option<Probed>,
    /// CPU time; measured at one share only.
    pub cpu: Option<CpuUse>,
}

/// What udp-ping printed; times are from the intended time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probed {
    /// Probes sent.
    pub sent: u64,
    /// Probes that did not come back.
    pub lost: u64,
    /// Median round trip, nanoseconds.
    pub p50_ns: u64,
    /// 99th percentile, nanoseconds.
    pub p99_ns: u64,
    /// The longest round trip, nanoseconds.
    pub max_ns: u64,
}

/// The measurement of a variant's capacity.
#[derive(Clone, Copy, Debug)]
pub struct Capacity<'a> {
    /// Ends it early.
    pub stop: &'a Stop,
    /// The variant, which is up.
    pub built: &'a Built,
    /// The probes beside other loads; these are as large and as far apart.
    pub probes: Probes,
    /// The directory that keeps everything.
    pub into: &'a Path,
}

impl Capacity<'_> {
    /// Measures one way. What cannot be measured is said in what is kept: figures of other measurements do not depend on it.
    ///
    /// # Errors
    /// If results cannot be kept, or it was ended early.
    pub fn make(&self, way: Way) -> Result<(), MeasureError> {
        fs::create_dir_all(self.into).map_err(|source| file_error(self.into, source))?;
        let mut measured = Measured {
            way,
            payload_bytes: PAYLOAD_BYTES,
            limits: LIMITS,
            trials: Vec::new(),
            loaded: Vec::new(),
            trouble: None,
        };
        match self.measure(&mut measured) {
            Err(error) if error.is_interruption() => return Err(error),
            Err(error) => measured.trouble = Some(error.to_string()),
            Ok(()) => {}
        }
        let path = self.into.join(way.file());
        let text = serde_json::to_string_pretty(&measured).expect("an object with string keys");
        fs::write(&path, text + "\n").map_err(|source| file_error(&path, source))
    }

    fn measure(&self, measured: &mut Measured) -> Result<(), MeasureError> {
        let Self { stop, built, .. } = *self;
        let (_, receiver, _) = self.ends(measured.way);
        let line = format!("udp-count --bind 0.0.0.0:{PORT} --timeout {COUNTER_LIFETIME_S}");
        let counter = receiver.start_agent(stop, &line)?;
        let (before, joined) = (built.counters(stop)?, built.joined());
        let result = self.search(measured).and_then(|()| self.load(measured));
        let after = built.counters(stop);
        receiver.end_process(stop, counter)?;
        result?;
        let flows = measured.loaded.iter().map(|it| &it.flow);
        let arrived = measured.trials.iter().chain(flows).map(|it| it.received).sum();
        prove(&passed(before, after?)?, arrived, built.joined().saturating_sub(joined))
    }

    /// The sending end, the counting end, and the address of the latter.
    const fn ends(&self, way: Way) -> (&End, &End, &'static str) {
        let Built { talker, responder, .. } = self.built;
        match way {
            Way::FromResponder => (responder, talker, TALKER),
            Way::ToResponder => (talker, responder, RESPONDER),
        }
    }

    fn search(&self, measured: &mut Measured) -> Result<(), MeasureError> {
        let began = Instant::now();
        let (sender, _, target) = self.ends(measured.way);
        while let Step::Try(rate) = step(&measured.limits, &measured.trials) {
            if began.elapsed() > SEARCH_MAX {
                break;
            }
            let printed = sender.agent(self.stop, &send_line(target, rate, TRIAL), LIMIT)?;
            measured.trials.push(trial(&printed)?);
        }
        Ok(())
    }

    /// Measures beside flows of shares of the rate without loss, if there is one.
    fn load(&self, measured: &mut Measured) -> Result<(), MeasureError> {
        let Some(rate) = found(&measured.limits, &measured.trials).lossless_pps else {
            return Ok(());
        };
        for percent in PERCENT {
            let rate = (rate * u64::from(percent) / 100).max(1);
            let loaded = self.beside_flow(measured.way, percent, rate)?;
            measured.loaded.push(loaded);
        }
        Ok(())
    }

    fn beside_flow(&self, way: Way, percent: u8, rate: u64) -> Result<Loaded, MeasureError> {
        let (sender, _, target) = self.ends(way);
        let probes_take = Duration::from_micros((PROBES + WARMUP) * self.probes.interval_us);
        let path = self.into.join(format!("flow-{}-{percent}.json", way.name()));
        // The sender stops when this file is there.
        let end = sender.output_path(&path.with_extension("end"));
        let line = format!("{} --until {end}", send_line(target, rate, FLOW_MAX));
        let flow = sender.start_agent_into(self.stop, &line, &path)?;
        sleep(SETTLES);
        let cpu = (percent == CPU_PERCENT).then(|| {
            let before = Snapshot::take(self.built.directory());
            sleep(CPU_WINDOW);
            Snapshot::take(self.built.directory()).since(&before)
        });
        let probes = self.probe(probes_take);
        let ran_until_now = sender.await_end(self.stop, flow, &end)?;
        sender.fetch(self.stop, &path)?;
        let printed = fs::read_to_string(&path).map_err(|source| file_error(&path, source))?;
        let (flow, probes) = (trial(&printed)?, probes?);
        if !ran_until_now {
            return Err(MeasureError::ShortFlow { percent });
        }
        Ok(Loaded { percent, flow, probes, cpu })
    }

    /// Round trips from the talker to the responder, and back.
    fn probe(&self, take: Duration) -> Result<Option<Probed>, MeasureError> {
        let Probes { interval_us, size, .. } = self.probes;
        let line = format!(
            "udp-ping {RESPONDER}:{ECHO_PORT} --count {PROBES} --warmup {WARMUP} --interval-us {interval_us} --size {size} \
             --wait-ms 300"
        );
        match self.built.talker.agent(self.stop, &line, take + LIMIT) {
            // Nothing came back: the way is full.
            Err(CommandError::Failed { .. }) => Ok(None),
            printed => Ok(serde_json::from_str(&printed?).ok()),
        }
    }
}

/// The command line of the sending end.
fn send_line(target: &str, rate: u64, duration: Duration) -> String {
    let duration = duration.as_millis();
    format!(
        "udp-send {target}:{PORT} --rate {rate} --size {PAYLOAD_BYTES} --duration-ms {duration}"
    )
}

/// Reads what `udp-send` printed.
fn trial(printed: &str) -> Result<Trial, MeasureError> {
    let report: SendReport =
        serde_json::from_str(printed).map_err(|_| MeasureError::Flow(printed.trim().into()))?;
    let SendReport { rate: intended_pps, sent, received, seconds, .. } = report;
    Ok(Trial { intended_pps, sent, received, seconds })
}

/// What arrived passed every place, in one of its directions, but for `joined` frames that were parts of others.
fn prove(passed: &[Passed], arrived: u64, joined: u64) -> Result<(), MeasureError> {
    let place_of =
        |it: &Passed| it.place.rsplit_once('.').map_or("", |(place, _)| place).to_owned();
    for it in passed {
        let place = place_of(it);
        let here = passed.iter().filter(|other| place_of(other) == place);
        let frames: u64 = here.map(|other| other.frames).sum();
        if frames.saturating_add(joined) < arrived {
            return Err(MeasureError::FlowWentAnotherWay { place, arrived, frames });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_sees_a_flow_in_one_direction() {
        let passed = |frames: [u64; 2]| {
            let place = |(place, frames): (&str, u64)| Passed { place: place.into(), frames };
            ["tap.sent", "tap.received"].into_iter().zip(frames).map(place).collect::<Vec<_>>()
        };
        assert!(
            prove(&passed([0, 100]), 100, 0).is_ok() && prove(&passed([100, 0]), 100, 0).is_ok()
        );
        assert!(prove(&passed([3, 5]), 100, 92).is_ok());
        let error = prove(&passed([3, 5]), 100, 91).unwrap_err().to_string();
        assert!(error.contains("tap") && error.contains("8 frames"), "{error}");
    }

    #[test]
    fn a_flow_that_failed_is_shown_as_it_is() {
        let error = trial("no route\n").unwrap_err().to_string();
        assert!(error.ends_with("found: no route"), "{error}");
    }
}
