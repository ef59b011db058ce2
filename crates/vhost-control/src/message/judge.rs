//! Judges a message before the framework sees it.
//!
//! If the framework refuses a message, it ends the connection: it answers with an error, or not at all
//! (`vhost` 0.18, `backend_req_handler.rs`), and its thread returns. But the size of a ring and the addresses
//! of its parts come from the guest's driver, and a mistake there must not end the connection, which all
//! rings share. So the judge refuses such a message first: it is answered with an error, is not passed on,
//! and changes nothing.
//!
//! A verdict depends on earlier messages of the front end, not on the framework's state, because the
//! framework may not have handled these messages yet. A front end that asks for answers waits for each of
//! them, so an answer of the judge never comes before that to an earlier message.
//!
//! The judge also checks each descriptor's kind ([`super::descriptor`]).

mod dirty;
mod memory;
mod offer;
mod state;
mod succession;

use std::ops::Range;
use std::sync::Arc;

use vhost::vhost_user::message::{FrontendReq, VhostUserHeaderFlag, VhostUserProtocolFeatures};
use virtio_net::{MacAddress, Negotiated};
use virtqueue::layout::part_lens;
use worker::{Custody, Foreign};

use self::dirty::Dirty;
use self::memory::Memory;
pub use self::offer::Offer;
use super::channel;
use super::descriptor::{Kind, expect_kinds};
use super::pipe::Pipes;
use super::regions::Limits;
use super::request::{Body, LogPart, Request, RingParts};
use super::stream::HEADER_LEN;
use super::transfer::Transfers;
use crate::announcer::NotAnnounced;
use crate::ring::RingControl;
use crate::sharing::Sharing;

/// Version of the protocol, in the flags of a header.
const VERSION: u32 = 1;
/// Payload length of an answer that says whether a message was accepted, bytes.
const ANSWER_LEN: usize = 8;
/// In such an answer: the message was accepted.
const ACCEPTED: u64 = 0;
/// In such an answer: the message was not accepted.
const NOT_ACCEPTED: u64 = 1;

/// Why a message is not passed on.
#[derive(Debug, PartialEq, Eq)]
pub enum Held {
    /// It was refused and changes nothing, or the judge has carried it out. The field is the answer, if the
    /// front end asked for one.
    Answered(Option<Vec<u8>>),
    /// The connection must end, for this reason.
    Connection(String),
}

/// Where a message that is accepted goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// On to the framework.
    Further,
    /// No further: the judge has carried it out.
    Done,
}

impl Way {
    const fn done((): ()) -> Self {
        Self::Done
    }

    const fn done_if(is_done: bool) -> Self {
        if is_done { Self::Done } else { Self::Further }
    }
}

/// Judges the messages of one front end. Keeps what later verdicts need.
#[derive(Debug)]
pub struct Judge {
    rings: Vec<Arc<RingControl>>,
    offer: Offer,
    /// Whether `SET_OWNER` has come.
    owned: bool,
    /// Whether the front end asked for the offered features before `SET_OWNER`, as QEMU does
    /// ([`Judge::complete`]).
    asked_first: bool,
    /// Whether the front end takes the answer to `GET_QUEUE_NUM` as a number of pairs ([`Judge::complete`]).
    counts_pairs: bool,
    /// `None` before `SET_FEATURES`.
    features: Option<Negotiated>,
    /// Whether `VHOST_USER_PROTOCOL_F_REPLY_ACK` was negotiated.
    reply_ack: bool,
    limits: Limits,
    memory: Memory,
    dirty: Dirty,
    /// Size of each ring, in descriptors; 0 before `SET_VRING_NUM`.
    sizes: Vec<u16>,
    custody: Arc<Custody>,
    /// Forward signals to call descriptors that are pipes.
    pipes: Pipes,
    /// The front end's channel for requests of the back end, kept open ([`super::channel`]).
    channel: Option<Foreign>,
    /// The last request whose answer depends on the start of rings: its code, and these rings.
    starting: Option<(u32, Range<usize>)>,
    /// The last message set a dirty log.
    log_taken: bool,
    transfers: Transfers,
}

impl Judge {
    /// For a front end that has sent nothing yet.
    #[must_use]
    pub fn new(
        rings: &[Arc<RingControl>],
        offer: Offer,
        limits: Limits,
        sharing: &Arc<Sharing>,
        transfers: Transfers,
        custody: &Arc<Custody>,
    ) -> Self {
        Self {
            rings: rings.to_vec(),
            offer,
            owned: false,
            asked_first: false,
            counts_pairs: false,
            features: None,
            reply_ack: false,
            limits,
            memory: Memory::new(limits, Arc::clone(sharing)),
            dirty: Dirty::new(rings.len()),
            sizes: vec![0; rings.len()],
            custody: Arc::clone(custody),
            pipes: Pipes::new(rings.len(), rings.first().map(|ring| Arc::clone(ring.log()))),
            channel: None,
            starting: None,
            log_taken: false,
            transfers,
        }
    }

    /// Checks whether `message` (header and payload) may be passed on with its `descriptors`. Cuts the
    /// message to the length that its request needs, and replaces or removes some of the descriptors.
    ///
    /// # Errors
    /// Why it must not be passed on.
    pub fn judge(
        &mut self,
        message: &mut Vec<u8>,
        descriptors: &mut Vec<Foreign>,
    ) -> Result<(), Held> {
        let request = Request::read(message).map_err(Held::Connection)?;
        if !request.takes_descriptors() && !descriptors.is_empty() {
            let (name, count) = (request.name(), descriptors.len());
            let why = format!("{name} with {count} file descriptors; expected none");
            return Err(Held::Connection(why));
        }
        let verdict = self.verdict(&request, descriptors)?;
        if self.dirty.is_shared()
            && let Body::SetLog(LogPart { len, offset }) = request.body
        {
            // Always answered, asked for or not: QEMU waits for any answer, the `vhost` crate for the message itself. A
            // refusal is as long. It is an error to both ways to read it: as a number, and as a log, which wraps.
            let answer = verdict.map_or_else(
                |why| {
                    self.log(&request, &why);
                    [NOT_ACCEPTED, u64::MAX]
                },
                |_| [len, offset],
            );
            return Err(Held::Answered(Some(reply(request.code, &words(&answer)))));
        }
        let is_answered = self.reply_ack && request.needs_reply;
        let answered =
            |result| Err(Held::Answered(is_answered.then(|| answer(request.code, result))));
        match verdict {
            Err(why) => {
                self.log(&request, &why);
                return answered(NOT_ACCEPTED);
            }
            Ok(Way::Done) => return answered(ACCEPTED),
            Ok(Way::Further) => {}
        }
        let starts = request.starts(self.rings.len());
        self.starting = (is_answered && !starts.is_empty()).then_some((request.code, starts));
        Ok(())
    }

    /// Judges one request. An error is why it is refused: a sentence, or for the connection.
    fn verdict(
        &mut self,
        request: &Request,
        descriptors: &mut Vec<Foreign>,
    ) -> Result<Result<Way, String>, Held> {
        let rings_run = self.rings.iter().any(|ring| ring.running_size().is_some());
        let verdict = match &request.body {
            Body::SetSize { ring, size } => self.set_size(*ring, *size),
            Body::SetAddresses(parts) => self.set_parts(parts),
            Body::SetKick(ring) | Body::SetError(ring) => self.admit_eventfd(*ring, descriptors),
            Body::SetCall(ring) => self.admit_call(*ring, descriptors),
            Body::SetMemory(regions) => {
                let is_covered = self.dirty.expect_covered(regions);
                is_covered.and_then(|()| self.memory.set(regions, descriptors, rings_run))
            }
            Body::AddRegion(region) => {
                let is_covered = self.dirty.expect_covered(&[*region]);
                let add = |()| self.memory.add(*region, descriptors, rings_run);
                return Ok(is_covered.and_then(add).map(Way::done_if));
            }
            Body::RemoveRegion(region) => {
                return Ok(self.memory.remove(*region, descriptors).map(Way::done_if));
            }
            // The framework expects a socket; the channel may be a pipe.
            Body::SetBackendChannel => return Ok(self.keep_channel(descriptors).map(Way::done)),
            Body::SetFeatures { features, log_all } => {
                self.offer.expect(*features).map_err(Held::Connection)?;
                let logs = self.dirty.set_all(*log_all, self.memory.all(), rings_run);
                logs.map(|()| self.features = Some(*features))
            }
            // The framework would mark what it writes itself, which is nothing.
            Body::SetLog(part) => return Ok(self.set_log(*part, descriptors).map(Way::done)),
            // The framework does not handle these messages.
            Body::SendRarp(address) => return self.announce(request, *address),
            Body::SetMtu(mtu) => {
                let log = self.rings.first().map(|ring| &**ring.log());
                return Ok(self.offer.expect_mtu(*mtu, log).map(Way::done));
            }
            Body::SetDeviceState(way) => {
                return Err(self.begin_transfer(request, *way, descriptors, rings_run));
            }
            Body::CheckDeviceState => return Err(self.end_transfer(request)),
            Body::SetConfig => Err("the configuration space is read-only".into()),
            Body::GetConfig(part) if !part.is_valid() => {
                // An answer without the bytes of the configuration space means an error (vhost-user,
                // "VHOST_USER_GET_CONFIG").
                let none = [part.offset, 0, part.flags].map(u32::to_ne_bytes).concat();
                return Err(Held::Answered(Some(reply(request.code, &none))));
            }
            other => {
                self.note(other);
                Ok(())
            }
        };
        Ok(verdict.map(|()| Way::Further))
    }

    /// Notes what later verdicts and answers depend on.
    fn note(&mut self, body: &Body) {
        match body {
            Body::SetProtocolFeatures(features) => {
                self.dirty.set_shared(features.contains(VhostUserProtocolFeatures::LOG_SHMFD));
                self.reply_ack = features.contains(VhostUserProtocolFeatures::REPLY_ACK);
                let moves = features.contains(VhostUserProtocolFeatures::DEVICE_STATE);
                self.transfers.set_negotiated(moves);
            }
            Body::SetOwner => self.owned = true,
            Body::GetOffer => self.asked_first |= !self.owned,
            Body::GetQueueNum => self.counts_pairs = !self.owned,
            _ => {}
        }
    }

    /// Whether the front end has read the number of queue pairs and sent no features, as QEMU does if it
    /// wants more pairs.
    #[must_use]
    pub const fn wants_other_pairs(&self) -> bool {
        self.counts_pairs && self.features.is_none()
    }

    /// Completes an answer of the framework.
    ///
    /// The framework does not know whether a worker could start a ring, so it accepts every message that
    /// starts one. If the worker could not, the answer is changed to an error.
    ///
    /// The framework fills only 16 bits of a ring's position. For a packed ring the other 16 bits are the
    /// used position (vhost-user, "Vring descriptor indices for packed virtqueues"). In a stopped ring it is
    /// equal to the available position, which is copied there.
    ///
    /// The answer to `GET_QUEUE_NUM` is a number of queues (vhost-user, "Multiple queue support"), and
    /// cloud-hypervisor and the `vhost` crate read it so. But QEMU compares it with its number of queue pairs
    /// (`vhost_user_start`, net/vhost-user.c), and DPDK's vhost answers with queue pairs. QEMU is recognised
    /// because it asks before `SET_OWNER` (`vhost_dev_init`, hw/virtio/vhost.c); the others begin with
    /// `SET_OWNER`.
    ///
    /// QEMU's network devices have a configuration space and a control queue of their own. QEMU warns about a
    /// back end that offers `VHOST_USER_PROTOCOL_F_CONFIG` (`vhost_user_backend_init`,
    /// hw/virtio/vhost-user.c). If the back end offers `VIRTIO_NET_F_GUEST_ANNOUNCE`, QEMU passes that on to
    /// the guest and no longer announces the guest itself (`user_feature_bits`, net/vhost-user.c). So none of
    /// this is offered to QEMU.
    pub fn complete(&mut self, answer: &mut [u8]) {
        let Some((header, payload)) = answer.split_at_mut_checked(HEADER_LEN) else { return };
        let code = header.first_chunk().map_or(0, |code| u32::from_ne_bytes(*code));
        if let Some((_, rings)) = self.starting.take_if(|(started, _)| *started == code)
            && let Ok(payload) = <&mut [u8; ANSWER_LEN]>::try_from(&mut *payload)
            && self.rings.get(rings).is_some_and(|rings| rings.iter().any(|it| it.has_failed()))
        {
            *payload = NOT_ACCEPTED.to_ne_bytes();
        }
        if let Ok(payload) = <&mut [u8; 8]>::try_from(&mut *payload) {
            let answered = u64::from_ne_bytes(*payload);
            *payload = self.for_front_end(code, answered).unwrap_or(answered).to_ne_bytes();
        }
        if code == FrontendReq::GET_VRING_BASE as u32
            && self.features.is_some_and(Negotiated::packed)
            && let Some((_, base)) = payload.split_at_mut_checked(4)
            && let Some((available, used)) = base.split_at_mut_checked(2)
            && available.len() == used.len()
        {
            // Little-endian, as are all machines on which this runs.
            used.copy_from_slice(available);
        }
    }

    /// The answer to request `code` that this front end needs instead of `answer`, if it needs another one.
    fn for_front_end(&self, code: u32, answer: u64) -> Option<u64> {
        match FrontendReq::try_from(code) {
            Ok(FrontendReq::GET_QUEUE_NUM) if self.counts_pairs => Some(answer / 2),
            Ok(FrontendReq::GET_FEATURES) => Some(Offer::for_front_end(answer, self.asked_first)),
            Ok(FrontendReq::GET_PROTOCOL_FEATURES) if self.asked_first => {
                Some(answer & !VhostUserProtocolFeatures::CONFIG.bits())
            }
            _ => None,
        }
    }

    fn admit_eventfd(&self, ring: usize, descriptors: &[Foreign]) -> Result<(), String> {
        self.check_ring(ring)?;
        descriptors.iter().try_for_each(|fd| expect_kinds(fd, &[Kind::Eventfd]).map(drop))
    }

    fn admit_call(&mut self, ring: usize, descriptors: &mut [Foreign]) -> Result<(), String> {
        self.check_ring(ring)?;
        let mut forwarder = None;
        for descriptor in descriptors {
            match expect_kinds(descriptor, &[Kind::Eventfd, Kind::Socket, Kind::Pipe])? {
                Kind::Socket => channel::admit_socket(descriptor)?,
                Kind::Pipe => {
                    let refused = |error| format!("its pipe cannot be opened for writing: {error}");
                    let call = descriptor.try_clone().map_err(refused)?;
                    let (forwards, eventfd) =
                        self.pipes.forward(call, &self.custody).map_err(refused)?;
                    // The helper has a copy of the descriptor.
                    descriptor.mark_harmless();
                    forwarder = Some(forwards);
                    *descriptor = self.custody.take(eventfd);
                }
                _ => {}
            }
        }
        self.pipes.set(ring, forwarder);
        Ok(())
    }

    fn keep_channel(&mut self, descriptors: &mut Vec<Foreign>) -> Result<(), String> {
        let count = descriptors.len();
        let (Some(channel), 1) = (descriptors.pop(), count) else {
            return Err(format!("it has {count} file descriptors; expected one"));
        };
        channel::admit(&channel)?;
        let _previous = self.channel.replace(channel);
        Ok(())
    }

    fn set_size(&mut self, index: usize, size: u32) -> Result<(), String> {
        self.check_ring(index)?;
        let max = self.offer.queue_size;
        let size =
            u16::try_from(size).ok().filter(|size| (1..=max).contains(size)).ok_or_else(|| {
                format!("queue {index} cannot have {size} descriptors; expected 1 to {max}")
            })?;
        let is_split = self.features.is_some_and(|features| !features.packed());
        if is_split && !size.is_power_of_two() {
            return Err(format!(
                "queue {index} cannot have {size} descriptors; expected a power of two in a split ring"
            ));
        }
        if let Some(running) = self.rings.get(index).and_then(|ring| ring.running_size())
            && size != running
        {
            return Err(format!(
                "queue {index} runs with {running} descriptors, not {size}; stop it first"
            ));
        }
        self.sizes[index] = size;
        Ok(())
    }

    fn set_log(&mut self, part: LogPart, descriptors: &[Foreign]) -> Result<(), String> {
        let (memory, limits) = (self.memory.all(), &self.limits);
        let log = self.dirty.set_log(part, descriptors, memory, limits)?;
        self.rings.iter().for_each(|ring| ring.set_dirty_log(&log));
        self.log_taken = true;
        Ok(())
    }

    fn announce(
        &self,
        request: &Request,
        address: MacAddress,
    ) -> Result<Result<Way, String>, Held> {
        let Some(ring) = self.rings.first() else { return Ok(Err("there is no queue".into())) };
        match ring.announcer().announce(address) {
            Ok(()) => Ok(Ok(Way::Done)),
            Err(NotAnnounced::Because(why)) => Ok(Err(why)),
            Err(NotAnnounced::AsLogged) => {
                let is_answered = self.reply_ack && request.needs_reply;
                let refusal = is_answered.then(|| answer(request.code, NOT_ACCEPTED));
                Err(Held::Answered(refusal))
            }
        }
    }

    fn set_parts(&mut self, parts: &RingParts) -> Result<(), String> {
        self.check_parts(parts)?;
        let packed = self.features.is_some_and(Negotiated::packed);
        let size = self.sizes[parts.ring].max(1);
        let logged_at = self.dirty.set_area(parts, packed, size)?;
        if let Some(ring) = self.rings.get(parts.ring) {
            ring.set_logged_at(logged_at);
        }
        Ok(())
    }

    fn check_parts(&self, parts: &RingParts) -> Result<(), String> {
        let RingParts { ring: index, table, driver, device, .. } = *parts;
        self.check_ring(index)?;
        // If the size is not known yet, only the beginning of each part is checked here. The worker checks
        // the ring again when it starts.
        let size = self.sizes[index].max(1);
        let packed = self.features.is_some_and(Negotiated::packed);
        let names = ["descriptor table", "driver area", "device area"];
        let addresses = [table, driver, device];
        for ((name, address), (len, align)) in
            names.iter().zip(addresses).zip(part_lens(packed, size))
        {
            if !address.is_multiple_of(align as u64) {
                return Err(format!("queue {index}: the {name} is not aligned to {align} bytes"));
            }
            self.memory
                .expect_within(address, len as u64)
                .map_err(|why| format!("queue {index}: the {name}, {len} bytes, {why}"))?;
        }
        Ok(())
    }

    fn check_ring(&self, index: usize) -> Result<(), String> {
        if index < self.sizes.len() {
            return Ok(());
        }
        Err(format!("there is no queue {index}; expected one below {}", self.sizes.len()))
    }

    fn log(&self, request: &Request, why: &str) {
        if let Some(ring) = self.rings.first() {
            log_limit::warn!(ring.log(), "{} of the front end was refused: {why}", request.name());
        }
    }
}

/// An answer that says whether a message was accepted (vhost-user, "Communication",
/// `VHOST_USER_PROTOCOL_F_REPLY_ACK`).
fn answer(code: u32, accepted: u64) -> Vec<u8> {
    reply(code, &accepted.to_ne_bytes())
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// An answer with this payload.
#[expect(clippy::cast_possible_truncation, reason = "a few bytes")]
fn reply(code: u32, payload: &[u8]) -> Vec<u8> {
    let flags = VERSION | VhostUserHeaderFlag::REPLY.bits();
    let header = [code, flags, payload.len() as u32].map(u32::to_ne_bytes).concat();
    [&header[..], payload].concat()
}

#[cfg(test)]
mod tests;
