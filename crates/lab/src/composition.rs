//! Where the mean round trip went: the parts of every probe, over all repeats.

use report::journey::{Part, Side};
use serde::Serialize;

use crate::joined::Joined;

/// A part of the round trip.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// Where: host, rx, guest, tx or between.
    pub side: Side,
    /// What.
    pub stage: &'static str,
    /// K, D or G as in every report, or H for the agent on the host.
    pub tier: &'static str,
    /// Its part of the mean round trip, nanoseconds.
    pub mean_ns: f64,
    /// Probes of which it was measured.
    pub measured: usize,
    #[serde(skip)]
    total_ns: i128,
}

impl Share {
    /// The part that it is the share of.
    pub(crate) const fn part(&self) -> Part {
        Part { side: self.side, stage: self.stage, tier: self.tier }
    }
}

/// The mean round trip of the probes that could be joined, and its parts, which add up to it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Composition {
    /// Probes that were joined.
    pub probes: usize,
    /// Their mean round trip, from the intended time, nanoseconds.
    pub round_trip_ns: f64,
    /// By how much what lies between two clocks may be wrong: the mean over all probes, nanoseconds.
    pub bound_ns: f64,
    /// In the order of time.
    pub shares: Vec<Share>,
    #[serde(skip)]
    round_trip_total_ns: i128,
    #[serde(skip)]
    bound_total_ns: i128,
}

impl Composition {
    /// Whether any probe was joined.
    #[must_use]
    pub const fn is_measured(&self) -> bool {
        self.probes > 0
    }

    /// The mean of a part, nanoseconds; `None` if no measurement has this part.
    pub(crate) fn mean_of(&self, part: Part) -> Option<f64> {
        self.shares.iter().find(|it| it.part() == part).map(|it| it.mean_ns)
    }

    /// Adds the probes of a measurement.
    pub(crate) fn add(&mut self, joined: &Joined) {
        for probe in &joined.probes {
            self.probes += 1;
            self.round_trip_total_ns += i128::from(probe.round_trip_ns);
            self.bound_total_ns += i128::from(probe.bound_ns);
            for (part, time) in joined.parts.iter().zip(&probe.parts_ns) {
                let share = self.share(part);
                share.measured += usize::from(time.is_some());
                share.total_ns += i128::from(time.unwrap_or(0));
            }
        }
        self.settle();
    }

    /// The share of this part. Measurements with a recording and those without have different parts.
    fn share(&mut self, part: &Part) -> &mut Share {
        let at = self.shares.iter().position(|it| it.part() == *part).unwrap_or_else(|| {
            let &Part { side, stage, tier } = part;
            self.shares.push(Share { side, stage, tier, mean_ns: 0.0, measured: 0, total_ns: 0 });
            self.shares.len() - 1
        });
        &mut self.shares[at]
    }

    /// Computes the means.
    fn settle(&mut self) {
        let probes = self.probes.max(1) as f64;
        self.round_trip_ns = self.round_trip_total_ns as f64 / probes;
        self.bound_ns = self.bound_total_ns as f64 / probes;
        for share in &mut self.shares {
            share.mean_ns = share.total_ns as f64 / probes;
        }
    }
}
