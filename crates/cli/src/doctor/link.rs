//! An interface as `ip -d link show` has it, by `rtnetlink(7)`.

use std::io;

use rustix::io::Errno;
use serde::Serialize;

use super::attributes::{Attributes, attribute};
use super::netlink;

/// `include/uapi/linux/rtnetlink.h`: the request, `struct ifinfomsg` before its attributes, and the wish for
/// no counters.
const RTM_GETLINK: u16 = 18;
const HEADER_BYTES: usize = 16;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
/// `include/uapi/linux/if.h`: flags, and how long a name is with its terminating zero.
const IFF_UP: u32 = 1 << 0;
const IFF_LOWER_UP: u32 = 1 << 16;
const IFNAMSIZ: usize = 16;
/// `include/uapi/linux/if_link.h`.
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_MIN_MTU: u16 = 50;
const IFLA_MAX_MTU: u16 = 51;
const IFLA_PARENT_DEV_NAME: u16 = 56;
const IFLA_PARENT_DEV_BUS_NAME: u16 = 57;

/// How an XDP program is attached (`XDP_ATTACHED_*` of `include/uapi/linux/if_link.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// By the driver.
    Native,
    /// By the network stack.
    Generic,
    /// In the device.
    Hardware,
    /// In several of these ways.
    Several,
}

impl XdpMode {
    const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Native),
            2 => Some(Self::Generic),
            3 => Some(Self::Hardware),
            4 => Some(Self::Several),
            _ => None,
        }
    }

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Hardware => "hardware",
            Self::Several => "several",
        }
    }
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Attached {
    /// How.
    pub mode: XdpMode,
    /// The program's number, where there is one: `bpftool prog show id N`.
    pub id: Option<u32>,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it was made as: `veth`, `tun`, `bridge`; a device's driver gives none.
    pub kind: Option<String>,
    /// Whether it is set up.
    pub is_up: bool,
    /// Whether there is a link to the other end.
    pub has_carrier: bool,
    /// Bytes of a frame behind its Ethernet header.
    pub mtu: u32,
    /// The smallest and largest MTU, where the driver has any.
    pub mtu_min: Option<u32>,
    /// See `mtu_min`.
    pub mtu_max: Option<u32>,
    /// The bridge or bond that has taken it in.
    pub master: Option<u32>,
    /// The other end of a veth, in the same namespace.
    pub peer: Option<u32>,
    /// The XDP program that it has.
    pub xdp: Option<Attached>,
    /// The device behind it, where there is one (Linux 5.14).
    pub device: Option<Device>,
}

/// A device on a bus: `/sys/bus/BUS/devices/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// The bus.
    pub bus: String,
    /// The device's name on it.
    pub name: String,
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
        Self::ask(0, &attribute(IFLA_IFNAME, format!("{name}\0").as_bytes()))
    }

    /// The same by its number.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn numbered(index: u32) -> io::Result<Option<Self>> {
        Self::ask(index, &[])
    }

    fn ask(index: u32, attributes: &[u8]) -> io::Result<Option<Self>> {
        let mut request = vec![0; HEADER_BYTES];
        request[4..8].copy_from_slice(&index.to_ne_bytes());
        request.extend(attributes);
        request.extend(attribute(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes()));
        match netlink::ask_route(RTM_GETLINK, &request) {
            Ok(answer) => Ok(Self::read(&answer)),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Nothing when it is cut short.
    fn read(answer: &[u8]) -> Option<Self> {
        let (header, attributes) = answer.split_first_chunk::<HEADER_BYTES>()?;
        let number = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
        let (index, flags) = (number(4), number(8));
        let told = Attributes(attributes);
        let kind = told.nested(IFLA_LINKINFO).text(IFLA_INFO_KIND);
        let is_veth = kind.as_deref() == Some("veth");
        let is_here = told.get(IFLA_LINK_NETNSID).is_none();
        Some(Self {
            index,
            name: told.text(IFLA_IFNAME).unwrap_or_default(),
            kind,
            is_up: flags & IFF_UP != 0,
            has_carrier: flags & IFF_LOWER_UP != 0,
            mtu: told.u32(IFLA_MTU).unwrap_or(0),
            // 0 stands for none.
            mtu_min: told.u32(IFLA_MIN_MTU).filter(|&bytes| bytes > 0),
            mtu_max: told.u32(IFLA_MAX_MTU).filter(|&bytes| bytes > 0),
            master: told.u32(IFLA_MASTER),
            peer: told.u32(IFLA_LINK).filter(|_| is_veth && is_here),
            xdp: Attached::read(told.nested(IFLA_XDP)),
            device: Device::read(told),
        })
    }
}

impl Attached {
    fn read(told: Attributes<'_>) -> Option<Self> {
        let mode = XdpMode::from_number(told.u8(IFLA_XDP_ATTACHED)?)?;
        Some(Self { mode, id: told.u32(IFLA_XDP_PROG_ID) })
    }
}

impl Device {
    fn read(told: Attributes<'_>) -> Option<Self> {
        let (bus, name) = (IFLA_PARENT_DEV_BUS_NAME, IFLA_PARENT_DEV_NAME);
        Some(Self { bus: told.text(bus)?, name: told.text(name)? })
    }
}

#[cfg(test)]
mod tests {
    use super::super::attributes::nest;
    use super::*;

    fn answer(index: u32, flags: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut answer = vec![0; HEADER_BYTES];
        answer[4..8].copy_from_slice(&index.to_ne_bytes());
        answer[8..12].copy_from_slice(&flags.to_ne_bytes());
        answer.extend(attributes.concat());
        answer
    }

    fn number(kind: u16, number: u32) -> Vec<u8> {
        attribute(kind, &number.to_ne_bytes())
    }

    fn veth() -> Vec<u8> {
        nest(IFLA_LINKINFO, &attribute(IFLA_INFO_KIND, b"veth\0"))
    }

    #[test]
    fn a_veth_with_a_program() {
        let program = [attribute(IFLA_XDP_ATTACHED, &[1]), number(IFLA_XDP_PROG_ID, 12)];
        let attributes = [
            attribute(IFLA_IFNAME, b"veth0\0"),
            number(IFLA_MTU, 1500),
            number(IFLA_LINK, 8),
            number(IFLA_MASTER, 3),
            number(IFLA_MIN_MTU, 68),
            number(IFLA_MAX_MTU, 65535),
            nest(IFLA_XDP, &program.concat()),
            veth(),
        ];
        let link = Link::read(&answer(7, IFF_UP | IFF_LOWER_UP, &attributes)).unwrap();
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
            xdp: Some(Attached { mode: XdpMode::Native, id: Some(12) }),
            device: None,
        };
        assert_eq!(link, expected);
    }

    #[test]
    fn a_peer_in_another_namespace_has_no_name_here() {
        let attributes = [number(IFLA_LINK, 8), number(IFLA_LINK_NETNSID, 0), veth()];
        let link = Link::read(&answer(7, 0, &attributes)).unwrap();
        assert_eq!((link.peer, link.is_up, link.xdp), (None, false, None));
    }

    #[test]
    fn a_nic_has_a_device_and_no_kind() {
        let attributes = [
            attribute(IFLA_PARENT_DEV_NAME, b"0000:01:00.0\0"),
            attribute(IFLA_PARENT_DEV_BUS_NAME, b"pci\0"),
            // Not a veth: what it stands on is no peer.
            number(IFLA_LINK, 8),
            // None.
            number(IFLA_MAX_MTU, 0),
        ];
        let link = Link::read(&answer(2, IFF_UP, &attributes)).unwrap();
        let device = Device { bus: "pci".into(), name: "0000:01:00.0".into() };
        assert_eq!((link.device, link.kind, link.peer), (Some(device), None, None));
        assert_eq!((link.is_up, link.has_carrier, link.mtu_max), (true, false, None));
        assert_eq!(Link::read(&[0; HEADER_BYTES - 1]), None);
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
