//! What a helper process does.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use host_files::socket::Peer;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, fstatfs};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::closer::CLOSE;
use crate::message::{answer, receive, send};
use crate::{GRACE, Task, copying, starter, sys};

/// The name of a helper's process.
const NAME: &CStr = c"ringscoped-file";
/// The name of the starter's process.
const STARTER_NAME: &CStr = c"ringscoped-fork";

/// Serves as a helper. The standard input is the socket to the daemon. Returns when the daemon has closed its end.
///
/// # Errors
/// When the standard input is no such socket: the executable was not started by a daemon.
pub fn run() -> io::Result<()> {
    sys::close_inherited()?;
    let _ = rustix::thread::set_name(NAME);
    let stdin = io::stdin();
    let socket = stdin.as_fd();
    let first = receive(&socket, RecvFlags::empty())?;
    let Some(task) = first.bytes().first().and_then(|byte| Task::from_byte(*byte)) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    if task == Task::Start {
        let _ = rustix::thread::set_name(STARTER_NAME);
        return starter::run(socket);
    }
    let files = first.files;
    let result = match (task, files.as_slice()) {
        (Task::Close, _) => close(socket),
        (Task::Forward, [eventfd, pipe]) => forward(socket, eventfd, pipe),
        (Task::FileSystem, [file]) => file_system(socket, file),
        (Task::Maps, [peer]) => return maps(socket, peer),
        // Without the pause below: the front end reads its pipe until the helper has closed it.
        (Task::Copy, [from, to]) => return copying::serve(socket, from, to),
        _ => Err(io::ErrorKind::InvalidData.into()),
    };
    if !files.is_empty() {
        // The daemon may be ending, and its copies are closed first.
        std::thread::sleep(GRACE);
    }
    drop(files);
    result
}

fn close(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut messages = std::collections::VecDeque::new();
    loop {
        let message = receive(&socket, RecvFlags::empty())?;
        if message.bytes().is_empty() {
            std::thread::sleep(GRACE);
            return Ok(());
        }
        if message.bytes() == CLOSE {
            drop(messages.pop_front());
            answer(socket, 0)?;
        } else {
            messages.push_back(message.files);
        }
    }
}

fn forward(socket: BorrowedFd<'_>, eventfd: &OwnedFd, pipe: &OwnedFd) -> io::Result<()> {
    // Opened again, so that the front end cannot clear the O_NONBLOCK of this one.
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let ours: File = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(ours) => ours.into(),
        Err(error) => return answer(socket, u64::from(error.raw_os_error().unsigned_abs())),
    };
    answer(socket, 0)?;
    let mut count = [0; 8];
    loop {
        let mut polled = [
            PollFd::new(eventfd, PollFlags::IN),
            PollFd::from_borrowed_fd(socket, PollFlags::empty()),
        ];
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !polled[1].revents().is_empty() {
            return Ok(());
        }
        if rustix::io::read(eventfd, &mut count).is_ok() {
            // The reader expects 8 bytes per signal. A full pipe has a signal in it already; any other failure is the
            // reader's fault.
            let _ = rustix::io::write(&ours, &1_u64.to_ne_bytes());
        }
    }
}

fn file_system(socket: BorrowedFd<'_>, file: &OwnedFd) -> io::Result<()> {
    let kind = fstatfs(file)?.f_type;
    #[expect(clippy::cast_sign_loss, reason = "a number of 32 bits")]
    let number = (kind as u64) & 0xffff_ffff;
    answer(socket, number)
}

fn maps(socket: BorrowedFd<'_>, peer: &OwnedFd) -> io::Result<()> {
    let process = Peer::of(peer)?.process.ok_or(io::ErrorKind::NotFound)?;
    let file = File::open(format!("/proc/{process}/maps"))?;
    send(&socket, &0_u64.to_ne_bytes(), &[file.as_fd()])
}
