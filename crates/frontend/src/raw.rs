//! Messages as bytes and descriptors, for front ends that misbehave.

use std::io::{self, IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost::vhost_user::message::FrontendReq;

use crate::Error;

/// Numbers of requests (vhost-user, "Front-end message types").
pub mod request {
    #![allow(missing_docs, reason = "the specification's names")]
    use super::FrontendReq;

    pub const GET_FEATURES: u32 = FrontendReq::GET_FEATURES as u32;
    pub const SET_FEATURES: u32 = FrontendReq::SET_FEATURES as u32;
    pub const SET_OWNER: u32 = FrontendReq::SET_OWNER as u32;
    pub const RESET_OWNER: u32 = FrontendReq::RESET_OWNER as u32;
    pub const SET_MEM_TABLE: u32 = FrontendReq::SET_MEM_TABLE as u32;
    pub const SET_VRING_NUM: u32 = FrontendReq::SET_VRING_NUM as u32;
    pub const SET_VRING_ADDR: u32 = FrontendReq::SET_VRING_ADDR as u32;
    pub const SET_VRING_BASE: u32 = FrontendReq::SET_VRING_BASE as u32;
    pub const GET_VRING_BASE: u32 = FrontendReq::GET_VRING_BASE as u32;
    pub const SET_VRING_KICK: u32 = FrontendReq::SET_VRING_KICK as u32;
    pub const SET_VRING_CALL: u32 = FrontendReq::SET_VRING_CALL as u32;
    pub const SET_VRING_ERR: u32 = FrontendReq::SET_VRING_ERR as u32;
    pub const GET_PROTOCOL_FEATURES: u32 = FrontendReq::GET_PROTOCOL_FEATURES as u32;
    pub const SET_PROTOCOL_FEATURES: u32 = FrontendReq::SET_PROTOCOL_FEATURES as u32;
    pub const GET_QUEUE_NUM: u32 = FrontendReq::GET_QUEUE_NUM as u32;
    pub const SET_LOG_BASE: u32 = FrontendReq::SET_LOG_BASE as u32;
    pub const SEND_RARP: u32 = FrontendReq::SEND_RARP as u32;
    pub const SET_VRING_ENABLE: u32 = FrontendReq::SET_VRING_ENABLE as u32;
    pub const SET_BACKEND_REQ_FD: u32 = FrontendReq::SET_BACKEND_REQ_FD as u32;
    pub const GET_CONFIG: u32 = FrontendReq::GET_CONFIG as u32;
    pub const SET_CONFIG: u32 = FrontendReq::SET_CONFIG as u32;
    pub const RESET_DEVICE: u32 = FrontendReq::RESET_DEVICE as u32;
    pub const SET_DEVICE_STATE_FD: u32 = FrontendReq::SET_DEVICE_STATE_FD as u32;
    pub const CHECK_DEVICE_STATE: u32 = FrontendReq::CHECK_DEVICE_STATE as u32;
    pub const GET_MAX_MEM_SLOTS: u32 = FrontendReq::GET_MAX_MEM_SLOTS as u32;
    pub const ADD_MEM_REG: u32 = FrontendReq::ADD_MEM_REG as u32;
    pub const REM_MEM_REG: u32 = FrontendReq::REM_MEM_REG as u32;
}

/// A message that gives a ring one of its descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handover {
    /// `VHOST_USER_SET_VRING_KICK`
    Kick,
    /// `VHOST_USER_SET_VRING_CALL`
    Call,
    /// `VHOST_USER_SET_VRING_ERR`
    Error,
}

impl Handover {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Kick, Self::Call, Self::Error];

    const fn request(self) -> FrontendReq {
        match self {
            Self::Kick => FrontendReq::SET_VRING_KICK,
            Self::Call => FrontendReq::SET_VRING_CALL,
            Self::Error => FrontendReq::SET_VRING_ERR,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Kick => "SET_VRING_KICK",
            Self::Call => "SET_VRING_CALL",
            Self::Error => "SET_VRING_ERR",
        }
    }
}

/// Flags of a header: version 1, and a reply is requested.
const FLAGS: u32 = 1 | 1 << 3;
/// Most descriptors in one message: more than any back end takes.
const DESCRIPTORS_MAX: usize = 250;

/// Sends a message, right or wrong, with up to 250 descriptors, and requests a reply.
///
/// # Errors
/// What the system answers.
pub fn send(
    to: &UnixStream,
    request: u32,
    payload: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    send_bytes(to, &message(request, payload), descriptors)
}

/// A message that requests a reply.
#[must_use]
pub fn message(request: u32, payload: &[u8]) -> Vec<u8> {
    #[expect(clippy::cast_possible_truncation, reason = "a few bytes")]
    let header = [request, FLAGS, payload.len() as u32].map(u32::to_ne_bytes).concat();
    [&header[..], payload].concat()
}

/// Sends these bytes, as of a message or a part of one, with up to 250 descriptors.
///
/// # Errors
/// What the system answers.
pub fn send_bytes(
    mut to: &UnixStream,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let sent = sendmsg(to, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    io::Write::write_all(&mut to, &bytes[sent..])
}

/// Sends a descriptor of any kind for ring `ring`, and waits for the reply.
///
/// # Errors
/// When the back end refuses, or the conversation breaks.
pub fn hand_over(
    mut to: &UnixStream,
    what: Handover,
    ring: u16,
    descriptor: BorrowedFd<'_>,
) -> Result<(), Error> {
    let payload = u64::from(ring).to_ne_bytes();
    send(to, what.request() as u32, &payload, &[descriptor]).map_err(Error::system("sending"))?;
    let mut answer = [0; 20];
    to.read_exact(&mut answer).map_err(Error::system("reading an answer"))?;
    if answer[12..] == [0; 8] {
        return Ok(());
    }
    let refusal = vhost::vhost_user::Error::BackendInternalError;
    Err(Error::refused(what.name())(refusal.into()))
}
