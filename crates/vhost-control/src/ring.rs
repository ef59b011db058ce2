//! The state of a ring: its setup by the front end, and whether its worker serves it.
//!
//! A ring starts as soon as it has a size, addresses and a kick, and there is memory, in whatever order the messages come.
//! It stops by `GET_VRING_BASE`, by a reset, or with the connection. A method that starts, stops, enables or disables the
//! ring returns when the worker has done it.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_memory::GuestMemory;
use log_limit::LogLimit;
use virtio_net::Negotiated;
use virtqueue::QueueSetup;
use worker::{Custody, Foreign, Mailbox, RingStart};

/// One virtqueue of a connection.
#[derive(Debug)]
pub struct RingControl {
    /// The log of its guest.
    log: Arc<LogLimit>,
    index: u16,
    mailbox: Arc<Mailbox>,
    custody: Arc<Custody>,
    state: Mutex<State>,
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
    running: bool,
    /// The last message should have started the ring, but the worker could not start it.
    failed: bool,
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
    /// The virtqueue `index`, served by the worker of `mailbox`. It logs to `log`, and `custody` closes its descriptors.
    #[must_use]
    pub fn new(
        log: &Arc<LogLimit>,
        index: u16,
        mailbox: Arc<Mailbox>,
        custody: &Arc<Custody>,
    ) -> Self {
        let (log, custody) = (Arc::clone(log), Arc::clone(custody));
        Self { log, index, mailbox, custody, state: Mutex::default() }
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
        if !state.running {
            state.size = size;
        }
    }

    /// The ring's size, if it runs.
    pub fn running_size(&self) -> Option<u16> {
        let state = self.lock();
        state.running.then_some(state.size)
    }

    /// `SET_VRING_ADDR`. Front ends send it again for a ring that runs, to enable or disable dirty logging. The addresses
    /// do not change then.
    pub fn set_addresses(&self, addresses: [u64; 3]) {
        let mut state = self.change();
        if state.running && state.addresses != Some(addresses) {
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
        if !state.running {
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
        if state.running {
            let _ = self.mailbox.set_call(self.index, state.call.clone());
        }
    }

    /// `SET_VRING_ERR`.
    pub fn set_error(&self, error: Option<File>) {
        let mut state = self.change();
        state.error = self.keep(error);
        if state.running {
            let _ = self.mailbox.set_error(self.index, state.error.clone());
        }
    }

    /// `SET_VRING_ENABLE`.
    pub fn set_enabled(&self, enabled: bool) {
        let mut state = self.change();
        state.enabled = enabled;
        if state.running {
            let _ = self.mailbox.enable(self.index, enabled);
        }
    }

    /// `SET_FEATURES`: takes effect at the next start.
    pub fn set_negotiated(&self, negotiated: Negotiated) {
        self.change().negotiated = negotiated;
    }

    /// A new memory table. The session gives it to the worker, once for all rings.
    pub fn set_memory(&self, memory: &Arc<GuestMemory>) {
        let mut state = self.change();
        state.memory = Some(Arc::clone(memory));
        self.start_if_ready(&mut state);
    }

    /// `GET_VRING_BASE`: the worker lets go of the ring.
    pub fn stop(&self) {
        let mut state = self.change();
        self.stop_if_running(&mut state);
        state.kick = Kick::Stopped;
    }

    /// A reset or the end of the connection: the worker lets go of the ring, and its setup is forgotten.
    pub fn reset(&self) {
        let mut state = self.change();
        self.stop_if_running(&mut state);
        *state = State::default();
    }

    fn start_if_ready(&self, state: &mut State) {
        let (Some(memory), Some([descriptor_table, driver_area, device_area])) =
            (&state.memory, state.addresses)
        else {
            return;
        };
        let Kick::Set(kick) = &state.kick else { return };
        if state.running || state.size == 0 {
            return;
        }
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
            negotiated: state.negotiated,
            // The same descriptors, not duplicates: duplicating may fail, and a ring must not start without its call.
            kick: kick.clone(),
            call: state.call.clone(),
            error: state.error.clone(),
            enabled: state.enabled,
        };
        match self.mailbox.start(self.index, start) {
            Ok(()) => {
                state.running = true;
                let at = setup.next_available;
                log::debug!("{}queue {} starts at {at}: {setup:x?}", self.log.prefix(), self.index);
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
        if !std::mem::take(&mut state.running) {
            return;
        }
        if let Ok(Some(next_available)) = self.mailbox.stop(self.index) {
            state.next_available = next_available;
        }
        log::debug!(
            "{}queue {} stopped at {}",
            self.log.prefix(),
            self.index,
            state.next_available
        );
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
