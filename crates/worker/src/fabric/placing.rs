//! Frames of one sender, on their way into the rings of their receivers.

use burst_trace::{DropCause, DropCounts};
use datapath::switch::ADDRESSES_LEN;
use virtio_net::{BURST_MAX, header};
use virtio_net::{Finish, Frame, Frames, GuestRoom, NetHeader, Offloads, Placed};

/// A frame with more segments is dropped. A sender could have the worker cut 65 536 of a byte each, 64 times a burst;
/// 64 KiB in the smallest segments that Linux sends (`TCP_MIN_SND_MSS`) are fewer than these.
const SEGMENTS_MAX: usize = 2048;

/// The net headers of a burst's frames that are not finished. They were copied when they were checked.
#[derive(Debug)]
pub struct Unfinished {
    /// One bit a frame.
    set: u64,
    headers: [NetHeader; BURST_MAX],
}

impl Unfinished {
    pub const fn new() -> Self {
        Self { set: 0, headers: [NetHeader::PLAIN; BURST_MAX] }
    }

    /// A new burst begins.
    pub const fn clear(&mut self) {
        self.set = 0;
    }

    /// Looks at frame number `n`. Returns its addresses, and what it costs to carry, in bytes to copy.
    #[inline]
    pub fn note(
        &mut self,
        n: usize,
        frame: &Frame<'_, '_>,
    ) -> Result<([u8; ADDRESSES_LEN], usize), DropCause> {
        let addresses = frame.front().ok_or(DropCause::TxTooShort)?;
        let header = frame.header();
        if header.is_plain() {
            return Ok((addresses, frame.len()));
        }
        let segments = Finish::plan_frame(&header, frame)?.count();
        if segments > SEGMENTS_MAX {
            return Err(DropCause::TxUnsegmentable);
        }
        self.set |= 1 << n;
        // Only what the next one is to know; that a checksum was verified is no sender's word to give.
        self.headers[n] = NetHeader { flags: header.flags & header::NEEDS_CSUM, ..header };
        // What a segment costs beside its bytes.
        Ok((addresses, frame.len() + 64 * segments))
    }
}

/// Places frames into the ring of one receiver, burst by burst.
pub struct Placing<'p, 'f, 'm> {
    pub frames: Frames<'f, 'm>,
    pub unfinished: &'p Unfinished,
    /// What the receiver takes.
    pub offloads: Offloads,
    /// The frames that are still to be placed: one bit each.
    pub left: u64,
    /// How many segments of the first of them were placed already.
    pub segments: usize,
    /// Frames that turned out to be none when their turn came.
    pub drops: DropCounts,
}

impl Placing<'_, '_, '_> {
    /// Places as many as there is room for.
    #[inline]
    pub fn place(&mut self, room: &mut GuestRoom<'_, '_>) {
        while self.left != 0 {
            let first = self.left.trailing_zeros();
            let finished = (self.left & !self.unfinished.set) >> first;
            if finished & 1 == 0 {
                if self.place_unfinished(first as usize, room) == Placed::NoRoom {
                    return;
                }
                self.left &= self.left - 1;
                continue;
            }
            let count = finished.trailing_ones() as usize;
            let (taken, _) = room.forward(self.frames.skip(first as usize).take(count));
            self.left &= !(all(taken) << first);
            if taken < count {
                return;
            }
        }
    }

    #[inline(never)]
    fn place_unfinished(&mut self, n: usize, room: &mut GuestRoom<'_, '_>) -> Placed {
        let Some(frame) = self.frames.skip(n).iter().next() else { return Placed::Done };
        let header = &self.unfinished.headers[n];
        if header.is_for(self.offloads) {
            return room.place_run(header, frame.slices(), frame.header_len());
        }
        let mut finish = match Finish::plan_frame(header, &frame) {
            Ok(finish) => finish,
            // It was one a moment ago: the guest changes it.
            Err(cause) => {
                self.drops.add(cause);
                return Placed::Done;
            }
        };
        let all = finish.count();
        finish.skip(frame.slices(), self.segments);
        let placed = room.place_finished(&mut finish, frame.slices());
        self.segments = match placed {
            Placed::Done => 0,
            Placed::NoRoom => all - finish.count(),
        };
        placed
    }
}

/// The lowest `count` bits.
#[inline]
pub const fn all(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}
