//! The port of a switch that has a datapath in place of a guest.

use std::io;
use std::time::Duration;

use burst_trace::{DropCause, DropCounts};
use datapath::switch::{ADDRESSES_LEN, Verdict};
use datapath::{Capabilities, Datapath, Transmitted};
use guest_memory::Spare;
use log_limit::LogLimit;
use virtio_net::features::{HEADER_LEN, VERSION_1};
use virtio_net::{
    FRAME_LEN_MAX, Frames, GuestRoom, Negotiated, NetHeader, Offloads, Placed, SoftwareOffload,
    header,
};

use super::placing::WORK_MAX;
use super::waiting::{Crowd, Wait, has_room};
use super::{Fabric, UPLINK, bits};
use crate::clock::Deadline;
use crate::forward::{Delivery, Sight};
use crate::idle::forecast::Worked;
use crate::idle::sleep::{Sleeper, Token};
use crate::pair::{Failed, Pair, Shared};
use crate::trace::Tracer;

/// The most frames of one turn: as many as of a guest whose datapath takes a system call for each.
const BURST: usize = 32;

/// While guests keep the worker busy and nothing was told of, the uplink is looked at once in so many turns.
const TURNS_A_LOOK: u32 = 16;

/// The uplink of a switch, with one queue of it.
#[derive(Debug)]
pub struct Uplink<U> {
    datapath: U,
    /// Where messages about it go.
    pub log: LogLimit,
    /// What may be left to do to the frames that it hands us, and to those that it is handed.
    offloads: u64,
    /// Length of the net headers that it was last told of.
    header_len: usize,
    /// The frame that was read last, behind its net header: whose it is, only it says itself.
    frame: Spare,
    /// Its length with the header, and how many of its segments were placed; none when it is done with.
    read: Option<(usize, usize)>,
    /// Length of its own net header: that of those to come may change while it waits.
    read_header_len: usize,
    /// It may have frames: it became readable and was not yet found empty.
    pub readable: bool,
    /// It took no more frames at the last try.
    pub blocked: bool,
    /// It could not be read at the last look.
    failed: Option<Failed>,
    /// How many turns in a row guests had work and it was not looked at.
    passed_over: u32,
    /// The frame that was read waits for this receiver.
    pub waits: Option<Wait>,
    /// When it was last looked at, ticks.
    last_look: u64,
}

impl<U: Datapath> Uplink<U> {
    pub fn new(datapath: U) -> Self {
        let Capabilities { from_guest, to_guest, .. } = datapath.capabilities();
        let offloads = from_guest.from_guest() | to_guest.to_guest();
        Self {
            datapath,
            log: LogLimit::new(""),
            offloads,
            header_len: 0,
            frame: Spare::new(HEADER_LEN + FRAME_LEN_MAX),
            read: None,
            read_header_len: 0,
            readable: true,
            blocked: false,
            failed: None,
            passed_over: 0,
            waits: None,
            last_look: 0,
        }
    }

    /// Takes frames from now on, and wakes the worker up for them.
    pub fn start(&mut self, sleeper: &Sleeper) -> io::Result<()> {
        self.expect_headers(HEADER_LEN)?;
        self.datapath.set_active(true)?;
        match self.datapath.readiness() {
            Some(fd) => sleeper.add(&fd, Token::Uplink),
            None => Ok(()),
        }
    }

    /// Tells the datapath how long net headers are from now on: a guest of the old kind has shorter ones.
    fn expect_headers(&mut self, len: usize) -> io::Result<()> {
        if self.header_len != len {
            let version = if len == HEADER_LEN { VERSION_1 } else { 0 };
            self.datapath.configure(Negotiated(version | self.offloads))?;
            self.header_len = len;
        }
        Ok(())
    }

    /// Counts what was lost before it could be read, and what else was counted there, on these virtqueues.
    pub fn account(&mut self, rings: [u16; 2], tracer: &mut Tracer) {
        self.datapath.losses(&mut |what, times| tracer.counted(rings, what, times));
    }

    /// Whether there is work that no descriptor tells of, or told of before.
    pub fn has_work(&self) -> bool {
        let is_looked_at = self.waits.is_none() && self.failed.is_none();
        let was_told = self.readable || self.datapath.readiness().is_none();
        is_looked_at && (self.read.is_some() || (was_told && self.datapath.has_frames()))
    }

    /// Whether it is time to look for frames, at the end of a turn in which guests had work or not.
    fn is_due(&mut self, guests_worked: bool, is_polling: bool) -> bool {
        if self.read.is_some() || self.readable || self.datapath.readiness().is_none() {
            return true;
        }
        // A look is a system call: too much for every turn of a rush between guests.
        self.passed_over = if guests_worked { self.passed_over + 1 } else { 0 };
        is_polling && self.passed_over.is_multiple_of(TURNS_A_LOOK)
    }

    pub const fn is_waiting(&self) -> bool {
        self.waits.is_some()
    }

    /// How long it is left alone, if it could not be read.
    pub fn pause(&self) -> Option<Duration> {
        self.failed.map(Failed::delay)
    }

    /// Sends those of the frames whose bits are set. Returns the bits of those that it did not take, and what
    /// became of the others.
    pub fn send(&mut self, frames: Frames<'_, '_>, mut share: u64) -> (u64, DropCounts) {
        let mut drops = DropCounts::default();
        if self.expect_headers(frames.header_len()).is_err() {
            (0..share.count_ones()).for_each(|_| drops.add(DropCause::TxError));
            return (0, drops);
        }
        self.blocked = false;
        while share != 0 {
            let first = share.trailing_zeros();
            let count = (share >> first).trailing_ones() as usize;
            let run = frames.skip(first as usize).take(count);
            let Transmitted { taken, drops: refused, .. } = self.datapath.transmit(run);
            drops.add_all(&refused);
            share &= !(super::all(taken) << first);
            if taken < count {
                self.blocked = true;
                break;
            }
        }
        (share, drops)
    }

    /// Length of the frame that was read.
    fn frame_len(&self) -> usize {
        self.read.map_or(0, |(len, _)| len - self.read_header_len)
    }

    /// Reads the next frame, unless there is one that was not done with. Returns its addresses.
    fn next(&mut self) -> io::Result<Option<[u8; ADDRESSES_LEN]>> {
        let frame = self.frame.slice();
        loop {
            let len = match self.read {
                Some((len, _)) => len,
                None => match self.datapath.receive_frame(frame)? {
                    Some(len) => len.min(frame.len()),
                    None => return Ok(None),
                },
            };
            let mut addresses = [0; ADDRESSES_LEN];
            // What is too short for addresses is nobody's.
            if self.read.is_none() {
                self.read_header_len = self.header_len;
            }
            if len >= self.read_header_len + addresses.len() {
                frame.read(self.read_header_len, &mut addresses);
                self.read.get_or_insert((len, 0));
                return Ok(Some(addresses));
            }
            self.read = None;
        }
    }

    /// Places the frame that was read for a guest that takes `offloads`.
    fn place(&mut self, offloads: Offloads, room: &mut GuestRoom<'_, '_>) -> Placed {
        let Some((len, segments)) = self.read else { return Placed::Done };
        let header_len = self.read_header_len;
        let frame = [self.frame.slice().part(0, len)];
        let mut header = NetHeader::read(&frame, header_len);
        if !offloads.checksum {
            // That the kernel has checked the checksum is not for this guest to know (5.1.6.4).
            header.flags &= header::NEEDS_CSUM;
        }
        if header.is_for(offloads) {
            return room.place_run(&header, &frame, header_len);
        }
        let Ok(mut finish) = SoftwareOffload::plan(&header, &frame, header_len, len - header_len)
        else {
            return room.refuse(DropCause::RxError);
        };
        let all = finish.count();
        finish.skip(&frame, segments);
        let placed = room.place_offloaded(&mut finish, &frame);
        let left = if placed == Placed::Done { all } else { finish.count() };
        self.read = Some((len, all - left));
        placed
    }
}

/// What a look at the uplink came to.
enum Looked {
    /// There are no frames now.
    Empty,
    /// More may wait.
    More,
}

impl<U: Datapath> Fabric<U> {
    /// Sends the frames `left`, of those that pair `at` gathered, to the uplink.
    pub(super) fn send_out(
        &mut self,
        at: usize,
        left: u64,
        gathered: Frames<'_, '_>,
        now: u64,
        done: &mut Transmitted,
    ) {
        let Some(uplink) = &mut self.uplink else { return };
        let frames = gathered.take(done.taken);
        let (rest, refused) = uplink.send(frames, left);
        done.drops.add_all(&refused);
        if rest == 0 {
            self.uplink_full_since = None;
            return;
        }
        let since = *self.uplink_full_since.get_or_insert(now);
        let wait =
            Wait { receiver: UPLINK, until: Deadline::after(since, self.crowded), segments: 0 };
        if self.may_wait(wait, rest, Crowd::new(gathered, frames.len()), now) {
            super::put_off(rest, frames, done);
            self.ends[at].waits = Some(wait);
        } else {
            (0..rest.count_ones()).for_each(|_| done.drops.add(DropCause::TxUplinkFull));
        }
    }

    /// Moves one burst from the uplink to the guests. Returns whether there was one.
    pub(super) fn uplink_turn(
        &mut self,
        pairs: &mut [Pair<super::Port>],
        shared: &mut Shared<'_>,
        guests_worked: bool,
    ) -> bool {
        let Some(uplink) = &mut self.uplink else { return false };
        if !uplink.is_due(guests_worked, shared.polling) {
            return false;
        }
        let now = shared.tracers[0].now();
        let before = uplink.waits;
        let is_left_alone = uplink.failed.is_some_and(|failed| !failed.retry.is_due(now));
        if is_left_alone || self.uplink_waits(pairs, now) {
            return false;
        }
        let mut budget = BURST;
        self.work = 0;
        while budget > 0 && self.work < WORK_MAX {
            match self.pass_on(&mut budget, pairs, shared) {
                Ok(Looked::More) => {}
                Ok(Looked::Empty) => break,
                Err(error) => {
                    self.fail(&error, now, shared);
                    break;
                }
            }
            if self.uplink.as_ref().is_some_and(Uplink::is_waiting) {
                break;
            }
        }
        if let Some(before) = before {
            self.let_go(before.receiver, pairs);
        }
        if let Some(news) = self.switch.take_news() {
            self.report(news, pairs, shared);
        }
        let worked = self.untold != 0;
        for receiver in bits(std::mem::take(&mut self.untold)) {
            let pair = &mut pairs[receiver];
            pair.tell_forwarded(&mut shared.of(pair.guest));
            pair.worked.add(Worked::RECEIVED);
        }
        worked
    }

    /// Whether the frame that was read still waits for its receiver.
    fn uplink_waits(&mut self, pairs: &[Pair<super::Port>], now: u64) -> bool {
        let Some(uplink) = &mut self.uplink else { return false };
        let Some(wait) = uplink.waits else { return false };
        let waits = !wait.until.is_due(now) && !has_room(&pairs[wait.receiver]);
        if !waits {
            uplink.waits = None;
        }
        waits
    }

    /// Reads a frame and passes it on, and those after it that go the same way.
    fn pass_on(
        &mut self,
        budget: &mut usize,
        pairs: &mut [Pair<super::Port>],
        shared: &mut Shared<'_>,
    ) -> io::Result<Looked> {
        let Some(uplink) = &mut self.uplink else { return Ok(Looked::Empty) };
        let (wake, polled) = shared.of(0).wake(uplink.last_look);
        // All guests have one clock.
        let now = shared.tracers[0].now();
        uplink.last_look = now;
        let next = uplink.next()?;
        uplink.failed = None;
        let Some(addresses) = next else {
            uplink.readable = false;
            return Ok(Looked::Empty);
        };
        let port = self.uplink_port;
        let sight = Sight { wake, seen: now, polled };
        *budget -= 1;
        match self.switch.route(port, addresses, uplink.frame_len(), now) {
            Verdict::Port(to) => {
                let to = self.pair_of(to, 0);
                self.pass_to(to, addresses, sight, budget, pairs, shared);
            }
            Verdict::Everyone => {
                for to in bits(self.everyone_but(port, 0)) {
                    self.copy_to(to, sight, pairs, shared);
                }
                self.forget_read();
            }
            Verdict::FloodLimit => {
                for to in bits(self.everyone_but(port, 0)) {
                    super::drop_frames(1, DropCause::RxFloodLimit, &pairs[to], shared);
                }
                self.forget_read();
            }
            // Its destination is outside. Frames from the uplink are never refused as spoofed.
            Verdict::Nowhere | Verdict::Spoofed => self.forget_read(),
        }
        Ok(Looked::More)
    }

    /// Passes the frame that was read to a pair, and those after it that have the same addresses.
    fn pass_to(
        &mut self,
        to: usize,
        addresses: [u8; ADDRESSES_LEN],
        sight: Sight,
        budget: &mut usize,
        pairs: &mut [Pair<super::Port>],
        shared: &mut Shared<'_>,
    ) {
        let Some(uplink) = &mut self.uplink else { return };
        let pair = &mut pairs[to];
        let Some(offloads) = pair.takes() else {
            super::drop_frames(1, DropCause::RxStopped, pair, shared);
            uplink.read = None;
            return;
        };
        let (mut failed, mut placed) = (None, false);
        let delivery = pair.deliver(sight, &mut shared.of(pair.guest), |_, room| {
            loop {
                let before = uplink.read;
                let done = uplink.place(offloads, room);
                placed |= done == Placed::Done || uplink.read != before;
                if done == Placed::NoRoom {
                    return;
                }
                uplink.read = None;
                if *budget == 0 {
                    return;
                }
                match uplink.next() {
                    Ok(Some(next)) if next == addresses => *budget -= 1,
                    Ok(Some(_)) => return,
                    Ok(None) => {
                        uplink.readable = false;
                        return;
                    }
                    Err(error) => {
                        failed = Some(error);
                        return;
                    }
                }
            }
        });
        let now = sight.seen;
        match delivery {
            Delivery::Done((), work) => {
                self.untold |= 1 << to;
                self.work += work;
                if placed {
                    self.ends[to].full_since = None;
                } else {
                    // It has chains, but nothing can be placed in them.
                    self.wait_or_drop(to, now, pairs, shared);
                }
            }
            Delivery::NotServed => {
                super::drop_frames(1, DropCause::RxStopped, pair, shared);
                uplink.read = None;
            }
            Delivery::NoBuffers(work) => {
                self.work += work;
                self.wait_or_drop(to, now, pairs, shared);
            }
        }
        if let Some(error) = failed {
            self.fail(&error, now, shared);
        }
    }

    /// The frame that was read has no room at a pair: it waits for a moment, then it is dropped.
    #[cold]
    fn wait_or_drop(
        &mut self,
        to: usize,
        now: u64,
        pairs: &mut [Pair<super::Port>],
        shared: &mut Shared<'_>,
    ) {
        let Some(uplink) = &mut self.uplink else { return };
        let end = &mut self.ends[to];
        end.note_full(now, false);
        let until = end.patience(true, self.stuck, self.crowded);
        if !until.is_due(now) {
            uplink.waits = Some(Wait { receiver: to, until, segments: 0 });
            return;
        }
        pairs[to].starved = None;
        super::drop_frames(1, DropCause::RxSwitchFull, &pairs[to], shared);
        uplink.read = None;
    }

    /// Copies the frame that was read to one of several pairs. Nobody waits for that.
    fn copy_to(
        &mut self,
        to: usize,
        sight: Sight,
        pairs: &mut [Pair<super::Port>],
        shared: &mut Shared<'_>,
    ) {
        let Some(uplink) = &mut self.uplink else { return };
        let pair = &mut pairs[to];
        let Some(offloads) = pair.takes() else { return };
        let before = uplink.read;
        let delivery =
            pair.deliver(sight, &mut shared.of(pair.guest), |_, room| uplink.place(offloads, room));
        uplink.read = before;
        let (placed, work) = match delivery {
            Delivery::NotServed => return,
            Delivery::Done(placed, work) => {
                // Some of its segments may be there, if not all.
                self.untold |= 1 << to;
                (placed, work)
            }
            Delivery::NoBuffers(work) => (Placed::NoRoom, work),
        };
        self.work += work;
        if placed == Placed::NoRoom {
            pair.starved = None;
            super::drop_frames(1, DropCause::RxSwitchFull, pair, shared);
        }
    }

    fn forget_read(&mut self) {
        if let Some(uplink) = &mut self.uplink {
            uplink.read = None;
        }
    }

    /// The uplink is left alone for a while, longer each time: an interface that is gone must not keep the worker
    /// busy.
    #[cold]
    fn fail(&mut self, error: &io::Error, now: u64, shared: &Shared<'_>) {
        let Some(uplink) = &mut self.uplink else { return };
        let failed = Failed::again(uplink.failed, now, shared.retry);
        uplink.failed = Some(failed);
        if failed.is_logged() {
            log_limit::warn!(
                uplink.log,
                "no frame could be read from the uplink of a switch: {error}"
            );
        }
        uplink.readable = true;
    }
}
