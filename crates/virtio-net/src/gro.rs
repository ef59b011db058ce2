//! GRO (generic receive offload): consecutive frames of one TCP or UDP flow become one packet, as in Linux (`inet_gro_receive`
//! in net/ipv4/af_inet.c, `tcp_gro_receive` in net/ipv4/tcp_offload.c, `udp_gro_receive_segment` in
//! net/ipv4/udp_offload.c).
//!
//! Frames are joined only if segmentation of the packet gives the same frames again. All payloads are as long as the first,
//! except that the last may be shorter; all other header fields are equal. A TCP segment begins where the one before ends,
//! and only the last one may have PSH. Besides PSH only ACK and ECE may be set: segments that open or close a connection,
//! are urgent, or report a reduced congestion window (CWR) stay single frames. So do fragments, packets with IPv4 options
//! or IPv6 extension headers, and UDP datagrams without a checksum, because segmentation gives each one.
//!
//! The receiver of such a packet no longer verifies checksums, so they are verified here: the IPv4 header's before the
//! segment is accepted, that of TCP or UDP by the caller, who reads the payload.
//!
//! The headers are a copy, because a guest may change its own at any time.

use guest_memory::Sum;

use crate::BURST_MAX;
use crate::arrival::FRONT;
use crate::features::Offloads;
use crate::header::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, NetHeader};
use crate::packet::{Packet, Transport, Version};

/// Lengths of IP headers without options or extensions, bytes (RFC 791, RFC 8200).
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
/// Longest IP packet that is built, bytes: the limit of IPv4's length field.
const LEN_MAX: usize = 0xffff;
/// Sum of bytes that include their correct checksum (RFC 1071).
pub const RIGHT: u16 = 0xffff;

/// Offsets of fields in an IPv4 header (RFC 791).
const LENGTH_V4: usize = 2;
const ID: usize = 4;
const FRAGMENT: usize = 6;
const CHECKSUM_V4: usize = 10;
const DONT_FRAGMENT: u8 = 0x40;
/// Offset of the payload length in an IPv6 header (RFC 8200).
const LENGTH_V6: usize = 4;
/// Offsets and flags in a TCP header (RFC 9293, 3.1; RFC 3168, 6.1).
const SEQUENCE: usize = 4;
const FLAGS: usize = 13;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
/// Offset of the length in a UDP header (RFC 768).
const LENGTH_UDP: usize = 4;

/// The link that frames arrive over.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Largest payload of a link frame, bytes. Longer packets were joined by GRO already.
    pub mtu: u16,
    /// Checksums may be partial.
    pub leaves_offloads: bool,
}

/// A frame whose headers allow GRO.
#[derive(Debug)]
pub struct Segment {
    headers: [u8; FRONT],
    packet: Packet,
}

impl Segment {
    /// The segment in a frame of `len` bytes, if its headers allow GRO. `headers`: a copy of its first bytes, `copied` of them.
    /// `mtu`: largest payload of a frame on the link where it comes from or goes to.
    #[inline]
    pub fn find(headers: [u8; FRONT], copied: usize, len: usize, mtu: u16) -> Option<Self> {
        let packet = Packet::find(&headers[..copied])?;
        let Packet { version, transport, network_at, transport_at, payload_at, end } = packet;
        let ip_len = match version {
            Version::V4 => IPV4_LEN,
            Version::V6 => IPV6_LEN,
        };
        let is_fit = transport_at - network_at == ip_len
            && payload_at < end
            // No padding, which would end up in the middle of the stream.
            && end == len
            && end - network_at <= usize::from(mtu)
            && payload_at <= copied;
        if !is_fit {
            return None;
        }
        let is_fit = match transport {
            Transport::Tcp => headers[transport_at + FLAGS] & !(PSH | ECE) == ACK,
            Transport::Udp => {
                usize::from(number(&headers, transport_at + LENGTH_UDP)) == end - transport_at
            }
        };
        let segment = Self { headers, packet };
        (is_fit && segment.has_usual_checksums()).then_some(segment)
    }

    /// Whether the IPv4 header's checksum is right, and those of IPv4 and TCP or UDP are written as segmentation writes them:
    /// of the two zeroes of a ones' complement sum, UDP uses the one (0: no checksum), IPv4 and TCP the other.
    #[inline]
    fn has_usual_checksums(&self) -> bool {
        let Packet { version, transport, network_at, transport_at, .. } = self.packet;
        let unusual = match transport {
            Transport::Tcp => 0xffff,
            Transport::Udp => 0,
        };
        let is_usual_v4 = || {
            number(&self.headers, network_at + CHECKSUM_V4) != 0xffff
                && sum_of(&self.headers[network_at..transport_at]).fold() == RIGHT
        };
        self.checksum() != unusual && (version == Version::V6 || is_usual_v4())
    }

    #[inline]
    fn checksum(&self) -> u16 {
        let Packet { transport, transport_at, .. } = self.packet;
        number(&self.headers, transport_at + usize::from(transport.checksum_offset()))
    }

    /// The sum of the pseudo header.
    #[inline]
    fn pseudo_header(&self) -> Sum {
        let Packet { transport_at, end, .. } = self.packet;
        let mut sum = self.packet.pseudo_header(&self.headers);
        sum.add_u16(narrow(end - transport_at));
        sum
    }

    /// Whether the checksum field of TCP or UDP has the sum of the pseudo header, as a partial checksum does.
    #[inline]
    pub fn has_partial_checksum(&self) -> bool {
        self.checksum() == self.pseudo_header().fold()
    }

    /// Sum of the bytes other than the payload that the checksum of TCP or UDP covers.
    #[inline]
    pub fn sum_before_payload(&self) -> Sum {
        let Packet { transport_at, payload_at, .. } = self.packet;
        let mut sum = self.pseudo_header();
        sum.add_bytes(&self.headers[transport_at..payload_at]);
        sum
    }

    /// Where its headers are.
    #[inline]
    pub const fn packet(&self) -> &Packet {
        &self.packet
    }

    /// Whether a receiver with these offloads takes packets of such segments.
    #[inline]
    pub const fn is_for(&self, offloads: Offloads) -> bool {
        offloads.checksum
            && match (self.packet.transport, self.packet.version) {
                (Transport::Tcp, Version::V4) => offloads.tso4,
                (Transport::Tcp, Version::V6) => offloads.tso6,
                (Transport::Udp, _) => offloads.uso,
            }
    }

    /// Length of the payload, bytes.
    #[inline]
    pub const fn payload(&self) -> usize {
        self.packet.end - self.packet.payload_at
    }

    #[inline]
    fn is_tcp(&self) -> bool {
        self.packet.transport == Transport::Tcp
    }

    #[inline]
    fn pushes(&self) -> bool {
        self.is_tcp() && self.headers[self.packet.transport_at + FLAGS] & PSH != 0
    }

    /// Whether `next` begins `distance` bytes after this segment. UDP does not say.
    #[inline]
    fn is_before(&self, next: &Self, distance: usize) -> bool {
        let sequence = |it: &Self| {
            let at = it.packet.transport_at + SEQUENCE;
            u32::from(number(&it.headers, at)) << 16 | u32::from(number(&it.headers, at + 2))
        };
        !self.is_tcp() || sequence(next) == sequence(self).wrapping_add(distance as u32)
    }

    /// The identification, and whether it may equal the previous segment's because the packet cannot be fragmented
    /// (RFC 6864).
    #[inline]
    fn id(&self) -> (u16, bool) {
        let at = self.packet.network_at;
        match self.packet.version {
            Version::V4 => {
                let is_atomic = self.headers[at + FRAGMENT] & DONT_FRAGMENT != 0;
                (number(&self.headers, at + ID), is_atomic)
            }
            Version::V6 => (0, true),
        }
    }

    /// Whether the headers of `next` equal these, except for fields that differ between segments of a flow.
    fn is_like(&self, next: &Self) -> bool {
        let Packet { version, transport, network_at, transport_at, payload_at, .. } = self.packet;
        if next.packet.payload_at != payload_at {
            return false;
        }
        let mut headers = next.headers;
        let mut put_back = |at: usize, len: usize| {
            headers[at..at + len].copy_from_slice(&self.headers[at..at + len]);
        };
        match version {
            Version::V4 => {
                put_back(network_at + LENGTH_V4, 2);
                put_back(network_at + ID, 2);
                put_back(network_at + CHECKSUM_V4, 2);
            }
            Version::V6 => put_back(network_at + LENGTH_V6, 2),
        }
        put_back(transport_at + usize::from(transport.checksum_offset()), 2);
        match transport {
            Transport::Tcp => {
                put_back(transport_at + SEQUENCE, 4);
                headers[transport_at + FLAGS] &= !PSH;
            }
            Transport::Udp => put_back(transport_at + LENGTH_UDP, 2),
        }
        // A flow's version and transport are in bytes that are compared: EtherType and protocol.
        headers[..payload_at] == self.headers[..payload_at]
    }
}

/// A packet under construction: segments of one flow.
#[derive(Debug)]
pub struct GroPacket {
    first: Segment,
    /// Number of segments.
    count: usize,
    /// Payload bytes of all segments.
    payload: usize,
    /// Step of the identification between segments; known once there are two.
    id_step: Option<u16>,
    /// The last segment is shorter, or has PSH: no other may follow.
    has_end: bool,
    /// The last segment has PSH.
    pushes: bool,
}

impl GroPacket {
    /// Starts with one segment.
    #[inline]
    pub fn begin(first: Segment) -> Self {
        let (payload, pushes) = (first.payload(), first.pushes());
        Self { first, count: 1, payload, id_step: None, has_end: pushes, pushes }
    }

    /// The first segment.
    #[inline]
    pub const fn first(&self) -> &Segment {
        &self.first
    }

    /// Number of segments.
    #[inline]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Length of the packet's headers in bytes.
    #[inline]
    pub const fn headers_len(&self) -> usize {
        self.first.packet.payload_at
    }

    /// Length of the packet in bytes, with its headers.
    #[inline]
    pub const fn len(&self) -> usize {
        self.headers_len() + self.payload
    }

    /// Length of the packet in bytes with `next` appended, if `next` continues it.
    #[inline]
    pub fn len_with(&self, next: &Segment) -> Option<usize> {
        let len = self.len() + next.payload();
        let goes_on = !self.has_end
            && self.count < BURST_MAX
            && next.payload() <= self.first.payload()
            && self.first.is_before(next, self.payload)
            && len - self.first.packet.network_at <= LEN_MAX
            && self.id_step_to(next).is_some()
            && self.first.is_like(next);
        goes_on.then_some(len)
    }

    /// Step of the identification up to `next`, if it is constant.
    fn id_step_to(&self, next: &Segment) -> Option<u16> {
        let ((first, is_atomic), (id, _)) = (self.first.id(), next.id());
        let count = narrow(self.count);
        let is_step = |&step: &u16| id == first.wrapping_add(count.wrapping_mul(step));
        let steps = if is_atomic { &[1, 0][..] } else { &[1] };
        match self.id_step {
            None => steps.iter().copied().find(is_step),
            known => known.filter(is_step),
        }
    }

    /// Appends a segment that [continues](Self::len_with) the packet.
    #[inline]
    pub fn push(&mut self, next: &Segment) {
        self.id_step = self.id_step_to(next);
        self.pushes = next.pushes();
        self.has_end = self.pushes || next.payload() < self.first.payload();
        self.payload += next.payload();
        self.count += 1;
    }

    /// Keeps only the first `count` segments, and not the last one, which may be shorter.
    #[cold]
    pub fn end_before(&mut self, count: usize) {
        self.count = count;
        self.payload = count * self.first.payload();
        self.pushes = false;
    }

    /// The packet's headers, and its net header.
    pub fn headers(&self) -> ([u8; FRONT], NetHeader) {
        let Segment { mut headers, packet } = self.first;
        let Packet { version, transport, network_at, transport_at, payload_at, .. } = packet;
        let end = payload_at + self.payload;
        match version {
            Version::V4 => {
                set(&mut headers, network_at + LENGTH_V4, narrow(end - network_at));
                set(&mut headers, network_at + CHECKSUM_V4, 0);
                let checksum = sum_of(&headers[network_at..transport_at]).complement();
                set(&mut headers, network_at + CHECKSUM_V4, checksum);
            }
            Version::V6 => {
                set(&mut headers, network_at + LENGTH_V6, narrow(end - transport_at));
            }
        }
        let gso_type = match (transport, version) {
            (Transport::Tcp, Version::V4) => GSO_TCPV4,
            (Transport::Tcp, Version::V6) => GSO_TCPV6,
            (Transport::Udp, _) => {
                set(&mut headers, transport_at + LENGTH_UDP, narrow(end - transport_at));
                GSO_UDP_L4
            }
        };
        if self.pushes {
            headers[transport_at + FLAGS] |= PSH;
        }
        let mut pseudo = packet.pseudo_header(&headers);
        pseudo.add_u16(narrow(end - transport_at));
        let csum_offset = transport.checksum_offset();
        set(&mut headers, transport_at + usize::from(csum_offset), pseudo.fold());
        let header = NetHeader {
            flags: NEEDS_CSUM,
            gso_type,
            hdr_len: narrow(payload_at),
            gso_size: narrow(self.first.payload()),
            csum_start: narrow(transport_at),
            csum_offset,
            ..NetHeader::PLAIN
        };
        (headers, header)
    }
}

#[inline]
fn sum_of(bytes: &[u8]) -> Sum {
    let mut sum = Sum::new();
    sum.add_bytes(bytes);
    sum
}

#[inline]
fn number(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[inline]
fn set(bytes: &mut [u8], at: usize, number: u16) {
    bytes[at..at + 2].copy_from_slice(&number.to_be_bytes());
}

/// A length within an IP packet, or a number of segments: both fit 16 bits.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "see above")]
const fn narrow(number: usize) -> u16 {
    number as u16
}
