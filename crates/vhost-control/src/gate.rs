//! What is refused before the framework sees it.
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

use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{
    FrontendReq, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use virtio_net::Negotiated;
use virtqueue::layout::{EVENT_LEN, descriptor_table_len, device_area_len, driver_area_len};

use crate::ring::RingControl;

/// A header: request, flags and the length of what follows.
const HEADER_LEN: usize = 12;
/// In a header's flags: the version of the protocol.
const VERSION: u32 = 1;
/// The length of an answer that says whether a message was accepted.
const ANSWER_LEN: u32 = 8;
/// At most one line in this time, whatever the front end sends.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// A message that goes no further.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// What the front end is to be told, if it asked for an answer.
    pub answer: Option<Vec<u8>>,
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
    regions: Vec<Region>,
    /// By ring, 0 where nothing was said.
    sizes: Vec<u16>,
    logged: Option<Instant>,
}

/// A region of guest memory.
#[derive(Clone, Copy, Debug)]
struct Region {
    guest_address: u64,
    len: u64,
    /// Where it is in the front end's own memory: ring addresses are of this kind.
    user_address: u64,
}

impl Gate {
    /// For a front end that has said nothing yet.
    #[must_use]
    pub fn new(rings: &[Arc<RingControl>], size_max: u16) -> Self {
        Self {
            rings: rings.to_vec(),
            size_max,
            features: None,
            answers: false,
            regions: Vec::new(),
            sizes: vec![0; rings.len()],
            logged: None,
        }
    }

    /// Whether `message`, header and payload, may be passed on.
    ///
    /// # Errors
    /// When not.
    pub fn judge(&mut self, message: &[u8]) -> Result<(), Refused> {
        let Some((header, payload)) = message.split_at_checked(HEADER_LEN) else { return Ok(()) };
        let words = Words(header);
        let (Some(code), Some(flags)) = (words.u32(0), words.u32(4)) else { return Ok(()) };
        let Ok(request) = FrontendReq::try_from(code) else { return Ok(()) };
        // A payload of the wrong length is for the framework to refuse.
        let payload = Words(payload);
        let verdict = match request {
            FrontendReq::SET_VRING_NUM => payload.vring_state().map(|it| self.set_size(it)),
            FrontendReq::SET_VRING_ADDR => payload.vring_address().map(|it| self.check_parts(&it)),
            _ => {
                self.take_note(request, payload);
                None
            }
        };
        let Some(Err(why)) = verdict else { return Ok(()) };
        self.log(request, &why);
        let wants_answer = flags & VhostUserHeaderFlag::NEED_REPLY.bits() != 0;
        Err(Refused { answer: (self.answers && wants_answer).then(|| error_answer(code)) })
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
            FrontendReq::SET_MEM_TABLE => {
                let count = payload.u32(0).unwrap_or(0);
                self.regions =
                    (0..count as usize).map_while(|n| payload.region(8 + 32 * n)).collect();
            }
            FrontendReq::ADD_MEM_REG => self.regions.extend(payload.region(8)),
            FrontendReq::REM_MEM_REG => {
                let removed = payload.region(8).map(|region| region.guest_address);
                self.regions.retain(|region| Some(region.guest_address) != removed);
            }
            _ => {}
        }
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
        let parts = if packed {
            [(descriptor_table_len(size), 16), (EVENT_LEN, 4), (EVENT_LEN, 4)]
        } else {
            [
                (descriptor_table_len(size), 16),
                (driver_area_len(size), 2),
                (device_area_len(size), 4),
            ]
        };
        let names = ["descriptor table", "driver area", "device area"];
        for ((name, address), (len, align)) in names.iter().zip([table, driver, device]).zip(parts)
        {
            if !address.is_multiple_of(align) {
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
        format!("there is no queue {index}; expected one below {}", self.rings.len())
    }

    fn log(&mut self, request: FrontendReq, why: &str) {
        if self.logged.is_none_or(|last| last.elapsed() >= LOG_INTERVAL) {
            self.logged = Some(Instant::now());
            log::warn!("{request:?} of the front end was refused: {why}");
        }
    }
}

impl Region {
    fn holds(&self, address: u64, len: u64) -> bool {
        address
            .checked_sub(self.user_address)
            .and_then(|offset| offset.checked_add(len))
            .is_some_and(|end| end <= self.len)
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
        Some(Region { guest_address, len, user_address: self.u64(at + 16)? })
    }
}

/// "Not accepted" (vhost-user, "Communication", `VHOST_USER_PROTOCOL_F_REPLY_ACK`).
fn error_answer(code: u32) -> Vec<u8> {
    let flags = VERSION | VhostUserHeaderFlag::REPLY.bits();
    let header = [code, flags, ANSWER_LEN].map(u32::to_ne_bytes).concat();
    [&header[..], &1_u64.to_ne_bytes()].concat()
}
