//! A ring in service.

use std::fmt;
use std::sync::Arc;

use guest_memory::GuestMemory;
use log_limit::LogLimit;
use virtio_net::Negotiated;
use virtqueue::{ConfigError, Queue, QueueSetup, RingError};

use crate::alarm::Alarm;
use crate::custody::Foreign;
use crate::idle::sleep::{Sleeper, Token};
use crate::mailbox::RingStart;
use crate::sys;
use crate::torn::TORN;

/// A ring that was started and not yet stopped.
#[derive(Debug)]
pub struct Ring {
    /// Where messages about it go.
    log: Arc<LogLimit>,
    pub index: u16,
    pub queue: Queue,
    pub memory: Arc<GuestMemory>,
    pub negotiated: Negotiated,
    setup: QueueSetup,
    kick: Option<Arc<Foreign>>,
    call: Option<Arc<Foreign>>,
    error: Option<Arc<Foreign>>,
    /// Ends a signal that blocks, if the worker serves several guests.
    alarm: Option<Arc<Alarm>>,
    pub state: RingState,
    /// When the ring was last looked at, ticks: whatever a later look finds came after this.
    pub last_look: u64,
}

/// Whether a ring is served, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingState {
    /// The front end has not enabled it yet: it is left alone.
    Waiting,
    /// Frames flow.
    Enabled,
    /// The front end disabled it: what the guest sends is discarded, and it gets nothing (vhost-user,
    /// "Ring states").
    Disabled,
    /// The guest broke it: it is left alone until it is started anew.
    Broken,
}

impl Ring {
    pub fn start(
        log: &Arc<LogLimit>,
        index: u16,
        start: RingStart,
        alarm: Option<&Arc<Alarm>>,
        now: u64,
    ) -> Result<Self, ConfigError> {
        let queue = Queue::new(&start.setup, &start.memory)?;
        let (goes_on, said) = (queue.next_available(), start.setup.next_available);
        if goes_on != said {
            log_limit::warn!(
                log,
                "queue {index} goes on at {goes_on}, its used index, not at {said}, where it was"
            );
        }
        let mut ring = Self {
            log: Arc::clone(log),
            index,
            queue,
            memory: start.memory,
            negotiated: start.negotiated,
            setup: start.setup,
            kick: start.kick,
            call: None,
            error: start.error,
            alarm: alarm.cloned(),
            state: if start.enabled { RingState::Enabled } else { RingState::Waiting },
            last_look: now,
        };
        ring.set_call(start.call);
        // The ring is looked at anyway until the worker goes to sleep.
        ring.queue.disable_notification();
        // Whoever served the ring before may have ended between publishing and telling.
        ring.signal();
        Ok(ring)
    }

    pub fn listen(&self, sleeper: &Sleeper) -> std::io::Result<()> {
        match &self.kick {
            Some(kick) => sleeper.add(kick.as_ref(), Token::Kick(self.index)),
            None => Ok(()),
        }
    }

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

    /// A new descriptor for a ring in service. The guest is told at once, wanted or not: QEMU starts a ring
    /// with a descriptor that nobody listens to and gives the guest's own one just after it, and what was
    /// told in between is lost. With the event index, the guest would then never be told again.
    pub fn change_call(&mut self, call: Option<Arc<Foreign>>) {
        self.set_call(call);
        self.tell();
    }

    pub fn set_error(&mut self, error: Option<Arc<Foreign>>) {
        self.error = error;
    }

    /// Goes on in a new memory table.
    pub fn set_memory(&mut self, memory: &Arc<GuestMemory>) {
        self.setup.next_available = self.queue.next_available();
        match Queue::new(&self.setup, memory) {
            Ok(queue) => {
                self.queue = queue;
                self.memory = Arc::clone(memory);
            }
            Err(error) => self.stop_broken(format_args!("its memory is gone: {error}")),
        }
    }

    /// Tells the guest of published chains, if it wants to be told.
    #[inline]
    pub fn signal(&mut self) {
        if self.queue.needs_notification() {
            self.tell();
        }
    }

    #[inline]
    fn tell(&mut self) {
        if let Some(call) = &self.call
            && call.signal(self.alarm.as_deref()).is_err()
        {
            self.give_up_call();
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
    pub fn break_down(&mut self, broken: RingError) {
        if self.memory.is_torn() {
            // The worker read zeroes: the driver is not at fault.
            return self.stop_broken(format_args!("{TORN}"));
        }
        self.stop_broken(format_args!("the guest broke it: {broken}"));
    }

    pub fn stop_broken(&mut self, why: fmt::Arguments<'_>) {
        self.state = RingState::Broken;
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
