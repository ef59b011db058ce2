//! `ringscope`: where every packet's time goes between a QEMU guest and the wire.
//!
//! One file a subcommand:
//!
//! - [`stats`]: the breakdown of a recorder, as tables or as one JSON object.
//! - [`top`]: the same, live.
//! - [`record`]: keeps what a recorder holds for a moment only, in a file.
//! - [`report`]: such a file, or a recorder, as tables or as a file for other tools.
//! - [`doctor`]: what on this host spoils a measurement, and what AF_XDP can do on an interface.
//! - [`recorder`]: which recorder they read; [`probes`]: which probe packets they join.
//! - [`output`]: standard output that may be closed, and files that are never written over; [`progress`]: how far something is.

mod doctor;
mod output;
mod probes;
mod progress;
mod record;
mod recorder;
mod report;
mod stats;
mod top;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use ::report::without_controls;
use clap::{Parser, Subcommand};
use signal_hook::consts::SIGXFSZ;

#[derive(Parser)]
#[command(
    version,
    about = "Shows where every packet's time goes between a QEMU guest and the wire"
)]
#[command(after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print where the time went, stage by stage
    Stats(stats::Arguments),
    /// Show live where the time goes, stage by stage and queue by queue
    Top(top::Arguments),
    /// Keep what comes, or what was before and after something slow, in a file
    Record(record::Arguments),
    /// Print where the time went in a recording, or make a file of it for other tools
    Report(report::Arguments),
    /// Say what on this host will spoil a measurement, or what AF_XDP can do on an interface
    Doctor(doctor::Arguments),
    /// The end point of measurements, in guests and on the far host
    Agent(agent::Args),
}

const EXAMPLES: &str = "\
ringscoped writes what every burst of packets went through into a flight recorder, RUN_DIR/NAME.trace; \
stats and top only read it, and the daemon never waits for them.

Examples:
  ringscope stats                   all that the only recorder of this host still holds
  ringscope stats --last 5 --json   the last 5 seconds, as one JSON object
  ringscope top --name vm0          live, for the daemon that was started with --name vm0
  ringscope record --when 'rx.total>500us' -o slow.rec && ringscope report slow.rec
  ringscope doctor --iface eth0     what to change on eth0 for --datapath af-xdp:ifname=eth0

Exit code: 0, or 1 with one sentence on standard error, or 2 for wrong flags.";

const SHORTENED: &str = "a recorder or recording became shorter while it was read, so the result is incomplete; read it \
again, and find the program that truncates it";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // With the signal handled, a write over the file-size limit fails (EFBIG), as on a full disk, and ends nothing.
    if let Err(error) = signal_hook::flag::register(SIGXFSZ, Arc::default()) {
        eprintln!("ringscope: signals cannot be handled: {error}");
        return ExitCode::FAILURE;
    }
    let done = match arguments.command {
        Command::Stats(arguments) => stats::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Record(arguments) => record::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Agent(arguments) => agent::run(arguments).map_err(Into::into),
    };
    match done {
        // The missing part was read as zeroes.
        _ if file_mapping::generation() > 0 => {
            eprintln!("ringscope: {SHORTENED}");
            ExitCode::FAILURE
        }
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringscope: {}", without_controls(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}

/// What a subcommand comes to; the error is printed as it is.
type Outcome = Result<(), Box<dyn Error>>;
