//! What runs beside the probes, from its start to its end.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::command::{Running, Stop};
use crate::cpus::{Cpus, last_level_cache_bytes};
use crate::end::EndError;
use crate::plan::{Load, RESPONDER};
use crate::variant::Built;

/// Where the responder takes TCP streams.
const TCP_PORT: u16 = 7008;
/// The same for iperf3, and as /proc/net/tcp writes it.
const IPERF3_PORT: u16 = 7009;
const IPERF3_PORT_HEX: &str = "1B61";
/// Longest time for a small step.
const STEP_LIMIT: Duration = Duration::from_secs(20);
/// Streams of the load.
const STREAMS: usize = 3;
/// Bytes of a stream: more than it can send before it is ended.
const STREAM_BYTES: u64 = 1 << 50;
/// Time for a load to reach its speed.
const SETTLES: Duration = Duration::from_millis(500);
/// Memory that `cache` walks through, times the last-level cache.
const TIMES_CACHE: u64 = 2;
/// The size of that cache where the kernel does not know it, bytes: larger than most.
const CACHE_BYTES: u64 = 128 << 20;

/// Ticks of `/proc/PID/stat` in a second: USER_HZ of include/asm-generic/param.h, on x86-64 and aarch64.
const TICKS_A_SECOND: f64 = 100.0;

/// What a busy program took from its CPU.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    /// The CPU that it was bound to.
    pub cpu: usize,
    /// Time from its start to its end, seconds.
    pub seconds: f64,
    /// CPU time that it had, seconds.
    pub cpu_seconds: f64,
}

/// A load that is to run beside the probes of a variant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loading<'a> {
    pub stop: &'a Stop,
    pub built: &'a Built,
    /// The host's `ringscope`.
    pub ringscope: &'a Path,
    pub load: Load,
    /// `None`: any part has any CPU.
    pub cpus: Option<Cpus>,
    /// Seconds after which it has ended by itself.
    pub lifetime_s: u64,
}

/// A load that runs.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// Processes at the talker.
    at_talker: Vec<u32>,
    /// Processes at the responder.
    at_responder: Vec<u32>,
    /// The process of iperf3 at the talker. Our own programs try again until they are connected; it does not.
    client: Option<u32>,
    busy: Vec<Busy>,
}

/// A busy program on this host, which ends when it is dropped.
#[derive(Debug)]
struct Busy {
    cpu: usize,
    began: Instant,
    program: Running,
}

/// A load has not run as it should.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A program could not be started or ended.
    #[error(transparent)]
    End(#[from] EndError),
    /// The talker's program has ended too early.
    #[error(
        "expected iperf3 at the talker to run until the probes are done, found that it has ended: does `iperf3 --client {RESPONDER} --port {IPERF3_PORT}` run there?"
    )]
    NoStream,
    /// The CPU is not known.
    #[error(
        "load {0}: expected that the parts of a variant have CPUs of their own, found that they share all; use --pin on, on a host with two CPUs"
    )]
    NoCpu(&'static str),
    /// A busy program has ended too early.
    #[error(
        "expected `ringscope agent busy` to run on CPU {cpu} until the probes are done, found that it has ended"
    )]
    Idle {
        /// Its CPU.
        cpu: usize,
    },
}

impl Loading<'_> {
    /// Starts it, and waits until it has its speed.
    ///
    /// # Errors
    /// If a program cannot be started; and when `stop` is set.
    pub(crate) fn start(&self) -> Result<Loaded, LoadError> {
        let loaded = match self.load {
            Load::None => return Ok(Loaded::default()),
            Load::Streams => self.streams()?,
            Load::Iperf3 => self.iperf3()?,
            Load::CpuWorker | Load::CpuGuest | Load::CpuOther | Load::Cache => self.busy()?,
        };
        sleep(SETTLES);
        loaded.expect_client(self.stop, self.built)?;
        Ok(loaded)
    }

    fn streams(&self) -> Result<Loaded, EndError> {
        let lifetime = self.lifetime_s;
        let line = format!(
            "tcp-send {RESPONDER}:{TCP_PORT} --no-hash --bytes {STREAM_BYTES} --timeout {lifetime}"
        );
        let start = |_| self.built.talker.start_agent(self.stop, &line);
        let at_talker = (0..STREAMS).map(start).collect::<Result<_, _>>()?;
        Ok(Loaded { at_talker, ..Loaded::default() })
    }

    /// One process of iperf3 at each end.
    fn iperf3(&self) -> Result<Loaded, EndError> {
        let Self { stop, built, lifetime_s, .. } = *self;
        let server = format!("iperf3 --server --one-off --version4 --port {IPERF3_PORT}");
        let mut loaded = Loaded::default();
        loaded.at_responder.push(built.responder.start(stop, &server)?);
        built.responder.await_port(stop, IPERF3_PORT_HEX, STEP_LIMIT)?;
        let client = format!(
            "iperf3 --client {RESPONDER} --port {IPERF3_PORT} --parallel {STREAMS} --time {lifetime_s}"
        );
        loaded.client = Some(built.talker.start(stop, &client)?);
        loaded.at_talker.extend(loaded.client);
        Ok(loaded)
    }

    /// Why this load cannot run between these ends; `None` if it can.
    ///
    /// # Errors
    /// If an end does not answer; and when `stop` is set.
    pub(crate) fn obstacle(&self) -> Result<Option<String>, LoadError> {
        if self.load != Load::Iperf3 {
            return Ok(None);
        }
        for (name, end) in [("talker", &self.built.talker), ("responder", &self.built.responder)] {
            if !end.has(self.stop, "iperf3", STEP_LIMIT).map_err(EndError::from)? {
                return Ok(Some(format!(
                    "expected the program iperf3 at the {name}, found none: run qemu-scripts/setup --lab"
                )));
            }
        }
        Ok(None)
    }

    /// A busy program on each CPU that the load is for.
    fn busy(&self) -> Result<Loaded, LoadError> {
        let cpus = self.cpus.ok_or(LoadError::NoCpu(self.load.name()))?;
        let (first, last) = match self.load {
            Load::CpuWorker => (cpus.worker, cpus.worker),
            Load::CpuGuest => (cpus.guests.first, cpus.guests.last),
            Load::Cache => (cpus.talker.first, cpus.talker.first),
            _ => (cpus.talker.first, cpus.talker.last),
        };
        let memory = match self.load {
            Load::Cache => last_level_cache_bytes(first).unwrap_or(CACHE_BYTES) * TIMES_CACHE,
            _ => 0,
        };
        let start = |cpu: usize| {
            let mut command = Command::new(self.ringscope);
            command.args(["agent", "busy", "--cpu", &cpu.to_string()]);
            command.args(["--memory", &memory.to_string()]);
            command.args(["--timeout", &self.lifetime_s.to_string()]);
            // Found by it when the variant is taken down, even if this process is killed.
            command.env("RINGSCOPE_VARIANT", self.built.directory());
            let program = Running::start(&mut command).map_err(EndError::from)?;
            Ok::<_, LoadError>(Busy { cpu, began: Instant::now(), program })
        };
        let busy = (first..=last).map(start).collect::<Result<_, _>>()?;
        Ok(Loaded { busy, ..Loaded::default() })
    }
}

impl Loaded {
    /// Ends it. Returns what busy programs took.
    ///
    /// # Errors
    /// If an end does not answer, or a busy program has ended before.
    pub(crate) fn end(self, stop: &Stop, built: &Built) -> Result<Vec<Pressure>, LoadError> {
        self.expect_client(stop, built)?;
        for (end, pids) in [(&built.talker, self.at_talker), (&built.responder, self.at_responder)]
        {
            for pid in pids {
                end.end_process(stop, pid).map_err(EndError::from)?;
            }
        }
        self.busy.into_iter().map(Busy::end).collect()
    }

    fn expect_client(&self, stop: &Stop, built: &Built) -> Result<(), LoadError> {
        match self.client {
            Some(pid) if !built.talker.is_running(stop, pid).map_err(EndError::from)? => {
                Err(LoadError::NoStream)
            }
            _ => Ok(()),
        }
    }
}

impl Busy {
    fn end(self) -> Result<Pressure, LoadError> {
        let Self { cpu, began, program } = self;
        let seconds = began.elapsed().as_secs_f64();
        let stat = fs::read_to_string(format!("/proc/{}/stat", program.pid())).unwrap_or_default();
        let cpu_seconds = cpu_seconds(&stat).ok_or(LoadError::Idle { cpu })?;
        Ok(Pressure { cpu, seconds, cpu_seconds })
    }
}

/// The CPU time of a process that runs, by its `/proc/PID/stat` (proc_pid_stat(5)): user time is field 14, system time
/// field 15. The name in field 2 may have spaces and parentheses.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let fields: Vec<_> = after_name.split(' ').collect();
    let ticks = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let has_ended = matches!(fields.first(), Some(&("Z" | "X")));
    let seconds = (ticks(14)? + ticks(15)?) as f64 / TICKS_A_SECOND;
    (!has_ended).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_time_of_a_process_is_read() {
        let stat = |state| {
            format!("7 (a) b) {state} 1 7 7 0 -1 4194304 95 0 0 0 200 300 0 0 20 0 1 0 55 3 4")
        };
        assert_eq!(cpu_seconds(&stat("R")), Some(5.0));
        assert_eq!(cpu_seconds(&stat("Z")), None);
        assert_eq!(cpu_seconds(""), None);
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        assert!(cpu_seconds(&own).is_some(), "{own}");
    }
}
