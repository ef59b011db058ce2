//! Between the front end's socket and the framework's.
//!
//! QEMU's virtio-net sends `SET_VRING_ENABLE` while it sets the device up (`peer_attach`, hw/net/virtio-net.c),
//! before `SET_FEATURES`, and with `REPLY_ACK` it waits for the answer. The `vhost` crate (0.18,
//! `backend_req_handler.rs`) demands that `SET_FEATURES` with `VHOST_USER_F_PROTOCOL_FEATURES` came first: it
//! ends the connection, without an answer. The specification has no such order ("VHOST_USER_SET_VRING_ENABLE
//! ... this request should be sent only when VHOST_USER_F_PROTOCOL_FEATURES has been negotiated", and QEMU
//! counts it as negotiated from `GET_FEATURES` on).
//!
//! Neither crate lets anything in between, so the framework gets a socket of ours: the relay tells it what
//! QEMU takes as said, and passes every message through that the [gate](crate::gate) does not refuse, bytes
//! and descriptors, as it comes. Message
//! by message, because descriptors belong to the message that they came with, and the kernel joins what
//! was written in several pieces.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use vhost::vhost_user::message::VhostUserVirtioFeatures;

use crate::gate::Gate;

/// `SET_FEATURES`, protocol version 1, 8 bytes of payload.
const SET_FEATURES_HEADER: [u32; 3] = [2, 1, 8];
/// The most descriptors of one message: a memory table of 32 regions would need 32.
const DESCRIPTORS_MAX: usize = 64;
/// Every message begins with request, flags and the length of what follows, 4 bytes each.
const HEADER_LEN: usize = 12;
/// The longest payload that the framework takes.
const PAYLOAD_LEN_MAX: usize = 4096;
/// A front end that does not take its answers in this time is given up. Answers are few and small, so only
/// one that never reads gets here; and whoever asks the daemon to stop waits no longer than this.
const PATIENCE: Duration = Duration::from_millis(500);

/// What passing on came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// Something was passed on; there may be more.
    Some,
    /// This end is closed.
    Closed,
}

/// The two ends, and what has arrived at each of a message that is not whole yet.
#[derive(Debug)]
pub struct Relay {
    front: UnixStream,
    framework: UnixStream,
    gate: Gate,
    from_front: Message,
    from_framework: Message,
}

#[derive(Debug, Default)]
struct Message {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Relay {
    /// Tells the framework that protocol features are in use, and is ready to pass messages on.
    ///
    /// # Errors
    /// What the sockets answer.
    pub fn new(front: UnixStream, framework: UnixStream, gate: Gate) -> io::Result<Self> {
        for stream in [&front, &framework] {
            stream.set_write_timeout(Some(PATIENCE))?;
        }
        let features = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let mut message = Vec::new();
        SET_FEATURES_HEADER.iter().for_each(|word| message.extend(word.to_ne_bytes()));
        message.extend(features.to_ne_bytes());
        send(&framework, &message, &[])?;
        let (from_front, from_framework) = Default::default();
        Ok(Self { front, framework, gate, from_front, from_framework })
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

    /// Passes on what the front end said, or refuses it.
    ///
    /// # Errors
    /// What the sockets answer, and a message with more descriptors than any may have.
    pub fn pass_request(&mut self) -> io::Result<Passed> {
        let passed = self.from_front.read(&self.front)?;
        let Some(message) = self.from_front.take_whole()? else { return Ok(passed) };
        match self.gate.judge(&message.bytes) {
            Ok(()) => message.send(&self.framework)?,
            Err(refused) => {
                refused.answer.map_or(Ok(()), |answer| send(&self.front, &answer, &[]))?;
            }
        }
        Ok(passed)
    }

    /// Passes on what the framework answered.
    ///
    /// # Errors
    /// As [`Relay::pass_request`].
    pub fn pass_answer(&mut self) -> io::Result<Passed> {
        let passed = self.from_framework.read(&self.framework)?;
        if let Some(mut message) = self.from_framework.take_whole()? {
            self.gate.complete(&mut message.bytes);
            message.send(&self.front)?;
        }
        Ok(passed)
    }
}

impl Message {
    /// Reads what has come of the message.
    fn read(&mut self, from: &UnixStream) -> io::Result<Passed> {
        let mut buffer = [0; HEADER_LEN + PAYLOAD_LEN_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let missing = self.len()? - self.bytes.len();
        let mut list = [IoSliceMut::new(&mut buffer[..missing])];
        let received = match recvmsg(from, &mut list, &mut ancillary, flags) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Passed::Some),
            other => other?,
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        let too_many = self.descriptors.len() > DESCRIPTORS_MAX;
        if too_many || received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(invalid(format!("more than {DESCRIPTORS_MAX} file descriptors")));
        }
        if received.bytes == 0 {
            return Ok(Passed::Closed);
        }
        self.bytes.extend_from_slice(&buffer[..received.bytes]);
        Ok(Passed::Some)
    }

    /// The message, if all of it has come.
    fn take_whole(&mut self) -> io::Result<Option<Self>> {
        let is_whole = self.bytes.len() >= HEADER_LEN && self.bytes.len() == self.len()?;
        Ok(is_whole.then(|| std::mem::take(self)))
    }

    fn send(&self, to: &UnixStream) -> io::Result<()> {
        let borrowed: Vec<_> = self.descriptors.iter().map(AsFd::as_fd).collect();
        send(to, &self.bytes, &borrowed)
    }

    /// How long the message is, as far as that is known: its header first, then all of it.
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

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a message with {what}"))
}

fn send(to: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    fn relay() -> (UnixStream, Relay, UnixStream) {
        let (qemu, front) = UnixStream::pair().unwrap();
        let (framework, mut daemon) = UnixStream::pair().unwrap();
        let relay = Relay::new(front, framework, Gate::new(&[], 256)).unwrap();
        let mut first = [0; 20];
        daemon.read_exact(&mut first).unwrap();
        assert_eq!(first[..12], [2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0]);
        assert_eq!(u64::from_ne_bytes(first[12..].try_into().unwrap()), 1 << 30);
        (qemu, relay, daemon)
    }

    fn message(payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap();
        [7_u32, 1, len].iter().flat_map(|word| word.to_ne_bytes()).chain(payload.to_vec()).collect()
    }

    #[test]
    fn a_descriptor_stays_with_its_message() {
        let (qemu, mut relay, daemon) = relay();
        let (mut here, there) = UnixStream::pair().unwrap();
        // Without and with a descriptor, one after the other: the kernel would read both at once.
        send(&qemu, &message(b"plain"), &[]).unwrap();
        send(&qemu, &message(b"with descriptor"), &[there.as_fd()]).unwrap();
        drop(there);
        for _ in 0..4 {
            assert_eq!(relay.pass_request().unwrap(), Passed::Some);
        }
        for (payload, count) in [(&b"plain"[..], 0), (b"with descriptor", 1)] {
            let mut bytes = vec![0; HEADER_LEN + payload.len()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut list = [IoSliceMut::new(&mut bytes)];
            recvmsg(&daemon, &mut list, &mut ancillary, RecvFlags::empty()).unwrap();
            assert_eq!(bytes, message(payload));
            let mut descriptors = Vec::new();
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(passed) = message {
                    descriptors.extend(passed);
                }
            }
            assert_eq!(descriptors.len(), count);
            for descriptor in descriptors {
                UnixStream::from(descriptor).write_all(b"x").unwrap();
            }
        }
        here.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn answers_pass_and_a_byte_at_a_time_does_too() {
        let (mut qemu, mut relay, mut daemon) = relay();
        daemon.write_all(&message(b"answer")).unwrap();
        (0..2).for_each(|_| assert_eq!(relay.pass_answer().unwrap(), Passed::Some));
        let mut bytes = [0; HEADER_LEN + 6];
        qemu.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes[HEADER_LEN..], *b"answer");
        for byte in message(b"slowly") {
            qemu.write_all(&[byte]).unwrap();
            assert_eq!(relay.pass_request().unwrap(), Passed::Some);
        }
        daemon.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes[HEADER_LEN..], *b"slowly");
        drop(qemu);
        assert_eq!(relay.pass_request().unwrap(), Passed::Closed);
    }

    #[test]
    fn a_message_that_is_refused_is_answered_and_goes_no_further() {
        let (mut qemu, mut relay, mut daemon) = relay();
        let send = |qemu: &mut UnixStream, request: u32, payload: &[u8; 8]| {
            let header = [request, 1 | 1 << 3, 8].map(u32::to_ne_bytes).concat();
            qemu.write_all(&[&header[..], payload].concat()).unwrap();
        };
        send(&mut qemu, 16, &(1_u64 << 3).to_ne_bytes());
        // There is no ring at all.
        send(&mut qemu, 8, &[0; 8]);
        send(&mut qemu, 7, b"the next");
        (0..6).for_each(|_| assert_eq!(relay.pass_request().unwrap(), Passed::Some));
        let mut passed = [0; 40];
        daemon.read_exact(&mut passed).unwrap();
        assert_eq!((passed[0], passed[20], &passed[32..]), (16, 7, &b"the next"[..]));
        let mut answer = [0; 20];
        qemu.read_exact(&mut answer).unwrap();
        let words = answer.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
        assert_eq!(words.collect::<Vec<_>>(), [8, 1 | 1 << 2, 8, 1, 0]);
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_by_its_header() {
        let (mut qemu, mut relay, _daemon) = relay();
        let header = [7_u32, 1, 5000].map(u32::to_ne_bytes).concat();
        qemu.write_all(&header).unwrap();
        assert!(relay.pass_request().is_err());
    }
}
