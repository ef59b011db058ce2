//! An interface as `ip -d link show` has it, by `rtnetlink(7)`.

use std::io;

use netlink_packet_core::{Emitable, NlasIterator, ParseableParametrized};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkFlags, LinkHeader, LinkInfo, LinkMessage, LinkXdp,
    XdpAttached,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use serde::Serialize;

use crate::socket::fetch;

/// The longest name of an interface, with its terminating zero (`include/uapi/linux/if.h`).
const IFNAMSIZ: usize = 16;

/// Whether an interface of this type (`include/uapi/linux/if_arp.h`; `/sys/class/net/NAME/type`) carries Ethernet frames:
/// `ARPHRD_ETHER` and `ARPHRD_LOOPBACK` do. A tun, a WireGuard or a GRE interface carries IP packets.
#[must_use]
pub const fn carries_ethernet(kind: u32) -> bool {
    matches!(kind, 1 | 772)
}

/// How an XDP program is attached (`XDP_ATTACHED_*` of `include/uapi/linux/if_link.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpAttachment {
    /// The driver runs it.
    Native,
    /// The network stack runs it.
    Generic,
    /// The device runs it.
    Hardware,
    /// Several of these at once.
    Several,
}

impl XdpAttachment {
    const fn new(attached: XdpAttached) -> Option<Self> {
        match attached {
            XdpAttached::Driver => Some(Self::Native),
            XdpAttached::SocketBuffer => Some(Self::Generic),
            XdpAttached::Hardware => Some(Self::Hardware),
            XdpAttached::Multiple => Some(Self::Several),
            _ => None,
        }
    }

    /// The name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Hardware => "hardware",
            Self::Several => "several",
        }
    }

    /// What removes a program that was attached by netlink, after `ip link set dev NAME`.
    #[must_use]
    pub const fn off(self) -> &'static str {
        match self {
            Self::Native => "xdpdrv off",
            Self::Generic => "xdpgeneric off",
            Self::Hardware => "xdpoffload off",
            Self::Several => "xdp off",
        }
    }
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Attached {
    /// How it is attached.
    pub mode: XdpAttachment,
    /// The program's number, if there is one program: `bpftool prog show id N`.
    pub id: Option<u32>,
}

/// A device on a bus: `/sys/bus/BUS/devices/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BusDevice {
    /// The bus.
    pub bus: String,
    /// The device's name on it.
    pub name: String,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index in its network namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The kind of a virtual interface: `veth`, `tun`, `bridge`. A device's interface has none.
    pub kind: Option<String>,
    /// It is set up.
    pub is_up: bool,
    /// It has a carrier.
    pub has_carrier: bool,
    /// MTU, bytes.
    pub mtu: u32,
    /// Smallest MTU, bytes, if the driver has a limit.
    pub mtu_min: Option<u32>,
    /// Largest MTU, bytes, if the driver has a limit.
    pub mtu_max: Option<u32>,
    /// Index of the bridge or bond that it belongs to.
    pub master: Option<u32>,
    /// Index of the other end of a veth, if that is in the same namespace.
    pub peer: Option<u32>,
    /// The XDP program attached to it.
    pub xdp: Option<Attached>,
    /// Its device (Linux 5.14).
    pub device: Option<BusDevice>,
}

impl Link {
    /// Asks for the interface of this name; nothing when there is none.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn named(name: &str) -> io::Result<Option<Self>> {
        // The kernel would refuse others.
        if !(1..IFNAMSIZ).contains(&name.len()) || name.contains('\0') {
            return Ok(None);
        }
        Self::ask(0, vec![LinkAttribute::IfName(name.into())])
    }

    /// Asks for the interface of this index; nothing when there is none.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn numbered(index: u32) -> io::Result<Option<Self>> {
        Self::ask(index, Vec::new())
    }

    fn ask(index: u32, mut attributes: Vec<LinkAttribute>) -> io::Result<Option<Self>> {
        attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = attributes;
        match fetch(NETLINK_ROUTE, RouteNetlinkMessage::GetLink(message)) {
            Ok(answer) => Ok(Self::read(&answer)),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Nothing when the answer is shorter than its header. Attributes that cannot be parsed are left out: a newer
    /// kernel may have changed them.
    fn read(answer: &[u8]) -> Option<Self> {
        let header = LinkHeader::parse(answer).ok()?;
        let mut link = Self {
            index: header.index,
            is_up: header.flags.contains(LinkFlags::Up),
            has_carrier: header.flags.contains(LinkFlags::LowerUp),
            ..Self::default()
        };
        let (mut below, mut is_here) = (None, true);
        let (mut bus, mut device) = (None, None);
        let attributes = NlasIterator::new(&answer[header.buffer_len()..]).map_while(Result::ok);
        let parsed = attributes.filter_map(|attribute| {
            LinkAttribute::parse_with_param(&attribute, header.interface_family).ok()
        });
        for attribute in parsed {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::LinkInfo(info) => link.kind = kind(&info),
                LinkAttribute::Mtu(bytes) => link.mtu = bytes,
                // 0 means that there is no limit.
                LinkAttribute::MinMtu(bytes) => {
                    link.mtu_min = Some(bytes).filter(|&bytes| bytes > 0)
                }
                LinkAttribute::MaxMtu(bytes) => {
                    link.mtu_max = Some(bytes).filter(|&bytes| bytes > 0)
                }
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::Link(index) => below = Some(index),
                LinkAttribute::LinkNetNsId(_) => is_here = false,
                LinkAttribute::Xdp(xdp) => link.xdp = attached(&xdp),
                LinkAttribute::ParentDevBusName(name) => bus = Some(name),
                LinkAttribute::ParentDevName(name) => device = Some(name),
                _ => {}
            }
        }
        // Of other kinds it is the interface below.
        link.peer = below.filter(|_| is_here && link.kind.as_deref() == Some("veth"));
        link.device = bus.zip(device).map(|(bus, name)| BusDevice { bus, name });
        Some(link)
    }
}

fn kind(info: &[LinkInfo]) -> Option<String> {
    info.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    })
}

fn attached(xdp: &[LinkXdp]) -> Option<Attached> {
    let mode = xdp.iter().find_map(|xdp| match xdp {
        LinkXdp::Attached(attached) => XdpAttachment::new(*attached),
        _ => None,
    });
    let id = xdp.iter().find_map(|xdp| match xdp {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    });
    Some(Attached { mode: mode?, id })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::InfoKind;

    use super::*;

    fn read(index: u32, flags: LinkFlags, attributes: Vec<LinkAttribute>) -> Link {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = flags;
        message.attributes = attributes;
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        Link::read(&bytes).unwrap()
    }

    fn veth() -> LinkAttribute {
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)])
    }

    #[test]
    fn a_veth_with_a_program() {
        let attributes = vec![
            LinkAttribute::IfName("veth0".into()),
            LinkAttribute::Mtu(1500),
            LinkAttribute::Link(8),
            LinkAttribute::Controller(3),
            LinkAttribute::MinMtu(68),
            LinkAttribute::MaxMtu(65535),
            LinkAttribute::Xdp(vec![LinkXdp::Attached(XdpAttached::Driver), LinkXdp::ProgId(12)]),
            veth(),
        ];
        let expected = Link {
            index: 7,
            name: "veth0".into(),
            kind: Some("veth".into()),
            is_up: true,
            has_carrier: true,
            mtu: 1500,
            mtu_min: Some(68),
            mtu_max: Some(65535),
            master: Some(3),
            peer: Some(8),
            xdp: Some(Attached { mode: XdpAttachment::Native, id: Some(12) }),
            device: None,
        };
        assert_eq!(read(7, LinkFlags::Up | LinkFlags::LowerUp, attributes), expected);
    }

    #[test]
    fn a_peer_in_another_namespace_has_no_name_here() {
        let attributes = vec![LinkAttribute::Link(8), LinkAttribute::LinkNetNsId(0), veth()];
        let link = read(7, LinkFlags::empty(), attributes);
        assert_eq!((link.peer, link.is_up, link.xdp), (None, false, None));
    }

    #[test]
    fn a_nic_has_a_device_and_no_kind() {
        let attributes = vec![
            LinkAttribute::ParentDevName("0000:01:00.0".into()),
            LinkAttribute::ParentDevBusName("pci".into()),
            LinkAttribute::Link(8),
            LinkAttribute::MaxMtu(0),
        ];
        let link = read(2, LinkFlags::Up, attributes);
        let device = BusDevice { bus: "pci".into(), name: "0000:01:00.0".into() };
        assert_eq!((link.device, link.kind, link.peer), (Some(device), None, None));
        assert_eq!((link.is_up, link.has_carrier, link.mtu_max), (true, false, None));
        assert_eq!(Link::read(&[0; 15]), None);
    }

    #[test]
    fn the_loopback_interface_is_everywhere_and_odd_names_nowhere() {
        let link = Link::named("lo").unwrap().unwrap();
        assert_eq!((link.name.as_str(), &link.kind, link.master), ("lo", &None, None));
        assert_eq!(Link::numbered(link.index).unwrap().unwrap().name, "lo");
        for name in ["", "no-such", "a-name-that-is-too-long", "l\0o"] {
            assert_eq!(Link::named(name).unwrap(), None, "{name:?}");
        }
        assert_eq!(Link::numbered(u32::MAX >> 1).unwrap(), None);
    }
}
