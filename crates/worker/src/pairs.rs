//! The queue pairs of a worker.

use std::sync::Arc;

use burst_trace::Direction;
use log_limit::LogLimit;

use crate::half::Half;
use crate::idle::forecast::Worked;
use crate::limit::{Bucket, Limit};
use crate::probe_targets::ProbeTargets;
use crate::receiver::Receiver;
use crate::ring::Ring;
use crate::transmitter::Transmitter;

/// All queue pairs of a worker. Pair number `n` is `tx[n]` and `rx[n]`. They are two lists, because a switch carries a
/// burst from one transmitter to all receivers.
#[derive(Debug, Default)]
pub struct Pairs {
    tx: Vec<Transmitter>,
    rx: Vec<Receiver>,
}

impl Pairs {
    /// Adds queue pair number `pair` of guest number `guest`. `probes`: packets to look for.
    pub fn push(&mut self, guest: usize, log: &Arc<LogLimit>, probes: &ProbeTargets, pair: u16) {
        self.tx.push(Transmitter::new(guest, Arc::clone(log), pair, probes));
        self.rx.push(Receiver::new(guest, Arc::clone(log), pair, probes));
    }

    pub const fn len(&self) -> usize {
        self.tx.len()
    }

    /// The pairs in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Transmitter, &Receiver)> {
        self.tx.iter().zip(&self.rx)
    }

    /// The pairs in order.
    #[inline]
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&mut Transmitter, &mut Receiver)> {
        self.tx.iter_mut().zip(&mut self.rx)
    }

    pub fn transmitter(&self, at: usize) -> &Transmitter {
        &self.tx[at]
    }

    pub fn transmitter_mut(&mut self, at: usize) -> &mut Transmitter {
        &mut self.tx[at]
    }

    pub fn receiver(&self, at: usize) -> &Receiver {
        &self.rx[at]
    }

    pub fn receiver_mut(&mut self, at: usize) -> &mut Receiver {
        &mut self.rx[at]
    }

    /// Both halves of pair `at`.
    pub fn pair_mut(&mut self, at: usize) -> (&mut Transmitter, &mut Receiver) {
        (&mut self.tx[at], &mut self.rx[at])
    }

    /// The receivers of all pairs, for frames that go from the uplink to any of them.
    #[inline]
    pub fn receivers(&mut self) -> &mut [Receiver] {
        &mut self.rx
    }

    /// The transmitter of pair `at`, and the receivers of all pairs, for frames that go from it to any of them.
    #[inline]
    pub fn transmitter_and_receivers(&mut self, at: usize) -> (&mut Transmitter, &mut [Receiver]) {
        (&mut self.tx[at], &mut self.rx)
    }

    /// The guest that pair `at` belongs to.
    pub fn guest(&self, at: usize) -> usize {
        self.tx[at].guest()
    }

    /// The virtqueues of pair `at`: receive, transmit (virtio 1.2, 5.1.2).
    pub fn rings(&self, at: usize) -> [u16; 2] {
        [self.rx[at].index(), self.tx[at].index()]
    }

    /// The packets that are looked for in the rings of `guest`.
    pub fn probe_targets(&self, guest: usize) -> ProbeTargets {
        let its = self.tx.iter().find(|tx| tx.guest() == guest);
        its.map(|tx| tx.probe_targets()).unwrap_or_default()
    }

    /// Looks for these packets in the rings of `guest`.
    pub fn set_probe_targets(&mut self, guest: usize, targets: &ProbeTargets) {
        for (tx, rx) in self.iter_mut().filter(|(tx, _)| tx.guest() == guest) {
            tx.set_probe_targets(targets);
            rx.set_probe_targets(targets);
        }
    }

    /// The limits of `guest`: to it, from it.
    pub fn limits(&self, guest: usize) -> [Option<Limit>; 2] {
        let its = self.iter().find(|(tx, _)| tx.guest() == guest);
        its.map_or([None; 2], |(tx, rx)| [rx.limit(), tx.limit()])
    }

    /// `guest` follows this limit in this direction from the next burst on.
    pub fn set_limit(&mut self, guest: usize, direction: Direction, bucket: Option<&Arc<Bucket>>) {
        for (tx, rx) in self.iter_mut().filter(|(tx, _)| tx.guest() == guest) {
            match direction {
                Direction::Tx => tx.set_limit(bucket.cloned()),
                Direction::Rx => rx.set_limit(bucket.cloned()),
            }
        }
    }

    /// Time after which the first frames that wait for a limit may pass, ticks; `None` if none wait.
    pub fn passes_in(&self, now: impl Fn() -> u64) -> Option<u64> {
        let ways = self.iter().flat_map(|(tx, rx)| {
            // What a blocked transmitter waits for ends its sleep.
            let tx = Some::<&Half>(tx).filter(|_| !tx.is_blocked());
            [tx, Some::<&Half>(rx)].into_iter().flatten()
        });
        let waiting = ways.filter(|half| half.is_served() && half.waits_for_limit());
        waiting.filter_map(|half| half.passes_in(now())).min()
    }

    /// Bursts of `guest` are stamped from `now` on, ticks.
    pub fn see_again(&mut self, guest: usize, now: u64) {
        for (tx, rx) in self.iter_mut().filter(|(tx, _)| tx.guest() == guest) {
            tx.see_again(now);
            rx.see_again(now);
        }
    }

    /// The pair to which virtqueue `ring` of a guest belongs.
    pub fn find(&self, guest: usize, ring: u16) -> Option<usize> {
        (0..self.len()).find(|&at| self.guest(at) == guest && self.rings(at).contains(&ring))
    }

    /// Virtqueue `ring` of pair `at`, if it is in service.
    pub fn ring(&mut self, at: usize, ring: u16) -> &mut Option<Box<Ring>> {
        if ring == self.rx[at].index() { self.rx[at].ring() } else { self.tx[at].ring() }
    }

    /// Counts the packets of virtqueue `ring` of pair `at` from `sequence` on, unless it has counted further.
    pub fn count_from(&mut self, at: usize, ring: u16, sequence: u64) {
        if ring == self.rx[at].index() {
            self.rx[at].count_from(sequence);
        } else {
            self.tx[at].count_from(sequence);
        }
    }

    /// Whether a ring is served that only polling sees.
    pub fn cannot_be_kicked(&mut self) -> bool {
        let is_blind = |ring: &mut Option<Box<Ring>>| {
            ring.as_ref().is_some_and(|ring| ring.is_enabled() && !ring.has_kick())
        };
        self.tx.iter_mut().any(|tx| is_blind(tx.ring()))
            || self.rx.iter_mut().any(|rx| is_blind(rx.ring()))
    }

    /// Asks for kicks where more chains are work, and returns whether there is work already.
    pub fn enable_notifications(&mut self) -> bool {
        let mut work = false;
        for (tx, rx) in self.iter_mut() {
            work |= tx.enable_notification();
            work |= rx.enable_notification();
        }
        work
    }

    /// Asks for no kicks while the rings are looked at anyway.
    pub fn disable_notifications(&mut self) {
        let rings = self.tx.iter_mut().map(|tx| tx.ring());
        let rings = rings.chain(self.rx.iter_mut().map(|rx| rx.ring()));
        rings.flatten().for_each(|ring| ring.disable_notification());
    }

    /// The directions in which pair `at` moved bursts since this was last taken.
    pub fn take_worked(&mut self, at: usize) -> Worked {
        Worked::new(self.rx[at].take_worked(), self.tx[at].take_worked())
    }

    /// The same, and leaves it there.
    pub fn worked(&self, at: usize) -> Worked {
        Worked::new(self.rx[at].has_worked(), self.tx[at].has_worked())
    }
}
