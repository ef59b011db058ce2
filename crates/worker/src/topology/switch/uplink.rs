//! The port of a switch that has a datapath in place of a guest.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use burst_trace::{DropCause, DropCounts};
use datapath::{Capabilities, FrameReader, Transmitted};
use guest_memory::Spare;
use virtio_net::features::{HEADER_LEN, VERSION_1};
use virtio_net::{
    FRAME_LEN_MAX, Frames, GuestRoom, Negotiated, NetHeader, Offloads, Placed, SegmentProgress,
    SoftwareOffload, header,
};

use super::addresses::{ADDRESSES_LEN, Verdict};
use super::budget::Budget;
use super::place::all;
use super::wait::{Share, Wait};
use super::{Fabric, bits, drop_frames};
use crate::clock::Clock;
use crate::heritage::UplinkHeritage;
use crate::idle::sleep::{Sleeper, Token};
use crate::pairs::Pairs;
use crate::receiver::{Delivery, Receiver};
use crate::timeline::Sighting;
use crate::topology::reads::Reads;
use crate::view::View;

/// Turns from one look at the uplink to the next while guests keep the worker busy and no event reports frames. A look
/// is a system call.
const BUSY_TURNS_A_LOOK: u32 = 16;

/// The uplink of a switch: one queue of a datapath.
#[derive(Debug)]
pub struct Uplink<U> {
    datapath: U,
    /// The offloads that may be pending in frames from it and to it, as feature bits.
    offloads: u64,
    /// Length of the net headers that it is configured for.
    header_len: usize,
    /// The last frame read, with its net header. Its destination is unknown until its addresses are parsed.
    frame: Spare,
    /// What is left to do with that frame; `None` if nothing is.
    read: Option<ReadFrame>,
    /// Frames that another daemon has read, which come before all others, each with the length of its net header.
    inherited: VecDeque<(usize, Vec<u8>)>,
    /// Length of the net headers at the beginning.
    first_header_len: usize,
    /// Whether another daemon has let go of it.
    has_inherited: bool,
    reads: Reads,
    /// It took no more frames at the last try.
    blocked: bool,
    /// Number of turns in a row in which guests had work and it was not looked at.
    passed_over: u32,
    /// When it was last looked at, ticks.
    last_look: u64,
    /// What is left of this turn.
    budget: Budget,
}

/// The frame that was read.
#[derive(Clone, Copy)]
struct Found {
    addresses: [u8; ADDRESSES_LEN],
    sighting: Sighting,
}

/// A frame that was read and not yet placed whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ReadFrame {
    /// Length with the net header.
    len: usize,
    /// Length of its own net header: the uplink may be configured for another one while it waits.
    header_len: usize,
    /// Progress through its segments.
    progress: SegmentProgress,
}

impl<U: FrameReader> Uplink<U> {
    pub fn new(datapath: U) -> Self {
        let Capabilities { from_guest, to_guest, .. } = datapath.capabilities();
        let offloads = from_guest.from_guest() | to_guest.to_guest();
        Self {
            datapath,
            offloads,
            header_len: 0,
            frame: Spare::new(HEADER_LEN + FRAME_LEN_MAX),
            read: None,
            inherited: VecDeque::new(),
            first_header_len: HEADER_LEN,
            has_inherited: false,
            reads: Reads::new(true),
            blocked: false,
            passed_over: 0,
            last_look: 0,
            budget: Budget::TURN,
        }
    }

    /// Takes frames from now on.
    pub fn begin(&mut self) -> io::Result<()> {
        self.expect_headers(self.first_header_len)?;
        self.reads = Reads::new(true);
        self.datapath.set_active(true)
    }

    /// What it leaves to another daemon, besides addresses.
    pub fn part(&mut self) -> UplinkHeritage {
        let slice = self.frame.slice();
        let read = self.read.take().map(|ReadFrame { len, header_len, .. }| {
            let mut bytes = vec![0; len];
            slice.read(0, &mut bytes);
            (header_len, bytes)
        });
        // Frames that wait for the uplink begin again with their first segment, whichever daemon goes on.
        if let Some(progress) = self.datapath.transmit_progress() {
            progress.reset();
        }
        let header_len = self.header_len;
        let more = self.datapath.part().into_iter().map(|bytes| (header_len, bytes));
        let frames = read.into_iter().chain(self.inherited.drain(..)).chain(more).collect();
        UplinkHeritage { header_len, frames, addresses: Vec::new() }
    }

    /// What it had in another daemon. What cannot be a frame is discarded.
    pub fn inherit(&mut self, heritage: UplinkHeritage) {
        let is_header_len = |len: &usize| [HEADER_LEN - 2, HEADER_LEN].contains(len);
        if is_header_len(&heritage.header_len) {
            self.first_header_len = heritage.header_len;
        }
        let longest = self.frame.slice().len();
        let frames = heritage.frames.into_iter().filter(|(header_len, bytes)| {
            is_header_len(header_len) && (*header_len..=longest).contains(&bytes.len())
        });
        self.inherited.extend(frames);
        self.has_inherited = true;
        self.reads.woken();
    }

    /// Whether another daemon has let go of it.
    pub const fn has_inherited(&self) -> bool {
        self.has_inherited
    }

    /// Frames wake the worker up from now on.
    pub fn listen(&self, sleeper: &Sleeper) -> io::Result<()> {
        match self.datapath.readiness() {
            Some(fd) => sleeper.add(&fd, Token::Uplink),
            None => Ok(()),
        }
    }

    /// Configures the datapath for net headers of this length: a guest with a legacy driver has shorter ones.
    fn expect_headers(&mut self, len: usize) -> io::Result<()> {
        if self.header_len != len {
            let version = if len == HEADER_LEN { VERSION_1 } else { 0 };
            self.datapath.configure(Negotiated(version | self.offloads))?;
            self.header_len = len;
        }
        Ok(())
    }

    pub const fn datapath(&mut self) -> &mut U {
        &mut self.datapath
    }

    pub const fn woken(&mut self) {
        self.reads.woken();
        self.blocked = false;
    }

    pub const fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Whether there is work that no event reports, or that one has reported already.
    pub fn has_work(&self) -> bool {
        let is_reported = self.reads.may_have_frames() || self.datapath.readiness().is_none();
        !self.reads.has_failed()
            && (self.read.is_some() || (is_reported && self.datapath.has_frames()))
    }

    /// Time until it is read again, if it could not be read.
    pub fn retry_in(&self, clock: &Clock) -> Option<Duration> {
        self.reads.retry_in(clock)
    }

    /// Whether it is time to look for frames, at the end of a turn in which guests had work or not.
    fn is_due(&mut self, guests_worked: bool, is_polling: bool) -> bool {
        if self.read.is_some()
            || self.reads.may_have_frames()
            || self.datapath.readiness().is_none()
        {
            return true;
        }
        self.passed_over = if guests_worked { self.passed_over + 1 } else { 0 };
        is_polling && self.passed_over.is_multiple_of(BUSY_TURNS_A_LOOK)
    }

    /// Sends the frames of `share`, until one is not taken. Returns the drops among the others.
    pub fn send(&mut self, frames: Frames<'_, '_>, share: &mut Share) -> DropCounts {
        let Share { left, progress } = share;
        if self.expect_headers(frames.header_len()).is_err() {
            let count = std::mem::take(left).count_ones() as usize;
            return DropCounts::only(DropCause::TxError, count);
        }
        self.blocked = false;
        if let Some(of_datapath) = self.datapath.transmit_progress() {
            *of_datapath = *progress;
        }
        let mut drops = DropCounts::default();
        while *left != 0 {
            let first = left.trailing_zeros();
            let count = (*left >> first).trailing_ones() as usize;
            let run = frames.skip(first as usize).take(count);
            let Transmitted { taken, drops: refused, .. } = self.datapath.transmit(run);
            drops.add_all(&refused);
            // A tap may be gone without an event; a read tells (see `wire.rs`).
            if !refused.is_empty() {
                self.reads.woken();
            }
            *left &= !(all(taken) << first);
            if taken < count {
                self.blocked = true;
                break;
            }
        }
        *progress = self.datapath.transmit_progress().map(|it| *it).unwrap_or_default();
        drops
    }

    /// Length of the frame that was read.
    fn frame_len(&self) -> usize {
        self.read.map_or(0, |read| read.len - read.header_len)
    }

    /// Reads the next frame, unless there is one that is not done with. Returns its addresses.
    fn next(&mut self) -> io::Result<Option<[u8; ADDRESSES_LEN]>> {
        let frame = self.frame.slice();
        loop {
            let read = match self.read {
                Some(read) => read,
                None => {
                    let found = match self.inherited.pop_front() {
                        Some((header_len, bytes)) => {
                            frame.write(0, &bytes);
                            Some((bytes.len(), header_len))
                        }
                        None => {
                            self.datapath.receive_frame(frame)?.map(|len| (len, self.header_len))
                        }
                    };
                    let Some((len, header_len)) = found else { return Ok(None) };
                    let len = len.min(frame.len());
                    ReadFrame { len, header_len, progress: SegmentProgress::default() }
                }
            };
            let mut addresses = [0; ADDRESSES_LEN];
            // A frame that is too short for addresses has no receiver.
            if read.len >= read.header_len + addresses.len() {
                frame.read(read.header_len, &mut addresses);
                self.read = Some(read);
                return Ok(Some(addresses));
            }
            self.read = None;
        }
    }

    /// Places the frame that was read for a guest that takes `offloads`.
    fn place(&mut self, offloads: Offloads, room: &mut GuestRoom<'_, '_>) -> Placed {
        let Some(read) = &mut self.read else { return Placed::Done };
        let ReadFrame { len, header_len, .. } = *read;
        let frame = [self.frame.slice().part(0, len)];
        let mut header = NetHeader::read(&frame, header_len);
        if !offloads.checksum {
            // This guest must not learn that the kernel has verified the checksum (5.1.6.4).
            header.flags &= header::NEEDS_CSUM;
        }
        if header.is_for(offloads) {
            return room.place_run(&header, &frame, header_len);
        }
        let Ok(mut offload) = SoftwareOffload::plan(&header, &frame, header_len, len - header_len)
        else {
            return room.refuse(DropCause::RxError);
        };
        read.progress.resume(&mut offload, &frame, |offload| room.place_offloaded(offload, &frame))
    }

    /// Moves one burst from the uplink to the guests. Returns whether there was one.
    pub(super) fn turn(
        &mut self,
        fabric: &mut Fabric,
        pairs: &mut Pairs,
        guests_worked: bool,
        view: &mut View<'_>,
    ) -> bool {
        if !self.is_due(guests_worked, view.shared.polling) {
            return false;
        }
        let now = view.now();
        let before = fabric.uplink_queue.wait();
        if !self.reads.is_due(|| now) || fabric.uplink_still_waits(pairs.receivers(), now) {
            return false;
        }
        self.budget = Budget::TURN;
        while !self.budget.is_used_up() && fabric.uplink_queue.wait().is_none() {
            match self.pass_on(fabric, pairs.receivers(), view) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.fail(&error, now, fabric, view);
                    break;
                }
            }
        }
        if let Some(before) = before {
            fabric.let_go(before.receiver, pairs.receivers());
        }
        fabric.report_news(pairs, view);
        let worked = fabric.unsignalled != 0;
        fabric.signal(pairs.receivers(), view);
        worked
    }

    /// Reads a frame and passes it on, and those after it that go the same way. Returns whether more may wait.
    fn pass_on(
        &mut self,
        fabric: &mut Fabric,
        rx: &mut [Receiver],
        view: &mut View<'_>,
    ) -> io::Result<bool> {
        let now = view.now();
        let sighting = view.sighting(self.last_look, now);
        self.last_look = now;
        let next = self.next()?;
        self.reads.recovered();
        let Some(addresses) = next else {
            self.reads.succeeded(false);
            return Ok(false);
        };
        self.budget.frames -= 1;
        let port = fabric.uplink_port;
        match fabric.addresses.route(port, addresses, self.frame_len(), now) {
            Verdict::Port(to) => {
                let to = fabric.pair_of(to, 0);
                let found = Found { addresses, sighting };
                self.pass_to(to, found, fabric, &mut rx[to], view);
            }
            Verdict::Everyone => {
                for to in bits(fabric.everyone_but(port, 0)) {
                    self.copy_to(to, sighting, fabric, &mut rx[to], view);
                }
                self.read = None;
            }
            Verdict::FloodLimit => {
                for to in bits(fabric.everyone_but(port, 0)) {
                    drop_frames(1, DropCause::RxFloodLimit, &rx[to], view);
                }
                self.read = None;
            }
            // Its destination is outside. Frames from the uplink are never refused as spoofed.
            Verdict::Nowhere | Verdict::Spoofed => self.read = None,
        }
        Ok(true)
    }

    /// Passes the frame that was read to a pair, and those after it that have the same addresses.
    fn pass_to(
        &mut self,
        to: usize,
        found: Found,
        fabric: &mut Fabric,
        receiver: &mut Receiver,
        view: &mut View<'_>,
    ) {
        let Some(offloads) = receiver.offloads() else {
            drop_frames(1, DropCause::RxStopped, receiver, view);
            self.read = None;
            return;
        };
        let (mut failed, mut placed) = (None, false);
        let delivery = receiver.deliver(found.sighting, view, |room| {
            loop {
                let before = self.read;
                let done = self.place(offloads, room);
                placed |= done == Placed::Done || self.read != before;
                if done == Placed::NoRoom {
                    return;
                }
                self.read = None;
                if self.budget.frames == 0 {
                    return;
                }
                match self.next() {
                    Ok(Some(next)) if next == found.addresses => self.budget.frames -= 1,
                    Ok(Some(_)) => return,
                    Ok(None) => {
                        self.reads.succeeded(false);
                        return;
                    }
                    Err(error) => {
                        failed = Some(error);
                        return;
                    }
                }
            }
        });
        let now = found.sighting.seen;
        match delivery {
            Delivery::Done((), work) => {
                fabric.unsignalled |= 1 << to;
                self.budget.note_work(work);
                if placed {
                    fabric.queues[to].note_room();
                } else {
                    // It has chains, but nothing can be placed in them.
                    self.wait_or_drop(to, now, fabric, receiver, view);
                }
            }
            Delivery::NotServed => {
                drop_frames(1, DropCause::RxStopped, receiver, view);
                self.read = None;
            }
            Delivery::NoBuffers(work) => {
                self.budget.note_work(work);
                self.wait_or_drop(to, now, fabric, receiver, view);
            }
        }
        if let Some(error) = failed {
            self.fail(&error, now, fabric, view);
        }
    }

    /// The frame that was read has no room at a pair: it waits for a moment, then it is dropped.
    #[cold]
    fn wait_or_drop(
        &mut self,
        to: usize,
        now: u64,
        fabric: &mut Fabric,
        receiver: &mut Receiver,
        view: &mut View<'_>,
    ) {
        let queue = &mut fabric.queues[to];
        queue.note_full(now, false);
        let until = queue.wait_until(true, &fabric.patience);
        if !until.is_due(now) {
            let wait = Wait { receiver: to, until, progress: SegmentProgress::default() };
            fabric.uplink_queue.start_waiting(wait);
            return;
        }
        receiver.end_starvation();
        drop_frames(1, DropCause::RxSwitchFull, receiver, view);
        self.read = None;
    }

    /// Copies the frame that was read to one of several pairs. A pair without room does not get it: nobody waits.
    fn copy_to(
        &mut self,
        to: usize,
        sighting: Sighting,
        fabric: &mut Fabric,
        receiver: &mut Receiver,
        view: &mut View<'_>,
    ) {
        let Some(offloads) = receiver.offloads() else { return };
        let before = self.read;
        let delivery = receiver.deliver(sighting, view, |room| self.place(offloads, room));
        self.read = before;
        let (placed, work) = match delivery {
            Delivery::NotServed => return,
            Delivery::Done(placed, work) => {
                // Some of its segments may be there, if not all.
                fabric.unsignalled |= 1 << to;
                (placed, work)
            }
            Delivery::NoBuffers(work) => (Placed::NoRoom, work),
        };
        self.budget.note_work(work);
        if placed == Placed::NoRoom {
            receiver.end_starvation();
            drop_frames(1, DropCause::RxSwitchFull, receiver, view);
        }
    }

    /// The uplink is left alone for a while, longer each time: an interface that is gone must not keep the worker busy.
    #[cold]
    fn fail(&mut self, error: &io::Error, now: u64, fabric: &Fabric, view: &View<'_>) {
        // That there is nothing to read is no news.
        let is_news = error.kind() != io::ErrorKind::WouldBlock;
        if self.reads.failed(now, view.shared.retry) && is_news {
            log_limit::warn!(fabric.uplink_log, "cannot read the uplink of a switch: {error}");
        }
    }
}
