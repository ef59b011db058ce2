//! The vhost-user socket: made, found, and removed at the end.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use host_files::socket::is_listened_at;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Uid};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::geteuid;

/// The place where front ends connect.
#[derive(Debug)]
pub enum Endpoint {
    /// We listen; front ends come.
    Server(Server),
    /// The front end listens here. We connect, and connect again when the connection ends.
    Client(PathBuf),
    /// A socket that is connected to a front end.
    Connected(UnixStream),
    /// Nothing but the connection that the daemon before had.
    Nothing,
}

/// A listening socket. Its file is removed when dropped, if we made it.
#[derive(Debug)]
pub struct Server {
    pub(crate) listener: UnixListener,
    /// Path and inode of the file, if we made it, or the daemon that we go on from.
    made: Option<(PathBuf, u64)>,
    /// Another daemon has it.
    is_left: AtomicBool,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process listens there.
    #[error(
        "{path} is in use: another process listens on it; end that one, or choose another --socket-path"
    )]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// The directory does not exist.
    #[error(
        "cannot listen on {path}: there is no directory {}; make it first, or choose another --socket-path",
        path.parent().unwrap_or(path).display()
    )]
    NoDirectory {
        /// The socket's path.
        path: PathBuf,
    },
    /// Another kind of file has that name.
    #[error("{path} exists and is not a socket; remove it, or choose another --socket-path")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The descriptor is not a unix socket.
    #[error(
        "file descriptor {fd} of --fd is {found}; expected a unix stream socket, listening or connected"
    )]
    Descriptor {
        /// The descriptor's number.
        fd: RawFd,
        /// What it is.
        found: String,
    },
    /// The service manager handed over something else than a unix socket.
    #[error(
        "file descriptor {fd} of the service manager (LISTEN_FDS) is {found}; expected a unix stream socket that \
         listens at a guest's --socket-path: see ListenStream= of its .socket unit"
    )]
    Activation {
        /// The descriptor's number.
        fd: RawFd,
        /// What it is.
        found: String,
    },
    /// The socket stays the daemon's.
    #[error("cannot give {path} to user {owner}: {source}; that needs root, or CAP_CHOWN")]
    Owner {
        /// The path.
        path: PathBuf,
        /// The user.
        owner: u32,
        /// What the system answered.
        source: io::Error,
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
    /// Listens at `path`. Replaces a socket file on which no process listens, as a killed daemon leaves it. The file becomes that
    /// of the user `owner`, if there is one.
    ///
    /// # Errors
    /// When the path is in use or is not a socket, or the system refuses.
    pub fn bind(path: &Path, owner: Option<u32>) -> Result<Self, SocketError> {
        let system = |source| SocketError::System { path: path.into(), source };
        if let Ok(metadata) = fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(SocketError::NotASocket { path: path.into() });
            }
            if is_listened_at(path).map_err(system)? {
                return Err(SocketError::InUse { path: path.into() });
            }
            log::warn!(
                "{} is replaced: it was left by a daemon that did not end in order",
                path.display()
            );
            fs::remove_file(path).map_err(system)?;
        }
        let listener = UnixListener::bind(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => SocketError::NoDirectory { path: path.into() },
            _ => system(source),
        })?;
        let inode = fs::symlink_metadata(path).map_err(system)?.ino();
        let server =
            Self { listener, made: Some((path.into(), inode)), is_left: AtomicBool::new(false) };
        if let Some(owner) = owner {
            give(path, owner).map_err(|source| SocketError::Owner {
                path: path.into(),
                owner,
                source,
            })?;
        }
        Ok(server)
    }

    /// The socket at `path` on which another daemon listens, which has it until [`set_left`](Self::set_left).
    ///
    /// # Errors
    /// When it cannot be found there.
    pub fn shared(listener: OwnedFd, path: &Path) -> Result<Self, SocketError> {
        let system = |source| SocketError::System { path: path.into(), source };
        let inode = fs::symlink_metadata(path).map_err(system)?.ino();
        let (made, is_left) = (Some((path.into(), inode)), AtomicBool::new(true));
        Ok(Self { listener: listener.into(), made, is_left })
    }

    /// Another descriptor of the socket, for another daemon.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }

    /// Whether another daemon has the socket from now on. Its file is not removed then.
    pub(crate) fn set_left(&self, is_left: bool) {
        self.is_left.store(is_left, Ordering::Relaxed);
    }

    /// Whether this process made the socket, and no other one has it.
    pub(crate) fn is_ours(&self) -> bool {
        self.made.is_some() && !self.is_left.load(Ordering::Relaxed)
    }
}

/// Gives the socket of this process at `path` to another user. Another file that has come to its place meanwhile is not touched.
fn give(path: &Path, owner: u32) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let found = rustix::fs::fstat(&file)?;
    let is_socket = FileType::from_raw_mode(found.st_mode) == FileType::Socket;
    if !is_socket || found.st_uid != geteuid().as_raw() {
        return Err(io::Error::other("another file has taken its place"));
    }
    let owner = Some(Uid::from_raw(owner));
    Ok(rustix::fs::chownat(&file, "", owner, None, AtFlags::EMPTY_PATH)?)
}

impl Endpoint {
    /// Takes over a socket that the parent process made: it listens for front ends, or it is connected to one.
    ///
    /// # Errors
    /// When `fd` is something else.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, SocketError> {
        let number = fd.as_raw_fd();
        let wrong = |found: &str| SocketError::Descriptor { fd: number, found: found.into() };
        match socket_domain(&fd) {
            Err(_) => return Err(wrong("not a socket")),
            Ok(domain) if domain != AddressFamily::UNIX => return Err(wrong("not a unix socket")),
            Ok(_) => {}
        }
        if socket_type(&fd) != Ok(SocketType::STREAM) {
            return Err(wrong("a unix socket of another type"));
        }
        if socket_acceptconn(&fd) == Ok(true) {
            return Ok(Self::Server(Server {
                listener: fd.into(),
                made: None,
                is_left: AtomicBool::new(false),
            }));
        }
        let stream = UnixStream::from(fd);
        if stream.peer_addr().is_err() || stream.set_nonblocking(false).is_err() {
            return Err(wrong("a socket that neither listens nor is connected"));
        }
        Ok(Self::Connected(stream))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.is_ours()
            && let Some((path, inode)) = &self.made
            && fs::symlink_metadata(path).is_ok_and(|metadata| metadata.ino() == *inode)
        {
            let _ = fs::remove_file(path);
        }
    }
}
