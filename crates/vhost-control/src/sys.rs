//! The process at the other end of a socket.
#![allow(
    unsafe_code,
    reason = "SO_PEERCRED has no safe form that allows for a process number of 0"
)]

use std::os::fd::{AsRawFd, BorrowedFd};

/// The process that connected, or made, the socket's other end. `None` for a process of another PID namespace, for which
/// the kernel reports 0.
pub fn peer_process(socket: BorrowedFd<'_>) -> Option<u32> {
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
    u32::try_from(peer.pid).ok().filter(|&pid| result == 0 && pid > 0)
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
    }
}
