//! A helper that copies a file: one of both is a front end's pipe, at which a call may wait without a limit.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, ftruncate};
use rustix::io::Errno;

use crate::message::{answer, answer_of};

/// Most bytes that are copied.
const MAX: u64 = 64 << 20;
/// In an answer: the copy failed, and the other bits are the error's number.
const FAILED: u64 = 1 << 63;

/// A copy that is under way. When this is dropped, the helper gives up.
#[derive(Debug)]
pub struct Copying(OwnedFd);

impl Copying {
    /// By the helper at the other end of this socket.
    pub(crate) const fn by(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Waits for the end. Returns the number of bytes.
    ///
    /// # Errors
    /// What a file answered, [`io::ErrorKind::FileTooLarge`] if there was no end, and after `patience`
    /// [`io::ErrorKind::TimedOut`].
    pub fn wait(&self, patience: Duration) -> io::Result<u64> {
        let answer = answer_of(self.0.as_fd(), patience)?;
        if answer & FAILED == 0 {
            return Ok(answer);
        }
        let number = i32::try_from(answer & !FAILED).unwrap_or(i32::MAX);
        Err(io::Error::from_raw_os_error(number))
    }
}

/// What the helper does.
pub fn serve(socket: BorrowedFd<'_>, from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let copied = copy(socket, from, to).unwrap_or_else(|error| {
        // No half of a file is left.
        let _ = ftruncate(to, 0);
        FAILED | u64::from(error.raw_os_error().unsigned_abs())
    });
    answer(socket, copied)
}

/// Copies up to the end. If `to` is a file, it gets that length.
fn copy(socket: BorrowedFd<'_>, from: &OwnedFd, to: &OwnedFd) -> Result<u64, Errno> {
    let (from, to) = (again(from, OFlags::RDONLY)?, again(to, OFlags::WRONLY)?);
    let (mut buffer, mut count) = (vec![0; 64 << 10], 0);
    loop {
        let len = match rustix::io::read(&from, &mut buffer[..]) {
            Ok(0) => break,
            Ok(len) => len,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => {
                wait(socket, &from, PollFlags::IN)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        count += len as u64;
        if count > MAX {
            return Err(Errno::FBIG);
        }
        let mut rest = &buffer[..len];
        while !rest.is_empty() {
            match rustix::io::write(&to, rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait(socket, &to, PollFlags::OUT)?,
                Err(error) => return Err(error),
            }
        }
    }
    match ftruncate(&to, count) {
        // A pipe has no length.
        Err(Errno::INVAL) | Ok(()) => Ok(count),
        Err(error) => Err(error),
    }
}

/// Opens a file again, so that the front end cannot clear the `O_NONBLOCK` of this one.
fn again(file: &OwnedFd, access: OFlags) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::open(path, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

/// Waits until `file` is ready, or the daemon has closed its end of the socket.
fn wait(socket: BorrowedFd<'_>, file: &OwnedFd, ready: PollFlags) -> Result<(), Errno> {
    let mut polled =
        [PollFd::new(file, ready), PollFd::from_borrowed_fd(socket, PollFlags::empty())];
    match poll(&mut polled, None) {
        Ok(_) if !polled[1].revents().is_empty() => Err(Errno::CANCELED),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}
