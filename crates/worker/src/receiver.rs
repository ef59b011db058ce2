//! A receive ring in service: from a wire or from other guests to the guest.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use burst_trace::{BurstRecord, Direction, DropCause, DropCounts, Notification, Stage};
use guest_memory::GuestMemory;
use log_limit::LogLimit;
use virtio_net::receive::Received;
use virtio_net::{GuestRoom, Offloads, ReceiveState};
use virtqueue::{Chains, RingError};

use crate::clock::Deadline;
use crate::half::Half;
use crate::idle::sleep::Sleeper;
use crate::limit::{Bucket, Gate};
use crate::probe_targets::ProbeTargets;
use crate::ring::{Ring, RingState};
use crate::timeline::{Sighting, Timeline, Unsignalled};
use crate::tracer::Tracer;
use crate::view::View;

/// Longest wait of a frame for more guest buffers; then it is dropped. A guest that posts fewer buffers than one frame
/// needs must not hold up every frame after it.
pub const HOLD: Duration = Duration::from_millis(100);

/// The receiving half of a queue pair.
///
/// It is starved from the moment when a frame finds too few guest buffers until one finds enough, or the ring stops. A
/// starved receiver is tried again only when the guest has made more buffers available. What is published to the guest
/// is signalled in the same turn.
#[derive(Debug)]
pub struct Receiver {
    half: Half,
    /// What is kept between bursts, a frame that waits for buffers among it.
    state: ReceiveState,
    starved: Option<Starved>,
    unsignalled: Option<Unsignalled>,
}

/// Frames wait, and the guest has too few buffers.
#[derive(Clone, Copy, Debug)]
struct Starved {
    sighting: Sighting,
    /// When it began, ticks, whether or not bursts are stamped.
    since: u64,
}

/// The outcome of a delivery to a guest, with its ring work ([`Received::work`]).
pub enum Delivery<T> {
    /// The guest has no receive buffers at all, or too few for one frame: it is starved from now on.
    NoBuffers(u32),
    /// There is no receive ring in service.
    NotServed,
    /// The frames that were placed are published, and the guest is to be signalled.
    Done(T, u32),
}

impl Receiver {
    /// For queue pair number `pair`. `probes`: packets to look for.
    pub fn new(guest: usize, log: Arc<LogLimit>, pair: u16, probes: &ProbeTargets) -> Self {
        Self {
            // Virtio 1.2, 5.1.2.
            half: Half::new(guest, log, pair * 2, probes),
            state: ReceiveState::default(),
            starved: None,
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
        self.half.gate().into_iter().for_each(Gate::forget);
        if let Some(starved) = &mut self.starved {
            starved.sighting = Sighting { wake: now, seen: now, polled: true };
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

    /// The offloads that the guest takes, if its ring is served.
    #[inline]
    pub fn offloads(&self) -> Option<Offloads> {
        let ring = self.started().filter(|ring| ring.is_enabled());
        ring.map(|ring| ring.negotiated().guest_offloads())
    }

    /// Calls `burst` to move one burst from a wire, if the ring is served. Returns whether there was one.
    #[inline]
    pub fn serve(
        &mut self,
        view: &mut View<'_>,
        burst: impl FnOnce(&mut Self, &mut Ring, &mut View<'_>) -> Result<bool, RingError>,
    ) -> bool {
        let Some(mut ring) = self.half.ring().take() else { return false };
        let mut worked = false;
        if ring.is_enabled() {
            worked = burst(self, &mut ring, view).unwrap_or_else(|error| {
                ring.break_down(error);
                self.forget(view.tracer(self.guest()));
                true
            });
        }
        *self.half.ring() = Some(ring);
        if worked {
            self.half.note_worked();
        }
        worked
    }

    pub const fn is_starved(&self) -> bool {
        self.starved.is_some()
    }

    /// Whether a complete frame is held until the guest has more buffers.
    pub fn is_holding(&self) -> bool {
        self.state.is_holding()
    }

    /// Crosses the first boundaries of a burst from a wire. Returns the timeline, and whether the worker was polling.
    /// For frames that waited for buffers, it begins when they were first seen.
    #[inline]
    pub fn see_frames(&mut self, ring: &mut Ring, view: &mut View<'_>) -> (Timeline, bool) {
        if let Some(starved) = self.starved {
            let begun = self.begin(starved.sighting, view);
            ring.note_look(begun.0.last());
            return begun;
        }
        let seen = view.tracer(self.guest()).stamp();
        let last_look = ring.note_look(seen);
        let sighting = view.sighting(last_look, seen);
        self.begin(sighting, view)
    }

    /// Begins the timeline of frames seen at `sighting`. For frames that waited for buffers, it begins when they were
    /// first seen.
    #[inline]
    fn begin(&mut self, sighting: Sighting, view: &mut View<'_>) -> (Timeline, bool) {
        let limited = self.half.gate().and_then(Gate::take_waited);
        let tracer = view.tracer(self.guest());
        let before = self.starved.map(|it| it.sighting).or(limited.map(|(sighting, _)| sighting));
        let Sighting { wake, seen, polled } = before.unwrap_or(sighting);
        let mut timeline = Timeline::begin(Direction::Rx, wake);
        tracer.cross_at(&mut timeline, Stage::Notice, seen);
        let limited = limited.map_or(0, |(_, waited)| waited);
        let seen = timeline.last();
        tracer.cross_at(&mut timeline, Stage::Limited, seen.saturating_add(limited));
        if self.starved.is_some() {
            tracer.cross(&mut timeline, Stage::Starved);
        } else {
            let seen = timeline.last();
            tracer.cross_at(&mut timeline, Stage::Starved, seen);
        }
        (timeline, polled)
    }

    /// Calls `place` to place frames in the guest's buffers.
    #[inline]
    pub fn fill<T>(
        &mut self,
        ring: &mut Ring,
        place: impl FnOnce(&mut GuestRoom<'_, '_>) -> T,
    ) -> (T, Received) {
        let (queue, memory, negotiated) = ring.parts();
        let mut chains = Chains::new();
        let mut room = GuestRoom::open(queue, memory, &mut chains, &mut self.state, negotiated);
        let placed = match self.half.probes() {
            None => place(&mut room),
            Some(probes) => probes.watch(&mut room, place),
        };
        (placed, room.close())
    }

    /// Publishes the frames that were placed. Signal the guest afterwards.
    #[inline]
    pub fn publish(
        &mut self,
        ring: &mut Ring,
        mut timeline: Timeline,
        polled: bool,
        received: &Received,
        view: &mut View<'_>,
    ) -> Unsignalled {
        self.starved = None;
        let guest = self.guest();
        let tracer = view.tracer(guest);
        tracer.cross(&mut timeline, Stage::Place);
        ring.queue().publish();
        tracer.cross(&mut timeline, Stage::Publish);
        if let Some(gate) = self.half.gate() {
            let now = view.tracer(guest).recent(&timeline);
            gate.pay(received.packets, received.bytes, now);
        }
        Unsignalled { timeline, packets: received.packets, bytes: received.bytes, polled }
    }

    /// Signals the guest that frames came, if it needs a notification, and records their burst. `recorded` gets the
    /// record.
    #[inline]
    pub fn signal_now(
        &mut self,
        ring: &mut Ring,
        burst: Unsignalled,
        view: &mut View<'_>,
        recorded: impl FnOnce(&BurstRecord),
    ) {
        self.half.publish_probes();
        let called = ring.signal();
        self.signalled(burst, called, view.tracer(self.guest()), recorded);
    }

    /// Records a burst, and counts what became of its signal.
    #[inline]
    fn signalled(
        &mut self,
        burst: Unsignalled,
        called: Notification,
        tracer: &mut Tracer,
        recorded: impl FnOnce(&BurstRecord),
    ) {
        self.record(burst, tracer, recorded);
        tracer.notified(self.index(), called);
    }

    #[inline]
    fn record(
        &mut self,
        mut burst: Unsignalled,
        tracer: &mut Tracer,
        recorded: impl FnOnce(&BurstRecord),
    ) {
        tracer.cross(&mut burst.timeline, Stage::Signal);
        self.half.record(&burst, tracer, recorded);
    }

    /// Calls `place` to place frames from other guests, seen at `sighting`, and publishes them. Signal the guest
    /// afterwards, with [`signal`](Self::signal).
    #[inline]
    pub fn deliver<T>(
        &mut self,
        sighting: Sighting,
        view: &mut View<'_>,
        place: impl FnOnce(&mut GuestRoom<'_, '_>) -> T,
    ) -> Delivery<T> {
        let Some(mut ring) = self.half.ring().take() else { return Delivery::NotServed };
        let delivery = if ring.is_enabled() {
            self.deliver_into(&mut ring, sighting, view, place).unwrap_or_else(|error| {
                ring.break_down(error);
                self.forget(view.tracer(self.guest()));
                Delivery::NotServed
            })
        } else {
            Delivery::NotServed
        };
        *self.half.ring() = Some(ring);
        delivery
    }

    #[inline]
    fn deliver_into<T>(
        &mut self,
        ring: &mut Ring,
        sighting: Sighting,
        view: &mut View<'_>,
        place: impl FnOnce(&mut GuestRoom<'_, '_>) -> T,
    ) -> Result<Delivery<T>, RingError> {
        if ring.queue().available_descriptors()? == 0 {
            self.starve(sighting, view.now());
            return Ok(Delivery::NoBuffers(0));
        }
        let (timeline, _) = self.begin(sighting, view);
        self.starved = None;
        let (placed, received) = self.fill(ring, place);
        if let Some(error) = received.broken {
            return Err(error);
        }
        if received.packets == 0 && received.drops.is_empty() {
            if !received.starved {
                return Ok(Delivery::Done(placed, received.work));
            }
            self.starve(sighting, view.now());
            return Ok(Delivery::NoBuffers(received.work));
        }
        let burst = self.publish(ring, timeline, sighting.polled, &received, view);
        let tracer = view.tracer(self.guest());
        tracer.dropped(self.index(), &received.drops);
        if let Some(before) = self.unsignalled.take() {
            // Of the same turn: one signal is for both.
            self.record(before, tracer, |_| ());
        }
        self.half.publish_probes();
        self.unsignalled = Some(burst);
        Ok(Delivery::Done(placed, received.work))
    }

    /// Signals the guest that frames were delivered in this turn. Returns whether there were any. `recorded` gets the
    /// record of their burst.
    ///
    /// Call this after the sender has its buffers back. The receiver may run at once on this CPU, and may end this process.
    /// A frame that was delivered must be completed by then, or a later process would deliver it again.
    #[inline]
    pub fn signal(&mut self, view: &mut View<'_>, recorded: impl FnOnce(&BurstRecord)) -> bool {
        let Some(burst) = self.unsignalled.take() else { return false };
        // Without a ring, nobody needs a notification any more.
        let called =
            self.half.ring().as_mut().map_or(Notification::CallSuppressed, |it| it.signal());
        self.signalled(burst, called, view.tracer(self.guest()), recorded);
        self.half.note_worked();
        true
    }

    /// When the last frames of this turn were published, ticks.
    pub fn last_published(&self) -> Option<u64> {
        self.unsignalled.as_ref().map(|burst| burst.timeline.last())
    }

    /// Frames seen at `sighting` wait for buffers since `since`, ticks. If others wait already, their times stay.
    #[cold]
    pub fn starve(&mut self, sighting: Sighting, since: u64) {
        self.starved.get_or_insert(Starved { sighting, since });
    }

    /// Frames of a wire were just seen, and wait for buffers.
    #[cold]
    pub fn starve_now(&mut self, ring: &Ring, view: &mut View<'_>) {
        let seen = view.tracer(self.guest()).stamp();
        self.starve(view.sighting(ring.last_look(), seen), view.now());
    }

    /// Whether the guest's limit lets no frame pass.
    #[inline]
    pub fn is_limited(&mut self, view: &View<'_>) -> bool {
        self.half.gate().is_some_and(|gate| gate.is_closed(|| view.now()))
    }

    /// Frames of a wire were just seen, and wait for the guest's limit.
    #[cold]
    pub fn wait_for_limit(&mut self, ring: &mut Ring, view: &mut View<'_>) {
        let seen = view.tracer(self.guest()).stamp();
        let sighting = view.sighting(ring.note_look(seen), seen);
        let now = view.now();
        self.half.gate().into_iter().for_each(|gate| gate.wait_for(sighting, now));
    }

    /// No frames wait for buffers any more.
    pub const fn end_starvation(&mut self) {
        self.starved = None;
    }

    /// A look at the wire found no frames.
    pub fn found_nothing(&mut self, ring: &mut Ring, view: &mut View<'_>) {
        self.starved = None;
        self.half.gate().into_iter().for_each(Gate::forget);
        ring.note_look(view.tracer(self.guest()).stamp());
    }

    /// Drops the frame that has waited too long for more buffers. Returns whether one did.
    #[cold]
    pub fn give_up_held(&mut self, view: &mut View<'_>) -> bool {
        let Some(starved) = self.starved.filter(|_| self.is_holding()) else { return false };
        let is_due = Deadline::after(starved.since, view.shared.hold).is_due(view.now());
        if is_due {
            self.drop_held(DropCause::RxNoBuffers, view.tracer(self.guest()));
            self.starved = None;
        }
        is_due
    }

    /// Whether frames for it have to wait: until its ring is in service, or, if it is starved, until the guest makes
    /// buffers available.
    #[inline]
    pub fn must_wait(&self) -> bool {
        match self.started() {
            None => true,
            Some(ring) => match ring.state() {
                RingState::Waiting => true,
                RingState::Enabled => self.starved.is_some() && !ring.has_grown(),
                // Nobody receives: the frames are dropped and counted.
                RingState::Disabled | RingState::Broken => false,
            },
        }
    }

    /// Whether there may be room again since it was found starved.
    #[cold]
    pub fn may_have_room(&self) -> bool {
        let is_changed = |ring: &Ring| !ring.is_enabled() || ring.has_grown();
        self.starved.is_none() || self.started().is_none_or(is_changed)
    }

    /// Asks for kicks if frames wait for buffers. Returns whether there are buffers already.
    pub fn enable_notification(&mut self) -> bool {
        let waits_for_limit = self.waits_for_limit();
        let ring = self.half.ring().as_mut().filter(|ring| ring.is_enabled());
        let Some(ring) = ring else { return false };
        if self.starved.is_none() || waits_for_limit {
            return false;
        }
        ring.enable_notification();
        ring.has_grown()
    }

    /// Stops serving the ring. Returns the available index to go on from.
    pub fn stop(&mut self, sleeper: &Sleeper, tracer: &mut Tracer) -> Option<u16> {
        let next_available = self.half.stop(sleeper)?;
        self.forget(tracer);
        Some(next_available)
    }

    /// Stops serving the ring, which another daemon goes on with. Returns the available index to go on from, and the frames
    /// that are held.
    pub fn release(&mut self, sleeper: &Sleeper) -> Option<(u16, Vec<Vec<u8>>)> {
        let next_available = self.half.stop(sleeper)?;
        self.starved = None;
        Some((next_available, self.state.take_held()))
    }

    /// Frames that waited in the daemon before, for the ring that starts next.
    pub fn hold(&mut self, frames: Vec<Vec<u8>>) {
        self.state.hold(frames);
    }

    /// Nothing waits for the guest any more: no frame that is held, and no frames of others.
    pub fn forget(&mut self, tracer: &mut Tracer) {
        self.starved = None;
        self.half.gate().into_iter().for_each(Gate::forget);
        self.drop_held(DropCause::RxStopped, tracer);
    }

    /// Moves the ring to a new memory table.
    pub fn set_memory(&mut self, memory: &Arc<GuestMemory>) {
        self.half.set_memory(memory);
        self.starved = None;
    }

    /// Stops the ring if a part of its memory is missing. Returns whether it did.
    #[cold]
    pub fn break_if_torn(&mut self, tracer: &mut Tracer) -> bool {
        let is_torn = self.half.break_if_torn();
        if is_torn {
            self.forget(tracer);
        }
        is_torn
    }

    fn drop_held(&mut self, cause: DropCause, tracer: &mut Tracer) {
        let dropped = self.state.drop_held();
        if dropped > 0 {
            tracer.dropped(self.index(), &DropCounts::only(cause, dropped));
        }
    }
}

/// What is read of both halves alike. Only this type changes it.
impl Deref for Receiver {
    type Target = Half;

    #[inline]
    fn deref(&self) -> &Half {
        &self.half
    }
}
