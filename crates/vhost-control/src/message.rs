//! The way of a message between the front end and the back end.
//!
//! 1. **It comes in** (`stream`): bytes from the front end's socket, with the descriptors of this message alone, in limited
//!    number and within a limited time.
//! 2. **It is judged** (`judge`, which reads it as a `request` and cuts off what is longer than needed). A message that is
//!    wrong for one ring is answered with an error and goes no further: the framework would end the connection over it.
//!    A descriptor must be of the kind that
//!    its message takes (`descriptor`; a `pipe` is replaced with an eventfd), and memory must be harmless to map
//!    (`regions`, `files`). [`worker::Custody`] owns all descriptors and closes them.
//! 3. **It is acted on.** `framework` has a daemon of the `vhost-user-backend` crate for this connection, which gets the
//!    message through a socket pair, checks it, and calls `session` (features, memory) or `vring` (all about one ring).
//!    Both pass it to the ring's state ([`crate::ring`]), which starts and stops the ring at its worker and returns when
//!    the worker has done it.
//! 4. **It is answered.** The framework's answer comes back through the [`Relay`], completed by the judge: a ring that its
//!    worker could not start is an error, and the answer has both positions of a packed ring.
//!    The judge alone carries out and answers what the framework does not know, and what is about a pipe (`transfer`).
//!
//! 5. **It is noted** (`setup`), for another daemon that goes on with the front end (`succession`).
//!
//! ```text
//! front end --1--> stream --2--> judge --3--> framework --> session, vring --> ring --> worker
//!     ^                            | refused       | answer
//!     +-------------4--------------+<--------------+
//! ```
//!
//! Why the framework gets a socket of its own, with us between it and the front end: neither `vhost` nor
//! `vhost-user-backend` has a hook before its checks, and some of them are too strict. QEMU's virtio-net sends
//! `SET_VRING_ENABLE` while it sets the device up (`peer_attach`, hw/net/virtio-net.c), before `SET_FEATURES`, and with
//! `REPLY_ACK` it waits for the answer. The `vhost` crate (0.18, `backend_req_handler.rs`) ends the connection without an
//! answer unless `SET_FEATURES` with `VHOST_USER_F_PROTOCOL_FEATURES` came first. The specification demands no such order
//! ("VHOST_USER_SET_VRING_ENABLE ... this request should be sent only when VHOST_USER_F_PROTOCOL_FEATURES has been
//! negotiated"; for QEMU it is negotiated from `GET_FEATURES` on). So the relay begins with the `SET_FEATURES` that QEMU
//! leaves out.

mod channel;
mod descriptor;
mod files;
pub mod framework;
mod judge;
mod pipe;
pub mod regions;
mod request;
pub mod session;
pub mod setup;
mod stream;
mod succession;
pub mod transfer;
mod vring;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::VhostUserVirtioFeatures;
use worker::Custody;

use self::judge::{Held, Judge};
use self::session::Session;
use self::setup::Setup;
use self::stream::{Message, no_descriptors, send};
use crate::limits::UNCLOSED_MAX;

pub use self::setup::SetupMessage;
pub use self::stream::Read;

/// Header of `SET_FEATURES`: its number, protocol version 1, 8 bytes of payload.
const SET_FEATURES_HEADER: [u32; 3] = [2, 1, 8];
/// Longest time from a message's first byte to its last.
const MESSAGE_TIME: Duration = Duration::from_secs(5);
/// Longest wait for a front end that does not read its answers, or whose descriptors cannot be closed. The daemon's end
/// waits for it too.
const PATIENCE: Duration = Duration::from_millis(500);

/// Passes the messages of one connection from the front end to the framework, and answers back.
#[derive(Debug)]
pub struct Relay {
    front: UnixStream,
    framework: UnixStream,
    judge: Judge,
    custody: Arc<Custody>,
    from_front: Message,
    from_framework: Message,
    /// Whether a whole message has come from the front end.
    heard: bool,
    /// When the message that is being received must be whole.
    due: Option<Instant>,
    setup: Setup,
    /// Questions for features that the framework has not answered yet: whether each is the relay's own.
    questions: VecDeque<bool>,
}

impl Relay {
    /// A relay between the sockets `front` and `framework`. Begins with a `SET_FEATURES` for the framework.
    ///
    /// # Errors
    /// What the sockets answer.
    pub fn new(
        front: UnixStream,
        framework: UnixStream,
        session: &Session,
        custody: &Arc<Custody>,
    ) -> io::Result<Self> {
        let judge = Judge::new(
            session.rings(),
            session.offer(),
            session.limits(),
            session.sharing(),
            session.transfers(),
            custody,
        );
        Self::with_judge(front, framework, judge, custody)
    }

    fn with_judge(
        front: UnixStream,
        framework: UnixStream,
        judge: Judge,
        custody: &Arc<Custody>,
    ) -> io::Result<Self> {
        for stream in [&front, &framework] {
            stream.set_write_timeout(Some(PATIENCE))?;
        }
        let features = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let header = SET_FEATURES_HEADER.map(u32::to_ne_bytes).concat();
        send(&framework, &[&header[..], &features.to_ne_bytes()].concat(), &[])?;
        let (from_front, from_framework) = Default::default();
        let custody = Arc::clone(custody);
        let (heard, due) = (false, None);
        let (setup, questions) = Default::default();
        Ok(Self {
            front,
            framework,
            judge,
            custody,
            from_front,
            from_framework,
            heard,
            due,
            setup,
            questions,
        })
    }

    /// Whether a whole message has come from the front end.
    #[must_use]
    pub const fn heard(&self) -> bool {
        self.heard
    }

    /// Whether the front end may have left because it wants more queue pairs than there are.
    #[must_use]
    pub const fn wants_other_pairs(&self) -> bool {
        self.judge.wants_other_pairs()
    }

    /// When the message that is being received must be whole; `None` between messages.
    #[must_use]
    pub const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Closes the framework's end, and keeps the front end's.
    #[must_use]
    pub fn into_front(self) -> UnixStream {
        self.front
    }

    /// The ends to wait for: the front end's, the framework's.
    #[must_use]
    pub fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.front.as_fd(), self.framework.as_fd()]
    }

    /// Reads from the front end. When a message is whole, it is passed on or refused.
    ///
    /// # Errors
    /// What the sockets answer, and for a message that no front end may send.
    pub fn pass_request(&mut self) -> io::Result<Read> {
        self.wait_for_closing()?;
        let read = self.from_front.read(&self.front, &self.custody)?;
        let Some(mut message) = self.from_front.take_whole()? else {
            if !self.from_front.bytes.is_empty() {
                self.due.get_or_insert_with(|| Instant::now() + MESSAGE_TIME);
            }
            return Ok(read);
        };
        (self.heard, self.due) = (true, None);
        let first = message.descriptors.first().map(AsRawFd::as_raw_fd);
        match self.judge.judge(&mut message.bytes, &mut message.descriptors) {
            Ok(()) => {
                // The judge replaces a pipe.
                let has_pipe = first != message.descriptors.first().map(AsRawFd::as_raw_fd);
                self.pass_on(message, has_pipe)?;
            }
            Err(Held::Answered(answer)) => {
                if self.judge.has_taken_log() {
                    self.setup.note(message, false);
                }
                if let Some(answer) = answer {
                    send(&self.front, &answer, &[])?;
                }
            }
            Err(Held::Connection(why)) => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
        }
        Ok(read)
    }

    /// Passes an accepted message to the framework.
    fn pass_on(&mut self, message: Message, has_pipe: bool) -> io::Result<()> {
        self.expect_room(message.descriptors.len())?;
        message.send(&self.framework)?;
        if setup::is_question(&message.bytes) {
            self.questions.push_back(false);
        }
        self.setup.note(message, has_pipe);
        Ok(())
    }

    /// Reads from the framework. When an answer is whole, it is completed and passed on.
    ///
    /// # Errors
    /// As [`Relay::pass_request`].
    pub fn pass_answer(&mut self) -> io::Result<Read> {
        let read = self.from_framework.read(&self.framework, &self.custody)?;
        if let Some(mut message) = self.from_framework.take_whole()? {
            let is_own =
                setup::is_question(&message.bytes) && self.questions.pop_front() == Some(true);
            if !is_own {
                self.judge.complete(&mut message.bytes);
                message.send(&self.front)?;
            }
        }
        Ok(read)
    }

    /// Waits while too many descriptors are not closed yet, so that a front end cannot use up all of them.
    fn wait_for_closing(&self) -> io::Result<()> {
        let until = Instant::now() + PATIENCE;
        while self.custody.unclosed() > UNCLOSED_MAX {
            if Instant::now() > until {
                let text =
                    "the file descriptors that it gave up cannot be closed: closing them blocks";
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Checks that this process has `count` descriptors left, which the framework needs for the next message. Without
    /// them it would go on and report nothing.
    fn expect_room(&self, count: usize) -> io::Result<()> {
        let mut copies = Vec::with_capacity(count);
        for _ in 0..count {
            copies.push(self.framework.try_clone().map_err(|_| no_descriptors())?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
