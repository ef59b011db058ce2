//! A pair's turn from the guest to the wire.

use burst_trace::{Direction, DropCause, DropCounts, Stage};
use datapath::{Datapath, Transmitted};
use virtio_net::{BURST_MAX, Frames, TransmitBurst};
use virtqueue::{Chains, RingError};

use crate::pair::{Backlog, Context, Pair};
use crate::ring::{Ring, RingState};
use crate::trace::Journey;

/// A burst that the datapath is done with.
pub struct Sent {
    /// Entries of the ring that went back to the guest.
    pub slots: u16,
    pub packets: u16,
    pub bytes: u32,
    pub drops: DropCounts,
}

/// A burst that was published to its guest, who was not told yet.
#[derive(Debug)]
pub struct Untold {
    pub journey: Journey,
    pub packets: u16,
    pub bytes: u32,
    pub polled: bool,
}

impl<D: Datapath> Pair<D> {
    /// Moves one burst from the guest to the wire, if there is one. Tell the guest afterwards, with
    /// [`tell_transmitted`](Self::tell_transmitted).
    pub fn transmit_turn(&mut self, context: &mut Context<'_>) -> Option<Untold> {
        let mut ring = self.tx.take()?;
        let untold = match ring.state {
            RingState::Enabled => self.transmit_burst(&mut ring, context),
            RingState::Disabled => discard_burst(&mut ring, context).map(|()| None),
            RingState::Waiting | RingState::Broken => Ok(None),
        };
        let untold = untold.unwrap_or_else(|broken| {
            ring.break_down(broken);
            (self.backlog, self.blocked) = (None, false);
            None
        });
        self.tx = Some(ring);
        untold
    }

    /// Tells the guest of the burst that it got back, if it wants to be told.
    #[inline]
    pub fn tell_transmitted(&mut self, mut untold: Untold, context: &mut Context<'_>) {
        let Some(ring) = &mut self.tx else { return };
        ring.signal();
        context.tracer.cross(&mut untold.journey, Stage::Signal);
        self.record(Direction::Tx, &untold, context.tracer);
    }

    #[inline]
    fn transmit_burst(
        &mut self,
        ring: &mut Ring,
        context: &mut Context<'_>,
    ) -> Result<Option<Untold>, RingError> {
        if D::FORWARDS {
            // Whoever lets it go on wakes the worker up: a command, or a kick of the receive ring.
            self.blocked = self.holds_back();
            if self.blocked {
                return Ok(None);
            }
        }
        let Some((mut journey, backlog)) = self.next_burst(ring, context)? else {
            return Ok(None);
        };
        let sent = self.send(ring, &mut journey, backlog.polled, context)?;
        Ok(self.sent(ring, journey, backlog, &sent, context))
    }

    /// The boundaries that the next burst has crossed already, if there is one and it is time to take it.
    #[inline]
    pub fn next_burst(
        &mut self,
        ring: &mut Ring,
        context: &mut Context<'_>,
    ) -> Result<Option<(Journey, Backlog)>, RingError> {
        // A worker that is woken up by kicks would not be for what comes while it waits.
        if context.polling {
            if !self.batching.is_due(|| context.tracer.now()) {
                return Ok(None);
            }
            if self.batching.has_enough() && !ring.queue.has_available(BURST_MAX) {
                self.batching.leave();
                return Ok(None);
            }
        }
        let seen = self.see_chains(ring, context)?;
        if seen.is_none() {
            self.batching.missed();
        }
        Ok(seen)
    }

    /// Takes note of a burst that was published to its guest.
    #[inline]
    pub fn sent(
        &mut self,
        ring: &Ring,
        mut journey: Journey,
        backlog: Backlog,
        sent: &Sent,
        context: &mut Context<'_>,
    ) -> Option<Untold> {
        let Sent { slots, packets, bytes, ref drops } = *sent;
        context.tracer.cross(&mut journey, Stage::Complete);
        context.tracer.dropped(ring.index, drops);
        let left = backlog.slots.saturating_sub(slots).max(self.held.slots());
        if context.polling {
            let now = context.tracer.recent(&journey);
            // A packed ring does not tell how much there is behind a full burst.
            let is_full = slots > backlog.slots && usize::from(slots) >= BURST_MAX;
            // What was cut short, because the receiver has no more buffers, goes on when it has had time to post some.
            let more = (left > 0 || is_full) && !self.blocked;
            self.batching.found(now, slots, more, context.longest);
        }
        self.backlog = (left > 0).then_some(Backlog { slots: left, ..backlog });
        (slots > 0).then_some(Untold { journey, packets, bytes, polled: backlog.polled })
    }

    /// The first `taken` frames are done with. Where some were not carried, it is not said which ones.
    #[inline]
    pub fn carried(&mut self, frames: Frames<'_, '_>, taken: usize, drops: &DropCounts) {
        if let Some(probes) = &mut self.probes {
            let carried = if drops.is_empty() { taken } else { 0 };
            probes.look_at_sent(frames.take(carried).iter());
        }
    }

    /// Takes chains, has the datapath carry their frames, and publishes those that are done with.
    #[inline]
    fn send(
        &mut self,
        ring: &mut Ring,
        journey: &mut Journey,
        polled: bool,
        context: &mut Context<'_>,
    ) -> Result<Sent, RingError> {
        if self.datapath.holds_frames() {
            return self.send_in_place(ring, journey, context.tracer);
        }
        let Ring { queue, memory, negotiated, .. } = ring;
        let mut chains = Chains::new();
        let burst = TransmitBurst::gather(queue, memory, *negotiated, &mut chains)?;
        context.tracer.cross(journey, Stage::Gather);

        let frames = burst.frames();
        let Transmitted { taken, bytes, mut drops } = if D::FORWARDS {
            self.forward(frames, journey.last(), polled, context)
        } else {
            self.datapath.transmit(frames)
        };
        self.blocked = taken < frames.len();
        self.carried(frames, taken, &drops);
        match &self.forwarded {
            // Nothing came after it was published.
            Some(forwarded) => {
                context.tracer.cross_at(journey, Stage::Egress, forwarded.journey.last());
            }
            None => context.tracer.cross(journey, Stage::Egress),
        }

        #[expect(clippy::cast_possible_truncation, reason = "at most BURST_MAX")]
        let packets = (taken as u16).saturating_sub(drops.total());
        let slots = burst.complete(queue, taken, &mut drops);
        queue.publish();
        Ok(Sent { slots, packets, bytes, drops })
    }

    /// Crosses the first boundaries: what an earlier look saw and could not take comes first; else the
    /// ring is looked at.
    #[inline]
    fn see_chains(
        &self,
        ring: &mut Ring,
        context: &mut Context<'_>,
    ) -> Result<Option<(Journey, Backlog)>, RingError> {
        let tracer = &mut *context.tracer;
        if let Some(backlog) = self.backlog {
            let mut journey = Journey::begin(Direction::Tx, backlog.wake);
            tracer.cross_at(&mut journey, Stage::Notice, backlog.seen);
            tracer.cross(&mut journey, Stage::Queued);
            return Ok(Some((journey, backlog)));
        }
        let slots = ring.queue.available_descriptors()?;
        let seen = tracer.stamp();
        let last_look = std::mem::replace(&mut ring.last_look, seen);
        if slots == 0 {
            return Ok(None);
        }
        let (wake, polled) = context.wake(last_look);
        let tracer = &mut *context.tracer;
        let mut journey = Journey::begin(Direction::Tx, wake);
        tracer.cross_at(&mut journey, Stage::Notice, seen);
        let seen = journey.last();
        tracer.cross_at(&mut journey, Stage::Queued, seen);
        Ok(Some((journey, Backlog { wake, seen, polled, slots })))
    }
}

/// Takes one burst from a disabled ring and drops it.
#[cold]
pub fn discard_burst(ring: &mut Ring, context: &mut Context<'_>) -> Result<(), RingError> {
    if ring.queue.available_descriptors()? == 0 {
        return Ok(());
    }
    let mut drops = DropCounts::default();
    {
        let Ring { queue, memory, negotiated, .. } = &mut *ring;
        let mut chains = Chains::new();
        let burst = TransmitBurst::gather(queue, memory, *negotiated, &mut chains)?;
        let frames = burst.frames().len();
        (0..frames).for_each(|_| drops.add(DropCause::TxDisabled));
        burst.complete(queue, frames, &mut drops);
    }
    ring.queue.publish();
    ring.signal();
    context.tracer.dropped(ring.index, &drops);
    Ok(())
}
