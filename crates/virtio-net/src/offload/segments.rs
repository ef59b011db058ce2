//! Software GSO, as Linux does it (`tcp_gso_segment` in net/ipv4/tcp_offload.c, `__udp_gso_segment` in
//! net/ipv4/udp_offload.c, `inet_gso_segment` in net/ipv4/af_inet.c).

use burst_trace::DropCause;
use guest_memory::{GuestSlice, Sum};

use super::never_zero;
use crate::header::{GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, NetHeader};
use crate::packet::{Packet, Transport, Version};
use crate::run::{Copying, Place, read_at, write_at};

/// Most bytes of headers, from Ethernet's to TCP's options. With two VLAN tags and IPv4 they have at most 142 bytes.
/// With IPv6 the rest is for extensions.
const HEADERS_MAX: usize = 256;
/// Longest IPv4 packet and longest IPv6 payload, bytes.
const LEN_MAX: usize = 0xffff;
const IPV6_LEN: usize = 40;

/// Offset of the flags in a TCP header (RFC 9293, 3.1).
const FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// The segments of one frame that are still to be written.
#[derive(Clone, Debug)]
pub struct Segments {
    /// The headers of the next segment; lengths and checksums are set when it is written.
    headers: [u8; HEADERS_MAX],
    packet: Packet,
    /// The sum of the pseudo header without its length.
    pseudo: Sum,
    /// The TCP flags of the frame, without CWR after the first segment.
    flags: u8,
    gso_size: usize,
    /// Bytes of payload that are still to be written.
    left: usize,
    /// Where this payload begins in the frame's buffers.
    at: Place,
}

impl Segments {
    /// Plans the segments of a frame of `len` bytes at byte `skip` of the run `from`. The headers are copied here, and
    /// never read again. The net header's `hdr_len` is not trusted: the headers' length comes from the copy.
    #[inline(never)]
    pub fn plan(
        header: &NetHeader,
        from: &[GuestSlice<'_>],
        skip: usize,
        len: usize,
    ) -> Result<Self, DropCause> {
        let is_known = matches!(header.gso_type & !GSO_ECN, GSO_TCPV4 | GSO_TCPV6)
            || header.gso_type == GSO_UDP_L4;
        if !is_known || header.gso_size == 0 || usize::from(header.hdr_len) > len {
            return Err(DropCause::TxBadNetHeader);
        }
        let mut headers = [0; HEADERS_MAX];
        let copied = read_at(from, skip, &mut headers[..len.min(HEADERS_MAX)]);
        let packet = Packet::find(&headers[..copied]).ok_or(DropCause::TxUnsegmentable)?;
        if packet.payload_at > copied || !fits(header, &packet) {
            return Err(DropCause::TxUnsegmentable);
        }
        let gso_size = usize::from(header.gso_size);
        let left = len - packet.payload_at;
        if length_field(&packet, left.min(gso_size)) > LEN_MAX {
            return Err(DropCause::TxUnsegmentable);
        }
        let flags = match packet.transport {
            Transport::Tcp => headers[packet.transport_at + FLAGS],
            Transport::Udp => 0,
        };
        let pseudo = packet.pseudo_header(&headers);
        let at = Place::of(from, skip).forward(from, packet.payload_at);
        Ok(Self { headers, packet, pseudo, flags, gso_size, left, at })
    }

    /// Number of segments left. A frame without payload is one segment.
    pub const fn count(&self) -> usize {
        let count = self.left.div_ceil(self.gso_size);
        if count == 0 { 1 } else { count }
    }

    /// Length of the next segment with its headers, bytes.
    #[inline]
    pub const fn next_len(&self) -> usize {
        self.packet.payload_at + self.next_payload()
    }

    #[inline]
    const fn next_payload(&self) -> usize {
        if self.left < self.gso_size { self.left } else { self.gso_size }
    }

    /// Writes the next segment at `offset` of the run `to`. The payload comes first, because its sum goes into the
    /// headers.
    #[inline(never)]
    pub fn write_next(&mut self, from: &[GuestSlice<'_>], to: &[GuestSlice<'_>], offset: usize) {
        let payload = self.next_payload();
        let at = Place::of(to, offset + self.packet.payload_at);
        let mut copying = Copying { to, at, from, from_at: self.at };
        let mut sum = Sum::new();
        copying.copy_summing(payload, &mut sum);
        self.at = copying.from_at;
        self.left -= payload;
        self.complete_network(payload);
        self.complete_transport(payload, sum);
        write_at(to, offset, &self.headers[..self.packet.payload_at]);
        self.move_on(1, payload);
    }

    /// Skips the next `count` segments.
    pub fn skip(&mut self, from: &[GuestSlice<'_>], count: usize) {
        if count > 0 {
            let payload = self.left.min(count.saturating_mul(self.gso_size));
            self.at = self.at.forward(from, payload);
            self.left -= payload;
            self.move_on(count, payload);
        }
    }

    /// Sets length and checksum of the IP header.
    #[inline]
    fn complete_network(&mut self, payload: usize) {
        let Packet { version, network_at, transport_at, .. } = self.packet;
        #[expect(clippy::cast_possible_truncation, reason = "at most LEN_MAX: checked in `plan`")]
        let len = length_field(&self.packet, payload) as u16;
        let ip = &mut self.headers[network_at..transport_at];
        match version {
            Version::V4 => {
                set(ip, 2, len);
                set(ip, 10, 0);
                let mut sum = Sum::new();
                sum.add_bytes(ip);
                set(ip, 10, sum.complement());
            }
            Version::V6 => set(ip, 4, len),
        }
    }

    /// Sets flags (TCP) or length (UDP), and the checksum, of the transport header. `payload_sum` is the payload's sum.
    #[inline]
    fn complete_transport(&mut self, payload: usize, payload_sum: Sum) {
        let Packet { transport, transport_at, payload_at, .. } = self.packet;
        #[expect(clippy::cast_possible_truncation, reason = "at most LEN_MAX: checked in `plan`")]
        let len = (payload_at - transport_at + payload) as u16;
        let header = &mut self.headers[transport_at..payload_at];
        let field = usize::from(transport.checksum_offset());
        match transport {
            Transport::Tcp => {
                let ends = if self.left == 0 { 0 } else { FIN | PSH };
                header[FLAGS] = self.flags & !ends;
            }
            Transport::Udp => set(header, 4, len),
        }
        set(header, field, 0);
        let mut sum = self.pseudo;
        sum.add_u16(len);
        sum.add_bytes(header);
        sum.add_sum(payload_sum);
        let checksum = match transport {
            Transport::Tcp => sum.complement(),
            Transport::Udp => never_zero(sum.complement()),
        };
        set(header, field, checksum);
    }

    /// Changes the headers to those of the segment `count` later, with `payload` bytes between.
    #[inline]
    fn move_on(&mut self, count: usize, payload: usize) {
        let Packet { version, transport, network_at, transport_at, .. } = self.packet;
        // Only the first segment reports that the congestion window was reduced (RFC 3168, 6.1.2).
        self.flags &= !CWR;
        #[expect(clippy::cast_possible_truncation, reason = "identification and sequence wrap")]
        let (count, payload) = (count as u16, payload as u32);
        if version == Version::V4 {
            let field = &mut self.headers[network_at + 4..][..2];
            let id = u16::from_be_bytes([field[0], field[1]]);
            field.copy_from_slice(&id.wrapping_add(count).to_be_bytes());
        }
        if transport == Transport::Tcp {
            let field = &mut self.headers[transport_at + 4..][..4];
            let sequence = u32::from_be_bytes([field[0], field[1], field[2], field[3]]);
            field.copy_from_slice(&sequence.wrapping_add(payload).to_be_bytes());
        }
    }
}

/// Whether a packet matches its net header: the protocols, and the position of the checksum. A net header without
/// [`NEEDS_CSUM`] gives no position; Linux takes such packets, too (`virtio_net_hdr_to_skb`).
fn fits(header: &NetHeader, packet: &Packet) -> bool {
    let is_type = match header.gso_type & !GSO_ECN {
        GSO_TCPV4 => (packet.version, packet.transport) == (Version::V4, Transport::Tcp),
        GSO_TCPV6 => (packet.version, packet.transport) == (Version::V6, Transport::Tcp),
        _ => packet.transport == Transport::Udp,
    };
    let is_place = usize::from(header.csum_start) == packet.transport_at
        && header.csum_offset == packet.transport.checksum_offset();
    is_type && (header.flags & NEEDS_CSUM == 0 || is_place)
}

/// Value of the IP header's length field with `payload` bytes of payload: the whole packet for IPv4, the bytes after
/// the fixed header for IPv6.
#[inline]
const fn length_field(packet: &Packet, payload: usize) -> usize {
    let len = packet.payload_at - packet.network_at + payload;
    match packet.version {
        Version::V4 => len,
        Version::V6 => len - IPV6_LEN,
    }
}

#[inline]
fn set(bytes: &mut [u8], at: usize, number: u16) {
    bytes[at..at + 2].copy_from_slice(&number.to_be_bytes());
}
