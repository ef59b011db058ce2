//! A packet inside another one, whose checksum is pending: VXLAN (RFC 7348), Geneve (RFC 8926), GRE (RFC 2784, RFC 2890),
//! IP in IP (RFC 2003, RFC 4213), PPPoE (RFC 2516). And SCTP (RFC 9260), which has a CRC in place of a sum.
//!
//! Of the checksums of a frame, Linux leaves only the innermost one pending. It computes the outer ones from the value that the
//! innermost one will have (`Documentation/networking/checksum-offloads.rst`, "LCO").

use guest_memory::GuestSlice;

use crate::packet::{
    GRE, IPV4, IPV4_IN_IP, IPV6, IPV6_IN_IP, Packet, SCTP, Transport, after_ethernet, network,
    u16_at,
};
use crate::run::{read_at, write_at};

/// Bytes read from the front of a frame: the headers of IPv6 in VXLAN over IPv6 are 134 bytes, without options.
pub const FRONT: usize = 320;
/// Most packets inside one another.
const DEPTH_MAX: usize = 4;

/// UDP ports of VXLAN (RFC 7348, and Linux before it), and of Geneve.
const VXLAN: [u16; 2] = [4789, 8472];
const GENEVE: u16 = 6081;
/// Length of the headers of VXLAN, and of Geneve without options, bytes.
const TUNNEL_LEN: usize = 8;
/// EtherType of an Ethernet frame in GRE or Geneve.
const ETHERNET: u16 = 0x6558;
/// EtherType of a PPPoE session, length of its header with PPP's protocol number, and these numbers.
const PPPOE: u16 = 0x8864;
const PPPOE_LEN: usize = 8;
const PPP_IPV4: u16 = 0x0021;
const PPP_IPV6: u16 = 0x0057;
/// GRE: length of its header and of each optional field, bytes; bits of the fields; bits that have to be 0.
const GRE_LEN: usize = 4;
const GRE_FIELDS: [u16; 3] = [0x8000, 0x2000, 0x1000];
const GRE_OTHER_BITS: u16 = 0x4fff;
/// Length of the SCTP header, and offset of its checksum, bytes.
const SCTP_LEN: usize = 12;
const SCTP_CHECKSUM: usize = 8;

/// What is left to do. Positions are in bytes from the frame's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// The Internet checksum of the bytes from `start` on, for the field `offset` bytes after it.
    Sum { start: usize, offset: u16 },
    /// The CRC32c of an SCTP packet.
    Crc { start: usize, end: usize },
}

/// A header to be read.
#[derive(Clone, Copy)]
enum Layer {
    Ethernet(usize),
    Network(u16, usize),
}

/// Whether a UDP packet may have another one inside.
#[inline]
pub fn is_tunnel(packet: &Packet, front: &[u8]) -> bool {
    packet.transport == Transport::Udp
        && u16_at(front, packet.transport_at + 2)
            .is_some_and(|port| VXLAN.contains(&port) || port == GENEVE)
}

/// Finds what is pending in a frame of `len` bytes that begins with `front`.
pub fn pending(front: &[u8], len: usize) -> Option<Pending> {
    let mut layer = Layer::Ethernet(0);
    for _ in 0..2 * DEPTH_MAX {
        let (ethertype, at) = match layer {
            Layer::Ethernet(at) => after_ethernet(front, at)?,
            Layer::Network(ethertype, at) => (ethertype, at),
        };
        if ethertype == PPPOE {
            layer = after_pppoe(front, at)?;
            continue;
        }
        let (_, protocol, transport_at, end) = network(front, ethertype, at)?;
        if end > len {
            return None;
        }
        layer = match protocol {
            IPV4_IN_IP => Layer::Network(IPV4, transport_at),
            IPV6_IN_IP => Layer::Network(IPV6, transport_at),
            GRE => after_gre(front, transport_at)?,
            SCTP => return crc(front, transport_at, end),
            _ => {
                let packet = Packet::find_after(front, ethertype, at)?;
                if packet.payload_at > end {
                    return None;
                }
                if let Some(sum) = sum(front, &packet) {
                    return Some(sum);
                }
                after_udp(front, &packet)?
            }
        };
    }
    None
}

/// Whether the checksum field of TCP or UDP holds just the sum of the pseudo header.
fn sum(front: &[u8], packet: &Packet) -> Option<Pending> {
    let (start, offset) = (packet.transport_at, packet.transport.checksum_offset());
    let mut pseudo = packet.pseudo_header(front);
    pseudo.add_u16(u16::try_from(packet.end - start).ok()?);
    let field = u16_at(front, start + usize::from(offset))?;
    (field == pseudo.fold()).then_some(Pending::Sum { start, offset })
}

fn crc(front: &[u8], start: usize, end: usize) -> Option<Pending> {
    let field = front.get(start + SCTP_CHECKSUM..start + SCTP_LEN)?;
    let is_pending = field.iter().all(|&byte| byte == 0) && end >= start + SCTP_LEN;
    is_pending.then_some(Pending::Crc { start, end })
}

fn after_udp(front: &[u8], packet: &Packet) -> Option<Layer> {
    let (port, at) = (u16_at(front, packet.transport_at + 2)?, packet.payload_at);
    if packet.transport != Transport::Udp {
        return None;
    }
    if VXLAN.contains(&port) {
        return Some(Layer::Ethernet(at + TUNNEL_LEN));
    }
    let options = usize::from(front.get(at)? & 0x3f) * 4;
    (port == GENEVE).then(|| after_tunnel(u16_at(front, at + 2)?, at + TUNNEL_LEN + options))?
}

fn after_gre(front: &[u8], at: usize) -> Option<Layer> {
    let bits = u16_at(front, at)?;
    let fields = GRE_FIELDS.iter().filter(|&&field| bits & field != 0).count();
    let payload_at = at + GRE_LEN * (1 + fields);
    (bits & GRE_OTHER_BITS == 0).then(|| after_tunnel(u16_at(front, at + 2)?, payload_at))?
}

fn after_tunnel(ethertype: u16, at: usize) -> Option<Layer> {
    match ethertype {
        ETHERNET => Some(Layer::Ethernet(at)),
        IPV4 | IPV6 => Some(Layer::Network(ethertype, at)),
        _ => None,
    }
}

fn after_pppoe(front: &[u8], at: usize) -> Option<Layer> {
    match u16_at(front, at + PPPOE_LEN - 2)? {
        PPP_IPV4 => Some(Layer::Network(IPV4, at + PPPOE_LEN)),
        PPP_IPV6 => Some(Layer::Network(IPV6, at + PPPOE_LEN)),
        _ => None,
    }
}

/// Writes the CRC32c of the SCTP packet from byte `start` to `end` of a frame, which begins at byte `skip` of the run.
pub fn write_crc(run: &[GuestSlice<'_>], skip: usize, start: usize, end: usize) {
    let (mut crc, mut at, mut bytes) = (0, start, [0; 256]);
    while at < end {
        let wanted = bytes.len().min(end - at);
        let read = read_at(run, skip + at, &mut bytes[..wanted]);
        if read == 0 {
            return;
        }
        crc = crc32c::crc32c_append(crc, &bytes[..read]);
        at += read;
    }
    // RFC 9260, appendix A: the bytes of the result are sent in reverse order.
    write_at(run, skip + start + SCTP_CHECKSUM, &crc.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACS: [u8; 12] = [2; 12];

    fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
        [&MACS[..], &ethertype.to_be_bytes(), payload].concat()
    }

    fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let len = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
        let [a, b] = len;
        let header = [0x45, 0, a, b, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        [&header[..], payload].concat()
    }

    fn ipv6(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let [a, b] = u16::try_from(payload.len()).unwrap().to_be_bytes();
        let header = [0x60, 0, 0, 0, a, b, protocol, 64];
        [&header[..], &[0xfd; 32], payload].concat()
    }

    /// A datagram to `port`, with this checksum.
    fn udp(port: u16, checksum: u16, payload: &[u8]) -> Vec<u8> {
        let len = u16::try_from(8 + payload.len()).unwrap();
        let fields = [999, port, len, checksum].map(u16::to_be_bytes).concat();
        [&fields[..], payload].concat()
    }

    /// IPv4 or IPv6 with a datagram of which only the pseudo header is summed.
    fn pending_udp(is_v6: bool) -> Vec<u8> {
        let wrap = |checksum| {
            let datagram = udp(7, checksum, b"payload");
            if is_v6 { ipv6(17, &datagram) } else { ipv4(17, &datagram) }
        };
        let unsummed = wrap(0);
        let ethertype = if is_v6 { IPV6 } else { IPV4 };
        let mut sum = Packet::find_after(&unsummed, ethertype, 0).unwrap().pseudo_header(&unsummed);
        sum.add_u16(8 + 7);
        wrap(sum.fold())
    }

    #[test]
    fn what_is_pending_inside_is_found_in_every_tunnel() {
        for is_v6 in [false, true] {
            let (inner, ethertype) = (pending_udp(is_v6), if is_v6 { IPV6 } else { IPV4 });
            let frame = ethernet(ethertype, &inner);
            let in_ip = if is_v6 { IPV6_IN_IP } else { IPV4_IN_IP };
            let ppp = if is_v6 { PPP_IPV6 } else { PPP_IPV4 };
            let vxlan = |port| udp(port, 0, &[&[8, 0, 0, 0, 0, 0, 5, 0], &frame[..]].concat());
            let kind = ethertype.to_be_bytes();
            let geneve = [&[1, 0], &kind[..], &[0, 0, 5, 0, 1, 1, 1, 1], &inner[..]].concat();
            let geneve_frame = [&[0, 0, 0x65, 0x58, 0, 0, 5, 0], &frame[..]].concat();
            let gre = [&[0xa0, 0], &kind[..], &[1; 8], &inner[..]].concat();
            let gretap = [&[0, 0, 0x65, 0x58], &frame[..]].concat();
            for packet in [
                ethernet(IPV4, &ipv4(17, &vxlan(4789))),
                ethernet(IPV6, &ipv6(17, &vxlan(8472))),
                ethernet(IPV4, &ipv4(17, &udp(GENEVE, 0, &geneve))),
                ethernet(IPV4, &ipv4(17, &udp(GENEVE, 77, &geneve_frame))),
                ethernet(IPV4, &ipv4(GRE, &gre)),
                ethernet(IPV6, &ipv6(GRE, &gretap)),
                ethernet(IPV4, &ipv4(in_ip, &inner)),
                ethernet(PPPOE, &[&[0x11, 0, 0, 1, 0, 9], &ppp.to_be_bytes()[..], &inner].concat()),
                ethernet(IPV4, &ipv4(IPV4_IN_IP, &ipv4(in_ip, &inner))),
            ] {
                let start = packet.len() - (8 + 7);
                let expected = Some(Pending::Sum { start, offset: 6 });
                assert_eq!(pending(&packet, packet.len()), expected, "{packet:02x?}");
                assert_eq!(pending(&packet, packet.len() - 1), None);
                for short in 0..packet.len() - 7 {
                    let found = pending(&packet[..short], packet.len());
                    assert!(found.is_none() || found == expected);
                }
                let mut done = packet.clone();
                done[start + 6] ^= 1;
                assert_eq!(pending(&done, done.len()), None);
            }
        }
    }

    #[test]
    fn the_crc_of_sctp_is_pending_where_it_is_zero() {
        let mut sctp = [&[7; 8][..], &[0; 4], &[9; 20]].concat();
        let frame = ethernet(IPV4, &ipv4(SCTP, &sctp));
        let expected = Some(Pending::Crc { start: 34, end: frame.len() });
        assert_eq!(pending(&frame, frame.len()), expected);
        sctp[9] = 1;
        let frame = ethernet(IPV6, &ipv6(SCTP, &sctp));
        assert_eq!(pending(&frame, frame.len()), None);
    }
}
