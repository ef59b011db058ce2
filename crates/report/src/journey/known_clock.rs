//! What is known of the guest's clock before its probes are looked at.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::one_clock::Bounds;

/// Most bounds in a file.
const BOUNDS_MAX: usize = 10_000;
/// Most bytes of a file with bounds.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Error of the recorder's clock as the host's `CLOCK_MONOTONIC`, nanoseconds: half the duration of the quickest of five
/// readings of both ([`burst_trace::Clock::anchor`]), which is below 100 ns.
const RECORDER_NS: i64 = 50;

/// The relation between the guest's `CLOCK_MONOTONIC` and the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Relation {
    /// They are the same clock.
    Same,
    /// The guest's is the host's plus a constant, as that of User Mode Linux is.
    Constant,
    /// They drift apart at a constant rate.
    #[default]
    Drifting,
}

impl Relation {
    /// `same`, `constant` or `drifting`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Constant => "constant",
            Self::Drifting => "drifting",
        }
    }
}

/// What is known of the guest's clock.
#[derive(Clone, Debug, Default)]
pub struct KnownClock {
    /// Its relation to the host's.
    pub relation: Relation,
    /// Measured bounds of its offset.
    pub page: Option<ClockPage>,
}

/// Bounds of the offset between both clocks, measured over a page of memory that guest and host share: the file of
/// `ringscope agent clock`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ClockPage {
    /// How they were measured.
    pub relation: PageRelation,
    /// Number of exchanges.
    pub exchanges: u64,
    /// Duration of the shortest exchange, nanoseconds.
    pub shortest_ns: u64,
    /// The bounds.
    pub bounds: Vec<PageBound>,
}

/// The value of `relation` in a file of `ringscope agent clock`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum PageRelation {
    /// A page of shared memory.
    #[serde(rename = "clock-page")]
    ClockPage,
}

/// A bound of the guest's `CLOCK_MONOTONIC` minus the host's, at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct PageBound {
    /// The host's `CLOCK_MONOTONIC`, nanoseconds.
    pub host_ns: i64,
    /// The offset is at least this, nanoseconds.
    pub low_ns: i64,
    /// The offset is at most this, nanoseconds.
    pub high_ns: i64,
}

/// Why a file with bounds cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClockPageError {
    /// The file could not be read.
    #[error(
        "cannot read the clock bounds {path}: {source}; make them with `ringscope agent clock`"
    )]
    Io {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is something else.
    #[error(
        "{path} has no clock bounds: expected the JSON object of `ringscope agent clock` with 1 to {BOUNDS_MAX} bounds, found \
         {found}"
    )]
    Format {
        /// Its path.
        path: PathBuf,
        /// What was found instead.
        found: String,
    },
}

impl ClockPage {
    /// Reads the file of `ringscope agent clock`.
    ///
    /// # Errors
    /// If it cannot be read, is something else, or has a bound whose lower end is above its upper one.
    pub fn read(path: &Path) -> Result<Self, ClockPageError> {
        let io = |source| ClockPageError::Io { path: path.into(), source };
        let mut text = String::new();
        let file = File::open(path).map_err(io)?;
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(io)?;
        let found = if text.len() as u64 > FILE_BYTES_MAX {
            Err(format!("more than {FILE_BYTES_MAX} bytes"))
        } else {
            Self::parse(&text)
        };
        found.map_err(|found| ClockPageError::Format { path: path.into(), found })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let page: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if page.bounds.is_empty() || page.bounds.len() > BOUNDS_MAX {
            return Err(format!("{} bounds", page.bounds.len()));
        }
        match page.bounds.iter().find(|bound| bound.low_ns > bound.high_ns) {
            None => Ok(page),
            Some(PageBound { low_ns, high_ns, .. }) => {
                Err(format!("an offset of at least {low_ns} ns and at most {high_ns} ns"))
            }
        }
    }

    /// Adds its bounds.
    pub(super) fn add_to(&self, bounds: &mut Bounds) {
        for &PageBound { host_ns, low_ns, high_ns } in &self.bounds {
            bounds.at_least(host_ns, low_ns.saturating_sub(RECORDER_NS));
            bounds.at_most(host_ns, high_ns.saturating_add(RECORDER_NS));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_bounds_is_read_and_what_is_wrong_is_said() {
        let good = r#"{"relation":"clock-page","exchanges":9,"shortest_ns":50,"more":1,
            "bounds":[{"host_ns":1000,"low_ns":-7,"high_ns":5}]}"#;
        let page = ClockPage::parse(good).unwrap();
        assert_eq!(page.bounds, [PageBound { host_ns: 1000, low_ns: -7, high_ns: 5 }]);
        for (from, to, found) in [
            ("clock-page", "guess", "guess"),
            (r#"{"host_ns":1000,"low_ns":-7,"high_ns":5}"#, "", "0 bounds"),
            ("-7", "6", "at least 6 ns and at most 5 ns"),
            ("1000", "1e30", "invalid"),
            ("exchanges", "x", "missing field"),
        ] {
            let error = ClockPage::parse(&good.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(found), "{error}");
        }
        let directory = tempfile::tempdir().unwrap();
        let error = ClockPage::read(directory.path()).unwrap_err().to_string();
        assert!(error.contains("ringscope agent clock"), "{error}");
    }
}
