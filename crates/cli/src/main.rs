//! `ringscope`: shows where each packet's time goes between a QEMU guest and the wire.
//!
//! Each subcommand has a file:
//!
//! - [`stats`]: prints the breakdown of a recorder, as tables or as one JSON object.
//! - [`top`]: shows the same live.
//! - [`record`]: copies the records of a recorder to a file, before they are overwritten.
//! - [`report`]: prints a recording or a recorder, or converts it for other tools.
//! - [`why`]: the slow packets of a recording, grouped by cause.
//! - [`doctor`]: checks this host for measurements, and an interface for AF_XDP.
//! - [`ctl`]: asks a running daemon how it stands, and tells it other settings.
//! - [`lab`]: compares variants of the way between two ends, in one table.
//! - [`pages`]: manual pages and shell completions.
//!
//! And what they share:
//!
//! - [`recorder`]: finds the recorder to read; [`input`]: opens it, or a file given by its path;
//!   [`probes`]: reads the stamps of probe packets.
//! - [`output`]: standard output and files; [`progress`]: how far a long job is; [`plain`]: text for
//!   terminals without UTF-8.

mod clocks;
mod ctl;
mod doctor;
mod input;
mod lab;
mod output;
mod pages;
mod plain;
mod probes;
mod progress;
mod record;
mod recorder;
mod report;
mod stats;
mod top;
mod why;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use ::report::without_controls;
use clap::{Parser, Subcommand};
use signal_hook::consts::SIGXFSZ;

use crate::plain::shown;

/// Width of the help texts, in columns. No line of [`EXAMPLES`] is longer, so that none is broken.
const COLUMNS: usize = 80;

#[derive(Parser)]
#[command(
    version,
    about = "Shows where each packet's time goes between a QEMU guest and the wire",
    after_long_help = EXAMPLES,
    term_width = COLUMNS
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the time spent in each stage
    Stats(stats::Arguments),
    /// Show live the time spent in each stage, queue by queue
    Top(top::Arguments),
    /// Record to a file, always or around slow packets
    Record(record::Arguments),
    /// Print a recording, or convert it for other tools
    Report(report::Arguments),
    /// Say why packets were slow, and what to do
    Why(why::Arguments),
    /// Check this host for measurements, or an interface for AF_XDP
    Doctor(doctor::Arguments),
    /// Ask a running daemon how it stands, or change its settings
    Ctl(ctl::Arguments),
    /// Compare ways between a guest and the wire, in one table
    Lab(lab::Arguments),
    /// Send, answer and measure traffic, in guests and on the far host
    Agent(agent::Args),
    /// Print what a shell reads to complete subcommands and flags
    Completions(pages::Completions),
    /// Write the manual pages, one for each subcommand
    Man(pages::Man),
}

const EXAMPLES: &str = "\
ringscoped writes a record of every burst of packets to its flight recorder,
the file RUN_DIR/NAME.trace. stats and top read this file; the daemon never
waits for them.

Examples:
  ringscope stats                    all that the only recorder here holds
  ringscope stats --last 5 --json    the last 5 seconds, as one JSON object
  ringscope top --name vm0           live, of ringscoped --name vm0
  ringscope record --when 'rx.total>500us' -o slow.rec
  ringscope report slow.rec
  ringscope why slow.rec             why its slowest packets were slow
  ringscope doctor --iface eth0      what to change on eth0 for AF_XDP
  ringscope lab list                 the ways to a guest that lab compares

Exit code: 0; 1 with one sentence on standard error; 2 for wrong flags; 3 if
record --when has recorded nothing.";

/// Exit status of `ringscope record --when` that recorded nothing.
const STATUS_NOTHING_MET: u8 = 3;

/// Exit status of `ringscope lab` that a signal has ended: that of a shell for SIGINT.
const STATUS_INTERRUPTED: u8 = 130;

const SHORTENED: &str = "a recorder or recording was shortened while it was read, so the result is incomplete; read it \
again, and find the program that truncates it";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // With the signal handled, a write beyond the file-size limit fails (EFBIG), as on a full disk, and kills nothing.
    if let Err(error) = signal_hook::flag::register(SIGXFSZ, Arc::default()) {
        eprintln!("ringscope: signals cannot be handled: {error}");
        return ExitCode::FAILURE;
    }
    // It reads no recorder; the page that it shares with a guest has an error of its own.
    let is_agent = matches!(arguments.command, Command::Agent(_));
    let done = match arguments.command {
        Command::Stats(arguments) => stats::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Record(arguments) => record::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
        Command::Why(arguments) => why::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Ctl(arguments) => ctl::run(&arguments),
        Command::Lab(arguments) => lab::run(&arguments),
        Command::Agent(arguments) => agent::run(arguments).map_err(Into::into),
        Command::Completions(arguments) => pages::completions(&arguments),
        Command::Man(arguments) => pages::man(&arguments),
    };
    match done {
        // The missing part was read as zeroes.
        _ if !is_agent && file_mapping::generation() > 0 => {
            eprintln!("ringscope: {SHORTENED}");
            ExitCode::FAILURE
        }
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringscope: {}", shown(without_controls(&error.to_string())));
            if error.is::<record::NothingMet>() {
                return ExitCode::from(STATUS_NOTHING_MET);
            }
            if lab::is_interruption(error.as_ref()) {
                return ExitCode::from(STATUS_INTERRUPTED);
            }
            ExitCode::FAILURE
        }
    }
}

/// The result of a subcommand. Its error is printed as it is.
type Outcome = Result<(), Box<dyn Error>>;

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn help_fits_the_terminal() {
        let mut command = Arguments::command();
        for help in [command.render_help(), command.render_long_help()] {
            let help = help.to_string();
            let long: Vec<_> = help.lines().filter(|line| line.chars().count() > COLUMNS).collect();
            assert!(long.is_empty(), "{long:#?}");
        }
        for text in EXAMPLES.lines() {
            assert!(text.chars().count() <= COLUMNS, "{text}");
        }
    }
}
