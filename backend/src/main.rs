//! `ringscoped`: a vhost-user network back end that shows where every packet's time goes.
//!
//! `args` (raw flags), or `config` (a file of them) -> `plan` (flags checked against each other, nothing opened) ->
//! `assemble` (opens everything, chooses each datapath once, serves).

mod announce;
mod args;
mod assemble;
mod capture;
mod clock;
mod config;
mod confinement;
mod control;
mod device;
mod error;
mod facts;
mod guest;
mod journal;
mod kernel;
mod limits;
mod link_speed;
mod logging;
mod manager;
mod moved;
mod part;
mod plan;
mod print;
mod privileges;
mod probes;
mod reload;
mod services;
mod spec;
mod stop;
mod supervisor;
mod sys;
mod takeover;
mod wires;
mod withheld;

use std::process::ExitCode;
use std::sync::Arc;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use confine::{Policy, Role, Seccomp};
use signal_hook::consts::SIGXFSZ;
use vhost_control::{descriptors_of, raise_descriptor_limit as raise_limit};

use crate::args::Args;
use crate::config::Config;
use crate::part::Part;
use crate::plan::{Confinement, Plan};
use crate::stop::Stop;
use crate::takeover::take::Taking;
use crate::wires::Handed;

/// Exit status after a fault of the daemon itself (`sysexits.h`, `EX_SOFTWARE`).
const STATUS_FAULT: u8 = 70;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|first| first == foreign_files::ARGUMENT) {
        return help();
    }
    let args = Args::parse();
    if let Some(text) = print::asked(&args) {
        return print::out(&text);
    }
    let print_privileges = args.print_privileges;
    let plan = plan(args)
        .unwrap_or_else(|error| Args::command().error(ErrorKind::ArgumentConflict, error).exit());
    if print_privileges {
        return print::out(privileges::text(&plan).as_bytes());
    }
    logging::start(plan.log_format, plan.log_level.as_ref().or(plan.config_log_level.as_ref()));
    match run(&plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringscoped: {error}");
            if error.is_fault() { ExitCode::from(STATUS_FAULT) } else { ExitCode::FAILURE }
        }
    }
}

/// Runs as a helper of another daemon.
fn help() -> ExitCode {
    if std::env::args_os().nth(2).is_some_and(|second| second == confinement::CONFINED) {
        // Without a filter, because it executes programs. So nothing fails here.
        let _ = confine::start(Policy { seccomp: Seccomp::Off, ..Policy::default() });
        confine::enter(Role::Helper);
    }
    match foreign_files::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "ringscoped: {} is for ringscoped itself, which starts it with a socket as its standard input: {error}",
                foreign_files::ARGUMENT
            );
            ExitCode::FAILURE
        }
    }
}

/// Makes the plan from the flags, or from the file that they name.
fn plan(args: Args) -> Result<Plan, String> {
    let confinement = Confinement::of(&args);
    let Some(path) = &args.config else {
        let own = args.clone();
        let plan = Plan::new(vec![args], own.run_dir.clone()).map_err(|error| error.to_string())?;
        return Ok(Plan { confinement, ..plan.with(own, Config::default()) });
    };
    let mut config = Config::read(path)?;
    let guests = std::mem::take(&mut config.guests);
    let run_dir = args.run_dir.clone().or_else(|| config.run_dir.clone());
    let plan =
        Plan::new(guests, run_dir).map_err(|error| format!("{}: {error}", path.display()))?;
    let part = args.part.clone();
    let plan = Plan { confinement, ..plan.with(args, config) };
    match part {
        Some(part) => plan.only(part),
        None if plan.is_isolated => plan.parts().map(|_| plan),
        None => Ok(plan),
    }
    .map_err(|error| error.to_string())
}

fn run(plan: &Plan) -> Result<(), error::Error> {
    if plan.is_isolated && plan.part.is_none() {
        let stop = Stop::on_signals(true).map_err(error::Error::Signals)?;
        return supervisor::run(plan, &stop);
    }
    raise_descriptor_limit(plan);
    // Before anything is opened: a file that is opened before could get the number of a descriptor that was handed over.
    let taken = plan.take_over.is_none().then(|| Handed::take_over(plan)).transpose()?;
    let socket_owner = confinement::begin(plan)?;
    if plan.part.is_some() {
        supervisor::end_with_it();
    }
    let mut handed = match &plan.take_over {
        None => taken.unwrap_or_default(),
        Some(before) => Handed::from_daemon(Taking::begin(plan, before)?),
    };
    handed.socket_owner = socket_owner;
    // With this signal handled, a write over the file-size limit fails (EFBIG), as on a full disk. It does not end the
    // process.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map_err(error::Error::Signals)?;
    let stop = Stop::on_signals(plan.config.is_some()).map_err(error::Error::Signals)?;
    match plan.part {
        Some(Part::Metrics) => services::serve_metrics_only(plan, &stop),
        Some(Part::Guests(_)) | None => assemble::run(plan, handed, &stop),
    }
}

/// Raises the limit of open files. One front end can make this process hold several hundred descriptors. If all together
/// exceed the limit, one guest can keep others from connecting.
fn raise_descriptor_limit(plan: &Plan) {
    let guests = plan.guests.iter().map(|guest| descriptors_of(guest.queue_pairs));
    let wanted: u64 = guests.sum();
    match raise_limit() {
        Ok(limit) if limit < wanted => log::warn!(
            "front ends may use up to {wanted} file descriptors, but the limit is {limit}; raise the hard limit \
             (ulimit -Hn, LimitNOFILE= of systemd), or one guest may keep others from connecting"
        ),
        Ok(_) => {}
        Err(error) => log::warn!("the limit of open files cannot be raised: {error}"),
    }
}
