//! Channels, ring sizes and offloads, by the kernel's `ethtool` family of generic netlink
//! (`Documentation/networking/ethtool-netlink.rst`).

use std::collections::BTreeMap;
use std::io;

use netlink_packet_core::DefaultNla;
use serde::Serialize;

use crate::{attributes, family};

/// `include/uapi/linux/ethtool_netlink.h`, up to the bit sets.
const FAMILY: &str = "ethtool";
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
const ETHTOOL_MSG_RINGS_GET: u8 = 15;
const ETHTOOL_MSG_CHANNELS_GET: u8 = 17;
const ETHTOOL_MSG_CHANNELS_SET: u8 = 18;
/// The interface: the same attribute in each request.
const ETHTOOL_A_HEADER: u16 = 1;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;

const ETHTOOL_A_CHANNELS_RX_MAX: u16 = 2;
const ETHTOOL_A_CHANNELS_TX_MAX: u16 = 3;
const ETHTOOL_A_CHANNELS_COMBINED_MAX: u16 = 5;
const ETHTOOL_A_CHANNELS_RX_COUNT: u16 = 6;
const ETHTOOL_A_CHANNELS_TX_COUNT: u16 = 7;
const ETHTOOL_A_CHANNELS_COMBINED_COUNT: u16 = 9;

const ETHTOOL_A_RINGS_RX_MAX: u16 = 2;
const ETHTOOL_A_RINGS_TX_MAX: u16 = 5;
const ETHTOOL_A_RINGS_RX: u16 = 6;
const ETHTOOL_A_RINGS_TX: u16 = 9;

const ETHTOOL_A_FEATURES_HW: u16 = 2;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_FEATURES_NOCHANGE: u16 = 5;
const ETHTOOL_A_BITSET_NOMASK: u16 = 1;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BIT_VALUE: u16 = 3;

fn ask(index: u32, command: u8) -> io::Result<Option<Vec<u8>>> {
    family::ask(FAMILY, command, vec![header(index)])
}

fn header(index: u32) -> DefaultNla {
    let index = DefaultNla::new(ETHTOOL_A_HEADER_DEV_INDEX, index.to_ne_bytes().into());
    family::nested(ETHTOOL_A_HEADER, &[index])
}

/// A number and its limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// The present value.
    pub now: u32,
    /// The largest value.
    pub max: u32,
}

impl Amount {
    fn read(answer: &[u8], now: u16, max: u16) -> Option<Self> {
        let amount = Self {
            now: attributes::u32(answer, now)?,
            max: attributes::u32(answer, max).unwrap_or(0),
        };
        (amount != Self::default()).then_some(amount)
    }
}

/// Channels: queues with an interrupt of their own (`ethtool -l`). Kinds that the driver does not have are missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Channels {
    /// For receiving and transmitting.
    pub combined: Option<Amount>,
    /// For receiving alone.
    pub rx: Option<Amount>,
    /// For transmitting alone.
    pub tx: Option<Amount>,
}

impl Channels {
    /// Asks the kernel; nothing where the driver does not report it.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn of(index: u32) -> io::Result<Option<Self>> {
        let answer = ask(index, ETHTOOL_MSG_CHANNELS_GET)?;
        Ok(answer.map(|answer| Self::read(&answer)))
    }

    /// Sets the number of combined channels of the interface of this index.
    ///
    /// # Errors
    /// What the kernel answers: `EOPNOTSUPP` if the driver has none, `EINVAL` if `count` is out of range, others.
    pub fn set_combined(index: u32, count: u32) -> io::Result<()> {
        let count = DefaultNla::new(ETHTOOL_A_CHANNELS_COMBINED_COUNT, count.to_ne_bytes().into());
        family::set(FAMILY, ETHTOOL_MSG_CHANNELS_SET, vec![header(index), count])
    }

    /// Whether the driver of the interface of this index can change them: asks the kernel to set what is set already. Then
    /// it does not call the driver, but refuses if that has no such call (`ethnl_set_channels` of `net/ethtool/channels.c`).
    /// `None` without the right to ask (`CAP_NET_ADMIN`).
    #[must_use]
    pub fn can_be_set(&self, index: u32) -> Option<bool> {
        let counts = [
            (self.combined, ETHTOOL_A_CHANNELS_COMBINED_COUNT),
            (self.rx, ETHTOOL_A_CHANNELS_RX_COUNT),
            (self.tx, ETHTOOL_A_CHANNELS_TX_COUNT),
        ];
        let same = counts.into_iter().filter_map(|(amount, kind)| {
            Some(DefaultNla::new(kind, amount?.now.to_ne_bytes().into()))
        });
        let request = std::iter::once(header(index)).chain(same).collect();
        match family::set(FAMILY, ETHTOOL_MSG_CHANNELS_SET, request) {
            Ok(()) => Some(true),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Some(false),
            Err(_) => None,
        }
    }

    fn read(answer: &[u8]) -> Self {
        let amount = |now, max| Amount::read(answer, now, max);
        Self {
            combined: amount(ETHTOOL_A_CHANNELS_COMBINED_COUNT, ETHTOOL_A_CHANNELS_COMBINED_MAX),
            rx: amount(ETHTOOL_A_CHANNELS_RX_COUNT, ETHTOOL_A_CHANNELS_RX_MAX),
            tx: amount(ETHTOOL_A_CHANNELS_TX_COUNT, ETHTOOL_A_CHANNELS_TX_MAX),
        }
    }
}

/// Ring sizes of the device, in descriptors (`ethtool -g`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rings {
    /// Size of a receive ring.
    pub rx: Option<Amount>,
    /// Size of a transmit ring.
    pub tx: Option<Amount>,
}

impl Rings {
    /// Asks the kernel; nothing where the driver does not report it.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn of(index: u32) -> io::Result<Option<Self>> {
        let answer = ask(index, ETHTOOL_MSG_RINGS_GET)?;
        Ok(answer.map(|answer| Self::read(&answer)))
    }

    fn read(answer: &[u8]) -> Self {
        Self {
            rx: Amount::read(answer, ETHTOOL_A_RINGS_RX, ETHTOOL_A_RINGS_RX_MAX),
            tx: Amount::read(answer, ETHTOOL_A_RINGS_TX, ETHTOOL_A_RINGS_TX_MAX),
        }
    }
}

/// One offload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Offload {
    /// Whether it is on.
    pub on: bool,
    /// Whether it cannot be changed.
    pub fixed: bool,
}

/// The offloads that change what an XDP program and its socket see of a frame, by the kernel's names
/// (`net/ethtool/common.c`).
pub type OffloadSettings = BTreeMap<&'static str, Offload>;

/// The device merges received frames of a flow.
pub const LRO: &str = "rx-lro";
/// The same, in a way that can be undone (hardware GRO).
pub const GRO_HW: &str = "rx-gro-hw";
/// The device removes the VLAN tag of a received frame.
pub const RX_VLAN: &str = "rx-vlan-hw-parse";
/// The device inserts the VLAN tag of a sent frame.
pub const TX_VLAN: &str = "tx-vlan-hw-insert";
/// The device completes the checksums of sent frames, whatever their protocol.
pub const TX_CHECKSUM: &str = "tx-checksum-ip-generic";

const RELEVANT: [&str; 14] = [
    "rx-checksum",
    "rx-gro",
    GRO_HW,
    "rx-hashing",
    LRO,
    "rx-ntuple-filter",
    RX_VLAN,
    TX_CHECKSUM,
    "tx-checksum-ipv4",
    "tx-checksum-ipv6",
    "tx-scatter-gather",
    "tx-tcp-segmentation",
    "tx-udp-segmentation",
    TX_VLAN,
];

/// Asks the kernel for the offloads that matter here; nothing where it does not report them.
///
/// # Errors
/// What the kernel answers.
pub fn offloads(index: u32) -> io::Result<Option<OffloadSettings>> {
    let answer = ask(index, ETHTOOL_MSG_FEATURES_GET)?;
    Ok(answer.map(|answer| read_offloads(&answer)))
}

/// Names of the offloads by which a stack leaves segmentation to a device: those of the kernel's
/// `NETIF_F_GSO_SOFTWARE` and `NETIF_F_GSO_ENCAP_ALL`.
const SEGMENTATION: [&str; 15] = [
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-accecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-udp-segmentation",
    "tx-sctp-segmentation",
    "tx-gso-list",
    "tx-gre-segmentation",
    "tx-gre-csum-segmentation",
    "tx-ipxip4-segmentation",
    "tx-ipxip6-segmentation",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-esp-segmentation",
];

/// The offloads among those for segmentation that are on, and can be switched off.
///
/// # Errors
/// What the kernel answers.
pub fn segmentation(index: u32) -> io::Result<Vec<&'static str>> {
    let Some(answer) = ask(index, ETHTOOL_MSG_FEATURES_GET)? else { return Ok(Vec::new()) };
    let set =
        |kind| attributes::first(&answer, kind).map_or_else(Vec::new, |set| names(set.value()));
    let (active, changeable) = (set(ETHTOOL_A_FEATURES_ACTIVE), set(ETHTOOL_A_FEATURES_HW));
    let has = |names: &[String], name: &str| names.iter().any(|found| found == name);
    let on = SEGMENTATION.into_iter().filter(|name| has(&active, name) && has(&changeable, name));
    Ok(on.collect())
}

/// Switches offloads on or off.
///
/// # Errors
/// What the kernel answers: `ENODEV` if there is no such interface, others.
pub fn switch(index: u32, offloads: &[&str], on: bool) -> io::Result<()> {
    if offloads.is_empty() {
        return Ok(());
    }
    let bit = |name: &&str| {
        let name = DefaultNla::new(ETHTOOL_A_BITSET_BIT_NAME, format!("{name}\0").into_bytes());
        let value = on.then(|| DefaultNla::new(ETHTOOL_A_BITSET_BIT_VALUE, Vec::new()));
        let inner: Vec<_> = [Some(name), value].into_iter().flatten().collect();
        family::nested(ETHTOOL_A_BITSET_BITS_BIT, &inner)
    };
    let bits: Vec<_> = offloads.iter().map(bit).collect();
    let bits = family::nested(ETHTOOL_A_BITSET_BITS, &bits);
    let wanted = family::nested(ETHTOOL_A_FEATURES_WANTED, &[bits]);
    family::set(FAMILY, ETHTOOL_MSG_FEATURES_SET, vec![header(index), wanted])
}

fn read_offloads(answer: &[u8]) -> OffloadSettings {
    let set =
        |kind| attributes::first(answer, kind).map_or_else(Vec::new, |set| names(set.value()));
    let active = set(ETHTOOL_A_FEATURES_ACTIVE);
    let changeable = set(ETHTOOL_A_FEATURES_HW);
    let never_changed = set(ETHTOOL_A_FEATURES_NOCHANGE);
    let offload = |name: &str| {
        let has = |names: &[String]| names.iter().any(|found| found == name);
        Offload { on: has(&active), fixed: !has(&changeable) || has(&never_changed) }
    };
    RELEVANT
        .iter()
        .map(|&name| (name, offload(name)))
        // An offload that is off and stays off is none of this device.
        .filter(|(_, offload)| offload.on || !offload.fixed)
        .collect()
}

/// The names in a bit set. With a mask, the set also lists bits that are off.
fn names(set: &[u8]) -> Vec<String> {
    let is_list = attributes::first(set, ETHTOOL_A_BITSET_NOMASK).is_some();
    let Some(bits) = attributes::first(set, ETHTOOL_A_BITSET_BITS) else { return Vec::new() };
    attributes::all(bits.value())
        .filter(|bit| bit.kind() == ETHTOOL_A_BITSET_BITS_BIT)
        .filter(|bit| {
            is_list || attributes::first(bit.value(), ETHTOOL_A_BITSET_BIT_VALUE).is_some()
        })
        .filter_map(|bit| attributes::text(bit.value(), ETHTOOL_A_BITSET_BIT_NAME))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::fake::{attribute, number};

    #[test]
    fn kinds_of_channels_that_a_driver_does_not_have_are_missing() {
        let answer = [
            number(ETHTOOL_A_CHANNELS_COMBINED_COUNT, 4),
            number(ETHTOOL_A_CHANNELS_COMBINED_MAX, 8),
            number(ETHTOOL_A_CHANNELS_RX_COUNT, 0),
            number(ETHTOOL_A_CHANNELS_RX_MAX, 0),
            number(ETHTOOL_A_CHANNELS_TX_MAX, 2),
        ];
        let channels = Channels::read(&answer.concat());
        assert_eq!(channels.combined, Some(Amount { now: 4, max: 8 }));
        assert_eq!((channels.rx, channels.tx), (None, None));
    }

    #[test]
    fn rings_are_read() {
        let answer = [number(ETHTOOL_A_RINGS_RX, 256), number(ETHTOOL_A_RINGS_RX_MAX, 1024)];
        let rings = Rings::read(&answer.concat());
        assert_eq!(rings, Rings { rx: Some(Amount { now: 256, max: 1024 }), tx: None });
    }

    #[test]
    fn an_offload_is_on_or_off_and_may_be_fixed() {
        let bit = |name: &str, value: &[u8]| {
            let name = attribute(ETHTOOL_A_BITSET_BIT_NAME, format!("{name}\0").as_bytes());
            attribute(ETHTOOL_A_BITSET_BITS_BIT, &[&name, value].concat())
        };
        let set = attribute(ETHTOOL_A_BITSET_BIT_VALUE, &[]);
        let masked = [bit(LRO, &set), bit(GRO_HW, &[]), bit(RX_VLAN, &[]), bit("rx-hashing", &set)];
        let listed = [bit(LRO, &[]), bit(GRO_HW, &[]), bit("highdma", &[])];
        let bits = |bits: [Vec<u8>; 3]| {
            let list = attribute(ETHTOOL_A_BITSET_NOMASK, &[]);
            [list, attribute(ETHTOOL_A_BITSET_BITS, &bits.concat())].concat()
        };
        let answer = [
            attribute(ETHTOOL_A_FEATURES_HW, &attribute(ETHTOOL_A_BITSET_BITS, &masked.concat())),
            attribute(ETHTOOL_A_FEATURES_ACTIVE, &bits(listed)),
        ];
        let expected = OffloadSettings::from([
            (LRO, Offload { on: true, fixed: false }),
            (GRO_HW, Offload { on: true, fixed: true }),
            ("rx-hashing", Offload { on: false, fixed: false }),
        ]);
        assert_eq!(read_offloads(&answer.concat()), expected);
    }
}
