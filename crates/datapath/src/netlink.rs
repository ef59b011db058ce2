//! As much of rtnetlink (`rtnetlink(7)`) as making, watching and removing one interface needs: requests are built by
//! hand, because that is shorter than what the libraries for it ask for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink, recv, send,
    socket_with,
};

/// The group of messages about interfaces (`RTNLGRP_LINK`), as a bit.
const LINKS: u32 = libc::RTMGRP_LINK as u32;
/// `NLMSG_ALIGNTO` and `RTA_ALIGNTO`.
const ALIGN: usize = 4;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct ifinfomsg`.
const LINK_INFO: usize = 16;
/// `IFLA_MACVLAN_MODE` (`linux/if_link.h`).
const IFLA_MACVLAN_MODE: u16 = 1;
/// `IFF_LOWER_UP` (`linux/if.h`): there is a carrier.
const LOWER_UP: u32 = 1 << 16;

/// What a macvtap over another interface is made with.
#[derive(Clone, Debug)]
pub struct NewMacvtap<'n> {
    pub name: &'n str,
    /// The interface index of the one below.
    pub lower: u32,
    /// `MACVLAN_MODE_*`.
    pub mode: u32,
    /// Its address; one of the kernel's choice if there is none.
    pub address: Option<[u8; 6]>,
}

/// What was said of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// It is up and has a carrier, or not.
    Carries(bool),
    /// It is gone.
    Gone,
}

/// A connection to the kernel.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Connection {
    /// One for requests.
    pub fn open() -> io::Result<Self> {
        Self::with_groups(0)
    }

    /// One that is told of every change of an interface.
    pub fn listen() -> io::Result<Self> {
        Self::with_groups(LINKS)
    }

    fn with_groups(groups: u32) -> io::Result<Self> {
        let (flags, family) = (SocketFlags::CLOEXEC, AddressFamily::NETLINK);
        // Protocol 0 is `NETLINK_ROUTE`.
        let socket = socket_with(family, SocketType::RAW, flags, None)?;
        bind(&socket, &netlink::SocketAddrNetlink::new(0, groups))?;
        Ok(Self { socket })
    }

    /// Makes a macvtap, up, and open for every multicast group: a guest does not tell which it listens to.
    pub fn make_macvtap(&self, new: &NewMacvtap<'_>) -> io::Result<()> {
        let up = (libc::IFF_UP | libc::IFF_ALLMULTI).unsigned_abs();
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut request = Request::new(libc::RTM_NEWLINK, flags, 0, (up, up));
        request.attribute(libc::IFLA_IFNAME, &[new.name.as_bytes(), &[0]].concat());
        request.attribute(libc::IFLA_LINK, &new.lower.to_ne_bytes());
        if let Some(address) = new.address {
            request.attribute(libc::IFLA_ADDRESS, &address);
        }
        request.nested(libc::IFLA_LINKINFO, |request| {
            request.attribute(libc::IFLA_INFO_KIND, b"macvtap");
            request.nested(libc::IFLA_INFO_DATA, |request| {
                request.attribute(IFLA_MACVLAN_MODE, &new.mode.to_ne_bytes());
            });
        });
        self.ask(request)
    }

    /// Removes an interface.
    pub fn remove(&self, index: u32) -> io::Result<()> {
        self.ask(Request::new(libc::RTM_DELLINK, libc::NLM_F_ACK, index, (0, 0)))
    }

    /// Asks how an interface is; [`News`] will say.
    pub fn inquire(&self, index: u32) -> io::Result<()> {
        self.send(Request::new(libc::RTM_GETLINK, 0, index, (0, 0)))
    }

    /// Waits for messages, and hands on what they say of interface `index`.
    pub fn hear(&self, index: u32, mut tell: impl FnMut(News)) -> io::Result<()> {
        let mut buffer = vec![0; 32 << 10];
        let (count, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
        for (kind, body) in messages(&buffer[..count]) {
            let word = |at: usize| body.get(at..at + 4).and_then(|it| it.try_into().ok());
            // `ifi_index`, `ifi_flags`.
            let (Some(about), Some(flags)) = (word(4), word(8)) else { continue };
            if u32::from_ne_bytes(about) != index {
                continue;
            }
            let flags = u32::from_ne_bytes(flags);
            let wanted = libc::IFF_UP.unsigned_abs() | LOWER_UP;
            match kind {
                libc::RTM_NEWLINK => tell(News::Carries(flags & wanted == wanted)),
                libc::RTM_DELLINK => tell(News::Gone),
                _ => {}
            }
        }
        Ok(())
    }

    fn send(&self, request: Request) -> io::Result<()> {
        send(&self.socket, &request.finish(), SendFlags::empty())?;
        Ok(())
    }

    /// Sends a request and waits for its acknowledgement.
    fn ask(&self, request: Request) -> io::Result<()> {
        self.send(request)?;
        let mut buffer = [0; 4096];
        loop {
            let (count, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            for (kind, body) in messages(&buffer[..count]) {
                let error = body.get(..4).and_then(|it| it.try_into().ok());
                if let (true, Some(error)) = (i32::from(kind) == libc::NLMSG_ERROR, error) {
                    return match i32::from_ne_bytes(error) {
                        0 => Ok(()),
                        errno => Err(io::Error::from_raw_os_error(-errno)),
                    };
                }
            }
        }
    }
}

/// The messages in `bytes`: each one's kind, and what follows its header.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = bytes.get(..4).and_then(|it| it.try_into().ok()).map(u32::from_ne_bytes)?;
        let kind = bytes.get(4..6).and_then(|it| it.try_into().ok()).map(u16::from_ne_bytes)?;
        let len = usize::try_from(len).ok()?;
        let body = bytes.get(HEADER..len)?;
        bytes = bytes.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// A request about one interface.
struct Request(Vec<u8>);

impl Request {
    /// `flags`: the interface's, and which of them change.
    fn new(kind: u16, options: i32, index: u32, flags: (u32, u32)) -> Self {
        let mut bytes = vec![0; HEADER + LINK_INFO];
        let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        set(4, &kind.to_ne_bytes());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "NLM_F_* fit")]
        set(6, &((options | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        set(HEADER + 4, &index.to_ne_bytes());
        set(HEADER + 8, &flags.0.to_ne_bytes());
        set(HEADER + 12, &flags.1.to_ne_bytes());
        Self(bytes)
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |request| request.0.extend_from_slice(value));
    }

    /// An attribute that is what `fill` appends.
    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        fill(self);
        #[expect(clippy::cast_possible_truncation, reason = "names and numbers")]
        let len = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        #[expect(clippy::cast_possible_truncation, reason = "names and numbers")]
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_how_an_interface_is() {
        let connection = Connection::open().unwrap();
        // The first interface of every network namespace is its loopback.
        connection.inquire(1).unwrap();
        let mut news = Vec::new();
        connection.hear(1, |it| news.push(it)).unwrap();
        assert!(matches!(news[..], [News::Carries(_)]), "{news:?}");
    }

    #[test]
    fn attributes_are_padded_and_nest() {
        let mut request = Request::new(libc::RTM_NEWLINK, 0, 7, (1, 1));
        request.nested(18, |request| request.attribute(1, b"abcde"));
        let bytes = request.finish();
        let attributes = &bytes[HEADER + LINK_INFO..];
        let expected = [
            &16_u16.to_ne_bytes()[..],
            &18_u16.to_ne_bytes(),
            &9_u16.to_ne_bytes(),
            &1_u16.to_ne_bytes(),
            b"abcde\0\0\0",
        ];
        assert_eq!(attributes, expected.concat());
        assert_eq!(messages(&bytes).map(|(kind, body)| (kind, body.len())).next(), Some((16, 32)));
    }
}
