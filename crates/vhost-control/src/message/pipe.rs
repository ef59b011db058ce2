//! A pipe as call descriptor.
//!
//! User Mode Linux gives the write end of a pipe in place of an eventfd, because an eventfd sends no SIGIO
//! (arch/um/drivers/virtio_uml.c, `vu_setup_vq_call_fd`). A pipe has a lock, which a writer holds while it copies from
//! its memory; a page fault there can last without a limit. So no worker touches a pipe. The worker writes to our own
//! eventfd, and a thread for each such ring forwards the signals to the pipe.
//!
//! The thread opens the pipe again, so that the front end cannot clear its `O_NONBLOCK`.
//!
//! A writer of the pipe can keep such a thread in the kernel without a limit. So a connection has few of these threads.
//! Each holds a descriptor of its connection until it ends, so the connection's closing thread ([`worker::custody`]) stays
//! too, and those are counted over all connections.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::Builder;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{Mode, OFlags};
use worker::Foreign;

use super::descriptor;

/// Longest wait for opening a pipe, and for a thread to end.
const PATIENCE: Duration = Duration::from_millis(100);

/// The pipes of one connection.
#[derive(Debug)]
pub struct Pipes {
    /// By ring.
    forwarders: Vec<Option<Forwarder>>,
    /// Each thread holds a reference.
    alive: Arc<()>,
}

impl Pipes {
    /// For a connection with `rings` rings.
    pub fn new(rings: usize) -> Self {
        Self { forwarders: (0..rings).map(|_| None).collect(), alive: Arc::default() }
    }

    /// Starts forwarding signals to `pipe`. Returns also the eventfd that takes its place.
    ///
    /// # Errors
    /// When the pipe cannot be opened for writing, too many threads are stuck, or the system has no descriptor or thread
    /// left.
    pub fn forward(&self, pipe: Foreign) -> io::Result<(Forwarder, OwnedFd)> {
        // For each ring, one that is ending and the one that replaces it.
        let max = 2 * self.forwarders.len();
        let until = Instant::now() + PATIENCE;
        // The count includes our own reference.
        while Arc::strong_count(&self.alive) > max {
            if Instant::now() > until {
                let text = format!("the threads for {max} pipes before it are stuck");
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Forwarder::start(pipe, Arc::clone(&self.alive))
    }

    /// From now on `ring` has this pipe, or none.
    pub fn set(&mut self, ring: usize, forwarder: Option<Forwarder>) {
        if let Some(slot) = self.forwarders.get_mut(ring) {
            *slot = forwarder;
        }
    }
}

/// Forwards the signals of one ring to a pipe, until it is dropped.
#[derive(Debug)]
pub struct Forwarder {
    signalled: Arc<OwnedFd>,
    ended: Arc<AtomicBool>,
}

impl Forwarder {
    fn start(pipe: Foreign, alive: Arc<()>) -> io::Result<(Self, OwnedFd)> {
        let signalled = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let copy = signalled.try_clone()?;
        let ended = Arc::new(AtomicBool::new(false));
        let (opened, is_open) = sync_channel(1);
        let (inside, until) = (Arc::clone(&signalled), Arc::clone(&ended));
        // Never joined: even opening a pipe takes its lock.
        Builder::new().name("pipe".into()).spawn(move || {
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let ours = rustix::fs::open(descriptor::path(&pipe), flags, Mode::empty());
            match ours {
                Ok(ours) => {
                    let _ = opened.send(Ok(()));
                    forward(&inside, &ours, &until);
                }
                Err(error) => {
                    let _ = opened.send(Err(error.into()));
                }
            }
            drop((pipe, alive));
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
            // The reader expects 8 bytes per signal. A full pipe has a signal in it already; any other failure is the
            // reader's fault.
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
        let (forwarder, call) = Pipes::new(1).forward(custody.take(writer.into())).unwrap();
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

    #[test]
    fn a_connection_has_few_threads_for_pipes() {
        let closers = Arc::default();
        let custody = Custody::new(&closers).unwrap();
        let pipes = Pipes::new(1);
        let readers: Vec<_> = (0..3).map(|_| io::pipe().unwrap()).collect();
        let forward = |n: usize| pipes.forward(custody.take(readers[n].1.try_clone()?.into()));
        let (first, _second) = (forward(0).unwrap(), forward(1).unwrap());
        assert_eq!(forward(2).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(first);
        let _third = forward(2).unwrap();
        drop(custody);
        assert_eq!(closers.load(Ordering::Relaxed), 1, "counted as long as such a thread lives");
    }
}
