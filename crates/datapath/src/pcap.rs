//! Writes a copy of every frame that passes a datapath to a pcapng file, with its burst's stages as a comment.
//!
//! A frame is copied after the datapath has carried it. The copy is kept until its burst is recorded, because the
//! stages are known only then. A frame's time is the boundary at which it passed the datapath: `gathered` from the
//! guest, or `seen` on the wire. Another thread writes the file, and no frame waits for it.
//!
//! - `capture`: the file, the thread that writes it, and the channel to that thread.
//! - the crate `pcapng`: the blocks of the file, and the comments on frames.

mod capture;

use std::collections::VecDeque;
use std::io;

use burst_trace::{BurstRecord, Direction};
use guest_memory::{GuestMemory, Spare};
use virtio_net::{BURST_MAX, Frame, Frames, GuestRoom};

use crate::{Datapath, Forward, InPlace, Look, Observer, Transmitted, Wrapper};

pub use capture::{CaptureError, CaptureOptions, Lane, begin};

/// A datapath whose frames are captured.
#[derive(Debug)]
pub struct Pcap<D> {
    inner: D,
    lane: Lane,
    sent: Kept,
    placed: Kept,
    /// Copies of the frames that `inner` holds, with their net headers.
    held: VecDeque<Copied>,
}

/// A frame with its net header.
#[derive(Debug)]
struct Copied {
    bytes: Spare,
    len: usize,
    header_len: usize,
}

impl Copied {
    fn new(frame: &Frame<'_, '_>) -> Self {
        let len = frame.header_len() + frame.len();
        let bytes = Spare::new(len);
        let mut at = 0;
        for slice in frame.slices() {
            bytes.slice().copy_from(at, slice, 0);
            at += slice.len();
        }
        Self { bytes, len, header_len: frame.header_len() }
    }
}

/// The frames of a burst that is not recorded yet.
#[derive(Debug, Default)]
struct Kept {
    block: Option<capture::Block>,
    /// Number of the burst's frames, including those that were left out.
    frames: usize,
    /// Number of them that the datapath carried.
    carried: usize,
}

impl Kept {
    /// Keeps `frames`. The datapath carried `carried` of them; all of them if that is `None`.
    fn keep<'f, 'm: 'f>(
        &mut self,
        lane: &Lane,
        frames: impl Iterator<Item = Frame<'f, 'm>>,
        carried: Option<usize>,
    ) {
        if self.frames >= 2 * BURST_MAX {
            // These frames are from bursts that were never recorded.
            self.forget(lane);
        }
        let before = self.frames;
        for frame in frames {
            let number = self.frames;
            self.frames += 1;
            let len = frame.len();
            if self.block.is_none() {
                self.block = lane.block();
            }
            match &mut self.block {
                Some(block) if lane.reserve(len) => {
                    #[expect(clippy::cast_possible_truncation, reason = "a few bursts at most")]
                    block.push(number as u16, len, |bytes| _ = frame.copy_to(bytes));
                }
                _ => lane.leave_out(1),
            }
        }
        self.carried += carried.unwrap_or(self.frames - before);
    }

    /// Hands over the frames of a burst that is recorded now.
    fn finish(&mut self, lane: &Lane, record: &BurstRecord) {
        if self.carried != usize::from(record.packets) {
            // Some frames are from a burst that was never recorded, because its ring broke.
            self.forget(lane);
            return;
        }
        if let Some(block) = self.block.take() {
            lane.send(block, record, self.frames);
        }
        (self.frames, self.carried) = (0, 0);
    }

    fn forget(&mut self, lane: &Lane) {
        if let Some(block) = self.block.take() {
            lane.forget(block);
        }
        (self.frames, self.carried) = (0, 0);
    }
}

impl<I> Pcap<I> {
    /// Captures the frames that pass `inner`.
    #[must_use]
    pub fn new(inner: I, lane: Lane) -> Self {
        let (sent, placed) = Default::default();
        Self { inner, lane, sent, placed, held: VecDeque::new() }
    }

    fn keep_sent(&mut self, frames: Frames<'_, '_>, done: &Transmitted) {
        let carried = done.taken - usize::from(done.drops.total());
        // If no frame was carried, none is in the burst's record.
        if carried > 0 {
            self.sent.keep(&self.lane, frames.take(done.taken).iter(), Some(carried));
        }
    }

    /// Calls `work` to place frames in the room, and keeps copies of them.
    fn keep_placed<T>(
        &mut self,
        room: &mut GuestRoom<'_, '_>,
        work: impl FnOnce(&mut I, &mut GuestRoom<'_, '_>) -> T,
    ) -> T {
        if room.frames() == 0 {
            self.placed.forget(&self.lane);
        }
        room.keep();
        let mark = room.mark();
        let done = work(&mut self.inner, room);
        self.placed.keep(&self.lane, room.placed_since(mark), None);
        done
    }
}

impl<D: Datapath> Wrapper for Pcap<D> {
    type Inner = D;

    fn inner(&self) -> &D {
        &self.inner
    }

    fn inner_mut(&mut self) -> &mut D {
        &mut self.inner
    }
}

impl<D: Datapath> Datapath for Pcap<D> {
    fn transmit(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        let done = self.inner.transmit(frames);
        if self.inner.in_place().is_some() {
            self.held.extend(frames.take(done.taken).iter().map(|frame| Copied::new(&frame)));
        } else {
            self.keep_sent(frames, &done);
        }
        done
    }

    fn receive(&mut self, room: &mut GuestRoom<'_, '_>) -> io::Result<Look> {
        self.keep_placed(room, D::receive)
    }

    fn in_place(&mut self) -> Option<&mut impl InPlace> {
        self.inner.in_place().is_some().then_some(self)
    }

    fn observer(&mut self) -> Option<&mut impl Observer> {
        Some(self)
    }
}

impl<D: Datapath> InPlace for Pcap<D> {
    fn attach(&mut self, memory: &GuestMemory) -> io::Result<()> {
        self.inner.in_place().map_or(Ok(()), |inner| inner.attach(memory))
    }

    fn detach(&mut self) {
        self.held.clear();
        if let Some(inner) = self.inner.in_place() {
            inner.detach();
        }
    }

    fn sent(&mut self) -> Transmitted {
        let done = self.inner.in_place().map(InPlace::sent).unwrap_or_default();
        let carried = done.taken - usize::from(done.drops.total());
        let copies = self.held.drain(..done.taken.min(self.held.len())).collect::<Vec<_>>();
        if carried > 0 {
            let slices: Vec<_> = copies.iter().map(|copy| [copy.bytes.slice()]).collect();
            let frames = copies.iter().zip(&slices);
            let frames = frames.map(|(copy, slices)| Frame::new(slices, copy.len, copy.header_len));
            self.sent.keep(&self.lane, frames, Some(carried));
        }
        done
    }

    fn transmit_copies(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        let inner = self.inner.in_place();
        let done = inner.map(|inner| inner.transmit_copies(frames)).unwrap_or_default();
        self.keep_sent(frames, &done);
        done
    }
}

impl<F: Forward> Forward for Pcap<F> {
    fn forward(&mut self, frames: Frames<'_, '_>, room: &mut GuestRoom<'_, '_>) -> Transmitted {
        let done = self.keep_placed(room, |inner, room| inner.forward(frames, room));
        self.keep_sent(frames, &done);
        done
    }

    fn observer(&mut self) -> Option<&mut impl Observer> {
        Some(self)
    }
}

impl<I> Observer for Pcap<I> {
    fn recorded(&mut self, record: &BurstRecord) {
        match record.direction() {
            Direction::Tx => self.sent.finish(&self.lane, record),
            Direction::Rx => self.placed.finish(&self.lane, record),
        }
    }
}
