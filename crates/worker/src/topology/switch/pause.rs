//! The switch carries nothing while its guests go from one daemon to another: a frame for a guest whose rings are not started
//! yet, or not any more, would be lost. Frames wait in the rings of their senders and in the uplink's interface meanwhile.

use std::time::Duration;

use crate::clock::Deadline;

/// Time in which the rings of all guests are started again when the other daemon failed.
pub const RETURNING: Duration = Duration::from_millis(10);

/// Time between two looks whether frames may flow again.
pub const AWHILE: Duration = Duration::from_micros(20);

/// Why the switch carries nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// It carries frames.
    No,
    /// Its guests come from another daemon, which says when all are there.
    Coming,
    /// Rings were stopped for another daemon.
    Leaving,
    /// The other daemon failed, and a ring starts again. Others follow, until then.
    Returning(Option<Deadline>),
}
