//! The control queue (virtio 1.2, 5.1.6.5), for front ends that leave it to the back end.
//!
//! The thread of its connection serves it ([`crate::conversation`]), not a worker: commands are rare, and
//! take effect by messages to workers. So a flood of commands delays no frames. The number of commands in a
//! turn is limited, so that the thread also handles its other events ([`TURN`], [`PAUSE`]).
//!
//! The rings read what the guest set ([`Settings`]) when they start, and again after each command
//! ([`crate::ring::RingControl::follow_settings`]). No lock is held while a command is carried out, because
//! the framework's thread may stop the queue at any time. So the chain of a command is taken twice: it is
//! read and put back in the ring, and taken again for the answer. If the guest has changed it meanwhile, the
//! answer goes to the buffers of the changed chain.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guest_memory::{GuestMemory, GuestSlice};
use log_limit::LogLimit;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use virtio_net::control::{COMMAND_LEN_MAX, Command, ERR, OK, control_queue};
use virtio_net::features::{MULTI_QUEUE, Negotiated};
use virtio_net::{ConfigSpace, MacAddress};
use virtqueue::{Access, Chains, Queue, QueueSetup, RingError, RingLog};
use worker::{Foreign, RingStart, StartError};

/// Most commands in a turn.
const TURN: usize = 4;
/// Delay until the next turn if a turn has carried out [`TURN`] commands.
const PAUSE: Duration = Duration::from_millis(1);
/// Time between two reads of a queue without a kick descriptor (vhost-user, `VHOST_USER_VRING_NOFD_MASK`).
const LOOK: Duration = Duration::from_millis(10);

/// The control queue of one connection.
#[derive(Debug)]
pub struct ControlQueue {
    log: Arc<LogLimit>,
    /// Number of queue pairs of the device.
    queue_pairs: u16,
    /// Readable when there is work: a kick came, or the queue was started or changed. Edge triggered, so that
    /// a kick need not be read: its front end could make that call block.
    events: OwnedFd,
    /// Written when the queue was started, stopped or changed.
    changed: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    negotiated: Negotiated,
    settings: Settings,
    served: Option<Served>,
    /// Number of starts.
    starts: u64,
}

/// What the guest set by commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Number of queue pairs in use.
    pub pairs: u16,
    /// The negotiated `GUEST_*` features that the guest switched off.
    pub switched_off: u64,
    /// The guest's address.
    pub address: Option<MacAddress>,
}

/// A queue that was started and not yet stopped.
#[derive(Debug)]
struct Served {
    index: u16,
    queue: Queue,
    setup: QueueSetup,
    memory: Arc<GuestMemory>,
    /// Where pages that it writes are marked, while the front end logs.
    dirty: Option<RingLog>,
    kick: Option<Arc<Foreign>>,
    call: Option<Arc<Foreign>>,
    error: Option<Arc<Foreign>>,
    enabled: bool,
    broken: bool,
}

/// A chain at the head of the queue.
struct Waiting {
    /// [`State::starts`] when the chain was read.
    start: u64,
    /// `None` if the command is not allowed.
    command: Option<Command>,
}

impl ControlQueue {
    /// For a device with `queue_pairs`. It logs to `log`.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn new(log: &Arc<LogLimit>, queue_pairs: u16) -> io::Result<Self> {
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let changed = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        listen(&events, &changed)?;
        let (negotiated, served, starts) = Default::default();
        let settings = Settings::all(queue_pairs);
        let state = Mutex::new(State { negotiated, settings, served, starts });
        Ok(Self { log: Arc::clone(log), queue_pairs, events, changed, state })
    }

    /// The index of the control queue in a device with these features, if it has one.
    pub const fn index(&self, negotiated: Negotiated) -> Option<u16> {
        control_queue(negotiated, self.queue_pairs)
    }

    /// Readable when [`turn`](Self::turn) has work.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// What the guest has set.
    pub fn settings(&self) -> Settings {
        self.lock().settings
    }

    /// Changes what the guest has set.
    pub fn set(&self, settings: Settings) {
        self.lock().settings = settings;
    }

    /// `SET_FEATURES`. If the features are other ones, the settings are those of a guest that has set
    /// nothing.
    pub fn set_negotiated(&self, negotiated: Negotiated) {
        let mut state = self.lock();
        if state.negotiated != negotiated {
            state.negotiated = negotiated;
            state.settings = Settings::all(self.queue_pairs);
        }
    }

    /// Starts serving the queue `index`. If the queue is new, its guest has set nothing yet, and uses one
    /// queue pair (5.1.6.5.5). If the queue continues where it was, with this daemon or an earlier one, the
    /// settings are kept.
    ///
    /// # Errors
    /// When its setup is wrong, or the system refuses.
    pub fn start(&self, index: u16, start: RingStart) -> Result<(), StartError> {
        let RingStart { setup, memory, dirty, kick, call, error, enabled, .. } = start;
        let mut queue = Queue::new(&setup, &memory).map_err(StartError::Config)?;
        queue.set_log(dirty.clone());
        if let Some(kick) = &kick {
            listen(&self.events, kick.as_ref()).map_err(StartError::System)?;
        }
        let is_new = queue.next_available() & 0x7fff == 0;
        let mut state = self.lock();
        if is_new {
            state.settings = Settings::all(self.queue_pairs);
            if state.negotiated.has(MULTI_QUEUE) {
                state.settings.pairs = 1;
            }
        }
        state.starts += 1;
        let broken = false;
        let mut served =
            Served { index, queue, setup, memory, dirty, kick, call, error, enabled, broken };
        // The process that served the queue before may have ended between publishing and signalling.
        served.signal();
        state.served = Some(served);
        drop(state);
        self.report_change();
        Ok(())
    }

    /// Stops serving the queue. Returns its next available position, if it was served.
    pub fn stop(&self) -> Option<u16> {
        let served = self.lock().served.take()?;
        if let Some(kick) = &served.kick {
            let _ = epoll::delete(&self.events, kick.as_ref());
        }
        self.report_change();
        Some(served.queue.next_available())
    }

    /// Whether commands are carried out; if not, they wait in the queue.
    pub fn enable(&self, enabled: bool) {
        self.change(|served| served.enabled = enabled);
    }

    /// Replaces the call descriptor, and signals on it, because signals on the previous one may have been
    /// lost.
    pub fn set_call(&self, call: Option<Arc<Foreign>>) {
        self.change(|served| {
            served.call = call;
            served.call.iter().for_each(Foreign::signal_elsewhere);
        });
    }

    /// Replaces the error descriptor.
    pub fn set_error(&self, error: Option<Arc<Foreign>>) {
        self.change(|served| served.error = error);
    }

    /// Continues the queue in a new memory table.
    pub fn set_memory(&self, memory: &Arc<GuestMemory>) {
        let log = &self.log;
        self.change(|served| {
            served.setup.next_available = served.queue.next_available();
            match Queue::new(&served.setup, memory) {
                Ok(mut queue) => {
                    queue.set_log(served.dirty.clone());
                    (served.queue, served.memory) = (queue, Arc::clone(memory));
                }
                Err(error) => served.stop_broken(log, &format!("its memory is gone: {error}")),
            }
        });
    }

    /// From now on, marks the pages that it writes, or no longer.
    pub fn set_dirty_log(&self, dirty: Option<RingLog>) {
        self.change(|served| {
            served.queue.set_log(dirty.clone());
            served.dirty = dirty;
        });
    }

    /// Takes the guest's next commands. `carry_out` returns whether it could carry out its command. Returns
    /// the delay until the next turn, if no event will report that there is work.
    pub fn turn(&self, mut carry_out: impl FnMut(Command) -> bool) -> Option<Duration> {
        self.take_events();
        for _ in 0..TURN {
            let Some(Waiting { start, command }) = self.next() else { return self.rest() };
            let is_done = command.is_some_and(&mut carry_out);
            self.answer(start, if is_done { OK } else { ERR });
        }
        Some(PAUSE)
    }

    /// Called when there is no command. Enables notifications, and reads the queue once more.
    fn rest(&self) -> Option<Duration> {
        let mut state = self.lock();
        let served = state.served.as_mut().filter(|served| served.is_enabled())?;
        served.queue.enable_notification();
        if served.queue.has_grown() {
            return Some(Duration::ZERO);
        }
        served.kick.is_none().then_some(LOOK)
    }

    fn next(&self) -> Option<Waiting> {
        let mut state = self.lock();
        let (start, negotiated) = (state.starts, state.negotiated);
        let served = state.served.as_mut().filter(|served| served.is_enabled())?;
        let mut bytes = Vec::new();
        let is_waiting = served.with_next(&self.log, |queue, chains| {
            bytes = front(chains.request().0);
            queue.put_back(chains.all()[0].slots);
        });
        let command = Command::read(&bytes, negotiated, self.queue_pairs);
        if is_waiting && command.is_none() {
            let index = served.index;
            log_limit::warn!(self.log, "queue {index}: a command was refused: {bytes:02x?}");
        }
        is_waiting.then_some(Waiting { start, command })
    }

    /// Returns the chain at the head of the queue with `status`, unless the queue was stopped meanwhile.
    fn answer(&self, start: u64, status: u8) {
        let mut state = self.lock();
        if state.starts != start {
            return;
        }
        let Some(served) = state.served.as_mut().filter(|served| served.is_enabled()) else {
            return;
        };
        let index = served.index;
        let memory = Arc::clone(&served.memory);
        served.with_next(&self.log, |queue, chains| {
            let room = chains.request().1.first();
            let written = room.map_or(0, |room| room.write(0, &[status]));
            if written == 0 {
                log_limit::warn!(self.log, "queue {index}: a command without room for its answer");
            }
            if let Some(marker) = queue.marker() {
                marker.mark_run(&memory, chains.request().1, written);
            }
            chains.set_written(0, u32::from(written > 0));
            queue.complete_written(chains.all());
            queue.publish();
        });
        served.signal();
    }

    fn take_events(&self) {
        let mut taken = Vec::with_capacity(4);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // If this fails, the events are still there at the next turn.
        let _ = epoll::wait(&self.events, rustix::buffer::spare_capacity(&mut taken), Some(&now));
    }

    fn report_change(&self) {
        // Our own descriptor, non-blocking. If its counter is full, an earlier change is still reported.
        let _ = rustix::io::write(&self.changed, &1_u64.to_ne_bytes());
    }

    fn change(&self, change: impl FnOnce(&mut Served)) {
        if let Some(served) = &mut self.lock().served {
            change(served);
        }
        self.report_change();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Settings {
    /// Settings of a guest that has set nothing, with `queue_pairs` queue pairs.
    const fn all(queue_pairs: u16) -> Self {
        Self { pairs: queue_pairs, switched_off: 0, address: None }
    }

    /// The features that are in effect.
    pub const fn apply(&self, negotiated: Negotiated) -> Negotiated {
        Negotiated(negotiated.0 & !self.switched_off)
    }

    /// Whether virtqueue `index`, which is not the control queue, belongs to a queue pair in use.
    pub const fn has_ring(&self, index: u16) -> bool {
        index / 2 < self.pairs
    }

    /// The configuration space with the address that the guest set.
    pub fn config(&self, config: ConfigSpace) -> ConfigSpace {
        self.address.map_or(config, |address| config.with_address(address))
    }
}

impl Served {
    const fn is_enabled(&self) -> bool {
        self.enabled && !self.broken
    }

    /// Takes the next chain, if there is one, and calls `with` with a list of only this chain. Returns
    /// whether there was one.
    fn with_next(
        &mut self,
        log: &LogLimit,
        with: impl FnOnce(&mut Queue, &mut Chains<'_>),
    ) -> bool {
        let memory = Arc::clone(&self.memory);
        let mut chains = Chains::new();
        let queue = &mut self.queue;
        let mut take = || -> Result<(), RingError> {
            if queue.available_descriptors()? > 0 {
                queue.take(&memory, Access::ReadThenWrite, 1, &mut chains)?;
            }
            Ok(())
        };
        let taken = take();
        if memory.is_torn() {
            self.stop_broken(log, "a part of the guest's memory is missing");
            return false;
        }
        if let Err(error) = taken {
            self.stop_broken(log, &format!("the guest broke it: {error}"));
            return false;
        }
        let found = !chains.is_empty();
        if found {
            with(queue, &mut chains);
        }
        found
    }

    /// Signals the guest that there are used chains, if it needs a notification.
    fn signal(&mut self) {
        if self.queue.needs_notification() {
            self.call.iter().for_each(Foreign::signal_elsewhere);
        }
    }

    fn stop_broken(&mut self, log: &LogLimit, why: &str) {
        self.broken = true;
        self.queue.mark_all();
        log_limit::error!(
            log,
            "queue {} stops, because {why}; it is served again when the guest's driver resets the device",
            self.index
        );
        self.error.iter().for_each(Foreign::signal_elsewhere);
    }
}

/// The first [`COMMAND_LEN_MAX`] bytes of these buffers, or fewer.
fn front(buffers: &[GuestSlice<'_>]) -> Vec<u8> {
    let mut bytes = [0; COMMAND_LEN_MAX];
    let read = |at: usize, buffer: &GuestSlice<'_>| at + buffer.read(0, &mut bytes[at..]);
    let len = buffers.iter().fold(0, read);
    bytes[..len].to_vec()
}

/// From now on, each write to `fd` is an event.
fn listen(events: &OwnedFd, fd: impl AsFd) -> io::Result<()> {
    let (number, flags) = (epoll::EventData::new_u64(0), epoll::EventFlags::IN);
    Ok(epoll::add(events, fd, number, flags | epoll::EventFlags::ET)?)
}
