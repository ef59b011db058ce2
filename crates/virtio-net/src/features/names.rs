//! Features by their short names: those of QEMU's properties where it has one, else the specification's in lower case.

use std::fmt;

use virtio_bindings::bindings::virtio_config as config;
use virtio_bindings::bindings::virtio_net as net;
use virtio_bindings::bindings::virtio_ring as ring;

use super::bit;

/// Feature bits of a network device, with their names (virtio 1.2, 5.1.3 and 6). Front ends may ask for more than our
/// devices offer, and messages name those too.
const NAMES: &[(u32, &str)] = &[
    (net::VIRTIO_NET_F_CSUM, "csum"),
    (net::VIRTIO_NET_F_GUEST_CSUM, "guest_csum"),
    (net::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, "ctrl_guest_offloads"),
    (net::VIRTIO_NET_F_MTU, "mtu"),
    (net::VIRTIO_NET_F_MAC, "mac"),
    (net::VIRTIO_NET_F_GSO, "gso"),
    (net::VIRTIO_NET_F_GUEST_TSO4, "guest_tso4"),
    (net::VIRTIO_NET_F_GUEST_TSO6, "guest_tso6"),
    (net::VIRTIO_NET_F_GUEST_ECN, "guest_ecn"),
    (net::VIRTIO_NET_F_GUEST_UFO, "guest_ufo"),
    (net::VIRTIO_NET_F_HOST_TSO4, "host_tso4"),
    (net::VIRTIO_NET_F_HOST_TSO6, "host_tso6"),
    (net::VIRTIO_NET_F_HOST_ECN, "host_ecn"),
    (net::VIRTIO_NET_F_HOST_UFO, "host_ufo"),
    (net::VIRTIO_NET_F_MRG_RXBUF, "mrg_rxbuf"),
    (net::VIRTIO_NET_F_STATUS, "status"),
    (net::VIRTIO_NET_F_CTRL_VQ, "ctrl_vq"),
    (net::VIRTIO_NET_F_CTRL_RX, "ctrl_rx"),
    (net::VIRTIO_NET_F_CTRL_VLAN, "ctrl_vlan"),
    (net::VIRTIO_NET_F_CTRL_RX_EXTRA, "ctrl_rx_extra"),
    (net::VIRTIO_NET_F_GUEST_ANNOUNCE, "guest_announce"),
    (net::VIRTIO_NET_F_MQ, "mq"),
    (net::VIRTIO_NET_F_CTRL_MAC_ADDR, "ctrl_mac_addr"),
    (config::VIRTIO_F_NOTIFY_ON_EMPTY, "notify_on_empty"),
    (config::VIRTIO_F_ANY_LAYOUT, "any_layout"),
    (ring::VIRTIO_RING_F_INDIRECT_DESC, "indirect_desc"),
    (ring::VIRTIO_RING_F_EVENT_IDX, "event_idx"),
    (config::VIRTIO_F_VERSION_1, "version_1"),
    (config::VIRTIO_F_ACCESS_PLATFORM, "access_platform"),
    (config::VIRTIO_F_RING_PACKED, "packed"),
    (config::VIRTIO_F_IN_ORDER, "in_order"),
    (config::VIRTIO_F_ORDER_PLATFORM, "order_platform"),
    (config::VIRTIO_F_SR_IOV, "sr_iov"),
    (config::VIRTIO_F_NOTIFICATION_DATA, "notification_data"),
    (config::VIRTIO_F_NOTIF_CONFIG_DATA, "notif_config_data"),
    (config::VIRTIO_F_RING_RESET, "ring_reset"),
    (net::VIRTIO_NET_F_VQ_NOTF_COAL, "vq_notf_coal"),
    (net::VIRTIO_NET_F_NOTF_COAL, "notf_coal"),
    (net::VIRTIO_NET_F_GUEST_USO4, "guest_uso4"),
    (net::VIRTIO_NET_F_GUEST_USO6, "guest_uso6"),
    (net::VIRTIO_NET_F_HOST_USO, "host_uso"),
    (net::VIRTIO_NET_F_HASH_REPORT, "hash"),
    (net::VIRTIO_NET_F_GUEST_HDRLEN, "guest_hdrlen"),
    (net::VIRTIO_NET_F_RSS, "rss"),
    (net::VIRTIO_NET_F_RSC_EXT, "guest_rsc_ext"),
    (net::VIRTIO_NET_F_STANDBY, "standby"),
    (net::VIRTIO_NET_F_SPEED_DUPLEX, "speed_duplex"),
];

/// The feature with this name.
#[must_use]
pub fn by_name(name: &str) -> Option<u64> {
    NAMES.iter().find(|(_, known)| *known == name).map(|(number, _)| bit(*number))
}

/// The names of a set of features, from the lowest bit to the highest. A bit without a name is `bit_N`.
#[must_use]
pub fn names(features: u64) -> Vec<String> {
    let name = |number: u32| {
        let known = NAMES.iter().find(|(known, _)| *known == number);
        known.map_or_else(|| format!("bit_{number}"), |(_, name)| (*name).to_owned())
    };
    (0..u64::BITS).filter(|&number| features & bit(number) != 0).map(name).collect()
}

/// A set of features, displayed as its [`names`] with spaces between, or as `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names(pub u64);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("none"),
            features => f.write_str(&names(features).join(" ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_that_of_one_bit() {
        for (number, name) in NAMES {
            assert_eq!(by_name(name), Some(bit(*number)), "{name}");
            assert_eq!(names(bit(*number)), [*name]);
        }
        assert_eq!(by_name("bit_41"), None);
        assert_eq!(names(1 << 62 | 1 << 34 | 1 << 50 | 1), ["csum", "packed", "bit_50", "standby"]);
        assert_eq!(Names(0).to_string(), "none");
        assert_eq!(Names(1 | 1 << 40).to_string(), "csum ring_reset");
    }
}
