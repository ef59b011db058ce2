//! What has a process of its own (`--isolate process`).

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

/// Stands for [`Part::Metrics`]. No guest has such a name.
const METRICS: &str = "metrics:";

/// What one process of an isolated plan is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// To serve the guests with these names.
    Guests(Vec<String>),
    /// To serve the metrics of all guests.
    Metrics,
}

impl FromStr for Part {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        if text == METRICS {
            return Ok(Self::Metrics);
        }
        Ok(Self::Guests(text.split(',').map(str::to_owned).collect()))
    }
}

/// As [`FromStr`] reads it.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guests(names) => f.write_str(&names.join(",")),
            Self::Metrics => f.write_str(METRICS),
        }
    }
}

impl Part {
    /// Whether it serves the guest with this name.
    pub fn serves(&self, name: &str) -> bool {
        matches!(self, Self::Guests(names) if names.iter().any(|own| own == name))
    }
}
