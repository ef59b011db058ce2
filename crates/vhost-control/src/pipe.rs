//! A pipe as call descriptor.
//!
//! User Mode Linux gives the write end of a pipe in place of an eventfd, because an eventfd sends no SIGIO
//! (arch/um/drivers/virtio_uml.c, `vu_setup_vq_call_fd`). A pipe has a lock, which a writer keeps while it copies from
//! its memory, for as long as a page of that takes to come. So no worker touches a pipe. The worker writes an eventfd
//! of ours, and a thread for each such ring passes that on.
//!
//! The thread opens the pipe again: then `O_NONBLOCK` is ours alone.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::Builder;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{Mode, OFlags};
use worker::Foreign;

use crate::descriptor;

/// The longest wait for a pipe that is opened.
const PATIENCE: Duration = Duration::from_millis(100);

/// Passes the signals of one ring on to a pipe, until it is dropped.
#[derive(Debug)]
pub struct Forwarder {
    signalled: Arc<OwnedFd>,
    ended: Arc<AtomicBool>,
}

impl Forwarder {
    /// Begins. Returns also the eventfd that takes the pipe's place.
    ///
    /// # Errors
    /// When the pipe cannot be opened for writing, or the system has no descriptor or thread left.
    pub fn start(pipe: Foreign) -> io::Result<(Self, OwnedFd)> {
        let signalled = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let copy = signalled.try_clone()?;
        let ended = Arc::new(AtomicBool::new(false));
        let (opened, is_open) = sync_channel(1);
        let (inside, until) = (Arc::clone(&signalled), Arc::clone(&ended));
        // Nobody waits for this thread: even to open a pipe takes its lock.
        Builder::new().name("pipe".into()).spawn(move || {
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let ours = rustix::fs::open(descriptor::path(&pipe), flags, Mode::empty());
            drop(pipe);
            match ours {
                Ok(ours) => {
                    let _ = opened.send(Ok(()));
                    forward(&inside, &ours, &until);
                }
                Err(error) => {
                    let _ = opened.send(Err(error.into()));
                }
            }
        })?;
        let forwarder = Self { signalled, ended };
        let timeout = |_| Err(io::ErrorKind::TimedOut.into());
        is_open.recv_timeout(PATIENCE).unwrap_or_else(timeout).map(|()| (forwarder, copy))
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = rustix::io::write(&self.signalled, &1_u64.to_ne_bytes());
    }
}

fn forward(signalled: &OwnedFd, pipe: &OwnedFd, ended: &AtomicBool) {
    let mut count = [0; 8];
    loop {
        let mut polled = [PollFd::new(signalled, PollFlags::IN)];
        let _ = poll(&mut polled, None);
        let signals = rustix::io::read(signalled, &mut count);
        if ended.load(Ordering::Relaxed) {
            return;
        }
        if signals.is_ok() {
            // Who reads wants 8 bytes a signal. A full pipe has a signal in it; any other failure is the reader's own.
            let _ = rustix::io::write(pipe, &1_u64.to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use worker::Custody;

    #[test]
    fn a_signal_reaches_the_pipe_and_a_full_one_holds_nobody_up() {
        let custody = Custody::new(&Arc::default()).unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let (forwarder, call) = Forwarder::start(custody.take(writer.into())).unwrap();
        // More than a pipe holds.
        for _ in 0..20_000 {
            rustix::io::write(&call, &1_u64.to_ne_bytes()).unwrap();
        }
        let mut signal = [0; 8];
        reader.read_exact(&mut signal).unwrap();
        assert_eq!(u64::from_ne_bytes(signal), 1);
        drop(forwarder);
        // Its thread closes the last write end.
        reader.read_to_end(&mut Vec::new()).unwrap();
    }
}
