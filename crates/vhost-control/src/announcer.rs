//! Announcements of a guest's new place after a live migration (vhost-user, "VHOST_USER_SEND_RARP").
//!
//! QEMU asks for five within a second and does not wait for an answer (`vhost_user_receive`, net/vhost-user.c). The first
//! request comes before it starts the device (`process_incoming_migration_bh`, migration/migration.c). So a request that comes
//! before the guest's rings run waits for them, and the network learns the new place as soon as the guest can send.
//!
//! A front end that asks for too many gets refusals, which are logged once for each connection; the worker counts each one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log_limit::LogLimit;
use virtio_net::MacAddress;
use worker::{ANNOUNCEMENT_EVERY, ANNOUNCEMENTS_AT_ONCE, Announced, Mailbox};

/// Has a connection's guest announced.
#[derive(Debug)]
pub struct Announcer {
    /// The log of its guest.
    log: Arc<LogLimit>,
    /// The worker that announces it.
    mailbox: Option<Arc<Mailbox>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The address to be announced when the guest's rings run.
    waits: Option<MacAddress>,
    /// The address that was announced last. Its repetitions are not logged: they would use up the limit of log lines.
    last: Option<MacAddress>,
    /// Whether it was logged that there are too many.
    too_many: bool,
}

/// Why an announcement is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum NotAnnounced {
    /// For this reason, which is not logged yet.
    Because(String),
    /// For one that is logged already.
    AsLogged,
}

impl Announcer {
    /// For a guest with this log, which the worker of `mailbox` announces.
    pub fn new(log: &Arc<LogLimit>, mailbox: Option<&Arc<Mailbox>>) -> Self {
        Self { log: Arc::clone(log), mailbox: mailbox.cloned(), state: Mutex::default() }
    }

    /// Tells everyone that the guest's address is here now, or does so when its rings run.
    ///
    /// # Errors
    /// When the frame cannot be sent.
    pub fn announce(&self, address: MacAddress) -> Result<(), NotAnnounced> {
        self.send(&mut self.lock(), address)
    }

    /// A ring that sends was started or enabled.
    pub fn rings_run(&self) {
        let mut state = self.lock();
        if let Some(address) = state.waits.take()
            && let Err(NotAnnounced::Because(why)) = self.send(&mut state, address)
        {
            log_limit::warn!(self.log, "{why}");
        }
    }

    fn send(&self, state: &mut State, address: MacAddress) -> Result<(), NotAnnounced> {
        let because = |why: String| Err(NotAnnounced::Because(why));
        let Some(mailbox) = &self.mailbox else { return because("no worker serves it".into()) };
        match mailbox.announce(address) {
            Ok(Announced::Carried) => {
                if state.last.replace(address) != Some(address) {
                    log_limit::info!(self.log, "the guest has moved here: {address} was announced");
                }
                Ok(())
            }
            Ok(Announced::NotServed) => {
                state.waits = Some(address);
                Ok(())
            }
            Ok(Announced::NotCarried) => because(format!(
                "the address {address} could not be announced: nothing carries frames of this guest to others now"
            )),
            Ok(Announced::TooMany) => {
                if !std::mem::replace(&mut state.too_many, true) {
                    log_limit::warn!(
                        self.log,
                        "the front end asks for too many announcements of {address}: at most {ANNOUNCEMENTS_AT_ONCE} at once \
                         are sent, then one in {} ms; the others are counted as tx_flood_limit",
                        ANNOUNCEMENT_EVERY.as_millis()
                    );
                }
                Err(NotAnnounced::AsLogged)
            }
            Err(error) => because(error.to_string()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
