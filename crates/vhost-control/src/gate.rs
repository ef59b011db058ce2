//! What is refused before the framework sees it, and what its answers lack.
//!
//! A message that the framework refuses ends the connection: it answers with an error, or with nothing at all
//! when the message itself is not as it should be (`vhost` 0.18, `backend_req_handler.rs`), and its thread
//! returns. What a guest's driver can get wrong, a ring's size and where its parts are, must not cost the
//! other rings their connection. So those messages are judged here, on the way: one that is refused is
//! answered with an error, is never passed on, and changes nothing.
//!
//! The verdict rests on what the front end said itself, in the order in which it said it: what it does not
//! ask an answer to may not have reached the framework yet. A front end that asks for answers waits for each,
//! so an answer from here does not overtake another one.
//!
//! Descriptors are checked here too: the framework only gets descriptors of the kind that their message takes
//! ([`crate::descriptor`]).

use std::os::fd::AsFd;
use std::sync::Arc;

use vhost::vhost_user::message::{
    FrontendReq, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use virtio_net::Negotiated;
use virtqueue::layout::part_lens;
use worker::{Custody, Foreign};

use crate::descriptor::{self, Kind};
use crate::pipe::Pipes;
use crate::regions::{self, Limits, Region};
use crate::ring::RingControl;

/// Length of a header: request, flags and length of the payload, 4 bytes each.
pub const HEADER_LEN: usize = 12;
/// In a header's flags: the version of the protocol.
const VERSION: u32 = 1;
/// The length of an answer that says whether a message was accepted.
const ANSWER_LEN: u32 = 8;

/// A message that goes no further.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// The message changes nothing. The answer, if the front end asked for one.
    Message(Option<Vec<u8>>),
    /// The connection ends, for this reason.
    Connection(String),
}

/// What one front end has said, as far as verdicts rest on it.
#[derive(Debug)]
pub struct Gate {
    rings: Vec<Arc<RingControl>>,
    size_max: u16,
    /// `None` before `SET_FEATURES`.
    features: Option<Negotiated>,
    /// Whether `VHOST_USER_PROTOCOL_F_REPLY_ACK` was negotiated.
    answers: bool,
    limits: Limits,
    regions: Vec<Region>,
    /// By ring, 0 where nothing was said.
    sizes: Vec<u16>,
    custody: Arc<Custody>,
    /// What passes signals on, where call descriptors are pipes.
    pipes: Pipes,
}

impl Gate {
    /// For a front end that has said nothing yet.
    #[must_use]
    pub fn new(
        rings: &[Arc<RingControl>],
        size_max: u16,
        limits: Limits,
        custody: &Arc<Custody>,
    ) -> Self {
        Self {
            rings: rings.to_vec(),
            size_max,
            features: None,
            answers: false,
            limits,
            regions: Vec::new(),
            sizes: vec![0; rings.len()],
            custody: Arc::clone(custody),
            pipes: Pipes::new(rings.len()),
        }
    }

    /// Whether `message`, header and payload, may be passed on with its `descriptors`. Some of these are replaced.
    ///
    /// # Errors
    /// When not.
    pub fn judge(&mut self, message: &[u8], descriptors: &mut Vec<Foreign>) -> Result<(), Refused> {
        let Some((header, payload)) = message.split_at_checked(HEADER_LEN) else { return Ok(()) };
        let words = Words(header);
        let (Some(code), Some(flags)) = (words.u32(0), words.u32(4)) else { return Ok(()) };
        let request = FrontendReq::try_from(code);
        let Ok(request) = request.map_err(|()| code) else {
            return takes_none(&format!("request {code}"), descriptors);
        };
        // A payload of the wrong length is for the framework to refuse.
        let payload = Words(payload);
        let verdict = match request {
            FrontendReq::SET_VRING_NUM => payload.vring_state().map(|it| self.set_size(it)),
            FrontendReq::SET_VRING_ADDR => payload.vring_address().map(|it| self.check_parts(&it)),
            FrontendReq::SET_VRING_KICK | FrontendReq::SET_VRING_ERR => {
                Some(self.admit_eventfd(payload, descriptors))
            }
            FrontendReq::SET_VRING_CALL => Some(self.admit_call(payload, descriptors)),
            FrontendReq::SET_MEM_TABLE | FrontendReq::ADD_MEM_REG => {
                Some(self.admit_memory(request, payload, descriptors))
            }
            FrontendReq::REM_MEM_REG => {
                // Older front ends send a descriptor, which must be ignored (vhost-user, "VHOST_USER_REM_MEM_REG").
                descriptors.clear();
                self.take_note(request, payload);
                None
            }
            _ => {
                takes_none(&format!("{request:?}"), descriptors)?;
                self.take_note(request, payload);
                None
            }
        };
        let Some(Err(why)) = verdict else { return Ok(()) };
        self.log(request, &why);
        let wants_answer = flags & VhostUserHeaderFlag::NEED_REPLY.bits() != 0;
        Err(Refused::Message((self.answers && wants_answer).then(|| error_answer(code))))
    }

    /// Completes an answer of the framework's. It knows 16 bits of a position; of a packed ring the used
    /// position stands in the other 16 (vhost-user, "Vring descriptor indices for packed virtqueues"). A ring
    /// that is stopped has nothing under way, so the two are the same.
    pub fn complete(&self, answer: &mut [u8]) {
        let words = Words(answer);
        let is_base = words.u32(0) == Some(FrontendReq::GET_VRING_BASE as u32);
        if is_base
            && self.features.is_some_and(Negotiated::packed)
            && let Some((available, used)) = answer
                .split_at_mut_checked(HEADER_LEN + 4)
                .and_then(|(_, base)| base.split_at_mut_checked(2))
            && available.len() == used.len()
        {
            // Little-endian, as every machine that this runs on.
            used.copy_from_slice(available);
        }
    }

    fn take_note(&mut self, request: FrontendReq, payload: Words<'_>) {
        match request {
            FrontendReq::SET_FEATURES => {
                let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
                self.features = payload.u64(0).map(|bits| Negotiated(bits & !protocol));
            }
            FrontendReq::SET_PROTOCOL_FEATURES => {
                let answers = VhostUserProtocolFeatures::REPLY_ACK.bits();
                self.answers = payload.u64(0).is_some_and(|bits| bits & answers != 0);
            }
            FrontendReq::REM_MEM_REG => {
                let removed = payload.region(8).map(|region| region.guest_address);
                self.regions.retain(|region| Some(region.guest_address) != removed);
            }
            _ => {}
        }
    }

    fn admit_eventfd(&self, payload: Words<'_>, descriptors: &[Foreign]) -> Result<(), String> {
        self.ring_of(payload)?;
        descriptors.iter().try_for_each(|fd| expect_kinds(fd, &[Kind::Eventfd]).map(drop))
    }

    fn admit_call(
        &mut self,
        payload: Words<'_>,
        descriptors: &mut [Foreign],
    ) -> Result<(), String> {
        let index = self.ring_of(payload)?;
        let mut forwarder = None;
        for descriptor in descriptors {
            if expect_kinds(descriptor, &[Kind::Eventfd, Kind::Pipe])? == Kind::Pipe {
                let replaced = |error| format!("its pipe cannot be opened for writing: {error}");
                let call = descriptor.try_clone().map_err(replaced)?;
                let (forwards, eventfd) = self.pipes.forward(call).map_err(replaced)?;
                forwarder = Some(forwards);
                *descriptor = self.custody.take(eventfd);
            }
        }
        self.pipes.set(index, forwarder);
        Ok(())
    }

    fn admit_memory(
        &mut self,
        request: FrontendReq,
        payload: Words<'_>,
        descriptors: &[Foreign],
    ) -> Result<(), String> {
        for descriptor in descriptors {
            expect_kinds(descriptor, &[Kind::File])?;
        }
        let files: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let is_table = request == FrontendReq::SET_MEM_TABLE;
        let count = if is_table { payload.u32(0).unwrap_or(0) } else { 1 };
        let new: Vec<_> = (0..count as usize).map_while(|n| payload.region(8 + 32 * n)).collect();
        let present = if is_table { &[][..] } else { &self.regions };
        regions::check(present, &new, &files, &self.limits)?;
        if is_table {
            self.regions.clear();
        }
        self.regions.extend(new);
        Ok(())
    }

    /// The ring of a message that sets a descriptor.
    fn ring_of(&self, payload: Words<'_>) -> Result<usize, String> {
        // Bits 0 to 7 are the index. The framework refuses other faults of the word.
        let index = payload.u64(0).map_or(0, |word| (word & 0xff) as usize);
        if index < self.sizes.len() { Ok(index) } else { Err(self.no_such_ring(index)) }
    }

    fn set_size(&mut self, (index, size): (usize, u32)) -> Result<(), String> {
        let ring = self.rings.get(index).ok_or_else(|| self.no_such_ring(index))?;
        let max = self.size_max;
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
        if let Some(running) = ring.running_size()
            && size != running
        {
            return Err(format!(
                "queue {index} runs with {running} descriptors, not {size}; stop it first"
            ));
        }
        self.sizes[index] = size;
        Ok(())
    }

    fn check_parts(&self, addresses: &VringAddress) -> Result<(), String> {
        let VringAddress { index, table, driver, device } = *addresses;
        // Where the size is not known yet, the ring's start has the last word.
        let size = (*self.sizes.get(index).ok_or_else(|| self.no_such_ring(index))?).max(1);
        let packed = self.features.is_some_and(Negotiated::packed);
        let parts = part_lens(packed, size);
        let names = ["descriptor table", "driver area", "device area"];
        for ((name, address), (len, align)) in names.iter().zip([table, driver, device]).zip(parts)
        {
            if !address.is_multiple_of(align as u64) {
                return Err(format!("queue {index}: the {name} is not aligned to {align} bytes"));
            }
            if !self.regions.iter().any(|region| region.holds(address, len as u64)) {
                return Err(format!(
                    "queue {index}: the {name}, {len} bytes, is not in one region of guest memory"
                ));
            }
        }
        Ok(())
    }

    fn no_such_ring(&self, index: usize) -> String {
        format!("there is no queue {index}; expected one below {}", self.sizes.len())
    }

    fn log(&self, request: FrontendReq, why: &str) {
        if let Some(ring) = self.rings.first() {
            log_limit::warn!(ring.log(), "{request:?} of the front end was refused: {why}");
        }
    }
}

/// `VhostUserVringAddr`.
#[derive(Clone, Copy, Debug)]
struct VringAddress {
    index: usize,
    table: u64,
    driver: u64,
    device: u64,
}

/// Numbers of the front end's byte order, which is ours.
#[derive(Clone, Copy)]
struct Words<'m>(&'m [u8]);

impl Words<'_> {
    fn u32(self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.0.get(at..at + 4)?.try_into().ok()?))
    }

    fn u64(self, at: usize) -> Option<u64> {
        Some(u64::from_ne_bytes(self.0.get(at..at + 8)?.try_into().ok()?))
    }

    /// Ring and number.
    fn vring_state(self) -> Option<(usize, u32)> {
        (self.0.len() == 8).then_some(())?;
        Some((self.u32(0)? as usize, self.u32(4)?))
    }

    fn vring_address(self) -> Option<VringAddress> {
        (self.0.len() == 40).then_some(())?;
        let index = self.u32(0)? as usize;
        // Flags stand before them, and the log's address behind.
        let (table, device, driver) = (self.u64(8)?, self.u64(16)?, self.u64(24)?);
        Some(VringAddress { index, table, driver, device })
    }

    fn region(self, at: usize) -> Option<Region> {
        let (guest_address, len) = (self.u64(at)?, self.u64(at + 8)?);
        let (user_address, offset) = (self.u64(at + 16)?, self.u64(at + 24)?);
        Some(Region { guest_address, len, user_address, offset })
    }
}

/// Refuses descriptors with a message that takes none.
fn takes_none(request: &str, descriptors: &[Foreign]) -> Result<(), Refused> {
    if descriptors.is_empty() {
        return Ok(());
    }
    let count = descriptors.len();
    Err(Refused::Connection(format!("{request} with {count} file descriptors; expected none")))
}

/// The kind of `descriptor`, if it is one of those expected.
fn expect_kinds(descriptor: &Foreign, expected: &[Kind]) -> Result<Kind, String> {
    let (kind, found) = descriptor::inspect(descriptor)
        .map_err(|error| format!("what its descriptor is cannot be found out: {error}"))?;
    if expected.contains(&kind) {
        return Ok(kind);
    }
    let names: Vec<_> = expected.iter().map(|kind| kind.name()).collect();
    Err(format!("its descriptor is {found:?}; expected {}", names.join(" or ")))
}

/// "Not accepted" (vhost-user, "Communication", `VHOST_USER_PROTOCOL_F_REPLY_ACK`).
fn error_answer(code: u32) -> Vec<u8> {
    let flags = VERSION | VhostUserHeaderFlag::REPLY.bits();
    let header = [code, flags, ANSWER_LEN].map(u32::to_ne_bytes).concat();
    [&header[..], &1_u64.to_ne_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, epoll, eventfd};
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    const NEED_REPLY: u32 = 1 << 3;
    const LIMITS: Limits = Limits { bytes_max: 1 << 30, peer: None };

    impl Gate {
        fn hear(&mut self, message: &[u8]) -> Result<(), Refused> {
            self.judge(message, &mut Vec::new())
        }

        /// Judges a message that sets a descriptor of ring 1. Returns the kind that is passed on.
        fn hand_over(&mut self, request: FrontendReq, fd: impl Into<OwnedFd>) -> Option<Kind> {
            let mut descriptors = vec![self.custody.take(fd.into())];
            let message = message(request, NEED_REPLY, &words(&[1]));
            self.judge(&message, &mut descriptors).ok()?;
            Some(descriptor::inspect(&descriptors[0]).unwrap().0)
        }
    }

    fn message(request: FrontendReq, flags: u32, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap();
        let header = [request as u32, VERSION | flags, len].map(u32::to_ne_bytes).concat();
        [&header[..], payload].concat()
    }

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// Rings of 64 in regions from 0x10000 to 0x20000 and on to 0x28000 of the front end's memory.
    fn gate(features: u64) -> Gate {
        let custody = Custody::new(&Arc::default()).unwrap();
        let (sizes, pipes) = (vec![64; 2], Pipes::new(2));
        let mut gate = Gate { sizes, pipes, ..Gate::new(&[], 256, LIMITS, &custody) };
        let regions = [2, 0, 0x10000, 0x10000, 0, 0x10000, 0x8000, 0x20000, 0];
        let table = message(FrontendReq::SET_MEM_TABLE, 0, &words(&regions));
        gate.hear(&table).unwrap();
        gate.hear(&message(FrontendReq::SET_FEATURES, 0, &words(&[features]))).unwrap();
        gate
    }

    fn addresses(index: u64, parts: [u64; 3]) -> Vec<u8> {
        let [table, driver, device] = parts;
        words(&[index, table, device, driver, 0])
    }

    #[test]
    fn each_part_of_a_ring_lies_in_one_region_and_is_aligned() {
        // A split ring of 64 has 1024, 134 and 518 bytes, a packed one 1024, 4 and 4.
        let ends = |features| {
            let mut gate = gate(features);
            let mut may = |parts| {
                let parts = addresses(1, parts);
                gate.hear(&message(FrontendReq::SET_VRING_ADDR, NEED_REPLY, &parts)).is_ok()
            };
            assert!(may([0x10000, 0x11000, 0x12000]));
            assert!(!may([0x10008, 0x11000, 0x12000]));
            assert!(!may([0x10000, 0x11001, 0x12000]));
            assert!(!may([0x10000, 0x11000, 0x12002]));
            assert!(may([0x20000 - 1024, 0x11000, 0x12000]));
            assert!(!may([0x20000 - 1008, 0x11000, 0x12000]));
            assert!(!may([0x28000, 0x11000, 0x12000]));
            assert!(!may([u64::MAX - 15, 0x11000, 0x12000]));
            [134_u64, 518].map(|len| {
                let address = 0x20000 - len.next_multiple_of(4) + 4;
                may([0x10000, address, 0x12000]) && may([0x10000, 0x11000, address])
            })
        };
        assert_eq!(ends(0), [false, false]);
        assert_eq!(ends(1 << 34), [true, true]);
    }

    #[test]
    fn who_asks_for_an_answer_gets_one_if_it_was_agreed_on() {
        let mut gate = gate(0);
        let wrong = addresses(2, [0x10000, 0x11000, 0x12000]);
        let mut judge = |flags, payload: &[u8]| {
            gate.hear(&message(FrontendReq::SET_VRING_ADDR, flags, payload))
        };
        assert_eq!(judge(NEED_REPLY, &wrong), Err(Refused::Message(None)));
        // What has the wrong length is for the framework.
        assert_eq!(judge(NEED_REPLY, &wrong[..39]), Ok(()));
        gate.hear(&message(FrontendReq::SET_PROTOCOL_FEATURES, 0, &words(&[1 << 3]))).unwrap();
        let mut judge = |flags| gate.hear(&message(FrontendReq::SET_VRING_ADDR, flags, &wrong));
        assert_eq!(judge(0), Err(Refused::Message(None)));
        assert_eq!(judge(NEED_REPLY), Err(Refused::Message(Some(error_answer(9)))));
    }

    #[test]
    fn the_position_of_a_packed_ring_is_told_twice() {
        for (features, expected) in [(0, 0x8005_u32), (1 << 34, 0x8005_8005)] {
            let base = [1, 0x8005_u32].map(u32::to_ne_bytes).concat();
            let mut answer = message(FrontendReq::GET_VRING_BASE, 1 << 2, &base);
            gate(features).complete(&mut answer);
            assert_eq!(answer[16..], expected.to_ne_bytes());
        }
    }

    #[test]
    fn memory_that_was_taken_away_holds_no_ring() {
        let mut gate = gate(0);
        let parts = addresses(0, [0x20000, 0x21000, 0x22000]);
        let judge = |gate: &mut Gate| gate.hear(&message(FrontendReq::SET_VRING_ADDR, 0, &parts));
        assert!(judge(&mut gate).is_ok());
        let region = words(&[0, 0x10000, 0x8000, 0x20000, 0]);
        gate.hear(&message(FrontendReq::REM_MEM_REG, 0, &region)).unwrap();
        assert!(judge(&mut gate).is_err());
        gate.hear(&message(FrontendReq::ADD_MEM_REG, 0, &region)).unwrap();
        assert!(judge(&mut gate).is_ok());
    }

    #[test]
    fn kick_and_error_are_eventfds_and_call_may_be_a_pipe() {
        use FrontendReq::{SET_VRING_CALL, SET_VRING_ERR, SET_VRING_KICK};
        let mut gate = gate(0);
        for request in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
            let new = || eventfd(0, EventfdFlags::empty()).unwrap();
            assert_eq!(gate.hand_over(request, new()), Some(Kind::Eventfd));
            let (socket, _other) = UnixStream::pair().unwrap();
            assert_eq!(gate.hand_over(request, socket), None);
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
            assert_eq!(gate.hand_over(request, epoll), None);
            let memory = memfd_create("anon_inode:[eventfd]", MemfdFlags::CLOEXEC).unwrap();
            assert_eq!(gate.hand_over(request, memory), None);
        }
        let (_reader, writer) = std::io::pipe().unwrap();
        let writer = OwnedFd::from(writer);
        assert_eq!(gate.hand_over(SET_VRING_KICK, writer.try_clone().unwrap()), None);
        // Our eventfd replaces it.
        assert_eq!(gate.hand_over(SET_VRING_CALL, writer), Some(Kind::Eventfd));
    }

    #[test]
    fn memory_is_a_file_and_no_other_message_has_descriptors() {
        let mut gate = gate(0);
        let (socket, _other) = UnixStream::pair().unwrap();
        let mut descriptors = vec![gate.custody.take(socket.into())];
        let region =
            message(FrontendReq::ADD_MEM_REG, 0, &words(&[0, 0x30000, 0x1000, 0x30000, 0]));
        assert_eq!(gate.judge(&region, &mut descriptors), Err(Refused::Message(None)));
        assert_eq!(gate.regions.len(), 2);
        let owner = message(FrontendReq::SET_OWNER, 0, &[]);
        assert!(matches!(gate.judge(&owner, &mut descriptors), Err(Refused::Connection(_))));
        let removal =
            message(FrontendReq::REM_MEM_REG, 0, &words(&[0, 0x10000, 0x8000, 0x20000, 0]));
        assert_eq!(gate.judge(&removal, &mut descriptors), Ok(()));
        assert!(descriptors.is_empty());
    }
}
