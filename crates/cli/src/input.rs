//! The records to read: a file by its path, or the recorder that flags choose.

use std::error::Error;
use std::path::{Path, PathBuf};

use burst_trace::location::{EXTENSION, moved_path};
use burst_trace::{CutOff, Reader, Source};
use report::breakdown::is_alive;
use report::units::grouped;
use report::without_controls;

use crate::recorder::{Choice, say_if_ended};

/// The extension that a crashed daemon's recorder gets at the next start.
const CRASHED: &str = "crashed";

/// The argument and flags that say what to read.
#[derive(Debug, clap::Args)]
pub struct Input {
    /// A recording, or a recorder (NAME.trace, NAME.trace.crashed) [default:
    /// the recorder chosen by --name and --run-dir]
    #[arg(conflicts_with_all = ["name", "run_dir"])]
    file: Option<PathBuf>,
    #[command(flatten)]
    choice: Choice,
}

/// The same, where several files may be given.
#[derive(Debug, clap::Args)]
pub struct Inputs {
    /// A recording, or a recorder (NAME.trace, NAME.trace.crashed); of a guest
    /// that moved between hosts, those of each host [default: the recorder
    /// chosen by --name and --run-dir]
    #[arg(value_name = "FILE", conflicts_with_all = ["name", "run_dir"])]
    files: Vec<PathBuf>,
    #[command(flatten)]
    choice: Choice,
}

impl Inputs {
    /// Opens them as [`Input::open`] does. Several are joined.
    ///
    /// # Errors
    /// As [`Input::open`], and when several cannot be of one guest.
    pub fn open(&self) -> Result<(Source, String), Box<dyn Error>> {
        let [first, _, ..] = &self.files[..] else {
            let (source, name, path) = open(self.files.first(), &self.choice)?;
            return Ok((with_moved(source, &path), name));
        };
        let opened = self.files.iter().map(|path| Ok((open_file(path)?, path.clone())));
        let opened: Result<_, Box<dyn Error>> = opened.collect();
        Ok((Source::join(opened?)?, stem(first)))
    }
}

impl Input {
    /// Opens it, and returns its records with the name of the daemon by the file's name. Says on standard error if the daemon
    /// has ended, or a recording was cut off.
    ///
    /// # Errors
    /// When there is none, more than one recorder to choose from, or it cannot be read.
    pub fn open(&self) -> Result<(Source, String), Box<dyn Error>> {
        open(self.file.as_ref(), &self.choice).map(|(source, name, _)| (source, name))
    }
}

/// Returns the records, the name and the path.
fn open(
    file: Option<&PathBuf>,
    choice: &Choice,
) -> Result<(Source, String, PathBuf), Box<dyn Error>> {
    if let Some(file) = file {
        return Ok((open_file(file)?, stem(file), file.clone()));
    }
    let found = choice.open()?;
    say_if_ended(&found.name, &found.reader);
    Ok((found.reader.into(), found.name, found.path))
}

/// The recorder at `path` with the records that came with its guest from the host before, if there are some. What cannot be used of
/// them is said on standard error.
fn with_moved(source: Source, path: &Path) -> Source {
    let moved = moved_path(path);
    let has_some = moved.metadata().is_ok_and(|found| found.len() > 0);
    if !has_some || !matches!(source, Source::Recorder(_)) {
        return source;
    }
    let both = || -> Result<Source, Box<dyn Error>> {
        let parts =
            vec![(Source::open(path)?, path.into()), (Source::open(&moved)?, moved.clone())];
        Ok(Source::join(parts)?)
    };
    both().unwrap_or_else(|error| {
        eprintln!(
            "ringscope: without the records that came with the guest: {}",
            without_controls(&error.to_string())
        );
        source
    })
}

/// A directory in place of a file.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot read {dir}: expected a regular file, found a directory; give a recording or a recorder in it, or \
     --run-dir {dir} for its recorders",
    dir = .0.display()
)]
struct IsDirectory(PathBuf);

/// Opens a recording or a recorder by its path, and says on standard error if a recording was cut off.
///
/// # Errors
/// When it cannot be read.
pub fn open_file(path: &Path) -> Result<Source, Box<dyn Error>> {
    if path.is_dir() {
        return Err(IsDirectory(path.into()).into());
    }
    let source = match Source::open(path) {
        Err(error) => Source::Recorder(left_behind(path).ok_or(error)?),
        Ok(source) => source,
    };
    if let Source::Recorder(reader) = &source
        && path.extension().is_some_and(|extension| extension == EXTENSION || !path.exists())
    {
        say_if_ended(&path.file_stem().unwrap_or_default().to_string_lossy(), reader);
    }
    if let Some(CutOff { records, of }) = source.cut_off() {
        let of = of.map_or(String::new(), |of| format!(" of {}", grouped(of)));
        eprintln!(
            "ringscope: {} is cut off: it has {}{of} records; copy it again",
            path.display(),
            grouped(records)
        );
    }
    Ok(source)
}

/// The name of a file's daemon by the file's: what comes before the first dot.
fn stem(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_default();
    name.split('.').next().unwrap_or_default().to_owned()
}

/// The recorder of a dead daemon that was asked for as `NAME.trace.crashed`, but has its old name until the next start.
fn left_behind(path: &Path) -> Option<Reader> {
    let recorder = path.with_extension("");
    let is_asked_for = path.extension()? == CRASHED && recorder.extension()? == EXTENSION;
    if !is_asked_for || path.exists() {
        return None;
    }
    Reader::open(&recorder).ok().filter(|reader| reader.is_running() && !is_alive(reader))
}
