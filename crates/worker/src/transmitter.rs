//! A transmit ring in service: from the guest to wherever its frames go.

pub mod announce;
mod in_place;

use std::ops::Deref;
use std::sync::Arc;

use burst_trace::{BurstRecord, Direction, DropCause, DropCounts, Stage};
use datapath::Transmitted;
use log_limit::LogLimit;
use virtio_net::{BURST_MAX, Frames, HeldChains, TransmitBurst};
use virtqueue::{Chains, RingError};

use crate::half::Half;
use crate::idle::batching::Batching;
use crate::idle::sleep::Sleeper;
use crate::limit::{Bucket, Gate};
use crate::probe_targets::ProbeTargets;
use crate::ring::{Ring, RingState};
use crate::timeline::{Sighting, Timeline, Unsignalled};
use crate::tracer::Tracer;
use crate::view::View;

/// The sending half of a queue pair.
///
/// A backlog, held chains and a blocked state belong to an enabled ring: they end when the ring stops or breaks. A turn
/// publishes at most one burst, and [`signal`](Self::signal) follows it before the next turn.
#[derive(Debug)]
pub struct Transmitter {
    half: Half,
    backlog: Option<Backlog>,
    /// Chains whose frames are being sent from the guest's memory.
    held: HeldChains,
    batching: Batching,
    /// Not all frames were taken at the last try.
    blocked: bool,
    unsignalled: Option<Unsignalled>,
}

/// Chains that an earlier look saw and that did not fit the burst.
#[derive(Clone, Copy, Debug)]
struct Backlog {
    sighting: Sighting,
    /// Number of ring entries left.
    slots: u16,
}

/// A burst that was gathered, for the one that carries it.
pub struct Gathered<'t> {
    pub timeline: &'t Timeline,
    /// Whether the worker was polling.
    pub polled: bool,
}

/// What became of a burst's frames.
pub struct Carried {
    pub transmitted: Transmitted,
    /// The rest of the frames has to wait.
    pub blocked: bool,
    /// When the last frame was carried, ticks, if that is known; otherwise the time now is taken.
    pub at: Option<u64>,
}

/// A burst that was given back to the guest.
struct Sent {
    /// Number of ring entries.
    slots: u16,
    packets: u16,
    bytes: u32,
    drops: DropCounts,
}

impl Transmitter {
    /// For queue pair number `pair`. `probes`: packets to look for.
    pub fn new(guest: usize, log: Arc<LogLimit>, pair: u16, probes: &ProbeTargets) -> Self {
        Self {
            // Virtio 1.2, 5.1.2.
            half: Half::new(guest, log, pair * 2 + 1, probes),
            backlog: None,
            held: HeldChains::default(),
            batching: Batching::default(),
            blocked: false,
            unsignalled: None,
        }
    }

    /// Counts its packets from `sequence` on.
    pub fn count_from(&mut self, sequence: u64) {
        self.half.count_from(sequence);
    }

    /// Looks for these packets from the next burst on.
    pub fn set_probe_targets(&mut self, targets: &ProbeTargets) {
        self.half.set_probe_targets(targets);
    }

    /// Follows this limit from the next burst on.
    pub fn set_limit(&mut self, bucket: Option<Arc<Bucket>>) {
        self.half.set_limit(bucket);
    }

    /// What was seen before is seen at `now`, ticks: bursts were not stamped until now.
    pub fn see_again(&mut self, now: u64) {
        if let Some(backlog) = &mut self.backlog {
            backlog.sighting = Sighting { wake: now, seen: now, polled: true };
        }
        if let Some(ring) = self.half.ring() {
            ring.note_look(now);
        }
    }

    /// Its ring, if one was started.
    #[inline]
    pub const fn ring(&mut self) -> &mut Option<Box<Ring>> {
        self.half.ring()
    }

    /// Whether a burst went through since this was last asked.
    pub const fn take_worked(&mut self) -> bool {
        self.half.take_worked()
    }

    /// Takes one burst from the guest, if there is one, and has `carry` carry its frames. Call
    /// [`signal`](Self::signal) afterwards.
    #[inline]
    pub fn turn(
        &mut self,
        view: &mut View<'_>,
        carry: impl FnOnce(Frames<'_, '_>, &Gathered<'_>, &mut View<'_>) -> Carried,
    ) {
        self.serve(view, |this, ring, view| this.burst(ring, view, carry));
    }

    #[inline]
    fn serve(
        &mut self,
        view: &mut View<'_>,
        burst: impl FnOnce(&mut Self, &mut Ring, &mut View<'_>) -> Result<(), RingError>,
    ) {
        let Some(mut ring) = self.half.ring().take() else { return };
        let done = match ring.state() {
            RingState::Enabled => burst(self, &mut ring, view),
            RingState::Disabled => discard(&mut ring, self.index(), view.tracer(self.guest())),
            RingState::Waiting | RingState::Broken => Ok(()),
        };
        if let Err(error) = done {
            ring.break_down(error);
            self.forget();
        }
        *self.half.ring() = Some(ring);
    }

    #[inline]
    fn burst(
        &mut self,
        ring: &mut Ring,
        view: &mut View<'_>,
        carry: impl FnOnce(Frames<'_, '_>, &Gathered<'_>, &mut View<'_>) -> Carried,
    ) -> Result<(), RingError> {
        let Some((mut timeline, backlog)) = self.next_burst(ring, view)? else { return Ok(()) };
        let sent = {
            let (queue, memory, negotiated) = ring.parts();
            let mut chains = Chains::new();
            let burst = TransmitBurst::gather(queue, memory, negotiated, &mut chains)?;
            view.tracer(self.guest()).cross(&mut timeline, Stage::Gather);

            let frames = burst.frames();
            let gathered = Gathered { timeline: &timeline, polled: backlog.sighting.polled };
            let carried = carry(frames, &gathered, view);
            let Transmitted { taken, bytes, mut drops, gro_frames, gro_segments } =
                carried.transmitted;
            self.blocked = carried.blocked;
            self.look_for_probes(frames, taken, &drops);
            let tracer = view.tracer(self.guest());
            tracer.joined(self.index(), gro_frames, gro_segments);
            match carried.at {
                Some(at) => tracer.cross_at(&mut timeline, Stage::Egress, at),
                None => tracer.cross(&mut timeline, Stage::Egress),
            }

            #[expect(clippy::cast_possible_truncation, reason = "at most BURST_MAX")]
            let packets = (taken as u16).saturating_sub(drops.total());
            let slots = burst.complete(queue, taken, &mut drops);
            queue.publish();
            Sent { slots, packets, bytes, drops }
        };
        self.published(timeline, backlog, &sent, view);
        Ok(())
    }

    /// The boundaries that the next burst has crossed already, if there is one and it is time to take it.
    #[inline]
    fn next_burst(
        &mut self,
        ring: &mut Ring,
        view: &mut View<'_>,
    ) -> Result<Option<(Timeline, Backlog)>, RingError> {
        if self.half.gate().is_some_and(|gate| gate.is_closed(|| view.now())) {
            self.wait_for_limit(ring, view)?;
            return Ok(None);
        }
        // Not in a worker that is woken up by kicks: nothing would wake it up when the wait is over.
        if view.shared.polling {
            if !self.batching.is_due(|| view.now()) {
                return Ok(None);
            }
            if self.batching.has_enough() && !ring.queue().has_available(BURST_MAX) {
                self.batching.leave();
                return Ok(None);
            }
        }
        let seen = self.see_chains(ring, view)?;
        if seen.is_none() {
            self.batching.missed();
        }
        Ok(seen)
    }

    /// Crosses the first boundaries. The backlog of an earlier look comes first; without one, looks at the ring.
    #[inline]
    fn see_chains(
        &self,
        ring: &mut Ring,
        view: &mut View<'_>,
    ) -> Result<Option<(Timeline, Backlog)>, RingError> {
        if let Some(backlog) = self.backlog {
            let tracer = view.tracer(self.guest());
            let mut timeline = Timeline::begin(Direction::Tx, backlog.sighting.wake);
            tracer.cross_at(&mut timeline, Stage::Notice, backlog.sighting.seen);
            self.cross_queued(&mut timeline, tracer);
            return Ok(Some((timeline, backlog)));
        }
        let Some(Backlog { sighting, slots }) = look(ring, self.guest(), view)? else {
            return Ok(None);
        };
        let Sighting { seen, .. } = sighting;
        let tracer = view.tracer(self.guest());
        let mut timeline = Timeline::begin(Direction::Tx, sighting.wake);
        tracer.cross_at(&mut timeline, Stage::Notice, seen);
        let seen = timeline.last();
        tracer.cross_at(&mut timeline, Stage::Queued, seen);
        let seen = timeline.last();
        tracer.cross_at(&mut timeline, Stage::Limited, seen);
        Ok(Some((timeline, Backlog { sighting: Sighting { seen, ..sighting }, slots })))
    }

    /// Ends the wait of a backlog: the limit's part of it is a stage of its own.
    #[inline]
    fn cross_queued(&self, timeline: &mut Timeline, tracer: &mut Tracer) {
        let waited = self.waited_for_limit();
        if waited == 0 {
            tracer.cross(timeline, Stage::Queued);
            let taken = timeline.last();
            return tracer.cross_at(timeline, Stage::Limited, taken);
        }
        let now = tracer.stamp();
        tracer.cross_at(timeline, Stage::Queued, now.saturating_sub(waited));
        tracer.cross_at(timeline, Stage::Limited, now);
    }

    /// The guest's limit lets nothing pass. Chains that are in sight are a backlog, and wait.
    #[cold]
    fn wait_for_limit(&mut self, ring: &mut Ring, view: &mut View<'_>) -> Result<(), RingError> {
        if self.waits_for_limit() {
            return Ok(());
        }
        let mut since = view.now();
        if self.backlog.is_none() {
            self.backlog = look(ring, self.guest(), view)?;
            if let Some(Backlog { sighting, .. }) = &mut self.backlog
                && sighting.polled
            {
                // They came after the last look, and the limit was in the way since then: it is the bound of their wait.
                sighting.seen = sighting.wake;
                since = sighting.wake;
            }
        }
        if self.backlog.is_some() {
            self.half.gate().into_iter().for_each(|gate| gate.wait(since));
        }
        Ok(())
    }

    /// Notes a burst that is published to the guest.
    #[inline]
    fn published(
        &mut self,
        mut timeline: Timeline,
        backlog: Backlog,
        sent: &Sent,
        view: &mut View<'_>,
    ) {
        let Sent { slots, packets, bytes, ref drops } = *sent;
        let guest = self.guest();
        let tracer = view.tracer(self.guest());
        tracer.cross(&mut timeline, Stage::Complete);
        tracer.dropped(self.index(), drops);
        let left = backlog.slots.saturating_sub(slots).max(self.held.slots());
        if view.shared.polling {
            let now = view.tracer(self.guest()).recent(&timeline);
            // A packed ring does not say how many chains follow a full burst.
            let is_full = slots > backlog.slots && usize::from(slots) >= BURST_MAX;
            // A burst cut short because its receiver has no more buffers goes on when the receiver has had time to post some.
            let more = (left > 0 || is_full) && !self.blocked;
            self.batching.found(now, slots, more, view.shared.longest);
        }
        self.backlog = (left > 0).then_some(Backlog { slots: left, ..backlog });
        if let Some(gate) = self.half.gate() {
            let now = view.tracer(guest).recent(&timeline);
            gate.pay(packets, bytes, now);
            match left {
                0 => gate.forget(),
                _ => gate.wait(now),
            }
        }
        if slots > 0 {
            let polled = backlog.sighting.polled;
            self.unsignalled = Some(Unsignalled { timeline, packets, bytes, polled });
        }
    }

    /// Looks for probes among the first `taken` frames. If some of them were not carried, it is unknown which ones.
    #[inline]
    fn look_for_probes(&mut self, frames: Frames<'_, '_>, taken: usize, drops: &DropCounts) {
        if let Some(probes) = self.half.probes() {
            let carried = if drops.is_empty() { taken } else { 0 };
            probes.look_at(frames.take(carried).iter());
        }
    }

    /// Signals the guest that its burst is done, if it needs a notification, and records the burst. Returns whether there
    /// was one. `recorded` gets the record.
    #[inline]
    pub fn signal(&mut self, view: &mut View<'_>, recorded: impl FnOnce(&BurstRecord)) -> bool {
        let Some(mut burst) = self.unsignalled.take() else { return false };
        let Some(ring) = self.half.ring() else { return false };
        let called = ring.signal();
        let tracer = view.tracer(self.guest());
        tracer.cross(&mut burst.timeline, Stage::Signal);
        tracer.notified(self.index(), called);
        self.record(&burst, tracer, recorded);
        self.half.note_worked();
        true
    }

    #[inline]
    fn record(
        &mut self,
        burst: &Unsignalled,
        tracer: &mut Tracer,
        recorded: impl FnOnce(&BurstRecord),
    ) {
        if burst.packets > 0 {
            self.half.publish_probes();
        }
        self.half.record(burst, tracer, recorded);
    }

    /// Frames are taken again.
    pub const fn unblock(&mut self) {
        self.blocked = false;
    }

    /// The next burst has to wait, for reasons of its receiver.
    pub const fn block(&mut self) {
        self.blocked = true;
    }

    /// Whether frames were not taken at the last try, of a ring that is served.
    pub fn is_blocked(&self) -> bool {
        self.blocked && self.is_served()
    }

    /// Looks at the ring while there is a backlog: chains that came since are in sight now, too.
    #[cold]
    pub fn extend_backlog(&mut self) {
        let Some(ring) = self.half.ring() else { return };
        match ring.queue().available_descriptors() {
            Ok(slots) => {
                if let Some(backlog) = &mut self.backlog {
                    backlog.slots = backlog.slots.max(slots);
                }
            }
            Err(error) => {
                ring.break_down(error);
                self.forget();
            }
        }
    }

    /// Asks for kicks, and returns whether there is work already.
    pub fn enable_notification(&mut self) -> bool {
        let waits_for_limit = self.waits_for_limit();
        let Some(ring) = self.half.ring() else { return false };
        if !matches!(ring.state(), RingState::Enabled | RingState::Disabled) {
            return false;
        }
        if waits_for_limit {
            // A kick would only wake the worker up too early.
            return false;
        }
        ring.enable_notification();
        !self.blocked && ring.queue().available_descriptors() != Ok(0)
    }

    /// Stops serving the ring. Returns the available index to go on from.
    pub fn stop(&mut self, sleeper: &Sleeper) -> Option<u16> {
        let next_available = self.half.stop(sleeper)?;
        self.forget();
        self.held.clear();
        Some(next_available)
    }

    /// Moves the ring to a new memory table. Frames must not be held.
    pub fn set_memory(&mut self, memory: &Arc<guest_memory::GuestMemory>) {
        self.half.set_memory(memory);
        self.backlog = None;
        self.half.gate().into_iter().for_each(Gate::forget);
    }

    /// Stops the ring if a part of its memory is missing. Returns whether it did.
    #[cold]
    pub fn break_if_torn(&mut self) -> bool {
        let is_torn = self.half.break_if_torn();
        if is_torn {
            self.forget();
        }
        is_torn
    }

    /// The ring is not served any more: what was seen of it counts no longer.
    fn forget(&mut self) {
        (self.backlog, self.blocked) = (None, false);
        self.half.gate().into_iter().for_each(Gate::forget);
    }
}

/// What is read of both halves alike. Only this type changes it.
impl Deref for Transmitter {
    type Target = Half;

    #[inline]
    fn deref(&self) -> &Half {
        &self.half
    }
}

/// Looks at the ring: what it holds is in sight from now on.
#[inline]
fn look(ring: &mut Ring, guest: usize, view: &mut View<'_>) -> Result<Option<Backlog>, RingError> {
    let slots = ring.queue().available_descriptors()?;
    let seen = view.tracer(guest).stamp();
    let last_look = ring.note_look(seen);
    if slots == 0 {
        return Ok(None);
    }
    Ok(Some(Backlog { sighting: view.sighting(last_look, seen), slots }))
}

/// Takes one burst from a disabled ring and drops it.
#[cold]
fn discard(ring: &mut Ring, index: u16, tracer: &mut Tracer) -> Result<(), RingError> {
    if ring.queue().available_descriptors()? == 0 {
        return Ok(());
    }
    let mut drops = DropCounts::default();
    {
        let (queue, memory, negotiated) = ring.parts();
        let mut chains = Chains::new();
        let burst = TransmitBurst::gather(queue, memory, negotiated, &mut chains)?;
        let frames = burst.frames().len();
        drops.add_many(DropCause::TxDisabled, frames);
        burst.complete(queue, frames, &mut drops);
    }
    ring.queue().publish();
    tracer.notified(index, ring.signal());
    tracer.dropped(index, &drops);
    Ok(())
}
