//! The process at the other end of a socket.
#![allow(
    unsafe_code,
    reason = "SO_PEERCRED has no safe form that allows for a process number of 0"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The process at the other end of a socket (`SO_PEERCRED`, unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number. `None` for a process of another PID namespace, for which the kernel reports 0.
    pub process: Option<u32>,
    /// Its effective user.
    pub user: u32,
}

/// The process that connected, or made, the socket's other end.
pub fn peer_process(socket: BorrowedFd<'_>) -> Option<u32> {
    peer(socket).ok()?.process
}

/// The process that connected, or made, the socket's other end, and its user.
///
/// # Errors
/// What the kernel answers.
pub fn peer(socket: BorrowedFd<'_>) -> io::Result<Peer> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    #[expect(clippy::cast_possible_truncation, reason = "12 bytes")]
    let mut len = size_of_val(&peer) as libc::socklen_t;
    // SAFETY: the pointers are to `peer` and its length, which outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Peer { process: u32::try_from(peer.pid).ok().filter(|&pid| pid > 0), user: peer.uid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_other_end_of_our_own_socket_is_ours() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert_eq!(peer_process(one.as_fd()), Some(std::process::id()));
        let user = rustix::process::geteuid().as_raw();
        assert_eq!(peer(one.as_fd()).unwrap(), Peer { process: Some(std::process::id()), user });
    }
}
