//! Messages between the daemon and a helper: a few bytes, and descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Most descriptors of one message.
pub const FILES_MAX: usize = 64;
/// Longest message, bytes.
const LEN_MAX: usize = 8;

/// A message as it came.
#[derive(Debug)]
pub struct Received {
    buffer: [u8; LEN_MAX],
    len: usize,
    /// Its descriptors.
    pub files: Vec<OwnedFd>,
}

impl Received {
    /// Its bytes; none when the other end is closed.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

/// Two connected sockets that keep messages apart.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends a message. Waits until the socket has room.
pub fn send(to: &impl AsFd, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::io::retry_on_intr(|| {
        sendmsg(to, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Waits for a message, if `flags` do not say otherwise.
pub fn receive(from: &impl AsFd, flags: RecvFlags) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = [0; LEN_MAX];
    let received = rustix::io::retry_on_intr(|| {
        let mut list = [IoSliceMut::new(&mut buffer)];
        recvmsg(from, &mut list, &mut ancillary, flags | RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut files = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            files.extend(descriptors);
        }
    }
    Ok(Received { buffer, len: received.bytes.min(LEN_MAX), files })
}

/// Answers the daemon with a number.
pub fn answer(socket: BorrowedFd<'_>, number: u64) -> io::Result<()> {
    send(&socket, &number.to_ne_bytes(), &[])
}

/// The number with which the helper at the other end of `socket` answers.
pub fn answer_of(socket: BorrowedFd<'_>, patience: Duration) -> io::Result<u64> {
    let until = Instant::now() + patience;
    loop {
        await_answer(socket, until.saturating_duration_since(Instant::now()))?;
        if let Some(bytes) = answered(socket)? {
            return Ok(u64::from_ne_bytes(bytes));
        }
    }
}

/// The bytes of an answer that is there.
pub fn answered(socket: BorrowedFd<'_>) -> io::Result<Option<[u8; 8]>> {
    let Some(message) = received(socket)? else { return Ok(None) };
    match message.bytes().try_into() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A message that is there.
pub fn received(socket: BorrowedFd<'_>) -> io::Result<Option<Received>> {
    match receive(&socket, RecvFlags::DONTWAIT) {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits until there is an answer, or the helper has ended.
pub fn await_answer(socket: BorrowedFd<'_>, patience: Duration) -> io::Result<()> {
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut polled = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        match poll(&mut polled, Timespec::try_from(left).ok().as_ref()) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
