//! The flags for joining probe packets from application to application.

use std::path::{Path, PathBuf};

use burst_trace::Source;
use clap::ValueEnum;
use host_files::FileId;
use report::Initiator;
use report::breakdown::is_alive;
use report::journey::stamps::{Author, Stamps, StampsError};
use report::journey::{
    ClockBounds, ClockFileError, HostClocks, Journeys, KnownClock, Misfit, Relation as Known,
};
use serde_json::Value;

use crate::clocks;

/// Flags for probe packets.
#[derive(Debug, clap::Args)]
pub struct Probes {
    /// Join the probes in this file of `ringscope agent udp-ping --stamps`
    ///
    /// The daemon has to record them (--trace-probe). The report shows each
    /// probe's round trip, from application to application.
    #[arg(long, value_name = "FILE")]
    probes: Option<PathBuf>,
    /// The file of `ringscope agent udp-echo --stamps` for the same probes
    #[arg(long, value_name = "FILE", requires = "probes")]
    echo: Option<PathBuf>,
    /// Side that began the round trips
    #[arg(long, value_name = "SIDE", default_value = "host")]
    initiator: Side,
    /// Bounds of the guest's clock: a file of `ringscope agent clock`
    ///
    /// The probes alone bound the offset between the guest's clock and the
    /// host's to about half of the shortest time there and back. This file
    /// narrows the bounds: that of a clock page (--page), of the guest's KVM
    /// clock device (--ptp), or the guest's counter (neither) of a KVM guest.
    #[arg(long, value_name = "FILE", requires = "probes")]
    clock: Option<PathBuf>,
    /// How the guest's clock relates to the host's
    #[arg(long, value_name = "RELATION", default_value = "drifting")]
    clock_relation: Relation,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Side {
    Host,
    Guest,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Relation {
    /// One clock: both ends run on this host
    Same,
    /// The host's plus a constant, as that of User Mode Linux
    Constant,
    /// They drift apart at a constant rate
    Drifting,
}

impl Probes {
    /// Whether probes are to be joined.
    pub const fn are_asked_for(&self) -> bool {
        self.probes.is_some()
    }

    pub const fn initiator(&self) -> Initiator {
        match self.initiator {
            Side::Host => Initiator::Host,
            Side::Guest => Initiator::Guest,
        }
    }

    /// The files with stamps and bounds.
    pub fn files(&self) -> impl Iterator<Item = FileId> {
        [&self.probes, &self.echo, &self.clock]
            .into_iter()
            .flatten()
            .filter_map(|path| FileId::of_path(path))
    }

    /// Joins the probes with the records of `source`, if that was asked for.
    ///
    /// # Errors
    /// When a file of stamps or bounds cannot be used, or the files and flags do not fit the records.
    pub fn join(&self, source: &Source) -> Result<Option<Journeys>, ProbesError> {
        let Some(file) = &self.probes else { return Ok(None) };
        if let Source::Joined(joined) = source
            && !joined.has_one_clock()
        {
            return Err(ProbesError::SeveralHosts);
        }
        let sender = read(file, "--probes", Author::Ping)?;
        let echo = match &self.echo {
            None => None,
            Some(path) => {
                let echo = read(path, "--echo", Author::Echo)?;
                if !echo.probes.keys().any(|id| sender.probes.contains_key(id)) {
                    return Err(ProbesError::Strangers {
                        echo: path.clone(),
                        probes: file.clone(),
                    });
                }
                Some(echo)
            }
        };
        let known = self.known(source)?;
        let joined = Journeys::join(source, self.initiator(), &sender, echo.as_ref(), &known);
        joined.check()?;
        Ok(Some(joined))
    }

    /// What is known of the guest's clock.
    fn known(&self, source: &Source) -> Result<KnownClock, ClockFileError> {
        let relation = match self.clock_relation {
            Relation::Same => Known::Same,
            Relation::Constant => Known::Constant,
            Relation::Drifting => Known::Drifting,
        };
        let bounds = match &self.clock {
            None => None,
            Some(path) => Some(ClockBounds::read(path, &host_clocks(source))?),
        };
        Ok(KnownClock { relation, bounds })
    }
}

/// The clocks of the host: those in a recording's facts, or, of a daemon that runs here, those of this host.
fn host_clocks(source: &Source) -> HostClocks {
    let clocks = match source {
        Source::Recorder(reader) if is_alive(reader) => clocks::look(reader.front_end()),
        Source::Recorder(_) | Source::Recording(_) | Source::Joined(_) => {
            let mut facts: Value = serde_json::from_str(&source.facts()).unwrap_or_default();
            facts["clocks"].take()
        }
    };
    HostClocks::new(source, &clocks)
}

/// Reads the stamps for `flag`, which `author` has to have written.
fn read(path: &Path, flag: &'static str, author: Author) -> Result<Stamps, ProbesError> {
    let stamps = Stamps::read(path)?;
    if stamps.author().is_some_and(|it| it != author) {
        let (wanted, found, other) = match author {
            Author::Ping => ("udp-ping", "udp-echo", "--echo"),
            Author::Echo => ("udp-echo", "udp-ping", "--probes"),
        };
        return Err(ProbesError::Swapped { flag, path: path.into(), wanted, found, other });
    }
    if stamps.is_cut_off {
        eprintln!(
            "ringscope: {}: the last line has no end and was left out; end the agent before its file is read",
            path.display()
        );
    }
    Ok(stamps)
}

/// Why probes cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum ProbesError {
    /// A file cannot be used.
    #[error(transparent)]
    Stamps(#[from] StampsError),
    /// A file of bounds cannot be used.
    #[error(transparent)]
    Clock(#[from] ClockFileError),
    /// The other agent wrote the file.
    #[error(
        "{flag} {path}: expected the stamps of {wanted}, found those of {found}: give this file with {other}"
    )]
    Swapped {
        /// The flag with the wrong file.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// The agent whose file the flag takes.
        wanted: &'static str,
        /// The agent that wrote it.
        found: &'static str,
        /// The flag that takes it.
        other: &'static str,
    },
    /// The two files have no probe in common.
    #[error("{echo} has none of the probes in {probes}: give the files of one run")]
    Strangers {
        /// The responder's file.
        echo: PathBuf,
        /// The sender's file.
        probes: PathBuf,
    },
    /// The stamps of agents and records of several hosts have no clock in common.
    #[error(
        "--probes joins stamps with the records of one host, and these are of several: report each by itself with its probes"
    )]
    SeveralHosts,
    /// Files and records do not fit.
    #[error(transparent)]
    Misfit(#[from] Misfit),
}
