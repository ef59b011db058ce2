//! The state of a ring: its setup by the front end, and whether its worker serves it.
//!
//! A ring starts as soon as it has a size, addresses and a kick, and there is memory, in whatever order the messages come.
//! If pages are to be logged for a live migration, it waits for the log, too (`message/judge/dirty.rs`).
//! It stops by `GET_VRING_BASE`, by a reset, or with the connection. A method that starts, stops, enables or disables the
//! ring returns when the worker has done it.
//!
//! A worker serves it, or, if it is the control queue, the connection ([`crate::control`]).

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_memory::{DirtyLog, GuestMemory};
use log_limit::LogLimit;
use ring_journal::{Journal, Slot};
use virtio_net::Negotiated;
use virtqueue::{QueueSetup, RingLog};
use worker::{Custody, Foreign, Heritage, Mailbox, RingStart};

use crate::announcer::Announcer;
use crate::control::ControlQueue;
use crate::device::Device;
use crate::handover::Stand;

/// One virtqueue of a connection.
#[derive(Debug)]
pub struct RingControl {
    /// The log of its guest.
    log: Arc<LogLimit>,
    index: u16,
    /// The worker that serves it, unless it is the control queue; `None` if it is nothing else.
    mailbox: Option<Arc<Mailbox>>,
    control: Arc<ControlQueue>,
    custody: Arc<Custody>,
    announcer: Arc<Announcer>,
    journal: Option<Arc<Journal>>,
    state: Mutex<State>,
}

/// What serves a ring.
#[derive(Clone, Debug)]
enum Server {
    Worker(Arc<Mailbox>),
    Control(Arc<ControlQueue>),
}

/// The setup by the front end, and what came of it.
#[derive(Debug, Default)]
struct State {
    size: u16,
    /// Guest-physical: descriptor table, driver area, device area.
    addresses: Option<[u64; 3]>,
    next_available: u16,
    kick: Kick,
    call: Option<Arc<Foreign>>,
    error: Option<Arc<Foreign>>,
    enabled: bool,
    negotiated: Negotiated,
    memory: Option<Arc<GuestMemory>>,
    dirty: Dirty,
    /// What serves it, if it runs.
    server: Option<Server>,
    /// The features with which it was started.
    started: Negotiated,
    /// What its worker was told last: whether it is enabled, and the features.
    told: (bool, Negotiated),
    /// The last message should have started the ring, but the worker could not start it.
    failed: bool,
}

/// What the front end said of pages that are to be logged.
#[derive(Debug, Default)]
struct Dirty {
    /// `SET_LOG_BASE`.
    log: Option<Arc<DirtyLog>>,
    /// `SET_FEATURES`, `VHOST_F_LOG_ALL`.
    all: bool,
    /// `SET_VRING_ADDR`: where the device area is to be logged.
    device_area: Option<u64>,
}

impl Dirty {
    /// Whether pages are to be logged, and where is not known yet. Nothing may be written then.
    const fn is_missing(&self) -> bool {
        self.all && self.log.is_none()
    }

    /// Where to mark pages, if they are to be logged.
    fn ring_log(&self) -> Option<RingLog> {
        let log = self.log.as_ref().filter(|_| self.all)?;
        Some(RingLog { log: Arc::clone(log), device_area: self.device_area })
    }
}

/// Whether the front end has set a kick.
#[derive(Debug, Default)]
enum Kick {
    /// No: the ring must not start.
    #[default]
    Unset,
    /// `SET_VRING_KICK`, with a descriptor or without one (then the worker polls).
    Set(Option<Arc<Foreign>>),
    /// The ring was stopped. The framework clears the descriptor next, without a message of the front end.
    Stopped,
}

impl RingControl {
    /// The virtqueue `index` of `device`, served by the worker of `mailbox`, or as the control queue `control`. `announcer`:
    /// of its guest. `custody` closes its descriptors.
    #[must_use]
    pub fn new(
        device: &Device,
        index: u16,
        mailbox: Option<Arc<Mailbox>>,
        control: &Arc<ControlQueue>,
        announcer: &Arc<Announcer>,
        custody: &Arc<Custody>,
    ) -> Self {
        let (log, journal) = (Arc::clone(&device.log), device.journal.clone());
        let (control, custody) = (Arc::clone(control), Arc::clone(custody));
        let announcer = Arc::clone(announcer);
        Self { log, index, mailbox, control, custody, announcer, journal, state: Mutex::default() }
    }

    /// The log of its guest.
    #[must_use]
    pub const fn log(&self) -> &Arc<LogLimit> {
        &self.log
    }

    /// Whether the last message should have started the ring, and the worker could not start it.
    pub fn has_failed(&self) -> bool {
        self.lock().failed
    }

    /// `SET_VRING_NUM`. A ring that runs keeps its size.
    pub fn set_size(&self, size: u16) {
        let mut state = self.change();
        if state.server.is_none() {
            state.size = size;
        }
    }

    /// The ring's size, if it runs.
    pub fn running_size(&self) -> Option<u16> {
        let state = self.lock();
        state.server.is_some().then_some(state.size)
    }

    /// `SET_VRING_ADDR`. Front ends send it again for a ring that runs, to enable or disable dirty logging. The addresses
    /// do not change then.
    pub fn set_addresses(&self, addresses: [u64; 3]) {
        let mut state = self.change();
        if state.server.is_some() && state.addresses != Some(addresses) {
            log_limit::warn!(
                self.log,
                "queue {}: its new addresses take effect at its next start, because it runs",
                self.index
            );
        }
        state.addresses = Some(addresses);
        self.start_if_ready(&mut state);
    }

    /// `SET_VRING_BASE`.
    pub fn set_next_available(&self, index: u16) {
        let mut state = self.change();
        if state.server.is_none() {
            state.next_available = index;
        }
    }

    /// `GET_VRING_BASE`: the position where the ring continues. Exact when it is stopped.
    pub fn next_available(&self) -> u16 {
        self.lock().next_available
    }

    /// `SET_VRING_KICK`, or the framework's clearing after a stop.
    pub fn set_kick(&self, kick: Option<File>) {
        let mut state = self.change();
        if kick.is_none() && matches!(state.kick, Kick::Stopped) {
            state.kick = Kick::Unset;
            return;
        }
        // A ring that runs continues at its position, with the new kick.
        self.stop_if_running(&mut state);
        state.kick = Kick::Set(self.keep(kick));
        self.start_if_ready(&mut state);
    }

    /// `SET_VRING_CALL`, or the framework's clearing after a stop.
    pub fn set_call(&self, call: Option<File>) {
        let mut state = self.change();
        state.call = self.keep(call);
        match &state.server {
            Some(Server::Worker(mailbox)) => {
                let _ = mailbox.set_call(self.index, state.call.clone());
            }
            Some(Server::Control(control)) => control.set_call(state.call.clone()),
            None => {}
        }
    }

    /// `SET_VRING_ERR`.
    pub fn set_error(&self, error: Option<File>) {
        let mut state = self.change();
        state.error = self.keep(error);
        match &state.server {
            Some(Server::Worker(mailbox)) => {
                let _ = mailbox.set_error(self.index, state.error.clone());
            }
            Some(Server::Control(control)) => control.set_error(state.error.clone()),
            None => {}
        }
    }

    /// `SET_VRING_ENABLE`.
    pub fn set_enabled(&self, enabled: bool) {
        let mut state = self.change();
        state.enabled = enabled;
        let State { server, told, .. } = &mut *state;
        match server {
            Some(Server::Worker(mailbox)) => {
                told.0 = enabled && self.control.settings().has_ring(self.index);
                let _ = mailbox.enable(self.index, told.0);
                if told.0 {
                    self.announcer.rings_run();
                }
            }
            Some(Server::Control(control)) => control.enable(enabled),
            None => {}
        }
    }

    /// Gives the worker what the guest set by commands, where it is new.
    ///
    /// # Errors
    /// When the offloads cannot be changed.
    pub fn follow_settings(&self) -> io::Result<()> {
        let mut state = self.lock();
        let State { server: Some(Server::Worker(mailbox)), told, enabled, started, .. } =
            &mut *state
        else {
            return Ok(());
        };
        let settings = self.control.settings();
        let enable = *enabled && settings.has_ring(self.index);
        if std::mem::replace(&mut told.0, enable) != enable {
            let _ = mailbox.enable(self.index, enable);
        }
        // Only frames to the guest have offloads that it switches.
        let features = settings.apply(*started);
        if self.index.is_multiple_of(2) && told.1 != features {
            mailbox.renegotiate(self.index, features)?;
            told.1 = features;
        }
        Ok(())
    }

    /// `SET_FEATURES`: takes effect at the next start.
    pub fn set_negotiated(&self, negotiated: Negotiated) {
        self.change().negotiated = negotiated;
    }

    /// `SET_LOG_BASE`: the log that replaces the one before. A ring that waits for it starts.
    pub fn set_dirty_log(&self, log: &Arc<DirtyLog>) {
        let mut state = self.change();
        // The worker must not be the one that unmaps it.
        let _before = state.dirty.log.replace(Arc::clone(log));
        self.follow_dirty_log(&state);
        self.start_if_ready(&mut state);
    }

    /// `SET_FEATURES`: whether pages are logged from now on. Returns when the worker marks them.
    pub fn set_logging(&self, all: bool) {
        let mut state = self.change();
        if state.dirty.all != all {
            state.dirty.all = all;
            self.follow_dirty_log(&state);
            self.start_if_ready(&mut state);
        }
    }

    /// `SET_VRING_ADDR`: where the device area is logged.
    pub fn set_logged_at(&self, device_area: Option<u64>) {
        let mut state = self.change();
        if state.dirty.device_area != device_area {
            state.dirty.device_area = device_area;
            self.follow_dirty_log(&state);
        }
    }

    fn follow_dirty_log(&self, state: &State) {
        match &state.server {
            Some(Server::Worker(mailbox)) => {
                let _ = mailbox.set_dirty_log(self.index, state.dirty.ring_log());
            }
            Some(Server::Control(control)) => control.set_dirty_log(state.dirty.ring_log()),
            None => {}
        }
    }

    /// Has the guest of the ring announced.
    pub const fn announcer(&self) -> &Arc<Announcer> {
        &self.announcer
    }

    /// A new memory table. The session gives it to the worker, once for all rings.
    pub fn set_memory(&self, memory: &Arc<GuestMemory>) {
        let mut state = self.change();
        state.memory = Some(Arc::clone(memory));
        if let Some(Server::Control(control)) = &state.server {
            control.set_memory(memory);
        }
        self.start_if_ready(&mut state);
    }

    /// `GET_VRING_BASE`: the worker lets go of the ring.
    pub fn stop(&self) {
        let mut state = self.change();
        self.stop_if_running(&mut state);
        state.kick = Kick::Stopped;
        // The front end knows the position from now on.
        self.forget();
    }

    /// Another daemon goes on with the ring. Returns where it stands; `None` if it cannot be stopped.
    pub fn release(&self) -> Option<Stand> {
        let mut state = self.lock();
        let (next_available, heritage) = match &state.server {
            Some(Server::Worker(mailbox)) => {
                let released = mailbox.release(self.index).ok()?;
                released.map_or_else(Default::default, |it| (it.next_available, it.heritage))
            }
            Some(Server::Control(control)) => (control.stop(), Heritage::default()),
            None => (None, Heritage::default()),
        };
        state.server = None;
        state.next_available = next_available.unwrap_or(state.next_available);
        Some(Stand { next_available: state.next_available, heritage })
    }

    /// What it had in the daemon before, for its next start.
    pub fn inherit(&self, heritage: Heritage) {
        if let Some(mailbox) = self.mailbox.as_ref().filter(|_| heritage != Heritage::default()) {
            let _ = mailbox.inherit(self.index, heritage);
        }
    }

    /// No other daemon goes on with the ring: it is served again if it was.
    pub fn take_back(&self, heritage: Heritage) {
        self.inherit(heritage);
        self.start_if_ready(&mut self.change());
    }

    /// Whether frames flow, or would if the guest had not broken the ring.
    pub fn is_served(&self) -> bool {
        let state = self.lock();
        state.server.is_some() && state.told.0
    }

    /// The guest resets the device: nothing that was noted of the ring is true any more.
    pub fn forget(&self) {
        if let Some(slot) = self.slot() {
            slot.forget();
        }
    }

    fn slot(&self) -> Option<Slot> {
        self.journal.as_ref()?.slot(self.index)
    }

    /// A reset or the end of the connection: the worker lets go of the ring, and its setup is forgotten.
    pub fn reset(&self) {
        let mut state = self.change();
        self.stop_if_running(&mut state);
        let log = state.dirty.log.take();
        *state = State { dirty: Dirty { log, ..Dirty::default() }, ..State::default() };
    }

    fn start_if_ready(&self, state: &mut State) {
        let (Some(memory), Some([descriptor_table, driver_area, device_area])) =
            (&state.memory, state.addresses)
        else {
            return;
        };
        let Kick::Set(kick) = &state.kick else { return };
        if state.server.is_some() || state.size == 0 || state.dirty.is_missing() {
            return;
        }
        let is_control = self.control.index(state.negotiated) == Some(self.index);
        let server = match &self.mailbox {
            _ if is_control => Some(Server::Control(Arc::clone(&self.control))),
            mailbox => mailbox.clone().map(Server::Worker),
        };
        let settings = self.control.settings();
        let enabled = state.enabled && (is_control || settings.has_ring(self.index));
        let negotiated = settings.apply(state.negotiated);
        let setup = QueueSetup {
            size: state.size,
            descriptor_table,
            driver_area,
            device_area,
            next_available: state.next_available,
            packed: state.negotiated.packed(),
            in_order: state.negotiated.in_order(),
            event_index: state.negotiated.event_index(),
            indirect: state.negotiated.indirect(),
        };
        let start = RingStart {
            setup,
            memory: Arc::clone(memory),
            dirty: state.dirty.ring_log(),
            negotiated,
            // The same descriptors, not duplicates: duplicating may fail, and a ring must not start without its call.
            kick: kick.clone(),
            call: state.call.clone(),
            error: state.error.clone(),
            enabled,
            journal: self.slot().filter(|_| !is_control),
        };
        let started = match &server {
            Some(Server::Worker(mailbox)) => {
                mailbox.start(self.index, start).map_err(|error| error.to_string())
            }
            Some(Server::Control(control)) => {
                control.start(self.index, start).map_err(|error| error.to_string())
            }
            None => Err("it is the control queue, which was not negotiated".into()),
        };
        match started {
            Ok(()) => {
                (state.server, state.started) = (server, state.negotiated);
                state.told = (enabled, negotiated);
                if enabled {
                    self.announcer.rings_run();
                }
                let at = setup.next_available;
                log_limit::debug!(self.log, "queue {} starts at {at}: {setup:x?}", self.index);
            }
            Err(error) => {
                state.failed = true;
                log_limit::error!(self.log, "queue {} cannot be served: {error}", self.index);
                if let Some(error) = &state.error {
                    error.signal_elsewhere();
                }
            }
        }
    }

    fn stop_if_running(&self, state: &mut State) {
        let stopped = match state.server.take() {
            Some(Server::Worker(mailbox)) => mailbox.stop(self.index).ok().flatten(),
            Some(Server::Control(control)) => control.stop(),
            None => return,
        };
        state.next_available = stopped.unwrap_or(state.next_available);
        log_limit::debug!(self.log, "queue {} stopped at {}", self.index, state.next_available);
    }

    fn keep(&self, file: Option<File>) -> Option<Arc<Foreign>> {
        file.map(|file| Arc::new(self.custody.take(file.into())))
    }

    /// For a message, which begins with no failure.
    fn change(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.failed = false;
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
