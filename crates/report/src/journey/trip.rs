//! The parts of one probe's round trip, boundary after boundary.
//!
//! A boundary of the daemon may lie outside of the probe's own time. The worker may have been woken up for something else, or
//! may have looked in vain, before the probe was sent: the probe waits from when it was sent. The guest may have the probe
//! before its signal is written: the rest of the signal is not part of the probe's way. So each part begins where the one
//! before it ended, and ends at the next stamp at the latest. No part is below zero, and the parts add up to the round trip.

use std::collections::HashMap;

use burst_trace::Stage;

use super::guest_clock::GuestTimes;
use super::one_clock::{Bounds, Interval, Offset};
use super::part::{
    GUEST_DRIVER, GUEST_INTERRUPT, GUEST_KICK, GUEST_RECEIVE, GUEST_SEND, GUEST_SOFTIRQ,
    GUEST_STACK, GUEST_TURN, GUEST_WAKEUP, HOST_RECEIVE, HOST_SEND, HOST_TURN, INJECT, INTO_GUEST,
    OUT_OF_GUEST, Part, REMAINDER, RX_NOTICE, RX_PUBLISH, RX_SIGNAL, RX_WAKEUP, TX_EGRESS,
    TX_NOTICE, TX_WAKEUP,
};
use super::seen::{Burst, ProbeBursts};
use super::stamps::{ProbeId, Stamp};
use super::{ANCHOR_NS, Clock, DRIFT, Journey, OneWay};
use crate::round_trip::Initiator;

/// Parts that can overlap what lies between two clocks: the guest's driver may poll already, or may have the probe already; the
/// answer may not be there yet.
const OVERLAPPING: [Part; 7] =
    [TX_WAKEUP, TX_NOTICE, GUEST_SOFTIRQ, GUEST_DRIVER, INJECT, RX_SIGNAL, RX_PUBLISH];
/// With a sender on a far host, also these: the probe may not have arrived yet, the answer may be on its way already.
const OVERLAPPING_FAR: [Part; 3] = [RX_WAKEUP, RX_NOTICE, TX_EGRESS];

/// A probe that came back, with all that is known of it.
#[derive(Debug)]
pub struct Probe<'a> {
    pub id: ProbeId,
    pub initiator: Initiator,
    /// Whose clock the sender's stamps are of.
    pub clock: Clock,
    pub sender: &'a Stamp,
    /// When its sender received the answer.
    pub received: u64,
    pub echo: Option<&'a Stamp>,
    /// By how much the stamps of the guest's kernel may be wrong, nanoseconds, if that is known.
    pub kernel_error_ns: Option<u64>,
    pub bursts: ProbeBursts,
}

impl Probe<'_> {
    /// Adds the bounds of the guest's clock that follow from it.
    pub fn bound(&self, bounds: &mut Bounds) {
        if let Some(guest) = self.guest() {
            guest.bound(&self.bursts, bounds);
        }
    }

    /// Its times in the guest, by the guest's clock.
    fn guest(&self) -> Option<GuestTimes> {
        let stamp = match self.initiator {
            Initiator::Host => self.echo?,
            Initiator::Guest => self.sender,
        };
        GuestTimes::of(stamp, self.kernel_error_ns)
    }

    /// The intervals of the guest's offset on the way in and on the way out.
    pub fn offsets(&self, offset: &Offset) -> [Interval; 2] {
        [self.bursts.rx.visible_from(), self.bursts.tx.visible_until()].map(|at| offset.at(at))
    }

    /// Whether a burst lies outside the time between the host's stamps.
    pub fn is_misplaced(&self) -> bool {
        let Self { initiator, sender, received, echo, .. } = *self;
        matches!(self.clock, Clock::Daemons)
            && self.bursts.is_misplaced(initiator, sender, received, echo)
    }

    /// Its round trip, taken apart into these parts. `offset`: of the guest's clock, if it is bounded.
    pub fn journey(&self, offset: Option<&Offset>, parts: &[Part]) -> Journey {
        // A clock that goes back does not make a round trip negative.
        let sent = self.sender.sent.cast_signed();
        let round_trip_ns = self.received.cast_signed().saturating_sub(sent).max(0);
        let offsets = offset.map(|offset| self.offsets(offset));
        let guest = self.guest().zip(offsets);
        let guest = guest.map(|(guest, offsets)| guest.on_host(offsets.map(Interval::middle)));
        let mut chain = match &guest {
            Some(guest) => self.by_one_clock(guest),
            None => self.by_two_clocks(),
        };
        if matches!(self.clock, Clock::Far) {
            let Stamp { sent_kernel, received_kernel, .. } = *self.sender;
            chain.set(HOST_SEND, between(Some(self.sender.sent), sent_kernel));
            chain.set(HOST_RECEIVE, between(received_kernel, Some(self.received)));
        }
        let is_far = matches!(self.clock, Clock::Far);
        let measured = chain.settle(round_trip_ns, guest.is_none(), is_far);
        let width = offsets.map(|it| it.map(Interval::width).into_iter().max().unwrap_or(0));
        let half = width.map(|width| width / 2 + width % 2);
        let crossing = guest.zip(half);
        let crossing = crossing.map(|(guest, half)| half.saturating_add(guest.kernel_error));
        Journey {
            id: self.id,
            sent_ns: self.sender.sent,
            round_trip_ns,
            bound_ns: self.bound_ns(round_trip_ns, crossing),
            one_way: guest.zip(half).and_then(|(guest, half)| self.one_way(&guest, half)),
            parts: parts.iter().map(|part| measured.get(part).copied()).collect(),
        }
    }

    /// The probe's whole time by the host's clock. `guest`: its times in the guest by that clock.
    fn by_one_clock(&self, guest: &GuestTimes) -> Chain {
        let Self { bursts, sender, received, .. } = self;
        let (arrived, came) = (Some(guest.arrived()), bursts.rx.begin());
        let host = |ns: u64| ns.cast_signed();
        match (self.initiator, self.clock) {
            (Initiator::Host, Clock::Daemons) => {
                let mut chain = Chain::new(host(sender.sent), host(*received));
                chain.until(HOST_SEND, came);
                chain.enter_guest(bursts, arrived);
                chain.in_guest(guest);
                chain.until(GUEST_KICK, bursts.tx.begin());
                chain.leave_guest(&bursts.tx, Some(host(*received)));
                chain.until(HOST_RECEIVE, host(*received));
                chain
            }
            (Initiator::Host, Clock::Far) => {
                let mut chain = Chain::new(came, i64::MAX);
                chain.enter_guest(bursts, arrived);
                chain.in_guest(guest);
                chain.until(GUEST_KICK, bursts.tx.begin());
                chain.leave_guest(&bursts.tx, None);
                chain
            }
            (Initiator::Guest, _) => {
                let mut chain = Chain::new(guest.sent, guest.received);
                chain.until_if(GUEST_SEND, guest.sent_kernel);
                chain.until(GUEST_KICK, bursts.tx.begin());
                self.through_host(&mut chain);
                chain.enter_guest(bursts, arrived);
                chain.receive(guest);
                chain
            }
        }
    }

    /// The probe's times by the clock of each side. What lies between them is not known.
    fn by_two_clocks(&self) -> Chain {
        let Self { bursts, sender, received, .. } = self;
        let (came, answered) = (bursts.rx.begin(), bursts.tx.begin());
        let host = |ns: u64| ns.cast_signed();
        let mut chain = match (self.initiator, self.clock) {
            (Initiator::Host, Clock::Daemons) => {
                let mut chain = Chain::new(host(sender.sent), host(*received));
                chain.until(HOST_SEND, came);
                chain.enter_guest(bursts, None);
                chain.at = answered;
                chain.leave_guest(&bursts.tx, Some(host(*received)));
                chain.until(HOST_RECEIVE, host(*received));
                chain
            }
            (Initiator::Host, Clock::Far) => {
                let mut chain = Chain::new(came, i64::MAX);
                chain.enter_guest(bursts, None);
                chain.at = answered;
                chain.leave_guest(&bursts.tx, None);
                chain
            }
            (Initiator::Guest, _) => {
                let mut chain = Chain::new(answered, i64::MAX);
                self.through_host(&mut chain);
                chain.enter_guest(bursts, None);
                chain
            }
        };
        let (of, received) = match self.initiator {
            Initiator::Host => (self.echo.copied(), self.echo.and_then(|at| at.received)),
            Initiator::Guest => (Some(**sender), Some(*received)),
        };
        let of = of.unwrap_or_default();
        if let Some(guest) = self.guest() {
            let mut own = Chain::new(guest.arrived(), guest.received);
            own.receive(&guest);
            chain.measured.extend(own.measured);
        }
        chain.set(GUEST_SEND, between(Some(of.sent), of.sent_kernel));
        if matches!(self.initiator, Initiator::Host) {
            chain.set(GUEST_TURN, between(received, Some(of.sent)));
        }
        chain
    }

    /// From the daemon to the host's application, and back to the daemon. Without the responder's stamps, the host's part is
    /// known only as a whole.
    fn through_host(&self, chain: &mut Chain) {
        let ProbeBursts { rx, tx, .. } = &self.bursts;
        let turn = self.echo.and_then(|at| Some((at.received?.cast_signed(), at.sent)));
        chain.leave_guest(tx, turn.map(|(received, _)| received));
        if let Some((received, sent)) = turn {
            chain.until(HOST_RECEIVE, received);
            chain.until(HOST_TURN, sent.cast_signed());
            chain.until(HOST_SEND, rx.begin());
        } else {
            chain.until(HOST_TURN, rx.begin());
        }
    }

    /// Both ways from application to application, with half the width of the offset's interval.
    fn one_way(&self, guest: &GuestTimes, half: i64) -> Option<OneWay> {
        let host = |ns: u64| ns.cast_signed();
        let (to_guest_ns, from_guest_ns) = match (self.initiator, self.clock, self.echo) {
            (Initiator::Host, Clock::Daemons, _) => (
                guest.received.saturating_sub(host(self.sender.sent)),
                host(self.received).saturating_sub(guest.sent),
            ),
            (Initiator::Guest, _, Some(&Stamp { sent, received: Some(received), .. })) => (
                guest.received.saturating_sub(host(sent)),
                host(received).saturating_sub(guest.sent),
            ),
            _ => return None,
        };
        Some(OneWay {
            to_guest_ns: to_guest_ns.max(0),
            from_guest_ns: from_guest_ns.max(0),
            bound_ns: half.saturating_add(ANCHOR_NS),
        })
    }

    /// By how much what lies between two clocks may be wrong. `crossing`: by how much what lies between the guest's clock and
    /// the host's may be wrong, if they are known as one.
    fn bound_ns(&self, round_trip_ns: i64, crossing: Option<i64>) -> i64 {
        let ProbeBursts { rx, tx, inject } = &self.bursts;
        let drift = (round_trip_ns as f64 * DRIFT).ceil() as i64;
        // A far sender's stamps do not say how much of the wait was over before the packet came.
        let waited = match self.clock {
            Clock::Daemons => 0,
            Clock::Far => rx.end_of(Stage::Notice).saturating_sub(rx.begin()),
        };
        if let Some(crossing) = crossing {
            return match self.clock {
                Clock::Daemons => crossing,
                Clock::Far => crossing.max(waited.saturating_add(drift)),
            };
        }
        let overlap = [
            rx.stage(Stage::Signal),
            inject.unwrap_or(0),
            tx.stage(Stage::Notice),
            ANCHOR_NS,
            waited,
            self.guest().map_or(0, |guest| guest.polling()),
        ];
        overlap.iter().fold(drift, |sum, part| sum.saturating_add(*part))
    }
}

/// The time between two stamps; 0 if they are not in order.
fn between(from: Option<u64>, to: Option<u64>) -> Option<i64> {
    Some(to?.cast_signed().saturating_sub(from?.cast_signed()).max(0))
}

/// Parts, each from the end of the one before it.
struct Chain {
    measured: HashMap<Part, i64>,
    /// The end of the last part.
    at: i64,
    /// No part ends later.
    end: i64,
}

impl Chain {
    fn new(begin: i64, end: i64) -> Self {
        Self { measured: HashMap::new(), at: begin, end }
    }

    /// The next part ends at this time, or is empty if that has passed.
    fn until(&mut self, part: Part, end: i64) {
        let end = end.min(self.end).max(self.at);
        self.set(part, Some(end.saturating_sub(self.at)));
        self.at = end;
    }

    fn until_if(&mut self, part: Part, end: Option<i64>) {
        if let Some(end) = end {
            self.until(part, end);
        }
    }

    fn set(&mut self, part: Part, ns: Option<i64>) {
        if let Some(ns) = ns {
            self.measured.insert(part, ns);
        }
    }

    /// The daemon's stages on the way into the guest, which has the probe at `arrived`, if that is known.
    fn enter_guest(&mut self, bursts: &ProbeBursts, arrived: Option<i64>) {
        let ProbeBursts { rx, inject, .. } = bursts;
        let over = arrived.map_or(i64::MAX, |at| at.max(rx.visible_from()));
        self.until_if(RX_WAKEUP, rx.arrived.map(|_| rx.first));
        self.stages(&INTO_GUEST, rx, over);
        let signalled = rx.end_of(Stage::Signal);
        self.until_if(INJECT, inject.map(|ns| signalled.saturating_add(ns).min(over)));
        self.until_if(GUEST_INTERRUPT, arrived);
    }

    /// From the guest's first stamp to its application.
    fn receive(&mut self, guest: &GuestTimes) {
        let GuestTimes { interrupt, softirq, received_kernel, woken, running, received, .. } =
            *guest;
        self.until_if(GUEST_SOFTIRQ, interrupt.and(softirq));
        self.until_if(GUEST_DRIVER, interrupt.or(softirq).and(received_kernel));
        self.until_if(GUEST_STACK, woken);
        self.until_if(GUEST_WAKEUP, woken.and(running));
        self.until_if(GUEST_RECEIVE, received_kernel.map(|_| received));
    }

    /// The guest's own parts of a request from the host.
    fn in_guest(&mut self, guest: &GuestTimes) {
        self.receive(guest);
        self.until(GUEST_TURN, guest.sent);
        self.until_if(GUEST_SEND, guest.sent_kernel);
    }

    /// The daemon's stages on the way out of the guest. The host's application has the probe at `taken`, if that is known.
    fn leave_guest(&mut self, tx: &Burst, taken: Option<i64>) {
        let over = taken.map_or(i64::MAX, |at| at.max(tx.end_of(Stage::Gather)));
        self.until_if(TX_WAKEUP, tx.arrived.map(|_| tx.first));
        self.stages(&OUT_OF_GUEST, tx, over);
    }

    fn stages(&mut self, parts: &[Part], burst: &Burst, over: i64) {
        for part in parts {
            if let Some(stage) = Stage::from_name(part.stage) {
                self.until(*part, burst.end_of(stage).min(over));
            }
        }
    }

    /// Makes the parts add up to the round trip. What lies between the guest's clock and the host's may be missing
    /// (`has_two_clocks`), and what lies between a far sender and the daemon (`is_far`): that is the remainder. If the parts
    /// have too much time, it is taken from those that can overlap it. If nothing is missing, the parts differ from the round
    /// trip only by the drift between two clocks, which the longest one takes.
    fn settle(
        mut self,
        round_trip_ns: i64,
        has_two_clocks: bool,
        is_far: bool,
    ) -> HashMap<Part, i64> {
        let known: i128 = self.measured.values().map(|&ns| i128::from(ns)).sum();
        let rest = i128::from(round_trip_ns) - known;
        // No part is below zero, so this fits.
        let missing = i64::try_from(rest.max(0)).unwrap_or(i64::MAX);
        let mut excess = rest.min(0).unsigned_abs();
        if has_two_clocks || is_far {
            self.set(REMAINDER, Some(missing));
        } else if let Some(longest) = self.measured.values_mut().max() {
            *longest = longest.saturating_add(missing);
        }
        let crossing = OVERLAPPING.iter().filter(|_| has_two_clocks);
        for part in crossing.chain(OVERLAPPING_FAR.iter().filter(|_| is_far)) {
            excess = self.shorten(*part, excess);
        }
        while excess > 0
            && let Some((&longest, _)) = self.measured.iter().max_by_key(|(_, ns)| **ns)
        {
            excess = self.shorten(longest, excess);
        }
        self.measured
    }

    /// Takes this time from a part, as far as it is that long. Returns the rest.
    fn shorten(&mut self, part: Part, by: u128) -> u128 {
        let Some(ns) = self.measured.get_mut(&part) else { return by };
        let taken = i64::try_from(by).unwrap_or(i64::MAX).min(*ns);
        *ns -= taken;
        by - u128::from(taken.unsigned_abs())
    }
}
