//! GRO (generic receive offload): TCP segments of one flow become one packet, as in Linux (`inet_gro_receive` in
//! net/ipv4/af_inet.c, `tcp_gro_receive` in net/ipv4/tcp_offload.c).
//!
//! Consecutive frames are joined only if segmentation of the packet gives the same frames again. Each segment begins
//! where the one before ends; all are as long as the first, except that the last may be shorter; all other header
//! fields are equal. Only the last segment may have PSH. Besides PSH only ACK and ECE may be set: segments that open or
//! close a connection, are urgent, or report a reduced congestion window (CWR) stay single frames. So do fragments,
//! and packets with IPv4 options or IPv6 extension headers.
//!
//! The guest no longer verifies checksums of such a packet, so they are verified here: the IPv4 header's before the
//! segment is accepted, TCP's while the payload is copied. A virtual device may leave the latter partial (see
//! [`arrival`](crate::arrival)).
//!
//! The frames must be in host memory, where nobody changes them meanwhile.

use arrayvec::ArrayVec;
use guest_memory::{GuestSlice, Sum};

use crate::BURST_MAX;
use crate::arrival::FRONT;
use crate::header::{GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, NetHeader};
use crate::packet::{Packet, Transport, Version};
use crate::run::{Copying, Place, write_at};

/// Lengths of IP headers without options or extensions, bytes (RFC 791, RFC 8200).
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
/// Longest IP packet that is built, bytes: the limit of IPv4's length field.
const LEN_MAX: usize = 0xffff;
/// Sum of bytes that include their correct checksum (RFC 1071).
const RIGHT: u16 = 0xffff;

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
const CHECKSUM: usize = 16;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;

/// The link that frames arrive over.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Largest payload of a link frame, bytes. Longer packets were joined by GRO already.
    pub mtu: u16,
    /// Checksums may be partial.
    pub leaves_offloads: bool,
}

/// Whether a frame may be TCP. A cheap check, because every frame passes it.
#[inline]
pub fn may_be_tcp(frame: &GuestSlice<'_>) -> bool {
    let Some(front) = frame.read_front::<24>() else { return false };
    match [front[12], front[13]] {
        [0x08, 0x00] => front[23] == 6,
        [0x86, 0xdd] => front[20] == 6,
        // Behind a VLAN tag it can be anything.
        [0x81, 0x00] | [0x88, 0xa8] => true,
        _ => false,
    }
}

/// A received segment whose headers allow GRO.
#[derive(Debug)]
pub struct Segment<'f> {
    headers: [u8; FRONT],
    packet: Packet,
    part: Part<'f>,
}

/// The payload of a segment.
#[derive(Clone, Copy, Debug)]
struct Part<'f> {
    bytes: GuestSlice<'f>,
    /// Sum of the other bytes that TCP's checksum covers; `None` if the checksum is partial.
    sum: Option<Sum>,
}

impl<'f> Segment<'f> {
    /// The segment in a frame, if its headers allow GRO.
    #[inline]
    pub fn find(frame: &GuestSlice<'f>, link: Link) -> Option<Self> {
        let mut headers = [0; FRONT];
        let copied = frame.read(0, &mut headers);
        let packet = Packet::find(&headers[..copied])?;
        let Packet { version, network_at, transport_at, payload_at, end, .. } = packet;
        let ip_len = match version {
            Version::V4 => IPV4_LEN,
            Version::V6 => IPV6_LEN,
        };
        let is_fit = packet.transport == Transport::Tcp
            && transport_at - network_at == ip_len
            && payload_at < end
            // No padding, which would end up in the middle of the stream.
            && end == frame.len()
            && end - network_at <= usize::from(link.mtu)
            && headers[transport_at + FLAGS] & !(PSH | ECE) == ACK;
        if !is_fit || payload_at > copied {
            return None;
        }
        if version == Version::V4 && sum_of(&headers[network_at..transport_at]).fold() != RIGHT {
            return None;
        }
        let mut sum = packet.pseudo_header(&headers);
        sum.add_u16(narrow(end - transport_at));
        let is_partial =
            link.leaves_offloads && number(&headers, transport_at + CHECKSUM) == sum.fold();
        sum.add_bytes(&headers[transport_at..payload_at]);
        let sum = (!is_partial).then_some(sum);
        let part = Part { bytes: frame.part(payload_at, end - payload_at), sum };
        Some(Self { headers, packet, part })
    }

    /// Version of the Internet protocol.
    #[inline]
    pub const fn version(&self) -> Version {
        self.packet.version
    }

    #[inline]
    const fn payload(&self) -> usize {
        self.part.bytes.len()
    }

    #[inline]
    fn pushes(&self) -> bool {
        self.headers[self.packet.transport_at + FLAGS] & PSH != 0
    }

    #[inline]
    fn sequence(&self) -> u32 {
        let at = self.packet.transport_at + SEQUENCE;
        u32::from(number(&self.headers, at)) << 16 | u32::from(number(&self.headers, at + 2))
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
        let Packet { version, network_at, transport_at, payload_at, .. } = self.packet;
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
        put_back(transport_at + SEQUENCE, 4);
        put_back(transport_at + CHECKSUM, 2);
        headers[transport_at + FLAGS] &= !PSH;
        headers[..payload_at] == self.headers[..payload_at]
    }
}

/// A packet under construction: segments of one flow.
#[derive(Debug)]
pub struct GroPacket<'f> {
    first: Segment<'f>,
    parts: ArrayVec<Part<'f>, BURST_MAX>,
    /// Payload bytes of all segments.
    payload: usize,
    /// Step of the identification between segments; known once there are two.
    id_step: Option<u16>,
    /// The last segment is shorter, or has PSH: no other may follow.
    has_end: bool,
    /// The last segment has PSH.
    pushes: bool,
}

impl<'f> GroPacket<'f> {
    /// Starts with one segment.
    #[inline]
    pub fn begin(first: Segment<'f>) -> Self {
        let (payload, pushes) = (first.payload(), first.pushes());
        let parts = ArrayVec::from_iter([first.part]);
        Self { first, parts, payload, id_step: None, has_end: pushes, pushes }
    }

    /// Number of segments.
    #[inline]
    pub const fn count(&self) -> usize {
        self.parts.len()
    }

    /// Length of the packet in bytes, with its headers.
    #[inline]
    pub const fn len(&self) -> usize {
        self.first.packet.payload_at + self.payload
    }

    /// Length of the packet in bytes with `next` appended, if `next` continues it.
    #[inline]
    pub fn len_with(&self, next: &Segment<'f>) -> Option<usize> {
        let len = self.len() + next.payload();
        let sequence = self.first.sequence().wrapping_add(self.payload as u32);
        let goes_on = !self.has_end
            && !self.parts.is_full()
            && next.payload() <= self.first.payload()
            && next.sequence() == sequence
            && len - self.first.packet.network_at <= LEN_MAX
            && self.id_step_to(next).is_some()
            && self.first.is_like(next);
        goes_on.then_some(len)
    }

    /// Step of the identification up to `next`, if it is constant.
    fn id_step_to(&self, next: &Segment<'f>) -> Option<u16> {
        let ((first, is_atomic), (id, _)) = (self.first.id(), next.id());
        let count = narrow(self.count());
        let is_step = |&step: &u16| id == first.wrapping_add(count.wrapping_mul(step));
        let steps = if is_atomic { &[1, 0][..] } else { &[1] };
        match self.id_step {
            None => steps.iter().copied().find(is_step),
            known => known.filter(is_step),
        }
    }

    /// Appends a segment that [continues](Self::len_with) the packet.
    #[inline]
    pub fn push(&mut self, next: &Segment<'f>) {
        self.id_step = self.id_step_to(next);
        self.pushes = next.pushes();
        self.has_end = self.pushes || next.payload() < self.first.payload();
        self.payload += next.payload();
        self.parts.push(next.part);
    }

    /// Copies the payloads into the packet, which begins at `offset` of the run `to`. At a segment with a wrong
    /// checksum the packet ends before that segment. Returns whether all checksums were right.
    pub fn copy_payloads(&mut self, to: &[GuestSlice<'_>], offset: usize) -> bool {
        let mut at = Place::of(to, offset + self.first.packet.payload_at);
        for n in 0..self.parts.len() {
            let Part { bytes, sum } = self.parts[n];
            let from = [bytes];
            let mut copying = Copying { to, at, from: &from, from_at: Place::default() };
            if let Some(mut sum) = sum {
                copying.copy_summing(bytes.len(), &mut sum);
                if sum.fold() != RIGHT {
                    self.end_before(n);
                    return false;
                }
            } else {
                copying.copy(bytes.len());
            }
            at = copying.at;
        }
        true
    }

    #[cold]
    fn end_before(&mut self, n: usize) {
        self.parts.truncate(n);
        self.payload = self.parts.iter().map(|part| part.bytes.len()).sum();
        self.pushes = false;
    }

    /// Writes the packet's headers at `offset` of the run `to`. Returns its net header.
    pub fn write_headers(&self, to: &[GuestSlice<'_>], offset: usize) -> NetHeader {
        let Segment { mut headers, packet, .. } = self.first;
        let Packet { version, network_at, transport_at, payload_at, .. } = packet;
        let end = payload_at + self.payload;
        let gso_type = match version {
            Version::V4 => {
                set(&mut headers, network_at + LENGTH_V4, narrow(end - network_at));
                set(&mut headers, network_at + CHECKSUM_V4, 0);
                let checksum = sum_of(&headers[network_at..transport_at]).complement();
                set(&mut headers, network_at + CHECKSUM_V4, checksum);
                GSO_TCPV4
            }
            Version::V6 => {
                set(&mut headers, network_at + LENGTH_V6, narrow(end - transport_at));
                GSO_TCPV6
            }
        };
        if self.pushes {
            headers[transport_at + FLAGS] |= PSH;
        }
        let mut pseudo = packet.pseudo_header(&headers);
        pseudo.add_u16(narrow(end - transport_at));
        set(&mut headers, transport_at + CHECKSUM, pseudo.fold());
        write_at(to, offset, &headers[..payload_at]);
        NetHeader {
            flags: NEEDS_CSUM,
            gso_type,
            hdr_len: narrow(payload_at),
            gso_size: narrow(self.first.payload()),
            csum_start: narrow(transport_at),
            csum_offset: Transport::Tcp.checksum_offset(),
            ..NetHeader::PLAIN
        }
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
