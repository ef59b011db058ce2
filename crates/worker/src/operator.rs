//! What the operator asks of a running worker: how it stands, and other settings. The worker answers between two bursts
//! (`standing`).

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use burst_trace::Direction;
use datapath::{Captured, Lane, Planted};

use crate::fault::Delay;
use crate::idle::policy::PollPolicy;
use crate::limit::{Bucket, Limit};
use crate::probe_targets::ProbeTargets;

/// How a worker stands with one of its guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What the worker does when idle.
    pub poll: PollPolicy,
    /// Whether the guest's bursts are stamped and recorded.
    pub trace: bool,
    /// Delays that are planted in the guest's stages.
    pub delays: Vec<Delay>,
    /// Faults that are planted in the guest's wire.
    pub faults: Vec<Planted>,
    /// The capture of the guest's frames.
    pub capture: Option<Captured>,
    /// Packets that are recorded one by one.
    pub probes: ProbeTargets,
    /// The guest's limits: to it, from it.
    pub limits: [Option<Limit>; 2],
    /// The guest's rings that this worker serves, by their index.
    pub rings: Vec<RingStanding>,
}

/// How a ring stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingStanding {
    /// The virtqueue index.
    pub ring: u16,
    /// `stopped`, `waiting` (to be enabled), `enabled`, `disabled` or `broken`.
    pub state: &'static str,
    /// What only a ring has that was started.
    pub started: Option<StartedRing>,
}

/// A ring that was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartedRing {
    /// Number of descriptors.
    pub size: u16,
    /// The negotiated features, as bits.
    pub features: u64,
    /// The available index from which it goes on; of a packed ring, the descriptor, and the wrap counter in the topmost bit.
    pub next_available: u16,
    /// Whether the front end gave a descriptor for kicks.
    pub has_kick: bool,
    /// Whether the front end gave a descriptor for calls.
    pub has_call: bool,
    /// Whether it marks the pages that it writes, for a migration.
    pub is_logging: bool,
    /// What it waits for: `buffers` of the guest, the `datapath`, or the guest's `limit`.
    pub waits_for: Option<&'static str>,
}

/// A setting of a running worker.
#[derive(Debug)]
pub enum Setting {
    /// What the worker does when idle. It is the same for all guests of a switch.
    Poll(PollPolicy),
    /// Whether the guest's bursts are stamped and recorded.
    Trace(bool),
    /// The faults that are planted in the guest's stages and in its wire, in place of those before. A switch has no wire.
    Faults(Vec<Delay>, Vec<Planted>),
    /// Queue pairs whose frames are captured, in place of the capture before. Not for a guest of a switch.
    Capture(Vec<(u16, Lane)>),
    /// The guest's limit in this direction, which its workers share; `None` for none.
    Limit(Direction, Option<Arc<Bucket>>),
    /// The packets that are recorded one by one, in place of those before.
    Probes(ProbeTargets),
}

/// A request of the operator.
#[derive(Debug)]
pub(crate) enum Request {
    Look(SyncSender<Standing>),
    Set(Setting, SyncSender<()>),
}
