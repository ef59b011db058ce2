//! The parts of a round trip.

use burst_trace::{Direction, Stage};
use serde::Serialize;

use crate::round_trip::Initiator;

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

pub(super) const HOST_SEND: Part = part(Side::Host, "host-send", "H");
pub(super) const HOST_TURN: Part = part(Side::Host, "host-turn", "H");
pub(super) const HOST_RECEIVE: Part = part(Side::Host, "host-receive", "H");
pub(super) const GUEST_SEND: Part = part(Side::Guest, "guest-send", "G");
pub(super) const GUEST_TURN: Part = part(Side::Guest, "guest-turn", "G");
/// From the device's interrupt to the network softirq. This and the next three only with `--guest-stages`.
pub(super) const GUEST_SOFTIRQ: Part = part(Side::Guest, "guest-softirq", "G");
/// Until the driver passes the packet to the stack.
pub(super) const GUEST_DRIVER: Part = part(Side::Guest, "guest-driver", "G");
/// Until the stack wakes up the application's thread.
pub(super) const GUEST_STACK: Part = part(Side::Guest, "guest-stack", "G");
/// Until that thread runs.
pub(super) const GUEST_WAKEUP: Part = part(Side::Guest, "guest-wakeup", "G");
/// Until the application has it.
pub(super) const GUEST_RECEIVE: Part = part(Side::Guest, "guest-receive", "G");
pub(super) const RX_WAKEUP: Part = part(Side::Rx, "wakeup", "K");
pub(super) const RX_NOTICE: Part = own(Direction::Rx, Stage::Notice);
pub(super) const RX_PUBLISH: Part = own(Direction::Rx, Stage::Publish);
pub(super) const RX_SIGNAL: Part = own(Direction::Rx, Stage::Signal);
pub(super) const TX_WAKEUP: Part = part(Side::Tx, "wakeup", "K");
pub(super) const TX_NOTICE: Part = own(Direction::Tx, Stage::Notice);
pub(super) const TX_EGRESS: Part = own(Direction::Tx, Stage::Egress);
pub(super) const INJECT: Part = part(Side::Rx, "inject", "K");
/// From the daemon's last boundary to the guest's first stamp: interrupt and driver, or with `--guest-stages` the interrupt
/// alone. Known if both clocks are known as one.
pub const GUEST_INTERRUPT: Part = part(Side::Between, "guest-interrupt", "-");
/// From the guest's last stamp to the daemon's first boundary: kick and notice. Known if both clocks are known as one.
pub const GUEST_KICK: Part = part(Side::Between, "guest-kick", "-");
/// The time between the stamps of two clocks.
pub const REMAINDER: Part = part(Side::Between, "remainder", "-");

/// The daemon's parts on the way into the guest.
pub(super) const INTO_GUEST: [Part; 8] = [
    RX_WAKEUP,
    RX_NOTICE,
    own(Direction::Rx, Stage::Limited),
    own(Direction::Rx, Stage::Starved),
    own(Direction::Rx, Stage::Place),
    RX_PUBLISH,
    RX_SIGNAL,
    INJECT,
];
/// The daemon's parts on the way out of the guest.
pub(super) const OUT_OF_GUEST: [Part; 6] = [
    TX_WAKEUP,
    TX_NOTICE,
    own(Direction::Tx, Stage::Queued),
    own(Direction::Tx, Stage::Limited),
    own(Direction::Tx, Stage::Gather),
    TX_EGRESS,
];

/// What is known of a run, and so which parts its round trips have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// The clocks are known as one: both ways through the guest's driver are parts. The remainder is that of round trips that
    /// have one.
    pub one_clock: bool,
    /// The guest's kernel was to say how it receives each probe.
    pub guest_stages: bool,
}

/// All parts of a round trip that `initiator` began, in the order of time, then the remainder: if the guest's clock and the
/// host's are two, and without `--guest-stages`.
#[must_use]
pub fn parts(initiator: Initiator) -> Vec<Part> {
    parts_of(initiator, Known::default())
}

/// All parts, in the order of time, then the remainder.
pub(super) fn parts_of(initiator: Initiator, known: Known) -> Vec<Part> {
    let crossing = |part: Part| known.one_clock.then_some(part);
    let receive: &[Part] = if known.guest_stages {
        &[GUEST_SOFTIRQ, GUEST_DRIVER, GUEST_STACK, GUEST_WAKEUP, GUEST_RECEIVE]
    } else {
        &[GUEST_RECEIVE]
    };
    let mut parts = Vec::new();
    match initiator {
        Initiator::Host => {
            parts.push(HOST_SEND);
            parts.extend(INTO_GUEST);
            parts.extend(crossing(GUEST_INTERRUPT));
            parts.extend(receive);
            parts.extend([GUEST_TURN, GUEST_SEND]);
            parts.extend(crossing(GUEST_KICK));
            parts.extend(OUT_OF_GUEST);
            parts.push(HOST_RECEIVE);
        }
        Initiator::Guest => {
            parts.push(GUEST_SEND);
            parts.extend(crossing(GUEST_KICK));
            parts.extend(OUT_OF_GUEST);
            parts.extend([HOST_RECEIVE, HOST_TURN, HOST_SEND]);
            parts.extend(INTO_GUEST);
            parts.extend(crossing(GUEST_INTERRUPT));
            parts.extend(receive);
        }
    }
    parts.push(REMAINDER);
    parts
}
