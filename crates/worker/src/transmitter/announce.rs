//! A frame that says where the guest's address is now, sent as if the guest had sent it.

use std::time::{Duration, Instant};

use burst_trace::{Direction, Stage};
use datapath::{Datapath, InPlace as _, Transmitted};
use virtio_net::announcement::Announcement;
use virtio_net::{Frames, MacAddress};

use super::Transmitter;
use crate::timeline::{Timeline, Unsignalled};
use crate::view::View;

/// Longest wait for the kernel to send the frame, and the time between two checks.
const SENT_WITHIN: Duration = Duration::from_millis(100);
const CHECK: Duration = Duration::from_micros(200);

const BEFORE: [Stage; 3] = [Stage::Notice, Stage::Queued, Stage::Gather];
const AFTER: [Stage; 3] = [Stage::Egress, Stage::Complete, Stage::Signal];

impl Transmitter {
    /// Has `carry` carry the frame. It is recorded as a burst of one packet. Returns whether it was carried. Frames must
    /// not be held.
    #[cold]
    pub fn announce(
        &mut self,
        address: MacAddress,
        view: &mut View<'_>,
        carry: impl FnOnce(Frames<'_, '_>, &mut View<'_>) -> Transmitted,
    ) -> bool {
        let (guest, index) = (self.guest(), self.index());
        let Some(ring) = self.started() else { return false };
        let header_len = ring.negotiated().header_len();
        let tracer = view.tracer(guest);
        let mut timeline = Timeline::begin(Direction::Tx, tracer.stamp());
        BEFORE.into_iter().for_each(|stage| tracer.cross(&mut timeline, stage));
        let done = Announcement::new(address, header_len).with(|frames| carry(frames, view));
        let tracer = view.tracer(guest);
        AFTER.into_iter().for_each(|stage| tracer.cross(&mut timeline, stage));
        tracer.dropped(index, &done.drops);
        #[expect(clippy::cast_possible_truncation, reason = "one frame")]
        let packets = (done.taken as u16).saturating_sub(done.drops.total());
        let burst = Unsignalled { timeline, packets, bytes: done.bytes, polled: false };
        self.record(&burst, tracer, |_| ());
        packets > 0
    }
}

/// Has a datapath send frames that are not of the guest, and waits until it is done with them. Returns what became of
/// them, and whether it is done.
pub fn send_own<D: Datapath>(datapath: &mut D, frames: Frames<'_, '_>) -> (Transmitted, bool) {
    let transmitted = datapath.transmit(frames);
    let Some(in_place) = datapath.in_place() else { return (transmitted, true) };
    let (until, mut done) = (Instant::now() + SENT_WITHIN, Transmitted::default());
    while done.taken < transmitted.taken {
        if Instant::now() > until {
            return (done, false);
        }
        std::thread::sleep(CHECK);
        done.add(&in_place.sent());
    }
    (done, true)
}
