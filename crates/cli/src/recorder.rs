//! Finds the recorder to read: `RUN_DIR/NAME.trace`.

use std::io;
use std::path::{Path, PathBuf};

use burst_trace::location::{EXTENSION, recorder_path, run_dir_to_read};
use burst_trace::{ReadError, Reader};
use report::breakdown::is_alive;
use report::without_controls;

/// The flags that name a recorder.
#[derive(Debug, clap::Args)]
pub struct Choice {
    /// Directory of the recorders [default: without root
    /// $XDG_RUNTIME_DIR/ringscope if it exists, else /run/ringscope]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// The daemon's --name; needed if there are several recorders
    #[arg(long)]
    name: Option<String>,
}

/// A recorder, open, and the name it has in its run directory.
#[derive(Debug)]
pub struct Found {
    /// The daemon's name by the file's.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Its reader.
    pub reader: Reader,
}

/// Why no recorder can be read.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// There is no default for the run directory.
    #[error(
        "$XDG_RUNTIME_DIR is not set, where recorders are expected without root, and /run/ringscope cannot be read; give \
             the daemon's run directory with --run-dir, or become a member of its group"
    )]
    NoRunDir,
    /// The run directory cannot be listed.
    #[error(
        "cannot look for flight recorders in {dir}: {source}; start ringscoped, or give its run \
             directory with --run-dir"
    )]
    RunDir {
        /// The run directory.
        dir: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The run directory holds none.
    #[error(
        "expected a flight recorder NAME.trace in {dir}, found none; start ringscoped with \
             --trace on, or give its run directory with --run-dir"
    )]
    None {
        /// The run directory.
        dir: PathBuf,
    },
    /// The run directory holds several.
    #[error("expected one flight recorder in {dir}, found {}: {}; choose one with --name",
            names.len(), names.join(", "))]
    Several {
        /// The run directory.
        dir: PathBuf,
        /// The daemons' names.
        names: Vec<String>,
    },
    /// There is none of that name.
    #[error(
        "expected the flight recorder {path}, found {}; give one of the names there with --name, \
             or another --run-dir",
        found(names)
    )]
    NoSuchName {
        /// The recorder that was asked for.
        path: PathBuf,
        /// The names that are there.
        names: Vec<String>,
    },
    /// The file is there and cannot be read.
    #[error("{0}; give another recorder with --name or --run-dir")]
    Unreadable(#[from] ReadError),
}

fn found(names: &[String]) -> String {
    if names.is_empty() { "no recorder".into() } else { names.join(", ") }
}

impl Choice {
    /// The name that was asked for, if one was.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The run directory: the one that was given, or the default.
    ///
    /// # Errors
    /// When none was given and there is no default.
    pub fn run_dir(&self) -> Result<PathBuf, FindError> {
        self.run_dir.clone().or_else(run_dir_to_read).ok_or(FindError::NoRunDir)
    }

    /// Finds the recorder and opens it.
    ///
    /// # Errors
    /// When there is none, more than one to choose from, or it cannot be read.
    pub fn open(&self) -> Result<Found, FindError> {
        let dir = self.run_dir()?;
        let name = match &self.name {
            Some(name) => name.clone(),
            None => only_name(&dir)?,
        };
        open(&dir, name)
    }

    /// Opens the recorders of all daemons that run, by name. What cannot be read is said on standard error.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn open_all(&self) -> Result<Vec<Found>, FindError> {
        let dir = self.run_dir()?;
        let mut all = Vec::new();
        for name in names(&dir)? {
            match open(&dir, name) {
                Ok(found) if is_alive(&found.reader) => all.push(found),
                Ok(_) => {}
                Err(error) => eprintln!("ringscope: {}", without_controls(&error.to_string())),
            }
        }
        Ok(all)
    }
}

/// Opens the recorder called `name` in `dir`.
///
/// # Errors
/// When there is none of that name, or it cannot be read.
pub fn open(dir: &Path, name: String) -> Result<Found, FindError> {
    let path = recorder_path(dir, &name);
    if !path.exists() {
        let names = names(dir)?;
        return Err(FindError::NoSuchName { path, names });
    }
    let reader = Reader::open(&path)?;
    Ok(Found { name, path, reader })
}

fn only_name(dir: &Path) -> Result<String, FindError> {
    let mut names = names(dir)?;
    match names.len() {
        0 => Err(FindError::None { dir: dir.into() }),
        1 => Ok(names.remove(0)),
        _ => match running(dir, &names).as_slice() {
            [] => Err(FindError::Several { dir: dir.into(), names }),
            [only] => Ok(only.clone()),
            several => Err(FindError::Several { dir: dir.into(), names: several.to_vec() }),
        },
    }
}

/// Those names whose daemons run.
fn running(dir: &Path, names: &[String]) -> Vec<String> {
    let runs = |name: &&String| {
        Reader::open(&recorder_path(dir, name)).is_ok_and(|reader| is_alive(&reader))
    };
    names.iter().filter(runs).cloned().collect()
}

/// Says on standard error that the daemon of this recorder has ended, if it has.
pub fn say_if_ended(name: &str, reader: &Reader) {
    if !is_alive(reader) {
        let how = if reader.is_running() { "crashed or was killed" } else { "has ended" };
        eprintln!(
            "ringscope: the daemon of {} {how}; this is what it left",
            without_controls(name)
        );
    }
}

/// The names of all recorders in `dir`, sorted. What a crashed daemon left (`NAME.trace.crashed`) is none.
///
/// # Errors
/// When the directory cannot be listed.
pub fn names(dir: &Path) -> Result<Vec<String>, FindError> {
    let error = |source| FindError::RunDir { dir: dir.into(), source };
    let mut names = Vec::new();
    for entry in dir.read_dir().map_err(error)? {
        let path = entry.map_err(error)?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION)
            && let Some(name) = path.file_stem()
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}
