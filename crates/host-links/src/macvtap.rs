//! Makes and removes macvtaps (`drivers/net/macvtap.c`), by `rtnetlink(7)`.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoMacVtap, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::socket::change;

pub use netlink_packet_route::link::MacVtapMode;

/// A macvtap to make.
#[derive(Clone, Debug)]
pub struct NewMacvtap<'n> {
    /// Its name.
    pub name: &'n str,
    /// The interface index of the one below.
    pub lower: u32,
    /// How it reaches the other macvtaps over that interface.
    pub mode: MacVtapMode,
    /// Its Ethernet address; the kernel chooses one if there is none.
    pub address: Option<[u8; 6]>,
}

impl NewMacvtap<'_> {
    /// Makes it, up, and open for every multicast group: a guest does not say which groups it listens to. It gets no IPv6
    /// address of the host's: the host would speak in the guest's name (`addrconf_notify`).
    ///
    /// # Errors
    /// What the kernel answers: `EEXIST`, `EPERM`, `EBUSY` or `EINVAL` if the interface below refuses, others.
    pub fn make(&self) -> io::Result<()> {
        let info = vec![
            LinkInfo::Kind(InfoKind::MacVtap),
            LinkInfo::Data(InfoData::MacVtap(vec![InfoMacVtap::Mode(self.mode)])),
        ];
        let address = self.address.map(|address| LinkAttribute::Address(address.into()));
        let kind = [LinkAttribute::Link(self.lower), LinkAttribute::LinkInfo(info)];
        let new = self.message(kind.into_iter().chain(address));
        change(NETLINK_ROUTE, RouteNetlinkMessage::NewLink(new), NLM_F_CREATE | NLM_F_EXCL)?;
        // The kernel has no attributes of IPv6 for an interface that is being made (`rtnl_newlink_create`).
        self.without_addresses().and_then(|()| self.up()).inspect_err(|_| {
            let _ = change(NETLINK_ROUTE, RouteNetlinkMessage::DelLink(self.message([])), 0);
        })
    }

    fn without_addresses(&self) -> io::Result<()> {
        let none = vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)];
        let family = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(none)]);
        match change(NETLINK_ROUTE, RouteNetlinkMessage::NewLink(self.message([family])), 0) {
            // A kernel without IPv6, or an interface too small for it.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(()),
            answer => answer,
        }
    }

    fn up(&self) -> io::Result<()> {
        let mut message = self.message([]);
        message.header.flags = LinkFlags::Up | LinkFlags::Allmulti;
        message.header.change_mask = message.header.flags;
        change(NETLINK_ROUTE, RouteNetlinkMessage::NewLink(message), 0)
    }

    fn message(&self, attributes: impl IntoIterator<Item = LinkAttribute>) -> LinkMessage {
        let name = [LinkAttribute::IfName(self.name.into())];
        let mut message = LinkMessage::default();
        message.attributes = name.into_iter().chain(attributes).collect();
        message
    }
}

/// Removes an interface.
///
/// # Errors
/// What the kernel answers: `ENODEV` if there is none of this index, others.
pub fn remove(index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    change(NETLINK_ROUTE, RouteNetlinkMessage::DelLink(message), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_refuses_is_an_error() {
        let lower = u32::MAX >> 1;
        let new = NewMacvtap { name: "rsnone", lower, mode: MacVtapMode::Bridge, address: None };
        let refused = [new.make().unwrap_err(), remove(lower).unwrap_err()];
        for error in refused {
            assert!(matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EPERM)), "{error}");
        }
    }
}
