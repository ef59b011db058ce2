//! `--control PATH`: a running daemon is asked how it stands, and told other settings.
//!
//! A request is a line with a JSON object, and so is its answer. Requests of one client are answered in their order:
//!
//! ```text
//! -> {"command":"poll","guest":"vm0","value":"always","id":1}
//! <- {"id":1,"ok":{"poll":"always"}}
//! -> {"command":"speed"}
//! <- {"error":"expected one of the commands info, status, ..., found 'speed'"}
//! ```
//!
//! `command` is needed. `guest` is needed if the daemon has several guests and the command is about one. `id` may be anything and
//! comes back. One thread serves all clients ([`clients`]); it asks the workers through their mailboxes, so no burst waits for
//! a client ([`commands`]). [`look`] has what `info` and `status` say. `capture` comes with a file to write ([`capture`]), and
//! `kernel-stages` with programs ([`kernel`]).

mod capture;
pub mod clients;
mod commands;
mod kernel;
mod look;
mod request;
mod subject;

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};

use confine::Role;
use host_files::socket::is_listened_at;
use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

pub use commands::Operator;
pub use subject::{Subject, Way, Ways};

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 16;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another process listens there.
    #[error(
        "{0} is in use: another process listens on it; end that one, or choose another --control"
    )]
    InUse(PathBuf),
    /// Another kind of file has that name.
    #[error("{0} exists and is not a socket; remove it, or choose another --control")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot listen on {path}: {source}; choose another --control")]
    System {
        /// The path.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

/// The control socket and its thread. Dropping it ends the thread and removes the socket.
#[derive(Debug)]
pub struct Control {
    thread: Option<JoinHandle<()>>,
    /// The thread ends when this is closed.
    end: Option<UnixStream>,
    path: PathBuf,
    inode: u64,
}

impl Control {
    /// Serves `operator` at `path`.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn serve(path: &Path, operator: Operator) -> Result<Self, ControlError> {
        let system = |source| ControlError::System { path: path.into(), source };
        remove_stale(path)?;
        let listener = listen_at(path).map_err(system)?;
        let inode = fs::symlink_metadata(path).map_err(system)?.ino();
        let (end, ended) = UnixStream::pair().map_err(system)?;
        let serve = move || {
            confine::enter(Role::Operator);
            clients::serve(&listener, &ended, &operator);
        };
        let thread = Builder::new().name("control".into()).spawn(serve).map_err(system)?;
        Ok(Self { thread: Some(thread), end: Some(end), path: path.into(), inode })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.end = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread of the control socket ended by a fault; see the message above");
        }
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes the socket of a daemon that was killed.
fn remove_stale(path: &Path) -> Result<(), ControlError> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(ControlError::NotASocket(path.into()));
    }
    let system = |source| ControlError::System { path: path.into(), source };
    if is_listened_at(path).map_err(system)? {
        return Err(ControlError::InUse(path.into()));
    }
    fs::remove_file(path).map_err(system)
}

/// A listening socket whose file never had another mode than 0600: the kernel gives the file the mode of the socket
/// (`unix_bind_bsd`, net/unix/af_unix.c).
fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}
