//! `ringscope lab report`: what a run of the lab has kept, as table, as JSON, or as HTML pages.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use host_files::{FileId, Output};
use lab::kept::{Kept, Manifest};
use lab::page::{Recording, recordings, to_html};
use lab::results::Results;
use lab::table::to_text;
use report::html::PASSES;

use crate::Outcome;
use crate::output::{guard, print};
use crate::plain::shown;
use crate::progress::Countdown;

const EXAMPLES: &str = "\
Formats:
  table     the table of all variants, and where each mean round trip went
  json      the same figures as one object
  html      one page that needs no network: the table, where each mean round
            trip went, on one scale, percentile curves, and the slowest probes
            of each variant. With -o lab.html, each recording of ringscoped
            has a page in lab-files, with each of its slow packets part by
            part; lab.html links to them.

Examples:
  ringscope lab report lab1
  ringscope lab report lab1 --format html -o lab1/lab.html";

/// The flags of `ringscope lab report`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct ReportArguments {
    /// The directory
    dir: PathBuf,
    /// The report's format
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Write to this file; - is standard output [default: -]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    Html,
}

/// The output could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {source}; choose another -o, or make room there")]
struct WriteError {
    path: PathBuf,
    source: io::Error,
}

/// Runs `ringscope lab report`.
///
/// # Errors
/// When the directory cannot be read, or the output cannot be written.
pub fn run(arguments: &ReportArguments) -> Outcome {
    let (kept, manifest) = Kept::open(&arguments.dir)?;
    let format = if arguments.json { Format::Json } else { arguments.format };
    let inputs = kept.inputs(&manifest)?;
    let inputs: Vec<_> = inputs.iter().filter_map(|path| FileId::of_path(path)).collect();
    let output = arguments.output.as_deref().filter(|path| *path != Path::new("-"));
    let results = Results::read(&kept, &manifest)?;
    let Some(path) = output else {
        let text = match format {
            Format::Table => shown(to_text(&results)),
            Format::Json => results.to_json(),
            Format::Html => to_html(&kept, &manifest, &results, None)?,
        };
        return Ok(print(&text)?);
    };
    let text = match format {
        Format::Table => shown(to_text(&results)),
        Format::Json => results.to_json(),
        Format::Html => return write_pages(path, &kept, &manifest, &results, &inputs),
    };
    write(path, &inputs, |out| out.write_all(text.as_bytes()))
}

/// Writes the page of all variants, and those of their recordings beside it.
fn write_pages(
    path: &Path,
    kept: &Kept,
    manifest: &Manifest,
    results: &Results,
    inputs: &[FileId],
) -> Outcome {
    let recordings = recordings(kept, manifest, results)?;
    // The name is in links.
    let stem = path.file_stem().unwrap_or(OsStr::new("lab")).to_string_lossy();
    let files = format!("{stem}-files");
    let page = to_html(kept, manifest, results, Some(&files))?;
    if !recordings.is_empty() {
        write_recordings(&path.with_file_name(&files), &recordings, inputs)?;
    }
    // The last one: its links lead somewhere.
    write(path, inputs, |out| out.write_all(page.as_bytes()))
}

fn write_recordings(directory: &Path, recordings: &[Recording], inputs: &[FileId]) -> Outcome {
    fs::create_dir_all(directory)
        .map_err(|source| WriteError { path: directory.into(), source })?;
    let records = recordings.iter().map(Recording::records_max).sum::<usize>();
    let mut countdown = Countdown::new(records * PASSES);
    for recording in recordings {
        let journeys = recording.journeys()?;
        write(&directory.join(&recording.file), inputs, |out| {
            recording.write(out, &journeys, || countdown.step())
        })?;
    }
    Ok(())
}

fn write(
    path: &Path,
    inputs: &[FileId],
    content: impl FnOnce(&mut BufWriter<Output>) -> io::Result<()>,
) -> Outcome {
    let error = |source| WriteError { path: path.into(), source };
    let mut out = BufWriter::new(Output::open(path, guard(inputs)).map_err(error)?);
    content(&mut out).map_err(error)?;
    let output = out.into_inner().map_err(|failed| error(failed.into_error()))?;
    Ok(output.keep().map_err(error)?)
}
