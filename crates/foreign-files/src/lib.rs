//! Calls to the files of a front end that can block for ever, made in a process of their own.
//!
//! Some calls wait in the kernel where no signal reaches them: `open`, `write` and the last `close` of a pipe while a
//! writer holds its lock, `statfs` of a FUSE file. A thread in such a call never ends, so its process never
//! ends either, and all descriptors of that process stay open: locks, taps, sockets. So these calls are made in *helper
//! processes*. A helper has the front end's files and a socket to the daemon, and nothing else of the daemon's. When it
//! hangs, the daemon goes on and can end; the helper ends when its call returns.
//!
//! A helper is the daemon's own executable, started again with [`ARGUMENT`]. The *starter* starts it: a process of the same
//! executable, which the daemon starts first of all ([`register`]), and which does nothing else. So no thread of the daemon
//! needs to execute a program later, and none of them may.
//!
//! - The daemon must not make the last `close` of such a file either. So it sends a descriptor to the helper first, then
//!   closes its own copy, then asks the helper to close it ([`Closer`]).
//! - A helper notices the daemon's end by the hang-up of its socket, also after SIGKILL. It waits [`GRACE`] before it
//!   closes its files, because the kernel closes the daemon's copies one after the other.
//! - Starter and helpers have their own process group, so CTRL-C ends the daemon first. `ps` shows them as `ringscoped-fork`
//!   and `ringscoped-file`.
//! - A helper holds one end of a socket as its standard output. Some thread of the daemon waits until that is closed, so
//!   the daemon counts those that hang. The starter leaves no zombies.
//!
//! The state of a device that moves with its guest goes through a front end's pipe, so a helper copies it ([`Copying`]).
//!
//! A helper may also see what the daemon must not: how the process at the other end of a socket maps its memory
//! ([`Helper::maps`]). The daemon gets an open file, and only that of the process that the kernel names for this socket.
//!
//! What is left:
//!
//! - The kernel closes the files of messages that the daemon has not read, or has read in the last milliseconds, when it
//!   is killed (SIGKILL). When it ends in order, it gives them to a helper first.
//! - A FUSE file system is asked at each `close` of a file, not at the last one only (`fuse_flush`). The daemon has to
//!   close its copy, so a FUSE server that does not answer that delays the daemon's end, not its work. The call returns
//!   when that server is killed, or through `/sys/fs/fuse/connections`. Only a process that receives all messages of
//!   all front ends could change that.

mod closer;
mod copying;
mod helper;
mod message;
mod program;
mod starter;
mod sys;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use closer::Closer;
pub use copying::Copying;
pub use helper::run;
pub use program::{Helper, Program, register};

/// The first argument that makes the daemon's executable a helper ([`run`]).
pub const ARGUMENT: &str = "--foreign-files";
/// Time from the daemon's end until a helper closes its files.
const GRACE: Duration = Duration::from_millis(100);

/// What a helper does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Task {
    /// Starts helpers.
    Start = b'p',
    /// Opens `/proc/PID/maps` of the process at the other end of a socket.
    Maps = b'm',
    /// Closes files.
    Close = b'c',
    /// Forwards an eventfd's signals to a pipe.
    Forward = b'f',
    /// Finds out a file system's number.
    FileSystem = b's',
    /// Copies one file to another one.
    Copy = b'd',
}

impl Task {
    const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            b'p' => Self::Start,
            b'm' => Self::Maps,
            b'c' => Self::Close,
            b'f' => Self::Forward,
            b's' => Self::FileSystem,
            b'd' => Self::Copy,
            _ => return None,
        })
    }
}
