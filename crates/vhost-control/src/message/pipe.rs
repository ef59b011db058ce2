//! A pipe as call descriptor.
//!
//! vhost-user does not say what kind of file a call descriptor is. A pipe can be one where a front end has no eventfd; of
//! the front ends that were tried, none has one (User Mode Linux has a socket: [`channel`](super::channel)). A pipe has a
//! lock, which a writer holds while it copies from its memory; a page fault there can last without a limit. So this
//! process never opens, writes or closes a pipe. The worker writes to our own eventfd, and a helper process for each such
//! ring forwards the signals to the pipe ([`foreign_files`]).
//!
//! A writer of the pipe can keep such a helper in the kernel without a limit. Then only its ring has no notifications.
//! A connection has few of these helpers. A thread waits for each, and until then the connection's closing thread
//! ([`worker::custody`]) stays too. Those are counted over all connections.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::Builder;
use std::time::{Duration, Instant};

use confine::Role;
use foreign_files::Helper;
use log_limit::LogLimit;
use rustix::event::{EventfdFlags, eventfd};
use worker::{Custody, Foreign};

/// Longest wait until a helper has opened its pipe, and until an earlier helper has ended.
/// The helper of a test is the test program, which starts slowly.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 5000 } else { 500 });

/// The pipes of one connection.
#[derive(Debug)]
pub struct Pipes {
    /// By ring.
    forwarders: Vec<Option<Forwarder>>,
    /// The thread of each helper holds a reference.
    alive: Arc<()>,
    log: Option<Arc<LogLimit>>,
}

impl Pipes {
    /// For a connection with `rings` rings.
    pub fn new(rings: usize, log: Option<Arc<LogLimit>>) -> Self {
        Self { forwarders: (0..rings).map(|_| None).collect(), alive: Arc::default(), log }
    }

    /// Starts forwarding signals to `pipe`. Returns also the eventfd that takes its place.
    ///
    /// # Errors
    /// When the pipe cannot be opened for writing, too many helpers are stuck, or the system has no descriptor, thread or
    /// process left.
    pub fn forward(
        &self,
        pipe: Foreign,
        custody: &Arc<Custody>,
    ) -> io::Result<(Forwarder, OwnedFd)> {
        // For each ring, one that is ending and the one that replaces it.
        let max = 2 * self.forwarders.len();
        let until = Instant::now() + PATIENCE;
        // The count includes our own reference.
        while Arc::strong_count(&self.alive) > max {
            if Instant::now() > until {
                let text = format!("the processes for {max} pipes before it are stuck");
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let waits = (Arc::clone(&self.alive), Arc::clone(custody));
        Forwarder::start(pipe, waits, self.log.clone())
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
    /// The helper ends when it is closed.
    _socket: OwnedFd,
    ended: Arc<AtomicBool>,
}

impl Forwarder {
    /// `waits` counts the thread that waits for the helper.
    fn start(
        pipe: Foreign,
        waits: (Arc<()>, Arc<Custody>),
        log: Option<Arc<LogLimit>>,
    ) -> io::Result<(Self, OwnedFd)> {
        let signalled = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let (started, is_started) = sync_channel(1);
        let ended = Arc::new(AtomicBool::new(false));
        let is_wanted = Arc::clone(&ended);
        let copy = signalled.try_clone()?;
        // Never joined: the helper may never end.
        Builder::new().name("pipe".into()).spawn(move || {
            confine::narrow(Role::Closer);
            let helper = Helper::forward(signalled.as_fd(), pipe.as_fd(), PATIENCE);
            drop(signalled);
            let mut helper = match helper {
                Ok(helper) => helper,
                Err((helper, error)) => {
                    let _ = started.send(Err(error));
                    let _ = helper.map(Helper::dismiss);
                    drop((pipe, waits));
                    return;
                }
            };
            // The helper has it, so ours is not the last copy.
            pipe.mark_harmless();
            drop(pipe);
            let _ = started.send(helper.take_socket());
            let ended = helper.wait();
            if !is_wanted.load(Ordering::Relaxed)
                && let (Some(log), Ok(())) = (log, ended)
            {
                log_limit::warn!(
                    log,
                    "the process that writes to a pipe for the guest ended: the ring with this pipe as call \
                     descriptor has no notifications until the front end sets it again"
                );
            }
            drop(waits);
        })?;
        let socket = is_started.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
        Ok((Self { _socket: socket, ended }, copy))
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::io::Read as _;

    /// This test program is the helper too.
    pub fn prepare() {
        let arguments = ["--exact", "message::pipe::tests::serves_as_a_helper", "--nocapture"];
        let path = std::env::current_exe().unwrap();
        foreign_files::register(&foreign_files::Program::other(path, &arguments)).unwrap();
    }

    /// Not a test by itself: the standard input of a helper is a socket.
    #[test]
    fn serves_as_a_helper() {
        if rustix::net::sockopt::socket_type(io::stdin()).is_ok() {
            foreign_files::run().unwrap();
        }
    }

    #[test]
    fn a_signal_reaches_the_pipe_and_a_full_one_holds_nobody_up() {
        prepare();
        let custody = Custody::new(&Arc::default()).unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let (forwarder, call) =
            Pipes::new(1, None).forward(custody.take(writer.into()), &custody).unwrap();
        // More than a pipe holds.
        for _ in 0..20_000 {
            rustix::io::write(&call, &1_u64.to_ne_bytes()).unwrap();
        }
        let mut signal = [0; 8];
        reader.read_exact(&mut signal).unwrap();
        assert_eq!(u64::from_ne_bytes(signal), 1);
        drop(forwarder);
        // Its helper closes the last write end.
        reader.read_to_end(&mut Vec::new()).unwrap();
    }

    #[test]
    fn a_connection_has_few_helpers_for_pipes() {
        prepare();
        let closers = Arc::default();
        let custody = Custody::new(&closers).unwrap();
        let pipes = Pipes::new(1, None);
        let readers: Vec<_> = (0..3).map(|_| io::pipe().unwrap()).collect();
        let forward =
            |n: usize| pipes.forward(custody.take(readers[n].1.try_clone()?.into()), &custody);
        let (first, _second) = (forward(0).unwrap(), forward(1).unwrap());
        assert_eq!(forward(2).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(first);
        let _third = forward(2).unwrap();
        drop(custody);
        assert_eq!(closers.load(Ordering::Relaxed), 1, "counted as long as such a helper lives");
    }
}
