//! Frames that came from a virtual device, and are not finished: what a net header would say of them.
//!
//! A veth hands on what its other end sent, with the checksum left to whoever puts it on a wire, and with segments that
//! nobody has cut yet; that this is so, it does not say. What is left to do is told by the frame itself:
//!
//! - The checksum field of TCP or UDP holds the sum of the pseudo header, and nothing more: then it is partial. Should
//!   it be complete and the same by chance, completing it makes the very value that is there.
//! - The packet is longer than the link's MTU: then it has to be cut. TCP is cut to what the MTU allows, wherever it was
//!   cut before. For UDP that is the best guess there is: how long the sender wanted its datagrams is lost.

use guest_memory::GuestSlice;

use crate::header::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, NetHeader};
use crate::packet::{Packet, Transport, Version};
use crate::run::read_at;

/// So many bytes of a frame hold its headers up to TCP's options: with two tags and all options of IPv4 102, and without
/// extensions of IPv6 82.
pub(crate) const FRONT: usize = 128;
/// Where the flags are in a TCP header, and the congestion bit among them (RFC 9293, 3.1).
const FLAGS: usize = 13;
const CWR: u8 = 0x80;

/// What is left to do to a frame of `len` bytes that begins at byte `skip` of the run `from` and came over a link with
/// an MTU of `mtu` bytes. It says nothing of a frame whose headers make no sense: that is its receiver's business.
///
/// Is the header not for the guest ([`NetHeader::is_for`]), [`SoftwareOffload::plan`](crate::SoftwareOffload::plan) does with it what is
/// left.
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

/// A place in the headers, or what an MTU leaves: both fit 16 bits.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "see above")]
const fn narrow(bytes: usize) -> u16 {
    bytes as u16
}
