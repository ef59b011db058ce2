//! Probes of other programs beside the agent's: the same way, measured by somebody else.

pub mod isochron;
pub mod ping;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use agent::Figures;
use serde::Serialize;

use crate::command::{CommandError, Stop};
use crate::end::EndError;
use crate::kept::OTHERS;
use crate::plan::{OtherProbe, Probes};
use crate::variant::Built;

/// With one repeat, two medians differ if one of them is more than this many times the other.
pub const FACTOR: f64 = 1.5;

/// What a probe measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// To the responder and back.
    RoundTrip,
    /// To the responder.
    ToResponder,
}

impl Way {
    /// Its name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoundTrip => "round trip",
            Self::ToResponder => "to the responder",
        }
    }
}

/// The figures of another program's probes under a load, all repeats together.
#[derive(Clone, Debug, Serialize)]
pub struct Other {
    /// The program.
    pub probe: OtherProbe,
    /// What it measures.
    pub way: Way,
    /// Probes sent.
    pub sent: usize,
    /// Probes that did not come back, or did not arrive.
    pub lost: usize,
    /// `None` if none came back.
    pub figures: Option<Figures>,
    /// The median of each repeat, nanoseconds.
    pub repeat_p50_ns: Vec<u64>,
    /// Whether the median differs from the agent's, by more than the repeats of either differ, or [`FACTOR`] with one repeat.
    pub differs: bool,
    /// Why it has no figures, or fewer than the agent.
    pub trouble: Option<String>,
}

/// What another program has measured in one measurement of the lab.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Probes sent.
    pub sent: usize,
    /// The times of those that came back, or arrived, nanoseconds.
    pub times_ns: Vec<u64>,
}

/// Why other probes failed, or their output cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OthersError {
    /// The lab was interrupted, or an end does not answer.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The program cannot measure here.
    #[error("{0}")]
    Impossible(&'static str),
    /// Nothing arrived at its receiver, or the receiver did not begin.
    #[error("{source}; the receiver {state}, and said: {said}")]
    Receiver {
        /// What failed.
        source: CommandError,
        /// Whether the receiver still ran.
        state: &'static str,
        /// The end of what it said.
        said: String,
    },
    /// An end could not start it.
    #[error(transparent)]
    End(#[from] EndError),
    /// A file cannot be read or written.
    #[error("cannot use {path}: {source}")]
    Io {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A kept file is not the program's output.
    #[error("{path}: expected {expected}, found {found:?}")]
    Format {
        /// Its path.
        path: PathBuf,
        /// What was expected.
        expected: &'static str,
        /// What was found.
        found: String,
    },
}

/// Why single programs did not measure: a sentence for each.
type Troubles = BTreeMap<OtherProbe, String>;

/// Sends the probes of these programs, one program after the other, and keeps what they print in the directory `into`.
///
/// # Errors
/// If the lab was interrupted, or a file cannot be written. A program that fails only has no figures.
pub(crate) fn measure(
    stop: &Stop,
    built: &Built,
    others: &[OtherProbe],
    probes: Probes,
    into: &Path,
) -> Result<(), OthersError> {
    let mut troubles = Troubles::new();
    for &probe in others {
        let ended = match probe {
            OtherProbe::Ping => ping::measure(stop, built, probes, into),
            OtherProbe::Isochron => isochron::measure(stop, built, probes, into),
        };
        match ended {
            Ok(()) => {}
            Err(OthersError::Impossible(why)) => {
                troubles.insert(probe, why.into());
            }
            Err(
                OthersError::Command(CommandError::Interrupted)
                | OthersError::End(EndError::Command(CommandError::Interrupted)),
            ) => return Err(CommandError::Interrupted.into()),
            Err(
                error @ (OthersError::Command(_)
                | OthersError::Receiver { .. }
                | OthersError::End(_)),
            ) => {
                troubles.insert(probe, error.to_string());
            }
            Err(error) => return Err(error),
        }
    }
    let text = serde_json::to_string_pretty(&troubles).expect("an object with string keys");
    write(&into.join(OTHERS), &text)
}

fn write(path: &Path, text: &str) -> Result<(), OthersError> {
    fs::write(path, text).map_err(|source| OthersError::Io { path: path.into(), source })
}

/// The file's content; `None` if there is no such file.
fn read(path: &Path) -> Result<Option<String>, OthersError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(OthersError::Io { path: path.into(), source }),
    }
}

/// The agent's medians, with which others are compared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Agent<'a> {
    /// Of each repeat, round trip, nanoseconds.
    pub round_trip_p50_ns: &'a [u64],
    /// Of each repeat, to the responder, nanoseconds.
    pub to_responder_p50_ns: &'a [u64],
}

/// The figures of all programs in the directories of one variant and load.
///
/// # Errors
/// If a file cannot be read, or is not the program's output.
pub(crate) fn figures(
    directories: &[PathBuf],
    agent: Agent<'_>,
) -> Result<Vec<Other>, OthersError> {
    let mut others = Vec::new();
    let mut troubles = Troubles::new();
    for directory in directories {
        let path = directory.join(OTHERS);
        // Runs before there were other probes have no such file.
        if let Some(text) = read(&path)? {
            let these: Troubles =
                serde_json::from_str(&text).map_err(|error| OthersError::Format {
                    path,
                    expected: "an object of sentences",
                    found: error.to_string(),
                })?;
            troubles.extend(these);
        }
    }
    let (mut pings, mut packets) = (Vec::new(), Vec::new());
    for directory in directories {
        pings.extend(ping::read(directory)?);
        packets.extend(isochron::read(directory)?);
    }
    for (probe, way, measured, p50_ns) in [
        (OtherProbe::Ping, Way::RoundTrip, pings, agent.round_trip_p50_ns),
        (OtherProbe::Isochron, Way::ToResponder, packets, agent.to_responder_p50_ns),
    ] {
        others.extend(Other::of(probe, way, measured, p50_ns, troubles.remove(&probe)));
    }
    Ok(others)
}

impl Other {
    /// `None` if the program did not run, and nothing is to be said about it.
    fn of(
        probe: OtherProbe,
        way: Way,
        measured: Vec<Measured>,
        agent_p50_ns: &[u64],
        trouble: Option<String>,
    ) -> Option<Self> {
        if measured.is_empty() && trouble.is_none() {
            return None;
        }
        let p50 = |it: &Measured| Some(Figures::of(it.times_ns.clone())?.p50_ns);
        let repeat_p50_ns: Vec<_> = measured.iter().filter_map(p50).collect();
        let sent = measured.iter().map(|it| it.sent).sum();
        let times: Vec<_> = measured.into_iter().flat_map(|it| it.times_ns).collect();
        Some(Self {
            probe,
            way,
            sent,
            lost: sent.saturating_sub(times.len()),
            figures: Figures::of(times),
            differs: differs(agent_p50_ns, &repeat_p50_ns),
            repeat_p50_ns,
            trouble,
        })
    }
}

/// Whether medians of repeats differ by more than the repeats among themselves; with one repeat, by [`FACTOR`].
fn differs(these: &[u64], those: &[u64]) -> bool {
    let range = |of: &[u64]| Some((*of.iter().min()?, *of.iter().max()?));
    let Some(((low, high), (from, to))) = range(these).zip(range(those)) else { return false };
    let middle = |low: u64, high: u64| low.midpoint(high);
    let (this, that) = (middle(low, high), middle(from, to));
    if these.len() > 1 && those.len() > 1 {
        return this.abs_diff(that) > (high - low).max(to - from);
    }
    this.max(that) as f64 > this.min(that) as f64 * FACTOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_differ_by_more_than_the_repeats_or_by_a_factor() {
        assert!(!differs(&[100, 120], &[125, 130]) && differs(&[100, 120], &[140, 145]));
        assert!(!differs(&[100], &[150]) && differs(&[100], &[151]) && differs(&[151], &[100]));
        // One repeat of either has no spread.
        assert!(!differs(&[100], &[140, 150]));
        assert!(!differs(&[], &[1]) && !differs(&[1], &[]));
    }

    #[test]
    fn a_program_that_did_not_run_has_a_sentence_or_no_row() {
        let of = |measured, trouble| {
            Other::of(OtherProbe::Ping, Way::RoundTrip, measured, &[10], trouble)
        };
        assert!(of(Vec::new(), None).is_none());
        let other = of(Vec::new(), Some("no ping".into())).unwrap();
        assert_eq!((other.sent, other.figures, other.differs), (0, None, false));
        let other = of(vec![Measured { sent: 3, times_ns: vec![20, 30] }], None).unwrap();
        assert_eq!((other.sent, other.lost, other.differs), (3, 1, true));
    }
}
