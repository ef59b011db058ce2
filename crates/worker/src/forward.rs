//! A pair's turn from guest to guest: a burst goes from one ring's buffers into another's.

use burst_trace::{Direction, Stage};
use datapath::{Datapath, Transmitted};
use virtio_net::{Frames, GuestRoom};
use virtqueue::Chains;

use crate::pair::{Context, Pair, Starved};
use crate::ring::{Ring, RingState};
use crate::trace::{Journey, Outcome};
use crate::transmit::Untold;

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
        let Some(ring) = self.rx.as_mut().filter(|ring| ring.state == RingState::Enabled) else {
            return self.datapath.transmit(frames);
        };
        if frames.is_empty() {
            return Transmitted::default();
        }
        match ring.queue.look() {
            Ok(0) => {
                starve(&mut self.starved, gathered, polled, context);
                return Transmitted::default();
            }
            Ok(_) => {}
            Err(broken) => {
                ring.break_down(broken);
                return self.datapath.transmit(frames);
            }
        }
        let tracer = &mut *context.tracer;
        let mut journey = Journey::begin(Direction::Rx, self.starved.map_or(gathered, |s| s.wake));
        tracer.cross_at(&mut journey, Stage::Notice, self.starved.map_or(gathered, |s| s.seen));
        if self.starved.take().is_some() {
            tracer.cross(&mut journey, Stage::Starved);
        } else {
            let seen = journey.last();
            tracer.cross_at(&mut journey, Stage::Starved, seen);
        }

        let (transmitted, received) = {
            let Ring { queue, memory, negotiated, .. } = &mut **ring;
            let mut chains = Chains::new();
            let mut room =
                GuestRoom::open(queue, memory, &mut chains, &mut self.receive, *negotiated);
            (self.datapath.forward(frames, &mut room), room.close())
        };
        if let Some(broken) = received.broken {
            ring.break_down(broken);
            // Not kept for later: nothing would wake the worker up for them.
            return self.datapath.transmit(frames);
        }
        if received.packets == 0 && received.drops.is_empty() {
            starve(&mut self.starved, gathered, polled, context);
            return Transmitted::default();
        }
        tracer.cross(&mut journey, Stage::Place);
        ring.queue.publish();
        tracer.cross(&mut journey, Stage::Publish);
        tracer.dropped(ring.index, &received.drops);
        let (packets, bytes) = (received.packets, received.bytes);
        self.forwarded = Some(Untold { journey, packets, bytes, polled });
        transmitted
    }

    /// Tells the receiver of the burst that was forwarded in this turn. Returns whether there was one.
    ///
    /// This comes after the sender has its buffers back: who is told may run at once, on this very CPU,
    /// and should it end this process then, no frame must be left that is delivered and not completed.
    #[inline]
    pub fn tell_forwarded(&mut self, context: &mut Context<'_>) -> bool {
        let Some(Untold { mut journey, packets, bytes, polled }) = self.forwarded.take() else {
            return false;
        };
        if let Some(ring) = &mut self.rx {
            ring.signal();
            context.tracer.cross(&mut journey, Stage::Signal);
            if packets > 0 {
                let (ring, sequence) = (ring.index, self.sequences[0]);
                context.tracer.finish(&journey, Outcome { ring, sequence, packets, bytes, polled });
                self.sequences[0] += u64::from(packets);
            }
        }
        true
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

/// Frames in sight since `gathered` wait for receive buffers.
#[cold]
fn starve(starved: &mut Option<Starved>, gathered: u64, polled: bool, context: &Context<'_>) {
    let since = context.tracer.now();
    starved.get_or_insert(Starved { wake: gathered, seen: gathered, polled, since });
}
