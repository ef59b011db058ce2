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
//! A request from the guest has the same parts in another order, with `host-turn` in the middle. Between host and guest are
//! interrupt and driver on the way in, and the kick on the way out, which no clock measures alone.
//!
//! If the guest's agent has `--guest-stages`, `guest-receive` is what is left after these, each of which ends where the next
//! begins: `guest-softirq` (from the device's interrupt to the network softirq), `guest-driver` (until the driver passes the
//! packet to the stack), `guest-stack` (until the stack wakes up the application's thread) and `guest-wakeup` (until that
//! thread runs). A probe whose application did not sleep has no wake-up, and one that found the driver polling no interrupt.
//!
//! All probes of a run bound the offset between both clocks ([`one_clock`]). With it, the time on the way in is
//! `guest-interrupt` and the time on the way out is `guest-kick`, each with the error of the offset. If the offset is not
//! bounded, both are the `remainder` of the round trip. For every packet, all parts add up to the round trip, and none is
//! below zero ([`trip`]).
//!
//! A sender on a far host has a third clock ([`Journeys::join_far`]). Then `host-send` ends at its driver and `host-receive`
//! begins there; the wire and the receiving host's kernel are in the remainder.
//!
//! The error of what lies between two clocks is [`Journey::bound_ns`]. With a bounded offset it is half the width of the
//! interval in which the offset lies. Otherwise there are three reasons. The guest may have had the packet as soon as it was
//! published, before we had signalled or its front end ran (a polling driver needs no interrupt). The answer may have been
//! there since the last poll that found nothing. The two clocks may drift apart by [`DRIFT`].

mod clock_file;
mod csv;
mod guest_clock;
mod host_clocks;
mod known_clock;
mod one_clock;
mod one_way;
mod part;
pub(crate) mod rows;
mod seen;
pub mod stamps;
mod text;
mod trip;

use burst_trace::Source;

use crate::round_trip::Initiator;
use guest_clock::Related;
use one_clock::Bounds;
use part::{Known, parts_of};
use seen::Seen;
use stamps::{GuestStages, ProbeId, Stamps};
use trip::Probe;

pub use clock_file::ClockFileError;
pub use csv::write_csv;
pub use guest_clock::GuestClock;
pub use host_clocks::{GuestCounter, HostClocks};
pub use known_clock::{ClockBound, ClockBounds, KnownClock, Means, Relation};
pub(crate) use one_way::OneWays;
pub use part::{GUEST_INTERRUPT, GUEST_KICK, Part, REMAINDER, Side, parts};
pub use text::{to_json, to_text};

/// Drift between two clocks: each may be slewed by 500 parts in a million (`adjtimex(2)`).
const DRIFT: f64 = 1e-3;
/// Error of an anchor between the recorder's clock and the host's, nanoseconds.
const ANCHOR_NS: i64 = 500;

/// One probe's round trip.
#[derive(Clone, Debug, PartialEq)]
pub struct Journey {
    /// Its identifier.
    pub id: ProbeId,
    /// When it was sent, by its sender's clock, nanoseconds.
    pub sent_ns: u64,
    /// The round trip that its sender measured, nanoseconds.
    pub round_trip_ns: i64,
    /// The times of [`Journeys::parts`], in nanoseconds; `None` if not measured. None is below zero, and their sum is the
    /// round trip.
    pub parts: Vec<Option<i64>>,
    /// The error of what lies between two clocks, in nanoseconds: of the remainder, or of each of the two parts in its place.
    pub bound_ns: i64,
    /// Both ways; `None` if the clocks are not known as one.
    pub one_way: Option<OneWay>,
}

/// A probe's two ways, each from the application that sent it to the application that received it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OneWay {
    /// To the guest, nanoseconds.
    pub to_guest_ns: i64,
    /// From the guest, nanoseconds.
    pub from_guest_ns: i64,
    /// By how much each of them may be wrong, nanoseconds.
    pub bound_ns: i64,
}

/// All probes of a run that came back.
#[derive(Clone, Debug)]
pub struct Journeys {
    /// The side that sent the requests.
    pub initiator: Initiator,
    /// The parts of each round trip, in the order of time; the remainder, if there is one, last.
    pub parts: Vec<Part>,
    /// Sorted by run and number.
    pub journeys: Vec<Journey>,
    /// How the guest's clock relates to the host's, if the probes bound that.
    pub clock: Option<GuestClock>,
    /// What did not fit when the clocks were related.
    pub clock_note: Option<&'static str>,
    /// Whether the guest's kernel said how it received each probe.
    pub guest_stages: GuestStages,
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
    /// Joins the stamps of the sender, and those of the responder (`echo`) if given, with a recorder's probe records. `known`:
    /// what is known of the guest's clock beside them.
    #[must_use]
    pub fn join(
        source: &Source,
        initiator: Initiator,
        sender: &Stamps,
        echo: Option<&Stamps>,
        known: &KnownClock,
    ) -> Self {
        Self::join_by(Clock::Daemons, source, initiator, sender, echo, known)
    }

    /// Joins the stamps of a sender on a far host, or of another clock for another reason, as [`Journeys::join`] does.
    #[must_use]
    pub fn join_far(
        source: &Source,
        sender: &Stamps,
        echo: Option<&Stamps>,
        known: &KnownClock,
    ) -> Self {
        Self::join_by(Clock::Far, source, Initiator::Host, sender, echo, known)
    }

    fn join_by(
        clock: Clock,
        source: &Source,
        initiator: Initiator,
        sender: &Stamps,
        echo: Option<&Stamps>,
        known: &KnownClock,
    ) -> Self {
        let seen = &Seen::read(source);
        let of_guest = match initiator {
            Initiator::Host => echo,
            Initiator::Guest => Some(sender),
        };
        let kernel_error_ns = of_guest.and_then(|stamps| stamps.kernel_error_ns);
        // Made twice, so that they are not kept.
        let probes = || {
            sender.probes.iter().filter_map(move |(&id, stamp)| {
                let (received, bursts) = (stamp.received?, seen.bursts_of(id)?);
                let echo = echo.and_then(|echo| echo.probes.get(&id));
                Some(Probe {
                    id,
                    initiator,
                    clock,
                    sender: stamp,
                    received,
                    echo,
                    kernel_error_ns,
                    bursts,
                })
            })
        };
        let mut bounds = Bounds::default();
        probes().for_each(|probe| probe.bound(&mut bounds));
        // Records of several hosts are on the clock of one of them, which the others have by their times of the day.
        let is_joined = matches!(source, Source::Joined(_));
        let recorder_ns = source.anchor_error_ns().filter(|_| !is_joined);
        let related = Related::by(&bounds, known, recorder_ns);
        let offset = related.offset();
        let guest_stages = of_guest.map(|stamps| stamps.guest_stages.clone()).unwrap_or_default();
        let parts = parts_of(
            initiator,
            Known {
                one_clock: offset.is_some(),
                guest_stages: guest_stages != GuestStages::NotWanted,
            },
        );
        let lost = sender.probes.values().filter(|stamp| stamp.received.is_none()).count();
        let (mut backwards, mut misplaced) = (0, 0);
        let (mut journeys, mut widths) = (Vec::new(), Vec::new());
        for probe in probes() {
            backwards += usize::from(probe.bursts.is_backwards(initiator));
            misplaced += usize::from(probe.is_misplaced());
            widths.extend(offset.into_iter().flat_map(|it| probe.offsets(it)).map(|it| it.width()));
            journeys.push(probe.journey(offset, &parts));
        }
        journeys.sort_unstable_by_key(|journey| journey.id);
        let mut joined = Self {
            initiator,
            parts,
            unseen: sender.probes.len() - lost - journeys.len(),
            journeys,
            clock: related.shown(widths),
            clock_note: related.note,
            guest_stages,
            lost,
            has_echo: echo.is_some(),
            backwards,
            misplaced,
        };
        joined.drop_empty_remainder();
        joined
    }

    /// If the clocks are known as one, there is a remainder only in round trips that lack the guest's stamps.
    fn drop_empty_remainder(&mut self) {
        let is_empty = |journey: &Journey| journey.parts.last().is_none_or(Option::is_none);
        if self.clock.is_some() && self.journeys.iter().all(is_empty) {
            self.parts.pop();
            for journey in &mut self.journeys {
                journey.parts.pop();
            }
        }
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

/// Whose clock the sender's stamps are of.
#[derive(Clone, Copy, Debug)]
enum Clock {
    /// The daemon's.
    Daemons,
    /// That of another host.
    Far,
}
