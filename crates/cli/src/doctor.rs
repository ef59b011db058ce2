//! `ringscope doctor`: what on this host will spoil a measurement, and what AF_XDP can do on an interface.
//!
//! Gathering is apart from judging, so that hosts and interfaces can be judged that are not at hand:
//!
//! - [`host`]: what the kernel tells of this host; [`checks`]: what to think of it.
//! - [`iface`]: what it tells of an interface; [`advice`]: what to change there.
//! - [`files`]: sysfs and procfs.
//! - [`report`]: both as text.

mod advice;
mod checks;
mod files;
mod host;
mod iface;
mod report;

use std::io;

use serde::Serialize;

use crate::{Outcome, output};
use advice::Advice;
use checks::Check;
use host::Host;
use iface::Interface;

const EXAMPLES: &str = "\
Examples:
  ringscope doctor                  what of this host is ok, and what changes the rest
  ringscope doctor --iface eth0     what AF_XDP can do on eth0, and what to change
  ringscope doctor --json | jq -r '.host[] | select(.verdict == \"change\") | .change'

Verdicts: ok; change, with the command that does; note, to be known when figures are read; unknown, where \
the kernel does not tell. Nothing is changed, and root is not needed.

Exit code: 0 when it could be read, whatever was found, or 1 when there is no such interface.";

/// The flags of `ringscope doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The network interface that AF_XDP is to be used on
    #[arg(long, value_name = "IF")]
    iface: Option<String>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Why an interface could not be looked at.
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

/// What it prints with it.
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
            let report = HostReport { host: checks::checks(&Host::look()) };
            if arguments.json { json(&report)? } else { report::host(&report.host) }
        }
        Some(name) => {
            let interface = look(name)?;
            let advice = advice::advice(&interface);
            let datapath = advice::datapath(&interface);
            let report = InterfaceReport { interface, advice, datapath };
            if arguments.json {
                json(&report)?
            } else {
                report::interface(&report.interface, &report.advice, &report.datapath)
            }
        }
    };
    Ok(output::print(&text)?)
}

/// What a reader of figures has to know of this host, in short.
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
