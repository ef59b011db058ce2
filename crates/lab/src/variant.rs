//! The variants of `qemu-scripts/variant`: built, counted, and taken down whatever happens.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use burst_trace::location::recorder_path;
use burst_trace::{Header, Reader};
use rustix::fs::{FlockOperation, flock};

use crate::command::{CommandError, Stop, run};
use crate::cpus::{Cpus, Range};
use crate::end::{End, Place};
use crate::far_host::Peer;
use crate::guest::scripts;
use crate::talker::Home;

/// Where everything that is built keeps its state. It is empty after a boot, as is what was built.
const STATE: &str = "/run/ringscope/lab";
/// Longest time for building a variant: its guests are emulated, perhaps.
const UP_LIMIT: Duration = Duration::from_secs(240);
const DOWN_LIMIT: Duration = Duration::from_secs(60);
const COUNT_LIMIT: Duration = Duration::from_secs(20);

/// Why a variant could not be built or used.
#[derive(Debug, thiserror::Error)]
pub enum VariantError {
    /// A script failed, or the lab was interrupted.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A variant cannot be built.
    #[error("{0}")]
    Up(String),
    /// The state cannot be kept.
    #[error("cannot use {path}: {source}; the lab needs root")]
    State {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another lab runs.
    #[error(
        "another `ringscope lab` runs on this host (process {0}): two at once would measure each other; wait for its end"
    )]
    Busy(String),
    /// A script has printed something else than it should.
    #[error("expected {expected} of qemu-scripts/variant, found {found:?}")]
    Script {
        /// What was expected.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// The scripts are not where they are looked for.
    #[error(
        "expected the script variant in {0}, found none; set RINGSCOPE_QEMU_SCRIPTS to the directory qemu-scripts of ringscope's source"
    )]
    NoScripts(PathBuf),
}

/// A variant that can be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Its name, as in `tap-bridge`.
    pub name: String,
    /// What it is, in a few words.
    pub title: String,
}

/// All variants, in the order of `qemu-scripts/variants/order.txt`.
///
/// # Errors
/// If the scripts are not there.
pub fn all() -> Result<Vec<Variant>, VariantError> {
    let printed = run(&Stop::default(), script()?.arg("list"), COUNT_LIMIT)?;
    let variant = |line: &str| {
        let (name, title) = line.split_once(' ')?;
        Some(Variant { name: name.into(), title: title.trim().into() })
    };
    Ok(printed.lines().filter_map(variant).collect())
}

/// Whether the help of a variant describes this option.
///
/// # Errors
/// If the scripts are not there, or there is no such variant.
pub(crate) fn has_option(variant: &str, option: &str) -> Result<bool, VariantError> {
    let help = run(&Stop::default(), script()?.args(["help", variant]), COUNT_LIMIT)?;
    let is_it = |word: &str| word.split_once('=').is_some_and(|(name, _)| name == option);
    Ok(help.split_whitespace().any(is_it))
}

/// How variants are built: the options of `qemu-scripts/variant up`.
#[derive(Clone, Debug)]
pub struct UpOptions {
    /// Directory of the programs ringscoped and ringscope.
    pub programs: PathBuf,
    /// `qemu` or `uml`.
    pub guest: String,
    /// CPUs of its parts; `None`: any.
    pub cpus: Option<Cpus>,
    /// Whether ringscoped also measures in the host kernel.
    pub kernel_stages: bool,
    /// Where the talker runs.
    pub home: Home,
    /// The far host that is the talker; `None`: a namespace.
    pub peer: Option<Peer>,
}

/// The right to build variants on this host. Only one process has it at a time.
#[derive(Debug)]
pub struct Claim {
    state: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

impl Claim {
    /// Takes it.
    ///
    /// # Errors
    /// If another process has it, or the state cannot be kept.
    pub fn take() -> Result<Self, VariantError> {
        let state = PathBuf::from(STATE);
        let error = |path: &Path| {
            let path = path.to_path_buf();
            move |source| VariantError::State { path, source }
        };
        fs::create_dir_all(&state).map_err(error(&state))?;
        let path = state.join("lock");
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let mut lock = options.open(&path).map_err(error(&path))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let holder = fs::read_to_string(&path).unwrap_or_default();
            return Err(VariantError::Busy(holder.trim().into()));
        }
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(error(&path))?;
        Ok(Self { state, _lock: lock })
    }

    /// Takes down what an earlier process has left, and returns the names of these variants.
    ///
    /// # Errors
    /// If that fails.
    pub fn clean(&self) -> Result<Vec<String>, VariantError> {
        let entries = fs::read_dir(&self.state)
            .map_err(|source| VariantError::State { path: self.state.clone(), source })?;
        let mut cleaned = Vec::new();
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            if entry.path().join("undo").exists() {
                cleaned.push(entry.file_name().to_string_lossy().into_owned());
            }
            take_down(&entry.path())?;
        }
        Ok(cleaned)
    }

    /// Finds out whether a far host can be used.
    ///
    /// # Errors
    /// If not: what is missing, in one sentence.
    pub fn try_peer(&self, stop: &Stop, peer: &Peer, programs: &Path) -> Result<(), VariantError> {
        let dir = self.state.join("peer");
        let _undo = Undo { dir: dir.clone(), logs: None };
        let mut command = script()?;
        command.arg("try").arg(&dir).arg("--bin").arg(programs).args(peer.to_args());
        run(stop, &mut command, UP_LIMIT).map(drop).map_err(own_sentence)
    }

    /// Builds a variant; `extra` are its own options.
    ///
    /// # Errors
    /// If that fails; what was built until then is taken down, and its logs are copied to `logs`.
    pub fn build(
        &self,
        stop: &Stop,
        variant: &str,
        options: &UpOptions,
        extra: &BTreeMap<String, String>,
        logs: &Path,
    ) -> Result<Built, VariantError> {
        let dir = self.state.join(variant);
        // Taken down when it is dropped, from here on.
        let undo = Undo { dir: dir.clone(), logs: Some(logs.into()) };
        let mut up = script()?;
        up.args(["up", variant]).arg(&dir).args(["--guest", &options.guest]);
        up.arg("--bin").arg(&options.programs);
        if let Some(peer) = &options.peer {
            up.args(peer.to_args());
        }
        if let Some(cpus) = options.cpus {
            up.args(["--worker-cpu", &cpus.worker.to_string()]);
            up.args(["--other-cpus", &cpus.guests.list()]);
        }
        if options.kernel_stages {
            up.arg("--kernel-stages");
        }
        if options.home == Home::Uml {
            up.args(["--talker", "uml"]);
        }
        for (name, value) in extra {
            up.args(["--option", &format!("{name}={value}")]);
        }
        run(stop, &mut up, UP_LIMIT).map_err(own_sentence)?;
        let end = |name: &str, of: fn(Cpus) -> Range| {
            let line = fs::read_to_string(dir.join(name)).unwrap_or_default();
            let place = Place::parse(&line)
                .ok_or(VariantError::Script { expected: "the place of each end", found: line })?;
            let cpus = options.cpus.map(|cpus| of(cpus).list());
            Ok::<_, VariantError>(End::new(
                place,
                options.programs.join("ringscope"),
                dir.clone(),
                cpus,
            ))
        };
        let recorder = fs::read_to_string(dir.join("recorder")).ok().map(|name| name.trim().into());
        let talker = end("talker", |cpus| cpus.talker)?;
        let responder = end("responder", |cpus| cpus.guests)?;
        Ok(Built { talker, responder, recorder, undo })
    }
}

/// Frames so far at a place on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// The place, as in `tap.sent`.
    pub place: String,
    /// Their number.
    pub frames: u64,
}

/// A variant that is up. Dropping it takes it down.
#[derive(Debug)]
pub struct Built {
    /// The end that sends probes.
    pub talker: End,
    /// The end that answers.
    pub responder: End,
    recorder: Option<String>,
    undo: Undo,
}

/// Takes a variant down, whole or half built, when it is dropped.
#[derive(Debug)]
struct Undo {
    dir: PathBuf,
    /// Where its logs are copied to.
    logs: Option<PathBuf>,
}

impl Built {
    /// The run directory and the name of ringscoped's recorder, if ringscoped is part of it.
    #[must_use]
    pub fn recorder(&self) -> Option<(&Path, &str)> {
        self.recorder.as_deref().map(|name| (self.undo.dir.as_path(), name))
    }

    /// How many frames of guests ringscoped has joined to the frame before them (GRO) so far. Counters behind ringscoped do not see
    /// them.
    #[must_use]
    pub fn joined(&self) -> u64 {
        let open = |(dir, name)| Reader::open(&recorder_path(dir, name)).ok();
        self.recorder().and_then(open).map_or(0, |reader| joined(&reader))
    }

    /// The directory of its state. All its processes have it in their environment.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.undo.dir
    }

    /// What the guest runs in: `kvm`, `tcg` or `uml`; `None` without a guest.
    #[must_use]
    pub fn accelerator(&self) -> Option<String> {
        let text = fs::read_to_string(self.undo.dir.join("guest/accel")).ok()?;
        Some(text.trim().into())
    }

    /// Frames so far at each place of the way.
    ///
    /// # Errors
    /// If a counter cannot be read.
    pub fn counters(&self, stop: &Stop) -> Result<Vec<Counter>, VariantError> {
        let printed = run(stop, script()?.arg("counters").arg(&self.undo.dir), COUNT_LIMIT)?;
        parse_counters(&printed)
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Err(error) = take_down(&self.dir) {
            eprintln!(
                "ringscope: {error}; `qemu-scripts/variant down {}` does it again",
                self.dir.display()
            );
        }
        if let Some(logs) = &self.logs {
            keep_logs(&self.dir, logs);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn joined(header: &Header) -> u64 {
    let gro = (0..header.queue_pairs() * 2).map(|ring| header.gro(ring));
    gro.map(|gro| gro.segments.saturating_sub(gro.frames)).sum()
}

/// The script's own sentence says what is missing.
fn own_sentence(error: CommandError) -> VariantError {
    match error {
        CommandError::Failed { said, .. } => VariantError::Up(said.replace("variant: ", "")),
        other => other.into(),
    }
}

fn parse_counters(printed: &str) -> Result<Vec<Counter>, VariantError> {
    let counter = |line: &str| {
        let (place, frames) = line.split_once(' ')?;
        Some(Counter { place: place.into(), frames: frames.trim().parse().ok()? })
    };
    let line = |line: &str| {
        counter(line)
            .ok_or_else(|| VariantError::Script { expected: "`PLACE COUNT`", found: line.into() })
    };
    printed.lines().map(line).collect()
}

/// Not interrupted by a signal: nothing may be left.
fn take_down(dir: &Path) -> Result<(), VariantError> {
    if dir.join("undo").exists() {
        run(&Stop::default(), script()?.arg("down").arg(dir), DOWN_LIMIT)?;
    }
    Ok(())
}

/// Copies the logs and the commands; those that cannot be copied are missing.
fn keep_logs(dir: &Path, to: &Path) {
    if fs::create_dir_all(to).is_err() {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.extension().is_some_and(|it| it == "log") || name == "commands" {
            let _ = fs::copy(&path, to.join(&name));
        }
        if path.join("serial.log").exists() {
            let _ = fs::copy(
                path.join("serial.log"),
                to.join(format!("{}-serial.log", name.display())),
            );
        }
    }
}

fn script() -> Result<Command, VariantError> {
    let script = scripts().join("variant");
    if script.exists() { Ok(Command::new(script)) } else { Err(VariantError::NoScripts(scripts())) }
}

#[cfg(test)]
mod tests {
    use burst_trace::{Clock, Recorder, RecorderOptions};

    use super::*;

    #[test]
    fn variants_are_listed_with_their_titles() {
        let all = all().unwrap();
        assert!(
            all.iter().any(|it| it.name == "tap-bridge" && it.title.contains("bridge")),
            "{all:?}"
        );
        assert!(all.iter().all(|it| !it.title.is_empty()), "{all:?}");
    }

    #[test]
    fn the_list_of_the_order_has_every_variant() {
        let order = fs::read_to_string(scripts().join("variants/order.txt")).unwrap();
        let all = all().unwrap();
        let place = |it: &Variant| {
            let at = order.lines().position(|line| line == it.name);
            at.unwrap_or_else(|| panic!("{} is not in order.txt", it.name))
        };
        assert!(all.iter().map(place).is_sorted(), "{all:?}");
    }

    #[test]
    fn options_are_those_of_the_help() {
        for (variant, option, has) in [
            ("tap-bridge", "trace", true),
            ("af-xdp", "mode", true),
            ("host-host", "trace", false),
            ("switch", "trace", false),
        ] {
            assert_eq!(has_option(variant, option).unwrap(), has, "{variant}, {option}");
        }
    }

    #[test]
    fn of_frames_that_are_one_packet_one_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm0.trace");
        let (workers, queue_pairs, capacity, facts) = (1, 2, 64, "{}".into());
        let options = RecorderOptions { path, workers, queue_pairs, capacity, facts };
        let clock = Clock::new();
        let recorder = Recorder::create(&options, &clock).unwrap();
        let mut writer = recorder.writer(0, clock);
        writer.count_gro(1, 1, 4);
        writer.count_gro(3, 2, 5);
        assert_eq!(joined(&Reader::open(recorder.path()).unwrap()), 6);
    }

    #[test]
    fn counters_are_read_or_refused() {
        let counters = parse_counters("tap.sent 7\nx 0\n").unwrap();
        assert_eq!(counters[0], Counter { place: "tap.sent".into(), frames: 7 });
        assert!(parse_counters("tap.sent\n").is_err() && parse_counters("tap.sent -1\n").is_err());
    }
}
