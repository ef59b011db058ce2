//! What XDP and AF_XDP can do on an interface, by the kernel's `netdev` family of generic netlink
//! (Linux 6.3; `Documentation/netlink/specs/netdev.yaml`).

use std::io;

use serde::Serialize;

use super::attributes::{Attributes, attribute};
use super::netlink;

/// `include/uapi/linux/netdev.h`.
const FAMILY: &str = "netdev";
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_A_DEV_XDP_ZC_MAX_SEGS: u16 = 4;
const NETDEV_A_DEV_XDP_RX_METADATA_FEATURES: u16 = 5;
const NETDEV_A_DEV_XSK_FEATURES: u16 = 6;

/// The names of bits, from bit 0 on: `NETDEV_XDP_ACT_*`.
const ACTIONS: [&str; 7] =
    ["basic", "redirect", "ndo-xmit", "xsk-zerocopy", "hw-offload", "rx-sg", "ndo-xmit-sg"];
/// `NETDEV_XDP_RX_METADATA_*`.
const RECEIVE_METADATA: [&str; 3] = ["timestamp", "hash", "vlan-tag"];
/// `NETDEV_XSK_FLAGS_*`.
const TRANSMIT_METADATA: [&str; 3] = ["tx-timestamp", "tx-checksum", "tx-launch-time-fifo"];

/// What the driver says of itself. Bits that this program does not know are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct XdpFeatures {
    /// What native XDP programs may do, by the specification's names (`xdp-act`).
    pub actions: Vec<&'static str>,
    /// Descriptors a frame may take in zero-copy mode; 1 means that no frame may take several.
    pub zero_copy_segments_max: Option<u32>,
    /// What the driver can tell of a received frame (`xdp-rx-metadata`).
    pub receive_metadata: Vec<&'static str>,
    /// What a sender may ask for with a frame (`xsk-flags`).
    pub transmit_metadata: Vec<&'static str>,
}

impl XdpFeatures {
    /// Asks the kernel; nothing where it is too old to tell.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn of(index: u32) -> io::Result<Option<Self>> {
        let request = attribute(NETDEV_A_DEV_IFINDEX, &index.to_ne_bytes());
        let answer = netlink::ask_family(FAMILY, NETDEV_CMD_DEV_GET, &request)?;
        Ok(answer.map(|answer| Self::read(Attributes(&answer))))
    }

    fn read(told: Attributes<'_>) -> Self {
        let names = |kind, known: &[&'static str]| names(told.u64(kind).unwrap_or(0), known);
        Self {
            actions: names(NETDEV_A_DEV_XDP_FEATURES, &ACTIONS),
            zero_copy_segments_max: told.u32(NETDEV_A_DEV_XDP_ZC_MAX_SEGS),
            receive_metadata: names(NETDEV_A_DEV_XDP_RX_METADATA_FEATURES, &RECEIVE_METADATA),
            transmit_metadata: names(NETDEV_A_DEV_XSK_FEATURES, &TRANSMIT_METADATA),
        }
    }

    /// Whether the driver runs programs itself and passes frames on to AF_XDP sockets.
    pub fn is_native(&self) -> bool {
        self.can("basic") && self.can("redirect")
    }

    /// Whether AF_XDP sockets share the device's own buffers.
    pub fn is_zero_copy(&self) -> bool {
        self.can("xsk-zerocopy")
    }

    /// Whether a received frame may lie in several buffers.
    pub fn takes_several_buffers(&self) -> bool {
        self.can("rx-sg")
    }

    fn can(&self, action: &str) -> bool {
        self.actions.contains(&action)
    }
}

fn names(bits: u64, known: &[&'static str]) -> Vec<&'static str> {
    let is_set = |bit: &usize| bits >> bit & 1 == 1;
    (0..known.len()).filter(is_set).map(|bit| known[bit]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_become_the_specifications_names() {
        let answer = [
            // With a bit that is not known yet.
            attribute(NETDEV_A_DEV_XDP_FEATURES, &0b1010_1011u64.to_ne_bytes()),
            attribute(NETDEV_A_DEV_XDP_ZC_MAX_SEGS, &17u32.to_ne_bytes()),
            attribute(NETDEV_A_DEV_XDP_RX_METADATA_FEATURES, &0b11u64.to_ne_bytes()),
            attribute(NETDEV_A_DEV_XSK_FEATURES, &0b110u64.to_ne_bytes()),
        ];
        let features = XdpFeatures::read(Attributes(&answer.concat()));
        assert_eq!(features.actions, ["basic", "redirect", "xsk-zerocopy", "rx-sg"]);
        assert_eq!(features.zero_copy_segments_max, Some(17));
        assert_eq!(features.receive_metadata, ["timestamp", "hash"]);
        assert_eq!(features.transmit_metadata, ["tx-checksum", "tx-launch-time-fifo"]);
        assert!(features.is_native() && features.is_zero_copy());
        assert!(features.takes_several_buffers());
    }

    #[test]
    fn what_is_not_told_is_not_there() {
        let features = XdpFeatures::read(Attributes(&[]));
        assert_eq!(features, XdpFeatures::default());
        assert!(!features.is_native());
        let basic = attribute(NETDEV_A_DEV_XDP_FEATURES, &1u64.to_ne_bytes());
        assert!(!XdpFeatures::read(Attributes(&basic)).is_native());
    }
}
