//! `ringscope stats`: the breakdown of a recorder, as tables or as one JSON object.

use std::path::{Path, PathBuf};
use std::time::Duration;

use burst_trace::Source;
use report::figures::TickRate;
use report::journey;
use report::round_trip::{Exchanges, Measured};
use report::units::grouped;
use report::{Breakdown, Initiator, RoundTrip, Window, json, table};

use crate::plain::shown;
use crate::probes::Probes;
use crate::recorder::{Choice, Found, say_if_ended};
use crate::{Outcome, output};

const EXAMPLES: &str = "\
Examples:
  ringscope stats                    all records of the only recorder
  ringscope stats --last 5           bursts that ended in the last 5 seconds
  ringscope stats --json | jq '.tx.stages[] | {stage, p99_ns}'
  ringscope stats --last 10 --round-trip ping.json
                                     the daemon's, guest's and host's parts of
                                     a round trip
  ringscope stats --probes ping.csv --echo echo.csv
                                     the same for each packet, from application
                                     to application

A burst's time in a stage is the time of each of its packets there; `count` is
the number of packets. Stages of tier D are measured by the daemon and add up
to the total. Stages of tiers K (host kernel) and G (guest) are n/a, in JSON
\"count\": null, unless something measures them. The column `not running` (in
JSON not_running_mean_ns) is the part of the mean in which the worker did not
run; with --kernel-stages only. Drops are counted since the daemon's start,
with --last in that time. In JSON, `counted` has all packets, bytes and bursts
since the daemon's start, also those of overwritten records.";

/// The flags of `ringscope stats`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    choice: Choice,
    /// Print one JSON object instead of tables
    #[arg(long, conflicts_with = "round_trip")]
    json: bool,
    /// Only bursts that ended in the last SECONDS
    ///
    /// They count back from now, or from the newest record when the daemon has ended.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, conflicts_with = "probes")]
    last: Option<Duration>,
    /// Split the round trip in this JSON file of `ringscope agent udp-ping`
    ///
    /// It has to be measured in the same time.
    #[arg(long, value_name = "FILE", conflicts_with = "probes")]
    round_trip: Option<PathBuf>,
    #[command(flatten)]
    probes: Probes,
}

/// Longest duration on the command line, seconds: some 30 years.
const SECONDS_MAX: f64 = 1e9;

/// A duration given as a number of seconds above 0.
///
/// # Errors
/// When the text is something else.
pub fn seconds(text: &str) -> Result<Duration, String> {
    duration(text).filter(|duration| !duration.is_zero()).ok_or_else(|| {
        "expected a number of seconds above 0, such as 5 or 0.5, and at most 1000000000".into()
    })
}

/// A duration given as a number of seconds; may be 0.
///
/// # Errors
/// When the text is something else.
pub fn seconds_or_none(text: &str) -> Result<Duration, String> {
    duration(text).ok_or_else(|| {
        "expected a number of seconds, such as 0, 5 or 0.5, and at most 1000000000".into()
    })
}

fn duration(text: &str) -> Option<Duration> {
    let seconds: f64 = text.parse().ok()?;
    (0.0..=SECONDS_MAX).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

/// Runs `ringscope stats`.
///
/// # Errors
/// When there is no recorder to read, or the output cannot be written.
pub fn run(arguments: &Arguments) -> Outcome {
    let Found { name, reader, .. } = arguments.choice.open()?;
    say_if_ended(&name, &reader);
    let source = Source::from(reader);
    let window = arguments.last.map_or(Window::Held, Window::Last);
    let text = if let Some(joined) = arguments.probes.join(&source)? {
        if arguments.json {
            journey::to_json(&joined) + "\n"
        } else {
            shown(journey::to_text(&joined))
        }
    } else if arguments.json {
        let breakdown = Breakdown::read(&source, &name, window);
        warn_of_lost_records(&breakdown);
        json::to_json(&breakdown) + "\n"
    } else if let Some(file) = &arguments.round_trip {
        let (breakdown, trip) =
            take_apart(&source, &name, window, file, arguments.probes.initiator())?;
        shown(table::to_table(&breakdown, Some(&trip)))
    } else {
        shown(table::to_table(&Breakdown::read(&source, &name, window), None))
    };
    Ok(output::print(&text)?)
}

fn take_apart(
    source: &Source,
    name: &str,
    window: Window,
    file: &Path,
    initiator: Initiator,
) -> Result<(Breakdown, RoundTrip), report::RoundTripError> {
    let measured = Measured::read(file)?;
    let rate = TickRate::new(source.ticks_per_second());
    let mut exchanges = Exchanges::new(initiator, source.queue_pairs(), rate, measured.max_ns);
    let breakdown = Breakdown::read_with(source, name, window, |record| exchanges.add(record));
    Ok((breakdown, exchanges.explain(measured)))
}

/// The object has no place for it, and a reader of the object should not miss it.
fn warn_of_lost_records(breakdown: &Breakdown) {
    if breakdown.lost_records > 0 {
        let lost = grouped(breakdown.lost_records);
        eprintln!("ringscope: {lost} records were overwritten while this was read");
    }
}
