//! A ring in service.

use std::fmt;
use std::sync::Arc;

use burst_trace::Notification;
use guest_memory::GuestMemory;
use log_limit::LogLimit;
use ring_journal::Slot;
use virtio_net::Negotiated;
use virtqueue::{ConfigError, Queue, QueueSetup, Resumed, RingError, RingLog, Unfit};

use crate::alarm::Alarm;
use crate::custody::{Foreign, Hung};
use crate::idle::sleep::{Sleeper, Token};
use crate::mailbox::RingStart;
use crate::operator::StartedRing;
use crate::sys;

/// The reason in the log for a ring whose memory became shorter.
const TORN: &str =
    "a part of the guest's memory is missing (its file was truncated, or its file system is full)";

/// The reason in the log for a ring whose dirty log became shorter.
const LOG_TORN: &str = "the file of its dirty log became shorter during a migration, so that pages that it wrote could not \
                        be marked";

/// A ring that was started and not yet stopped.
#[derive(Debug)]
pub struct Ring {
    /// Where messages about it go.
    log: Arc<LogLimit>,
    index: u16,
    queue: Queue,
    memory: Arc<GuestMemory>,
    negotiated: Negotiated,
    setup: QueueSetup,
    /// Where pages that it writes are marked, while the front end logs.
    dirty: Option<RingLog>,
    kick: Option<Arc<Foreign>>,
    call: Option<Arc<Foreign>>,
    error: Option<Arc<Foreign>>,
    /// Ends a signal that blocks, if the worker serves several guests.
    alarm: Option<Arc<Alarm>>,
    state: RingState,
    /// When the ring was last looked at, ticks: whatever a later look finds came after this.
    last_look: u64,
    /// If it went on where a daemon before this one stood: most frames that are sent again.
    again: Option<u16>,
}

/// Whether a ring is served, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingState {
    /// The front end has not enabled it yet: it is left alone.
    Waiting,
    /// Frames flow.
    Enabled,
    /// The front end disabled it: frames from the guest are dropped, and it gets none (vhost-user, "Ring states").
    Disabled,
    /// The guest broke it: it is left alone until it is started again.
    Broken,
}

/// Logs when a ring that starts does not continue where the front end says, or can never continue there.
fn note_position(log: &LogLimit, index: u16, queue: &Queue, setup: QueueSetup) {
    let (goes_on, said) = (queue.next_available(), setup.next_available);
    if queue.is_past() {
        let (slot, wrap) = (goes_on & 0x7fff, goes_on >> 15);
        log_limit::warn!(
            log,
            "queue {index}: nothing can become available at descriptor {slot} with wrap counter {wrap}, where its packed \
             ring goes on as the front end says; if no frames come through, withhold packed rings from this guest"
        );
    } else if goes_on != said && setup.packed {
        log_limit::warn!(
            log,
            "queue {index}: its new packed ring begins with wrap counter 1, not 0 as the front end says"
        );
    } else if goes_on != said {
        log_limit::warn!(
            log,
            "queue {index} goes on at {goes_on}, its used index, not at {said} as the front end says"
        );
    }
}

/// Logs that a ring goes on as the journal says, if the front end knows less.
fn note_resumed(log: &LogLimit, index: u16, resumed: Resumed, setup: QueueSetup) {
    let Resumed { position, again } = resumed;
    if setup.packed && position != setup.next_available {
        let (slot, wrap) = (position & 0x7fff, position >> 15);
        log_limit::info!(
            log,
            "queue {index} goes on at descriptor {slot} with wrap counter {wrap}, as the journal says"
        );
    }
    if again > 0 {
        log_limit::info!(
            log,
            "queue {index}: up to {again} frame(s) that the daemon before had taken are sent again"
        );
    }
}

/// Logs that what the journal says of a ring does not fit it. That is usual if it is of an earlier guest, which left without
/// a word.
fn note_unfit(log: &LogLimit, index: u16, why: Unfit) {
    match why {
        Unfit::Setup | Unfit::Used { .. } => {
            log_limit::debug!(log, "queue {index}: the journal has another ring: {why}");
        }
        Unfit::Reset | Unfit::Said { .. } => log_limit::info!(
            log,
            "queue {index} does not go on as the journal says, because {why}; it goes on as the front end says"
        ),
        Unfit::Outside | Unfit::Descriptors => log_limit::warn!(
            log,
            "queue {index} does not go on as the journal says, because {why}; it goes on as the front end says, and if no \
             frames come through, the guest's driver must be reset"
        ),
    }
}

/// The position at which a new ring begins (virtio 1.2, 2.7.6 and 2.8.1: the wrap counter is 1).
const fn beginning(setup: QueueSetup) -> u16 {
    if setup.packed { 1 << 15 } else { 0 }
}

impl Ring {
    pub fn start(
        log: &Arc<LogLimit>,
        index: u16,
        start: RingStart,
        alarm: Option<&Arc<Alarm>>,
        now: u64,
    ) -> Result<Self, ConfigError> {
        let mut queue = Queue::new(&start.setup, &start.memory)?;
        let journal = start.journal;
        let is_of_daemon_before = journal.as_ref().is_some_and(Slot::is_of_daemon_before);
        let resumed = journal.and_then(|journal| queue.resume(&start.setup, journal));
        let again = match resumed {
            // At position 0 it may be the ring of a guest that was started again.
            Some(Ok(it)) if is_of_daemon_before && it.position != beginning(start.setup) => {
                Some(it.again)
            }
            _ => None,
        };
        match resumed {
            Some(Ok(resumed)) => note_resumed(log, index, resumed, start.setup),
            Some(Err(unfit)) => note_unfit(log, index, unfit),
            None => {}
        }
        // A packed ring that goes on by the journal goes on elsewhere than the front end says.
        if !(start.setup.packed && matches!(resumed, Some(Ok(_)))) {
            note_position(log, index, &queue, start.setup);
        }
        queue.set_log(start.dirty.clone());
        if resumed.is_some() {
            // It may have shown what the daemon before had written.
            queue.mark_all();
        }
        let mut ring = Self {
            log: Arc::clone(log),
            index,
            queue,
            memory: start.memory,
            negotiated: start.negotiated,
            setup: start.setup,
            dirty: start.dirty,
            kick: start.kick,
            call: None,
            error: start.error,
            alarm: alarm.cloned(),
            state: if start.enabled { RingState::Enabled } else { RingState::Waiting },
            last_look: now,
            again,
        };
        ring.set_call(start.call);
        // The ring is looked at anyway until the worker goes to sleep.
        ring.queue.disable_notification();
        Ok(ring)
    }

    /// If the ring went on where a daemon before this one stood: most frames that are sent again.
    pub const fn again(&self) -> Option<u16> {
        self.again
    }

    pub const fn state(&self) -> RingState {
        self.state
    }

    /// How it stands, for the operator.
    pub const fn standing(&self) -> StartedRing {
        StartedRing {
            size: self.queue.size(),
            features: self.negotiated.0,
            next_available: self.queue.next_available(),
            has_kick: self.kick.is_some(),
            has_call: self.call.is_some(),
            is_logging: self.queue.is_logging(),
            waits_for: None,
        }
    }

    #[inline]
    pub fn is_enabled(&self) -> bool {
        self.state == RingState::Enabled
    }

    pub const fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    pub const fn negotiated(&self) -> Negotiated {
        self.negotiated
    }

    /// Other features of those that do not change the ring itself.
    pub const fn set_negotiated(&mut self, negotiated: Negotiated) {
        self.negotiated = negotiated;
    }

    #[inline]
    pub const fn queue(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// The queue, the memory it is in, and what was negotiated.
    #[inline]
    pub fn parts(&mut self) -> (&mut Queue, &GuestMemory, Negotiated) {
        (&mut self.queue, &self.memory, self.negotiated)
    }

    /// Whether the driver made chains available since the last look.
    #[inline]
    pub fn has_grown(&self) -> bool {
        self.queue.has_grown()
    }

    pub const fn last_look(&self) -> u64 {
        self.last_look
    }

    /// Notes a look at `now`, ticks. Returns the time of the look before.
    #[inline]
    pub const fn note_look(&mut self, now: u64) -> u64 {
        std::mem::replace(&mut self.last_look, now)
    }

    /// Asks for kicks from now on.
    pub fn enable_notification(&mut self) {
        self.queue.enable_notification();
    }

    /// Asks for no kicks while the ring is looked at anyway. A broken ring is left alone: its driver may use that memory for
    /// something else already.
    pub fn disable_notification(&mut self) {
        if matches!(self.state, RingState::Enabled | RingState::Disabled) {
            self.queue.disable_notification();
        }
    }

    /// Stops the ring if a part of its memory, or of its dirty log, is missing. Returns whether it did.
    pub fn break_if_torn(&mut self) -> bool {
        if self.state == RingState::Broken {
            return false;
        }
        let log_is_torn = self.dirty.as_ref().is_some_and(|dirty| dirty.log.is_torn());
        let is_torn = self.memory.is_torn();
        if is_torn {
            self.stop_broken(format_args!("{TORN}"));
        } else if log_is_torn {
            self.stop_broken(format_args!("{LOG_TORN}"));
        }
        is_torn || log_is_torn
    }

    /// From now on, marks the pages that it writes, or no longer.
    pub fn set_dirty_log(&mut self, dirty: Option<RingLog>) {
        self.queue.set_log(dirty.clone());
        self.dirty = dirty;
    }

    /// From now on, kicks wake the worker up. `guest`: its number among those of the worker.
    pub fn listen(&self, guest: usize, sleeper: &Sleeper) -> std::io::Result<()> {
        match &self.kick {
            Some(kick) => sleeper.add(kick.as_ref(), Token::kick(guest, self.index)),
            None => Ok(()),
        }
    }

    /// Whether the front end gave a kick. Without one, only polling sees the ring's chains (vhost-user,
    /// `VHOST_USER_VRING_NOFD_MASK`).
    pub const fn has_kick(&self) -> bool {
        self.kick.is_some()
    }

    pub fn ignore(&self, sleeper: &Sleeper) {
        if let Some(kick) = &self.kick {
            sleeper.remove(kick.as_ref());
        }
    }

    pub fn set_enabled(&mut self, enabled: bool) {
        self.state = match (self.state, enabled) {
            (RingState::Broken, _) => RingState::Broken,
            (_, true) => RingState::Enabled,
            (RingState::Waiting, false) => RingState::Waiting,
            (RingState::Enabled | RingState::Disabled, false) => RingState::Disabled,
        };
    }

    pub fn set_call(&mut self, call: Option<Arc<Foreign>>) {
        self.call = call;
        if let Some(call) = &self.call
            && let Err(error) = sys::set_nonblocking(call.as_ref())
        {
            log_limit::warn!(
                self.log,
                "queue {}: its call descriptor may block: {error}",
                self.index
            );
        }
    }

    /// A new descriptor for a ring in service. The guest gets a signal immediately, wanted or not: QEMU starts a ring with
    /// a descriptor that nobody listens to and gives the guest's own one just after it, and signals in between are lost.
    /// With the event index, the guest would then never get a signal again. Returns what became of the signal, to be
    /// counted.
    #[must_use]
    pub fn change_call(&mut self, call: Option<Arc<Foreign>>) -> Notification {
        self.set_call(call);
        self.write_call()
    }

    pub fn set_error(&mut self, error: Option<Arc<Foreign>>) {
        self.error = error;
    }

    /// Goes on in a new memory table.
    pub fn set_memory(&mut self, memory: &Arc<GuestMemory>) {
        self.setup.next_available = self.queue.next_available();
        match Queue::new(&self.setup, memory) {
            Ok(mut queue) => {
                queue.inherit_journal(&mut self.queue);
                queue.set_log(self.dirty.clone());
                self.queue = queue;
                self.memory = Arc::clone(memory);
            }
            Err(error) => self.stop_broken(format_args!("its memory is gone: {error}")),
        }
    }

    /// Signals the guest that chains are used, if it needs a notification. Returns what became of the signal, to be
    /// counted.
    #[inline]
    #[must_use]
    pub fn signal(&mut self) -> Notification {
        if self.queue.needs_notification() {
            self.write_call()
        } else {
            Notification::CallSuppressed
        }
    }

    #[inline]
    fn write_call(&mut self) -> Notification {
        let Some(call) = &self.call else { return Notification::CallSuppressed };
        match call.signal(self.alarm.as_deref()) {
            Ok(true) => Notification::CallSent,
            Ok(false) => Notification::CallRefused,
            Err(Hung) => {
                self.give_up_call();
                Notification::CallRefused
            }
        }
    }

    #[cold]
    fn give_up_call(&mut self) {
        self.call = None;
        if self.state != RingState::Broken {
            self.stop_broken(format_args!(
                "its front end made a write to the call descriptor block"
            ));
        }
    }

    #[cold]
    pub fn break_down(&mut self, error: RingError) {
        if self.memory.is_torn() {
            // The worker read zeroes, so the driver is not at fault.
            return self.stop_broken(format_args!("{TORN}"));
        }
        self.stop_broken(format_args!("the guest broke it: {error}"));
    }

    pub fn stop_broken(&mut self, why: fmt::Arguments<'_>) {
        self.state = RingState::Broken;
        // A burst may have been cut short.
        self.queue.mark_all();
        log_limit::error!(
            self.log,
            "queue {} stops, because {why}; it is served again when the guest's driver resets the device",
            self.index
        );
        if let Some(error) = &self.error {
            error.signal_elsewhere();
        }
    }
}
