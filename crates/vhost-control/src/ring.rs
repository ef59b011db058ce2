//! The life of a ring: what the front end has said of it, and whether its worker serves it.
//!
//! A ring is started as soon as its size, addresses and kick are known and there is memory, whatever the
//! order of messages; it is stopped by `GET_VRING_BASE`, a reset, or the end of the connection. Every
//! method that starts, stops, enables or disables returns after the worker has done it.

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
    /// Where messages about it go.
    log: Arc<LogLimit>,
    index: u16,
    mailbox: Arc<Mailbox>,
    custody: Arc<Custody>,
    said: Mutex<Said>,
}

/// What the front end has said.
#[derive(Debug, Default)]
struct Said {
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
}

/// What the front end has said of the kick.
#[derive(Debug, Default)]
enum Kick {
    /// Nothing: the ring must not start.
    #[default]
    Unset,
    /// `SET_VRING_KICK`, with a descriptor or without one (then the worker polls).
    Set(Option<Arc<Foreign>>),
    /// The ring was stopped; the framework clears the descriptor next, and that is no message.
    Stopped,
}

impl RingControl {
    /// The virtqueue `index`, served by the worker of `mailbox`. Messages about it go to `log`, and `custody` closes its
    /// descriptors.
    #[must_use]
    pub fn new(
        log: &Arc<LogLimit>,
        index: u16,
        mailbox: Arc<Mailbox>,
        custody: &Arc<Custody>,
    ) -> Self {
        let (log, custody) = (Arc::clone(log), Arc::clone(custody));
        Self { log, index, mailbox, custody, said: Mutex::default() }
    }

    /// Where messages about it go.
    #[must_use]
    pub const fn log(&self) -> &Arc<LogLimit> {
        &self.log
    }

    /// `SET_VRING_NUM`. A ring that runs keeps its size.
    pub fn set_size(&self, size: u16) {
        let mut said = self.said();
        if !said.running {
            said.size = size;
        }
    }

    /// The ring's size, if it runs.
    pub fn running_size(&self) -> Option<u16> {
        let said = self.said();
        said.running.then_some(said.size)
    }

    /// `SET_VRING_ADDR`. Front ends send it again for a ring that runs, to switch dirty logging on or off;
    /// the ring itself does not move then.
    pub fn set_addresses(&self, addresses: [u64; 3]) {
        let mut said = self.said();
        if said.running && said.addresses != Some(addresses) {
            log_limit::warn!(
                self.log,
                "queue {}: new addresses while it runs count from its next start",
                self.index
            );
        }
        said.addresses = Some(addresses);
        self.start_if_ready(&mut said);
    }

    /// `SET_VRING_BASE`.
    pub fn set_next_available(&self, index: u16) {
        let mut said = self.said();
        if !said.running {
            said.next_available = index;
        }
    }

    /// `GET_VRING_BASE`: where the ring goes on. Exact once it was stopped.
    pub fn next_available(&self) -> u16 {
        self.said().next_available
    }

    /// `SET_VRING_KICK`, or the framework's clearing after a stop.
    pub fn set_kick(&self, kick: Option<File>) {
        let mut said = self.said();
        if kick.is_none() && matches!(said.kick, Kick::Stopped) {
            said.kick = Kick::Unset;
            return;
        }
        // A new kick for a ring that runs: it goes on where it is, with the new one.
        self.stop_if_running(&mut said);
        said.kick = Kick::Set(self.keep(kick));
        self.start_if_ready(&mut said);
    }

    /// `SET_VRING_CALL`, or the framework's clearing after a stop.
    pub fn set_call(&self, call: Option<File>) {
        let mut said = self.said();
        said.call = self.keep(call);
        if said.running {
            let _ = self.mailbox.set_call(self.index, said.call.clone());
        }
    }

    /// `SET_VRING_ERR`.
    pub fn set_error(&self, error: Option<File>) {
        let mut said = self.said();
        said.error = self.keep(error);
        if said.running {
            let _ = self.mailbox.set_error(self.index, said.error.clone());
        }
    }

    /// `SET_VRING_ENABLE`.
    pub fn set_enabled(&self, enabled: bool) {
        let mut said = self.said();
        said.enabled = enabled;
        if said.running {
            let _ = self.mailbox.enable(self.index, enabled);
        }
    }

    /// `SET_FEATURES`: counts from the next start.
    pub fn set_negotiated(&self, negotiated: Negotiated) {
        self.said().negotiated = negotiated;
    }

    /// A new memory table. The worker of a ring that runs is told by the device, once for all its rings.
    pub fn set_memory(&self, memory: &Arc<GuestMemory>) {
        let mut said = self.said();
        said.memory = Some(Arc::clone(memory));
        self.start_if_ready(&mut said);
    }

    /// `GET_VRING_BASE`: the worker lets go of the ring.
    pub fn stop(&self) {
        let mut said = self.said();
        self.stop_if_running(&mut said);
        said.kick = Kick::Stopped;
    }

    /// A reset or the end of the connection: the worker lets go of the ring, and all is forgotten.
    pub fn reset(&self) {
        let mut said = self.said();
        self.stop_if_running(&mut said);
        *said = Said::default();
    }

    fn start_if_ready(&self, said: &mut Said) {
        let (Some(memory), Some([descriptor_table, driver_area, device_area])) =
            (&said.memory, said.addresses)
        else {
            return;
        };
        let Kick::Set(kick) = &said.kick else { return };
        if said.running || said.size == 0 {
            return;
        }
        let setup = QueueSetup {
            size: said.size,
            descriptor_table,
            driver_area,
            device_area,
            next_available: said.next_available,
            packed: said.negotiated.packed(),
            in_order: said.negotiated.in_order(),
            event_index: said.negotiated.event_index(),
            indirect: said.negotiated.indirect(),
        };
        let start = RingStart {
            setup,
            memory: Arc::clone(memory),
            negotiated: said.negotiated,
            // The same descriptors, not duplicates: to duplicate may fail, and a ring must not start without its call.
            kick: kick.clone(),
            call: said.call.clone(),
            error: said.error.clone(),
            enabled: said.enabled,
        };
        match self.mailbox.start(self.index, start) {
            Ok(()) => {
                said.running = true;
                let at = setup.next_available;
                log::debug!("{}queue {} starts at {at}: {setup:x?}", self.log.prefix(), self.index);
            }
            Err(error) => {
                log_limit::error!(self.log, "queue {} cannot be served: {error}", self.index);
                if let Some(error) = &said.error {
                    error.signal_elsewhere();
                }
            }
        }
    }

    fn stop_if_running(&self, said: &mut Said) {
        if !std::mem::take(&mut said.running) {
            return;
        }
        if let Ok(Some(next_available)) = self.mailbox.stop(self.index) {
            said.next_available = next_available;
        }
        log::debug!("{}queue {} stopped at {}", self.log.prefix(), self.index, said.next_available);
    }

    fn keep(&self, file: Option<File>) -> Option<Arc<Foreign>> {
        file.map(|file| Arc::new(self.custody.take(file.into())))
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
