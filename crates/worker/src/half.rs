//! What both halves of a queue pair have: a virtqueue, and what is recorded of its bursts.

use std::sync::Arc;

use burst_trace::BurstRecord;
use guest_memory::GuestMemory;
use log_limit::LogLimit;

use crate::idle::sleep::Sleeper;
use crate::limit::{Bucket, Gate, Limit};
use crate::probe_targets::ProbeTargets;
use crate::probes::ProbeFinder;
use crate::ring::Ring;
use crate::timeline::Unsignalled;
use crate::tracer::Tracer;

/// One half of a queue pair, without what only a transmitter or a receiver has.
#[derive(Debug)]
pub struct Half {
    guest: usize,
    log: Arc<LogLimit>,
    index: u16,
    /// Boxed, because a turn takes it out and puts it back: then only a pointer moves.
    ring: Option<Box<Ring>>,
    /// The number of its next packet: that of the packets before it, also with daemons before.
    sequence: u64,
    probes: Option<Box<ProbeFinder>>,
    /// Where it waits for the guest's limit, if there is one.
    gate: Option<Box<Gate>>,
    /// A burst went through since [`take_worked`](Self::take_worked).
    worked: bool,
}

impl Half {
    /// For virtqueue `index`. `targets`: packets to look for.
    pub fn new(guest: usize, log: Arc<LogLimit>, index: u16, targets: &ProbeTargets) -> Self {
        let probes = (!targets.is_empty()).then(|| Box::new(ProbeFinder::new(targets)));
        Self { guest, log, index, ring: None, sequence: 0, probes, gate: None, worked: false }
    }

    /// Counts its packets from `sequence` on, unless it has counted further.
    pub fn count_from(&mut self, sequence: u64) {
        self.sequence = self.sequence.max(sequence);
    }

    /// The guest's number among those of the worker.
    #[inline]
    pub const fn guest(&self) -> usize {
        self.guest
    }

    /// Where messages about it go.
    pub const fn log(&self) -> &Arc<LogLimit> {
        &self.log
    }

    /// The number of its virtqueue.
    #[inline]
    pub const fn index(&self) -> u16 {
        self.index
    }

    /// Its ring, if one was started.
    #[inline]
    pub const fn ring(&mut self) -> &mut Option<Box<Ring>> {
        &mut self.ring
    }

    /// Its ring, if one was started, to look at.
    #[inline]
    pub fn started(&self) -> Option<&Ring> {
        self.ring.as_deref()
    }

    /// Whether its ring is enabled: frames flow.
    #[inline]
    pub fn is_served(&self) -> bool {
        self.started().is_some_and(Ring::is_enabled)
    }

    /// Whether the guest made chains available since the last look.
    pub fn has_grown(&self) -> bool {
        self.started().is_some_and(Ring::has_grown)
    }

    /// A burst went through.
    #[inline]
    pub const fn note_worked(&mut self) {
        self.worked = true;
    }

    /// Whether a burst went through since this was last asked.
    pub const fn take_worked(&mut self) -> bool {
        std::mem::replace(&mut self.worked, false)
    }

    pub const fn has_worked(&self) -> bool {
        self.worked
    }

    /// What looks for probe packets, if that was asked for.
    #[inline]
    pub fn probes(&mut self) -> Option<&mut ProbeFinder> {
        self.probes.as_deref_mut()
    }

    /// The guest's limit.
    pub fn limit(&self) -> Option<Limit> {
        self.gate.as_ref().map(|gate| gate.limit())
    }

    /// Follows this limit from the next burst on.
    pub fn set_limit(&mut self, bucket: Option<Arc<Bucket>>) {
        self.gate = bucket.map(|bucket| Box::new(Gate::new(bucket)));
    }

    /// Where it waits for the guest's limit.
    #[inline]
    pub fn gate(&mut self) -> Option<&mut Gate> {
        self.gate.as_deref_mut()
    }

    /// Whether frames wait for the guest's limit.
    #[inline]
    pub fn waits_for_limit(&self) -> bool {
        self.gate.as_ref().is_some_and(|gate| gate.is_waiting())
    }

    /// How long the frames in sight have waited for the limit, ticks.
    #[inline]
    pub fn waited_for_limit(&self) -> u64 {
        self.gate.as_ref().map_or(0, |gate| gate.waited())
    }

    /// Time after which frames that wait for the limit may pass, ticks; `None` if none wait.
    pub fn passes_in(&self, now: u64) -> Option<u64> {
        self.gate.as_ref()?.opens_in(now)
    }

    /// Packets that are looked for.
    pub fn probe_targets(&self) -> ProbeTargets {
        self.probes.as_ref().map(|probes| probes.targets().clone()).unwrap_or_default()
    }

    /// Looks for these packets from the next burst on.
    pub fn set_probe_targets(&mut self, targets: &ProbeTargets) {
        self.probes = (!targets.is_empty()).then(|| Box::new(ProbeFinder::new(targets)));
    }

    /// Called when a burst is published. It is recorded next.
    #[inline]
    pub fn publish_probes(&mut self) {
        if let Some(probes) = &mut self.probes {
            probes.published();
        }
    }

    /// Records a burst that has crossed all its boundaries. `recorded` gets the record.
    #[inline]
    pub fn record(
        &mut self,
        burst: &Unsignalled,
        tracer: &mut Tracer,
        recorded: impl FnOnce(&BurstRecord),
    ) {
        if burst.packets == 0 {
            return;
        }
        let record = tracer.record(burst, self.index, self.sequence);
        recorded(&record);
        if let Some(probes) = &mut self.probes {
            probes.recorded(&record, tracer);
        }
        self.sequence += u64::from(burst.packets);
    }

    /// Stops serving the ring. Returns the available index to go on from.
    pub fn stop(&mut self, sleeper: &Sleeper) -> Option<u16> {
        let mut stopped = self.ring.take()?;
        stopped.ignore(sleeper);
        let queue = stopped.queue();
        let next_available = queue.next_available();
        if let Some(journal) = queue.journal() {
            // Nothing is on its way.
            journal.taken(next_available, next_available);
        }
        Some(next_available)
    }

    /// Moves the ring to a new memory table.
    pub fn set_memory(&mut self, memory: &Arc<GuestMemory>) {
        if let Some(ring) = &mut self.ring {
            ring.set_memory(memory);
        }
    }

    /// Stops the ring if a part of its memory is missing. Returns whether it did.
    #[cold]
    pub fn break_if_torn(&mut self) -> bool {
        self.ring.as_mut().is_some_and(|ring| ring.break_if_torn())
    }
}
