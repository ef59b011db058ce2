//! The directory that keeps a run of the lab: `lab.json`, and a directory for each measurement, with everything that was
//! measured, so that reports can be made again.
//!
//! ```text
//! DIR/lab.json                          what was asked for, the host, and how each variant ended
//! DIR/doctor.txt                        what `ringscope doctor` said of the host
//! DIR/peer.json                         with --peer: both hosts, and what their clocks follow
//! DIR/VARIANT/REPEAT/                   logs and commands of that build
//! DIR/VARIANT/REPEAT/LOAD/ping.json     what udp-ping printed
//!                         samples.csv   each probe: intended, sent, received
//!                         qdiscs.json   what the talker's queueing disciplines counted, if it has some
//!                         sent.csv      the talker's stamps
//!                         turned.csv    the responder's stamps
//!                         clocks.json   how the clocks of both ends differ from the host's
//!                         clock.json    bounds of the offset of a QEMU guest's clock, before and after the probes
//!                         no-clock.txt  why some of these bounds are missing
//!                         daemon.rec    ringscoped's recording
//!                         proof.json    frames at each place of the way
//!                         obstacle.txt  why the load cannot run in the variant, in place of all others
//!                         pressure.json what busy programs took from their CPUs
//!                         ping.txt      what ping printed
//!                         isochron.txt  each packet of isochron: its number, when it was scheduled, how much earlier its
//!                                       timer was to fire, when it fired, when the packet arrived
//!                         others.json   why ping, or another program, did not measure
//! DIR/VARIANT/REPEAT/capacity/          both ways: all trials, and what was measured beside flows
//! DIR/nested/                           what the lab in an emulated machine has kept, in the same form
//! ```
//!
//! VARIANT is the name of a case: a variant with a change has a directory of its own, as in `tap-xdp+printk`.
//! With a talker that is not scheduled as by default, LOAD is followed by its name, as in `none-etf`.

mod further;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::case::Case;
use crate::plan::{Load, OtherProbe, Probes, Way};
use crate::talker::{Talker, TalkerCpu};

/// What udp-ping printed.
pub const PING: &str = "ping.json";
/// Each probe's times at the talker.
pub const SAMPLES: &str = "samples.csv";
/// The talker's stamps.
pub const SENT: &str = "sent.csv";
/// The responder's stamps.
pub const TURNED: &str = "turned.csv";
/// ringscoped's recording.
pub const RECORDING: &str = "daemon.rec";
/// How the clocks of both ends differ from the host's.
pub const CLOCKS: &str = "clocks.json";
/// Bounds of the offset of the responder's clock, by its clock page.
pub const CLOCK: &str = "clock.json";
/// Why bounds of that offset are missing.
pub const NO_CLOCK: &str = "no-clock.txt";
/// What the talker's queueing disciplines have counted.
pub const DISCIPLINES: &str = "qdiscs.json";
/// Frames at each place of the way.
pub const PROOF: &str = "proof.json";
/// What ping printed: ICMP, not the agent's probes.
pub const ICMP_PING: &str = "ping.txt";
/// The packets of isochron: sequence, scheduled, advance, woken and arrived, nanoseconds of `CLOCK_TAI`.
pub const ISOCHRON: &str = "isochron.txt";
/// Why single programs of others did not measure.
pub const OTHERS: &str = "others.json";
/// Why a load cannot run in the variant: there is nothing else then.
pub const OBSTACLE: &str = "obstacle.txt";
/// What busy programs took from their CPUs.
pub const PRESSURE: &str = "pressure.json";
/// All files that a measurement may have.
const OF_A_MEASUREMENT: [&str; 15] = [
    PING,
    SAMPLES,
    SENT,
    TURNED,
    RECORDING,
    CLOCKS,
    CLOCK,
    NO_CLOCK,
    DISCIPLINES,
    PROOF,
    ICMP_PING,
    ISOCHRON,
    OTHERS,
    OBSTACLE,
    PRESSURE,
];
/// The host, as `ringscope doctor` sees it.
pub const DOCTOR: &str = "doctor.txt";

/// Both hosts, and what their clocks follow.
pub const PEER: &str = "peer.json";

/// The run in an emulated machine that is part of this one: a directory of the same form.
pub(crate) const NESTED: &str = "nested";
/// What was asked for, and what came of it: a [`Manifest`].
pub(crate) const MANIFEST: &str = "lab.json";

/// What was asked for, and what came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the directory's layout.
    pub format: u32,
    /// The version of ringscope.
    pub version: String,
    /// When it began: seconds since 1970, UTC.
    pub began_unix_s: u64,
    /// The command line.
    pub command: Vec<String>,
    /// The host.
    pub host: Host,
    /// What guests ran in: `kvm`, `tcg` or `uml`; `None` if there was none.
    pub accelerator: Option<String>,
    /// The probes of one measurement.
    pub probes: Probes,
    /// What ran beside them, in this order.
    pub loads: Vec<Load>,
    /// Whether the capacity of each variant was measured, in the first repeat.
    #[serde(default)]
    pub capacity: bool,
    /// How the talker was scheduled, in this order.
    #[serde(default = "only_default")]
    pub talkers: Vec<Talker>,
    /// The CPU of a pinned talker, if there was one.
    #[serde(default)]
    pub talker_cpu: Option<TalkerCpu>,
    /// Talkers that could not be scheduled so, or failed.
    #[serde(default)]
    pub talker_troubles: Vec<TalkerTrouble>,
    /// Programs whose probes were sent after the agent's, in this order.
    #[serde(default)]
    pub others: Vec<OtherProbe>,
    /// How often each was measured.
    pub repeats: usize,
    /// All variants that were asked for, in the order of the table.
    pub variants: Vec<Tried>,
}

fn only_default() -> Vec<Talker> {
    vec![Talker::Default]
}

/// A variant whose talker failed, and not the variant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TalkerTrouble {
    /// The variant.
    pub variant: String,
    /// How the talker was to be scheduled.
    pub talker: Talker,
    /// Why it has no figures, or fewer than the others.
    pub why: String,
}

/// The host that was measured on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Kernel, as `uname -r` prints it.
    pub kernel: String,
    /// Model of the CPUs.
    pub cpu: String,
    /// Number of CPUs.
    pub cpus: usize,
}

/// A case that was tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tried {
    /// What was built.
    #[serde(flatten)]
    pub case: Case,
    /// Why it has no figures, or fewer than the others.
    pub trouble: Option<String>,
}

/// A kept directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// A file cannot be read or written.
    #[error("cannot use {path}: {source}")]
    Io {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no directory of the lab's.
    #[error("expected {path} to be written by `ringscope lab --out`, found otherwise: {why}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It has something in it already.
    #[error("expected {0} to be empty or new, found files in it; give another --out")]
    Full(PathBuf),
}

/// A kept directory.
#[derive(Clone, Debug)]
pub struct Kept {
    dir: PathBuf,
}

impl Kept {
    /// Makes a new one.
    ///
    /// # Errors
    /// If it cannot be made, or has files in it.
    pub fn create(dir: &Path) -> Result<Self, KeptError> {
        let error = |source| KeptError::Io { path: dir.into(), source };
        fs::create_dir_all(dir).map_err(error)?;
        if fs::read_dir(dir).map_err(error)?.next().is_some() {
            return Err(KeptError::Full(dir.into()));
        }
        let dir = dir.canonicalize().map_err(error)?;
        Ok(Self { dir })
    }

    /// Opens one, and reads its manifest.
    ///
    /// # Errors
    /// If it is none, or one of another version.
    pub fn open(dir: &Path) -> Result<(Self, Manifest), KeptError> {
        let path = dir.join(MANIFEST);
        let text = fs::read_to_string(&path)
            .map_err(|source| KeptError::Io { path: path.clone(), source })?;
        let wrong = |why: String| KeptError::Format { path: path.clone(), why };
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if value["format"] != Manifest::FORMAT {
            return Err(wrong(format!(
                "format {}, where this version reads {}",
                value["format"],
                Manifest::FORMAT
            )));
        }
        let manifest = serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
        Ok((Self { dir: dir.into() }, manifest))
    }

    /// The run in an emulated machine, if there was one.
    ///
    /// # Errors
    /// As [`Kept::open`].
    pub fn nested(&self) -> Result<Option<(Self, Manifest)>, KeptError> {
        let dir = self.dir.join(NESTED);
        if dir.join(MANIFEST).exists() { Self::open(&dir).map(Some) } else { Ok(None) }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a build's logs are kept; `repeat` counts from 0.
    #[must_use]
    pub fn build(&self, variant: &str, repeat: usize) -> PathBuf {
        self.dir.join(variant).join((repeat + 1).to_string())
    }

    /// Where a measurement is kept.
    #[must_use]
    pub fn measurement(&self, variant: &str, repeat: usize, load: Load, talker: Talker) -> PathBuf {
        let build = self.build(variant, repeat);
        match talker {
            Talker::Default => build.join(load.name()),
            _ => build.join(format!("{}-{}", load.name(), talker.name())),
        }
    }

    /// The complete measurements of a variant under a load, with such a talker: the repeat, from 0, and the directory of each.
    #[must_use]
    pub fn measured(
        &self,
        manifest: &Manifest,
        variant: &str,
        load: Load,
        talker: Talker,
    ) -> Vec<(usize, PathBuf)> {
        let all = (0..manifest.repeats).map(|it| (it, self.measurement(variant, it, load, talker)));
        all.filter(|(_, directory)| directory.join(PROOF).exists()).collect()
    }

    /// Where a build's capacity is kept.
    #[must_use]
    pub fn capacity(&self, variant: &str, repeat: usize) -> PathBuf {
        self.build(variant, repeat).join("capacity")
    }

    /// The capacities that were measured, in the order of the table: the variant, the repeat, from 0, and the file.
    #[must_use]
    pub fn capacities(&self, manifest: &Manifest) -> Vec<(String, usize, PathBuf)> {
        let mut files = Vec::new();
        for Tried { case, .. } in &manifest.variants {
            for way in Way::ALL {
                let name = case.name();
                let of = |it| (name.to_owned(), it, self.capacity(name, it).join(way.file()));
                files.extend((0..manifest.repeats).map(of).filter(|(.., path)| path.exists()));
            }
        }
        files
    }

    /// Why a load could not run in a variant, if it has no measurement for that reason.
    #[must_use]
    pub fn obstacle(
        &self,
        manifest: &Manifest,
        variant: &str,
        load: Load,
        talker: Talker,
    ) -> Option<String> {
        let paths = (0..manifest.repeats).map(|it| self.measurement(variant, it, load, talker));
        paths.filter_map(|it| fs::read_to_string(it.join(OBSTACLE)).ok()).next()
    }

    /// All files that reports are made of, with those of the emulated machine. Some may not be there.
    ///
    /// # Errors
    /// If the run in the emulated machine cannot be opened.
    pub fn inputs(&self, manifest: &Manifest) -> Result<Vec<PathBuf>, KeptError> {
        let mut inputs = [MANIFEST, DOCTOR, PEER].map(|name| self.dir.join(name)).to_vec();
        for Tried { case, .. } in &manifest.variants {
            for (load, talker) in manifest.settings() {
                for repeat in 0..manifest.repeats {
                    let directory = self.measurement(case.name(), repeat, load, talker);
                    inputs.extend(OF_A_MEASUREMENT.map(|name| directory.join(name)));
                }
            }
        }
        inputs.extend(self.capacities(manifest).into_iter().map(|(.., path)| path));
        if let Some((kept, manifest)) = self.nested()? {
            inputs.extend(kept.inputs(&manifest)?);
        }
        Ok(inputs)
    }

    /// Writes the manifest, or replaces it.
    ///
    /// # Errors
    /// If it cannot be written.
    ///
    /// # Panics
    /// Never: all keys are strings.
    pub fn write(&self, manifest: &Manifest) -> Result<(), KeptError> {
        let text = serde_json::to_string_pretty(manifest).expect("an object with string keys");
        let (path, new) = (self.dir.join(MANIFEST), self.dir.join(".lab.json.new"));
        fs::write(&new, text + "\n")
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|source| KeptError::Io { path, source })
    }
}

impl Manifest {
    /// The version of the layout that this program writes, and the only one that it reads.
    pub const FORMAT: u32 = 1;

    /// Under what each variant was measured: every load with every talker.
    pub fn settings(&self) -> impl Iterator<Item = (Load, Talker)> {
        self.loads.iter().flat_map(|&load| self.talkers.iter().map(move |&talker| (load, talker)))
    }
}

impl Host {
    /// This host.
    #[must_use]
    pub fn here() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
            cpu: model.map_or_else(String::new, |(_, model)| model.trim().into()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::manifest;
    use crate::variant::Variant;

    #[test]
    fn a_directory_is_made_new_and_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let kept = Kept::create(&path).unwrap();
        kept.write(&manifest()).unwrap();
        assert_eq!(Kept::open(&path).unwrap().1.loads, manifest().loads);
        assert!(matches!(Kept::create(&path), Err(KeptError::Full(_))));
    }

    #[test]
    fn what_reports_are_made_of_is_known_also_of_the_emulated_machine() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::create(dir.path()).unwrap();
        let case = Case::of(&Variant { name: "host-host".into(), title: String::new() });
        let variants = vec![Tried { case, trouble: None }];
        let manifest = Manifest { variants, repeats: 1, ..manifest() };
        let has = |path: &str| kept.inputs(&manifest).unwrap().contains(&kept.dir().join(path));
        assert!(has("lab.json") && has("host-host/1/none/clocks.json"));
        assert!(!has("host-host/2/none/ping.json"), "there was one repeat");
        assert!(!has("nested/lab.json"), "there was no machine");
        fs::create_dir(dir.path().join(NESTED)).unwrap();
        Kept { dir: kept.dir().join(NESTED) }.write(&manifest).unwrap();
        assert!(has("nested/lab.json") && has("nested/host-host/1/none/ping.json"));
        fs::write(kept.dir().join(NESTED).join(MANIFEST), "{").unwrap();
        assert!(matches!(kept.inputs(&manifest), Err(KeptError::Format { .. })));
    }

    #[test]
    fn what_is_no_run_of_the_lab_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Kept::open(dir.path()), Err(KeptError::Io { .. })));
        for (text, said) in [
            ("{", "EOF"),
            ("{}", "format null"),
            ("{\"format\":99}", "format 99"),
            ("{\"format\":1}", "missing"),
        ] {
            fs::write(dir.path().join(MANIFEST), text).unwrap();
            let error = Kept::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
