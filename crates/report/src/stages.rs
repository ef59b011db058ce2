//! Every stage of every tier in the order of the tables, measured or not.

use burst_trace::{Direction, Stage};
use serde::Serialize;

use crate::figures::Figures;

/// Who measures a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Tier {
    /// The daemon itself: always there.
    D,
    /// The host kernel: needs the BPF programs.
    K,
    /// The guest: needs the agent there.
    G,
}

impl Tier {
    /// The letter in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::D => "D",
            Self::K => "K",
            Self::G => "G",
        }
    }
}

/// A line of the table: a stage, and what was measured of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StageRow {
    /// The stage's name, or `total`.
    pub stage: &'static str,
    /// Who measures it.
    pub tier: Tier,
    /// Packets; `None` (JSON `null`) where the stage is not measured.
    pub count: Option<u64>,
    /// The figures, which are there if and only if `count` is above 0.
    #[serde(flatten)]
    pub figures: Option<Figures>,
    /// Mean per packet of the time in this stage in which the worker did not run, ns. `None` (JSON `null`) where that is not
    /// measured, where the stage is not the worker's, and without packets.
    pub not_running_mean_ns: Option<f64>,
}

impl StageRow {
    /// Whether it is the stage of a limit that held nothing back, as of all guests without a limit. Tables leave it out.
    #[must_use]
    pub fn is_idle_limit(&self) -> bool {
        let has_time = self.figures.is_some_and(|figures| figures.max_ns > 0);
        self.stage == Stage::Limited.name() && !has_time
    }

    /// A stage that this recorder does not measure.
    #[must_use]
    pub const fn not_measured(stage: &'static str, tier: Tier) -> Self {
        Self { stage, tier, count: None, figures: None, not_running_mean_ns: None }
    }
}

/// A place in a direction's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A stage that the daemon measures.
    Daemon(Stage),
    /// A stage of another tier.
    Outside(&'static str, Tier),
}

/// All stages of `direction`, in a packet's order.
#[must_use]
pub const fn places(direction: Direction) -> &'static [Place] {
    use Place::{Daemon, Outside};
    match direction {
        Direction::Tx => &[
            Outside("guest-send", Tier::G),
            Outside("wakeup", Tier::K),
            Daemon(Stage::Notice),
            Daemon(Stage::Queued),
            Daemon(Stage::Limited),
            Daemon(Stage::Gather),
            Daemon(Stage::Egress),
            Daemon(Stage::Complete),
            Daemon(Stage::Signal),
            Outside("host-tx", Tier::K),
        ],
        Direction::Rx => &[
            Outside("host-rx", Tier::K),
            Outside("wakeup", Tier::K),
            Daemon(Stage::Notice),
            Daemon(Stage::Limited),
            Daemon(Stage::Starved),
            Daemon(Stage::Place),
            Daemon(Stage::Publish),
            Daemon(Stage::Signal),
            Outside("inject", Tier::K),
            Outside("guest-receive", Tier::G),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_hold_every_stage_of_the_records_in_their_order() {
        for direction in [Direction::Tx, Direction::Rx] {
            let daemon: Vec<_> = places(direction)
                .iter()
                .filter_map(|place| match place {
                    Place::Daemon(stage) => Some(*stage),
                    Place::Outside(..) => None,
                })
                .collect();
            assert_eq!(daemon, direction.stages());
        }
    }
}
