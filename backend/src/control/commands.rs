//! The commands, carried out.

use std::mem::take;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use burst_trace::Direction;
use datapath::Planted;
use log_limit::LogLimit;
use serde_json::{Value, json};
use worker::{Bucket, Delay, Limit, PollPolicy, ProbeTargets, Setting};

use super::request::Request;
use super::subject::Subject;
use super::{capture, kernel, look};
use crate::logging::{self, LogLevel};
use crate::plan::{PlanError, sort_faults};
use crate::probes::ProbeSpec;
use crate::spec::{DatapathSpec, FaultSpec};
use crate::stop::Ask;

/// The commands, with their values and what they do.
const COMMANDS: &[(&str, &str, &str)] = &[
    ("help", "", "lists the commands"),
    ("info", "", "version, flags and host: for a bug report"),
    ("status", "", "settings, and how each ring stands"),
    ("poll", "never|adaptive[:USEC]|always", "what the workers do when idle"),
    ("trace", "on|off", "records every burst, or only counts"),
    ("probe", "PORT...|off", "UDP ports whose probe packets are recorded one by one"),
    (
        "fault",
        "delay:STAGE=USEC[,every=N]...|drop...|error...|off",
        "faults that are planted as with --fault, in place of those before",
    ),
    (
        "capture",
        "on [size=BYTES]|off",
        "writes every frame to a file that comes with the request: ringscope ctl NAME capture on FILE [size=100MB] \
         [filter=EXPRESSION]",
    ),
    (
        "kernel-stages",
        "on|off",
        "measures in the host kernel as well, by programs that come with the request, as root: ringscope ctl NAME \
         kernel-stages on",
    ),
    ("limit", "tx|rx RATE[,RATE][,burst=MS]|off", "what the guest may send or receive in a second"),
    ("log", "LEVEL|default", "what is logged, as --log-level; default is that of RUST_LOG"),
    ("drain", "", "ends the daemon in order, as SIGTERM does"),
];

const FORM: &str = r#"a JSON object such as {"command":"status"}"#;

/// Carries out what clients ask.
#[derive(Debug)]
pub struct Operator {
    guests: Vec<Subject>,
    started: Instant,
    stop: Ask,
    log: Arc<LogLimit>,
}

impl Operator {
    /// For these guests. `stop` ends the daemon.
    pub fn new(guests: Vec<Subject>, stop: Ask) -> Self {
        Self { guests, started: Instant::now(), stop, log: Arc::new(LogLimit::new("")) }
    }

    /// The answer to a request. `files`: came with it, or before it, and are taken if they are needed.
    pub fn answer(&self, line: &[u8], files: &mut Vec<OwnedFd>) -> Value {
        let request: Request = match serde_json::from_slice(line) {
            Ok(request) => request,
            Err(why) => return refusal(None, &format!("expected {FORM}: {why}")),
        };
        let id = request.id.clone();
        match self.carry_out(&request, files) {
            Ok(done) => with_id(id, json!({ "ok": done })),
            Err(why) => refusal(id, &why),
        }
    }

    fn carry_out(&self, request: &Request, files: &mut Vec<OwnedFd>) -> Result<Value, String> {
        let value = request.value.as_deref();
        match (request.command.as_str(), value) {
            ("help", None) => Ok(help()),
            ("info", None) => self.info(request),
            ("status", None) => self.status(request),
            ("drain", None) => {
                log_limit::info!(self.log, "the control socket asks the daemon to end");
                self.stop.ask();
                Ok(json!({ "drain": "the daemon ends" }))
            }
            ("log", Some(value)) => {
                let level = (value != "default").then(|| value.parse::<LogLevel>()).transpose()?;
                logging::set_level(level.as_ref());
                Ok(json!({ "log": logging::level().map(|level| level.to_string()) }))
            }
            ("capture", Some(_)) => {
                let subject = self.guest(request)?;
                let captured = capture::set(request, subject, take(files).pop())?;
                self.say_that_it_is_set(request, subject);
                Ok(json!({ "capture": captured }))
            }
            ("kernel-stages", Some(_)) => {
                let subject = self.guest(request)?;
                let stages = kernel::set(request, subject, take(files))?;
                self.say_that_it_is_set(request, subject);
                Ok(json!({ "kernel-stages": stages }))
            }
            ("poll" | "trace" | "probe" | "fault" | "limit", Some(value)) => {
                self.set(request, value)
            }
            (command, found) => match COMMANDS.iter().find(|(name, ..)| *name == command) {
                None => {
                    let names: Vec<_> = COMMANDS.iter().map(|(name, ..)| *name).collect();
                    Err(format!(
                        "expected one of the commands {}, found '{command}'",
                        names.join(", ")
                    ))
                }
                Some((name, "", _)) => {
                    Err(format!("expected no value for {name}, found '{}'", found.unwrap_or("")))
                }
                Some((name, form, _)) => Err(format!("expected {name} {form}, found no value")),
            },
        }
    }

    fn info(&self, request: &Request) -> Result<Value, String> {
        let plans: Vec<_> = self.guests(request)?.map(look::plan).collect();
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let arguments: Vec<_> =
            std::env::args_os().map(|it| it.to_string_lossy().into_owned()).collect();
        Ok(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "process": std::process::id(),
            "uptime_s": self.uptime(),
            "log": logging::level().map(|level| level.to_string()),
            "arguments": arguments,
            "kernel": release.trim(),
            "cpus": std::thread::available_parallelism().map_or(0, usize::from),
            "guests": plans,
        }))
    }

    fn status(&self, request: &Request) -> Result<Value, String> {
        let guests: Result<Vec<_>, _> = self.guests(request)?.map(look::status).collect();
        Ok(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_s": self.uptime(),
            "guests": guests?,
        }))
    }

    fn set(&self, request: &Request, value: &str) -> Result<Value, String> {
        let subject = self.guest(request)?;
        match request.command.as_str() {
            "poll" => {
                let policy = value.parse::<PollPolicy>()?;
                subject.set(|| Setting::Poll(policy))?;
            }
            "trace" => {
                let records = trace(value, subject)?;
                subject.set(|| Setting::Trace(records))?;
            }
            "probe" => {
                let targets = probes(value, subject)?;
                subject.set(|| Setting::Probes(targets.clone()))?;
            }
            "limit" => {
                let (direction, bucket) = limit(value, subject)?;
                subject.set(|| Setting::Limit(direction, bucket.clone()))?;
            }
            _ => {
                let (delays, planted) = faults(value, subject)?;
                subject.set(|| Setting::Faults(delays.clone(), planted.clone()))?;
            }
        }
        self.say_that_it_is_set(request, subject);
        let (standings, command) = (subject.standings()?, &request.command);
        let settings = standings.first().map(look::settings).unwrap_or_default();
        Ok(json!({ command: settings[command.as_str()] }))
    }

    fn say_that_it_is_set(&self, request: &Request, subject: &Subject) {
        let (name, command) = (&subject.plan.name, &request.command);
        let value = request.value.as_deref().unwrap_or_default();
        log_limit::info!(self.log, "{name}: the control socket sets {command} {value}");
    }

    fn uptime(&self) -> f64 {
        (self.started.elapsed().as_secs_f64() * 10.0).round() / 10.0
    }

    /// The guest that the request names, or all.
    fn guests<'s>(
        &'s self,
        request: &Request,
    ) -> Result<Box<dyn Iterator<Item = &'s Subject> + 's>, String> {
        match &request.guest {
            None => Ok(Box::new(self.guests.iter())),
            Some(_) => Ok(Box::new(std::iter::once(self.guest(request)?))),
        }
    }

    /// The guest that the request is about.
    fn guest(&self, request: &Request) -> Result<&Subject, String> {
        let names = || {
            let names: Vec<_> = self.guests.iter().map(|it| it.plan.name.as_str()).collect();
            names.join(", ")
        };
        match (&request.guest, self.guests.as_slice()) {
            (None, [only]) => Ok(only),
            (None, _) => Err(format!("expected \"guest\", one of {}, found none", names())),
            (Some(name), all) => all
                .iter()
                .find(|it| it.plan.name == *name)
                .ok_or_else(|| format!("expected one of the guests {}, found '{name}'", names())),
        }
    }
}

/// The answer to a request that is refused.
pub fn refusal(id: Option<Value>, why: &str) -> Value {
    with_id(id, json!({ "error": why }))
}

fn with_id(id: Option<Value>, mut answer: Value) -> Value {
    if let Some(id) = id {
        answer["id"] = id;
    }
    answer
}

fn help() -> Value {
    let line = |(name, form, what): &(&str, &str, &str)| match *form {
        "" => (name.to_string(), json!(what)),
        form => (name.to_string(), json!(format!("{form}: {what}"))),
    };
    Value::Object(COMMANDS.iter().map(line).collect())
}

fn trace(value: &str, subject: &Subject) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" if subject.standings()?.iter().any(|standing| standing.capture.is_some()) => {
            Err("expected trace on, because the capture needs the time stamps, found off".into())
        }
        "off" if subject.way.kernel.as_ref().is_some_and(|kernel| kernel.states().is_some()) => {
            Err("expected trace on, because kernel stages add to the records of bursts, found off; kernel-stages off ends them".into())
        }
        "off" => Ok(false),
        other => Err(format!("expected trace on or trace off, found '{other}'")),
    }
}

/// The probes of `value`, and those layer-2 frames that the daemon was started with: a recorder describes only these.
fn probes(value: &str, subject: &Subject) -> Result<ProbeTargets, String> {
    let cyclic = ProbeSpec::targets(&subject.plan.probes).cyclic;
    if value == "off" {
        return Ok(ProbeTargets { udp_ports: Vec::new(), cyclic });
    }
    let words: Vec<&str> = value.split_whitespace().collect();
    let most = burst_trace::cyclic::CYCLIC_MAX;
    if words.is_empty() || words.len() > most {
        return Err(format!("expected 1 to {most} UDP ports, or off, found {}", words.len()));
    }
    let port = |word: &&str| match word.parse::<u16>() {
        Ok(port @ 1..) => Ok(port),
        _ => Err(format!(
            "expected a UDP port of 1 to 65535, or off, found '{word}'; layer-2 frames are chosen when the daemon starts \
             (--trace-probe)"
        )),
    };
    let udp_ports: Result<Vec<u16>, String> = words.iter().map(port).collect();
    Ok(ProbeTargets { udp_ports: udp_ports?, cyclic })
}

fn limit(value: &str, subject: &Subject) -> Result<(Direction, Option<Arc<Bucket>>), String> {
    let wrong =
        || format!("expected limit tx RATE, limit rx RATE or limit tx off, found '{value}'");
    let (way, rate) = value.split_once(' ').ok_or_else(wrong)?;
    let direction = match way {
        "tx" => Direction::Tx,
        "rx" => Direction::Rx,
        _ => return Err(wrong()),
    };
    if rate == "off" {
        return Ok((direction, None));
    }
    let limit = rate.parse::<Limit>()?;
    let datapath = &subject.plan.datapath;
    let has_wire = !matches!(datapath, DatapathSpec::Switch { .. } | DatapathSpec::Reflect);
    if direction == Direction::Rx && !has_wire {
        return Err(format!("{}", PlanError::LimitWithoutWire));
    }
    Ok((direction, Some(Arc::new(Bucket::new(limit, &subject.clock)))))
}

/// Delays, and faults of the wire.
fn faults(value: &str, subject: &Subject) -> Result<(Vec<Delay>, Vec<Planted>), String> {
    if value == "off" {
        return Ok((Vec::new(), Vec::new()));
    }
    let all: Result<Vec<FaultSpec>, String> = value.split_whitespace().map(str::parse).collect();
    let is_on_switch = matches!(subject.plan.datapath, DatapathSpec::Switch { .. });
    let (delays, crashes, planted) =
        sort_faults(all?, is_on_switch).map_err(|why| why.to_string())?;
    if !crashes.is_empty() {
        return Err(
            "expected delays, drops or errors, found a panic; panics are planted when the \
                    daemon starts (--fault)"
                .into(),
        );
    }
    Ok((delays, planted))
}
