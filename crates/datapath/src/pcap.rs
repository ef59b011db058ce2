//! Writes a copy of every frame that passes a datapath to a pcapng file, with its burst's stages as a comment.
//!
//! A frame is copied when the datapath has carried it, and kept until its burst is recorded: only then are the
//! stages known. A frame's time is the boundary at which it passed the datapath: `gathered` from the guest, or
//! `seen` on the wire. The file is written by a thread of its own, and no frame waits for it.
//!
//! - `capture`: the file, its thread, and the way there.
//! - the crate `pcapng`: the blocks of the file, and the comments on frames.

mod capture;

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use burst_trace::{BurstRecord, Direction};
use guest_memory::{GuestMemory, GuestSlice, Spare};
use virtio_net::{BURST_MAX, Frame, Frames, GuestRoom, Negotiated};

use crate::{Capabilities, Counted, Datapath, Look, Transmitted};

pub use capture::{CaptureError, CaptureOptions, Lane, begin};

/// A datapath of which every frame is captured.
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

/// Frames of a burst that is not recorded yet.
#[derive(Debug, Default)]
struct Kept {
    block: Option<capture::Block>,
    /// How many frames the burst has, those among them that were left out.
    frames: usize,
    /// How many of them the datapath carried.
    carried: usize,
}

impl Kept {
    /// Keeps `frames`, of which the datapath carried so many.
    fn keep<'f, 'm: 'f>(
        &mut self,
        lane: &Lane,
        frames: impl Iterator<Item = Frame<'f, 'm>>,
        carried: Option<usize>,
    ) {
        if self.frames >= 2 * BURST_MAX {
            // Of bursts that never were recorded.
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

    /// The burst is recorded.
    fn finish(&mut self, lane: &Lane, record: &BurstRecord) {
        if self.carried != usize::from(record.packets) {
            // Part of it is of a burst that was never recorded, because its ring broke.
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

impl<D: Datapath> Pcap<D> {
    /// Captures what passes `inner`.
    #[must_use]
    pub fn new(inner: D, lane: Lane) -> Self {
        let (sent, placed) = Default::default();
        Self { inner, lane, sent, placed, held: VecDeque::new() }
    }

    fn keep_sent(&mut self, frames: Frames<'_, '_>, done: &Transmitted) {
        let carried = done.taken - usize::from(done.drops.total());
        // Frames none of which was carried are not in the burst's record either.
        if carried > 0 {
            self.sent.keep(&self.lane, frames.take(done.taken).iter(), Some(carried));
        }
    }

    /// Has `work` place frames in the room, and keeps copies of them.
    fn keep_placed<T>(
        &mut self,
        room: &mut GuestRoom<'_, '_>,
        work: impl FnOnce(&mut D, &mut GuestRoom<'_, '_>) -> T,
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

impl<D: Datapath> Datapath for Pcap<D> {
    const FORWARDS: bool = D::FORWARDS;
    const COUNTS_LOSSES: bool = D::COUNTS_LOSSES;

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn configure(&mut self, negotiated: Negotiated) -> io::Result<()> {
        self.inner.configure(negotiated)
    }

    fn attach(&mut self, memory: &GuestMemory) -> io::Result<()> {
        self.inner.attach(memory)
    }

    fn detach(&mut self) {
        self.held.clear();
        self.inner.detach();
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        self.inner.set_active(active)
    }

    fn transmit(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        let done = self.inner.transmit(frames);
        if self.inner.holds_frames() {
            self.held.extend(frames.take(done.taken).iter().map(|frame| Copied::new(&frame)));
        } else {
            self.keep_sent(frames, &done);
        }
        done
    }

    fn holds_frames(&self) -> bool {
        self.inner.holds_frames()
    }

    fn sent(&mut self) -> Transmitted {
        let done = self.inner.sent();
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

    fn forward(&mut self, frames: Frames<'_, '_>, room: &mut GuestRoom<'_, '_>) -> Transmitted {
        let done = self.keep_placed(room, |inner, room| inner.forward(frames, room));
        self.keep_sent(frames, &done);
        done
    }

    fn receive(&mut self, room: &mut GuestRoom<'_, '_>) -> io::Result<Look> {
        self.keep_placed(room, D::receive)
    }

    fn receive_frame(&mut self, to: GuestSlice<'_>) -> io::Result<Option<usize>> {
        self.inner.receive_frame(to)
    }

    fn losses(&mut self, each: &mut dyn FnMut(Counted, u64)) {
        self.inner.losses(each);
    }

    fn arrived_ns(&self) -> Option<u64> {
        self.inner.arrived_ns()
    }

    fn has_frames(&self) -> bool {
        self.inner.has_frames()
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        self.inner.readiness()
    }

    fn recorded(&mut self, record: &BurstRecord) {
        match record.direction() {
            Direction::Tx => self.sent.finish(&self.lane, record),
            Direction::Rx => self.placed.finish(&self.lane, record),
        }
        self.inner.recorded(record);
    }
}
