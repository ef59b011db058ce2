//! The worker's loop: commands, a turn for every queue pair, sleep.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use burst_trace::Notification;

use crate::clock::{Clock, Deadline};
use crate::fault::Fault;
use crate::idle::batching::LONGEST;
use crate::idle::sleep::{Sleeper, Token};
use crate::idle::{Idle, IdleGap, PollPolicy};
use crate::mailbox::Inbox;
use crate::options::{GuestOptions, WorkerOptions};
use crate::pairs::Pairs;
use crate::receiver::HOLD;
use crate::sys;
use crate::topology::Topology;
use crate::topology::reads::RETRY;
use crate::tracer::Tracer;
use crate::transmitter::announce::Pace;
use crate::view::{Shared, View};

/// CPU pause instructions after a turn that found nothing, 27 ns each on an AMD Zen 5. Reading a ring takes a
/// cache line away from a guest that is writing to it: with 32 packets in flight, the throughput is some 5 %
/// higher than with one pause instruction.
const PAUSES_A_LOOK: u32 = 6;

/// Interval at which datapaths are asked for the frames that they lost, while there is work and once after
/// it. Asking takes a system call.
const LOSSES_EVERY: Duration = Duration::from_millis(100);

/// Number of turns with work, without a sleep between them, after which load counts as sustained.
/// [`Loop::sustain`] runs once in this number of turns.
const BUSY_TURNS: u32 = 1024;

/// Shortest sleep. A timer that is set to no time at all never fires.
const SHORTEST: Duration = Duration::from_micros(1);

/// A worker at work.
pub struct Loop<T> {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) topology: T,
    pub(crate) pairs: Pairs,
    /// One tracer for each guest.
    pub(crate) tracers: Vec<Tracer>,
    /// The limit of each guest's announcements.
    pub(crate) paces: Vec<Pace>,
    pub(crate) shared: Shared,
    pub(crate) idle: IdleGap,
    /// Number of turns with work since the last sleep.
    busy: u32,
    /// Whether events of datapaths wake the worker up.
    pub(crate) listens: bool,
    losses: Losses,
    /// [`guest_memory::generation`] at the last check of the mappings.
    pub(crate) generation: u32,
}

/// When to ask datapaths for the frames that they lost.
struct Losses {
    /// Whether any datapath counts losses.
    counted: bool,
    /// When they were last asked, in ticks.
    asked: u64,
    /// [`LOSSES_EVERY`] in ticks.
    every: u64,
    /// Number of turns with work since they were last asked.
    turns: u32,
}

impl<T: Topology> Loop<T> {
    /// Makes the loop of the calling thread.
    ///
    /// # Errors
    /// When the system refuses the scheduling class or the epoll instance, or the topology cannot begin.
    pub fn new(
        options: &WorkerOptions,
        mut topology: T,
        guests: Vec<GuestOptions>,
        pairs: Pairs,
        clock: Clock,
        inbox: Arc<Inbox>,
    ) -> io::Result<Self> {
        sys::schedule(options.scheduling)?;
        inbox.open()?;
        let sleeper = Sleeper::new(guests.len())?;
        sleeper.add(inbox.wake(), Token::Mailbox)?;
        topology.begin(&sleeper)?;
        let tracer = |guest: GuestOptions| {
            let fault = Fault::new(&guest.delays, &guest.crashes, &clock);
            Tracer::new(clock, guest.writer, fault, guest.trace, guest.log)
        };
        let counted = topology.counts_losses();
        Ok(Self {
            inbox,
            topology,
            paces: vec![Pace::default(); guests.len()],
            tracers: guests.into_iter().map(tracer).collect(),
            idle: IdleGap::new(options.poll, clock, pairs.len()),
            pairs,
            shared: Shared {
                clock,
                sleeper,
                woken: 0,
                polling: options.poll != PollPolicy::Never,
                hold: clock.ticks_in(HOLD),
                retry: clock.ticks_in(RETRY),
                longest: clock.ticks_in(LONGEST),
            },
            busy: 0,
            listens: false,
            losses: Losses { counted, asked: 0, every: clock.ticks_in(LOSSES_EVERY), turns: 0 },
            generation: 0,
        })
    }

    /// Serves the queue pairs until the control plane ends the worker.
    pub fn run(&mut self) {
        loop {
            if self.inbox.is_pending() && self.obey() == ControlFlow::Break(()) {
                return;
            }
            if guest_memory::generation() != self.generation {
                self.check_mappings();
            }
            if self.turn() {
                self.worked();
                continue;
            }
            match self.idle.next(&mut self.pairs) {
                Idle::Look => (0..PAUSES_A_LOOK).for_each(|_| std::hint::spin_loop()),
                // A thread that our signal has just woken may be waiting for this CPU. On a machine with few
                // CPUs, a worker that spins would delay the response for which it polls.
                Idle::GiveWay => {
                    self.account();
                    std::thread::yield_now();
                }
                Idle::Sleep(limit) => self.sleep(limit),
            }
        }
    }

    /// Moves one burst each way for every queue pair. Returns whether there was any.
    #[inline]
    fn turn(&mut self) -> bool {
        let mut view = View { tracers: &mut self.tracers, shared: &self.shared };
        self.topology.turn(&mut self.pairs, &mut view)
    }

    /// Called after a turn with work.
    #[inline]
    fn worked(&mut self) {
        self.idle.end(&mut self.pairs);
        self.losses.turns = self.losses.turns.wrapping_add(1).max(1);
        self.busy = self.busy.wrapping_add(1);
        if self.busy.is_multiple_of(BUSY_TURNS) {
            self.sustain();
        }
    }

    /// Runs once every [`BUSY_TURNS`].
    #[cold]
    fn sustain(&mut self) {
        self.account();
        // The thread that makes a descriptor ready also spends the time to wake up those who wait for it.
        // With an AF_XDP socket this is our own system call, for every frame that it sends.
        if std::mem::take(&mut self.listens) {
            self.topology.ignore(&self.shared.sleeper);
        }
    }

    /// Asks datapaths for the frames that they lost, if it is time. Otherwise returns the time that is left
    /// until then. `None` if there was no work since they were last asked, or if they have just been asked.
    #[inline]
    fn account(&mut self) -> Option<Duration> {
        if !self.losses.counted || self.losses.turns == 0 {
            return None;
        }
        let now = self.shared.clock.now();
        let left = Deadline::after(self.losses.asked, self.losses.every).left(now);
        if left > 0 {
            return Some(self.shared.clock.duration_of(left));
        }
        (self.losses.asked, self.losses.turns) = (now, 0);
        let mut view = View { tracers: &mut self.tracers, shared: &self.shared };
        self.topology.account(&self.pairs, &mut view);
        None
    }

    /// Enables notifications, checks once more for work, and sleeps until an event comes or `limit` has
    /// passed.
    fn sleep(&mut self, limit: Option<Duration>) {
        let losses = self.account();
        self.busy = 0;
        if !std::mem::replace(&mut self.listens, true) {
            self.topology.listen(&self.shared.sleeper);
        } else {
            self.topology.listen_again(&self.shared.sleeper);
        }
        let work = self.pairs.enable_notifications();
        if !(work | self.topology.has_work(&self.pairs)) {
            let view = View { tracers: &mut self.tracers, shared: &self.shared };
            let due = self.topology.limit(&self.pairs, &view);
            let passes = self.pairs.passes_in(|| view.now());
            let passes = passes.map(|ticks| self.shared.clock.duration_of(ticks).max(SHORTEST));
            let all = [limit, losses, due, passes];
            self.sleep_until_event(all.into_iter().flatten().min());
        }
        self.pairs.disable_notifications();
    }

    fn sleep_until_event(&mut self, limit: Option<Duration>) {
        let mut events = self.shared.sleeper.sleep(limit).peekable();
        let now = self.shared.clock.now();
        let woken = events.peek().is_some();
        for token in events {
            if let Token::Kick { guest, ring } = token {
                self.tracers[usize::from(guest)].notified(ring, Notification::Kick);
            }
            self.topology.woken(token, &mut self.pairs);
        }
        self.shared.woken = now;
        self.idle.slept(woken);
    }
}
