//! `ringscope report`: a recording, or a recorder, as tables or as a file that other tools read.

use std::error::Error;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use burst_trace::Source;
use clap::ValueEnum;
use host_files::Output;
use report::csv::write_csv;
use report::hlog::{HlogError, write_hlog};
use report::html::{PASSES, write_html};
use report::journey::{self, Journeys};
use report::pcapng::write_pcapng;
use report::perfetto::write_perfetto;
use report::units::grouped;
use report::{Breakdown, Window, json, table};

use crate::Outcome;
use crate::input::{Inputs, open_file};
use crate::output::{BinaryToTerminal, guard};
use crate::plain::shown;
use crate::probes::Probes;
use crate::progress::Countdown;

const EXAMPLES: &str = "\
Examples:
  ringscope report slow.rec             where the time went, as tables
  ringscope report                      the same for the only recorder
  ringscope report /run/ringscope/vm0.trace.crashed
                                        the recorder of a crashed daemon
  ringscope report old.trace new.trace  a guest that moved between hosts, with
                                        the time in which it had no network
  ringscope report slow.rec --format html -o slow.html
  ringscope report after.rec --format html --before before.rec -o change.html
  ringscope report probes.rec --probes ping.csv --format html -o probes.html
                                        with probe packets, from application
                                        to application
  ringscope report slow.rec --format csv -o slow.csv
  ringscope report slow.rec --format perfetto -o slow.pftrace
                                        open it at https://ui.perfetto.dev
  ringscope report slow.rec --format pcapng | tshark -r - -T fields \\
      -e frame.time_epoch -e frame.comment

Formats:
  table     the breakdown, as tables
  json      the breakdown, as the object of `ringscope stats --json`
  html      one page that needs no network: a summary, the stages of the mean
            and of the slowest packets, distributions, a time line, and the
            timeline of each of the slowest bursts; --before compares two
            recordings
  csv       a line for each burst, drop, time in the host kernel and
            interruption; times in ns, start_ns is CLOCK_REALTIME; a field is
            empty if its stage belongs to the other direction or was not
            measured
  hlog      an HdrHistogram interval log: a histogram for each second,
            direction and stage, in ns
  perfetto  a trace for the Perfetto UI: a track for each queue, a slice for
            each burst and stage, an instant for each drop, tracks for the
            host kernel and for what interrupted each thread; times are
            CLOCK_MONOTONIC
  pcapng    a capture without frames, because records have none: an empty
            packet for each burst, drop, time in the host kernel and
            interruption, with a comment; a burst's packet has the mean length
            of its frames; time is CLOCK_REALTIME at the first boundary

-o FILE replaces a regular file when the report is finished. If the report
fails, the old file stays. A link is followed. A device or FIFO is written
directly. Inputs and recorders are never overwritten.

With --probes, table and json print the same as `ringscope stats --probes`,
csv has a line for each answered probe with the parts of its round trip, and
html has one more section.";

/// The flags of `ringscope report`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    input: Inputs,
    /// The report's format
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// With --format html: compare with this earlier recording
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
    #[command(flatten)]
    probes: Probes,
    /// Write to this file; - is standard output [default: -]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Html,
    Json,
    Csv,
    Hlog,
    Perfetto,
    Pcapng,
}

impl Format {
    /// Whether joined probes have a place in it.
    fn takes_probes(self) -> Result<(), NoPlace> {
        match self {
            Self::Table | Self::Html | Self::Json | Self::Csv => Ok(()),
            Self::Hlog => Err(NoPlace("hlog")),
            Self::Perfetto => Err(NoPlace("perfetto")),
            Self::Pcapng => Err(NoPlace("pcapng")),
        }
    }
}

impl Format {
    /// What it is called, if it is no text.
    const fn binary(self) -> Option<&'static str> {
        match self {
            Self::Perfetto => Some("--format perfetto"),
            Self::Pcapng => Some("--format pcapng"),
            Self::Table | Self::Html | Self::Json | Self::Csv | Self::Hlog => None,
        }
    }
}

/// `--before` without anything that compares.
#[derive(Debug, thiserror::Error)]
#[error(
    "--before compares in --format html only; make both reports and compare them, or take that format"
)]
struct NothingCompared;

/// `--probes` with a format that has no place for them.
#[derive(Debug, thiserror::Error)]
#[error(
    "--probes is for --format table, json, csv and html: --format {0} has no place for joined probes; take one of those"
)]
struct NoPlace(&'static str);

/// The output could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {source}; choose another -o, or make room there")]
struct WriteError {
    path: PathBuf,
    source: io::Error,
}

/// Runs `ringscope report`.
///
/// # Errors
/// When there is nothing to read, or the output cannot be written.
pub fn run(arguments: &Arguments) -> Outcome {
    let (source, name) = arguments.input.open()?;
    let before = arguments.before.as_deref().map(open_file).transpose()?;
    let before_name = arguments.before.as_deref().map(|path| path.display().to_string());
    if before.is_some() && arguments.format != Format::Html {
        return Err(NothingCompared.into());
    }
    if arguments.probes.are_asked_for() {
        arguments.format.takes_probes()?;
    }
    let error = |path: &Path, source| WriteError { path: path.into(), source };
    let inputs: Vec<_> = source
        .files()
        .into_iter()
        .chain(before.as_ref().map(|before| before.file()))
        .chain(arguments.probes.files())
        .collect();
    // An output that cannot be written is an error before anything is read.
    let open = |path| Output::open(path, guard(&inputs)).map_err(|source| error(path, source));
    let output = arguments.output.as_deref().map(open).transpose()?;
    let is_terminal =
        output.as_ref().map_or_else(|| io::stdout().is_terminal(), Output::is_terminal);
    if let Some(format) = arguments.format.binary().filter(|_| is_terminal) {
        return Err(BinaryToTerminal(format).into());
    }
    let journeys = arguments.probes.join(&source)?;
    let what = What {
        source: &source,
        before: before.as_ref().zip(before_name.as_deref()),
        journeys: journeys.as_ref(),
        name: &name,
    };
    let (Some(path), Some(output)) = (&arguments.output, output) else {
        return write(&mut BufWriter::new(io::stdout().lock()), what, arguments.format);
    };
    let mut out = BufWriter::new(output);
    write(&mut out, what, arguments.format).map_err(|failed| match failed.downcast() {
        Ok(source) => error(path, *source).into(),
        Err(other) => other,
    })?;
    let output = out.into_inner().map_err(|failed| error(path, failed.into_error()))?;
    Ok(output.keep().map_err(|source| error(path, source))?)
}

/// What a report is of.
#[derive(Clone, Copy)]
struct What<'a> {
    source: &'a Source,
    /// With its file's name.
    before: Option<(&'a Source, &'a str)>,
    journeys: Option<&'a Journeys>,
    /// By the file's name; the daemon's own counts more.
    name: &'a str,
}

fn write(out: &mut impl Write, what: What<'_>, format: Format) -> Outcome {
    let What { source, before, journeys, name } = what;
    if let Some(joined) = journeys.filter(|_| format != Format::Html) {
        return write_journeys(out, joined, format);
    }
    let passes = if format == Format::Html { PASSES } else { 1 };
    let records = source.records_max() + before.map_or(0, |(before, _)| before.records_max());
    let mut countdown = Countdown::new(records * passes);
    let lost = match format {
        Format::Table | Format::Json => {
            let breakdown = Breakdown::read_with(source, name, Window::Held, |_| countdown.step());
            if format == Format::Table {
                out.write_all(shown(table::to_table(&breakdown, None)).as_bytes())?;
                // The table says so itself.
                0
            } else {
                out.write_all((json::to_json(&breakdown) + "\n").as_bytes())?;
                breakdown.lost_records
            }
        }
        Format::Html => {
            write_html(out, source, before, journeys, name, || countdown.step())?;
            0
        }
        Format::Csv => write_csv(out, source, |_| countdown.step())?,
        Format::Hlog => {
            write_hlog(out, source, |_| countdown.step()).map_err(|error| match error {
                // A reader that goes away is told by what the system says.
                HlogError::Io(error) => Box::<dyn Error>::from(error),
                other => other.into(),
            })?
        }
        Format::Pcapng => write_pcapng(out, source, name, |_| countdown.step())?,
        Format::Perfetto => write_perfetto(out, source, name, |_| countdown.step())?,
    };
    out.flush()?;
    drop(countdown);
    if lost > 0 {
        eprintln!(
            "ringscope: {} records are missing: they were overwritten before they could be read",
            grouped(lost)
        );
    }
    Ok(())
}

/// Joined probes by themselves.
fn write_journeys(out: &mut impl Write, joined: &Journeys, format: Format) -> Outcome {
    match format {
        Format::Csv => {
            journey::write_csv(out, joined)?;
            // The other formats say so themselves.
            if joined.lost + joined.unseen > 0 {
                eprintln!(
                    "ringscope: {} probes did not come back, {} more are not among the records, or only one way",
                    grouped(joined.lost as u64),
                    grouped(joined.unseen as u64)
                );
            }
        }
        Format::Json => out.write_all((journey::to_json(joined) + "\n").as_bytes())?,
        _ => out.write_all(shown(journey::to_text(joined)).as_bytes())?,
    }
    Ok(out.flush()?)
}
