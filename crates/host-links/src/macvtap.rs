//! Makes and removes macvtaps (`drivers/net/macvtap.c`), by `rtnetlink(7)`.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoMacVtap, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
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
    /// Makes it, up, and open for every multicast group: a guest does not say which groups it listens to.
    ///
    /// # Errors
    /// What the kernel answers: `EEXIST`, `EPERM`, `EBUSY` or `EINVAL` if the interface below refuses, others.
    pub fn make(&self) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up | LinkFlags::Allmulti;
        message.header.change_mask = message.header.flags;
        let info = vec![
            LinkInfo::Kind(InfoKind::MacVtap),
            LinkInfo::Data(InfoData::MacVtap(vec![InfoMacVtap::Mode(self.mode)])),
        ];
        message.attributes = vec![
            LinkAttribute::IfName(self.name.into()),
            LinkAttribute::Link(self.lower),
            LinkAttribute::LinkInfo(info),
        ];
        message
            .attributes
            .extend(self.address.map(|address| LinkAttribute::Address(address.into())));
        change(NETLINK_ROUTE, RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
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
