//! Between the front end's socket and the framework's.
//!
//! QEMU's virtio-net sends `SET_VRING_ENABLE` while it sets the device up (`peer_attach`, hw/net/virtio-net.c),
//! before `SET_FEATURES`, and with `REPLY_ACK` it waits for the answer. The `vhost` crate (0.18,
//! `backend_req_handler.rs`) demands that `SET_FEATURES` with `VHOST_USER_F_PROTOCOL_FEATURES` came first: it
//! ends the connection, without an answer. The specification has no such order ("VHOST_USER_SET_VRING_ENABLE
//! ... this request should be sent only when VHOST_USER_F_PROTOCOL_FEATURES has been negotiated", and QEMU
//! counts it as negotiated from `GET_FEATURES` on).
//!
//! Neither crate has a hook there, so the framework gets our socket. The relay sends it the
//! `SET_FEATURES` that QEMU leaves out, and passes on every message that the [gate](crate::gate) does not refuse,
//! bytes and descriptors. Message by message, because descriptors belong to the message that they came with, and
//! the kernel joins messages that were written one by one.
//!
//! It also limits what a front end can use up here: descriptors of a message, descriptors that are not closed yet,
//! and the time from a message's first byte to its last.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use vhost::vhost_user::message::{MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE, VhostUserVirtioFeatures};
use worker::{Custody, Foreign};

use crate::gate::{Gate, HEADER_LEN, Refused};
use crate::limits::UNCLOSED_MAX;

/// `SET_FEATURES`, protocol version 1, 8 bytes of payload.
const SET_FEATURES_HEADER: [u32; 3] = [2, 1, 8];
/// Most descriptors of one message, as the framework takes: it drops the rest, and with more than fit its buffer it
/// loses its place in the stream.
pub const DESCRIPTORS_MAX: usize = MAX_ATTACHED_FD_ENTRIES;
/// The longest payload that the framework takes.
const PAYLOAD_LEN_MAX: usize = MAX_MSG_SIZE;
/// Longest time from a message's first byte to its last.
const MESSAGE_TIME: Duration = Duration::from_secs(5);
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
    custody: Arc<Custody>,
    from_front: Message,
    from_framework: Message,
    /// Whether a whole message has come from the front end.
    heard: bool,
    /// When the message that is being received must be whole.
    due: Option<Instant>,
}

#[derive(Debug, Default)]
struct Message {
    bytes: Vec<u8>,
    descriptors: Vec<Foreign>,
}

impl Relay {
    /// Tells the framework that protocol features are in use, and is ready to pass messages on.
    ///
    /// # Errors
    /// What the sockets answer.
    pub fn new(
        front: UnixStream,
        framework: UnixStream,
        gate: Gate,
        custody: &Arc<Custody>,
    ) -> io::Result<Self> {
        for stream in [&front, &framework] {
            stream.set_write_timeout(Some(PATIENCE))?;
        }
        let features = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let mut message = Vec::new();
        SET_FEATURES_HEADER.iter().for_each(|word| message.extend(word.to_ne_bytes()));
        message.extend(features.to_ne_bytes());
        send(&framework, &message, &[])?;
        let (from_front, from_framework) = Default::default();
        let custody = Arc::clone(custody);
        let (heard, due) = (false, None);
        Ok(Self { front, framework, gate, custody, from_front, from_framework, heard, due })
    }

    /// Whether a whole message has come from the front end.
    #[must_use]
    pub const fn heard(&self) -> bool {
        self.heard
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

    /// Passes on what the front end said, or refuses it.
    ///
    /// # Errors
    /// What the sockets answer, and for a message that no front end may send.
    pub fn pass_request(&mut self) -> io::Result<Passed> {
        self.wait_for_closing()?;
        let passed = self.from_front.read(&self.front, &self.custody)?;
        let Some(mut message) = self.from_front.take_whole()? else {
            if !self.from_front.bytes.is_empty() {
                self.due.get_or_insert_with(|| Instant::now() + MESSAGE_TIME);
            }
            return Ok(passed);
        };
        (self.heard, self.due) = (true, None);
        match self.gate.judge(&message.bytes, &mut message.descriptors) {
            Ok(()) => {
                self.expect_room(message.descriptors.len())?;
                message.send(&self.framework)?;
            }
            Err(Refused::Message(None)) => {}
            Err(Refused::Message(Some(answer))) => send(&self.front, &answer, &[])?,
            Err(Refused::Connection(why)) => return Err(invalid(why)),
        }
        Ok(passed)
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

    /// Passes on what the framework answered.
    ///
    /// # Errors
    /// As [`Relay::pass_request`].
    pub fn pass_answer(&mut self) -> io::Result<Passed> {
        let passed = self.from_framework.read(&self.framework, &self.custody)?;
        if let Some(mut message) = self.from_framework.take_whole()? {
            self.gate.complete(&mut message.bytes);
            message.send(&self.front)?;
        }
        Ok(passed)
    }
}

impl Message {
    /// Reads what has come of the message.
    fn read(&mut self, from: &UnixStream, custody: &Arc<Custody>) -> io::Result<Passed> {
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
                self.descriptors.extend(descriptors.map(|fd| custody.take(fd)));
            }
        }
        let (count, truncated) =
            (self.descriptors.len(), received.flags.contains(ReturnFlags::CTRUNC));
        if count > DESCRIPTORS_MAX || truncated && count == DESCRIPTORS_MAX {
            return Err(invalid(format!("more than {DESCRIPTORS_MAX} file descriptors")));
        }
        if truncated {
            return Err(no_descriptors());
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

/// This process has no file descriptors left.
fn no_descriptors() -> io::Error {
    io::Error::other(
        "its file descriptors cannot be received, because this process has none left; raise its limit of open files \
         (RLIMIT_NOFILE)",
    )
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
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};

    fn relay() -> (UnixStream, Relay, UnixStream) {
        let (qemu, front) = UnixStream::pair().unwrap();
        let (framework, mut daemon) = UnixStream::pair().unwrap();
        let custody = Custody::new(&Arc::default()).unwrap();
        let limits = crate::regions::Limits { bytes_max: 1 << 30, peer: None };
        let gate = Gate::new(&[], 256, limits, &custody);
        let relay = Relay::new(front, framework, gate, &custody).unwrap();
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
        let mut here = tempfile::tempfile().unwrap();
        let there = here.try_clone().unwrap();
        // Without and with a descriptor, one after the other: the kernel would read both at once.
        send(&qemu, &message(b"plain"), &[]).unwrap();
        let payload = b"with descriptor";
        let len = u32::try_from(payload.len()).unwrap();
        // A new region of memory, wrong but for its descriptor.
        let header = [37_u32, 1, len].map(u32::to_ne_bytes).concat();
        let with = [&header[..], payload].concat();
        send(&qemu, &with, &[there.as_fd()]).unwrap();
        drop(there);
        for _ in 0..4 {
            assert_eq!(relay.pass_request().unwrap(), Passed::Some);
        }
        for (expected, count) in [(message(b"plain"), 0), (with, 1)] {
            let mut bytes = vec![0; expected.len()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut list = [IoSliceMut::new(&mut bytes)];
            recvmsg(&daemon, &mut list, &mut ancillary, RecvFlags::empty()).unwrap();
            assert_eq!(bytes, expected);
            let mut descriptors = Vec::new();
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(passed) = message {
                    descriptors.extend(passed);
                }
            }
            assert_eq!(descriptors.len(), count);
            for descriptor in descriptors {
                File::from(descriptor).write_all(b"x").unwrap();
            }
        }
        here.rewind().unwrap();
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

    /// The framework takes 32 and would read on in the payload of a message with more.
    #[test]
    fn the_framework_gets_no_more_descriptors_than_it_takes() {
        for count in [32, 33, 64] {
            let (qemu, mut relay, daemon) = relay();
            let file = tempfile::tempfile().unwrap();
            let message = [37_u32, 1, 0].map(u32::to_ne_bytes).concat();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let descriptors = vec![file.as_fd(); count];
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
            let list = [IoSlice::new(&message)];
            sendmsg(&qemu, &list, &mut ancillary, SendFlags::empty()).unwrap();
            let passed = relay.pass_request();
            assert_eq!(passed.is_ok(), count == 32, "{passed:?}");
            daemon.set_nonblocking(true).unwrap();
            let mut read = [0; HEADER_LEN];
            assert_eq!((&daemon).read(&mut read).is_ok(), count == 32);
        }
    }

    #[test]
    fn a_message_that_is_not_whole_is_due() {
        let (mut qemu, mut relay, _daemon) = relay();
        assert!(!relay.heard() && relay.due().is_none());
        qemu.write_all(&message(b"")[..5]).unwrap();
        relay.pass_request().unwrap();
        let due = relay.due().expect("it is coming");
        qemu.write_all(&message(b"")[5..6]).unwrap();
        relay.pass_request().unwrap();
        assert!(!relay.heard() && relay.due() == Some(due), "a byte more does not put it off");
        qemu.write_all(&message(b"")[6..]).unwrap();
        relay.pass_request().unwrap();
        assert!(relay.heard() && relay.due().is_none());
    }
}
