//! Connections, one after the other.
//!
//! The calling thread waits for all at once: a front end, what it and the framework say to each other, and
//! being asked to stop. The framework's own thread handles the messages.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use log_limit::LogLimit;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::device::{Device, Session};
use crate::gate::Gate;
use crate::relay::{Passed, Relay};
use crate::sharing::PrivateMemory;
use crate::socket::{Endpoint, Server};
use crate::sys::peer_process;
use crate::vring::with_rings;

/// How often a client tries to reach its server.
const RETRY: Duration = Duration::from_millis(200);

/// Why the daemon cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The guest's memory is not shared.
    #[error("{0}")]
    PrivateMemory(#[from] PrivateMemory),
    /// The system refused.
    #[error("{step} failed: {source}")]
    System {
        /// What was tried.
        step: &'static str,
        /// What the system answered.
        source: io::Error,
    },
}

type Daemon = VhostUserDaemon<Arc<Session>>;

/// Serves front ends at `endpoint` until `stop` becomes readable, or until the one front end of a socket
/// that was handed over connected is gone.
///
/// # Errors
/// When the guest's memory is not shared, or the system refuses what serving needs.
pub fn serve(
    endpoint: Endpoint,
    device: &Arc<Device>,
    stop: BorrowedFd<'_>,
) -> Result<(), ServeError> {
    match endpoint {
        Endpoint::Server(server) => serve_as_server(&server, device, stop),
        Endpoint::Client(path) => serve_as_client(&path, device, stop),
        Endpoint::Connected(stream) => converse(device, stream, stop, None).map(|_| ()),
    }
}

fn serve_as_server(
    server: &Server,
    device: &Arc<Device>,
    stop: BorrowedFd<'_>,
) -> Result<(), ServeError> {
    loop {
        if wait([stop, server.listener.as_fd()], None)?[0] {
            return Ok(());
        }
        match server.listener.accept() {
            Err(error) => {
                log_limit::warn!(device.log, "a front end could not be accepted: {error}");
                // It still waits there: without a pause this would be a busy loop.
                if wait([stop], Some(RETRY))?[0] {
                    return Ok(());
                }
            }
            Ok((stream, _)) => {
                if outlive(&device.log, converse(device, stream, stop, Some(server)))?
                    == End::Stopped
                {
                    return Ok(());
                }
            }
        }
    }
}

fn serve_as_client(
    path: &Path,
    device: &Arc<Device>,
    stop: BorrowedFd<'_>,
) -> Result<(), ServeError> {
    let mut is_waiting = false;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                is_waiting = false;
                if outlive(&device.log, converse(device, stream, stop, None))? == End::Stopped {
                    return Ok(());
                }
            }
            Err(error) => {
                if !is_waiting {
                    let path = path.display();
                    log_limit::info!(
                        device.log,
                        "waiting for a front end to listen on {path} ({error})"
                    );
                }
                is_waiting = true;
            }
        }
        if wait([stop], Some(RETRY))?[0] {
            return Ok(());
        }
    }
}

/// How a conversation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The front end is gone, or was sent away.
    Gone,
    /// The daemon was asked to stop.
    Stopped,
}

/// A front end that the system has no room for now, such as descriptors, is refused; the next one may do.
fn outlive(log: &LogLimit, end: Result<End, ServeError>) -> Result<End, ServeError> {
    match end {
        Err(error @ ServeError::System { .. }) => {
            log_limit::error!(log, "a front end was refused: {error}");
            Ok(End::Gone)
        }
        end => end,
    }
}

/// Stays with a front end until it goes, or `stop` becomes readable.
fn converse(
    device: &Arc<Device>,
    front: UnixStream,
    stop: BorrowedFd<'_>,
    server: Option<&Server>,
) -> Result<End, ServeError> {
    let log = &device.log;
    let peer = peer_process(front.as_fd());
    log_limit::info!(
        log,
        "a front end is connected{}",
        peer.map_or(String::new(), |pid| format!(": process {pid}"))
    );
    let session = Arc::new(Session::new(device, peer));
    let (mut daemon, framework) = connect_framework(&session)?;
    let gate = Gate::new(session.rings(), device.queue_size);
    let mut relay = Relay::new(front, framework, gate).map_err(system("relaying messages"))?;
    let end = relay_until_end(log, &mut relay, stop, server);
    // The framework's thread ends with its socket. The front end is let go last: QEMU takes a ring's used
    // index for its position as soon as the connection is closed, so no worker may touch the ring then.
    let front = relay.into_front();
    let result = daemon.wait();
    session.end();
    drop(front);
    match result {
        Err(error) if !is_goodbye(&error) => {
            log_limit::warn!(log, "the connection to the front end was ended: {error}");
        }
        _ => log_limit::info!(log, "the front end is gone"),
    }
    log.settle();
    match session.refused() {
        Some(private) => Err(private.into()),
        None => end,
    }
}

fn relay_until_end(
    log: &LogLimit,
    relay: &mut Relay,
    stop: BorrowedFd<'_>,
    server: Option<&Server>,
) -> Result<End, ServeError> {
    let mut refused = false;
    loop {
        let [front, framework] = relay.ends();
        let listener = server.map_or(stop, |server| server.listener.as_fd());
        let [stopped, front_said, framework_said, second] =
            wait([stop, front, framework, listener], None)?;
        if stopped {
            return Ok(End::Stopped);
        }
        // Answers first: the last one before the framework hangs up must not be lost.
        let answered = if framework_said { relay.pass_answer() } else { Ok(Passed::Some) };
        let asked = if front_said { relay.pass_request() } else { Ok(Passed::Some) };
        match (answered, asked) {
            (Ok(Passed::Some), Ok(Passed::Some)) => {}
            (Err(error), _) | (_, Err(error)) => {
                log_limit::warn!(log, "the front end is sent away: {error}");
                return Ok(End::Gone);
            }
            _ => return Ok(End::Gone),
        }
        // A front end that has just gone may leave messages to read before its end shows.
        if second && !has_hung_up(relay.ends()[0]) {
            server.into_iter().for_each(|server| refuse_second(log, server, &mut refused));
        }
    }
}

/// A daemon of the framework for one conversation, and our end of its socket.
///
/// It only takes connections that it accepts itself, so one is made for it, in a directory that nobody else
/// can enter.
fn connect_framework(session: &Arc<Session>) -> Result<(Daemon, UnixStream), ServeError> {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let daemon = with_rings(session.rings(), || {
        Daemon::new("vhost-user".into(), Arc::clone(session), memory)
    });
    let refused = |error: DaemonError| io::Error::other(error.to_string());
    let connect = || -> io::Result<(Daemon, UnixStream)> {
        let mut daemon = daemon.map_err(refused)?;
        let directory = tempfile::Builder::new().prefix("ringscope-").tempdir()?;
        let path = directory.path().join("framework.sock");
        let mut listener = Listener::from(UnixListener::bind(&path)?);
        let ours = UnixStream::connect(&path)?;
        daemon.start(&mut listener).map_err(refused)?;
        Ok((daemon, ours))
    };
    connect().map_err(system("setting up a connection"))
}

/// One device has one front end. Said once for each that is served, however many others try.
fn refuse_second(log: &LogLimit, server: &Server, refused: &mut bool) {
    if server.listener.accept().is_ok() && !std::mem::replace(refused, true) {
        log_limit::warn!(log, "a second front end was refused: the first one is still connected");
    }
}

/// A front end that ends closes the socket, at times in the middle of a message.
const fn is_goodbye(error: &DaemonError) -> bool {
    matches!(
        error,
        DaemonError::HandleRequest(
            ProtocolError::Disconnected
                | ProtocolError::PartialMessage
                | ProtocolError::SocketBroken(_)
        )
    )
}

/// Whether the other end of `fd` is closed.
fn has_hung_up(fd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().contains(PollFlags::HUP)
}

/// Waits until one of `fds` is readable, or `limit` has passed. Returns which are.
fn wait<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    limit: Option<Duration>,
) -> Result<[bool; N], ServeError> {
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    loop {
        match poll(&mut polled, limit.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                return Err(ServeError::System { step: "poll", source: error.into() });
            }
            Ok(_) => return Ok(polled.map(|fd| !fd.revents().is_empty())),
        }
    }
}

fn system(step: &'static str) -> impl Fn(io::Error) -> ServeError {
    move |source| ServeError::System { step, source }
}
