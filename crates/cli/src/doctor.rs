//! `ringscope doctor`: checks this host for measurements, and an interface for AF_XDP.
//!
//! Facts are gathered in one place and judged in another, so that tests judge hosts and interfaces that do not exist:
//!
//! - [`host`]: facts of this host; [`checks`]: their judgement.
//! - [`confinement`]: the security module that may confine QEMU, and its judgement.
//! - [`running`]: the daemons that run, and what may interrupt them; [`interruptions`]: its judgement.
//! - [`iface`]: facts of an interface, by netlink (`host-links`) and from files; [`advice`]: what to change there.
//! - [`files`]: sysfs and procfs; [`cpus`]: sets of CPUs in them.
//! - [`report`]: both as text.

mod advice;
mod checks;
mod confinement;
mod cpus;
pub mod files;
mod host;
mod iface;
mod interruptions;
mod report;
mod running;

use std::io;

use serde::Serialize;

use crate::plain::shown;
use crate::{Outcome, output};
use advice::Advice;
use checks::Check;
use confinement::Confinement;
use host::Host;
use iface::Interface;
use running::Running;

/// In place of a fact that the kernel does not report.
const NOT_AVAILABLE: &str = "not available here";

const EXAMPLES: &str = "\
Examples:
  ringscope doctor                  check this host
  ringscope doctor --iface eth0     check eth0 for AF_XDP
  ringscope doctor --json | jq '.host[] | select(.verdict == \"change\")'

Verdicts on the host:
  ok       nothing to do
  change   the command on the next line improves it
  note     nothing to do, but it matters when figures are read
  unknown  the kernel does not report it

Of daemons that run, it also finds what may take the CPU from their workers
and front ends: real-time threads, CPU quotas, interrupts, RPS, the hypervisor.

doctor changes nothing and needs no root.

Exit code: 0 whatever was found; 1 when there is no such interface.";

/// The flags of `ringscope doctor`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Arguments {
    /// Check this network interface for AF_XDP, not the host
    #[arg(long, value_name = "IF")]
    iface: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Why an interface could not be checked.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(
        "expected a network interface of this network namespace, found no '{0}'; `ip -br link` lists them"
    )]
    NoInterface(String),
    #[error("cannot ask the kernel about '{0}': {1}")]
    Kernel(String, io::Error),
}

/// What `--json` prints without `--iface`.
#[derive(Serialize)]
struct HostReport {
    host: Vec<Check>,
}

/// What `--json` prints with `--iface`.
#[derive(Serialize)]
struct InterfaceReport {
    interface: Interface,
    advice: Vec<Advice>,
    datapath: String,
}

/// Runs `ringscope doctor`.
///
/// # Errors
/// When there is no such interface, the kernel does not answer, or the output cannot be written.
pub fn run(arguments: &Arguments) -> Outcome {
    let text = match &arguments.iface {
        None => {
            let mut host = checks::checks(&Host::look());
            host.push(confinement::check(&Confinement::look()));
            host.extend(interruptions::checks(&Running::look()));
            let report = HostReport { host };
            if arguments.json { json(&report)? } else { shown(report::host(&report.host)) }
        }
        Some(name) => {
            let interface = look(name)?;
            let advice = advice::advice(&interface);
            let datapath = advice::datapath(&interface);
            let report = InterfaceReport { interface, advice, datapath };
            if arguments.json {
                json(&report)?
            } else {
                shown(report::interface(&report.interface, &report.advice, &report.datapath))
            }
        }
    };
    Ok(output::print(&text)?)
}

/// The facts of this host that a reader of figures needs.
pub fn summary() -> serde_json::Value {
    let host = Host::look();
    serde_json::json!({
        "kernel": host.release,
        "cpu": host::cpu_model(),
        "cpus": host.last_cpu.map(|last| last + 1),
        "is_virtual": host.hypervisor.is_there,
        "governors": host.governors.keys().collect::<Vec<_>>(),
        "isolated": host.isolated,
        "nohz_full": host.nohz_full,
        "smt": host.is_smt_active,
        "clocksource": host.clock_source.map(|source| source.current),
    })
}

fn look(name: &str) -> Result<Interface, LookError> {
    match Interface::named(name) {
        Ok(Some(interface)) => Ok(interface),
        Ok(None) => Err(LookError::NoInterface(name.into())),
        Err(error) => Err(LookError::Kernel(name.into(), error)),
    }
}

fn json(report: &impl Serialize) -> serde_json::Result<String> {
    Ok(serde_json::to_string_pretty(report)? + "\n")
}
