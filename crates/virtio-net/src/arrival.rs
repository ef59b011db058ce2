//! The net header of a frame that arrived with pending offloads.
//!
//! A veth delivers frames as its other end sent them: the checksum may be partial, and the packet may not be
//! segmented yet. A network card of virtio or Xen may do the same. An AF_XDP socket reports neither. So the
//! pending offloads are found by looking at the frame:
//!
//! - If the checksum field of TCP or UDP has the sum of the pseudo header, the checksum is partial. A
//!   complete checksum may have this value by chance. Completing it again then gives the same value.
//! - The same holds for a packet in a tunnel: VXLAN, Geneve, GRE, IP in IP, PPPoE. The checksums of the outer
//!   headers are then complete or absent.
//! - If the checksum field of SCTP is zero, its CRC32c is pending. A net header cannot express this, so the
//!   CRC32c is computed here.
//! - If a TCP packet is longer than the link's MTU, it must be segmented. The segments are as long as the MTU
//!   allows, whatever the sender's segment size was. A UDP datagram is never cut, because its boundaries are
//!   part of what was sent.

mod inner;

use guest_memory::GuestSlice;

use crate::header::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, NetHeader};
use crate::packet::{Packet, Transport, Version};
use crate::run::read_at;
use inner::Pending;

/// Number of bytes read from the front of a frame. They include its headers, without TCP's options. These
/// headers are 102 bytes long with two VLAN tags and all options of IPv4, and 82 bytes with IPv6 without
/// extensions.
pub(crate) const FRONT: usize = 128;
/// Offset of the flags in a TCP header, and the flag CWR (congestion window reduced; RFC 9293, 3.1).
const FLAGS: usize = 13;
const CWR: u8 = 0x80;

/// The net header of a frame, with the frame's pending offloads. The frame is the `len` bytes from byte
/// `skip` of the buffers `from`, and arrived over a link with an MTU of `mtu` bytes. If its headers are
/// invalid, the result is a plain header, and the frame is left to the receiver. A pending CRC32c of SCTP is
/// written to the frame.
///
/// If the guest did not negotiate these offloads ([`NetHeader::is_for`]), pass the header to
/// [`SoftwareOffload::plan`](crate::SoftwareOffload::plan), which does the offloads.
#[must_use]
#[inline]
pub fn header_of(from: &[GuestSlice<'_>], skip: usize, len: usize, mtu: u16) -> NetHeader {
    let mut front = [0; FRONT];
    let copied = read_at(from, skip, &mut front[..len.min(FRONT)]);
    match Packet::find(&front[..copied]) {
        Some(packet) if packet.payload_at <= packet.end && packet.end <= len => {
            let header = header_of_packet(&packet, &front, mtu);
            if header.is_plain() && inner::is_tunnel(&packet, &front) {
                header_inside(from, skip, len)
            } else {
                header
            }
        }
        Some(_) => NetHeader::PLAIN,
        None => header_inside(from, skip, len),
    }
}

/// The net header of a frame that is not TCP or UDP directly on IP, or is a tunnel: a packet inside may have
/// offloads pending.
#[cold]
fn header_inside(from: &[GuestSlice<'_>], skip: usize, len: usize) -> NetHeader {
    let mut front = [0; inner::FRONT];
    let copied = read_at(from, skip, &mut front[..len.min(inner::FRONT)]);
    let mut header = NetHeader::PLAIN;
    match inner::pending(&front[..copied], len) {
        Some(Pending::Sum { start, offset }) => {
            (header.flags, header.csum_start) = (NEEDS_CSUM, narrow(start));
            header.csum_offset = offset;
        }
        Some(Pending::Crc { start, end }) => inner::write_crc(from, skip, start, end),
        None => {}
    }
    header
}

#[inline]
fn header_of_packet(packet: &Packet, front: &[u8; FRONT], mtu: u16) -> NetHeader {
    let Packet { transport, network_at, transport_at, payload_at, end, .. } = *packet;
    let field = transport_at + usize::from(transport.checksum_offset());
    let checksum = u16::from_be_bytes([front[field], front[field + 1]]);
    let mut pseudo = packet.pseudo_header(front);
    #[expect(clippy::cast_possible_truncation, reason = "as long as an IP packet at most")]
    pseudo.add_u16((end - transport_at) as u16);
    let mut header = NetHeader::PLAIN;
    if checksum == pseudo.fold() {
        (header.flags, header.csum_start) = (NEEDS_CSUM, narrow(transport_at));
        header.csum_offset = transport.checksum_offset();
    }
    let allowed = usize::from(mtu).saturating_sub(payload_at - network_at);
    if transport == Transport::Tcp && end - network_at > usize::from(mtu) && allowed > 0 {
        header.gso_type = gso_type(packet, front);
        (header.gso_size, header.hdr_len) = (narrow(allowed), narrow(payload_at));
    }
    header
}

/// The GSO type of a TCP packet.
#[inline]
const fn gso_type(packet: &Packet, front: &[u8; FRONT]) -> u8 {
    let gso_type = match packet.version {
        Version::V4 => GSO_TCPV4,
        Version::V6 => GSO_TCPV6,
    };
    let has_cwr = front[packet.transport_at + FLAGS] & CWR != 0;
    gso_type | if has_cwr { GSO_ECN } else { GSO_NONE }
}

/// Narrows an offset in the headers, or a payload length that an MTU allows: both fit 16 bits.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "see above")]
const fn narrow(bytes: usize) -> u16 {
    bytes as u16
}
