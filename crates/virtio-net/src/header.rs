//! `virtio_net_hdr`, copied out of guest memory (virtio 1.2, 5.1.6).

use guest_memory::GuestSlice;
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP, VIRTIO_NET_HDR_GSO_UDP_L4,
};

use crate::features::{HEADER_LEN, Offloads};
use crate::run::read_front;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum field holds the pseudo header's sum; the rest has to be added.
pub const NEEDS_CSUM: u8 = byte(VIRTIO_NET_HDR_F_NEEDS_CSUM);
/// `VIRTIO_NET_HDR_F_DATA_VALID`: the sender of the frame says that its checksum is valid.
pub const DATA_VALID: u8 = byte(VIRTIO_NET_HDR_F_DATA_VALID);
/// `VIRTIO_NET_HDR_GSO_NONE`: one frame, not to be segmented.
pub const GSO_NONE: u8 = byte(VIRTIO_NET_HDR_GSO_NONE);
/// `VIRTIO_NET_HDR_GSO_TCPV4`: TCP over IPv4, to be segmented.
pub const GSO_TCPV4: u8 = byte(VIRTIO_NET_HDR_GSO_TCPV4);
/// `VIRTIO_NET_HDR_GSO_UDP`: UDP over IPv4, to be fragmented.
pub const GSO_UDP: u8 = byte(VIRTIO_NET_HDR_GSO_UDP);
/// `VIRTIO_NET_HDR_GSO_TCPV6`: TCP over IPv6, to be segmented.
pub const GSO_TCPV6: u8 = byte(VIRTIO_NET_HDR_GSO_TCPV6);
/// `VIRTIO_NET_HDR_GSO_UDP_L4`: UDP over IPv4 or IPv6, to be segmented.
pub const GSO_UDP_L4: u8 = byte(VIRTIO_NET_HDR_GSO_UDP_L4);
/// `VIRTIO_NET_HDR_GSO_ECN`: a bit set together with a TCP type, if the packet has the congestion flag CWR.
pub const GSO_ECN: u8 = byte(VIRTIO_NET_HDR_GSO_ECN);

#[expect(clippy::cast_possible_truncation, reason = "flags and types have one byte")]
const fn byte(constant: u32) -> u8 {
    assert!(constant <= 0xff, "a constant of one byte");
    constant as u8
}

/// `virtio_net_hdr`: the pending offloads of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetHeader {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    /// One of the `GSO_` types, perhaps with [`GSO_ECN`].
    pub gso_type: u8,
    /// Length of Ethernet, IP and TCP or UDP headers together, in bytes: a hint.
    pub hdr_len: u16,
    /// Payload of each segment but the last, in bytes.
    pub gso_size: u16,
    /// Start of the bytes to be summed, in bytes from the frame's start.
    pub csum_start: u16,
    /// Position of the checksum field, in bytes from `csum_start`.
    pub csum_offset: u16,
    /// Number of receive buffers that the frame fills. Not used in frames from the guest.
    pub num_buffers: u16,
}

impl NetHeader {
    /// The header of a frame in one buffer, without pending offloads.
    pub const PLAIN: Self = Self {
        flags: 0,
        gso_type: GSO_NONE,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
        num_buffers: 1,
    };

    /// Whether the frame has no pending offloads.
    #[inline]
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        self.flags & NEEDS_CSUM == 0 && self.gso_type == GSO_NONE
    }

    /// The header with which a frame goes on to another guest. It may be used only after a
    /// [`SoftwareOffload`](crate::SoftwareOffload) could be planned for the frame. Of the flags only the one that
    /// drivers may set is kept (5.1.6.2.1). Fields without meaning for this frame are as in [`PLAIN`](Self::PLAIN).
    #[inline]
    #[must_use]
    pub const fn passed_on(&self) -> Self {
        let mut header = Self::PLAIN;
        if self.flags & NEEDS_CSUM != 0 {
            header.flags = NEEDS_CSUM;
            (header.csum_start, header.csum_offset) = (self.csum_start, self.csum_offset);
        }
        if self.gso_type != GSO_NONE {
            header.gso_type = self.gso_type;
            (header.hdr_len, header.gso_size) = (self.hdr_len, self.gso_size);
        }
        header
    }

    /// The header in these bytes, little-endian.
    #[inline]
    #[must_use]
    pub const fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        let [flags, gso_type, a, b, c, d, e, f, g, h, i, j] = *bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([a, b]),
            gso_size: u16::from_le_bytes([c, d]),
            csum_start: u16::from_le_bytes([e, f]),
            csum_offset: u16::from_le_bytes([g, h]),
            num_buffers: u16::from_le_bytes([i, j]),
        }
    }

    /// The bytes of the header, little-endian. A legacy header is the first 10 of them.
    #[inline]
    #[must_use]
    pub const fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let [a, b] = self.hdr_len.to_le_bytes();
        let [c, d] = self.gso_size.to_le_bytes();
        let [e, f] = self.csum_start.to_le_bytes();
        let [g, h] = self.csum_offset.to_le_bytes();
        let [i, j] = self.num_buffers.to_le_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h, i, j]
    }

    /// Reads the header from the first `header_len` bytes of a frame's buffers. Each byte is read once.
    #[inline]
    #[must_use]
    pub fn read(slices: &[GuestSlice<'_>], header_len: usize) -> Self {
        if header_len == HEADER_LEN
            && let Some(bytes) = slices.first().and_then(GuestSlice::read_front)
        {
            return Self::from_bytes(&bytes);
        }
        let mut bytes = [0; HEADER_LEN];
        read_front(slices, &mut bytes[..header_len.min(HEADER_LEN)]);
        Self::from_bytes(&bytes)
    }

    /// Whether a guest that negotiated `offloads` takes a frame with this header. If not, the pending offloads have to
    /// be done first ([`SoftwareOffload`](crate::SoftwareOffload)).
    #[inline]
    #[must_use]
    pub const fn is_for(&self, offloads: Offloads) -> bool {
        // A packet to be segmented needs a checksum, too (5.1.6.4.1).
        if self.flags & NEEDS_CSUM == 0 || !offloads.checksum {
            return self.is_plain();
        }
        let is_ecn_for = self.gso_type & GSO_ECN == 0 || offloads.ecn;
        is_ecn_for
            && match self.gso_type & !GSO_ECN {
                GSO_NONE => true,
                GSO_TCPV4 => offloads.tso4,
                GSO_TCPV6 => offloads.tso6,
                GSO_UDP => offloads.ufo,
                GSO_UDP_L4 => offloads.uso,
                _ => false,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_where_the_specification_has_them() {
        let bytes = [1, 0x81, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
        let header = NetHeader::from_bytes(&bytes);
        let expected = NetHeader {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV4 | GSO_ECN,
            hdr_len: 0x0302,
            gso_size: 0x0504,
            csum_start: 0x0706,
            csum_offset: 0x0908,
            num_buffers: 0x0b0a,
        };
        assert_eq!((header, header.to_bytes()), (expected, bytes));
    }

    #[test]
    fn what_is_passed_on_says_no_more_than_has_to_be_said() {
        let all = NetHeader::from_bytes(&[0xff; HEADER_LEN]);
        let plain = NetHeader { flags: !NEEDS_CSUM, gso_type: GSO_NONE, ..all };
        assert_eq!(plain.passed_on(), NetHeader::PLAIN);
        let checksum = NetHeader { gso_type: GSO_NONE, ..all };
        let expected = NetHeader {
            flags: NEEDS_CSUM,
            csum_start: 0xffff,
            csum_offset: 0xffff,
            ..NetHeader::PLAIN
        };
        assert_eq!(checksum.passed_on(), expected);
        assert_eq!(all.passed_on(), NetHeader { flags: NEEDS_CSUM, num_buffers: 1, ..all });
    }

    #[test]
    fn a_guest_is_handed_only_what_it_negotiated() {
        let of = |flags, gso_type| NetHeader { flags, gso_type, ..NetHeader::PLAIN };
        let none = Offloads::default();
        let checksum = Offloads { checksum: true, ..none };
        let tso4 = Offloads { tso4: true, ..checksum };
        assert!(NetHeader::PLAIN.is_for(none));
        assert!(!of(NEEDS_CSUM, 0).is_for(none) && of(NEEDS_CSUM, 0).is_for(checksum));
        assert!(!of(NEEDS_CSUM, GSO_TCPV4).is_for(checksum));
        assert!(of(NEEDS_CSUM, GSO_TCPV4).is_for(tso4) && !of(0, GSO_TCPV4).is_for(tso4));
        assert!(!of(NEEDS_CSUM, GSO_TCPV4 | GSO_ECN).is_for(tso4));
        assert!(!of(NEEDS_CSUM, GSO_TCPV6).is_for(tso4));
        for gso_type in [GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, GSO_TCPV6 | GSO_ECN] {
            assert!(of(NEEDS_CSUM, gso_type).is_for(Offloads::ALL));
        }
        assert!(!of(NEEDS_CSUM, 7).is_for(Offloads::ALL));
    }
}
