//! Connections, one after the other.
//!
//! The calling thread waits for three things at once: a front end, the end of the one that is there, and
//! being asked to stop. The framework's own thread handles the messages meanwhile.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::device::{Device, Session};
use crate::sharing::PrivateMemory;
use crate::socket::{Endpoint, Server};
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

/// Serves front ends at `endpoint` until `stop` becomes readable.
///
/// # Errors
/// When the guest's memory is not shared, or the system refuses what serving needs.
pub fn serve(
    endpoint: &Endpoint,
    device: &Arc<Device>,
    stop: BorrowedFd<'_>,
) -> Result<(), ServeError> {
    match endpoint {
        Endpoint::Server(server) => serve_as_server(server, device, stop),
        Endpoint::Client(path) => serve_as_client(path, device, stop),
    }
}

fn serve_as_server(
    server: &Server,
    device: &Arc<Device>,
    stop: BorrowedFd<'_>,
) -> Result<(), ServeError> {
    let clone = server.listener.try_clone().map_err(system("cloning the listener"))?;
    let mut listener = Listener::from(clone);
    loop {
        if wait([stop, server.listener.as_fd()], None)?[0] {
            return Ok(());
        }
        let mut connection = Connection::new(device, server.path())?;
        if let Err(error) = connection.daemon.start(&mut listener) {
            log::warn!("a front end could not be accepted: {error}");
            continue;
        }
        if connection.run(stop, Some(server))? {
            return Ok(());
        }
    }
}

fn serve_as_client(
    path: &Path,
    device: &Arc<Device>,
    stop: BorrowedFd<'_>,
) -> Result<(), ServeError> {
    let name = path.to_string_lossy();
    let mut is_waiting = false;
    loop {
        let mut connection = Connection::new(device, &name)?;
        match connection.daemon.start_client(&name) {
            Ok(()) => {
                is_waiting = false;
                if connection.run(stop, None)? {
                    return Ok(());
                }
            }
            Err(error) => {
                if !is_waiting {
                    log::info!("waiting for a front end to listen on {name} ({error})");
                }
                is_waiting = true;
            }
        }
        if wait([stop], Some(RETRY))?[0] {
            return Ok(());
        }
    }
}

/// A connection with a front end, or one about to be made.
struct Connection {
    session: Arc<Session>,
    daemon: Daemon,
}

impl Connection {
    fn new(device: &Arc<Device>, path: &str) -> Result<Self, ServeError> {
        let session = Arc::new(Session::new(device, path.to_owned()));
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let daemon = with_rings(session.rings(), || {
            Daemon::new("vhost-user".into(), Arc::clone(&session), memory)
        });
        let daemon = daemon.map_err(|error| ServeError::System {
            step: "setting up a connection",
            source: io::Error::other(error.to_string()),
        })?;
        Ok(Self { session, daemon })
    }

    /// Stays with the front end until it goes, or `stop` becomes readable. Returns whether it was `stop`.
    fn run(self, stop: BorrowedFd<'_>, server: Option<&Server>) -> Result<bool, ServeError> {
        log::info!("a front end is connected");
        let Self { session, mut daemon } = self;
        let shutdown = daemon.shutdown_handle();
        let ended = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| ServeError::System {
            step: "making an eventfd",
            source: error.into(),
        })?;
        let mut stopped = false;
        let result = thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let result = daemon.wait();
                let _ = rustix::io::write(&ended, &1_u64.to_ne_bytes());
                result
            });
            loop {
                let ready = match server {
                    Some(server) => wait([stop, ended.as_fd(), server.listener.as_fd()], None),
                    None => wait([stop, ended.as_fd(), ended.as_fd()], None),
                };
                match ready {
                    Ok([false, false, true]) => server.into_iter().for_each(refuse_second),
                    Ok([true, ..]) | Err(_) => {
                        stopped = true;
                        shutdown.iter().for_each(|handle| handle.shutdown());
                        break;
                    }
                    Ok(_) => break,
                }
            }
            waiter.join()
        });
        session.end();
        match result {
            Ok(Ok(())) => log::info!("the front end is gone"),
            Ok(Err(error)) if is_goodbye(&error) => log::info!("the front end is gone"),
            Ok(Err(error)) => log::warn!("the connection to the front end ended: {error}"),
            Err(_) => log::error!("the connection's thread ended by a fault of its own"),
        }
        match session.refused() {
            Some(private) => Err(private.into()),
            None => Ok(stopped),
        }
    }
}

/// One device has one front end.
fn refuse_second(server: &Server) {
    if server.listener.accept().is_ok() {
        log::warn!("a second front end was refused: the first one is still connected");
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
