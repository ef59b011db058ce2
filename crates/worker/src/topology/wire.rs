//! One guest, and a datapath for each of its queue pairs.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use burst_trace::{DropCause, DropCounts};
use datapath::{
    Captured, Datapath, InPlace as _, Interface as _, KernelFacts as _, Lane, Look, Planted,
    Wrapped,
};
use guest_memory::GuestMemory;
use log_limit::LogLimit;
use virtio_net::{MacAddress, Negotiated};
use virtqueue::RingError;

use super::reads::Reads;
use super::{Topology, observe};
use crate::heritage::Heritage;
use crate::idle::sleep::{Sleeper, Token};
use crate::options::GuestOptions;
use crate::pairs::Pairs;
use crate::receiver::{HOLD, Receiver};
use crate::ring::Ring;
use crate::transmitter::{Carried, Transmitter};
use crate::view::View;

/// Time after which frames that a datapath did not take are offered again. The event that it takes frames again is an
/// edge, which may have been before the frames were refused, and not every datapath has one.
pub const REFUSED: Duration = Duration::from_millis(1);

/// A worker's datapaths, one for each pair.
#[derive(Debug)]
pub struct Wire<D> {
    lines: Vec<Line<D>>,
}

/// The datapath of one queue pair.
#[derive(Debug)]
struct Line<D> {
    /// Number of the queue pair in its guest.
    pair: u16,
    /// Where messages about it go.
    log: Arc<LogLimit>,
    datapath: Wrapped<D>,
    reads: Reads,
    /// Whether its events wake the worker up.
    listens: bool,
    /// Its frames wait for the guest's limit: events say nothing new.
    is_deaf: bool,
    /// What the datapath was last configured for.
    configured: Option<Negotiated>,
}

impl<D: Datapath> Wire<D> {
    /// For the queue pairs of `guest` with these numbers.
    pub fn new(guest: &mut GuestOptions, lines: Vec<(u16, D)>) -> Self {
        let line = |(pair, datapath)| Line {
            pair,
            log: Arc::clone(&guest.log),
            datapath: guest.wrapped(pair, datapath),
            reads: Reads::default(),
            listens: false,
            is_deaf: false,
            configured: None,
        };
        Self { lines: lines.into_iter().map(line).collect() }
    }
}

impl<D: Datapath> Topology for Wire<D> {
    #[inline]
    fn turn(&mut self, pairs: &mut Pairs, view: &mut View<'_>) -> bool {
        let mut worked = false;
        for (line, (tx, rx)) in self.lines.iter_mut().zip(pairs.iter_mut()) {
            worked |= line.turn(tx, rx, view);
        }
        worked
    }

    fn listen(&mut self, sleeper: &Sleeper) {
        for line in self.lines.iter_mut().filter(|line| !line.listens && !line.is_deaf) {
            line.listens = true;
            if let Some(fd) = line.datapath.readiness()
                && let Err(error) = sleeper.add(&fd, Token::Datapath(line.pair))
            {
                let pair = line.pair;
                log_limit::error!(
                    line.log,
                    "queue pair {pair}: cannot wait for its datapath: {error}"
                );
            }
        }
    }

    fn listen_again(&mut self, sleeper: &Sleeper) {
        self.listen(sleeper);
    }

    fn ignore(&mut self, sleeper: &Sleeper) {
        self.lines.iter_mut().for_each(|line| line.ignore(sleeper));
    }

    fn woken(&mut self, token: Token, pairs: &mut Pairs) {
        let is_it = |line: &Line<D>| token == Token::Datapath(line.pair);
        if let Some(at) = self.lines.iter().position(is_it) {
            self.lines[at].reads.woken();
            pairs.transmitter_mut(at).unblock();
        }
    }

    fn has_work(&mut self, pairs: &Pairs) -> bool {
        let has_frames = |(line, (_, rx)): (&Line<D>, (&Transmitter, &Receiver))| {
            // A datapath with a descriptor wakes the worker up itself. One that failed is read again when its time has come.
            let is_read = rx.is_served()
                && !rx.is_starved()
                && !rx.waits_for_limit()
                && !line.reads.has_failed();
            is_read && line.datapath.readiness().is_none() && line.datapath.has_frames()
        };
        self.lines.iter().zip(pairs.iter()).any(has_frames)
    }

    fn limit(&self, pairs: &Pairs, view: &View<'_>) -> Option<Duration> {
        let limit = |(line, (tx, rx)): (&Line<D>, (&Transmitter, &Receiver))| {
            let hold = rx.is_holding().then_some(HOLD);
            let refused = tx.is_blocked().then_some(REFUSED);
            let is_read = rx.is_served() && !rx.is_starved();
            let retry = line.reads.retry_in(&view.shared.clock).filter(|_| is_read);
            [hold, refused, retry].into_iter().flatten().min()
        };
        self.lines.iter().zip(pairs.iter()).filter_map(limit).min()
    }

    fn counts_losses(&mut self) -> bool {
        self.lines.first_mut().is_some_and(|line| line.datapath.kernel_facts().is_some())
    }

    fn account(&mut self, pairs: &Pairs, view: &mut View<'_>) {
        for (at, line) in self.lines.iter_mut().enumerate() {
            let (rings, tracer) = (pairs.rings(at), view.tracer(pairs.guest(at)));
            if let Some(facts) = line.datapath.kernel_facts() {
                facts.losses(&mut |what, times| tracer.counted(rings, what, times));
            }
        }
    }

    fn configure(&mut self, at: usize, negotiated: Negotiated) -> io::Result<()> {
        let line = &mut self.lines[at];
        if line.configured != Some(negotiated) {
            line.datapath.configure(negotiated)?;
            line.configured = Some(negotiated);
        }
        Ok(())
    }

    fn attach(&mut self, at: usize, memory: &Arc<GuestMemory>) -> io::Result<()> {
        match self.lines[at].datapath.in_place() {
            Some(in_place) => in_place.attach(memory),
            None => Ok(()),
        }
    }

    fn detach(&mut self, at: usize) {
        if let Some(in_place) = self.lines[at].datapath.in_place() {
            in_place.detach();
        }
    }

    fn settle(&mut self, at: usize, pairs: &mut Pairs, view: &mut View<'_>) -> bool {
        pairs.transmitter_mut(at).settle(&mut self.lines[at].datapath, view, |datapath, record| {
            observe(datapath.observer(), record);
        })
    }

    fn announce(
        &mut self,
        at: usize,
        address: MacAddress,
        pairs: &mut Pairs,
        view: &mut View<'_>,
    ) -> bool {
        let (tx, datapath) = (pairs.transmitter_mut(at), &mut self.lines[at].datapath);
        tx.announce(
            address,
            datapath,
            view,
            |datapath, frames, _| match datapath.in_place() {
                Some(in_place) => in_place.transmit_copies(frames),
                None => datapath.transmit(frames),
            },
            |datapath, record| observe(datapath.observer(), record),
        )
    }

    fn part(&mut self, at: usize, _now: u64) -> Heritage {
        Heritage { frames: self.lines[at].datapath.part(), ..Heritage::default() }
    }

    fn plant(&mut self, faults: &[Planted]) {
        self.lines.iter_mut().for_each(|line| line.datapath.plant(faults));
    }

    fn planted(&self) -> Vec<Planted> {
        self.lines.first().map(|line| line.datapath.planted().to_vec()).unwrap_or_default()
    }

    fn capture(&mut self, at: usize, lane: Option<Lane>) {
        self.lines[at].datapath.within_mut().capture(lane);
    }

    fn captured(&self) -> Option<Captured> {
        self.lines.iter().find_map(|line| line.datapath.within().captured())
    }

    fn set_active(&mut self, at: usize, active: bool) -> io::Result<()> {
        let line = &mut self.lines[at];
        // There may be frames from before; the first read finds out.
        (line.reads, line.is_deaf) = (Reads::new(active), false);
        line.datapath.set_active(active)
    }
}

impl<D: Datapath> Line<D> {
    /// One burst each way. Returns whether there was any.
    ///
    /// The signal for the sent burst comes last, because the answer to it often waits already: a tap carries a frame to a
    /// socket of the same host, and the acknowledgement back, within one write. With both signals together, the guest
    /// wakes up once instead of twice.
    #[inline]
    fn turn(&mut self, tx: &mut Transmitter, rx: &mut Receiver, view: &mut View<'_>) -> bool {
        let Self { datapath, reads, .. } = self;
        if datapath.in_place().is_some() {
            tx.turn_in_place(datapath, view);
        } else {
            tx.turn(view, |frames, _, _| {
                let transmitted = datapath.transmit(frames);
                // A tap may be gone without an event: the kernel wakes up those who wait for it before it lets go of it
                // (`tun_detach_all`, drivers/net/tun.c), and who looks in between finds nothing. A read tells.
                if !transmitted.drops.is_empty() {
                    reads.woken();
                }
                Carried { transmitted, blocked: transmitted.taken < frames.len(), at: None }
            });
        }
        let received = rx.serve(view, |rx, ring, view| self.receive(rx, ring, view));
        let sent = tx.signal(view, |record| observe(self.datapath.observer(), record));
        received | sent
    }

    /// Moves one burst from the datapath to the guest. Returns whether there was one.
    #[inline]
    fn receive(
        &mut self,
        rx: &mut Receiver,
        ring: &mut Ring,
        view: &mut View<'_>,
    ) -> Result<bool, RingError> {
        let has_descriptor = self.datapath.readiness().is_some();
        if has_descriptor && !self.reads.may_have_frames() && !view.shared.polling {
            return Ok(false);
        }
        if rx.is_limited(view) {
            return Ok(self.wait_for_limit(rx, ring, view));
        }
        self.is_deaf = false;
        if !self.reads.is_due(|| view.now()) {
            return Ok(false);
        }
        if rx.is_starved() && !ring.has_grown() {
            return Ok(rx.give_up_held(view));
        }
        let has_buffers = ring.queue().available_descriptors()? > 0;
        if rx.is_starved() {
            // More buffers came.
        } else if !has_buffers {
            self.wait_for_buffers(rx, ring, view);
            return Ok(false);
        } else if view.tracer(rx.guest()).has_fault()
            && !self.datapath.has_frames()
            && !rx.is_holding()
        {
            // A planted delay must hit bursts, not looks that find nothing.
            self.reads.succeeded(false);
            rx.found_nothing(ring, view);
            return Ok(false);
        }
        self.receive_burst(rx, ring, view)
    }

    #[inline]
    fn receive_burst(
        &mut self,
        rx: &mut Receiver,
        ring: &mut Ring,
        view: &mut View<'_>,
    ) -> Result<bool, RingError> {
        let (mut timeline, mut polled) = rx.see_frames(ring, view);
        let (look, received) = rx.fill(ring, |room| self.datapath.receive(room));
        let mut drops = received.drops;
        let more = match look {
            Ok(look) => {
                self.reads.succeeded(look == Look::More);
                look == Look::More
            }
            Err(error) => {
                self.fail(&error, &mut drops, view);
                false
            }
        };
        if let Some(error) = received.broken {
            return Err(error);
        }
        if received.packets == 0 && drops.is_empty() {
            if more {
                self.wait_for_buffers(rx, ring, view);
            } else {
                self.reads.found_nothing();
                rx.found_nothing(ring, view);
            }
            return Ok(false);
        }
        if let Some(arrived_ns) = self.datapath.kernel_facts().and_then(|facts| facts.arrived_ns())
        {
            view.tracer(rx.guest()).arrived(&mut timeline, arrived_ns);
            // The arrival is exact; polling would only give a bound.
            polled = false;
        }
        let burst = rx.publish(ring, timeline, polled, &received, view);
        rx.signal_now(ring, burst, view, |record| observe(self.datapath.observer(), record));
        view.tracer(rx.guest()).dropped(rx.index(), &drops);
        Ok(true)
    }

    /// The datapath could not be read. It is left alone for a while, longer each time: an interface that is gone must not
    /// keep a worker busy.
    #[cold]
    fn fail(&mut self, error: &io::Error, drops: &mut DropCounts, view: &View<'_>) {
        let is_logged = self.reads.failed(view.now(), view.shared.retry);
        // That there is nothing to read now costs no frame.
        if error.kind() == io::ErrorKind::WouldBlock {
            return;
        }
        if is_logged {
            let pair = self.pair;
            log_limit::warn!(self.log, "queue pair {pair}: cannot read its datapath: {error}");
        }
        drops.add(DropCause::RxError);
    }

    /// The guest's limit lets nothing pass. A frame that waits in the datapath waits for it from now on. Returns whether a frame
    /// that was held too long was dropped.
    #[cold]
    fn wait_for_limit(&mut self, rx: &mut Receiver, ring: &mut Ring, view: &mut View<'_>) -> bool {
        if rx.is_starved() && !ring.has_grown() {
            return rx.give_up_held(view);
        }
        if rx.waits_for_limit() {
            return false;
        }
        if rx.is_starved() || rx.is_holding() || self.datapath.has_frames() {
            rx.wait_for_limit(ring, view);
            // Each further frame would wake the worker up for nothing.
            self.is_deaf = true;
            self.ignore(&view.shared.sleeper);
        } else {
            self.reads.succeeded(false);
            ring.note_look(view.tracer(rx.guest()).stamp());
        }
        false
    }

    fn ignore(&mut self, sleeper: &Sleeper) {
        if std::mem::take(&mut self.listens)
            && let Some(fd) = self.datapath.readiness()
        {
            sleeper.remove(&fd);
        }
    }

    /// There is no room for a frame now. A frame that waits in the datapath is starved from now on.
    #[cold]
    fn wait_for_buffers(&mut self, rx: &mut Receiver, ring: &mut Ring, view: &mut View<'_>) {
        if rx.is_starved() {
            return;
        }
        if rx.is_holding() || self.datapath.has_frames() {
            rx.starve_now(ring, view);
        } else {
            self.reads.succeeded(false);
            rx.found_nothing(ring, view);
        }
    }
}
