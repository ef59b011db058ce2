//! From guest to guest: a burst goes from one ring's buffers into another's.

use burst_trace::{Direction, Stage};
use datapath::{Datapath, Transmitted};
use virtio_net::{Frames, GuestRoom, Offloads};
use virtqueue::Chains;

use crate::pair::{Context, Pair, Starved};
use crate::probes::watch;
use crate::ring::{Ring, RingState};
use crate::trace::Journey;
use crate::transmit::Untold;

/// Since when frames for a guest have been in sight.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// When the worker had what it needs to look, ticks.
    pub wake: u64,
    /// When it was the frames' turn, ticks.
    pub seen: u64,
    /// Whether the worker was polling.
    pub polled: bool,
}

/// The outcome of a delivery to a guest, with its ring work ([`Received::work`]).
///
/// [`Received::work`]: virtio_net::receive::Received::work
pub enum Delivery<T> {
    /// The guest has no receive buffers at all, or too few for one frame: it is `starved` from now on.
    NoBuffers(u32),
    /// There is no receive ring in service.
    NotServed,
    /// What was placed is published, and the guest to be told.
    Done(T, u32),
}

impl<D: Datapath> Pair<D> {
    /// Has the datapath carry frames that were gathered at `gathered` into the receive ring's buffers,
    /// and publishes them there. To the sender this is `egress`; to the receiver it is a burst of its
    /// own, in sight since it was gathered.
    #[inline]
    pub fn forward(
        &mut self,
        frames: Frames<'_, '_>,
        gathered: u64,
        polled: bool,
        context: &mut Context<'_>,
    ) -> Transmitted {
        if !self.is_served() {
            return self.datapath.transmit(frames);
        }
        if frames.is_empty() {
            return Transmitted::default();
        }
        let sight = Sight { wake: gathered, seen: gathered, polled };
        match self.deliver(sight, context, |datapath, room| datapath.forward(frames, room)) {
            Delivery::Done(transmitted, _) => transmitted,
            Delivery::NoBuffers(_) => Transmitted::default(),
            // Not kept for later: nothing would wake the worker up for them.
            Delivery::NotServed => self.datapath.transmit(frames),
        }
    }

    /// What the guest takes of frames that are not finished, if its receive ring is in service.
    #[inline]
    pub fn takes(&self) -> Option<Offloads> {
        let ring = self.rx.as_ref().filter(|ring| ring.state == RingState::Enabled);
        ring.map(|ring| ring.negotiated.guest_offloads())
    }

    /// Whether frames can be placed in the receive ring.
    #[inline]
    pub fn is_served(&self) -> bool {
        self.rx.as_ref().is_some_and(|ring| ring.state == RingState::Enabled)
    }

    /// Has `fill` place frames in the receive ring's buffers, and publishes them there. Tell the guest
    /// afterwards, with [`tell_forwarded`](Self::tell_forwarded).
    #[inline]
    pub fn deliver<T>(
        &mut self,
        sight: Sight,
        context: &mut Context<'_>,
        fill: impl FnOnce(&mut D, &mut GuestRoom<'_, '_>) -> T,
    ) -> Delivery<T> {
        let Some(ring) = self.rx.as_mut().filter(|ring| ring.state == RingState::Enabled) else {
            return Delivery::NotServed;
        };
        match ring.queue.available_descriptors() {
            Ok(0) => {
                starve(&mut self.starved, sight, context);
                return Delivery::NoBuffers(0);
            }
            Ok(_) => {}
            Err(broken) => {
                ring.break_down(broken);
                return Delivery::NotServed;
            }
        }
        let tracer = &mut *context.tracer;
        let mut journey =
            Journey::begin(Direction::Rx, self.starved.map_or(sight.wake, |s| s.wake));
        tracer.cross_at(&mut journey, Stage::Notice, self.starved.map_or(sight.seen, |s| s.seen));
        if self.starved.take().is_some() {
            tracer.cross(&mut journey, Stage::Starved);
        } else {
            let seen = journey.last();
            tracer.cross_at(&mut journey, Stage::Starved, seen);
        }

        let (filled, received) = {
            let Ring { queue, memory, negotiated, .. } = &mut **ring;
            let mut chains = Chains::new();
            let mut room =
                GuestRoom::open(queue, memory, &mut chains, &mut self.receive, *negotiated);
            let Self { datapath, probes, .. } = self;
            (watch(probes.as_deref_mut(), &mut room, |room| fill(datapath, room)), room.close())
        };
        if let Some(broken) = received.broken {
            ring.break_down(broken);
            return Delivery::NotServed;
        }
        if received.packets == 0 && received.drops.is_empty() {
            if !received.starved {
                return Delivery::Done(filled, received.work);
            }
            starve(&mut self.starved, sight, context);
            return Delivery::NoBuffers(received.work);
        }
        tracer.cross(&mut journey, Stage::Place);
        ring.queue.publish();
        tracer.cross(&mut journey, Stage::Publish);
        tracer.dropped(ring.index, &received.drops);
        let (packets, bytes) = (received.packets, received.bytes);
        if let Some(before) = self.forwarded.take() {
            // Of the same turn: the guest is told of both at once.
            self.finish_forwarded(before, context);
        }
        self.published();
        self.forwarded = Some(Untold { journey, packets, bytes, polled: sight.polled });
        Delivery::Done(filled, received.work)
    }

    /// Tells the receiver of the burst that was forwarded in this turn. Returns whether there was one.
    ///
    /// This comes after the sender has its buffers back: who is told may run at once, on this very CPU,
    /// and should it end this process then, no frame must be left that is delivered and not completed.
    #[inline]
    pub fn tell_forwarded(&mut self, context: &mut Context<'_>) -> bool {
        let Some(untold) = self.forwarded.take() else { return false };
        if let Some(ring) = &mut self.rx {
            ring.signal();
        }
        self.finish_forwarded(untold, context);
        true
    }

    /// Leaves the record of a burst that was forwarded behind.
    #[inline]
    fn finish_forwarded(&mut self, mut untold: Untold, context: &mut Context<'_>) {
        context.tracer.cross(&mut untold.journey, Stage::Signal);
        self.record(Direction::Rx, &untold, context.tracer);
    }

    /// Whether what the guest sends has to wait: for a receive ring that is not in service yet, or for
    /// receive buffers of which none came since it waits.
    #[inline]
    pub fn holds_back(&self) -> bool {
        match &self.rx {
            None => true,
            Some(ring) => match ring.state {
                RingState::Waiting => true,
                RingState::Enabled => self.starved.is_some() && !ring.queue.has_grown(),
                // Nobody receives: the datapath drops and counts.
                RingState::Disabled | RingState::Broken => false,
            },
        }
    }
}

/// Frames in sight wait for receive buffers.
#[cold]
fn starve(starved: &mut Option<Starved>, sight: Sight, context: &Context<'_>) {
    let since = context.tracer.now();
    let Sight { wake, seen, polled } = sight;
    starved.get_or_insert(Starved { wake, seen, polled, since });
}
