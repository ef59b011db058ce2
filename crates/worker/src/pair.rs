//! A queue pair and its datapath.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use burst_trace::{Direction, DropCause, DropCounts};
use datapath::Datapath;
use guest_memory::GuestMemory;
use log_limit::LogLimit;
use virtio_net::{HeldChains, Negotiated, ReceiveState};

use crate::clock::Deadline;
use crate::idle::batching::Batching;
use crate::idle::forecast::{Forecast, Worked};
use crate::idle::sleep::{Sleeper, Token};
use crate::mailbox::{RingStart, StartError};
use crate::probes::Probes;
use crate::ring::{Ring, RingState};
use crate::trace::{Outcome, Tracer};
use crate::transmit::Untold;

/// A frame waits this long for more guest buffers, then it is dropped: a guest that posts fewer than one
/// frame needs must not hold up every frame after it.
pub const HOLD: Duration = Duration::from_millis(100);

/// First retry delay after a failed read of a datapath; it doubles with each further failure in a row.
pub const RETRY: Duration = Duration::from_millis(10);
/// Most doublings of [`RETRY`]: up to 640 ms.
const RETRY_DOUBLINGS: u32 = 6;
/// The first failures in a row are logged, then one in this many: about every 10 s, so that a pair that fails for hours
/// does not use up the log limit of its guest.
const FAILURES_A_LINE: u32 = 16;

/// Frames that the datapath did not take are offered again after this time: what says that it takes some again is
/// an edge, which may have been before the frames were refused, and not every datapath has one.
const REFUSED: Duration = Duration::from_millis(1);

/// What both turns of a pair need of the worker.
pub struct Context<'w> {
    pub tracer: &'w mut Tracer,
    pub sleeper: &'w Sleeper,
    /// When the worker last woke up, ticks.
    pub woken: u64,
    /// Whether it looks for frames without having been woken for them.
    pub polling: bool,
    /// [`HOLD`] in ticks.
    pub hold: u64,
    /// [`RETRY`] in ticks.
    pub retry: u64,
    /// [`LONGEST`](crate::idle::batching::LONGEST) in ticks.
    pub longest: u64,
}

/// The same for all the pairs of a worker.
pub struct Shared<'w> {
    /// One a guest.
    pub tracers: &'w mut [Tracer],
    pub sleeper: &'w Sleeper,
    pub woken: u64,
    pub polling: bool,
    pub hold: u64,
    pub retry: u64,
    pub longest: u64,
}

impl Shared<'_> {
    /// For the pairs of guest number `guest`.
    #[inline]
    pub fn of(&mut self, guest: usize) -> Context<'_> {
        Context {
            tracer: &mut self.tracers[guest],
            sleeper: self.sleeper,
            woken: self.woken,
            polling: self.polling,
            hold: self.hold,
            retry: self.retry,
            longest: self.longest,
        }
    }
}

impl Context<'_> {
    /// The boundary `wake` for work that was just found on a ring last looked at at `last_look`: the
    /// wake-up since then, or that look. Returns it, and whether the worker was polling.
    #[inline]
    pub const fn wake(&self, last_look: u64) -> (u64, bool) {
        if self.woken > last_look { (self.woken, false) } else { (last_look, true) }
    }
}

/// What was seen of the ring and did not fit the burst: the next burst was in sight since then.
#[derive(Clone, Copy, Debug)]
pub struct Backlog {
    pub wake: u64,
    pub seen: u64,
    pub polled: bool,
    /// How many entries of the ring there were left.
    pub slots: u16,
}

/// Frames wait, and the guest has too few buffers.
#[derive(Clone, Copy, Debug)]
pub struct Starved {
    pub wake: u64,
    pub seen: u64,
    pub polled: bool,
    /// When it began, whether or not bursts are stamped.
    pub since: u64,
}

/// The datapath could not be read.
#[derive(Clone, Copy, Debug)]
pub struct Failed {
    /// When it is read again.
    pub retry: Deadline,
    /// Failures in a row before this one.
    times: u32,
}

impl Failed {
    /// Another failure at `now`; `before`: the previous one, if no look has succeeded since. `retry`: [`RETRY`] in ticks.
    pub fn again(before: Option<Self>, now: u64, retry: u64) -> Self {
        let times = before.map_or(0, |before| before.times.saturating_add(1));
        Self { retry: Deadline::after(now, retry << times.min(RETRY_DOUBLINGS)), times }
    }

    /// Time until the next try.
    pub fn delay(self) -> Duration {
        RETRY * (1 << self.times.min(RETRY_DOUBLINGS))
    }

    /// Whether this failure is worth a log line.
    pub const fn is_logged(self) -> bool {
        self.times < RETRY_DOUBLINGS || self.times.is_multiple_of(FAILURES_A_LINE)
    }
}

/// A queue pair.
pub struct Pair<D> {
    /// The guest's number among those of the worker.
    pub guest: usize,
    /// Where messages about it go.
    pub log: Arc<LogLimit>,
    pub index: u16,
    pub datapath: D,
    pub tx: Option<Box<Ring>>,
    pub rx: Option<Box<Ring>>,
    /// Packets that went through each ring since the daemon started: 0 RX, 1 TX.
    pub sequences: [u64; 2],
    pub backlog: Option<Backlog>,
    /// Chains whose frames are being sent from the guest's memory.
    pub held: HeldChains,
    pub batching: Batching,
    /// The datapath took no more frames at the last try.
    pub blocked: bool,
    pub starved: Option<Starved>,
    /// What this turn forwarded into the receive ring.
    pub forwarded: Option<Untold>,
    pub receive: ReceiveState,
    /// Probe packets are looked for.
    pub probes: Option<Box<Probes>>,
    /// The datapath may have frames: it became readable and was not yet found empty.
    pub readable: bool,
    /// The last look at the datapath was an error.
    pub failed: Option<Failed>,
    /// What it did since there was last nothing to do.
    pub worked: Worked,
    pub forecast: Forecast,
    configured: Option<Negotiated>,
}

impl<D: Datapath> Pair<D> {
    pub fn new(guest: usize, log: Arc<LogLimit>, index: u16, datapath: D) -> Self {
        Self {
            guest,
            log,
            index,
            datapath,
            tx: None,
            rx: None,
            sequences: [0; 2],
            backlog: None,
            held: HeldChains::default(),
            batching: Batching::default(),
            blocked: false,
            starved: None,
            forwarded: None,
            receive: ReceiveState::default(),
            probes: None,
            readable: false,
            failed: None,
            worked: Worked::default(),
            forecast: Forecast::default(),
            configured: None,
        }
    }

    /// One burst each way. Returns whether there was any.
    ///
    /// That a burst was sent is told last: the answer to it often waits already (a tap carries a frame
    /// to a socket of the same host, and the acknowledgement back, within one write). Told one right
    /// after the other, the two wake whoever waits for them once instead of twice.
    #[inline]
    pub fn turn(&mut self, context: &mut Context<'_>) -> bool {
        let sent = self.transmit_turn(context);
        let mut worked = self.receive_turn(context);
        if worked {
            self.worked.add(Worked::RECEIVED);
        }
        if let Some(untold) = sent {
            self.tell_transmitted(untold, context);
            self.worked.add(Worked::TRANSMITTED);
            worked = true;
        }
        worked
    }

    /// Leaves a burst behind that has crossed all its boundaries, and the probes in it.
    #[inline]
    pub fn record(&mut self, direction: Direction, burst: &Untold, tracer: &mut Tracer) {
        let &Untold { ref journey, packets, bytes, polled } = burst;
        if packets == 0 {
            return;
        }
        let at = match direction {
            Direction::Rx => 0,
            Direction::Tx => 1,
        };
        let (ring, sequence) = (self.rings()[at], self.sequences[at]);
        let record = tracer.finish(journey, Outcome { ring, sequence, packets, bytes, polled });
        self.datapath.recorded(&record);
        if let Some(probes) = &mut self.probes {
            probes.recorded(&record, tracer);
        }
        self.sequences[at] += u64::from(packets);
    }

    /// What was placed in the receive ring is published.
    #[inline]
    pub fn published(&mut self) {
        if let Some(probes) = &mut self.probes {
            probes.published();
        }
    }

    /// There is nothing to do since `now`.
    pub fn rest(&mut self, now: u64) {
        let worked = std::mem::take(&mut self.worked);
        if worked != Worked::default() {
            self.forecast.begin(worked, now);
        }
    }

    /// A long rest of the worker is over at `now`; perhaps it was this pair that ended it.
    /// It may have been sooner or later by `inexact`. `spin`: how long it polls.
    pub fn learn(&mut self, now: u64, inexact: u64, spin: u64) {
        if self.worked != Worked::default() {
            self.forecast.learn(now, inexact, spin);
        }
    }

    /// The virtqueue indices: receive, transmit (virtio 1.2, 5.1.2).
    pub const fn rings(&self) -> [u16; 2] {
        [self.index * 2, self.index * 2 + 1]
    }

    pub fn listen(&self, sleeper: &Sleeper) -> io::Result<()> {
        match self.datapath.readiness() {
            Some(fd) => sleeper.add(&fd, Token::Datapath(self.index)),
            None => Ok(()),
        }
    }

    /// The worker is not woken up by the datapath any more.
    pub fn ignore(&self, sleeper: &Sleeper) {
        if let Some(fd) = self.datapath.readiness() {
            sleeper.remove(&fd);
        }
    }

    pub fn ring_mut(&mut self, ring: u16) -> Option<&mut Ring> {
        self.slot(ring).as_deref_mut()
    }

    pub fn start(
        &mut self,
        ring: u16,
        start: RingStart,
        context: &mut Context<'_>,
    ) -> Result<(), StartError> {
        self.stop(ring, context);
        let negotiated = start.negotiated;
        if self.configured != Some(negotiated) {
            self.datapath.configure(negotiated).map_err(StartError::System)?;
            self.configured = Some(negotiated);
        }
        let (alarm, now) = (context.sleeper.alarm(), context.tracer.stamp());
        let started =
            Ring::start(&self.log, ring, start, alarm, now).map_err(StartError::Config)?;
        let sends = !ring.is_multiple_of(2);
        if sends {
            self.datapath.attach(&started.memory).map_err(StartError::System)?;
        }
        // Last: the kick of a ring that is not served would keep waking the worker up, as long as any process has the
        // descriptor open.
        if let Err(error) = started.listen(context.sleeper) {
            if sends {
                self.datapath.detach();
            }
            return Err(StartError::System(error));
        }
        *self.slot(ring) = Some(Box::new(started));
        self.activate();
        Ok(())
    }

    pub fn stop(&mut self, ring: u16, context: &mut Context<'_>) -> Option<u16> {
        if !ring.is_multiple_of(2) {
            self.settle(context.tracer);
        }
        let stopped = self.slot(ring).take()?;
        stopped.ignore(context.sleeper);
        if ring.is_multiple_of(2) {
            self.starved = None;
            self.drop_held(DropCause::RxStopped, context.tracer);
            self.activate();
        } else {
            self.backlog = None;
            self.blocked = false;
            self.datapath.detach();
            self.held.clear();
        }
        Some(stopped.queue.next_available())
    }

    pub fn enable(&mut self, ring: u16, enabled: bool, tracer: &mut Tracer) {
        let lets_go = !ring.is_multiple_of(2) && !enabled && self.settle(tracer);
        if lets_go && let Some(tx) = &mut self.tx {
            // What is left is not sent any more. The datapath is needed again when the ring is enabled.
            if let Err(error) = self.datapath.attach(&tx.memory) {
                tx.stop_broken(format_args!("its frames could not be sent in time: {error}"));
            }
        }
        if let Some(ring) = self.ring_mut(ring) {
            ring.set_enabled(enabled);
        }
        if ring.is_multiple_of(2) && !enabled {
            // Nothing waits any more: not the frame that is held, and not for the guest.
            self.starved = None;
            self.drop_held(DropCause::RxStopped, tracer);
        }
        self.activate();
    }

    pub fn set_memory(&mut self, memory: &Arc<GuestMemory>, tracer: &mut Tracer) {
        self.settle(tracer);
        for ring in [&mut self.rx, &mut self.tx].into_iter().flatten() {
            ring.set_memory(memory);
        }
        self.backlog = None;
        self.starved = None;
        if let Some(tx) = &mut self.tx {
            self.datapath.detach();
            if let Err(error) = self.datapath.attach(memory) {
                tx.stop_broken(format_args!("its memory is new: {error}"));
            }
            self.activate();
        }
    }

    /// Counts the frames that were lost before they could be seen, and what else was counted there.
    pub fn account(&mut self, tracer: &mut Tracer) {
        let rings = self.rings();
        self.datapath.losses(&mut |what, times| tracer.counted(rings, what, times));
    }

    /// Gives up the frame that waits for buffers, if there is one.
    pub fn drop_held(&mut self, cause: DropCause, tracer: &mut Tracer) {
        if self.receive.drop_held() {
            let mut drops = DropCounts::default();
            drops.add(cause);
            tracer.dropped(self.rings()[0], &drops);
        }
    }

    /// Asks for kicks where more chains are work, and says whether there is work already.
    pub fn arm(&mut self) -> bool {
        let mut work = false;
        if let Some(tx) = &mut self.tx
            && matches!(tx.state, RingState::Enabled | RingState::Disabled)
        {
            tx.queue.enable_notification();
            work |= !self.blocked && tx.queue.available_descriptors() != Ok(0);
        }
        if let Some(rx) = &mut self.rx
            && rx.state == RingState::Enabled
        {
            match self.starved {
                Some(_) => {
                    rx.queue.enable_notification();
                    work |= rx.queue.has_grown();
                }
                // It is looked at again when its time has come.
                None if self.failed.is_some() => {}
                // A datapath with a descriptor wakes us itself.
                None => work |= self.datapath.readiness().is_none() && self.datapath.has_frames(),
            }
        }
        work
    }

    /// How long the pair may be left alone, if there is something to be done about which nobody wakes the
    /// worker up.
    pub fn patience(&self, tracer: &Tracer) -> Option<Duration> {
        let is_served = |ring: &Option<Box<Ring>>| {
            ring.as_ref().is_some_and(|ring| ring.state == RingState::Enabled)
        };
        let hold = self.receive.is_holding().then_some(HOLD);
        // What waits for the other guest is let go on by a kick of its ring, or a command.
        let is_refused = self.blocked && !(D::FORWARDS && self.holds_back());
        let refused = (is_refused && is_served(&self.tx)).then_some(REFUSED);
        let looks_again = self.starved.is_none() && is_served(&self.rx);
        let failed = self.failed.filter(|_| looks_again);
        // A timer that is set to no time at all would never end.
        let again = failed.map(|it| tracer.time_until(it.retry).max(Duration::from_micros(1)));
        [hold, refused, again].into_iter().flatten().min()
    }

    /// Whether a ring is served whose front end gave no kick, so that only polling sees its chains
    /// (vhost-user, `VHOST_USER_VRING_NOFD_MASK`).
    pub fn cannot_be_kicked(&self) -> bool {
        let rings = [&self.rx, &self.tx];
        rings.into_iter().flatten().any(|ring| ring.state == RingState::Enabled && !ring.has_kick())
    }

    /// Asks for no kicks while the rings are looked at anyway.
    pub fn disarm(&mut self) {
        for ring in [&mut self.rx, &mut self.tx].into_iter().flatten() {
            // A broken ring is left alone: its driver may use that memory for something else already.
            if matches!(ring.state, RingState::Enabled | RingState::Disabled) {
                ring.queue.disable_notification();
            }
        }
    }

    /// Tells the datapath whether the guest takes frames.
    fn activate(&mut self) {
        let active = self.rx.as_ref().is_some_and(|ring| ring.state == RingState::Enabled);
        if let Err(error) = self.datapath.set_active(active) {
            let wanted = if active { "attach" } else { "detach" };
            let Self { log, index, .. } = self;
            log_limit::warn!(log, "queue pair {index}: the datapath did not {wanted}: {error}");
        }
        // There may be frames from before; the first look finds out.
        (self.readable, self.failed) = (active, None);
    }

    const fn slot(&mut self, ring: u16) -> &mut Option<Box<Ring>> {
        if ring.is_multiple_of(2) { &mut self.rx } else { &mut self.tx }
    }
}
