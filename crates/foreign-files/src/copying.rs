//! A helper that copies a file: one of both is a front end's pipe, at which a call may wait without a limit.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat, ftruncate};
use rustix::io::{Errno, pread, pwrite};
use rustix::pipe::{SpliceFlags, splice};

use crate::message::{answer, answer_of};

/// Most bytes that are copied.
const MAX: u64 = 64 << 20;
/// Bytes that are copied at once: as many as a pipe has, if nobody says otherwise.
const CHUNK: usize = 64 << 10;
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
    let copied = copy(socket, from, to)
        .unwrap_or_else(|error| FAILED | u64::from(error.raw_os_error().unsigned_abs()));
    answer(socket, copied)
}

/// Copies up to the end. If `to` is a file, it gets that length.
fn copy(socket: BorrowedFd<'_>, from: &OwnedFd, to: &OwnedFd) -> Result<u64, Errno> {
    let (is_to_pipe, mut count) = (is_pipe(to)?, 0_u64);
    let mut own = vec![0; CHUNK];
    loop {
        // Between two chunks, so that a front end that sends without an end keeps no helper.
        if is_given_up(socket)? {
            return Err(Errno::CANCELED);
        }
        // A pipe does not wait, whatever the flags of its file are, which the front end shares. Its file is not opened
        // again: it may be another user's.
        let copied = match (is_to_pipe, is_pipe(from)?) {
            (true, _) => splice(from, Some(&mut count), to, None, CHUNK, SpliceFlags::NONBLOCK),
            (false, true) => splice(from, None, to, Some(&mut count), CHUNK, SpliceFlags::NONBLOCK),
            (false, false) => copy_chunk(from, to, &mut own, &mut count),
        };
        match copied {
            Ok(0) => break,
            Ok(_) if count > MAX => return Err(Errno::FBIG),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if is_to_pipe => wait(socket, to, PollFlags::OUT)?,
            Err(Errno::AGAIN) => wait(socket, from, PollFlags::IN)?,
            Err(error) => return Err(error),
        }
    }
    if !is_to_pipe {
        ftruncate(to, count)?;
    }
    Ok(count)
}

/// Copies from one file to another one.
fn copy_chunk(
    from: &OwnedFd,
    to: &OwnedFd,
    buffer: &mut [u8],
    count: &mut u64,
) -> Result<usize, Errno> {
    let len = pread(from, &mut *buffer, *count)?;
    let written = if len == 0 { 0 } else { pwrite(to, &buffer[..len], *count)? };
    *count += written as u64;
    Ok(written)
}

fn is_pipe(file: &OwnedFd) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::Fifo)
}

/// Whether the daemon has closed its end of the socket.
fn is_given_up(socket: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut polled = [PollFd::from_borrowed_fd(socket, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut polled, Some(&now)) {
        Ok(_) | Err(Errno::INTR) => Ok(!polled[0].revents().is_empty()),
        Err(error) => Err(error),
    }
}

/// Waits until `file` is ready, or the daemon has closed its end of the socket.
fn wait(socket: BorrowedFd<'_>, file: &OwnedFd, ready: PollFlags) -> Result<(), Errno> {
    let mut polled =
        [PollFd::new(file, ready), PollFd::from_borrowed_fd(socket, PollFlags::empty())];
    match poll(&mut polled, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}
