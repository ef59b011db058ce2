//! What a worker and its guests are set up with.

use std::sync::Arc;

use burst_trace::Writer;
use confine::Wire;
use log_limit::LogLimit;

use crate::fault::{Crash, Delay};
use crate::idle::PollPolicy;
use crate::limit::Bucket;
use crate::panic::PanicAlarm;
use crate::probe_targets::ProbeTargets;
use crate::scheduling::Scheduling;

/// How a worker is set up.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Its number among the daemon's workers.
    pub index: usize,
    /// Where it runs.
    pub scheduling: Scheduling,
    /// What it does without work.
    pub poll: PollPolicy,
    /// The datapath that it serves, which says what it may do.
    pub wire: Wire,
    /// Raised if it panics.
    pub alarm: PanicAlarm,
}

/// A guest that a worker serves, or a part of its queue pairs.
#[derive(Debug)]
pub struct GuestOptions {
    /// Where messages about it go.
    pub log: Arc<LogLimit>,
    /// The worker's end of the guest's recorder.
    pub writer: Writer,
    /// Delays to plant.
    pub delays: Vec<Delay>,
    /// Panics to plant.
    pub crashes: Vec<Crash>,
    /// Whether bursts are stamped and recorded.
    pub trace: bool,
    /// The guest's limits: to it, from it. All of its workers share them.
    pub limits: [Option<Arc<Bucket>>; 2],
    /// Packets that are recorded one by one, too.
    pub probes: ProbeTargets,
}
