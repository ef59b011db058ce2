//! Frames that are sent from the guest's own memory: the guest gets their chains back when the kernel is done with them.

use std::time::{Duration, Instant};

use burst_trace::{Direction, DropCause, DropCounts, Stage};
use datapath::{Datapath, Transmitted};
use virtio_net::TransmitBurst;
use virtqueue::{Chains, RingError};

use crate::pair::Pair;
use crate::ring::Ring;
use crate::trace::{Journey, Tracer};
use crate::transmit::{Sent, Untold};

/// Longest wait for the kernel to send the held frames when the ring stops. The worker may wait: it serves only this
/// guest.
const DRAIN: Duration = Duration::from_millis(100);
/// Time between two checks during that wait.
const LOOK: Duration = Duration::from_micros(200);

/// The boundaries of frames that are given back outside of a turn.
const BOUNDARIES: [Stage; 6] =
    [Stage::Notice, Stage::Queued, Stage::Gather, Stage::Egress, Stage::Complete, Stage::Signal];

impl<D: Datapath> Pair<D> {
    /// Takes chains, has the datapath send their frames, and publishes the chains that the kernel is done with.
    pub fn send_in_place(
        &mut self,
        ring: &mut Ring,
        journey: &mut Journey,
        tracer: &mut Tracer,
    ) -> Result<Sent, RingError> {
        let Ring { queue, memory, negotiated, .. } = ring;
        let mut refused = false;
        if self.held.has_room() {
            let mut chains = Chains::new();
            let burst = TransmitBurst::gather(queue, memory, *negotiated, &mut chains)?;
            tracer.cross(journey, Stage::Gather);
            let frames = burst.frames();
            let taken = self.datapath.transmit(frames).taken;
            refused = taken < frames.len();
            self.carried(frames, taken, &DropCounts::default());
            self.held.hold(&burst, queue, taken);
        } else {
            tracer.cross(journey, Stage::Gather);
        }
        let Transmitted { taken, bytes, mut drops } = self.datapath.sent();
        tracer.cross(journey, Stage::Egress);
        #[expect(clippy::cast_possible_truncation, reason = "at most two bursts")]
        let packets = (taken as u16).saturating_sub(drops.total());
        let slots = self.held.complete(queue, taken, &mut drops);
        // Checked again soon: there is no event for the kernel being done.
        self.blocked = refused || !self.held.is_empty();
        queue.publish();
        Ok(Sent { slots, packets, bytes, drops })
    }

    /// Waits until the kernel is done with the held frames, and gives their chains back. Frames that take longer than
    /// [`DRAIN`] are counted as lost, and the datapath is detached from the guest's memory. Returns whether it was.
    #[cold]
    pub fn settle(&mut self, tracer: &mut Tracer) -> bool {
        let Some(ring) = self.tx.as_mut().filter(|_| !self.held.is_empty()) else { return false };
        let queue = &mut ring.queue;
        let mut journey = Journey::begin(Direction::Tx, tracer.stamp());
        let (mut done, mut drops) = (Transmitted::default(), DropCounts::default());
        let until = Instant::now() + DRAIN;
        loop {
            let sent = self.datapath.sent();
            self.held.complete(queue, sent.taken, &mut drops);
            done.add(&sent);
            if self.held.is_empty() || Instant::now() > until {
                break;
            }
            std::thread::sleep(LOOK);
        }
        let unsent = self.held.frames();
        (0..unsent).for_each(|_| drops.add(DropCause::TxLinkDown));
        self.held.complete(queue, unsent, &mut drops);
        if unsent > 0 {
            self.datapath.detach();
        }
        queue.publish();
        ring.signal();
        (self.backlog, self.blocked) = (None, false);
        drops.add_all(&done.drops);
        tracer.dropped(self.rings()[1], &drops);
        BOUNDARIES.into_iter().for_each(|stage| tracer.cross(&mut journey, stage));
        #[expect(clippy::cast_possible_truncation, reason = "at most two bursts")]
        let packets = (done.taken as u16).saturating_sub(done.drops.total());
        let burst = Untold { journey, packets, bytes: done.bytes, polled: false };
        self.record(Direction::Tx, &burst, tracer);
        unsent > 0
    }
}
