//! The loop: commands, a turn for every queue pair, sleep.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use burst_trace::Writer;
use datapath::Datapath;
use log_limit::LogLimit;

use crate::clock::{Clock, Deadline};
use crate::fabric::{Fabric, Member, pairs_of};
use crate::fault::{Crash, Delay, Fault};
use crate::idle::batching::LONGEST;
use crate::idle::sleep::{Sleeper, Token};
use crate::idle::{Idle, IdleGap, PollPolicy, Scheduling};
use crate::mailbox::{Command, Inbox, Mailbox, RingStart, StartError};
use crate::pair::{Context, HOLD, Pair, RETRY, Shared};
use crate::panic::PanicAlarm;
use crate::probes::Probes;
use crate::sys;
use crate::trace::Tracer;
use crate::wiring::{Direct, Wiring};

/// How a worker is set up.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Its number among the daemon's workers.
    pub index: usize,
    /// Where it runs.
    pub scheduling: Scheduling,
    /// What it does without work.
    pub poll: PollPolicy,
    /// Raised if it panics.
    pub alarm: PanicAlarm,
}

/// A guest that a worker serves, or a part of its queue pairs.
#[derive(Debug)]
pub struct GuestOptions {
    /// Where messages about it go.
    pub log: Arc<LogLimit>,
    /// The worker's end of the guest's recorder.
    pub writer: Writer,
    /// Delays to plant.
    pub delays: Vec<Delay>,
    /// Panics to plant.
    pub crashes: Vec<Crash>,
    /// Whether bursts are stamped and recorded.
    pub trace: bool,
    /// Probe packets to or from this UDP port are recorded, too.
    pub probe_port: Option<u16>,
}

/// A worker's thread, from the outside. Ends the thread when dropped.
#[derive(Debug)]
pub struct Worker {
    inbox: Arc<Inbox>,
    /// One a guest.
    mailboxes: Vec<Arc<Mailbox>>,
    thread: Option<JoinHandle<()>>,
    tid: u32,
}

impl Worker {
    /// Starts a worker that serves `pairs` of one guest: queue pair numbers with their datapaths.
    ///
    /// # Errors
    /// When the thread, its epoll instance, or its scheduling could not be had.
    pub fn spawn<D: Datapath>(
        options: WorkerOptions,
        guest: GuestOptions,
        pairs: Vec<(u16, D)>,
        clock: burst_trace::Clock,
    ) -> io::Result<Self> {
        let log = Arc::clone(&guest.log);
        let new = |(index, datapath)| Pair::new(0, Arc::clone(&log), index, datapath);
        let pairs = pairs.into_iter().map(new).collect();
        Self::spawn_wired(options, Direct::new(), vec![guest], pairs, clock.into())
    }

    /// Starts a worker that joins all queue pairs of several guests, and perhaps one queue of a datapath as their
    /// uplink, by a learning switch. Each guest is a port of it, in the order given.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn).
    pub fn spawn_switch<U: Datapath>(
        options: WorkerOptions,
        guests: Vec<(GuestOptions, Member)>,
        uplink: Option<U>,
        clock: burst_trace::Clock,
    ) -> io::Result<Self> {
        let clock = Clock::from(clock);
        let (guests, members): (Vec<_>, Vec<_>) = guests.into_iter().unzip();
        let logs = guests.iter().map(|guest| Arc::clone(&guest.log));
        let pairs = pairs_of(logs.zip(&members));
        let fabric = Fabric::new(&members, uplink, &clock);
        Self::spawn_wired(options, fabric, guests, pairs, clock)
    }

    pub(crate) fn spawn_wired<W: Wiring>(
        options: WorkerOptions,
        wiring: W,
        guests: Vec<GuestOptions>,
        pairs: Vec<Pair<W::Wire>>,
        clock: Clock,
    ) -> io::Result<Self> {
        let inbox = Arc::new(Inbox::new()?);
        let mailbox = |guest| Arc::new(Mailbox::new(Arc::clone(&inbox), guest));
        let mailboxes = (0..guests.len()).map(mailbox).collect();
        let (ready, is_ready) = sync_channel(1);
        let inside = Arc::clone(&inbox);
        let name = format!("worker-{}", options.index);
        let thread = Builder::new().name(name).spawn(move || {
            let _watched = options.alarm.watch();
            let _closed_at_the_end = CloseAtTheEnd(Arc::clone(&inside));
            match Loop::new(options, wiring, guests, pairs, clock, inside) {
                Ok(mut work) => {
                    let _ = ready.send(Ok(rustix::thread::gettid()));
                    work.run();
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        })?;
        let started = is_ready.recv().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        let mut worker = Self { inbox, mailboxes, thread: Some(thread), tid: 0 };
        started.map(|tid| {
            worker.tid = tid.as_raw_nonzero().get().unsigned_abs();
            worker
        })
    }

    /// The kernel's number of its thread, as in `gettid(2)`.
    #[must_use]
    pub const fn tid(&self) -> u32 {
        self.tid
    }

    /// How the device of guest number `guest`, in the order they were given, talks to it.
    ///
    /// # Panics
    /// When there are not so many.
    #[must_use]
    pub fn mailbox(&self, guest: usize) -> &Arc<Mailbox> {
        &self.mailboxes[guest]
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.inbox.end();
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            self.inbox.interrupt();
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("a worker ended by a fault of its own; see the message above");
        }
    }
}

/// However a worker's thread ends, nobody is left waiting for it.
struct CloseAtTheEnd(Arc<Inbox>);

impl Drop for CloseAtTheEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// So many pauses of the CPU from one look that found nothing to the next, 27 ns each on an AMD Zen 5: a look
/// takes a cache line from a guest that is just writing there. With 32 packets in flight some 5 % more come through
/// than with one pause.
const PAUSES_A_LOOK: u32 = 6;

struct Loop<W: Wiring> {
    inbox: Arc<Inbox>,
    sleeper: Sleeper,
    wiring: W,
    /// One a guest.
    tracers: Vec<Tracer>,
    pairs: Vec<Pair<W::Wire>>,
    clock: Clock,
    idle: IdleGap,
    /// Whether it ever looks for frames without having been woken for them.
    polls: bool,
    /// [`HOLD`] in ticks.
    hold: u64,
    /// [`RETRY`] in ticks.
    retry: u64,
    /// [`LONGEST`] in ticks.
    longest: u64,
    /// When the worker last woke up, ticks.
    woken: u64,
    /// How many turns with work there have been since it last slept.
    busy: u32,
    /// Whether datapaths wake it up.
    listens: bool,
    losses: Losses,
    /// [`guest_memory::generation`] at the last check of the mappings.
    generation: u32,
}

/// When to ask datapaths for what they lost.
struct Losses {
    /// When they were last asked, ticks.
    asked: u64,
    /// [`LOSSES_EVERY`] in ticks.
    every: u64,
    /// How many turns there have been with work since then.
    turns: u32,
}

/// So often datapaths are asked for what they lost, which takes a system call, while there is work and once after.
const LOSSES_EVERY: Duration = Duration::from_millis(100);

/// In a rush, the clock is looked at for that once in so many turns; and after so many turns it is a rush.
const TURNS_A_LOOK: u32 = 1024;

impl<W: Wiring> Loop<W> {
    fn new(
        options: WorkerOptions,
        mut wiring: W,
        guests: Vec<GuestOptions>,
        mut pairs: Vec<Pair<W::Wire>>,
        clock: Clock,
        inbox: Arc<Inbox>,
    ) -> io::Result<Self> {
        sys::schedule(options.scheduling)?;
        inbox.open()?;
        let sleeper = Sleeper::new(guests.len())?;
        sleeper.add(inbox.wake(), Token::Mailbox)?;
        wiring.start(&sleeper)?;
        for pair in &mut pairs {
            let port = guests[pair.guest].probe_port;
            pair.probes = port.map(|port| Box::new(Probes::new(port)));
        }
        let tracer = |guest: GuestOptions| {
            let fault = Fault::new(&guest.delays, &guest.crashes, &clock);
            Tracer::new(clock, guest.writer, fault, guest.trace)
        };
        Ok(Self {
            inbox,
            sleeper,
            wiring,
            tracers: guests.into_iter().map(tracer).collect(),
            pairs,
            clock,
            idle: IdleGap::new(options.poll, clock),
            polls: options.poll != PollPolicy::Never,
            hold: clock.ticks_in(HOLD),
            retry: clock.ticks_in(RETRY),
            longest: clock.ticks_in(LONGEST),
            woken: 0,
            busy: 0,
            listens: false,
            losses: Losses { asked: 0, every: clock.ticks_in(LOSSES_EVERY), turns: 0 },
            generation: 0,
        })
    }

    fn run(&mut self) {
        loop {
            if self.inbox.is_pending() && self.obey().is_break() {
                return;
            }
            if guest_memory::generation() != self.generation {
                self.look_at_mappings();
            }
            if self.turn() {
                self.idle.end(&mut self.pairs);
                self.losses.turns = self.losses.turns.wrapping_add(1).max(1);
                self.busy = self.busy.wrapping_add(1);
                if self.busy.is_multiple_of(TURNS_A_LOOK) {
                    self.rush();
                }
                continue;
            }
            match self.idle.next(&mut self.pairs) {
                Idle::Look => (0..PAUSES_A_LOOK).for_each(|_| std::hint::spin_loop()),
                // Whoever was just woken by a signal of ours may wait for this very CPU: on a machine with
                // few of them, a worker that spins would hold up the answer that it spins for.
                Idle::GiveWay => {
                    self.account();
                    std::thread::yield_now();
                }
                Idle::Sleep(limit) => self.sleep(limit),
            }
        }
    }

    /// One burst each way for every queue pair. Returns whether there was any.
    #[inline]
    fn turn(&mut self) -> bool {
        let (wiring, pairs, mut shared) = self.split();
        wiring.turn(pairs, &mut shared)
    }

    /// Asks datapaths for what they lost, if it is time. Returns how long it is until then, if there was work since.
    #[inline]
    fn account(&mut self) -> Option<Duration> {
        if !W::COUNTS_LOSSES || self.losses.turns == 0 {
            return None;
        }
        let now = self.clock.now();
        let left = Deadline::after(self.losses.asked, self.losses.every).left(now);
        if left > 0 {
            return Some(self.clock.duration_of(left));
        }
        (self.losses.asked, self.losses.turns) = (now, 0);
        let (wiring, pairs, mut shared) = self.split();
        wiring.account(pairs, &mut shared);
        None
    }

    /// It is a while since there was time to sleep.
    #[cold]
    fn rush(&mut self) {
        self.account();
        // A descriptor that somebody waits for costs whoever makes it ready: for an AF_XDP socket that is every frame
        // that was sent, within our own call.
        if std::mem::take(&mut self.listens) {
            self.pairs.iter().for_each(|pair| pair.ignore(&self.sleeper));
        }
    }

    /// Has datapaths wake the worker up, if they do not yet. What they have already wakes it up at once.
    fn listen(&mut self) {
        self.busy = 0;
        if self.listens {
            return;
        }
        self.listens = true;
        for pair in &self.pairs {
            if let Err(error) = pair.listen(&self.sleeper) {
                log_limit::error!(
                    pair.log,
                    "queue pair {}: its datapath cannot be waited for: {error}",
                    pair.index
                );
            }
        }
    }

    /// Asks for kicks, looks once more, and sleeps until something happens or `limit` has passed.
    fn sleep(&mut self, limit: Option<Duration>) {
        let mut work = false;
        let losses = self.account();
        self.listen();
        for pair in &mut self.pairs {
            work |= pair.arm();
        }
        work |= self.wiring.has_work(&self.pairs);
        if !work {
            let patience =
                self.pairs.iter().filter_map(|pair| pair.patience(&self.tracers[pair.guest]));
            let limit = limit.into_iter().chain(patience).chain(losses).chain(self.wiring.limit());
            let limit = limit.min();
            let mut asleep = self.sleeper.sleep(limit).peekable();
            self.woken = self.clock.now();
            let woken = asleep.peek().is_some();
            for token in asleep {
                if token == Token::Uplink {
                    self.wiring.woken();
                } else if let Token::Datapath(index) = token
                    && let Some(pair) = self.pairs.iter_mut().find(|pair| pair.index == index)
                {
                    (pair.readable, pair.blocked) = (true, false);
                }
            }
            self.idle.slept(woken);
        }
        for pair in &mut self.pairs {
            pair.disarm();
        }
    }

    /// Does what the control plane asked for.
    #[cold]
    fn obey(&mut self) -> std::ops::ControlFlow<()> {
        for (guest, command) in self.inbox.take() {
            let changed = match command {
                Command::Start { ring, .. }
                | Command::Stop { ring, .. }
                | Command::Enable { ring, .. } => Some(Some(ring)),
                Command::Memory { .. } => Some(None),
                Command::Call { .. } | Command::Error { .. } | Command::End => None,
            };
            match command {
                Command::Start { ring, start, done } => {
                    let _ = done.send(self.start(guest, ring, *start));
                }
                Command::Stop { ring, done } => {
                    let stopped =
                        self.on_pair(guest, ring, |pair, context| pair.stop(ring, context));
                    let _ = done.send(stopped);
                }
                Command::Enable { ring, enabled, done } => {
                    self.on_pair(guest, ring, |pair, context| {
                        pair.enable(ring, enabled, context.tracer);
                        Some(())
                    });
                    let _ = done.send(());
                }
                Command::Call { ring, call, done } => {
                    self.on_pair(guest, ring, |pair, _| {
                        pair.ring_mut(ring).map(|it| it.change_call(call))
                    });
                    let _ = done.send(());
                }
                Command::Error { ring, error, done } => {
                    self.on_pair(guest, ring, |pair, _| {
                        pair.ring_mut(ring).map(|it| it.set_error(error))
                    });
                    let _ = done.send(());
                }
                Command::Memory { memory, done } => {
                    let of_guest = self.pairs.iter_mut().filter(|pair| pair.guest == guest);
                    let tracer = &mut self.tracers[guest];
                    of_guest.for_each(|pair| pair.set_memory(&memory, tracer));
                    let _ = done.send(());
                }
                Command::End => return std::ops::ControlFlow::Break(()),
            }
            if let Some(ring) = changed {
                self.rings_changed(guest, ring);
            }
        }
        if self.generation > 0 {
            // A ring may have been started in memory that is torn already.
            self.look_at_mappings();
        }
        std::ops::ControlFlow::Continue(())
    }

    /// Checks all mappings after one was torn: guest memory, and recorders.
    #[cold]
    fn look_at_mappings(&mut self) {
        self.generation = guest_memory::generation();
        let now = self.clock.now();
        for at in 0..self.pairs.len() {
            let pair = &mut self.pairs[at];
            let tracer = &mut self.tracers[pair.guest];
            tracer.look_at_recorder(pair.log.prefix());
            if pair.break_torn(tracer) {
                self.wiring.rings_changed(at, &mut self.pairs, now);
            }
        }
    }

    /// Reports to the wiring that this ring of the guest changed, or (`None`) all its rings.
    fn rings_changed(&mut self, guest: usize, ring: Option<u16>) {
        let now = self.clock.now();
        for at in 0..self.pairs.len() {
            let pair = &self.pairs[at];
            if pair.guest == guest && ring.is_none_or(|ring| pair.rings().contains(&ring)) {
                self.wiring.rings_changed(at, &mut self.pairs, now);
            }
        }
    }

    fn start(&mut self, guest: usize, ring: u16, start: RingStart) -> Result<(), StartError> {
        self.on_pair(guest, ring, |pair, context| Some(pair.start(ring, start, context)))
            .unwrap_or(Err(StartError::WorkerGone))
    }

    fn on_pair<T>(
        &mut self,
        guest: usize,
        ring: u16,
        work: impl FnOnce(&mut Pair<W::Wire>, &mut Context<'_>) -> Option<T>,
    ) -> Option<T> {
        let (_, pairs, mut shared) = self.split();
        let serves = |pair: &&mut Pair<_>| pair.guest == guest && pair.rings().contains(&ring);
        let pair = pairs.iter_mut().find(serves)?;
        work(pair, &mut shared.of(guest))
    }

    #[inline]
    fn split(&mut self) -> (&mut W, &mut [Pair<W::Wire>], Shared<'_>) {
        let shared = Shared {
            tracers: &mut self.tracers,
            sleeper: &self.sleeper,
            woken: self.woken,
            polling: self.polls,
            hold: self.hold,
            retry: self.retry,
            longest: self.longest,
        };
        (&mut self.wiring, &mut self.pairs, shared)
    }
}
