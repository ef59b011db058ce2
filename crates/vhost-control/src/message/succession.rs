//! How a [`Relay`] passes its front end on to another daemon, and how the other daemon's relay goes on.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use worker::Custody;

use super::setup::{base, is_kick, question};
use super::stream::Message;
use super::{MESSAGE_TIME, PATIENCE, Read, Relay, SetupMessage, send};
use crate::handover::{FrontEnd, Manner, Stand};

impl Relay {
    /// Waits until the framework has acted on all messages so far, and passes its answers on.
    ///
    /// # Errors
    /// When the framework has ended, or does not answer in time.
    pub fn settle(&mut self) -> io::Result<()> {
        send(&self.framework, &question(), &[])?;
        self.questions.push_back(true);
        let until = Instant::now() + PATIENCE;
        while self.questions.contains(&true) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let mut answers = [PollFd::new(&self.framework, PollFlags::IN)];
            // An interruption is looked at as an answer.
            let _ = poll(&mut answers, Timespec::try_from(left).ok().as_ref());
            if self.pass_answer()? == Read::Closed {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
        Ok(())
    }

    /// The front end for another daemon. Call [`settle`](Self::settle) before. The settings of its guest are the caller's.
    ///
    /// # Errors
    /// Why another daemon cannot go on with it.
    pub fn share(&self) -> Result<FrontEnd, String> {
        let told = |error: io::Error| error.to_string();
        let Message { bytes, descriptors } = &self.from_front;
        let copies = descriptors.iter().map(|file| file.as_fd().try_clone_to_owned());
        let descriptors = copies.collect::<Result<_, _>>().map_err(told)?;
        Ok(FrontEnd {
            connection: self.front.as_fd().try_clone_to_owned().map_err(told)?,
            messages: self.setup.share(self.judge.channel())?,
            partial: SetupMessage { bytes: bytes.clone(), descriptors },
            manner: self.judge.manner(),
            active: Vec::new(),
        })
    }

    /// Repeats what the front end of the daemon before had sent. Returns the messages that start its rings.
    ///
    /// # Errors
    /// Why it cannot be served here.
    pub fn repeat(
        &mut self,
        messages: Vec<SetupMessage>,
        partial: SetupMessage,
        manner: &Manner,
    ) -> Result<Vec<SetupMessage>, String> {
        self.from_front = owned(partial, &self.custody);
        if !self.from_front.bytes.is_empty() {
            self.due = Some(Instant::now() + MESSAGE_TIME);
        }
        self.heard = true;
        self.judge.set_manner(manner);
        let (kicks, others): (Vec<_>, Vec<_>) =
            messages.into_iter().partition(|message| is_kick(&message.bytes));
        others.into_iter().try_for_each(|message| self.repeat_one(message))?;
        self.settle().map_err(|error| error.to_string())?;
        Ok(kicks)
    }

    /// Starts the rings of the front end where they stand.
    ///
    /// # Errors
    /// Why it cannot be served here.
    pub fn start(&mut self, kicks: Vec<SetupMessage>, stands: &[Stand]) -> Result<(), String> {
        for (ring, stand) in (0..).zip(stands) {
            let message =
                SetupMessage { bytes: base(ring, stand.next_available), descriptors: Vec::new() };
            self.repeat_one(message)?;
        }
        kicks.into_iter().try_for_each(|kick| self.repeat_one(kick))?;
        self.settle().map_err(|error| error.to_string())
    }

    fn repeat_one(&mut self, message: SetupMessage) -> Result<(), String> {
        let mut message = owned(message, &self.custody);
        if self.judge.judge_again(&mut message.bytes, &mut message.descriptors)? {
            self.pass_on(message, false).map_err(|error| error.to_string())?;
        } else if self.judge.has_taken_log() {
            self.setup.note(message, false);
        }
        Ok(())
    }
}

fn owned(message: SetupMessage, custody: &Arc<Custody>) -> Message {
    let SetupMessage { bytes, descriptors } = message;
    Message { bytes, descriptors: descriptors.into_iter().map(|fd| custody.take(fd)).collect() }
}
