//! Messages on a socket: bytes, and the descriptors that came with them.
//!
//! The kernel joins messages that were written one by one, but descriptors belong to the message that they came with. So
//! one message is read at a time: its header, then the payload of the length that the header says.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use vhost::vhost_user::message::MAX_MSG_SIZE;
use worker::{Custody, Foreign};

use crate::limits::DESCRIPTORS_MAX;

/// Length of a header, bytes: request, flags and length of the payload, 4 bytes each.
pub const HEADER_LEN: usize = 12;
/// Most bytes of a payload, as the framework takes.
const PAYLOAD_LEN_MAX: usize = MAX_MSG_SIZE;

/// Most descriptors that the kernel takes in one message (`include/net/scm.h`, `SCM_MAX_FD`).
const SENT_MAX: usize = 253;

/// What a read came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// There may be more.
    Some,
    /// The other end is closed.
    Closed,
}

/// A message, as much of it as has arrived.
#[derive(Debug, Default)]
pub struct Message {
    /// Header and payload.
    pub bytes: Vec<u8>,
    /// Its descriptors.
    pub descriptors: Vec<Foreign>,
}

impl Message {
    /// Reads a part of the message. Never waits.
    ///
    /// # Errors
    /// What the socket answers, and when the message is longer or has more descriptors than the framework takes.
    pub fn read(&mut self, from: &UnixStream, custody: &Arc<Custody>) -> io::Result<Read> {
        let mut buffer = [0; HEADER_LEN + PAYLOAD_LEN_MAX];
        // Room for all: the kernel closes those without room at once, on this thread.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SENT_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let missing = self.len()? - self.bytes.len();
        let mut list = [IoSliceMut::new(&mut buffer[..missing])];
        let received = match recvmsg(from, &mut list, &mut ancillary, flags) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Read::Some),
            other => other?,
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors.map(|fd| custody.take(fd)));
            }
        }
        let (count, truncated) =
            (self.descriptors.len(), received.flags.contains(ReturnFlags::CTRUNC));
        if count > DESCRIPTORS_MAX {
            return Err(invalid(format!("more than {DESCRIPTORS_MAX} file descriptors")));
        }
        if truncated {
            return Err(no_descriptors());
        }
        if received.bytes == 0 {
            return Ok(Read::Closed);
        }
        self.bytes.extend_from_slice(&buffer[..received.bytes]);
        Ok(Read::Some)
    }

    /// The message, if all of it has arrived.
    ///
    /// # Errors
    /// When it is longer than the framework takes.
    pub fn take_whole(&mut self) -> io::Result<Option<Self>> {
        let is_whole = self.bytes.len() >= HEADER_LEN && self.bytes.len() == self.len()?;
        Ok(is_whole.then(|| std::mem::take(self)))
    }

    /// Sends the message with its descriptors.
    ///
    /// # Errors
    /// What the socket answers.
    pub fn send(&self, to: &UnixStream) -> io::Result<()> {
        let borrowed: Vec<_> = self.descriptors.iter().map(AsFd::as_fd).collect();
        send(to, &self.bytes, &borrowed)
    }

    /// Length of the message as far as it is known: of its header first, then of all of it.
    fn len(&self) -> io::Result<usize> {
        let Some(size) = self.bytes.get(8..HEADER_LEN).and_then(|size| size.try_into().ok()) else {
            return Ok(HEADER_LEN);
        };
        let size = u32::from_ne_bytes(size) as usize;
        if size > PAYLOAD_LEN_MAX {
            return Err(invalid(format!("{size} bytes; expected at most {PAYLOAD_LEN_MAX}")));
        }
        Ok(HEADER_LEN + size)
    }
}

/// Sends bytes with descriptors.
///
/// # Errors
/// What the socket answers.
pub fn send(to: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let mut left = bytes;
    while !left.is_empty() {
        let list = [IoSlice::new(left)];
        let sent = sendmsg(to, &list, &mut ancillary, SendFlags::NOSIGNAL)?;
        left = &left[sent..];
        ancillary.clear();
    }
    Ok(())
}

/// The error for a message that no front end may send.
pub fn invalid(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a message with {what}"))
}

/// The error when this process has no file descriptors left.
pub fn no_descriptors() -> io::Error {
    io::Error::other(
        "its file descriptors cannot be received, because this process has none left; raise its limit of open files \
         (RLIMIT_NOFILE)",
    )
}
