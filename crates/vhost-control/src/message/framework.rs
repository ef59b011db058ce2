//! The framework's daemon for one connection, and our end of its socket.
//!
//! The framework serves only connections that it accepts itself. So we make one, on an abstract address that the kernel
//! chooses (`unix(7)`, "Autobind feature"). That needs no directory: `$TMPDIR` may be missing, full or read-only.
//!
//! Any process in this network namespace may connect to such an address. Therefore the socket's queue has room for one
//! connection only. Ours is in it before the framework accepts one, and the framework accepts no other.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, getsockname, listen,
    socket_with,
};
use vhost::vhost_user::Listener;
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::session::Session;
use super::vring::with_rings;

/// The framework's daemon for a [`Session`].
pub type Daemon = VhostUserDaemon<Arc<Session>>;

/// Most addresses tried: each fails only if another process connects to it first.
const TRIES: usize = 100;

/// Starts a daemon. Returns it and our end of its socket.
///
/// # Errors
/// When the system refuses.
pub fn start(session: &Arc<Session>) -> io::Result<(Daemon, UnixStream)> {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let refused = |error: DaemonError| io::Error::other(error.to_string());
    let mut daemon = with_rings(session.rings(), || {
        Daemon::new("vhost-user".into(), Arc::clone(session), memory)
    })
    .map_err(refused)?;
    let (listener, ours) = connection()?;
    daemon.start(&mut Listener::from(listener)).map_err(refused)?;
    Ok((daemon, ours))
}

/// A socket that listens with our connection, and no other, in its queue; and our end.
///
/// # Errors
/// When the system refuses.
pub fn connection() -> io::Result<(UnixListener, UnixStream)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    for _ in 0..TRIES {
        let listener = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        bind(&listener, &SocketAddrUnix::new_unnamed())?;
        let address = SocketAddrUnix::try_from(getsockname(&listener)?)?;
        listen(&listener, 0)?;
        let ours = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
        match connect(&ours, &address) {
            // Another process is in the queue.
            Err(Errno::AGAIN) => {}
            result => {
                result?;
                rustix::io::ioctl_fionbio(&ours, false)?;
                return Ok((listener.into(), ours.into()));
            }
        }
    }
    Err(io::Error::other("another process connects to every socket that is made here"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    #[test]
    fn nobody_else_gets_into_the_queue() {
        let (listener, mut ours) = connection().unwrap();
        let address = SocketAddrUnix::try_from(getsockname(&listener).unwrap()).unwrap();
        let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
        let other = socket_with(family, kind, SocketFlags::NONBLOCK, None).unwrap();
        assert_eq!(connect(&other, &address), Err(Errno::AGAIN));
        let (mut accepted, _) = listener.accept().unwrap();
        ours.write_all(b"ours").unwrap();
        let mut read = [0; 4];
        accepted.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"ours");
    }
}
