//! What a message of the front end says. The payload is read once, here; all later steps work with types.

use vhost::vhost_user::message::{
    FrontendReq, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use virtio_net::Negotiated;

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
    /// `SET_FEATURES`: the virtio features.
    SetFeatures(Negotiated),
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
    /// Any other request.
    Other,
    /// The payload has the wrong length for its request. The framework ends the connection over it.
    Malformed,
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
}

impl Request {
    /// Reads a whole message, header and payload.
    pub fn read(message: &[u8]) -> Option<Self> {
        let (header, payload) = message.split_at_checked(HEADER_LEN)?;
        let (code, flags) = (Words(header).u32(0)?, Words(header).u32(4)?);
        let needs_reply = flags & VhostUserHeaderFlag::NEED_REPLY.bits() != 0;
        let body =
            FrontendReq::try_from(code).map_or(Some(Body::Other), |it| Body::read(it, payload));
        Some(Self { code, needs_reply, body: body.unwrap_or(Body::Malformed) })
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
            Body::SetFeatures(_)
                | Body::SetProtocolFeatures(_)
                | Body::SetSize { .. }
                | Body::SetAddresses(_)
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

impl Body {
    /// `None` for a payload of the wrong length.
    fn read(request: FrontendReq, payload: &[u8]) -> Option<Self> {
        let words = Words(payload);
        Some(match request {
            FrontendReq::SET_FEATURES => {
                let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
                Self::SetFeatures(Negotiated(words.u64(0)? & !protocol))
            }
            FrontendReq::SET_PROTOCOL_FEATURES => Self::SetProtocolFeatures(
                VhostUserProtocolFeatures::from_bits_truncate(words.u64(0)?),
            ),
            FrontendReq::SET_VRING_NUM => {
                words.has_len(8)?;
                Self::SetSize { ring: words.u32(0)? as usize, size: words.u32(4)? }
            }
            FrontendReq::SET_VRING_ADDR => {
                words.has_len(40)?;
                // Flags are at byte 4, the address of the dirty log at byte 32.
                Self::SetAddresses(RingParts {
                    ring: words.u32(0)? as usize,
                    table: words.u64(8)?,
                    device: words.u64(16)?,
                    driver: words.u64(24)?,
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
            _ => Self::Other,
        })
    }
}

/// Numbers of a payload, in the byte order of this machine.
#[derive(Clone, Copy)]
struct Words<'m>(&'m [u8]);

impl Words<'_> {
    fn has_len(self, len: usize) -> Option<()> {
        (self.0.len() == len).then_some(())
    }

    fn u32(self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.0.get(at..at + 4)?.try_into().ok()?))
    }

    fn u64(self, at: usize) -> Option<u64> {
        Some(u64::from_ne_bytes(self.0.get(at..at + 8)?.try_into().ok()?))
    }

    /// The ring of a message that sets a descriptor: bits 0 to 7. The framework checks the other bits.
    fn ring(self) -> Option<usize> {
        self.has_len(8)?;
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

    fn read(request: FrontendReq, payload: &[u8]) -> Body {
        let header = [request as u32, 1, 0].map(u32::to_ne_bytes).concat();
        Request::read(&[&header[..], payload].concat()).unwrap().body
    }

    #[test]
    fn a_payload_of_the_wrong_length_is_malformed() {
        use FrontendReq::{
            ADD_MEM_REG, SET_MEM_TABLE, SET_VRING_ADDR, SET_VRING_KICK, SET_VRING_NUM,
        };
        for (request, len) in
            [(SET_VRING_NUM, 8), (SET_VRING_ADDR, 40), (SET_VRING_KICK, 8), (ADD_MEM_REG, 40)]
        {
            assert_ne!(read(request, &vec![0; len]), Body::Malformed, "{request:?}");
            assert_eq!(read(request, &vec![0; len - 1]), Body::Malformed, "{request:?}");
        }
        let table = |count: u32, bytes: usize| {
            let payload = [&count.to_ne_bytes()[..], &vec![0; 4 + bytes]].concat();
            read(SET_MEM_TABLE, &payload)
        };
        assert!(matches!(table(2, 64), Body::SetMemory(regions) if regions.len() == 2));
        assert_eq!(table(2, 63), Body::Malformed);
        assert_eq!(table(u32::MAX, 64), Body::Malformed);
    }

    #[test]
    fn the_parts_of_a_ring_are_read_in_the_order_of_the_specification() {
        let words = [1_u64, 2, 3, 4, 5].map(u64::to_ne_bytes).concat();
        let parts = RingParts { ring: 1, table: 2, device: 3, driver: 4 };
        assert_eq!(read(FrontendReq::SET_VRING_ADDR, &words), Body::SetAddresses(parts));
    }

    #[test]
    fn an_unknown_request_keeps_its_number() {
        let header = [999_u32, 1 | 1 << 3, 0].map(u32::to_ne_bytes).concat();
        let request = Request::read(&header).unwrap();
        assert_eq!((request.name().as_str(), request.needs_reply), ("request 999", true));
        assert_eq!(request.body, Body::Other);
    }
}
