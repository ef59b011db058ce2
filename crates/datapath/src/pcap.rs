//! Writes a copy of every frame that passes a datapath to a pcapng file, with its burst's stages as a comment.
//!
//! A frame is copied after the datapath has carried it. The copy is kept until its burst is recorded, because the
//! stages are known only then. A frame's time is the boundary at which it passed the datapath: `gathered` from the
//! guest, or `seen` on the wire. Another thread writes the file, and no frame waits for it.
//!
//! - `capture`: a capture, its thread, and the channel to that thread.
//! - `filter`: which frames are written.
//! - `scribe`: writes them to the file.
//! - the crate `pcapng`: the blocks of the file, and the comments on frames.

mod capture;
mod filter;
mod scribe;

use std::collections::VecDeque;
use std::io;

use burst_trace::{BurstRecord, Direction};
use guest_memory::{GuestMemory, Spare};
use virtio_net::{BURST_MAX, Frame, Frames, GuestRoom};

use crate::{Datapath, Forward, InPlace, Look, Observer, Transmitted, Wrapper};

pub use capture::{CaptureError, CaptureOptions, CaptureThread, Captured, Lane, create};
pub use filter::{Filter, FilterError, INSTRUCTIONS_MAX, Instruction};

/// A datapath whose frames are captured, or not now.
#[derive(Debug)]
pub struct Pcap<D> {
    inner: D,
    /// Number of frames that `inner` holds: it sends them from the guest's memory.
    in_flight: usize,
    capture: Option<Box<Capture>>,
}

/// A capture of one queue.
#[derive(Debug)]
struct Capture {
    lane: Lane,
    sent: Kept,
    placed: Kept,
    /// Number of frames that the datapath held when the capture began. They are not in it.
    before: usize,
    /// Copies of the frames that it took since then and holds, with their net headers.
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
    block: Option<scribe::Block>,
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

impl Capture {
    fn new(lane: Lane, before: usize) -> Self {
        let (sent, placed, held) = Default::default();
        Self { lane, sent, placed, before, held }
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
        work: impl FnOnce(&mut GuestRoom<'_, '_>) -> T,
    ) -> T {
        if room.frames() == 0 {
            self.placed.forget(&self.lane);
        }
        room.keep();
        let mark = room.mark();
        let done = work(room);
        self.placed.keep(&self.lane, room.placed_since(mark), None);
        done
    }

    /// It ends. Frames whose bursts are not recorded yet are left out.
    fn end(mut self) {
        self.sent.forget(&self.lane);
        self.placed.forget(&self.lane);
        self.lane.leave_out(self.held.len());
    }

    /// Copies frames that the datapath holds from now on.
    fn hold(&mut self, frames: Frames<'_, '_>) {
        self.held.extend(frames.iter().map(|frame| Copied::new(&frame)));
    }

    /// The datapath is done with the oldest frames that it held.
    fn release(&mut self, done: &Transmitted) {
        let before = done.taken.min(self.before);
        self.before -= before;
        let count = (done.taken - before).min(self.held.len());
        let copies = self.held.drain(..count).collect::<Vec<_>>();
        if before > 0 {
            // Their burst is not whole, and so is not in the file.
            self.lane.leave_out(count);
            return;
        }
        let carried = done.taken - usize::from(done.drops.total());
        if carried > 0 {
            let slices: Vec<_> = copies.iter().map(|copy| [copy.bytes.slice()]).collect();
            let frames = copies.iter().zip(&slices);
            let frames = frames.map(|(copy, slices)| Frame::new(slices, copy.len, copy.header_len));
            self.sent.keep(&self.lane, frames, Some(carried));
        }
    }
}

impl<I> Pcap<I> {
    /// Captures nothing until [`capture`](Self::capture) says so.
    #[must_use]
    pub const fn new(inner: I) -> Self {
        Self { inner, in_flight: 0, capture: None }
    }

    /// Captures the frames that pass `inner` from now on, or no longer.
    pub fn capture(&mut self, lane: Option<Lane>) {
        if let Some(capture) = self.capture.take() {
            capture.end();
        }
        let before = self.in_flight;
        self.capture = lane.map(|lane| Box::new(Capture::new(lane, before)));
    }

    /// The capture that frames are for now.
    #[inline]
    fn active(&mut self) -> Option<&mut Capture> {
        self.capture.as_deref_mut().filter(|capture| !capture.lane.is_over())
    }

    /// How the capture stands; `None` if there is none.
    #[must_use]
    pub fn captured(&self) -> Option<Captured> {
        self.capture.as_ref().and_then(|capture| capture.lane.captured())
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
    #[inline]
    fn transmit(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        let done = self.inner.transmit(frames);
        let holds = self.inner.in_place().is_some();
        if holds {
            self.in_flight += done.taken;
        }
        if let Some(capture) = self.active() {
            if holds {
                capture.hold(frames.take(done.taken));
            } else {
                capture.keep_sent(frames, &done);
            }
        }
        done
    }

    #[inline]
    fn receive(&mut self, room: &mut GuestRoom<'_, '_>) -> io::Result<Look> {
        match self.capture.as_mut().filter(|capture| !capture.lane.is_over()) {
            None => self.inner.receive(room),
            Some(capture) => capture.keep_placed(room, |room| self.inner.receive(room)),
        }
    }

    #[inline]
    fn in_place(&mut self) -> Option<&mut impl InPlace> {
        self.inner.in_place().is_some().then_some(self)
    }

    #[inline]
    fn observer(&mut self) -> Option<&mut impl Observer> {
        self.capture.is_some().then_some(self)
    }
}

impl<D: Datapath> InPlace for Pcap<D> {
    fn attach(&mut self, memory: &GuestMemory) -> io::Result<()> {
        self.inner.in_place().map_or(Ok(()), |inner| inner.attach(memory))
    }

    fn detach(&mut self) {
        self.in_flight = 0;
        if let Some(capture) = &mut self.capture {
            capture.before = 0;
            capture.held.clear();
        }
        if let Some(inner) = self.inner.in_place() {
            inner.detach();
        }
    }

    fn sent(&mut self) -> Transmitted {
        let done = self.inner.in_place().map(InPlace::sent).unwrap_or_default();
        self.in_flight = self.in_flight.saturating_sub(done.taken);
        if let Some(capture) = self.active() {
            capture.release(&done);
        }
        done
    }

    fn transmit_copies(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        let inner = self.inner.in_place();
        let done = inner.map(|inner| inner.transmit_copies(frames)).unwrap_or_default();
        if let Some(capture) = self.active() {
            capture.keep_sent(frames, &done);
        }
        done
    }
}

impl<F: Forward> Forward for Pcap<F> {
    #[inline]
    fn forward(&mut self, frames: Frames<'_, '_>, room: &mut GuestRoom<'_, '_>) -> Transmitted {
        let capture = self.capture.as_mut().filter(|capture| !capture.lane.is_over());
        let Some(capture) = capture else { return self.inner.forward(frames, room) };
        let done = capture.keep_placed(room, |room| self.inner.forward(frames, room));
        capture.keep_sent(frames, &done);
        done
    }

    #[inline]
    fn observer(&mut self) -> Option<&mut impl Observer> {
        self.capture.is_some().then_some(self)
    }
}

impl<I> Observer for Pcap<I> {
    fn recorded(&mut self, record: &BurstRecord) {
        let Some(capture) = &mut self.capture else { return };
        let Capture { lane, sent, placed, .. } = &mut **capture;
        match record.direction() {
            Direction::Tx => sent.finish(lane, record),
            Direction::Rx => placed.finish(lane, record),
        }
        if lane.is_over() {
            self.capture = None;
        }
    }
}
