//! The facts of an interface that matter to AF_XDP.

use std::io;

use serde::Serialize;

use super::files::Files;
use super::host::Memlock;
use host_links::ethtool::{self, Channels, Offload, OffloadSettings, Rings, TX_CHECKSUM, TX_VLAN};
use host_links::holder::{Holder, holders};
use host_links::link::{Attached, BusDevice, Link, carries_ethernet};
use host_links::xdp::XdpFeatures;

/// Room before a frame in its buffer: `XDP_PACKET_HEADROOM` of `include/uapi/linux/bpf.h`.
const HEADROOM_BYTES: usize = 256;
/// Room after it: `struct skb_shared_info`, aligned, on a 64-bit kernel.
const SHARED_INFO_BYTES: usize = 320;
/// `ETH_HLEN`.
const ETHERNET_HEADER_BYTES: usize = 14;
/// Largest chunk of a UMEM that every driver takes.
const CHUNK_BYTES_MAX: usize = 4096;

/// An interface, the abilities of its driver, and its settings. A fact that the kernel does not report is `None`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// The driver's name; without a device, the interface's kind.
    pub driver: Option<String>,
    /// Its device.
    pub device: Option<BusDevice>,
    /// It has no device. Its frames come from this host's own stack: with partial checksums, and several in one.
    #[serde(rename = "virtual")]
    pub is_virtual: bool,
    /// Its frames are not those of Ethernet, as on a tun.
    pub lacks_ethernet: bool,
    /// It is set up.
    #[serde(rename = "up")]
    pub is_up: bool,
    /// It has a carrier.
    #[serde(rename = "carrier")]
    pub has_carrier: bool,
    /// Speed in Mbit/s.
    pub speed_mbit: Option<u32>,
    /// MTU, bytes.
    pub mtu: u32,
    /// The smallest MTU that can be set.
    pub mtu_min: Option<u32>,
    /// The largest MTU that can be set.
    pub mtu_max: Option<u32>,
    /// About the largest MTU at which each frame fits one buffer.
    pub mtu_max_single_buffer: u32,
    /// The bridge or bond that it belongs to.
    pub master: Option<String>,
    /// The interfaces below it, if it is a bond.
    pub bond_members: Option<Vec<String>>,
    /// The other end of a veth, if that is in the same namespace.
    pub peer: Option<String>,
    /// Whether the peer sends VLAN tags beside its frames.
    pub peer_offloads_vlan: Option<bool>,
    /// Whether the peer's host leaves checksums for a device to complete.
    pub peer_defers_checksums: Option<bool>,
    /// Receive queues in use.
    pub rx_queues: Option<usize>,
    /// Transmit queues in use.
    pub tx_queues: Option<usize>,
    /// Their channels.
    pub channels: Option<Channels>,
    /// Whether the driver can change them; not known without the right to ask.
    pub channels_can_be_set: Option<bool>,
    /// Ring sizes, in descriptors.
    pub rings: Option<Rings>,
    /// The offloads that matter to XDP.
    pub offloads: Option<OffloadSettings>,
    /// What the driver can do for XDP.
    pub xdp_features: Option<XdpFeatures>,
    /// The XDP program that is attached.
    pub xdp_program: Option<Attached>,
    /// The processes that hold that program.
    pub xdp_program_holders: Vec<Holder>,
    /// Its polling settings.
    pub napi: Napi,
    /// How much memory this process may lock; a UMEM is locked.
    pub memlock: Memlock,
}

/// Settings for the polling of a device's queues (`Documentation/networking/napi.rst`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Napi {
    /// Time without a poll after which the interrupt is enabled again, nanoseconds.
    pub gro_flush_timeout: Option<u64>,
    /// Number of empty polls before the interrupt is enabled again.
    pub napi_defer_hard_irqs: Option<u32>,
    /// 1: a thread polls, not the soft interrupt.
    pub threaded: Option<u32>,
}

impl Interface {
    /// Asks the kernel for all facts; `None` when there is no interface of this name.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn named(name: &str) -> io::Result<Option<Self>> {
        let Some(link) = Link::named(name)? else { return Ok(None) };
        let index = link.index;
        let mut interface = Self::from_files(&Files::of_this_host(), link.clone());
        interface.master = name_of(link.master)?;
        interface.peer = name_of(link.peer)?;
        if let Some(peer) = link.peer {
            let offloads = ethtool::offloads(peer)?;
            let is_on = |name| offloads.as_ref().map(|all| all.get(name).is_some_and(|it| it.on));
            interface.peer_offloads_vlan = is_on(TX_VLAN);
            interface.peer_defers_checksums = is_on(TX_CHECKSUM);
        }
        interface.channels = Channels::of(index)?;
        interface.channels_can_be_set =
            interface.channels.and_then(|channels| channels.can_be_set(index));
        interface.rings = Rings::of(index)?;
        interface.offloads = ethtool::offloads(index)?;
        interface.xdp_features = XdpFeatures::of(index)?;
        let program = link.xdp.and_then(|attached| attached.id);
        interface.xdp_program_holders = program.map(holders).unwrap_or_default();
        interface.memlock = Memlock::of_this_process();
        interface.mtu_max_single_buffer = mtu_max_single_buffer(rustix::param::page_size());
        Ok(Some(interface))
    }

    fn from_files(files: &Files, link: Link) -> Self {
        let mut directory = format!("/sys/class/net/{}", link.name);
        // /sys may be another network namespace's, with another interface of this name.
        if files.parse(&format!("{directory}/ifindex")) != Some(link.index) {
            directory = "/nowhere".into();
        }
        let device = match &link.device {
            Some(BusDevice { bus, name }) => format!("/sys/bus/{bus}/devices/{name}"),
            None => format!("{directory}/device"),
        };
        let count = |prefix| Some(files.names(&format!("{directory}/queues"), prefix)?.len());
        Self {
            driver: files.link_name(&format!("{device}/driver")).or(link.kind),
            is_virtual: link.device.is_none() && !files.exists(&device),
            lacks_ethernet: files
                .parse(&format!("{directory}/type"))
                .is_some_and(|kind| !carries_ethernet(kind)),
            device: link.device,
            name: link.name,
            index: link.index,
            is_up: link.is_up,
            has_carrier: link.has_carrier,
            // Not a number, or -1, without a carrier.
            speed_mbit: files.parse(&format!("{directory}/speed")),
            mtu: link.mtu,
            mtu_min: link.mtu_min,
            mtu_max: link.mtu_max,
            xdp_program: link.xdp,
            bond_members: files
                .text(&format!("{directory}/bonding/slaves"))
                .map(|names| names.split_whitespace().map(str::to_owned).collect()),
            rx_queues: count("rx-"),
            tx_queues: count("tx-"),
            napi: Napi {
                gro_flush_timeout: files.parse(&format!("{directory}/gro_flush_timeout")),
                napi_defer_hard_irqs: files.parse(&format!("{directory}/napi_defer_hard_irqs")),
                threaded: files.parse(&format!("{directory}/threaded")),
            },
            ..Self::default()
        }
    }

    /// Whether the driver runs XDP programs and passes frames to AF_XDP sockets.
    pub fn is_native(&self) -> Option<bool> {
        self.xdp_features.as_ref().map(XdpFeatures::is_native)
    }

    /// Whether the driver reports this of a received frame (`xdp-rx-metadata`).
    pub fn reports(&self, what: &str) -> bool {
        self.xdp_features.as_ref().is_some_and(|features| features.receive_metadata.contains(&what))
    }

    /// The setting of an offload; `None` where the device does not have it.
    pub fn offload(&self, name: &str) -> Option<Offload> {
        self.offloads.as_ref()?.get(name).copied()
    }

    /// Whether frames may lie in several buffers. The network stack's own (generic) mode takes such frames from every
    /// driver.
    pub fn takes_several_buffers(&self) -> bool {
        self.xdp_features
            .as_ref()
            .is_some_and(|features| !features.is_native() || features.takes_several_buffers())
    }
}

fn name_of(index: Option<u32>) -> io::Result<Option<String>> {
    let Some(index) = index else { return Ok(None) };
    Ok(Link::numbered(index)?.map(|link| link.name))
}

/// The limit of drivers that give each frame a page, as veth does (`veth_xdp_set` of `drivers/net/veth.c`).
fn mtu_max_single_buffer(page_bytes: usize) -> u32 {
    let buffer = page_bytes.min(CHUNK_BYTES_MAX);
    let taken = HEADROOM_BYTES + SHARED_INFO_BYTES + ETHERNET_HEADER_BYTES;
    u32::try_from(buffer.saturating_sub(taken)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::Pretended;
    use super::*;

    const SYSFS: [(&str, &str); 9] = [
        ("/sys/class/net/eth0/ifindex", "4\n"),
        ("/sys/class/net/eth0/speed", "10000\n"),
        ("/sys/class/net/eth0/queues/rx-0/rps_cpus", "0\n"),
        ("/sys/class/net/eth0/queues/rx-1/rps_cpus", "0\n"),
        ("/sys/class/net/eth0/queues/tx-0/xps_cpus", "0\n"),
        ("/sys/class/net/eth0/gro_flush_timeout", "200000\n"),
        ("/sys/class/net/eth0/napi_defer_hard_irqs", "2\n"),
        ("/sys/class/net/eth0/threaded", "0\n"),
        ("/sys/bus/pci/devices/0000:01:00.0/vendor", "0x8086\n"),
    ];

    fn link(index: u32, device: Option<BusDevice>) -> Link {
        Link { index, name: "eth0".into(), device, ..Link::default() }
    }

    #[test]
    fn a_nic_has_driver_bus_queues_and_napi_settings() {
        let device = BusDevice { bus: "pci".into(), name: "0000:01:00.0".into() };
        let pretended = Pretended::new(&SYSFS);
        let pretended = pretended
            .link("/sys/bus/pci/devices/0000:01:00.0/driver", "../../../bus/pci/drivers/ixgbe");
        let nic = Interface::from_files(&pretended.files(), link(4, Some(device)));
        assert_eq!(nic.driver.as_deref(), Some("ixgbe"));
        assert!(!nic.is_virtual);
        assert_eq!((nic.rx_queues, nic.tx_queues), (Some(2), Some(1)));
        assert_eq!(nic.speed_mbit, Some(10_000));
        let napi = Napi {
            gro_flush_timeout: Some(200_000),
            napi_defer_hard_irqs: Some(2),
            threaded: Some(0),
        };
        assert_eq!(nic.napi, napi);
    }

    #[test]
    fn files_of_another_namespaces_interface_are_not_read() {
        let pretended = Pretended::new(&SYSFS);
        let mut other = link(5, None);
        other.kind = Some("veth".into());
        let veth = Interface::from_files(&pretended.files(), other);
        assert_eq!(veth.driver.as_deref(), Some("veth"));
        assert!(veth.is_virtual);
        assert_eq!((veth.rx_queues, veth.speed_mbit, veth.napi), (None, None, Napi::default()));
    }

    #[test]
    fn a_page_less_what_surrounds_the_frame_is_the_limit() {
        assert_eq!(mtu_max_single_buffer(4096), 3506);
        assert_eq!(mtu_max_single_buffer(65_536), 3506);
    }
}
