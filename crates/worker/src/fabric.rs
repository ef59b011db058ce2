//! The queue pairs of several guests, joined by a learning switch.
//!
//! One worker serves them all: so a frame goes with one copy from the ring of its sender into that of its receiver,
//! and nothing is locked. A turn takes one burst from every pair, so that no guest can take more than its turn,
//! whatever it sends.
//!
//! - `sorting`: to whom the frames of a burst go; `placing`: the way into the receivers' rings.
//! - `waiting`: what becomes of frames for which there is no room.
//! - `addresses`: reports addresses that more than one port sends from.
//! - `uplink`: the port that has a datapath in place of a guest.

mod addresses;
mod placing;
mod sorting;
mod uplink;
mod waiting;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use burst_trace::{DropCause, DropCounts, Stage};
use datapath::switch::{GUEST_ADDRESSES_MAX, PORTS_MAX, Port, Switch, UPLINK_ADDRESSES_MAX};
use datapath::{Capabilities, Datapath, Transmitted};
use log_limit::LogLimit;
use virtio_net::{Frames, MacAddress, TransmitBurst};
use virtqueue::{Chains, RingError};

use self::placing::{Ending, Placing, Unfinished, all, deliver_all};
use self::sorting::bytes_of;
use self::uplink::Uplink;
use self::waiting::{CROWDED, Crowd, End, STUCK, Wait, has_room};

use crate::clock::{Clock, Deadline};
use crate::forward::Sight;
use crate::idle::forecast::Worked;
use crate::idle::sleep::Sleeper;
use crate::pair::{Pair, Shared, Starved};
use crate::ring::{Ring, RingState};
use crate::transmit::{Sent, Untold, discard_burst};
use crate::wiring::Wiring;

/// The most queue pairs of all guests together: with the uplink, a bit each in a word.
pub const PAIRS_MAX: usize = PORTS_MAX - 1;
/// Where the uplink stands among the pairs.
const UPLINK: usize = PAIRS_MAX;

/// A guest of a switch.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// How many queue pairs it has.
    pub queue_pairs: u16,
    /// The address that it was given, if it was.
    pub mac: Option<MacAddress>,
    /// Whether it may send from this address only.
    pub mac_locked: bool,
    /// What its port can do.
    pub capabilities: Capabilities,
}

/// A switch at work. Pairs are named by their place in the worker's list.
#[derive(Debug)]
pub struct Fabric<U> {
    switch: Switch,
    uplink: Option<Uplink<U>>,
    /// The port of the uplink: behind those of the guests.
    uplink_port: u8,
    /// For each port, its pairs.
    ports: Vec<Range<usize>>,
    /// One a pair.
    ends: Vec<End>,
    /// Which pairs take frames: one bit a pair.
    up: u64,
    /// For each pair, the frames of this burst that go to it: one bit a frame.
    shares: [u64; PAIRS_MAX + 1],
    /// Which pairs have a share.
    wanted: u64,
    /// The frames of this burst that have something left to do.
    unfinished: Unfinished,
    /// Since when the uplink has not taken all.
    uplink_full_since: Option<u64>,
    /// Which frames of this burst go to everyone.
    flooded: u64,
    /// Ring work ([`WORK_MAX`](placing::WORK_MAX)) of the uplink's frames in this turn.
    work: u32,
    /// Which pairs have frames that they were not told of.
    untold: u64,
    /// [`STUCK`] and [`CROWDED`] in ticks.
    stuck: u64,
    crowded: u64,
}

impl<U: Datapath> Fabric<U> {
    /// A switch with these guests, of which none has rings yet, and perhaps an uplink.
    ///
    /// # Panics
    /// When they have more than [`PAIRS_MAX`] queue pairs.
    pub fn new(members: &[Member], uplink: Option<U>, clock: &Clock) -> Self {
        let second = clock.ticks_in(Duration::from_secs(1));
        let mut shares = vec![GUEST_ADDRESSES_MAX; members.len()];
        shares.extend(uplink.is_some().then_some(UPLINK_ADDRESSES_MAX));
        let mut switch = Switch::new(&shares, second);
        let (mut ports, mut ends, mut uplink_port) = (Vec::new(), Vec::new(), 0);
        for (port, member) in (0..).zip(members) {
            uplink_port = port + 1;
            match member.mac {
                Some(mac) if member.mac_locked => switch.lock(port, mac),
                Some(mac) => switch.pin(port, mac),
                None => {}
            }
            let first = ends.len();
            ends.extend((0..member.queue_pairs.into()).map(|queue| End::new(port, queue)));
            ports.push(first..ends.len());
        }
        assert!(ends.len() <= PAIRS_MAX, "at most {PAIRS_MAX} queue pairs on a switch");
        if uplink.is_some() {
            switch.set_uplink(uplink_port);
        }
        Self {
            switch,
            uplink: uplink.map(Uplink::new),
            uplink_port,
            ports,
            ends,
            up: 0,
            shares: [0; PAIRS_MAX + 1],
            wanted: 0,
            unfinished: Unfinished::new(),
            uplink_full_since: None,
            flooded: 0,
            work: 0,
            untold: 0,
            stuck: clock.ticks_in(STUCK),
            crowded: clock.ticks_in(CROWDED),
        }
    }

    fn pair_turn(&mut self, at: usize, pairs: &mut [Pair<Port>], shared: &mut Shared<'_>) -> bool {
        let Some(mut ring) = pairs[at].tx.take() else { return false };
        let guest = pairs[at].guest;
        let sent = match ring.state {
            RingState::Enabled => self.burst(at, &mut ring, pairs, shared),
            RingState::Disabled => discard_burst(&mut ring, &mut shared.of(guest)).map(|()| None),
            RingState::Waiting | RingState::Broken => Ok(None),
        };
        let sent = sent.unwrap_or_else(|broken| {
            ring.break_down(broken);
            (pairs[at].backlog, pairs[at].blocked) = (None, false);
            self.stop_waiting(at, pairs);
            None
        });
        pairs[at].tx = Some(ring);
        // Receivers first, and nobody before the sender has its buffers back: see `Pair::tell_forwarded`.
        let mut worked = false;
        for receiver in bits(std::mem::take(&mut self.untold)) {
            let pair = &mut pairs[receiver];
            worked |= pair.tell_forwarded(&mut shared.of(pair.guest));
            pair.worked.add(Worked::RECEIVED);
        }
        if let Some(untold) = sent {
            pairs[at].tell_transmitted(untold, &mut shared.of(guest));
            pairs[at].worked.add(Worked::TRANSMITTED);
            worked = true;
        }
        worked
    }

    /// Moves one burst from a guest to the others, if there is one.
    fn burst(
        &mut self,
        at: usize,
        ring: &mut Ring,
        pairs: &mut [Pair<Port>],
        shared: &mut Shared<'_>,
    ) -> Result<Option<Untold>, RingError> {
        let guest = pairs[at].guest;
        if self.ends[at].waits.is_some() {
            if self.still_waits(at, ring, pairs, shared) {
                return Ok(None);
            }
            // What came meanwhile is in sight now, too.
            let slots = ring.queue.available_descriptors()?;
            if let Some(backlog) = &mut pairs[at].backlog {
                backlog.slots = backlog.slots.max(slots);
            }
        }
        let mut context = shared.of(guest);
        let Some((mut journey, backlog)) = pairs[at].next_burst(ring, &mut context)? else {
            return Ok(None);
        };
        let sent = {
            let Ring { queue, memory, negotiated, .. } = &mut *ring;
            let mut chains = Chains::new();
            let burst = TransmitBurst::gather(queue, memory, *negotiated, &mut chains)?;
            context.tracer.cross(&mut journey, Stage::Gather);
            let gathered = context.tracer.recent(&journey);
            let sight = Sight { wake: gathered, seen: gathered, polled: backlog.polled };
            let done = self.carry(at, burst.frames(), sight, pairs, shared);
            if let Some(news) = self.switch.take_news() {
                self.report(news, pairs, shared);
            }
            shared.of(guest).tracer.cross(&mut journey, Stage::Egress);
            let Transmitted { taken, bytes, mut drops } = done;
            pairs[at].carried(burst.frames(), taken, &drops);
            #[expect(clippy::cast_possible_truncation, reason = "at most BURST_MAX")]
            let packets = (taken as u16).saturating_sub(drops.total());
            let slots = burst.complete(queue, taken, &mut drops);
            queue.publish();
            Sent { slots, packets, bytes, drops }
        };
        let pair = &mut pairs[at];
        pair.blocked = self.ends[at].waits.is_some();
        Ok(pair.sent(ring, journey, backlog, &sent, &mut shared.of(guest)))
    }

    /// Carries the frames of pair `at` to wherever they go.
    fn carry(
        &mut self,
        at: usize,
        frames: Frames<'_, '_>,
        mut sight: Sight,
        pairs: &mut [Pair<Port>],
        shared: &mut Shared<'_>,
    ) -> Transmitted {
        let now = sight.wake;
        let gathered = frames;
        let mut done = self.sort(at, frames, now);
        let frames = frames.take(done.taken);
        let begun = self.ends[at].begun.take();
        for to in bits(std::mem::take(&mut self.wanted)) {
            let left = std::mem::take(&mut self.shares[to]);
            if to == UPLINK {
                self.send_out(at, left, gathered, now, &mut done);
                continue;
            }
            let pair = &mut pairs[to];
            let mut context = shared.of(pair.guest);
            let Some(offloads) = pair.takes() else {
                self.lose(left, &mut done);
                continue;
            };
            let segments = begun.filter(|wait| wait.receiver == to).map_or(0, |wait| wait.segments);
            let unfinished = &self.unfinished;
            let drops = DropCounts::default();
            let mut placing = Placing { frames, unfinished, offloads, left, segments, drops };
            let delivered = deliver_all(pair, &mut placing, &mut sight, &mut context);
            self.untold |= u64::from(delivered.any) << to;
            let Placing { left: rest, segments, drops, .. } = placing;
            context.tracer.dropped(pair.rings()[0], &drops);
            if rest == 0 {
                self.ends[to].full_since = None;
            } else if pair.is_served() {
                let crowd = Crowd::new(gathered, frames.len());
                let end = &mut self.ends[to];
                let until = if delivered.end == Ending::Cut {
                    // The receiver has room: the rest only waits for the next turn.
                    end.full_since = None;
                    Deadline::after(now, self.stuck)
                } else {
                    end.note_full(now, delivered.placed);
                    end.patience(crowd.is_crowded, self.stuck, self.crowded)
                };
                let wait = Wait { receiver: to, until, segments };
                if self.may_wait(wait, rest, crowd, now) {
                    put_off(rest, frames, &mut done);
                    if delivered.end == Ending::NoRoom {
                        let Sight { wake, seen, polled } = sight;
                        pair.starved.get_or_insert(Starved { wake, seen, polled, since: wake });
                    }
                    (self.ends[at].waits, self.ends[at].begun) = (Some(wait), Some(wait));
                } else {
                    pair.starved = None;
                    drop_frames(rest.count_ones(), DropCause::RxSwitchFull, pair, shared);
                }
            } else {
                self.lose(rest, &mut done);
            }
        }
        if let Some(before) = begun {
            self.let_go(before.receiver, pairs);
        }
        done
    }

    /// There is nobody to take these frames. Those for everyone are not missed.
    #[cold]
    fn lose(&self, frames: u64, done: &mut Transmitted) {
        let lost = frames & !self.flooded;
        (0..lost.count_ones()).for_each(|_| done.drops.add(DropCause::TxLinkDown));
    }
}

/// The pairs of these guests, in the order in which [`Fabric::new`] numbers them.
pub fn pairs_of<'m>(members: impl Iterator<Item = (Arc<LogLimit>, &'m Member)>) -> Vec<Pair<Port>> {
    let pairs = |(guest, (log, member)): (usize, (Arc<LogLimit>, &Member))| {
        let capabilities = member.capabilities;
        (0..member.queue_pairs)
            .map(move |index| Pair::new(guest, Arc::clone(&log), index, Port::new(capabilities)))
    };
    members.enumerate().flat_map(pairs).collect()
}

impl<U: Datapath> Wiring for Fabric<U> {
    type Wire = Port;

    const COUNTS_LOSSES: bool = U::COUNTS_LOSSES;

    /// What the uplink lost had no receiver yet: it is counted with the first guest.
    fn account(&mut self, pairs: &mut [Pair<Port>], shared: &mut Shared<'_>) {
        if let (Some(uplink), Some(first)) = (&mut self.uplink, pairs.first()) {
            uplink.account(first.rings(), shared.of(first.guest).tracer);
        }
    }

    #[inline]
    fn turn(&mut self, pairs: &mut [Pair<Port>], shared: &mut Shared<'_>) -> bool {
        let mut worked = false;
        for at in 0..pairs.len() {
            worked |= self.pair_turn(at, pairs, shared);
        }
        worked | self.uplink_turn(pairs, shared, worked)
    }

    /// Resets the state of this pair only: a guest that changes its rings over and over must not make frames of other guests
    /// wait longer, or be sent twice.
    fn rings_changed(&mut self, at: usize, pairs: &mut [Pair<Port>], now: u64) {
        self.stop_waiting(at, pairs);
        let pair = &mut pairs[at];
        (pair.blocked, pair.starved) = (false, None);
        let before = self.up;
        self.up = before & !(1 << at) | u64::from(pair.is_served()) << at;
        if self.up & 1 << at == 0 {
            // Frames for it are lost now. While the ring goes on, this stays: its frames must not wait longer.
            self.ends[at].full_since = None;
        }
        let port = self.ends[at].port;
        let pairs = &self.ports[usize::from(port)];
        let mask = all(pairs.len()) << pairs.start;
        if before & mask != 0 && self.up & mask == 0 {
            self.switch.unplug(port, now);
        }
    }

    fn has_work(&self, pairs: &[Pair<Port>]) -> bool {
        let can_go_on = |(end, pair): (&End, &Pair<Port>)| {
            let Some(Wait { receiver, .. }) = end.waits else { return false };
            pair.tx.as_ref().is_some_and(|tx| tx.queue.has_grown())
                || pairs.get(receiver).is_some_and(has_room)
        };
        self.ends.iter().zip(pairs).any(can_go_on)
            || self.uplink.as_ref().is_some_and(Uplink::has_work)
    }

    fn limit(&self) -> Option<Duration> {
        let uplink_waits = self.uplink.as_ref().is_some_and(Uplink::is_waiting);
        if uplink_waits || self.ends.iter().any(|end| end.waits.is_some()) {
            return Some(CROWDED);
        }
        self.uplink.as_ref().and_then(Uplink::pause)
    }

    fn start(&mut self, sleeper: &Sleeper) -> io::Result<()> {
        self.uplink.iter_mut().try_for_each(|uplink| uplink.start(sleeper))
    }

    fn woken(&mut self) {
        if let Some(uplink) = &mut self.uplink {
            (uplink.readable, uplink.blocked) = (true, false);
        }
    }
}

/// Counts frames that were for `receiver`.
#[cold]
fn drop_frames(frames: u32, cause: DropCause, receiver: &Pair<Port>, shared: &mut Shared<'_>) {
    let mut drops = DropCounts::default();
    (0..frames).for_each(|_| drops.add(cause));
    shared.of(receiver.guest).tracer.dropped(receiver.rings()[0], &drops);
}

/// The frames from the first of `left` on are not taken this time.
#[cold]
fn put_off(left: u64, frames: Frames<'_, '_>, done: &mut Transmitted) {
    done.taken = left.trailing_zeros() as usize;
    done.bytes = bytes_of(frames.take(done.taken));
}

/// The numbers of the bits that are set.
fn bits(mut set: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = set.trailing_zeros();
        let next = (set != 0).then_some(bit as usize);
        set &= set.wrapping_sub(1);
        next
    })
}
