//! The round trips of probe packets: the stamps of the sender, the daemon and the responder, joined for each probe.
//!
//! Differences are taken only between stamps of one clock. The daemon and the agents in the host's namespaces share one
//! clock; the guest has another. A request from the host has these parts, in the order of time:
//!
//! ```text
//! host    host-send                 from sent to the datapath's queue, or to the daemon's first boundary
//! daemon  wakeup notice starved place publish (rx) signal; inject: to the start of the front end's thread
//! guest   guest-receive             from the guest's stack to its application
//!         guest-turn                to the answer's send
//!         guest-send                to the guest's driver
//! daemon  wakeup notice (tx) queued gather egress
//! host    host-receive              from the datapath to the application
//! ```
//!
//! A request from the guest has the same parts in another order, with `host-turn` in the middle. The rest is the
//! `remainder`, which neither clock measures: interrupt and driver on the way into the guest, the kick on the way out.
//! For every packet, all parts and the remainder add up to the round trip.
//!
//! The error of the remainder is [`Journey::bound_ns`], for three reasons. The guest may have had the packet as soon as
//! it was published, before we had signalled or its front end ran (a polling driver needs no interrupt). The answer may
//! have been there since the last poll that found nothing. The two clocks may drift apart by [`DRIFT`].

mod csv;
pub(crate) mod rows;
pub mod stamps;
mod text;

use std::collections::HashMap;

use burst_trace::attribution::{BurstSpan, Chosen};
use burst_trace::{BurstTimes, Direction, KernelStage, Record, Source, Stage};
use serde::Serialize;

use crate::round_trip::Initiator;
use crate::when::When;
use stamps::{ProbeId, Stamp, Stamps};

pub use csv::write_csv;
pub use text::{to_json, to_text};

/// Drift between two clocks: each may be slewed by 500 parts in a million (`adjtimex(2)`).
const DRIFT: f64 = 1e-3;
/// A burst this far outside its time was stamped by another clock, nanoseconds.
const MISPLACED_NS: i64 = 1_000_000;
/// Error of an anchor between the recorder's clock and the host's, nanoseconds.
const ANCHOR_NS: i64 = 500;

/// Where a part of the round trip takes place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// In the host's application and kernel, by the agent's stamps.
    Host,
    /// In the daemon, on the way to the guest.
    Rx,
    /// In the guest, by its agent's stamps.
    Guest,
    /// In the daemon, on the way from the guest.
    Tx,
    /// Between the stamps of two clocks.
    Between,
}

impl Side {
    /// Its name in tables and files.
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
    /// Where it takes place.
    pub side: Side,
    /// Its name; for a stage, the stage's name.
    pub stage: &'static str,
    /// K, D or G as in every report, or H for the agent on the host.
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
/// The time between the stamps of two clocks.
pub const REMAINDER: Part = part(Side::Between, "remainder", "-");

/// The daemon's parts on the way into the guest.
const INTO_GUEST: [Part; 7] = [
    RX_WAKEUP,
    own(Direction::Rx, Stage::Notice),
    own(Direction::Rx, Stage::Starved),
    own(Direction::Rx, Stage::Place),
    own(Direction::Rx, Stage::Publish),
    own(Direction::Rx, Stage::Signal),
    INJECT,
];
/// The daemon's parts on the way out of the guest.
const OUT_OF_GUEST: [Part; 5] = [
    TX_WAKEUP,
    own(Direction::Tx, Stage::Notice),
    own(Direction::Tx, Stage::Queued),
    own(Direction::Tx, Stage::Gather),
    own(Direction::Tx, Stage::Egress),
];

/// All parts of a round trip that `initiator` began, in the order of time, then the remainder.
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
    /// Its identifier.
    pub id: ProbeId,
    /// When it was sent, by its sender's clock, nanoseconds.
    pub sent_ns: u64,
    /// The round trip that its sender measured, nanoseconds.
    pub round_trip_ns: i64,
    /// The times of [`parts`], in nanoseconds; `None` if not measured. Their sum is the round trip.
    pub parts: Vec<Option<i64>>,
    /// The error of the remainder, in nanoseconds. The remainder can be negative by up to this amount.
    pub bound_ns: i64,
}

/// All probes of a run that came back.
#[derive(Clone, Debug)]
pub struct Journeys {
    /// The side that sent the requests.
    pub initiator: Initiator,
    /// Sorted by run and number.
    pub journeys: Vec<Journey>,
    /// Number of probes that came back but lack a record of one or both directions.
    pub unseen: usize,
    /// Number of probes that did not come back.
    pub lost: usize,
    /// Whether the responder's stamps are included.
    pub has_echo: bool,
    /// Number of joined probes whose answer, as seen from the `initiator`, was over before the request began.
    pub backwards: usize,
    /// Number of joined probes that the daemon saw outside the time between the host's stamps.
    pub misplaced: usize,
}

/// Stamps that do not fit the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// The other side sent the requests.
    #[error(
        "expected probes that the {} sent, found {backwards} of {joined} that the {} sent: give --initiator {}",
        initiator.name(), initiator.other().name(), initiator.other().name()
    )]
    Initiator {
        /// The side that was given.
        initiator: Initiator,
        /// Number of probes in the other order.
        backwards: usize,
        /// Number of all joined probes.
        joined: usize,
    },
    /// The host's stamps are of another clock than the records.
    #[error(
        "expected stamps of the host by the daemon's clock, found {misplaced} of {joined} probes outside the time between \
         them: run the host's agent on the daemon's machine, and check --initiator"
    )]
    Clock {
        /// Number of probes outside that time.
        misplaced: usize,
        /// Number of all joined probes.
        joined: usize,
    },
}

impl Journeys {
    /// Joins the stamps of the sender, and those of the responder (`echo`) if given, with a recorder's probe records.
    #[must_use]
    pub fn join(
        source: &Source,
        initiator: Initiator,
        sender: &Stamps,
        echo: Option<&Stamps>,
    ) -> Self {
        let seen = Seen::read(source);
        let mut joined = Self {
            initiator,
            journeys: Vec::new(),
            unseen: 0,
            lost: 0,
            has_echo: echo.is_some(),
            backwards: 0,
            misplaced: 0,
        };
        for (&id, stamp) in &sender.probes {
            let Some(received) = stamp.received else {
                joined.lost += 1;
                continue;
            };
            let Some(bursts) = seen.bursts_of(id) else {
                joined.unseen += 1;
                continue;
            };
            let echo = echo.and_then(|echo| echo.probes.get(&id));
            joined.backwards += usize::from(bursts.is_backwards(initiator));
            joined.misplaced += usize::from(bursts.is_misplaced(initiator, stamp, received, echo));
            joined.journeys.push(journey(id, initiator, stamp, received, echo, &bursts));
        }
        joined.journeys.sort_unstable_by_key(|journey| journey.id);
        joined
    }

    /// Checks that most probes crossed the daemon in the order, and between the stamps, that the roles demand.
    ///
    /// # Errors
    /// When they did not: a role or a file is the wrong one.
    pub fn check(&self) -> Result<(), Misfit> {
        let &Self { initiator, backwards, misplaced, ref journeys, .. } = self;
        let joined = journeys.len();
        if backwards * 2 > joined {
            return Err(Misfit::Initiator { initiator, backwards, joined });
        }
        if misplaced * 2 > joined {
            return Err(Misfit::Clock { misplaced, joined });
        }
        Ok(())
    }
}

/// A probe's two bursts.
#[derive(Clone, Debug)]
struct ProbeBursts {
    rx: Burst,
    tx: Burst,
    /// Time from the last boundary until the front end's thread runs, in nanoseconds, if that thread had to be woken
    /// up.
    inject: Option<i64>,
}

impl ProbeBursts {
    /// Whether the answer's burst was over before the request's began. One wake-up may serve both, so they may overlap.
    fn is_backwards(&self, initiator: Initiator) -> bool {
        let (request, answer) = match initiator {
            Initiator::Host => (&self.rx, &self.tx),
            Initiator::Guest => (&self.tx, &self.rx),
        };
        answer.times.last < request.times.first
    }

    /// Whether a burst lies outside the time between the stamps of the agent on the host.
    fn is_misplaced(
        &self,
        initiator: Initiator,
        sender: &Stamp,
        received: u64,
        echo: Option<&Stamp>,
    ) -> bool {
        let is_before = |early: i64, late: i64| early <= late.saturating_add(MISPLACED_NS);
        let last = |burst: &Burst| burst.boundary(burst.times.direction().stages().len());
        match (initiator, echo) {
            (Initiator::Host, _) => {
                !is_before(sender.sent.cast_signed(), last(&self.rx))
                    || !is_before(self.tx.first, received.cast_signed())
            }
            (Initiator::Guest, Some(&Stamp { sent, received: Some(received), .. })) => {
                !is_before(self.tx.first, received.cast_signed())
                    || !is_before(sent.cast_signed(), last(&self.rx))
            }
            (Initiator::Guest, _) => false,
        }
    }
}

/// A burst that carried a probe, in nanoseconds of the host's clock.
#[derive(Clone, Copy, Debug)]
struct Burst {
    times: BurstTimes,
    /// The first boundary.
    first: i64,
    /// When the frame arrived, or when the worker was woken up for it, if known.
    arrived: Option<i64>,
    ns_per_tick: f64,
}

impl Burst {
    /// The time in a stage. Boundaries are rounded, not stages, so the stages add up.
    fn stage(&self, stage: Stage) -> i64 {
        let at = self.position(stage);
        self.boundary(at + 1).saturating_sub(self.boundary(at))
    }

    /// The boundary that ends a stage.
    fn end_of(&self, stage: Stage) -> i64 {
        self.boundary(self.position(stage) + 1)
    }

    fn position(&self, stage: Stage) -> usize {
        self.times.direction().position(stage).expect("a stage of the burst's direction")
    }

    /// The boundary before the stage with this index.
    fn boundary(&self, at: usize) -> i64 {
        let ticks = self.times.boundary(at) - self.times.first;
        self.first.saturating_add((ticks as f64 * self.ns_per_tick).round() as i64)
    }
}

/// The probes of a recorder, with their bursts.
struct Seen {
    when: When,
    ns_per_tick: f64,
    /// Each probe's burst in each direction, by its index in `bursts`.
    probes: HashMap<(ProbeId, Direction), usize>,
    bursts: Vec<BurstTimes>,
    /// The host kernel's spans of each burst.
    spans: Vec<Vec<BurstSpan>>,
}

impl Seen {
    /// Reads the records twice: first the bursts that carried probes, then their kernel spans.
    fn read(source: &Source) -> Self {
        let (mut probes, mut bursts) = (HashMap::new(), Vec::new());
        // Several probes can be in one burst. The burst is stored once, so that they share its spans.
        let mut known = HashMap::new();
        source.read(|record| {
            let Record::Probe(probe) = record else { return };
            let (id, times) = (ProbeId { run: probe.run, sequence: probe.sequence }, probe.times);
            let burst = *known.entry((times.ring, times.first, times.last)).or_insert_with(|| {
                bursts.push(times);
                bursts.len() - 1
            });
            probes.entry((id, times.direction())).or_insert(burst);
        });
        let mut chosen = Chosen::new(bursts.iter().copied(), source.queue_pairs());
        source.read(|record| chosen.add(record));
        let ns_per_tick = 1e9 / source.ticks_per_second() as f64;
        Self { when: When::of(source), ns_per_tick, probes, bursts, spans: chosen.finish() }
    }

    fn bursts_of(&self, id: ProbeId) -> Option<ProbeBursts> {
        let (rx, spans) = self.burst(id, Direction::Rx)?;
        let (tx, _) = self.burst(id, Direction::Tx)?;
        let ran = spans.iter().find(|span| span.stage == KernelStage::Inject);
        let signalled = self.ns(rx.times.last);
        let inject = ran.map(|span| self.ns(span.end).saturating_sub(signalled).max(0));
        Some(ProbeBursts { rx, tx, inject })
    }

    fn burst(&self, id: ProbeId, direction: Direction) -> Option<(Burst, &[BurstSpan])> {
        let &index = self.probes.get(&(id, direction))?;
        let (times, spans) = (self.bursts[index], &self.spans[index]);
        let (first, ns_per_tick) = (self.ns(times.first), self.ns_per_tick);
        let woken = spans.iter().find(|span| span.stage == KernelStage::Wakeup);
        let waited = |span: &BurstSpan| ((span.end - span.start) as f64 * ns_per_tick).round();
        let arrived = woken.map(|span| first.saturating_sub(waited(span) as i64));
        Some((Burst { times, first, arrived, ns_per_tick }, spans))
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
    bursts: &ProbeBursts,
) -> Journey {
    let ProbeBursts { rx, tx, inject } = bursts;
    let sent = Some(sender.sent);
    let round_trip_ns = received.cast_signed().saturating_sub(sender.sent.cast_signed());
    let mut measured = HashMap::new();
    let mut set = |part: Part, ns: Option<i64>| {
        if let Some(ns) = ns {
            measured.insert(part, ns);
        }
    };
    // Times at which the probe entered and left the daemon, by the host's clock.
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
                // Without the responder's stamps, the host's part is known only as a whole.
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
