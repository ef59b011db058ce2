//! Feature bits and their negotiated set (virtio 1.2, 5.1.3 and 6).

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_SPEED_DUPLEX, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

mod names;

pub use names::{Names, by_name, names};

/// Length of `virtio_net_hdr` with `num_buffers`, bytes (5.1.6).
pub const HEADER_LEN: usize = 12;
/// Length of `virtio_net_hdr` of a legacy driver without mergeable buffers, bytes (5.1.6.1).
pub const HEADER_LEN_LEGACY: usize = 10;
/// Offset of `flags` in the header, bytes (5.1.6).
pub const FLAGS: usize = 0;
/// Offset of `num_buffers` in the header, bytes (5.1.6).
pub const NUM_BUFFERS: usize = 10;

const fn bit(number: u32) -> u64 {
    1 << number
}

/// Features that work with every datapath: those of rings, and mergeable buffers.
pub const BASE: u64 = VERSION_1 | EVENT_IDX | INDIRECT_DESC | RING_PACKED | IN_ORDER | MRG_RXBUF;
/// The driver follows version 1 of the specification or later.
pub const VERSION_1: u64 = bit(VIRTIO_F_VERSION_1);
/// Each side writes the ring position at which it wants the next notification.
pub const EVENT_IDX: u64 = bit(VIRTIO_RING_F_EVENT_IDX);
/// Tables of indirect descriptors.
pub const INDIRECT_DESC: u64 = bit(VIRTIO_RING_F_INDIRECT_DESC);
/// Packed rings.
pub const RING_PACKED: u64 = bit(VIRTIO_F_RING_PACKED);
/// The device uses buffers in the order in which they became available.
pub const IN_ORDER: u64 = bit(VIRTIO_F_IN_ORDER);
/// Mergeable receive buffers.
pub const MRG_RXBUF: u64 = bit(VIRTIO_NET_F_MRG_RXBUF);
/// Several queue pairs.
pub const MULTI_QUEUE: u64 = bit(VIRTIO_NET_F_MQ);
/// The device gives the driver a MAC address.
pub const MAC: u64 = bit(VIRTIO_NET_F_MAC);
/// The device gives the driver an MTU.
pub const MTU: u64 = bit(VIRTIO_NET_F_MTU);
/// The driver may reset one ring while the others work (2.6.1).
pub const RING_RESET: u64 = bit(VIRTIO_F_RING_RESET);
/// Addresses are those of the platform, which may translate them. QEMU gives the guest of a vhost-user device
/// `iommu_platform=on` only if the back end offers this. Where nothing translates, it leaves the feature out of
/// `SET_FEATURES` (`vhost_dev_set_features`, hw/virtio/vhost.c), and addresses are guest-physical as ever. Where it is in
/// that message, a virtual IOMMU translates: we would take I/O addresses for guest-physical ones, so that is refused.
/// Other front ends are not offered it: Linux's drivers then use the platform's DMA mapping, which User Mode Linux has not.
pub const ACCESS_PLATFORM: u64 = bit(VIRTIO_F_ACCESS_PLATFORM);
/// The configuration space has a status: whether the link is up.
pub const STATUS: u64 = bit(VIRTIO_NET_F_STATUS);
/// The configuration space has the speed of the link.
pub const SPEED_DUPLEX: u64 = bit(VIRTIO_NET_F_SPEED_DUPLEX);
/// The guest sends commands on a control queue.
pub const CTRL_VQ: u64 = bit(VIRTIO_NET_F_CTRL_VQ);
/// The guest sets its MAC address by a command.
pub const CTRL_MAC_ADDR: u64 = bit(VIRTIO_NET_F_CTRL_MAC_ADDR);
/// The guest switches offloads of frames to it off and on by a command.
pub const CTRL_GUEST_OFFLOADS: u64 = bit(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);
/// The guest announces itself when the device asks for it. Ours never asks, but front ends do.
pub const GUEST_ANNOUNCE: u64 = bit(VIRTIO_NET_F_GUEST_ANNOUNCE);
/// Features of the configuration space and of the control queue. A front end that has both itself, as QEMU has, does not
/// take them from a back end.
pub const CONFIG_AND_CONTROL: u64 =
    STATUS | SPEED_DUPLEX | CTRL_VQ | CTRL_MAC_ADDR | CTRL_GUEST_OFFLOADS | GUEST_ANNOUNCE;

/// Features that QEMU is not offered, besides what it has itself: it does not tell a vhost-user back end that the driver has
/// reset a ring (`virtio_net_queue_reset`, hw/net/virtio-net.c, in QEMU 10: the kernel's vhost only). The back end would
/// go on writing into buffers that the guest has taken back.
pub const NOT_FOR_QEMU: u64 = CONFIG_AND_CONTROL | RING_RESET;

/// All features that may be offered.
pub const OFFERED_MAX: u64 = BASE
    | RING_RESET
    | ACCESS_PLATFORM
    | MTU
    | CONFIG_AND_CONTROL
    | MULTI_QUEUE
    | MAC
    | Offloads::ALL.from_guest()
    | Offloads::ALL.to_guest();

/// Features that need one of others (5.1.3.1): the first is not offered without any of the second.
const NEEDS: &[(u64, u64)] = &[
    (Offloads::ALL.from_guest() & !bit(VIRTIO_NET_F_CSUM), bit(VIRTIO_NET_F_CSUM)),
    (Offloads::ALL.to_guest() & !bit(VIRTIO_NET_F_GUEST_CSUM), bit(VIRTIO_NET_F_GUEST_CSUM)),
    (bit(VIRTIO_NET_F_HOST_ECN), bit(VIRTIO_NET_F_HOST_TSO4) | bit(VIRTIO_NET_F_HOST_TSO6)),
    (bit(VIRTIO_NET_F_GUEST_ECN), bit(VIRTIO_NET_F_GUEST_TSO4) | bit(VIRTIO_NET_F_GUEST_TSO6)),
    (CTRL_MAC_ADDR | CTRL_GUEST_OFFLOADS | GUEST_ANNOUNCE, CTRL_VQ),
    // A driver without it sees 32 bits of features (4.1.4.9, 4.2.4).
    (!0 << 32 & !VERSION_1, VERSION_1),
];

/// `offered` without `withheld`, and without what needs one of these: a device must not offer that (2.2.1).
#[must_use]
pub fn without(offered: u64, withheld: u64) -> u64 {
    NEEDS.iter().fold(offered & !withheld, |offered, (features, needed)| {
        if offered & needed == 0 { offered & !features } else { offered }
    })
}

/// The offloads that one end takes in frames: checksums to complete, packets to segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Partial checksums. All others need this one (5.1.3.1).
    pub checksum: bool,
    /// Segmentation of TCP over IPv4.
    pub tso4: bool,
    /// Segmentation of TCP over IPv6.
    pub tso6: bool,
    /// Segmentation of TCP with congestion flags.
    pub ecn: bool,
    /// Fragmentation of UDP.
    pub ufo: bool,
    /// Segmentation of UDP over IPv4 and IPv6.
    pub uso: bool,
}

impl Offloads {
    /// All offloads.
    pub const ALL: Self =
        Self { checksum: true, tso4: true, tso6: true, ecn: true, ufo: true, uso: true };

    /// The offloads that both have.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            checksum: self.checksum && other.checksum,
            tso4: self.tso4 && other.tso4,
            tso6: self.tso6 && other.tso6,
            ecn: self.ecn && other.ecn,
            ufo: self.ufo && other.ufo,
            uso: self.uso && other.uso,
        }
    }

    /// The features that let the guest send frames with these offloads (`CSUM`, `HOST_*`).
    #[must_use]
    pub const fn from_guest(self) -> u64 {
        pick(self.checksum, VIRTIO_NET_F_CSUM)
            | pick(self.tso4, VIRTIO_NET_F_HOST_TSO4)
            | pick(self.tso6, VIRTIO_NET_F_HOST_TSO6)
            | pick(self.ecn, VIRTIO_NET_F_HOST_ECN)
            | pick(self.ufo, VIRTIO_NET_F_HOST_UFO)
            | pick(self.uso, VIRTIO_NET_F_HOST_USO)
    }

    /// The features that let the device send the guest frames with these offloads (`GUEST_*`).
    #[must_use]
    pub const fn to_guest(self) -> u64 {
        pick(self.checksum, VIRTIO_NET_F_GUEST_CSUM)
            | pick(self.tso4, VIRTIO_NET_F_GUEST_TSO4)
            | pick(self.tso6, VIRTIO_NET_F_GUEST_TSO6)
            | pick(self.ecn, VIRTIO_NET_F_GUEST_ECN)
            | pick(self.ufo, VIRTIO_NET_F_GUEST_UFO)
            | pick(self.uso, VIRTIO_NET_F_GUEST_USO4)
            | pick(self.uso, VIRTIO_NET_F_GUEST_USO6)
    }
}

const fn pick(wanted: bool, number: u32) -> u64 {
    if wanted { bit(number) } else { 0 }
}

/// The features that device and driver agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Negotiated(pub u64);

impl Negotiated {
    /// Whether all of `bits` were agreed on.
    #[inline]
    #[must_use]
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// Whether a frame may fill several receive buffers.
    #[inline]
    #[must_use]
    pub const fn mergeable(self) -> bool {
        self.has(bit(VIRTIO_NET_F_MRG_RXBUF))
    }

    /// Length of the net header before each frame, bytes (5.1.6, 5.1.6.1).
    #[inline]
    #[must_use]
    pub const fn header_len(self) -> usize {
        if self.has(bit(VIRTIO_F_VERSION_1)) || self.mergeable() {
            HEADER_LEN
        } else {
            HEADER_LEN_LEGACY
        }
    }

    /// Whether `used_event` controls used buffer notifications, and `avail_event` controls kicks.
    #[must_use]
    pub const fn event_index(self) -> bool {
        self.has(bit(VIRTIO_RING_F_EVENT_IDX))
    }

    /// Whether rings are packed.
    #[must_use]
    pub const fn packed(self) -> bool {
        self.has(bit(VIRTIO_F_RING_PACKED))
    }

    /// Whether chains are given back in the order in which they became available. This allows shortcuts.
    #[must_use]
    pub const fn in_order(self) -> bool {
        self.has(bit(VIRTIO_F_IN_ORDER))
    }

    /// Whether descriptors may point to tables of descriptors.
    #[must_use]
    pub const fn indirect(self) -> bool {
        self.has(bit(VIRTIO_RING_F_INDIRECT_DESC))
    }

    /// The offloads that the guest takes.
    #[must_use]
    pub const fn guest_offloads(self) -> Offloads {
        Offloads {
            checksum: self.has(bit(VIRTIO_NET_F_GUEST_CSUM)),
            tso4: self.has(bit(VIRTIO_NET_F_GUEST_TSO4)),
            tso6: self.has(bit(VIRTIO_NET_F_GUEST_TSO6)),
            ecn: self.has(bit(VIRTIO_NET_F_GUEST_ECN)),
            ufo: self.has(bit(VIRTIO_NET_F_GUEST_UFO)),
            uso: self.has(bit(VIRTIO_NET_F_GUEST_USO4) | bit(VIRTIO_NET_F_GUEST_USO6)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_its_length_by_version_and_mergeable_buffers() {
        let (version_1, mergeable) = (bit(VIRTIO_F_VERSION_1), bit(VIRTIO_NET_F_MRG_RXBUF));
        assert_eq!(Negotiated(0).header_len(), 10);
        assert_eq!(Negotiated(mergeable).header_len(), 12);
        assert_eq!(Negotiated(version_1).header_len(), 12);
        assert_eq!(Negotiated(version_1 | mergeable).header_len(), 12);
    }

    #[test]
    fn what_needs_a_withheld_feature_is_not_offered_either() {
        let left = |withheld: &str| {
            let withheld = withheld.split(' ').map(|name| by_name(name).unwrap()).sum();
            Names(OFFERED_MAX & !without(OFFERED_MAX, withheld)).to_string()
        };
        assert_eq!(left("packed event_idx"), "event_idx packed");
        assert_eq!(left("host_tso4"), "host_tso4");
        assert_eq!(left("host_tso4 host_tso6"), "host_tso4 host_tso6 host_ecn");
        assert_eq!(left("guest_tso6 guest_tso4"), "guest_tso4 guest_tso6 guest_ecn");
        let offloads = "csum host_tso4 host_tso6 host_ecn host_ufo host_uso";
        assert_eq!(left("csum"), offloads);
        assert!(left("guest_csum").ends_with("guest_ufo guest_uso4 guest_uso6"));
        assert_eq!(without(OFFERED_MAX, VERSION_1), OFFERED_MAX & u64::from(u32::MAX));
        assert_eq!(without(OFFERED_MAX, 0), OFFERED_MAX);
    }

    #[test]
    fn offloads_come_back_from_their_features() {
        let some = Offloads { checksum: true, tso4: true, uso: true, ..Offloads::default() };
        for offloads in [Offloads::default(), some, Offloads::ALL] {
            assert_eq!(Negotiated(offloads.to_guest()).guest_offloads(), offloads);
            assert_eq!(offloads.to_guest() & offloads.from_guest(), 0);
        }
    }
}
