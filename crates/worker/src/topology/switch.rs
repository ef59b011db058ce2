//! The queue pairs of several guests, joined by a learning switch, perhaps with an uplink.
//!
//! One worker serves all of them. So a frame goes with one copy from the ring of its sender into the ring of its
//! receiver, without locks. A turn takes one burst from every pair: no guest gets more than its turn, whatever it
//! sends.
//!
//! - [`addresses`]: which port has an address, and so where a frame goes.
//! - `sort`: the receivers of the frames of a burst; `place`: the way into a receiver's ring.
//! - `carry`: a burst from one guest to all its receivers.
//! - `wait`: what becomes of frames for which there is no room.
//! - `pause`: nothing is carried while guests go from one daemon to another.
//! - `report`: logs and counts addresses that more than one port sends from.
//! - `uplink`: the port that has a datapath in place of a guest; `budget`: how much it may do in a turn.

pub mod addresses;
mod budget;
mod carry;
mod pause;
mod place;
mod report;
mod sort;
mod uplink;
mod wait;

use std::io;
use std::ops::Range;
use std::time::Duration;

use burst_trace::{DropCause, DropCounts};
use datapath::{Capabilities, FrameReader, KernelFacts as _};
use log_limit::LogLimit;
use virtio_net::{MacAddress, Negotiated, Offloads};

use self::addresses::{Addresses, GUEST_ADDRESSES_MAX, PORTS_MAX, UPLINK_ADDRESSES_MAX};
use self::pause::{AWHILE, Pause};
use self::place::{PendingOffloads, all};
use self::uplink::Uplink;
use self::wait::{CROWDED, Patience, PortQueue};
use super::Topology;
use crate::clock::Clock;
use crate::heritage::{Heritage, UplinkHeritage};
use crate::idle::sleep::{Sleeper, Token};
use crate::pairs::Pairs;
use crate::receiver::Receiver;
use crate::timeline::Sighting;
use crate::transmitter::Carried;
use crate::view::View;

/// The most queue pairs of all guests together: with the uplink, one bit each in a word.
pub const PAIRS_MAX: usize = PORTS_MAX - 1;
/// The uplink's place among the pairs.
const UPLINK: usize = PAIRS_MAX;

/// A guest of a switch.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Number of queue pairs.
    pub queue_pairs: u16,
    /// The address that the operator gave it, if any.
    pub mac: Option<MacAddress>,
    /// Whether it may send from this address only.
    pub mac_locked: bool,
}

/// The capabilities of a switch's ports, given those of its uplink. Offloads that a guest leaves pending are passed on
/// to the next guest, or done with the copy; an uplink need not be able to.
#[must_use]
pub fn capabilities(uplink: Option<Capabilities>) -> Capabilities {
    // UDP fragmentation offload is gone from Linux 4.14.
    let all = Offloads { ufo: false, ..Offloads::ALL };
    Capabilities {
        name: "switch",
        from_guest: uplink.map_or(all, |uplink| uplink.from_guest.and(all)),
        to_guest: all,
        mtu: uplink.map_or(u16::MAX, |uplink| uplink.mtu),
    }
}

/// A switch: its guests' ports, and perhaps an uplink.
#[derive(Debug)]
pub struct Switch<U> {
    fabric: Fabric,
    /// Boxed: it has its socket's or its tap's state, which few turns need.
    uplink: Option<Box<Uplink<U>>>,
    pause: Pause,
}

/// What joins the ports. Pairs are named by their place in the worker's list.
#[derive(Debug)]
struct Fabric {
    addresses: Addresses,
    /// The pairs of each guest's port.
    ports: Vec<Range<usize>>,
    /// The port of the uplink, which follows those of the guests.
    uplink_port: u8,
    has_uplink: bool,
    /// Where messages about the uplink go.
    uplink_log: LogLimit,
    /// One for each pair.
    queues: Vec<PortQueue>,
    uplink_queue: PortQueue,
    /// The pairs that take frames: one bit each.
    up: u64,
    /// For each pair, the frames of this burst that go to it: one bit a frame.
    shares: [u64; PAIRS_MAX + 1],
    /// The pairs that have a share.
    wanted: u64,
    /// The frames of this burst that have offloads pending.
    pending: PendingOffloads,
    /// The frames of this burst that go to everyone.
    flooded: u64,
    /// The pairs whose guests have frames without a signal.
    unsignalled: u64,
    patience: Patience,
}

impl<U: FrameReader> Switch<U> {
    /// A switch with these guests, whose rings have not started, and perhaps an uplink.
    ///
    /// # Panics
    /// When they have more than [`PAIRS_MAX`] queue pairs.
    pub fn new(members: &[Member], uplink: Option<U>, clock: &Clock) -> Self {
        let fabric = Fabric::new(members, uplink.is_some(), clock);
        let uplink = uplink.map(|uplink| Box::new(Uplink::new(uplink)));
        Self { fabric, uplink, pause: Pause::No }
    }

    /// The same switch. Its guests come from another daemon, which uses the uplink until all of them are there: the switch
    /// carries nothing before that.
    #[must_use]
    pub fn coming(self) -> Self {
        Self { pause: Pause::Coming, ..self }
    }

    /// Whether nothing is carried yet.
    #[cold]
    fn still_pauses(&mut self, pairs: &mut Pairs, now: u64) -> bool {
        let is_over = matches!(self.pause, Pause::Returning(Some(until)) if until.is_due(now));
        if is_over {
            self.resume(pairs, now);
        } else {
            // The threads that are waited for may need this CPU.
            std::thread::sleep(AWHILE);
        }
        !is_over
    }

    fn resume(&mut self, pairs: &mut Pairs, now: u64) {
        self.pause = Pause::No;
        (0..pairs.len()).for_each(|at| self.rings_changed(at, pairs, now));
    }
}

impl Fabric {
    fn new(members: &[Member], has_uplink: bool, clock: &Clock) -> Self {
        let second = clock.ticks_in(Duration::from_secs(1));
        let mut shares = vec![GUEST_ADDRESSES_MAX; members.len()];
        shares.extend(has_uplink.then_some(UPLINK_ADDRESSES_MAX));
        let mut addresses = Addresses::new(&shares, second);
        let (mut ports, mut queues, mut uplink_port) = (Vec::new(), Vec::new(), 0);
        for (port, member) in (0..).zip(members) {
            uplink_port = port + 1;
            match member.mac {
                Some(mac) if member.mac_locked => addresses.lock(port, mac),
                Some(mac) => addresses.pin(port, mac),
                None => {}
            }
            let first = queues.len();
            queues.extend((0..member.queue_pairs.into()).map(|queue| PortQueue::new(port, queue)));
            ports.push(first..queues.len());
        }
        assert!(queues.len() <= PAIRS_MAX, "at most {PAIRS_MAX} queue pairs on a switch");
        if has_uplink {
            addresses.set_uplink(uplink_port);
        }
        Self {
            addresses,
            ports,
            uplink_port,
            has_uplink,
            uplink_log: LogLimit::new(""),
            queues,
            uplink_queue: PortQueue::new(uplink_port, 0),
            up: 0,
            shares: [0; PAIRS_MAX + 1],
            wanted: 0,
            pending: PendingOffloads::new(),
            flooded: 0,
            unsignalled: 0,
            patience: Patience::new(clock),
        }
    }

    /// Moves one burst from the guest of pair `at` to the others. Returns whether there was one.
    fn pair_turn<U: FrameReader>(
        &mut self,
        at: usize,
        pairs: &mut Pairs,
        uplink: Option<&mut Uplink<U>>,
        view: &mut View<'_>,
    ) -> bool {
        let (sender, rx) = pairs.transmitter_and_receivers(at);
        if self.queues[at].wait().is_some() && sender.is_served() {
            let is_blocked = uplink.as_ref().is_some_and(|uplink| uplink.is_blocked());
            if self.still_waits(at, sender, rx, is_blocked, view.now()) {
                return false;
            }
            sender.extend_backlog();
        }
        let guest = sender.guest();
        sender.turn(view, |frames, gathered, view| {
            let now = view.tracer(guest).recent(gathered.timeline);
            let sighting = Sighting { wake: now, seen: now, polled: gathered.polled };
            let transmitted = self.carry(at, frames, sighting, rx, uplink, view);
            Carried { transmitted, blocked: self.queues[at].wait().is_some(), at: None }
        });
        if self.queues[at].is_waiting() && !sender.is_served() {
            // Its ring broke.
            self.stop_waiting(at, rx);
        }
        self.report_news(pairs, view);
        // Receivers first, and nobody before the sender has its buffers back: see `Receiver::signal`.
        let (sender, rx) = pairs.transmitter_and_receivers(at);
        let received = self.signal(rx, view);
        let sent = sender.signal(view, |_| ());
        received | sent
    }

    /// The pairs, and the uplink.
    fn all_queues(&self) -> impl Iterator<Item = &PortQueue> {
        self.queues.iter().chain([&self.uplink_queue])
    }

    /// Signals the guests that got frames. Returns whether there were any.
    fn signal(&mut self, rx: &mut [Receiver], view: &mut View<'_>) -> bool {
        let mut any = false;
        for to in bits(std::mem::take(&mut self.unsignalled)) {
            any |= rx[to].signal(view, |_| ());
        }
        any
    }
}

impl<U: FrameReader> Topology for Switch<U> {
    #[inline]
    fn turn(&mut self, pairs: &mut Pairs, view: &mut View<'_>) -> bool {
        if self.pause != Pause::No && self.still_pauses(pairs, view.now()) {
            return false;
        }
        let mut uplink = self.uplink.as_deref_mut();
        let mut worked = false;
        for at in 0..pairs.len() {
            worked |= self.fabric.pair_turn(at, pairs, uplink.as_deref_mut(), view);
        }
        match uplink {
            Some(uplink) => worked | uplink.turn(&mut self.fabric, pairs, worked, view),
            None => worked,
        }
    }

    fn begin(&mut self, sleeper: &Sleeper) -> io::Result<()> {
        let Some(uplink) = &mut self.uplink else { return Ok(()) };
        if self.pause == Pause::No {
            uplink.begin()?;
        }
        uplink.listen(sleeper)
    }

    fn woken(&mut self, token: Token, _pairs: &mut Pairs) {
        if token == Token::Uplink
            && let Some(uplink) = &mut self.uplink
        {
            uplink.woken();
        }
    }

    fn has_work(&mut self, pairs: &Pairs) -> bool {
        if self.pause != Pause::No {
            return false;
        }
        let uplink_waits = self.fabric.uplink_queue.wait().is_some();
        self.fabric.can_go_on(pairs)
            || (!uplink_waits && self.uplink.as_ref().is_some_and(|uplink| uplink.has_work()))
    }

    fn limit(&self, _pairs: &Pairs, view: &View<'_>) -> Option<Duration> {
        let is_returning = matches!(self.pause, Pause::Returning(_));
        if is_returning || self.fabric.all_queues().any(|queue| queue.wait().is_some()) {
            return Some(CROWDED);
        }
        self.uplink.as_ref().and_then(|uplink| uplink.retry_in(&view.shared.clock))
    }

    fn counts_losses(&mut self) -> bool {
        self.uplink.as_mut().is_some_and(|uplink| uplink.datapath().kernel_facts().is_some())
    }

    /// What the uplink lost had no receiver yet: it is counted with the first guest.
    fn account(&mut self, pairs: &Pairs, view: &mut View<'_>) {
        if let Some(uplink) = &mut self.uplink
            && pairs.len() > 0
            && let Some(facts) = uplink.datapath().kernel_facts()
        {
            let (rings, tracer) = (pairs.rings(0), view.tracer(pairs.guest(0)));
            facts.losses(&mut |what, times| tracer.counted(rings, what, times));
        }
    }

    fn announce(
        &mut self,
        at: usize,
        address: MacAddress,
        pairs: &mut Pairs,
        view: &mut View<'_>,
    ) -> bool {
        self.pause == Pause::No
            && self.fabric.announce(at, address, pairs, self.uplink.as_deref_mut(), view)
    }

    fn configure(&mut self, _at: usize, _negotiated: Negotiated) -> io::Result<()> {
        if self.pause == Pause::Leaving {
            self.pause = Pause::Returning(None);
        }
        Ok(())
    }

    fn part(&mut self, at: usize, now: u64) -> Heritage {
        let is_first = self.pause != Pause::Leaving;
        self.pause = Pause::Leaving;
        let Fabric { addresses, queues, uplink_port, .. } = &mut self.fabric;
        let uplink = self.uplink.as_mut().filter(|_| is_first).map(|uplink| UplinkHeritage {
            addresses: addresses.learned(*uplink_port, now),
            ..uplink.part()
        });
        let addresses = addresses.learned(queues[at].port(), now);
        Heritage { frames: Vec::new(), addresses, uplink }
    }

    fn inherit(
        &mut self,
        at: usize,
        addresses: &[MacAddress],
        uplink: Option<UplinkHeritage>,
        now: u64,
    ) {
        let Fabric { addresses: table, queues, uplink_port, .. } = &mut self.fabric;
        let port = queues[at].port();
        addresses.iter().for_each(|&address| table.teach(port, address, now));
        if let Some((own, theirs)) = self.uplink.as_mut().zip(uplink) {
            theirs.addresses.iter().for_each(|&address| table.teach(*uplink_port, address, now));
            own.inherit(theirs);
        }
    }

    fn go_on(&mut self, is_over: bool, pairs: &mut Pairs, now: u64) {
        // The daemon before lets go of the uplink with its first ring, or at its end.
        let is_free = is_over || self.uplink.as_ref().is_none_or(|uplink| uplink.has_inherited());
        if self.pause != Pause::Coming || !is_free {
            return;
        }
        if let Some(uplink) = &mut self.uplink
            && let Err(error) = uplink.begin()
        {
            let log = &self.fabric.uplink_log;
            log_limit::error!(log, "the uplink of a switch cannot be gone on with: {error}");
        }
        self.resume(pairs, now);
    }

    /// Resets the state of this pair only: a guest that changes its rings over and over must not make frames of other
    /// guests wait longer, or be sent twice.
    fn rings_changed(&mut self, at: usize, pairs: &mut Pairs, now: u64) {
        if self.pause != Pause::No {
            if let Pause::Returning(until @ None) = &mut self.pause {
                *until = Some(self.fabric.patience.returning(now));
            }
            // Addresses of guests that are away for a moment must not be forgotten; `resume` catches up.
            return;
        }
        let (tx, rx) = pairs.transmitter_and_receivers(at);
        tx.unblock();
        rx[at].end_starvation();
        self.fabric.rings_changed(at, rx, now);
    }
}

impl Fabric {
    fn rings_changed(&mut self, at: usize, rx: &mut [Receiver], now: u64) {
        self.stop_waiting(at, rx);
        let before = self.up;
        self.up = before & !(1 << at) | u64::from(rx[at].is_served()) << at;
        if self.up & 1 << at == 0 {
            // Frames for it are lost now. While the ring goes on, this stays: its frames must not wait longer.
            self.queues[at].note_room();
        }
        let port = self.queues[at].port();
        let pairs = &self.ports[usize::from(port)];
        let mask = all(pairs.len()) << pairs.start;
        if before & mask != 0 && self.up & mask == 0 {
            self.addresses.unplug(port, now);
        }
    }
}

/// Counts frames that were for `receiver`.
#[cold]
fn drop_frames(frames: u32, cause: DropCause, receiver: &Receiver, view: &mut View<'_>) {
    let drops = DropCounts::only(cause, frames as usize);
    view.tracer(receiver.guest()).dropped(receiver.index(), &drops);
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
