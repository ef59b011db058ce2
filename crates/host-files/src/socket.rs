//! The UNIX socket of another process, and that process.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

/// Connects to the socket at `path`, without waiting: who listens there and accepts nobody could make others wait for ever.
///
/// # Errors
/// What the kernel answers; [`WouldBlock`](io::ErrorKind::WouldBlock) if too many wait there already.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Whether a process listens at the socket at `path`. If none does, it was left by one that did not end in order.
///
/// # Errors
/// What the kernel answers otherwise.
pub fn is_listened_at(path: &Path) -> io::Result<bool> {
    match connect(path) {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock => Ok(true),
            io::ErrorKind::ConnectionRefused => Ok(false),
            _ => Err(error),
        },
    }
}

/// The process at the other end of a socket (`SO_PEERCRED`, unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number. `None` for a process of another PID namespace, for which the kernel reports 0.
    pub process: Option<u32>,
    /// Its effective user.
    pub user: u32,
}

impl Peer {
    /// The process that connected, or made, the other end of this socket.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        let found = getsockopt(socket, PeerCredentials)?;
        let process = u32::try_from(found.pid()).ok().filter(|&process| process > 0);
        Ok(Self { process, user: found.uid() })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_other_end_of_our_own_socket_is_ours() {
        let (one, _other) = UnixStream::pair().unwrap();
        let user = rustix::process::geteuid().as_raw();
        let expected = Peer { process: Some(std::process::id()), user };
        assert_eq!(Peer::of(&one).unwrap(), expected);
    }

    #[test]
    fn nobody_waits_for_one_who_accepts_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert_eq!(is_listened_at(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            match connect(&path) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 10, "its queue has no end");
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert!(is_listened_at(&path).unwrap());
        drop(listener);
        assert!(!is_listened_at(&path).unwrap());
    }
}
