//! A pair's turn from the wire to the guest.

use std::io;

use burst_trace::{Direction, DropCause, DropCounts, Stage};
use datapath::{Datapath, Look};
use virtio_net::GuestRoom;
use virtio_net::receive::Received;
use virtqueue::{Chains, RingError};

use crate::clock::Deadline;
use crate::pair::{Context, Failed, Pair, Starved};
use crate::probes::watch;
use crate::ring::{Ring, RingState};
use crate::trace::Journey;
use crate::transmit::Untold;

impl<D: Datapath> Pair<D> {
    /// Moves one burst from the wire to the guest. Returns whether there was one.
    pub fn receive_turn(&mut self, context: &mut Context<'_>) -> bool {
        if D::FORWARDS {
            return self.tell_forwarded(context);
        }
        let Some(mut ring) = self.rx.take() else { return false };
        let mut worked = false;
        if ring.state == RingState::Enabled {
            worked = self.receive_burst(&mut ring, context).unwrap_or_else(|broken| {
                ring.break_down(broken);
                self.starved = None;
                self.drop_held(DropCause::RxStopped, context.tracer);
                true
            });
        }
        self.rx = Some(ring);
        worked
    }

    #[inline]
    fn receive_burst(
        &mut self,
        ring: &mut Ring,
        context: &mut Context<'_>,
    ) -> Result<bool, RingError> {
        let has_descriptor = self.datapath.readiness().is_some();
        if has_descriptor && !self.readable && !context.polling {
            return Ok(false);
        }
        if self.failed.is_some_and(|failed| !failed.retry.is_due(context.tracer.now())) {
            return Ok(false);
        }
        if let Some(starved) = self.starved
            && !ring.queue.has_grown()
        {
            return Ok(self.give_up_held(starved, context));
        }
        let has_buffers = ring.queue.available_descriptors()? > 0;
        if self.starved.is_some() {
            // More buffers came.
        } else if !has_buffers {
            return Ok(self.starve(ring, context));
        } else if context.tracer.has_fault()
            && !self.datapath.has_frames()
            && !self.receive.is_holding()
        {
            // A planted delay must hit bursts, not looks that find nothing.
            self.failed = None;
            self.look_found_nothing(ring, context);
            return Ok(false);
        }
        let (mut journey, mut polled) = self.see_frames(ring, context);
        let (looked, received) = self.fill(ring);
        let mut drops = received.drops;
        let look = match looked {
            Ok(look) => {
                self.failed = None;
                look
            }
            Err(error) => {
                self.fail(&error, &mut drops, context);
                Look::Drained
            }
        };
        // What failed is looked at again although nothing says that there are frames.
        self.readable = look == Look::More || self.failed.is_some();
        if let Some(broken) = received.broken {
            return Err(broken);
        }
        if received.packets == 0 && drops.is_empty() {
            if look == Look::More {
                return Ok(self.starve(ring, context));
            }
            self.look_found_nothing(ring, context);
            return Ok(false);
        }
        self.starved = None;
        let tracer = &mut *context.tracer;
        if let Some(arrived_ns) = self.datapath.arrived_ns() {
            tracer.arrived(&mut journey, arrived_ns);
            // It is known when the frame came: what polling would only bound is exact.
            polled = false;
        }
        tracer.cross(&mut journey, Stage::Place);
        ring.queue.publish();
        tracer.cross(&mut journey, Stage::Publish);
        ring.signal();
        tracer.cross(&mut journey, Stage::Signal);
        self.published();
        let Received { packets, bytes, .. } = received;
        self.record(Direction::Rx, &Untold { journey, packets, bytes, polled }, context.tracer);
        context.tracer.dropped(ring.index, &drops);
        Ok(true)
    }

    /// The datapath could not be read. It is left alone for a while, longer each time: an interface that is
    /// gone must not keep a worker busy.
    #[cold]
    fn fail(&mut self, error: &io::Error, drops: &mut DropCounts, context: &Context<'_>) {
        // That there is nothing to be read now costs no frame.
        let failed = Failed::again(self.failed, context.tracer.now(), context.retry);
        self.failed = Some(failed);
        if error.kind() != io::ErrorKind::WouldBlock {
            if failed.is_logged() {
                let Self { log, index, .. } = self;
                log_limit::warn!(
                    log,
                    "queue pair {index}: no frame could be read from the datapath: {error}"
                );
            }
            drops.add(DropCause::RxError);
        }
    }

    /// Has the datapath place frames in the guest's buffers.
    #[inline]
    fn fill(&mut self, ring: &mut Ring) -> (io::Result<Look>, Received) {
        let Ring { queue, memory, negotiated, .. } = ring;
        let mut chains = Chains::new();
        let mut room = GuestRoom::open(queue, memory, &mut chains, &mut self.receive, *negotiated);
        let Self { datapath, probes, .. } = self;
        let looked = watch(probes.as_deref_mut(), &mut room, |room| datapath.receive(room));
        (looked, room.close())
    }

    /// Crosses the first boundaries. Frames that waited for buffers were in sight long ago.
    #[inline]
    fn see_frames(&self, ring: &mut Ring, context: &mut Context<'_>) -> (Journey, bool) {
        if let Some(starved) = self.starved {
            let mut journey = Journey::begin(Direction::Rx, starved.wake);
            context.tracer.cross_at(&mut journey, Stage::Notice, starved.seen);
            context.tracer.cross(&mut journey, Stage::Starved);
            ring.last_look = journey.last();
            return (journey, starved.polled);
        }
        let seen = context.tracer.stamp();
        let last_look = std::mem::replace(&mut ring.last_look, seen);
        let (wake, polled) = context.wake(last_look);
        let mut journey = Journey::begin(Direction::Rx, wake);
        context.tracer.cross_at(&mut journey, Stage::Notice, seen);
        let seen = journey.last();
        context.tracer.cross_at(&mut journey, Stage::Starved, seen);
        (journey, polled)
    }

    fn look_found_nothing(&mut self, ring: &mut Ring, context: &Context<'_>) {
        self.readable = self.failed.is_some();
        self.starved = None;
        ring.last_look = context.tracer.stamp();
    }

    /// There is no room for a frame now. If one waits, it is `starved` from now on. Returns false: this
    /// is no burst.
    #[cold]
    fn starve(&mut self, ring: &mut Ring, context: &Context<'_>) -> bool {
        if self.starved.is_some() {
            return false;
        }
        if !self.receive.is_holding() && !self.datapath.has_frames() {
            self.failed = None;
            self.look_found_nothing(ring, context);
            return false;
        }
        let seen = context.tracer.stamp();
        let (wake, polled) = context.wake(ring.last_look);
        let since = context.tracer.now();
        self.starved = Some(Starved { wake, seen, polled, since });
        false
    }

    /// A frame that has waited too long for more buffers makes way. Returns whether one did.
    #[cold]
    fn give_up_held(&mut self, starved: Starved, context: &mut Context<'_>) -> bool {
        let hold = Deadline::after(starved.since, context.hold);
        if !self.receive.is_holding() || !hold.is_due(context.tracer.now()) {
            return false;
        }
        self.drop_held(DropCause::RxNoBuffers, context.tracer);
        self.starved = None;
        true
    }
}
