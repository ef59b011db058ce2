//! The process that starts helpers: the daemon's threads may not execute programs.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::net::RecvFlags;

use crate::message::{pair, receive, send};
use crate::{Task, sys};

/// The starter, as the daemon sees it. It ends when the daemon does.
#[derive(Debug)]
pub struct Starter(OwnedFd);

impl Starter {
    /// Starts it: this program with these arguments.
    pub fn start(program: &Path, arguments: &[OsString]) -> io::Result<Self> {
        let (ours, theirs) = pair()?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir("/").process_group(0);
        // A reader of the daemon's output sees its end when the daemon ends, even if a helper still runs.
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        // Nobody waits for it: it ends after the daemon.
        command.spawn()?;
        send(&ours, &[Task::Start as u8], &[])?;
        Ok(Self(ours))
    }

    /// Has a helper started. Returns the socket to it, and another one that ends when it does. If it could not be started, both have
    /// ended.
    pub fn helper(&self) -> io::Result<(OwnedFd, UnixStream)> {
        let (ours, theirs) = pair()?;
        let (alive, held) = UnixStream::pair()?;
        send(&self.0, &[Task::Start as u8], &[theirs.as_fd(), held.as_fd()])?;
        Ok((ours, alive))
    }
}

/// Serves as the starter: starts a helper for each message, until the daemon's end.
pub fn run(socket: BorrowedFd<'_>) -> io::Result<()> {
    // The kernel takes the place of a parent that waits.
    sys::leave_no_zombies()?;
    loop {
        let mut message = receive(&socket, RecvFlags::empty())?;
        if message.bytes().is_empty() {
            return Ok(());
        }
        let (Some(alive), Some(theirs)) = (message.files.pop(), message.files.pop()) else {
            continue;
        };
        // Also when its file was replaced since.
        let mut command = Command::new("/proc/self/exe");
        command.args(std::env::args_os().skip(1)).process_group(0);
        command.stdin(theirs).stdout(alive).stderr(Stdio::null());
        // The daemon sees an end of the socket.
        let _ = command.spawn();
    }
}
