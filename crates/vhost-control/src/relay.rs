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
//! QEMU takes as said, and passes everything else through, bytes and descriptors, as it comes.

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

/// `SET_FEATURES`, protocol version 1, 8 bytes of payload.
const SET_FEATURES_HEADER: [u32; 3] = [2, 1, 8];
/// The most descriptors of one message: a memory table of 32 regions would need 32.
const DESCRIPTORS_MAX: usize = 64;
/// Longer than any message.
const CHUNK: usize = 8192;
/// A front end that does not take its answers in this time is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// What passing on came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// Something was passed on; there may be more.
    Some,
    /// This end is closed.
    Closed,
}

/// The two ends.
#[derive(Debug)]
pub struct Relay {
    front: UnixStream,
    framework: UnixStream,
}

impl Relay {
    /// Tells the framework that protocol features are in use, and is ready to pass messages on.
    ///
    /// # Errors
    /// What the sockets answer.
    pub fn new(front: UnixStream, framework: UnixStream) -> io::Result<Self> {
        for stream in [&front, &framework] {
            stream.set_write_timeout(Some(PATIENCE))?;
        }
        let features = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let mut message = Vec::new();
        SET_FEATURES_HEADER.iter().for_each(|word| message.extend(word.to_ne_bytes()));
        message.extend(features.to_ne_bytes());
        send(&framework, &message, &[])?;
        Ok(Self { front, framework })
    }

    /// The ends to wait for: the front end's, the framework's.
    #[must_use]
    pub fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.front.as_fd(), self.framework.as_fd()]
    }

    /// Passes on what the front end said.
    ///
    /// # Errors
    /// What the sockets answer, and a message with more descriptors than any may have.
    pub fn to_framework(&self) -> io::Result<Passed> {
        pass(&self.front, &self.framework)
    }

    /// Passes on what the framework answered.
    ///
    /// # Errors
    /// As [`Relay::to_framework`].
    pub fn to_front(&self) -> io::Result<Passed> {
        pass(&self.framework, &self.front)
    }
}

/// Passes on one chunk. Descriptors stay with the bytes they came with: the kernel does not return bytes
/// of two messages that carry descriptors at once.
fn pass(from: &UnixStream, to: &UnixStream) -> io::Result<Passed> {
    let mut bytes = [0; CHUNK];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let mut list = [IoSliceMut::new(&mut bytes)];
    let received = match recvmsg(from, &mut list, &mut ancillary, flags) {
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Passed::Some),
        other => other?,
    };
    let descriptors: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message with more than {DESCRIPTORS_MAX} file descriptors"),
        ));
    }
    if received.bytes == 0 {
        return Ok(Passed::Closed);
    }
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    send(to, &bytes[..received.bytes], &borrowed)?;
    Ok(Passed::Some)
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

    #[test]
    fn bytes_and_descriptors_pass_as_they_came() {
        let (mut qemu, front) = UnixStream::pair().unwrap();
        let (framework, mut daemon) = UnixStream::pair().unwrap();
        let relay = Relay::new(front, framework).unwrap();
        let mut first = [0; 20];
        daemon.read_exact(&mut first).unwrap();
        assert_eq!(first[..12], [2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0]);
        assert_eq!(u64::from_ne_bytes(first[12..].try_into().unwrap()), 1 << 30);

        let (mut here, there) = UnixStream::pair().unwrap();
        send(&qemu, b"twelve bytes", &[there.as_fd()]).unwrap();
        drop(there);
        assert_eq!(relay.to_framework().unwrap(), Passed::Some);
        let mut bytes = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut list = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(&daemon, &mut list, &mut ancillary, RecvFlags::empty()).unwrap();
        assert_eq!(received.bytes, 12);
        let Some(RecvAncillaryMessage::ScmRights(mut passed)) = ancillary.drain().next() else {
            panic!("no descriptor came through")
        };
        UnixStream::from(passed.next().unwrap()).write_all(b"x").unwrap();
        here.read_exact(&mut bytes[..1]).unwrap();

        daemon.write_all(b"answer").unwrap();
        relay.to_front().unwrap();
        qemu.read_exact(&mut bytes[..6]).unwrap();
        assert_eq!(&bytes[..6], b"answer");
        drop(qemu);
        assert_eq!(relay.to_framework().unwrap(), Passed::Closed);
    }
}
