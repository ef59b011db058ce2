//! The net header of a frame that arrived from a virtual device with pending offloads.
//!
//! A veth delivers what its other end sent: the checksum may be partial, and the packet may not be segmented yet. It
//! does not report either. The pending offloads are found in the frame itself:
//!
//! - The checksum field of TCP or UDP holds just the sum of the pseudo header: the checksum is partial. If it is
//!   complete and has that value by chance, completing it gives the same value.
//! - The packet is longer than the link's MTU: it has to be segmented. TCP is cut to what the MTU allows, whatever the
//!   sender's segment size was. For UDP this is only the best guess: the sender's datagram size is lost.

use guest_memory::GuestSlice;

use crate::header::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, NetHeader};
use crate::packet::{Packet, Transport, Version};
use crate::run::read_at;

/// Bytes read from the front of a frame: they hold its headers, without TCP's options. Those are 102 bytes with two
/// VLAN tags and all options of IPv4, and 82 with IPv6 without extensions.
pub(crate) const FRONT: usize = 128;
/// Offset of the flags in a TCP header, and the flag CWR (congestion window reduced; RFC 9293, 3.1).
const FLAGS: usize = 13;
const CWR: u8 = 0x80;

/// The net header of a frame with its pending offloads. The frame is the `len` bytes at byte `skip` of the run `from`,
/// and arrived over a link with an MTU of `mtu` bytes. If its headers are invalid, the result is a plain header: the
/// receiver has to deal with such a frame.
///
/// If the guest cannot take the header ([`NetHeader::is_for`]), pass it to
/// [`SoftwareOffload::plan`](crate::SoftwareOffload::plan), which does the offloads.
#[must_use]
#[inline]
pub fn header_of(from: &[GuestSlice<'_>], skip: usize, len: usize, mtu: u16) -> NetHeader {
    let mut front = [0; FRONT];
    let copied = read_at(from, skip, &mut front[..len.min(FRONT)]);
    match Packet::find(&front[..copied]) {
        Some(packet) if packet.payload_at <= packet.end && packet.end <= len => {
            header_of_packet(&packet, &front, mtu)
        }
        _ => NetHeader::PLAIN,
    }
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
    if end - network_at > usize::from(mtu) && allowed > 0 {
        header.gso_type = gso_type(packet, front);
        (header.gso_size, header.hdr_len) = (narrow(allowed), narrow(payload_at));
    }
    header
}

#[inline]
const fn gso_type(packet: &Packet, front: &[u8; FRONT]) -> u8 {
    let gso_type = match (packet.transport, packet.version) {
        (Transport::Udp, _) => return GSO_UDP_L4,
        (Transport::Tcp, Version::V4) => GSO_TCPV4,
        (Transport::Tcp, Version::V6) => GSO_TCPV6,
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
