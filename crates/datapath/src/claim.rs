//! Ensures that only one process serves an interface, where the kernel would allow several.
//!
//! The kernel lets a second process open further queues of a multi-queue tap, or of any macvtap, and gives it a part of
//! the flows. So the process that serves such an interface holds an abstract socket. Abstract names belong to the
//! network namespace, as the interface does, and are released when the process ends.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use host_files::socket::Peer;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::geteuid;

/// An interface that this process serves.
#[derive(Debug)]
pub struct Claim {
    /// `None` if another user's process has taken the name: any process can do that, and it must not keep us from our
    /// interface.
    held: Option<UnixListener>,
}

/// Another process already serves the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// That process; 0 if it is in another PID namespace.
    pub process: u32,
}

impl Claim {
    /// Claims the interface with this index, in the network namespace of this process.
    ///
    /// # Errors
    /// When another process of this user, or of root, has claimed it.
    pub fn take(index: u32) -> Result<Self, Taken> {
        let name = format!("ringscope-interface-{index}");
        let Ok(address) = SocketAddr::from_abstract_name(name.as_bytes()) else {
            return Ok(Self { held: None });
        };
        let why = match UnixListener::bind_addr(&address) {
            Ok(listener) => return Ok(Self { held: Some(listener) }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => match holder_of(&name) {
                Ok(Peer { process, user }) if user == 0 || user == geteuid().as_raw() => {
                    return Err(Taken { process: process.unwrap_or_default() });
                }
                Ok(Peer { user, .. }) => format!("a process of user {user} holds it"),
                Err(error) => format!("it is in use, and not by a ringscoped: {error}"),
            },
            Err(error) => error.to_string(),
        };
        log::warn!(
            "cannot check that no second process serves interface {index}: the abstract socket @{name} is not \
             available ({why})"
        );
        Ok(Self { held: None })
    }
}

impl Claim {
    /// Another descriptor of the claim, for a process that goes on with the interface.
    pub fn share(&self) -> io::Result<Option<OwnedFd>> {
        self.held.as_ref().map(|held| held.as_fd().try_clone_to_owned()).transpose()
    }

    /// The claim of the process before.
    pub fn handed(held: OwnedFd) -> Self {
        Self { held: Some(held.into()) }
    }
}

/// The process that listens at the abstract address `name`. Nobody accepts connections there, so this must not block.
fn holder_of(name: &str) -> io::Result<Peer> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    Peer::of(&socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An index that no interface has.
    const NONE: u32 = i32::MAX.cast_unsigned();

    #[test]
    fn an_interface_has_one_process_at_a_time() {
        let claim = Claim::take(NONE).unwrap();
        let process = std::process::id();
        assert_eq!(Claim::take(NONE).unwrap_err(), Taken { process });
        assert!(Claim::take(NONE - 1).is_ok());
        drop(claim);
        assert!(Claim::take(NONE).is_ok());
    }

    #[test]
    fn a_name_that_no_daemon_holds_keeps_nobody_away() {
        let name = format!("ringscope-interface-{}", NONE - 2);
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        // It does not listen, so the kernel does not report its process.
        let _squatter = std::os::unix::net::UnixDatagram::bind_addr(&address).unwrap();
        assert!(Claim::take(NONE - 2).is_ok());
    }
}
