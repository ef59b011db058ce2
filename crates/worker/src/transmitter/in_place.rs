//! Frames that are sent from the guest's own memory: the guest gets their chains back when the kernel is done with them.

use std::time::{Duration, Instant};

use burst_trace::{BurstRecord, Direction, DropCause, DropCounts, Stage};
use datapath::{Datapath, InPlace, Transmitted};
use virtio_net::TransmitBurst;
use virtqueue::{Chains, RingError};

use super::{Sent, Transmitter};
use crate::ring::Ring;
use crate::timeline::{Timeline, Unsignalled};
use crate::view::View;

/// Longest wait for the kernel to send the held frames when the ring stops, is disabled or gets other memory. A front end may
/// cause it over and over. It makes only its own guest wait, because a worker with datapaths of its own serves one guest
/// (`Worker::spawn`). An uplink of a switch sends no frames from a guest's memory.
const DRAIN: Duration = Duration::from_millis(100);
/// Time between two checks during that wait.
const CHECK: Duration = Duration::from_micros(200);

/// The boundaries of frames that are given back outside of a turn.
const BOUNDARIES: &[Stage] = Direction::Tx.stages();

impl Transmitter {
    /// As [`turn`](Self::turn), for a datapath that sends frames from the guest's memory.
    #[inline]
    pub fn turn_in_place<D: Datapath>(&mut self, datapath: &mut D, view: &mut View<'_>) {
        self.serve(view, |this, ring, view| this.burst_in_place(ring, datapath, view));
    }

    /// Takes chains, has the datapath send their frames, and publishes the chains that the kernel is done with.
    fn burst_in_place<D: Datapath>(
        &mut self,
        ring: &mut Ring,
        datapath: &mut D,
        view: &mut View<'_>,
    ) -> Result<(), RingError> {
        let Some((mut timeline, backlog)) = self.next_burst(ring, view)? else { return Ok(()) };
        let (queue, memory, negotiated) = ring.parts();
        let mut refused = false;
        if self.held.has_room() {
            let mut chains = Chains::new();
            let burst = TransmitBurst::gather(queue, memory, negotiated, &mut chains)?;
            view.tracer(self.guest()).cross(&mut timeline, Stage::Gather);
            let frames = burst.frames();
            let taken = datapath.transmit(frames).taken;
            refused = taken < frames.len();
            self.look_for_probes(frames, taken, &DropCounts::default());
            self.held.hold(&burst, queue, taken);
        } else {
            view.tracer(self.guest()).cross(&mut timeline, Stage::Gather);
        }
        let Transmitted { taken, bytes, mut drops, .. } = sent(datapath);
        view.tracer(self.guest()).cross(&mut timeline, Stage::Egress);
        #[expect(clippy::cast_possible_truncation, reason = "at most two bursts")]
        let packets = (taken as u16).saturating_sub(drops.total());
        let slots = self.held.complete(queue, taken, &mut drops);
        // Checked again soon: there is no event when the kernel is done.
        self.blocked = refused || !self.held.is_empty();
        queue.publish();
        self.published(timeline, backlog, &Sent { slots, packets, bytes, drops }, view);
        Ok(())
    }

    /// Waits until the kernel is done with the held frames, and gives their chains back. Frames that take longer than
    /// [`DRAIN`] are counted as lost, and the datapath is detached from the guest's memory. Returns whether it was.
    /// `recorded` gets the datapath and the record of the frames that were sent.
    #[cold]
    pub fn settle<D: Datapath>(
        &mut self,
        datapath: &mut D,
        view: &mut View<'_>,
        recorded: impl FnOnce(&mut D, &BurstRecord),
    ) -> bool {
        let (guest, index) = (self.guest(), self.index());
        let ring = self.half.ring().as_mut().filter(|_| !self.held.is_empty());
        let Some(ring) = ring else { return false };
        let tracer = view.tracer(guest);
        let queue = ring.queue();
        let mut timeline = Timeline::begin(Direction::Tx, tracer.stamp());
        let (mut done, mut drops) = (Transmitted::default(), DropCounts::default());
        let until = Instant::now() + DRAIN;
        loop {
            let sent = sent(datapath);
            self.held.complete(queue, sent.taken, &mut drops);
            done.add(&sent);
            if self.held.is_empty() || Instant::now() > until {
                break;
            }
            std::thread::sleep(CHECK);
        }
        let unsent = self.held.frames();
        drops.add_many(DropCause::TxLinkDown, unsent);
        self.held.complete(queue, unsent, &mut drops);
        if unsent > 0
            && let Some(in_place) = datapath.in_place()
        {
            in_place.detach();
        }
        queue.publish();
        tracer.notified(index, ring.signal());
        self.forget();
        drops.add_all(&done.drops);
        tracer.dropped(index, &drops);
        BOUNDARIES.iter().for_each(|&stage| tracer.cross(&mut timeline, stage));
        #[expect(clippy::cast_possible_truncation, reason = "at most two bursts")]
        let packets = (done.taken as u16).saturating_sub(done.drops.total());
        let burst = Unsignalled { timeline, packets, bytes: done.bytes, polled: false };
        self.record(&burst, tracer, |record| recorded(datapath, record));
        unsent > 0
    }
}

/// The outcome of the frames that the kernel is done with.
fn sent<D: Datapath>(datapath: &mut D) -> Transmitted {
    datapath.in_place().map(InPlace::sent).unwrap_or_default()
}
