//! Probe packets joined end to end: what the sender, the daemon and whoever answers stamped of the same packet.
//!
//! A difference is only taken between stamps of one clock. The host has one, for the daemon and for agents in its
//! namespaces; the guest has another. For a request of the host's, in the order of time:
//!
//! ```text
//! host    host-send                 sent .. in the datapath's queue, or the daemon's first boundary
//! daemon  wakeup notice starved place publish (rx), signal; inject: .. the front end's thread ran
//! guest   guest-receive             the guest's stack was given it .. its application had it
//!         guest-turn                .. it sent the answer
//!         guest-send                .. the guest's driver was given that
//! daemon  wakeup notice (tx) queued gather egress
//! host    host-receive              the datapath took the answer .. the application had it
//! ```
//!
//! For a request of the guest's the same parts stand in another order, with `host-turn` between. What is measured of
//! neither clock's is the `remainder`: interrupt and driver on the way into the guest, the kick on the way out. All
//! parts and the remainder add up to the round trip, for every packet.
//!
//! The remainder is known to [`Journey::bound_ns`]: the guest may have had the packet as soon as it was published, while
//! we still signalled, or its front end was still to run (a driver that polls needs no interrupt); the answer may have
//! been there since the look before the one that saw it; and the two clocks may run apart by [`DRIFT`].

mod csv;
pub(crate) mod rows;
pub mod stamps;
mod text;

use std::collections::HashMap;

use burst_trace::{BurstRecord, Direction, KernelStage, RecordKind, Source, Stage};
use serde::Serialize;

use crate::round_trip::Initiator;
use crate::when::When;
use stamps::{ProbeId, Stamp, Stamps};

pub use csv::write_csv;
pub use text::{to_json, to_text};

/// How far two clocks may run apart: each may be slewed by 500 parts in a million (`adjtimex(2)`).
const DRIFT: f64 = 1e-3;
/// How exactly an instant of the recorder's clock is known on the host's, nanoseconds.
const ANCHOR_NS: i64 = 500;

/// Who spends a part of the round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The application and kernel of the host, by the agent's stamps.
    Host,
    /// The daemon on the way to the guest.
    Rx,
    /// The guest, by its agent's stamps.
    Guest,
    /// The daemon on the way from the guest.
    Tx,
    /// What lies between two clocks.
    Between,
}

impl Side {
    /// As tables and files call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Rx => "rx",
            Self::Guest => "guest",
            Self::Tx => "tx",
            Self::Between => "between",
        }
    }
}

/// A part of a round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Part {
    /// Whose it is.
    pub side: Side,
    /// Its name in STAGE tables.
    pub stage: &'static str,
    /// K, D or G, as in every report; H for the agent on the host.
    pub tier: &'static str,
}

const fn part(side: Side, stage: &'static str, tier: &'static str) -> Part {
    Part { side, stage, tier }
}

const fn own(direction: Direction, stage: Stage) -> Part {
    let side = match direction {
        Direction::Rx => Side::Rx,
        Direction::Tx => Side::Tx,
    };
    part(side, stage.name(), "D")
}

const HOST_SEND: Part = part(Side::Host, "host-send", "H");
const HOST_TURN: Part = part(Side::Host, "host-turn", "H");
const HOST_RECEIVE: Part = part(Side::Host, "host-receive", "H");
const GUEST_SEND: Part = part(Side::Guest, "guest-send", "G");
const GUEST_TURN: Part = part(Side::Guest, "guest-turn", "G");
const GUEST_RECEIVE: Part = part(Side::Guest, "guest-receive", "G");
const RX_WAKEUP: Part = part(Side::Rx, "wakeup", "K");
const TX_WAKEUP: Part = part(Side::Tx, "wakeup", "K");
const INJECT: Part = part(Side::Rx, "inject", "K");
/// What lies between the stamps of two clocks.
pub const REMAINDER: Part = part(Side::Between, "remainder", "-");

/// Our part of the way into the guest.
const INTO_GUEST: [Part; 7] = [
    RX_WAKEUP,
    own(Direction::Rx, Stage::Notice),
    own(Direction::Rx, Stage::Starved),
    own(Direction::Rx, Stage::Place),
    own(Direction::Rx, Stage::Publish),
    own(Direction::Rx, Stage::Signal),
    INJECT,
];
/// And out of it.
const OUT_OF_GUEST: [Part; 5] = [
    TX_WAKEUP,
    own(Direction::Tx, Stage::Notice),
    own(Direction::Tx, Stage::Queued),
    own(Direction::Tx, Stage::Gather),
    own(Direction::Tx, Stage::Egress),
];

/// All parts of a round trip that `initiator` began, in the order of time, the remainder last.
#[must_use]
pub fn parts(initiator: Initiator) -> Vec<Part> {
    let mut parts = Vec::new();
    match initiator {
        Initiator::Host => {
            parts.push(HOST_SEND);
            parts.extend(INTO_GUEST);
            parts.extend([GUEST_RECEIVE, GUEST_TURN, GUEST_SEND]);
            parts.extend(OUT_OF_GUEST);
            parts.push(HOST_RECEIVE);
        }
        Initiator::Guest => {
            parts.push(GUEST_SEND);
            parts.extend(OUT_OF_GUEST);
            parts.extend([HOST_RECEIVE, HOST_TURN, HOST_SEND]);
            parts.extend(INTO_GUEST);
            parts.push(GUEST_RECEIVE);
        }
    }
    parts.push(REMAINDER);
    parts
}

/// One probe's round trip.
#[derive(Clone, Debug, PartialEq)]
pub struct Journey {
    /// Which probe.
    pub id: ProbeId,
    /// When it was sent, by its sender's clock, nanoseconds.
    pub sent_ns: u64,
    /// What its sender measured, nanoseconds.
    pub round_trip_ns: i64,
    /// What each of [`parts`] took, nanoseconds, none where it was not measured. Their sum is the round trip.
    pub parts: Vec<Option<i64>>,
    /// The remainder is not known more exactly than this, nanoseconds: it may be as far below 0.
    pub bound_ns: i64,
}

/// All probes of a run that came back.
#[derive(Clone, Debug)]
pub struct Journeys {
    /// Where the requests came from.
    pub initiator: Initiator,
    /// In the order of their numbers.
    pub journeys: Vec<Journey>,
    /// Probes that came back, of which the recorder does not hold both ways any more, or never saw them.
    pub unseen: usize,
    /// Probes that did not come back.
    pub lost: usize,
    /// Whether there are stamps of whoever answered.
    pub has_echo: bool,
}

impl Journeys {
    /// Joins what `sender` stamped, and perhaps `echo`, with the probe records of a recorder.
    #[must_use]
    pub fn join(
        source: &Source,
        initiator: Initiator,
        sender: &Stamps,
        echo: Option<&Stamps>,
    ) -> Self {
        let seen = Seen::read(source);
        let mut joined =
            Self { initiator, journeys: Vec::new(), unseen: 0, lost: 0, has_echo: echo.is_some() };
        for (&id, stamp) in &sender.probes {
            let Some(received) = stamp.received else {
                joined.lost += 1;
                continue;
            };
            let Some(way) = seen.way(id) else {
                joined.unseen += 1;
                continue;
            };
            let echo = echo.and_then(|echo| echo.probes.get(&id));
            joined.journeys.push(journey(id, initiator, stamp, received, echo, &way));
        }
        joined.journeys.sort_unstable_by_key(|journey| journey.id);
        joined
    }
}

/// The daemon's part, nanoseconds of the host's clock.
#[derive(Clone, Debug)]
struct Way {
    rx: Burst,
    tx: Burst,
    /// From our last boundary until the front end's thread ran, if it had to be woken up and that was seen.
    inject: Option<i64>,
}

/// A burst that carried a probe.
#[derive(Clone, Copy, Debug)]
struct Burst {
    record: BurstRecord,
    /// The first boundary.
    first: i64,
    /// When the frame came, or the worker was woken up for it, if it is known.
    arrived: Option<i64>,
    ns_per_tick: f64,
}

impl Burst {
    /// What a stage took. Boundaries are rounded, not stages: so the stages telescope.
    fn stage(&self, stage: Stage) -> i64 {
        let at = self.place(stage);
        self.boundary(at + 1).saturating_sub(self.boundary(at))
    }

    /// The boundary that ends a stage.
    fn end_of(&self, stage: Stage) -> i64 {
        self.boundary(self.place(stage) + 1)
    }

    fn place(&self, stage: Stage) -> usize {
        let stages = self.record.direction().stages();
        stages.iter().position(|it| *it == stage).expect("a stage of the burst's direction")
    }

    /// The boundary before stage number `at`.
    fn boundary(&self, at: usize) -> i64 {
        let ticks: u64 = self.record.stages[..at].iter().sum();
        self.first.saturating_add((ticks as f64 * self.ns_per_tick).round() as i64)
    }
}

/// What a recorder knows of probes.
struct Seen {
    when: When,
    ns_per_tick: f64,
    bursts: HashMap<(ProbeId, Direction), BurstRecord>,
    /// Ticks at which each worker's thread was woken up, in order.
    wakeups: HashMap<u32, Vec<u64>>,
    /// Ticks at which a front end was woken up to interrupt its guest, and at which it ran, in order.
    injects: Vec<(u64, u64)>,
    /// Ticks at which each worker's bursts begin, in order.
    firsts: HashMap<u32, Vec<u64>>,
}

impl Seen {
    fn read(source: &Source) -> Self {
        let mut bursts = HashMap::new();
        let mut wakeups: HashMap<u32, Vec<u64>> = HashMap::new();
        let mut firsts: HashMap<u32, Vec<u64>> = HashMap::new();
        let mut injects = Vec::new();
        source.read(|record| {
            if record.kind == RecordKind::Probe as u8 {
                let id = ProbeId { run: record.bytes, sequence: record.sequence };
                bursts.entry((id, record.direction())).or_insert(*record);
            } else if record.kernel_stage() == Some(KernelStage::Wakeup) {
                wakeups.entry(record.bytes).or_default().push(record.first);
            } else if record.kernel_stage() == Some(KernelStage::Inject) {
                injects.push((record.first, record.last));
            } else if record.kind == RecordKind::Burst as u8 {
                firsts.entry(record.worker.into()).or_default().push(record.first);
            }
        });
        wakeups.values_mut().chain(firsts.values_mut()).for_each(|all| all.sort_unstable());
        injects.sort_unstable();
        let ns_per_tick = 1e9 / source.ticks_per_second() as f64;
        Self { when: When::of(source), ns_per_tick, bursts, wakeups, injects, firsts }
    }

    fn way(&self, id: ProbeId) -> Option<Way> {
        let rx = self.burst(id, Direction::Rx)?;
        Some(Way { rx, tx: self.burst(id, Direction::Tx)?, inject: self.inject(&rx) })
    }

    fn burst(&self, id: ProbeId, direction: Direction) -> Option<Burst> {
        let record = *self.bursts.get(&(id, direction))?;
        let first = self.ns(record.first);
        let waited = |ticks: u32| (f64::from(ticks) * self.ns_per_tick).round() as i64;
        let arrived = record.wakeup.map(|ticks| first.saturating_sub(waited(ticks)));
        let arrived = arrived.or_else(|| self.woken(&record));
        Some(Burst { record, first, arrived, ns_per_tick: self.ns_per_tick })
    }

    /// From a burst's last boundary until the front end's thread ran that was woken up while we signalled.
    fn inject(&self, rx: &Burst) -> Option<i64> {
        let record = &rx.record;
        let signal: u64 = record.stages[Direction::Rx.stages().len() - 1];
        let from =
            self.injects.partition_point(|&(woken, _)| woken < record.last.saturating_sub(signal));
        let &(woken, ran) = self.injects.get(from)?;
        (woken <= record.last).then(|| self.ns(ran).saturating_sub(self.ns(record.last)).max(0))
    }

    /// When the worker's thread was woken up for a burst: the latest time before it, with no other burst in between.
    fn woken(&self, record: &BurstRecord) -> Option<i64> {
        let worker = u32::from(record.worker);
        let is_polled = record.flags & BurstRecord::POLLED != 0;
        let all = self.wakeups.get(&worker).filter(|_| !is_polled)?;
        let behind = all.partition_point(|&ticks| ticks <= record.first);
        let woken = all[behind.checked_sub(1)?];
        let firsts = self.firsts.get(&worker).map_or(&[][..], Vec::as_slice);
        let next = firsts.get(firsts.partition_point(|&first| first < woken));
        next.is_none_or(|&next| next >= record.first).then(|| self.ns(woken))
    }

    fn ns(&self, ticks: u64) -> i64 {
        self.when.monotonic_ns(ticks).cast_signed()
    }
}

fn between(from: Option<u64>, to: Option<u64>) -> Option<i64> {
    Some(to?.cast_signed().saturating_sub(from?.cast_signed()))
}

fn journey(
    id: ProbeId,
    initiator: Initiator,
    sender: &Stamp,
    received: u64,
    echo: Option<&Stamp>,
    way: &Way,
) -> Journey {
    let Way { rx, tx, inject } = way;
    let sent = Some(sender.sent);
    let round_trip_ns = received.cast_signed().saturating_sub(sender.sent.cast_signed());
    let mut measured = HashMap::new();
    let mut set = |part: Part, ns: Option<i64>| {
        if let Some(ns) = ns {
            measured.insert(part, ns);
        }
    };
    // On the host's clock: into the daemon, and out of it.
    let came = rx.arrived.unwrap_or(rx.first);
    let left = tx.end_of(Stage::Egress);
    let host = |ns: u64| ns.cast_signed();
    match initiator {
        Initiator::Host => {
            set(HOST_SEND, Some(came.saturating_sub(host(sender.sent))));
            set(HOST_RECEIVE, Some(host(received).saturating_sub(left)));
            let at = echo.copied().unwrap_or_default();
            set(GUEST_RECEIVE, between(at.received_kernel, at.received));
            set(GUEST_TURN, echo.and_then(|at| between(at.received, Some(at.sent))));
            set(GUEST_SEND, echo.and_then(|at| between(Some(at.sent), at.sent_kernel)));
        }
        Initiator::Guest => {
            set(GUEST_SEND, between(sent, sender.sent_kernel));
            set(GUEST_RECEIVE, between(sender.received_kernel, Some(received)));
            match echo.and_then(|at| at.received.map(|received| (received, at.sent))) {
                Some((received, sent)) => {
                    set(HOST_RECEIVE, Some(host(received).saturating_sub(left)));
                    set(HOST_TURN, Some(host(sent).saturating_sub(host(received))));
                    set(HOST_SEND, Some(came.saturating_sub(host(sent))));
                }
                // The host's part is known as a whole.
                None => set(HOST_TURN, Some(came.saturating_sub(left))),
            }
        }
    }
    set(RX_WAKEUP, rx.arrived.map(|arrived| rx.first.saturating_sub(arrived)));
    set(INJECT, *inject);
    set(TX_WAKEUP, tx.arrived.map(|woken| tx.first.saturating_sub(woken)));
    for (burst, part) in
        INTO_GUEST.iter().map(|part| (rx, part)).chain(OUT_OF_GUEST.iter().map(|part| (tx, part)))
    {
        if let Some(stage) = Stage::from_name(part.stage) {
            set(*part, Some(burst.stage(stage)));
        }
    }
    let known = measured.values().fold(0, |sum: i64, part| sum.saturating_add(*part));
    measured.insert(REMAINDER, round_trip_ns.saturating_sub(known));
    let drift = (round_trip_ns as f64 * DRIFT).ceil() as i64;
    let overlap =
        [rx.stage(Stage::Signal), inject.unwrap_or(0), tx.stage(Stage::Notice), ANCHOR_NS];
    let bound_ns = overlap.iter().fold(drift, |sum, part| sum.saturating_add(*part));
    let parts = parts(initiator).iter().map(|part| measured.get(part).copied()).collect();
    Journey { id, sent_ns: sender.sent, round_trip_ns, parts, bound_ns }
}
