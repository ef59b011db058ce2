//! What a driver can do for XDP and AF_XDP, by the kernel's `netdev` family of generic netlink
//! (Linux 6.3; `Documentation/netlink/specs/netdev.yaml`).

use std::io;

use netlink_packet_core::DefaultNla;
use serde::Serialize;

use crate::{attributes, family};

/// `include/uapi/linux/netdev.h`.
const FAMILY: &str = "netdev";
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_A_DEV_XDP_ZC_MAX_SEGS: u16 = 4;
const NETDEV_A_DEV_XDP_RX_METADATA_FEATURES: u16 = 5;
const NETDEV_A_DEV_XSK_FEATURES: u16 = 6;

/// `NETDEV_XDP_ACT_*`: names of the bits, from bit 0 on.
const ACTIONS: [&str; 7] =
    ["basic", "redirect", "ndo-xmit", "xsk-zerocopy", "hw-offload", "rx-sg", "ndo-xmit-sg"];
/// `NETDEV_XDP_RX_METADATA_*`.
const RECEIVE_METADATA: [&str; 3] = ["timestamp", "hash", "vlan-tag"];
/// `NETDEV_XSK_FLAGS_*`.
const TRANSMIT_METADATA: [&str; 3] = ["tx-timestamp", "tx-checksum", "tx-launch-time-fifo"];

/// What the driver reports. Bits that have no name here are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct XdpFeatures {
    /// What native XDP programs may do, by the specification's names (`xdp-act`).
    pub actions: Vec<&'static str>,
    /// Most descriptors of a frame in zero-copy mode. 1: a frame has to fit one.
    pub zero_copy_segments_max: Option<u32>,
    /// What the driver can report of a received frame (`xdp-rx-metadata`).
    pub receive_metadata: Vec<&'static str>,
    /// What a sender may ask for with a frame (`xsk-flags`).
    pub transmit_metadata: Vec<&'static str>,
}

impl XdpFeatures {
    /// Asks the kernel about the interface of this index; nothing where the kernel is too old.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn of(index: u32) -> io::Result<Option<Self>> {
        let interface = DefaultNla::new(NETDEV_A_DEV_IFINDEX, index.to_ne_bytes().into());
        let answer = family::ask(FAMILY, NETDEV_CMD_DEV_GET, vec![interface])?;
        Ok(answer.map(|answer| Self::read(&answer)))
    }

    fn read(answer: &[u8]) -> Self {
        let names =
            |kind, known: &[&'static str]| names(attributes::u64(answer, kind).unwrap_or(0), known);
        Self {
            actions: names(NETDEV_A_DEV_XDP_FEATURES, &ACTIONS),
            zero_copy_segments_max: attributes::u32(answer, NETDEV_A_DEV_XDP_ZC_MAX_SEGS),
            receive_metadata: names(NETDEV_A_DEV_XDP_RX_METADATA_FEATURES, &RECEIVE_METADATA),
            transmit_metadata: names(NETDEV_A_DEV_XSK_FEATURES, &TRANSMIT_METADATA),
        }
    }

    /// Whether the driver runs programs itself and passes frames on to AF_XDP sockets.
    #[must_use]
    pub fn is_native(&self) -> bool {
        self.can("basic") && self.can("redirect")
    }

    /// Whether AF_XDP sockets share the device's own buffers.
    #[must_use]
    pub fn is_zero_copy(&self) -> bool {
        self.can("xsk-zerocopy")
    }

    /// Whether a received frame may lie in several buffers.
    #[must_use]
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
    use crate::attributes::fake::{attribute, number};

    #[test]
    fn bits_become_the_specifications_names() {
        let answer = [
            // With a bit that has no name here.
            attribute(NETDEV_A_DEV_XDP_FEATURES, &0b1010_1011u64.to_ne_bytes()),
            number(NETDEV_A_DEV_XDP_ZC_MAX_SEGS, 17),
            attribute(NETDEV_A_DEV_XDP_RX_METADATA_FEATURES, &0b11u64.to_ne_bytes()),
            attribute(NETDEV_A_DEV_XSK_FEATURES, &0b110u64.to_ne_bytes()),
        ];
        let features = XdpFeatures::read(&answer.concat());
        assert_eq!(features.actions, ["basic", "redirect", "xsk-zerocopy", "rx-sg"]);
        assert_eq!(features.zero_copy_segments_max, Some(17));
        assert_eq!(features.receive_metadata, ["timestamp", "hash"]);
        assert_eq!(features.transmit_metadata, ["tx-checksum", "tx-launch-time-fifo"]);
        assert!(features.is_native() && features.is_zero_copy());
        assert!(features.takes_several_buffers());
    }

    #[test]
    fn what_is_not_reported_is_not_there() {
        assert_eq!(XdpFeatures::read(&[]), XdpFeatures::default());
        let basic = attribute(NETDEV_A_DEV_XDP_FEATURES, &1u64.to_ne_bytes());
        assert!(!XdpFeatures::read(&basic).is_native());
    }
}
