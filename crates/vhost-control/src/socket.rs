//! Making, finding and cleaning up the socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::{fs, str};

use rustix::net::SocketAddrUnix;
use rustix::net::sockopt::{socket_acceptconn, socket_peercred};

use crate::sys::borrow;

/// Where front ends are met.
#[derive(Debug)]
pub enum Endpoint {
    /// We listen; front ends come.
    Server(Server),
    /// The front end listens here; we connect, again and again.
    Client(PathBuf),
}

/// A listening socket. Its file is removed when dropped, if we made it.
#[derive(Debug)]
pub struct Server {
    pub(crate) listener: UnixListener,
    path: String,
    /// The file that we made: path and inode.
    made: Option<(PathBuf, u64)>,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens there.
    #[error(
        "{path} is in use: another process listens on it; end that one, or choose another --socket-path"
    )]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// Something that is no socket has that name.
    #[error("{path} is there and is no socket; remove it, or choose another --socket-path")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The descriptor is no listening unix socket.
    #[error("file descriptor {fd} of --fd is {found}; expected a listening unix stream socket")]
    Descriptor {
        /// The descriptor's number.
        fd: RawFd,
        /// What it is.
        found: String,
    },
    /// The system refused.
    #[error("cannot listen on {path}: {source}")]
    System {
        /// The path.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

impl Server {
    /// Listens at `path`. A socket file that nobody listens on any more, left by a daemon that was killed,
    /// is replaced.
    ///
    /// # Errors
    /// When the path is in use, is something else, or the system refuses.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let system = |source| SocketError::System { path: path.into(), source };
        if let Ok(metadata) = fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(SocketError::NotASocket { path: path.into() });
            }
            match UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    log::warn!(
                        "{} was left behind by a daemon that is gone; replaced",
                        path.display()
                    );
                    fs::remove_file(path).map_err(system)?;
                }
                Err(error) => return Err(system(error)),
                Ok(_) => return Err(SocketError::InUse { path: path.into() }),
            }
        }
        let listener = UnixListener::bind(path).map_err(system)?;
        let inode = fs::symlink_metadata(path).map_err(system)?.ino();
        Ok(Self {
            listener,
            path: path.to_string_lossy().into_owned(),
            made: Some((path.into(), inode)),
        })
    }

    /// Takes over a listening socket that whoever started us made.
    ///
    /// # Errors
    /// When `fd` is something else.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, SocketError> {
        use std::os::fd::AsRawFd;
        let number = fd.as_raw_fd();
        let wrong = |found: &str| SocketError::Descriptor { fd: number, found: found.into() };
        match socket_acceptconn(&fd) {
            Err(_) => return Err(wrong("no socket, or not open")),
            Ok(false) => return Err(wrong("a socket that does not listen")),
            Ok(true) => {}
        }
        let path = unix_name(fd.as_fd(), End::Near).unwrap_or_default();
        Ok(Self { listener: fd.into(), path, made: None })
    }

    /// The socket's path; empty when it has none.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some((path, inode)) = &self.made
            && fs::symlink_metadata(path).is_ok_and(|metadata| metadata.ino() == *inode)
        {
            let _ = fs::remove_file(path);
        }
    }
}

#[derive(Clone, Copy)]
enum End {
    Near,
    Far,
}

/// The process at the other end of the connection over the socket at `path`. The framework keeps the
/// connection to itself, so it is found among our own descriptors: a connected socket with that name at
/// one of its ends.
pub(crate) fn peer_pid(path: &str) -> Option<u32> {
    let ours = fs::read_dir("/proc/self/fd").ok()?;
    for entry in ours.flatten() {
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse::<RawFd>().ok()) else {
            continue;
        };
        let is_socket = fs::read_link(entry.path())
            .is_ok_and(|target| target.to_string_lossy().starts_with("socket:"));
        if !is_socket {
            continue;
        }
        let fd = borrow(number);
        let named = |end| unix_name(fd, end).as_deref() == Some(path);
        if socket_acceptconn(fd) == Ok(false)
            && (named(End::Near) || named(End::Far))
            && let Ok(peer) = socket_peercred(fd)
        {
            let pid = peer.pid.as_raw_nonzero().get();
            return u32::try_from(pid).ok().filter(|&pid| pid != std::process::id());
        }
    }
    None
}

fn unix_name(fd: BorrowedFd<'_>, end: End) -> Option<String> {
    let name = match end {
        End::Near => rustix::net::getsockname(fd).ok()?,
        End::Far => rustix::net::getpeername(fd).ok()??,
    };
    let address = SocketAddrUnix::try_from(name).ok()?;
    str::from_utf8(address.path_bytes()?).ok().map(str::to_owned)
}
