//! Frames of one sender, on their way into the rings of their receivers.

use burst_trace::{DropCause, DropCounts};
use virtio_net::{BURST_MAX, header};
use virtio_net::{
    Frame, Frames, GuestRoom, NetHeader, Offloads, Placed, SegmentProgress, SoftwareOffload,
};

use super::addresses::ADDRESSES_LEN;
use crate::receiver::{Delivery, Receiver};
use crate::timeline::Sighting;
use crate::view::View;

/// Most segments of a frame; one with more is dropped. Without a limit, a sender could have the worker cut 65 536
/// segments of one byte, 64 times a burst. 64 KiB in the smallest segments that Linux sends (`TCP_MIN_SND_MSS`) are
/// fewer than these.
const SEGMENTS_MAX: usize = 2048;
/// Cost of one buffer of a frame beside its bytes, in bytes copied in the same time.
const SLICE_COST: usize = 128;
/// Cost of a segment beside its bytes, in the same unit. With it, 45 segments of 1448 bytes leave room for four
/// such frames in a burst, and only the last frame of a burst can take it past [`ROUNDS_MAX`].
const SEGMENT_COST: usize = 384;

/// Work budget of one delivery in one receiver's ring ([`Received::work`]). It bounds what a receiver costs the others
/// that has only empty chains, faulty ones, or buffers of one byte. 256 KiB in buffers of 1526 bytes are 176 chains.
///
/// [`Received::work`]: virtio_net::receive::Received::work
pub const WORK_MAX: u32 = 2048;
/// Most bursts, of [`BURST_MAX`] frames or segments each, that one receiver gets from one burst of a sender.
const ROUNDS_MAX: u32 = 12;

/// The net headers of a burst's frames that have offloads pending. They were copied when they were checked.
#[derive(Debug)]
pub struct PendingOffloads {
    /// One bit a frame.
    set: u64,
    headers: [NetHeader; BURST_MAX],
}

impl PendingOffloads {
    pub const fn new() -> Self {
        Self { set: 0, headers: [NetHeader::PLAIN; BURST_MAX] }
    }

    /// A new burst begins.
    pub const fn clear(&mut self) {
        self.set = 0;
    }

    /// Notes frame number `n`. Returns its addresses, and its cost, in bytes to copy.
    #[inline]
    pub fn note(
        &mut self,
        n: usize,
        frame: &Frame<'_, '_>,
    ) -> Result<([u8; ADDRESSES_LEN], usize), DropCause> {
        let addresses = frame.front().ok_or(DropCause::TxTooShort)?;
        let header = frame.header();
        if header.is_plain() {
            return Ok((addresses, frame.len() + SLICE_COST * frame.slices().len()));
        }
        let segments = SoftwareOffload::plan_frame(&header, frame)?.count();
        if segments > SEGMENTS_MAX {
            return Err(DropCause::TxUnsegmentable);
        }
        self.set |= 1 << n;
        // Only what the receiver needs. A sender must not claim that a checksum was verified.
        self.headers[n] = NetHeader { flags: header.flags & header::NEEDS_CSUM, ..header };
        let pieces = SLICE_COST * frame.slices().len() + SEGMENT_COST * segments;
        Ok((addresses, frame.len() + pieces))
    }
}

/// Places frames into the ring of one receiver, burst by burst.
pub struct Placing<'p, 'f, 'm> {
    pub frames: Frames<'f, 'm>,
    pub pending: &'p PendingOffloads,
    /// What the receiver takes.
    pub offloads: Offloads,
    /// The frames not placed yet: one bit each.
    pub left: u64,
    /// Progress through the first of them.
    pub progress: SegmentProgress,
    /// Frames that turned out not to be valid when their turn came.
    pub drops: DropCounts,
}

impl Placing<'_, '_, '_> {
    /// Places as many as there is room for.
    #[inline]
    pub fn place(&mut self, room: &mut GuestRoom<'_, '_>) {
        while self.left != 0 {
            let first = self.left.trailing_zeros();
            let whole = (self.left & !self.pending.set) >> first;
            if whole & 1 == 0 {
                if self.place_pending(first as usize, room) == Placed::NoRoom {
                    return;
                }
                self.left &= self.left - 1;
                continue;
            }
            let count = whole.trailing_ones() as usize;
            let (taken, _) = room.forward(self.frames.skip(first as usize).take(count));
            self.left &= !(all(taken) << first);
            if taken < count {
                return;
            }
        }
    }

    #[inline(never)]
    fn place_pending(&mut self, n: usize, room: &mut GuestRoom<'_, '_>) -> Placed {
        let Some(frame) = self.frames.skip(n).iter().next() else { return Placed::Done };
        let header = &self.pending.headers[n];
        if header.is_for(self.offloads) {
            return room.place_run(header, frame.slices(), frame.header_len());
        }
        match SoftwareOffload::plan_frame(header, &frame) {
            Ok(mut offload) => self.progress.resume(&mut offload, frame.slices(), |offload| {
                room.place_offloaded(offload, frame.slices())
            }),
            // It was valid a moment ago: the guest has changed it.
            Err(cause) => {
                self.progress.reset();
                self.drops.add(cause);
                Placed::Done
            }
        }
    }
}

/// Why a delivery ended before all frames were placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The receiver has no buffers now, or is not served any more.
    NoRoom,
    /// The receiver has buffers, but the delivery used up [`WORK_MAX`]. The next turn goes on.
    Spent,
    /// The receiver got [`ROUNDS_MAX`] bursts. The next turn goes on.
    Cut,
}

/// The outcome of a delivery.
pub struct Delivered {
    /// The receiver needs a signal: it got frames, or chains back without frames.
    pub any: bool,
    /// Frames or segments were placed.
    pub placed: bool,
    /// Why it ended, if frames are left.
    pub end: Ending,
}

/// Delivers as much of `placing` as there is room for, in several bursts if needed.
#[inline]
pub fn deliver_all(
    receiver: &mut Receiver,
    placing: &mut Placing<'_, '_, '_>,
    sighting: &mut Sighting,
    view: &mut View<'_>,
) -> Delivered {
    let mut delivered = Delivered { any: false, placed: false, end: Ending::NoRoom };
    let (mut rounds, mut work) = (0, 0);
    loop {
        let before = (placing.left, placing.progress);
        let delivery = receiver.deliver(*sighting, view, |room| placing.place(room));
        let Delivery::Done((), taken) = delivery else { return delivered };
        delivered.any = true;
        // The next receiver's turn begins here.
        sighting.seen = receiver.last_published().unwrap_or(sighting.seen);
        let placed = before != (placing.left, placing.progress);
        delivered.placed |= placed;
        work += taken;
        rounds += 1;
        if placing.left == 0 {
            return delivered;
        }
        if work >= WORK_MAX {
            delivered.end = Ending::Spent;
            return delivered;
        }
        if !placed {
            return delivered;
        }
        if rounds == ROUNDS_MAX {
            delivered.end = Ending::Cut;
            return delivered;
        }
    }
}

/// The lowest `count` bits.
#[inline]
pub const fn all(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}
