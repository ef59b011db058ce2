//! Changes of any interface, as the kernel reports them: of links (`rtnetlink(7)`), and of what `ethtool` sets
//! (`Documentation/networking/ethtool-netlink.rst`, group "monitor").

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_route::link::LinkHeader;
use netlink_sys::Socket;
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};

use crate::family;
use crate::socket::{messages, open};

/// The family and group of `include/uapi/linux/ethtool_netlink.h`.
const ETHTOOL: (&str, &str) = ("ethtool", "monitor");

/// Listens for changes of interfaces. Its descriptors are readable when there is something to receive.
#[derive(Debug)]
pub struct Notices {
    links: Socket,
    /// `None` where the kernel reports no changes by ethtool.
    settings: Option<Socket>,
}

impl Notices {
    /// Listens in this network namespace from now on.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn new() -> io::Result<Self> {
        let links = open(NETLINK_ROUTE)?;
        links.add_membership(libc::RTNLGRP_LINK)?;
        let (family, group) = ETHTOOL;
        let settings = family::group(family, group)?.map(|group| {
            let socket = open(NETLINK_GENERIC)?;
            socket.add_membership(group).map(|()| socket)
        });
        let notices = Self { links, settings: settings.transpose()? };
        for socket in [Some(&notices.links), notices.settings.as_ref()].into_iter().flatten() {
            socket.set_non_blocking(true)?;
        }
        Ok(notices)
    }

    /// The descriptors to wait for.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(&self.links), self.settings.as_ref()].into_iter().flatten().map(AsFd::as_fd)
    }

    /// Takes all messages that are there. `removed` gets the index of each interface that was removed or moved to
    /// another namespace. What else has changed is to be asked for; messages may have been lost for want of room.
    pub fn receive(&self, mut removed: impl FnMut(u32)) {
        while let Ok((datagram, _)) = self.links.recv_from_full() {
            messages(&datagram)
                .filter(|message| message.message_type() == libc::RTM_DELLINK)
                .filter_map(|message| LinkHeader::parse(message.payload()).ok())
                .for_each(|header| removed(header.index));
        }
        while self.settings.as_ref().is_some_and(|socket| socket.recv_from_full().is_ok()) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_changes_here() {
        let notices = Notices::new().unwrap();
        notices.receive(|_| ());
        assert_eq!(notices.descriptors().count(), 2);
    }
}
