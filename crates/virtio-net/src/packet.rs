//! Finds the headers of a frame: Ethernet, VLAN tags, IPv4 or IPv6, TCP or UDP.
//!
//! They are read from a copy of the frame's first bytes. Whatever the bytes are, nothing outside the copy is read.

use guest_memory::Sum;

/// Length of an Ethernet header without tags, bytes (IEEE 802.3).
const ETHERNET_LEN: usize = 14;
/// Length of a VLAN tag, bytes (IEEE 802.1Q).
const TAG_LEN: usize = 4;
/// Most VLAN tags that are skipped: a provider's and a customer's.
const TAGS_MAX: usize = 2;
const TAGS: [u16; 2] = [0x8100, 0x88a8];
/// The VLAN's identifier in a tag's control information (IEEE 802.1Q, 9.6).
const VLAN_ID: u16 = 0x0fff;
pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const IPV6: u16 = 0x86dd;
/// Length of an IPv4 header without options, bytes (RFC 791).
const IPV4_LEN: usize = 20;
/// Length of an IPv6 header without extensions, bytes (RFC 8200).
const IPV6_LEN: usize = 40;
/// "More fragments" and the fragment offset (RFC 791).
const FRAGMENT_BITS: u16 = 0x3fff;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// IPv4 in IP (RFC 2003), IPv6 in IP (RFC 4213), GRE (RFC 2784), SCTP (RFC 9260).
pub(crate) const IPV4_IN_IP: u8 = 4;
pub(crate) const IPV6_IN_IP: u8 = 41;
pub(crate) const GRE: u8 = 47;
pub(crate) const SCTP: u8 = 132;
/// Length of a TCP header without options, bytes (RFC 9293).
const TCP_LEN: usize = 20;
/// Length of a UDP header, bytes (RFC 768).
const UDP_LEN: usize = 8;

/// The Internet protocol of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// IPv4 (RFC 791).
    V4,
    /// IPv6 (RFC 8200).
    V6,
}

/// The transport protocol of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP (RFC 9293).
    Tcp,
    /// UDP (RFC 768).
    Udp,
}

impl Transport {
    /// Offset of the checksum in the header, bytes (RFC 9293, RFC 768).
    #[inline]
    pub const fn checksum_offset(self) -> u16 {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// The positions of a frame's headers, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Internet protocol.
    pub version: Version,
    /// Transport protocol.
    pub transport: Transport,
    /// Start of the IP header.
    pub network_at: usize,
    /// Start of the TCP or UDP header.
    pub transport_at: usize,
    /// Start of the payload. For TCP: after its options, by the length in the TCP header.
    pub payload_at: usize,
    /// End of the packet, by the IP header's length. Bytes after it are Ethernet padding.
    pub end: usize,
}

impl Packet {
    /// Finds the headers in `front`, the first bytes of a frame. All headers must be in it; only TCP's options may be
    /// missing. `None` if the packet is not TCP or UDP over IP, or is a fragment, or truncated. It is not checked that
    /// `payload_at` and `end` lie in the frame.
    #[inline]
    pub fn find(front: &[u8]) -> Option<Self> {
        let (ethertype, network_at) = after_ethernet(front, 0)?;
        Self::find_after(front, ethertype, network_at)
    }

    /// As [`find`](Self::find), for a packet of this `ethertype` that begins at `network_at`.
    #[inline]
    pub(crate) fn find_after(front: &[u8], ethertype: u16, network_at: usize) -> Option<Self> {
        let (version, protocol, transport_at, end) = network(front, ethertype, network_at)?;
        let (transport, payload_at) = match protocol {
            TCP => {
                let fixed = front.get(transport_at..)?.get(..TCP_LEN)?;
                let header_len = usize::from(fixed[12] >> 4) * 4;
                (header_len >= TCP_LEN).then_some((Transport::Tcp, transport_at + header_len))?
            }
            UDP => {
                front.get(transport_at..)?.get(..UDP_LEN)?;
                (Transport::Udp, transport_at + UDP_LEN)
            }
            _ => return None,
        };
        Some(Self { version, transport, network_at, transport_at, payload_at, end })
    }

    /// The sum of the pseudo header without its length (RFC 9293, 3.1; RFC 8200, 8.1). `front` is the slice in which
    /// the packet was found.
    #[inline]
    pub fn pseudo_header(&self, front: &[u8]) -> Sum {
        let (at, len) = match self.version {
            Version::V4 => (self.network_at + 12, 2 * 4),
            Version::V6 => (self.network_at + 8, 2 * 16),
        };
        let mut sum = Sum::new();
        sum.add_bytes(&front[at..at + len]);
        sum.add_u16(match self.transport {
            Transport::Tcp => TCP.into(),
            Transport::Udp => UDP.into(),
        });
        sum
    }
}

/// A frame's Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// The EtherType after the VLAN tags, or the length of an IEEE 802.3 frame.
    pub ethertype: u16,
    /// The identifier in the innermost VLAN tag.
    pub vlan: Option<u16>,
    /// Start of the payload: VLAN tags are skipped.
    pub payload_at: usize,
}

impl Ethernet {
    /// Longest header, bytes.
    pub const LEN_MAX: usize = ETHERNET_LEN + TAGS_MAX * TAG_LEN;

    /// The header in `front`, the first bytes of a frame; `None` if it is truncated.
    #[inline]
    pub fn find(front: &[u8]) -> Option<Self> {
        let (ethertype, payload_at) = after_ethernet(front, 0)?;
        let is_tagged = payload_at > ETHERNET_LEN;
        // The tag's control information is before the EtherType (IEEE 802.1Q, 9.6).
        let control = is_tagged.then(|| u16_at(front, payload_at - 4)).flatten();
        Some(Self { ethertype, vlan: control.map(|control| control & VLAN_ID), payload_at })
    }
}

/// Version, transport protocol, start of the transport header, and end of the packet.
type Network = (Version, u8, usize, usize);

/// The EtherType of the frame that begins at `at`, and where its payload begins: VLAN tags are skipped.
#[inline]
pub(crate) fn after_ethernet(front: &[u8], at: usize) -> Option<(u16, usize)> {
    let mut payload_at = at + ETHERNET_LEN;
    let mut ethertype = u16_at(front, payload_at - 2)?;
    for _ in 0..TAGS_MAX {
        if TAGS.contains(&ethertype) {
            payload_at += TAG_LEN;
            ethertype = u16_at(front, payload_at - 2)?;
        }
    }
    Some((ethertype, payload_at))
}

/// Reads the IP header at `at`. `None` if there is none, or the packet is a fragment.
#[inline]
pub(crate) fn network(front: &[u8], ethertype: u16, at: usize) -> Option<Network> {
    match ethertype {
        IPV4 => ipv4(front, at),
        IPV6 => ipv6(front, at),
        _ => None,
    }
}

#[inline]
fn ipv4(front: &[u8], at: usize) -> Option<Network> {
    let fixed = front.get(at..)?.get(..IPV4_LEN)?;
    let header_len = usize::from(fixed[0] & 0xf) * 4;
    let is_fragment = u16::from_be_bytes([fixed[6], fixed[7]]) & FRAGMENT_BITS != 0;
    if fixed[0] >> 4 != 4 || header_len < IPV4_LEN || is_fragment {
        return None;
    }
    let len = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    Some((Version::V4, fixed[9], at + header_len, at + len))
}

#[inline]
fn ipv6(front: &[u8], at: usize) -> Option<Network> {
    let fixed = front.get(at..)?.get(..IPV6_LEN)?;
    if fixed[0] >> 4 != 6 {
        return None;
    }
    let transport_at = at + IPV6_LEN;
    let end = transport_at + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    let (protocol, transport_at) = match fixed[6] {
        protocol @ (TCP | UDP) => (protocol, transport_at),
        other => behind_extensions(front, other, transport_at)?,
    };
    Some((Version::V6, protocol, transport_at, end))
}

/// Skips extension headers (RFC 8200, 4). `None` if the packet has one after which the transport header need not
/// follow, or with which the pseudo header has another address than the IP header: fragments, security, routing headers
/// with segments left.
#[cold]
fn behind_extensions(front: &[u8], mut next: u8, mut at: usize) -> Option<(u8, usize)> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    // Each extension header is 8 bytes or more, so the loop ends at the end of `front` at the latest.
    loop {
        let fixed = front.get(at..)?.get(..8)?;
        match next {
            HOP_BY_HOP | DESTINATION => {}
            // No segments left: byte 3 is "Segments Left" (RFC 8200, 4.4).
            ROUTING if fixed[3] == 0 => {}
            TCP | UDP | IPV4_IN_IP | IPV6_IN_IP | GRE | SCTP => return Some((next, at)),
            _ => return None,
        }
        next = fixed[0];
        at += 8 + usize::from(fixed[1]) * 8;
    }
}

#[inline]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}
