//! The loop: commands, a turn for every queue pair, sleep.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use burst_trace::{Clock, Writer};
use datapath::Datapath;

use crate::fault::{Delay, Fault};
use crate::idle::{Idle, Pause};
use crate::mailbox::{Command, Mailbox, RingStart, StartError};
use crate::pace::LONGEST;
use crate::pair::{Context, HOLD, Pair, RETRY};
use crate::policy::{PollPolicy, Scheduling};
use crate::sleep::{Sleeper, Token};
use crate::sys;
use crate::trace::Tracer;

/// How a worker is set up.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Its number among the daemon's workers.
    pub index: usize,
    /// Where it runs.
    pub scheduling: Scheduling,
    /// What it does without work.
    pub poll: PollPolicy,
    /// Delays to plant.
    pub delays: Vec<Delay>,
    /// Whether bursts are stamped and recorded.
    pub trace: bool,
}

/// A worker's thread, from the outside. Ends the thread when dropped.
#[derive(Debug)]
pub struct Worker {
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a worker that serves `pairs`: queue pair numbers with their datapaths.
    ///
    /// # Errors
    /// When the thread, its epoll instance, or its scheduling could not be had.
    pub fn spawn<D: Datapath>(
        options: WorkerOptions,
        pairs: Vec<(u16, D)>,
        clock: Clock,
        writer: Writer,
    ) -> io::Result<Self> {
        let mailbox = Arc::new(Mailbox::new()?);
        let (ready, is_ready) = sync_channel(1);
        let inside = Arc::clone(&mailbox);
        let name = format!("worker-{}", options.index);
        let thread = Builder::new().name(name).spawn(move || {
            let _closed_at_the_end = CloseAtTheEnd(Arc::clone(&inside));
            match Loop::new(options, pairs, clock, writer, inside) {
                Ok(mut work) => {
                    let _ = ready.send(Ok(()));
                    work.run();
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        })?;
        let started = is_ready.recv().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        let worker = Self { mailbox, thread: Some(thread) };
        started.map(|()| worker)
    }

    /// How to talk to it.
    #[must_use]
    pub const fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.mailbox.end();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("a worker ended by a fault of its own; see the message above");
        }
    }
}

/// However a worker's thread ends, nobody is left waiting for it.
struct CloseAtTheEnd(Arc<Mailbox>);

impl Drop for CloseAtTheEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// So many pauses of the CPU from one look that found nothing to the next, 27 ns each on an AMD Zen 5: a look
/// takes a cache line from a guest that is just writing there. With 32 packets in flight some 5 % more come through
/// than with one pause.
const PAUSES_A_LOOK: u32 = 6;

struct Loop<D> {
    mailbox: Arc<Mailbox>,
    sleeper: Sleeper,
    tracer: Tracer,
    pairs: Vec<Pair<D>>,
    pause: Pause,
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
}

impl<D: Datapath> Loop<D> {
    fn new(
        options: WorkerOptions,
        pairs: Vec<(u16, D)>,
        clock: Clock,
        writer: Writer,
        mailbox: Arc<Mailbox>,
    ) -> io::Result<Self> {
        sys::schedule(options.scheduling)?;
        let sleeper = Sleeper::new()?;
        sleeper.add(mailbox.wake(), Token::Mailbox)?;
        let pairs: Vec<_> =
            pairs.into_iter().map(|(index, datapath)| Pair::new(index, datapath)).collect();
        for pair in &pairs {
            pair.listen(&sleeper)?;
        }
        let fault = Fault::new(&options.delays, &clock);
        Ok(Self {
            mailbox,
            sleeper,
            tracer: Tracer::new(clock, writer, fault, options.trace),
            pairs,
            pause: Pause::new(options.poll, clock),
            polls: options.poll != PollPolicy::Never,
            hold: clock.ticks_in(HOLD),
            retry: clock.ticks_in(RETRY),
            longest: clock.ticks_in(LONGEST),
            woken: 0,
        })
    }

    fn run(&mut self) {
        loop {
            if self.mailbox.is_pending() && self.obey().is_break() {
                return;
            }
            if self.turn() {
                self.pause.end(&mut self.pairs);
                continue;
            }
            match self.pause.next(&mut self.pairs) {
                Idle::Look => (0..PAUSES_A_LOOK).for_each(|_| std::hint::spin_loop()),
                // Whoever was just woken by a signal of ours may wait for this very CPU: on a machine with
                // few of them, a worker that spins would hold up the answer that it spins for.
                Idle::GiveWay => std::thread::yield_now(),
                Idle::Sleep(limit) => self.sleep(limit),
            }
        }
    }

    /// One burst each way for every queue pair. Returns whether there was any.
    #[inline]
    fn turn(&mut self) -> bool {
        let mut worked = false;
        let (pairs, mut context) = self.split();
        for pair in pairs {
            worked |= pair.turn(&mut context);
        }
        worked
    }

    /// Asks for kicks, looks once more, and sleeps until something happens or `limit` has passed.
    fn sleep(&mut self, limit: Option<Duration>) {
        let mut work = false;
        for pair in &mut self.pairs {
            work |= pair.arm();
        }
        if !work {
            let holding = self.pairs.iter().any(|pair| pair.receive.is_holding());
            let hold = holding.then_some(HOLD);
            let limit = limit.into_iter().chain(hold).min();
            let mut asleep = self.sleeper.sleep(limit).peekable();
            self.woken = self.tracer.stamp();
            let woken = asleep.peek().is_some();
            for token in asleep {
                if let Token::Datapath(index) = token
                    && let Some(pair) = self.pairs.iter_mut().find(|pair| pair.index == index)
                {
                    (pair.readable, pair.blocked) = (true, false);
                }
            }
            self.pause.slept(woken);
        }
        for pair in &mut self.pairs {
            pair.disarm();
        }
    }

    /// Does what the control plane asked for.
    #[cold]
    fn obey(&mut self) -> std::ops::ControlFlow<()> {
        for command in self.mailbox.take() {
            match command {
                Command::Start { ring, start, done } => {
                    let _ = done.send(self.start(ring, *start));
                }
                Command::Stop { ring, done } => {
                    let _ = done.send(self.on_pair(ring, |pair, context| pair.stop(ring, context)));
                }
                Command::Enable { ring, enabled, done } => {
                    self.on_pair(ring, |pair, context| {
                        pair.enable(ring, enabled, context.tracer);
                        Some(())
                    });
                    let _ = done.send(());
                }
                Command::Call { ring, call, done } => {
                    self.on_pair(ring, |pair, _| {
                        pair.ring_mut(ring).map(|it| it.change_call(call))
                    });
                    let _ = done.send(());
                }
                Command::Error { ring, error, done } => {
                    self.on_pair(ring, |pair, _| pair.ring_mut(ring).map(|it| it.set_error(error)));
                    let _ = done.send(());
                }
                Command::Memory { memory, done } => {
                    self.pairs.iter_mut().for_each(|pair| pair.set_memory(&memory));
                    let _ = done.send(());
                }
                Command::End => return std::ops::ControlFlow::Break(()),
            }
        }
        std::ops::ControlFlow::Continue(())
    }

    fn start(&mut self, ring: u16, start: RingStart) -> Result<(), StartError> {
        self.on_pair(ring, |pair, context| Some(pair.start(ring, start, context)))
            .unwrap_or(Err(StartError::WorkerGone))
    }

    fn on_pair<T>(
        &mut self,
        ring: u16,
        work: impl FnOnce(&mut Pair<D>, &mut Context<'_>) -> Option<T>,
    ) -> Option<T> {
        let (pairs, mut context) = self.split();
        let pair = pairs.iter_mut().find(|pair| pair.rings().contains(&ring))?;
        work(pair, &mut context)
    }

    #[inline]
    fn split(&mut self) -> (&mut [Pair<D>], Context<'_>) {
        let context = Context {
            tracer: &mut self.tracer,
            sleeper: &self.sleeper,
            woken: self.woken,
            polling: self.polls,
            hold: self.hold,
            retry: self.retry,
            longest: self.longest,
        };
        (&mut self.pairs, context)
    }
}
