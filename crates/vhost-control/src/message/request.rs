//! What a message of the front end says. The payload is read once, here; all later steps work with types.
//!
//! A payload may be longer than its request needs: User Mode Linux sends one memory region in a table with room for two
//! (`vhost_user_set_mem_table`, arch/um/drivers/virtio_uml.c). DPDK's vhost and libvhost-user read what they need and
//! ignore the rest. The framework takes exact lengths only, so the surplus is cut off here.

use vhost::vhost_user::message::{
    FrontendReq, VHOST_USER_CONFIG_SIZE, VhostUserConfigFlags, VhostUserHeaderFlag,
    VhostUserProtocolFeatures, VhostUserVirtioFeatures, VhostUserVringAddrFlags,
};
use virtio_net::{MacAddress, Negotiated};

use super::regions::Region;
use super::stream::HEADER_LEN;

/// A message of the front end.
#[derive(Debug)]
pub struct Request {
    /// The number of the request.
    pub code: u32,
    /// Whether the front end asks for an answer (`NEED_REPLY`).
    pub needs_reply: bool,
    /// Its contents.
    pub body: Body,
}

/// The contents of a message, where they are judged.
#[derive(Debug, PartialEq, Eq)]
pub enum Body {
    /// `SET_OWNER`.
    SetOwner,
    /// `GET_FEATURES` or `GET_PROTOCOL_FEATURES`: what the back end offers.
    GetOffer,
    /// `GET_QUEUE_NUM`.
    GetQueueNum,
    /// `SET_FEATURES`.
    SetFeatures {
        /// The virtio features.
        features: Negotiated,
        /// Whether written pages are to be logged (`VHOST_F_LOG_ALL`).
        log_all: bool,
    },
    /// `SET_LOG_BASE`: the dirty log.
    SetLog(LogPart),
    /// `SEND_RARP`: the guest with this address has moved here.
    SendRarp(MacAddress),
    /// `NET_SET_MTU`: the MTU in bytes.
    SetMtu(u64),
    /// `SET_PROTOCOL_FEATURES`.
    SetProtocolFeatures(VhostUserProtocolFeatures),
    /// `SET_VRING_NUM`.
    SetSize {
        /// The ring's index.
        ring: usize,
        /// Number of descriptors.
        size: u32,
    },
    /// `SET_VRING_ADDR`.
    SetAddresses(RingParts),
    /// `SET_VRING_KICK` for this ring.
    SetKick(usize),
    /// `SET_VRING_CALL` for this ring.
    SetCall(usize),
    /// `SET_VRING_ERR` for this ring.
    SetError(usize),
    /// `SET_MEM_TABLE`: these regions replace all others.
    SetMemory(Vec<Region>),
    /// `ADD_MEM_REG`.
    AddRegion(Region),
    /// `REM_MEM_REG`.
    RemoveRegion(Region),
    /// `SET_BACKEND_REQ_FD`: a channel for requests of the back end.
    SetBackendChannel,
    /// `GET_CONFIG`: a part of the configuration space.
    GetConfig(ConfigPart),
    /// `SET_CONFIG`.
    SetConfig,
    /// `SET_DEVICE_STATE_FD`: direction and phase.
    SetDeviceState([u32; 2]),
    /// `CHECK_DEVICE_STATE`.
    CheckDeviceState,
    /// Any other request.
    Other,
}

/// The parts of a ring, by the front end's own addresses (vhost-user, "A vring address description").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingParts {
    /// The ring's index.
    pub ring: usize,
    /// The descriptor table or the descriptor ring.
    pub table: u64,
    /// The available ring or the driver's event suppression.
    pub driver: u64,
    /// The used ring or the device's event suppression.
    pub device: u64,
    /// Where writes to it are to be logged, guest-physical, if they are (`VHOST_VRING_F_LOG`).
    pub log: Option<u64>,
}

/// The place of a dirty log in its file (vhost-user, "Log description").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPart {
    /// Its length, bytes.
    pub len: u64,
    /// Its offset, bytes.
    pub offset: u64,
}

/// A part of the configuration space (vhost-user, "Virtio device config space").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigPart {
    /// Its offset, bytes.
    pub offset: u32,
    /// Its length, bytes.
    pub size: u32,
    /// `VhostUserConfigFlags`.
    pub flags: u32,
}

impl ConfigPart {
    /// Whether the framework answers a question for this part: it ends the connection over any other.
    pub const fn is_valid(self) -> bool {
        let end = self.offset.saturating_add(self.size);
        let flags = VhostUserConfigFlags::all().bits();
        self.size > 0 && end <= VHOST_USER_CONFIG_SIZE && self.flags & !flags == 0
    }
}

impl Request {
    /// Reads a whole message, header and payload. Cuts off what its request does not need.
    ///
    /// # Errors
    /// When the payload is shorter than its request needs: a sentence with both lengths.
    pub fn read(message: &mut Vec<u8>) -> Result<Self, String> {
        let words = Words(message);
        let (code, flags) = (words.u32(0).unwrap_or(0), words.u32(4).unwrap_or(0));
        let needs_reply = flags & VhostUserHeaderFlag::NEED_REPLY.bits() != 0;
        let Ok(request) = FrontendReq::try_from(code) else {
            return Ok(Self { code, needs_reply, body: Body::Other });
        };
        let payload = message.get(HEADER_LEN..).unwrap_or_default();
        let (len, needed) = (payload.len(), payload_len(request, Words(payload)));
        let body = Body::read(request, payload).filter(|_| needed.is_none_or(|it| it <= len));
        let body = body.ok_or_else(|| {
            let needed = needed.unwrap_or_default();
            format!("{request:?} with {len} bytes of payload; expected at least {needed}")
        })?;
        if let Some(needed) = needed.filter(|&it| it < len) {
            #[expect(clippy::cast_possible_truncation, reason = "less than the payload had")]
            message[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&(needed as u32).to_ne_bytes());
            message.truncate(HEADER_LEN + needed);
        }
        Ok(Self { code, needs_reply, body })
    }

    /// The request's name in the specification, for messages.
    pub fn name(&self) -> String {
        FrontendReq::try_from(self.code)
            .map_or_else(|()| format!("request {}", self.code), |request| format!("{request:?}"))
    }

    /// Whether descriptors may come with it.
    pub const fn takes_descriptors(&self) -> bool {
        !matches!(
            self.body,
            Body::SetOwner
                | Body::GetOffer
                | Body::GetQueueNum
                | Body::GetConfig(_)
                | Body::SetConfig
                | Body::SetFeatures { .. }
                | Body::SendRarp(_)
                | Body::SetMtu(_)
                | Body::SetProtocolFeatures(_)
                | Body::SetSize { .. }
                | Body::SetAddresses(_)
                | Body::CheckDeviceState
                | Body::Other
        )
    }

    /// The rings, of `count`, that this request may start.
    pub fn starts(&self, count: usize) -> std::ops::Range<usize> {
        match self.body {
            Body::SetAddresses(RingParts { ring, .. }) | Body::SetKick(ring) => ring..ring + 1,
            Body::SetMemory(_) | Body::AddRegion(_) => 0..count,
            _ => 0..0,
        }
    }
}

/// Number of bytes that `request` needs of its payload (vhost-user, "Message types", and the structures of its payloads).
/// `None` for requests that the framework refuses anyway.
fn payload_len(request: FrontendReq, payload: Words<'_>) -> Option<usize> {
    let count = |at| payload.u32(at).unwrap_or(0) as usize;
    Some(match request {
        FrontendReq::SET_OWNER
        | FrontendReq::RESET_OWNER
        | FrontendReq::RESET_DEVICE
        | FrontendReq::GET_FEATURES
        | FrontendReq::GET_PROTOCOL_FEATURES
        | FrontendReq::GET_QUEUE_NUM
        | FrontendReq::GET_MAX_MEM_SLOTS
        | FrontendReq::SET_BACKEND_REQ_FD
        | FrontendReq::CHECK_DEVICE_STATE => 0,
        FrontendReq::SET_FEATURES
        | FrontendReq::SET_PROTOCOL_FEATURES
        | FrontendReq::NET_SET_MTU
        | FrontendReq::SEND_RARP
        | FrontendReq::SET_VRING_NUM
        | FrontendReq::SET_VRING_BASE
        | FrontendReq::GET_VRING_BASE
        | FrontendReq::SET_VRING_ENABLE
        | FrontendReq::SET_VRING_KICK
        | FrontendReq::SET_VRING_CALL
        | FrontendReq::SET_VRING_ERR
        | FrontendReq::SET_DEVICE_STATE_FD => 8,
        FrontendReq::SET_VRING_ADDR | FrontendReq::ADD_MEM_REG | FrontendReq::REM_MEM_REG => 40,
        FrontendReq::SET_LOG_BASE => 16,
        // Number of regions and padding, then 32 bytes for each region.
        FrontendReq::SET_MEM_TABLE => 8 + 32 * count(0),
        // Offset, size and flags, then as many bytes as the size says.
        FrontendReq::GET_CONFIG | FrontendReq::SET_CONFIG => 12_usize.saturating_add(count(4)),
        _ => return None,
    })
}

impl Body {
    /// `None` for a payload that is too short.
    fn read(request: FrontendReq, payload: &[u8]) -> Option<Self> {
        let words = Words(payload);
        Some(match request {
            FrontendReq::SET_OWNER => Self::SetOwner,
            FrontendReq::GET_FEATURES | FrontendReq::GET_PROTOCOL_FEATURES => Self::GetOffer,
            FrontendReq::GET_QUEUE_NUM => Self::GetQueueNum,
            FrontendReq::SET_FEATURES => {
                let (all, log_all) = (words.u64(0)?, VhostUserVirtioFeatures::LOG_ALL.bits());
                let vhost = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | log_all;
                Self::SetFeatures {
                    features: Negotiated(all & !vhost),
                    log_all: all & log_all != 0,
                }
            }
            FrontendReq::NET_SET_MTU => Self::SetMtu(words.u64(0)?),
            FrontendReq::SET_PROTOCOL_FEATURES => Self::SetProtocolFeatures(
                VhostUserProtocolFeatures::from_bits_truncate(words.u64(0)?),
            ),
            FrontendReq::SET_VRING_NUM => {
                Self::SetSize { ring: words.u32(0)? as usize, size: words.u32(4)? }
            }
            FrontendReq::SET_VRING_ADDR => {
                let is_logged =
                    words.u32(4)? & VhostUserVringAddrFlags::VHOST_VRING_F_LOG.bits() != 0;
                Self::SetAddresses(RingParts {
                    ring: words.u32(0)? as usize,
                    table: words.u64(8)?,
                    device: words.u64(16)?,
                    driver: words.u64(24)?,
                    log: is_logged.then_some(words.u64(32)?),
                })
            }
            FrontendReq::SET_VRING_KICK => Self::SetKick(words.ring()?),
            FrontendReq::SET_VRING_CALL => Self::SetCall(words.ring()?),
            FrontendReq::SET_VRING_ERR => Self::SetError(words.ring()?),
            FrontendReq::SET_MEM_TABLE => {
                let regions = (0..words.u32(0)? as usize).map(|n| words.region(8 + 32 * n));
                Self::SetMemory(regions.collect::<Option<_>>()?)
            }
            FrontendReq::ADD_MEM_REG => Self::AddRegion(words.region(8)?),
            FrontendReq::REM_MEM_REG => Self::RemoveRegion(words.region(8)?),
            FrontendReq::SET_BACKEND_REQ_FD => Self::SetBackendChannel,
            FrontendReq::GET_CONFIG => Self::GetConfig(ConfigPart {
                offset: words.u32(0)?,
                size: words.u32(4)?,
                flags: words.u32(8)?,
            }),
            FrontendReq::SET_CONFIG => Self::SetConfig,
            FrontendReq::SET_DEVICE_STATE_FD => {
                Self::SetDeviceState([words.u32(0)?, words.u32(4)?])
            }
            FrontendReq::CHECK_DEVICE_STATE => Self::CheckDeviceState,
            FrontendReq::SET_LOG_BASE => {
                Self::SetLog(LogPart { len: words.u64(0)?, offset: words.u64(8)? })
            }
            FrontendReq::SEND_RARP => {
                // Its first six bytes.
                Self::SendRarp(MacAddress(*words.u64(0)?.to_ne_bytes().first_chunk()?))
            }
            _ => Self::Other,
        })
    }
}

/// Numbers of a payload, in the byte order of this machine.
#[derive(Clone, Copy)]
struct Words<'m>(&'m [u8]);

impl Words<'_> {
    fn u32(self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.0.get(at..at + 4)?.try_into().ok()?))
    }

    fn u64(self, at: usize) -> Option<u64> {
        Some(u64::from_ne_bytes(self.0.get(at..at + 8)?.try_into().ok()?))
    }

    /// The ring of a message that sets a descriptor: bits 0 to 7. The framework checks the other bits.
    fn ring(self) -> Option<usize> {
        Some((self.u64(0)? & 0xff) as usize)
    }

    fn region(self, at: usize) -> Option<Region> {
        let (guest_address, len) = (self.u64(at)?, self.u64(at + 8)?);
        let (user_address, offset) = (self.u64(at + 16)?, self.u64(at + 24)?);
        Some(Region { guest_address, len, user_address, offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(request: FrontendReq, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap();
        let header = [request as u32, 1, len].map(u32::to_ne_bytes).concat();
        [&header[..], payload].concat()
    }

    fn read(request: FrontendReq, payload: &[u8]) -> Result<Body, String> {
        Request::read(&mut message(request, payload)).map(|request| request.body)
    }

    /// A payload that its request needs all of.
    fn exact(request: FrontendReq) -> Vec<u8> {
        let len = payload_len(request, Words(&[])).unwrap();
        match request {
            FrontendReq::SET_MEM_TABLE => [&[2, 0, 0, 0][..], &vec![0; len - 4 + 2 * 32]].concat(),
            FrontendReq::GET_CONFIG | FrontendReq::SET_CONFIG => {
                [&[0, 0, 0, 0, 6, 0, 0, 0][..], &vec![0; len - 8 + 6]].concat()
            }
            _ => vec![0; len],
        }
    }

    #[test]
    fn what_a_request_does_not_need_is_cut_off_and_less_is_refused() {
        use FrontendReq as R;
        for request in [
            R::SET_OWNER,
            R::RESET_OWNER,
            R::RESET_DEVICE,
            R::GET_FEATURES,
            R::SET_FEATURES,
            R::GET_PROTOCOL_FEATURES,
            R::SET_PROTOCOL_FEATURES,
            R::NET_SET_MTU,
            R::GET_QUEUE_NUM,
            R::GET_MAX_MEM_SLOTS,
            R::SET_BACKEND_REQ_FD,
            R::SET_MEM_TABLE,
            R::ADD_MEM_REG,
            R::REM_MEM_REG,
            R::SET_VRING_NUM,
            R::SET_VRING_ADDR,
            R::SET_VRING_BASE,
            R::GET_VRING_BASE,
            R::SET_VRING_KICK,
            R::SET_VRING_CALL,
            R::SET_VRING_ERR,
            R::SET_VRING_ENABLE,
            R::GET_CONFIG,
            R::SET_CONFIG,
            R::SET_LOG_BASE,
            R::SEND_RARP,
            R::SET_DEVICE_STATE_FD,
            R::CHECK_DEVICE_STATE,
        ] {
            let payload = exact(request);
            let expected = message(request, &payload);
            for surplus in [0, 1, 32] {
                let mut padded = message(request, &[&payload[..], &vec![0xff; surplus]].concat());
                Request::read(&mut padded).unwrap();
                assert_eq!(padded, expected, "{request:?} with {surplus} bytes too many");
            }
            if let Some(less) = payload.len().checked_sub(1) {
                let why = read(request, &payload[..less]).unwrap_err();
                let said = format!("{request:?} with {less} bytes of payload; expected at least ");
                assert_eq!(why, format!("{said}{}", payload.len()));
            }
        }
    }

    #[test]
    fn a_table_has_as_many_regions_as_it_says() {
        let table = |count: u32, bytes: usize| {
            let payload = [&count.to_ne_bytes()[..], &vec![0; 4 + bytes]].concat();
            read(FrontendReq::SET_MEM_TABLE, &payload)
        };
        assert!(matches!(table(2, 64), Ok(Body::SetMemory(regions)) if regions.len() == 2));
        // As User Mode Linux sends it.
        assert!(matches!(table(1, 64), Ok(Body::SetMemory(regions)) if regions.len() == 1));
        assert!(table(2, 63).is_err());
        assert!(table(u32::MAX, 64).is_err());
    }

    #[test]
    fn the_parts_of_a_ring_are_read_in_the_order_of_the_specification() {
        let words = [1_u64, 2, 3, 4, 5].map(u64::to_ne_bytes).concat();
        let parts = RingParts { ring: 1, table: 2, device: 3, driver: 4, log: None };
        assert_eq!(read(FrontendReq::SET_VRING_ADDR, &words), Ok(Body::SetAddresses(parts)));
        let words = [1_u64 | 1 << 32, 2, 3, 4, 5].map(u64::to_ne_bytes).concat();
        let parts = RingParts { log: Some(5), ..parts };
        assert_eq!(read(FrontendReq::SET_VRING_ADDR, &words), Ok(Body::SetAddresses(parts)));
    }

    #[test]
    fn an_unknown_request_keeps_its_number() {
        let mut header = [999_u32, 1 | 1 << 3, 0].map(u32::to_ne_bytes).concat();
        let request = Request::read(&mut header).unwrap();
        assert_eq!((request.name().as_str(), request.needs_reply), ("request 999", true));
        assert_eq!(request.body, Body::Other);
    }
}
