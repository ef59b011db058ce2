//! A guest that another daemon goes on with, without its front end's knowledge.
//!
//! The thread that serves the guest, and the one that speaks with the other daemon, meet here:
//!
//! ```text
//! speaks with the other daemon        serves the guest
//! Handover::ask ------------------->  stops reading its front end's messages; frames flow on
//!               <------- Estate ----  what the front end has set up, with all descriptors
//! Asked::release ------------------>  stops the rings; nothing of the datapath changes
//!               <------- Stands ----  where each ring stands
//! Asked::leave -------------------->  ends, without a word to the front end
//! ```
//!
//! If [`Asked`] is dropped before, the guest is served on: the rings start where they stand. If the other daemon had begun
//! with them, and was killed, that is as after a daemon that was killed: the journal and the used index say where.
//!
//! In the other daemon, an [`Heir`] is the other end: it repeats what the front end had sent, all but the kicks
//! ([`setup`](crate::message::setup)), starts the rings where they stand, and goes on with the connection.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use virtio_net::MacAddress;
use worker::Heritage;

pub use crate::message::setup::SetupMessage;

/// Longest wait for a guest's thread. It may be closing the connection of a front end that is gone.
const PATIENCE: Duration = Duration::from_secs(2);

/// What another daemon needs of a guest.
#[derive(Debug)]
pub struct Estate {
    /// The socket on which front ends are waited for, if there is one.
    pub listener: Option<OwnedFd>,
    /// The front end, if one is connected.
    pub front: Option<FrontEnd>,
}

/// A front end that is connected.
#[derive(Debug)]
pub struct FrontEnd {
    /// Its connection.
    pub connection: OwnedFd,
    /// What it has set up.
    pub messages: Vec<SetupMessage>,
    /// The beginning of a message that has not come whole yet.
    pub partial: SetupMessage,
    /// What else was noted of it.
    pub manner: Manner,
    /// Of each queue pair, whether the guest takes frames.
    pub active: Vec<bool>,
}

/// What is known of a front end and its guest besides the messages that count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// It asked for the offered features before `SET_OWNER`.
    pub asked_first: bool,
    /// It takes the answer to `GET_QUEUE_NUM` as a number of pairs.
    pub counts_pairs: bool,
    /// Regions of memory that were left out because they are private: guest address, length, user address, offset.
    pub left_out: Vec<[u64; 4]>,
    /// Number of queue pairs that the guest set by a command.
    pub pairs: u16,
    /// Features that the guest switched off by a command.
    pub switched_off: u64,
    /// The address that the guest set by a command.
    pub address: Option<MacAddress>,
}

/// Where a ring stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stand {
    /// The available index from which it goes on.
    pub next_available: u16,
    /// What else it leaves.
    pub heritage: Heritage,
}

/// Where another thread asks the one that serves a guest to hand it over.
#[derive(Debug)]
pub struct Handover {
    asked: OwnedFd,
    request: Mutex<Option<Request>>,
}

/// To the guest's thread.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) prepared: SyncSender<Result<Estate, String>>,
    pub(crate) orders: Receiver<Order>,
}

#[derive(Debug)]
pub(crate) enum Order {
    Release(SyncSender<Result<Vec<Stand>, String>>),
    Leave,
}

/// A guest whose control plane waits. Dropping this lets it go on.
#[derive(Debug)]
pub struct Asked {
    prepared: Receiver<Result<Estate, String>>,
    orders: Sender<Order>,
}

impl Handover {
    /// For one guest.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let asked = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { asked, request: Mutex::default() })
    }

    /// Asks the guest's thread for what another daemon needs.
    #[must_use]
    pub fn ask(&self) -> Asked {
        let ((prepared, is_prepared), (orders, received)) = (sync_channel(1), channel());
        *self.request.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Request { prepared, orders: received });
        let _ = rustix::io::write(&self.asked, &1_u64.to_ne_bytes());
        Asked { prepared: is_prepared, orders }
    }

    /// What was asked.
    pub(crate) fn take(&self) -> Option<Request> {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.asked, &mut count);
        self.request.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl AsFd for Handover {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.asked.as_fd()
    }
}

impl Asked {
    /// Waits for the guest's estate.
    ///
    /// # Errors
    /// Why the guest cannot be handed over.
    pub fn estate(&self) -> Result<Estate, String> {
        self.prepared.recv_timeout(PATIENCE).unwrap_or_else(|error| Err(explain(error)))
    }

    /// Has the guest's rings stopped. The answer comes through [`Stands`].
    #[must_use]
    pub fn release(&self) -> Stands {
        let (done, stands) = sync_channel(1);
        let _ = self.orders.send(Order::Release(done));
        Stands(stands)
    }

    /// Has the guest's thread end: another daemon serves the guest.
    pub fn leave(self) {
        let _ = self.orders.send(Order::Leave);
    }
}

/// The answer to [`Asked::release`].
#[derive(Debug)]
pub struct Stands(Receiver<Result<Vec<Stand>, String>>);

impl Stands {
    /// Waits until the rings are stopped. Returns where each of them stands, by index.
    ///
    /// # Errors
    /// Why they cannot be stopped.
    pub fn wait(&self) -> Result<Vec<Stand>, String> {
        self.0.recv_timeout(PATIENCE).unwrap_or_else(|error| Err(explain(error)))
    }
}

fn explain(error: RecvTimeoutError) -> String {
    match error {
        RecvTimeoutError::Timeout => {
            "its front end is coming or going, or its worker does not answer; try again".into()
        }
        RecvTimeoutError::Disconnected => "it is not served any more".into(),
    }
}

/// A guest of the daemon before, in the daemon that goes on with it.
#[derive(Debug)]
pub struct Heir {
    /// Its front end, if one is connected.
    pub front: Option<FrontEnd>,
    /// Is informed when all is repeated.
    pub prepared: Sender<Result<(), String>>,
    /// Says where each ring stands. Without a word the guest is left to the daemon before.
    pub start: Receiver<Vec<Stand>>,
    /// Is informed when the rings are started.
    pub started: Sender<()>,
}

/// How a guest came to this daemon, and how it may leave it.
#[derive(Debug, Default)]
pub struct Succession<'s> {
    /// Where it is asked for.
    pub handover: Option<&'s Handover>,
    /// The daemon before served it.
    pub heir: Option<Heir>,
}
