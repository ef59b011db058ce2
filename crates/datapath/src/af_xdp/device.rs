//! What the kernel says of an interface (`/sys/class/net`).

use std::fs;
use std::path::{Path, PathBuf};

use host_links::link::carries_ethernet;

/// An interface that AF_XDP sockets are bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
    /// The largest payload of a link frame, bytes.
    pub mtu: u16,
    /// How many receive queues it has.
    pub queues: u32,
    /// Whether it has no hardware. Then a frame is sent before the system call returns.
    pub is_virtual: bool,
    /// Whether frames may come with partial checksums and longer than the MTU: the sender is a kernel, and no hardware
    /// lies between. Besides virtual interfaces these are cards that a hypervisor emulates for its own drivers.
    pub leaves_offloads: bool,
    /// Whether it carries Ethernet frames.
    pub is_ethernet: bool,
    /// The interfaces below it, if it is a bond.
    pub bonded: Option<Vec<String>>,
}

impl Device {
    /// Looks up the interface `name`; none when there is no such interface.
    pub fn find(name: &str) -> Option<Self> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('/') || name == ".." {
            return None;
        }
        let directory = Path::new("/sys/class/net").join(name);
        let number =
            |entry: &str| fs::read_to_string(directory.join(entry)).ok()?.trim().parse().ok();
        let device = directory.join("device");
        let is_virtual = !device.exists();
        Some(Self {
            name: name.to_owned(),
            index: number("ifindex")?,
            mtu: u16::try_from(number("mtu").unwrap_or(1500)).unwrap_or(u16::MAX),
            queues: count_queues(&directory.join("queues")).max(1),
            is_virtual,
            leaves_offloads: is_virtual
                || bus(&device).is_some_and(|bus| PARAVIRTUAL.contains(&bus.as_str())),
            is_ethernet: number("type").is_none_or(carries_ethernet),
            bonded: fs::read_to_string(directory.join("bonding/slaves"))
                .ok()
                .map(|names| names.split_whitespace().map(str::to_owned).collect()),
        })
    }
}

/// Buses whose network cards pass on what the host's kernel left undone: `VIRTIO_NET_HDR_F_NEEDS_CSUM` of
/// `drivers/net/virtio_net.c`, `XEN_NETRXF_csum_blank` of `drivers/net/xen-netfront.c`.
const PARAVIRTUAL: [&str; 2] = ["virtio", "xen"];

fn bus(device: &Path) -> Option<String> {
    let bus = fs::read_link(device.join("subsystem")).ok()?;
    Some(bus.file_name()?.to_string_lossy().into_owned())
}

fn count_queues(directory: &PathBuf) -> u32 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("rx-")).map(|_| 1).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_virtual() {
        let device = Device::find("lo").unwrap();
        assert!(device.is_ethernet);
        assert!(
            device.is_virtual && device.leaves_offloads && device.index > 0 && device.queues > 0,
            "{device:?}"
        );
    }

    #[test]
    fn what_is_no_interface_is_not_found() {
        for name in ["", "ringscope-none", "..", "a/b", "a-name-that-is-too-long"] {
            assert_eq!(Device::find(name), None, "{name}");
        }
    }
}
