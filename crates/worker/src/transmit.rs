//! A pair's turn from the guest to the wire.

use burst_trace::{Direction, DropCause, DropCounts, Stage};
use datapath::{Datapath, Transmitted};
use virtio_net::TransmitBurst;
use virtqueue::{Broken, Slices};

use crate::pair::{Backlog, Context, Pair};
use crate::ring::{Ring, RingState};
use crate::trace::{Journey, Outcome, Tracer};

/// A burst that the datapath is done with.
struct Sent {
    /// Chains given back to the guest.
    chains: u16,
    packets: u16,
    bytes: u32,
    drops: DropCounts,
}

/// A burst whose chains were given back to the guest, who was not told yet.
pub struct Untold {
    journey: Journey,
    packets: u16,
    bytes: u32,
    polled: bool,
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
            self.backlog = None;
            None
        });
        self.tx = Some(ring);
        untold
    }

    /// Tells the guest of the burst that it got back, if it wants to be told.
    #[inline]
    pub fn tell_transmitted(&mut self, untold: Untold, context: &mut Context<'_>) {
        let Some(ring) = &mut self.tx else { return };
        let Untold { mut journey, packets, bytes, polled } = untold;
        ring.signal();
        context.tracer.cross(&mut journey, Stage::Signal);
        if packets > 0 {
            let sequence = self.sequences[1];
            let ring = ring.index;
            context.tracer.finish(&journey, Outcome { ring, sequence, packets, bytes, polled });
            self.sequences[1] += u64::from(packets);
        }
    }

    #[inline]
    fn transmit_burst(
        &mut self,
        ring: &mut Ring,
        context: &mut Context<'_>,
    ) -> Result<Option<Untold>, Broken> {
        let Some((mut journey, backlog)) = self.see_chains(ring, context)? else {
            return Ok(None);
        };
        let tracer = &mut *context.tracer;
        let Sent { chains, packets, bytes, drops } = self.send(ring, &mut journey, tracer)?;
        tracer.cross(&mut journey, Stage::Complete);
        tracer.dropped(ring.index, &drops);
        let left = backlog.chains.saturating_sub(chains);
        self.backlog = (left > 0).then_some(Backlog { chains: left, ..backlog });
        Ok((chains > 0).then_some(Untold { journey, packets, bytes, polled: backlog.polled }))
    }

    /// Takes chains, has the datapath carry their frames, and publishes those that are done with.
    #[inline]
    fn send(
        &mut self,
        ring: &mut Ring,
        journey: &mut Journey,
        tracer: &mut Tracer,
    ) -> Result<Sent, Broken> {
        let Ring { queue, memory, negotiated, .. } = ring;
        let mut slices = Slices::new();
        let mut burst = TransmitBurst::default();
        burst.gather(queue, memory, *negotiated, &mut slices)?;
        tracer.cross(journey, Stage::Gather);

        let frames = burst.frames(&slices, *negotiated);
        let Transmitted { taken, bytes, mut drops } = self.datapath.transmit(frames);
        self.blocked = taken < frames.len();
        tracer.cross(journey, Stage::Egress);

        #[expect(clippy::cast_possible_truncation, reason = "at most BURST_MAX")]
        let packets = taken as u16 - drops.total();
        let chains = burst.complete(queue, taken, &mut drops);
        queue.publish();
        Ok(Sent { chains, packets, bytes, drops })
    }

    /// Crosses the first boundaries: what an earlier look saw and could not take comes first; else the
    /// ring is looked at.
    #[inline]
    fn see_chains(
        &self,
        ring: &mut Ring,
        context: &mut Context<'_>,
    ) -> Result<Option<(Journey, Backlog)>, Broken> {
        let tracer = &mut *context.tracer;
        if let Some(backlog) = self.backlog {
            let mut journey = Journey::begin(Direction::Tx, backlog.wake);
            tracer.cross_at(&mut journey, Stage::Notice, backlog.seen);
            tracer.cross(&mut journey, Stage::Queued);
            return Ok(Some((journey, backlog)));
        }
        let chains = ring.queue.available()?;
        let seen = tracer.stamp();
        let last_look = std::mem::replace(&mut ring.last_look, seen);
        if chains == 0 {
            return Ok(None);
        }
        let (wake, polled) = context.wake(last_look);
        let tracer = &mut *context.tracer;
        let mut journey = Journey::begin(Direction::Tx, wake);
        tracer.cross_at(&mut journey, Stage::Notice, seen);
        let seen = journey.last();
        tracer.cross_at(&mut journey, Stage::Queued, seen);
        Ok(Some((journey, Backlog { wake, seen, polled, chains })))
    }
}

/// Takes one burst from a disabled ring and drops it.
#[cold]
fn discard_burst(ring: &mut Ring, context: &mut Context<'_>) -> Result<(), Broken> {
    if ring.queue.available()? == 0 {
        return Ok(());
    }
    let Ring { queue, memory, negotiated, .. } = ring;
    let drops = {
        let mut slices = Slices::new();
        let mut burst = TransmitBurst::default();
        burst.gather(queue, memory, *negotiated, &mut slices)?;
        let frames = burst.frames(&slices, *negotiated).len();
        let mut drops = DropCounts::default();
        (0..frames).for_each(|_| drops.add(DropCause::TxDisabled));
        burst.complete(queue, frames, &mut drops);
        drops
    };
    queue.publish();
    ring.signal();
    context.tracer.dropped(ring.index, &drops);
    Ok(())
}
