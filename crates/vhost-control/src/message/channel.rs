//! Sockets of a front end that are kept open.
//!
//! Its channel for requests of the back end (`SET_BACKEND_REQ_FD`): we make no requests, so nothing is written to it or
//! read from it. User Mode Linux handles no interrupt of its device without one, and both it and QEMU log an error when
//! theirs is closed.
//!
//! A call descriptor of User Mode Linux: one of a pair of sockets, which sends SIGIO where an eventfd does not (`os_pipe`,
//! arch/um/os-Linux/file.c). A signal is 8 bytes, as for an eventfd. With `O_NONBLOCK` a write does not wait, and if the
//! socket is full, a signal is pending.
//!
//! What is kept open must not keep the connection itself open, or the front end's end would never be noticed. A pipe
//! holds bytes only. A socket could be the front end's own end of the connection, or have it among the descriptors that
//! were sent to it. So a socket may have no other end in this process, and it must be empty and stay so.

use host_files::socket::Peer;
use rustix::io::{Errno, ioctl_fionread};
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, Shutdown, SocketType, shutdown};
use worker::Foreign;

use super::descriptor::{Kind, expect_kinds};

/// Checks a channel before it is kept.
///
/// # Errors
/// When it is not a pipe or a Unix socket that may be kept: why.
pub fn admit(channel: &Foreign) -> Result<(), String> {
    match expect_kinds(channel, &[Kind::Pipe, Kind::Socket])? {
        Kind::Socket => admit_socket(channel),
        _ => Ok(()),
    }
}

/// Checks a socket before it is kept.
///
/// # Errors
/// When it is not a Unix socket that may be kept: why.
pub fn admit_socket(socket: &Foreign) -> Result<(), String> {
    let fails = |error: Errno| format!("its socket cannot be used: {error}");
    let unix = (AddressFamily::UNIX, SocketType::STREAM);
    let domain = socket_domain(socket).map_err(fails)?;
    if (domain, socket_type(socket).map_err(fails)?) != unix {
        return Err("its socket is of another kind; expected a Unix stream socket".into());
    }
    if Peer::of(&socket).is_ok_and(|peer| peer.process == Some(std::process::id())) {
        return Err("its socket is connected to this process; expected the front end's own".into());
    }
    // From here on nothing can be sent to it. The other end may still be read.
    shutdown(socket, Shutdown::Read).map_err(fails)?;
    match ioctl_fionread(socket).map_err(fails)? {
        0 => Ok(()),
        len => Err(format!("its socket has {len} bytes to read; expected an empty one")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use rustix::event::{EventfdFlags, eventfd};
    use worker::Custody;

    fn verdict(fd: impl Into<OwnedFd>) -> Result<(), String> {
        admit(&Custody::new(&Arc::default()).unwrap().take(fd.into()))
    }

    #[test]
    fn a_channel_is_a_pipe_or_a_unix_socket() {
        let (reader, writer) = std::io::pipe().unwrap();
        assert_eq!((verdict(reader), verdict(writer)), (Ok(()), Ok(())));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(verdict(tcp).unwrap_err().contains("a Unix stream socket"));
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        assert!(verdict(eventfd).unwrap_err().ends_with("expected a pipe or a socket"));
    }

    #[test]
    fn a_socket_must_not_be_the_other_end_of_one_of_ours() {
        let (ours, _other) = UnixStream::pair().unwrap();
        assert!(verdict(ours).unwrap_err().contains("connected to this process"));
    }
}
