//! Changes of one interface, as the kernel reports them (`rtnetlink(7)`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::NetlinkBuffer;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkHeader, LinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::socket::{messages, open, send};

/// What happened to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// It is up and has a carrier.
    Up,
    /// It is down, or has no carrier.
    Down,
    /// It is gone.
    Removed,
}

/// Watches one interface. Readable when there is something to receive.
#[derive(Debug)]
pub struct LinkWatch {
    socket: Socket,
    index: u32,
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl LinkWatch {
    /// Watches interface `index`. The first event is its present state.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn new(index: u32) -> io::Result<Self> {
        let socket = open(NETLINK_ROUTE)?;
        // First the changes, then the state: nothing is missed between them.
        socket.add_membership(libc::RTNLGRP_LINK)?;
        let watch = Self { socket, index };
        watch.request_state()?;
        Ok(watch)
    }

    /// Waits for messages, and reports those about the interface.
    ///
    /// # Errors
    /// What the kernel answers. Messages lost for want of room are no error: the state is asked for again.
    pub fn receive(&self, mut report: impl FnMut(LinkEvent)) -> io::Result<()> {
        match self.socket.recv_from_full() {
            Ok((datagram, _)) => {
                messages(&datagram)
                    .filter_map(|message| self.event(&message))
                    .for_each(&mut report);
                Ok(())
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                // If this fails, the next change is still reported.
                let _ = self.request_state();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn request_state(&self) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        send(&self.socket, RouteNetlinkMessage::GetLink(message), 0)
    }

    /// Only the header is read: what attributes a newer kernel adds does not matter.
    fn event(&self, message: &NetlinkBuffer<&[u8]>) -> Option<LinkEvent> {
        let header = LinkHeader::parse(message.payload()).ok()?;
        if header.index != self.index {
            return None;
        }
        match message.message_type() {
            libc::RTM_NEWLINK if header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp) => {
                Some(LinkEvent::Up)
            }
            libc::RTM_NEWLINK => Some(LinkEvent::Down),
            libc::RTM_DELLINK => Some(LinkEvent::Removed),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_event_is_the_present_state() {
        // The first interface of every network namespace is its loopback.
        let watch = LinkWatch::new(1).unwrap();
        let mut events = Vec::new();
        while events.is_empty() {
            watch.receive(|event| events.push(event)).unwrap();
        }
        assert!(matches!(events[0], LinkEvent::Up | LinkEvent::Down), "{events:?}");
    }
}
