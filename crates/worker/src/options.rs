//! What a worker and its guests are set up with.

use std::sync::Arc;

use burst_trace::Writer;
use confine::Wire;
use datapath::{Faulty, Lane, Pcap, Planted, Wrapped};
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
    /// Faults to plant in its wire. A switch has none.
    pub faults: Vec<Planted>,
    /// Captures of its queue pairs, by their numbers. A switch has none.
    pub capture: Vec<(u16, Lane)>,
    /// Panics to plant.
    pub crashes: Vec<Crash>,
    /// Whether bursts are stamped and recorded.
    pub trace: bool,
    /// The guest's limits: to it, from it. All of its workers share them.
    pub limits: [Option<Arc<Bucket>>; 2],
    /// Packets that are recorded one by one, too.
    pub probes: ProbeTargets,
}

impl GuestOptions {
    /// The datapath of queue pair `pair`, with what shall be around it.
    pub(crate) fn wrapped<D>(&mut self, pair: u16, datapath: D) -> Wrapped<D> {
        let mut captured = Pcap::new(datapath);
        let its = self.capture.iter().position(|(number, _)| *number == pair);
        captured.capture(its.map(|its| self.capture.swap_remove(its).1));
        Faulty::new(captured, &self.faults, pair)
    }
}
