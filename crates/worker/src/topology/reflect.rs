//! One guest, whose frames come back to itself: the rings' own cost, without a wire.

use std::time::Duration;

use burst_trace::DropCause;
use datapath::{Captured, Forward, Lane, Planted, Transmitted, Wrapped};
use virtio_net::Frames;

use super::wire::REFUSED;
use super::{Topology, observe};
use crate::options::GuestOptions;
use crate::pairs::Pairs;
use crate::receiver::{Delivery, Receiver};
use crate::timeline::Sighting;
use crate::transmitter::{Carried, Gathered, Transmitter};
use crate::view::View;

/// What carries the frames of each pair from its transmit ring into its receive ring.
#[derive(Debug)]
pub struct Reflected<F> {
    mirrors: Vec<Wrapped<F>>,
}

impl<F: Forward> Reflected<F> {
    /// For the queue pairs of `guest` with these numbers.
    pub fn new(guest: &mut GuestOptions, mirrors: Vec<(u16, F)>) -> Self {
        let wrapped = mirrors.into_iter().map(|(pair, mirror)| guest.wrapped(pair, mirror));
        Self { mirrors: wrapped.collect() }
    }
}

impl<F: Forward> Topology for Reflected<F> {
    #[inline]
    fn turn(&mut self, pairs: &mut Pairs, view: &mut View<'_>) -> bool {
        let mut worked = false;
        for (mirror, (tx, rx)) in self.mirrors.iter_mut().zip(pairs.iter_mut()) {
            worked |= turn(mirror, tx, rx, view);
        }
        worked
    }

    fn limit(&self, pairs: &Pairs, _view: &View<'_>) -> Option<Duration> {
        // Frames that wait for the guest go on with a kick of its receive ring, or a command.
        let is_refused = |(tx, rx): (&Transmitter, &Receiver)| tx.is_blocked() && !rx.must_wait();
        pairs.iter().any(is_refused).then_some(REFUSED)
    }

    fn plant(&mut self, faults: &[Planted]) {
        self.mirrors.iter_mut().for_each(|mirror| mirror.plant(faults));
    }

    fn planted(&self) -> Vec<Planted> {
        self.mirrors.first().map(|mirror| mirror.planted().to_vec()).unwrap_or_default()
    }

    fn capture(&mut self, at: usize, lane: Option<Lane>) {
        self.mirrors[at].within_mut().capture(lane);
    }

    fn captured(&self) -> Option<Captured> {
        self.mirrors.iter().find_map(|mirror| mirror.within().captured())
    }
}

/// One burst from the guest back to it. Returns whether there was one.
#[inline]
fn turn<F: Forward>(
    mirror: &mut Wrapped<F>,
    tx: &mut Transmitter,
    rx: &mut Receiver,
    view: &mut View<'_>,
) -> bool {
    if tx.is_served() && rx.must_wait() {
        tx.block();
        return false;
    }
    tx.unblock();
    tx.turn(view, |frames, gathered, view| carry(mirror, rx, frames, gathered, view));
    let received = rx.signal(view, |record| observe(mirror.observer(), record));
    let sent = tx.signal(view, |record| observe(mirror.observer(), record));
    received | sent
}

/// Carries the frames of a burst into the receive ring's buffers, and publishes them there. To the transmitter this is
/// `egress`; to the receiver it is a burst of its own, in sight since it was gathered.
#[inline]
fn carry<F: Forward>(
    mirror: &mut Wrapped<F>,
    rx: &mut Receiver,
    frames: Frames<'_, '_>,
    gathered: &Gathered<'_>,
    view: &mut View<'_>,
) -> Carried {
    let at = gathered.timeline.last();
    let sighting = Sighting { wake: at, seen: at, polled: gathered.polled };
    // Frames that nobody receives are lost, as on a wire whose other end is down.
    let lost = || Transmitted::refused(frames.len(), DropCause::TxLinkDown);
    let transmitted = if !rx.is_served() {
        lost()
    } else if frames.is_empty() {
        Transmitted::default()
    } else {
        match rx.deliver(sighting, view, |room| mirror.forward(frames, room)) {
            Delivery::Done(transmitted, _) => transmitted,
            Delivery::NoBuffers(_) => Transmitted::default(),
            // Not kept for later: nothing would wake the worker up for them.
            Delivery::NotServed => lost(),
        }
    };
    let blocked = transmitted.taken < frames.len();
    Carried { transmitted, blocked, at: rx.last_published() }
}
