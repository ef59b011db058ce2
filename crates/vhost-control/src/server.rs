//! Connections, one after the other.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use host_files::socket::connect;
use log_limit::LogLimit;
use virtio_net::features::Names;
use worker::Custody;

use crate::conversation::{End, RETRY, converse, hand_over_all, wait};
use crate::device::Device;
use crate::error::{ServeError, system};
use crate::handover::{Heir, Succession};
use crate::message::framework;
use crate::parting::{Inheritance, Surroundings, hand_over_alone};
use crate::socket::{Endpoint, Server};

/// First delay after a front end that made a worker block; it doubles with each further one.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest such delay. A front end that is served for this time resets it.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Delay after a front end that wants more queue pairs than there are: QEMU connects again at once, and logs a line each
/// time.
const UNSERVED_PAUSE: Duration = Duration::from_secs(1);
/// Most threads that still close descriptors of earlier front ends. With more, no further front end is served.
const CLOSERS_MAX: usize = 8;

/// Longest time of sending waiting front ends away at the end, however many keep connecting.
const SEND_AWAY_TIME: Duration = Duration::from_millis(100);

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
    serve_on(endpoint, device, stop, Succession::default())
}

/// The same for a guest that comes from another daemon, or that another daemon may go on with. Then it returns without a word
/// to the front end.
///
/// # Errors
/// As [`serve`].
pub fn serve_on(
    endpoint: Endpoint,
    device: &Arc<Device>,
    stop: BorrowedFd<'_>,
    succession: Succession<'_>,
) -> Result<(), ServeError> {
    let Succession { handover, heir } = succession;
    // Every connection needs one. If none can be made, that is an error at the start.
    framework::connection().map_err(system("making a socket"))?;
    let pause = Duration::ZERO;
    let (server, other) = match endpoint {
        Endpoint::Server(server) => (Some(server), Endpoint::Nothing),
        other => (None, other),
    };
    let around = Surroundings { stop, server: server.as_ref(), handover };
    let mut service =
        Service { device, around, closers: Arc::default(), pause, is_unserved: false };
    if let Some(heir) = heir
        && matches!(service.go_on(heir)?, End::Left | End::Stopped)
    {
        return Ok(());
    }
    if let Some(server) = &server {
        let result = service.serve_as_server(server);
        service.send_away(server);
        return result;
    }
    match other {
        Endpoint::Client(path) => service.serve_as_client(&path),
        Endpoint::Connected(stream) => service.converse(stream).map(|_| ()),
        Endpoint::Server(_) | Endpoint::Nothing => Ok(()),
    }
}

/// Serves the front ends of one device, one after the other.
struct Service<'s> {
    device: &'s Arc<Device>,
    around: Surroundings<'s>,
    /// Number of threads that close descriptors of earlier front ends.
    closers: Arc<AtomicUsize>,
    /// Delay after the last front end that made a worker block.
    pause: Duration,
    /// The last front end wanted more queue pairs than there are, and that was logged.
    is_unserved: bool,
}

impl Service<'_> {
    /// Goes on with a guest of the daemon before. Returns how its conversation ended, or [`End::Gone`] if it has no front end.
    fn go_on(&mut self, heir: Heir) -> Result<End, ServeError> {
        let Heir { front, prepared, start, started } = heir;
        if let Some(front) = front {
            let begun = Arc::default();
            let (connection, inheritance) =
                Inheritance::new(front, prepared, start, started, &begun);
            let (stream, device) = (connection.into(), self.device);
            let end = converse(device, stream, self.around, &self.closers, Some(inheritance));
            let end = log_refusal(&self.device.log, end)?;
            // Whatever ended it, the front end is still the daemon before's.
            let end = if begun.load(Ordering::Relaxed) { end } else { End::Left };
            return Ok(self.note_left(end));
        }
        let _ = prepared.send(Ok(()));
        if start.recv().is_err() {
            return Ok(End::Left);
        }
        if let Some(server) = self.around.server {
            server.set_left(false);
        }
        let _ = started.send(());
        Ok(End::Gone)
    }

    /// If another daemon has the front end, it has the socket, too.
    fn note_left(&self, end: End) -> End {
        if let Some(server) = self.around.server.filter(|_| end == End::Left) {
            server.set_left(true);
        }
        end
    }

    fn serve_as_server(&mut self, server: &Server) -> Result<(), ServeError> {
        loop {
            let awaited = [self.around.stop, self.around.asked(), server.listener.as_fd()];
            let [stopped, asked, arrived] = wait(awaited, None)?;
            if stopped || (asked && hand_over_alone(self.around)) {
                server.set_left(!stopped);
                return Ok(());
            }
            if !arrived {
                continue;
            }
            match server.listener.accept() {
                Err(error) => {
                    log_limit::warn!(self.device.log, "a front end could not be accepted: {error}");
                    // The front end stays in the listener's queue. Without a delay this would be a busy loop.
                    if self.is_stopped_within(RETRY)? {
                        return Ok(());
                    }
                }
                Ok((stream, _)) => {
                    if matches!(self.host(stream)?, End::Stopped | End::Left) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Closes the connections that were not accepted yet: this process's end must not be the last thing that closes them
    /// ([`Custody::close_connection`]). Those of a socket that was handed over are left for the next daemon.
    fn send_away(&self, server: &Server) {
        if !server.is_ours() {
            return;
        }
        let Ok(custody) = Custody::new(&self.closers) else { return };
        let until = Instant::now() + SEND_AWAY_TIME;
        let is_waiting = || wait([server.listener.as_fd()], Some(Duration::ZERO));
        while Instant::now() < until && matches!(is_waiting(), Ok([true])) {
            let Ok((front, _)) = server.listener.accept() else { break };
            custody.close_connection(front);
        }
        hand_over_all(&custody);
    }

    fn serve_as_client(&mut self, path: &Path) -> Result<(), ServeError> {
        let mut is_waiting = false;
        loop {
            match connect(path) {
                Ok(stream) => {
                    is_waiting = false;
                    if matches!(self.host(stream)?, End::Stopped | End::Left) {
                        return Ok(());
                    }
                }
                Err(error) => {
                    if !is_waiting {
                        let path = path.display();
                        log_limit::info!(
                            self.device.log,
                            "waiting for a front end to listen on {path} ({error})"
                        );
                    }
                    is_waiting = true;
                }
            }
            let [stopped, asked] = wait([self.around.stop, self.around.asked()], Some(RETRY))?;
            if stopped || (asked && hand_over_alone(self.around)) {
                return Ok(());
            }
        }
    }

    /// Logs why a front end may have left when it had read what is offered. QEMU says why itself, but only on its side.
    fn explain_unserved(&self) {
        let Device { log, queue_pairs: pairs, features, before, .. } = &**self.device;
        let lacking = before & !features;
        if lacking == 0 {
            log_limit::warn!(
                log,
                "the front end left when it had read the number of queue pairs, {pairs}; if QEMU asks for more queues \
                 than supported, start it with queues={pairs}, or ringscoped with its number as --queue-pairs"
            );
        } else {
            log_limit::warn!(
                log,
                "the front end left when it had read what is offered; its guest has features of the daemon before that are \
                 not offered now: {}; start ringscoped with the same datapath and --features as before, or restart the guest",
                Names(lacking)
            );
        }
    }

    /// Serves a front end until it is gone. After one that made a worker block, the next one has to wait.
    fn host(&mut self, front: UnixStream) -> Result<End, ServeError> {
        let began = Instant::now();
        let end = self.note_left(log_refusal(&self.device.log, self.converse(front))?);
        self.is_unserved &= end == End::Unserved;
        if end == End::Hung {
            self.pause = (2 * self.pause).clamp(PAUSE, PAUSE_MAX);
            log_limit::warn!(
                self.device.log,
                "the next front end is served after {} s, because this one made the worker block",
                self.pause.as_secs()
            );
            if self.is_stopped_within(self.pause)? {
                return Ok(End::Stopped);
            }
        } else if end == End::Unserved {
            if !std::mem::replace(&mut self.is_unserved, true) {
                self.explain_unserved();
            }
            if self.is_stopped_within(UNSERVED_PAUSE)? {
                return Ok(End::Stopped);
            }
        } else if began.elapsed() >= PAUSE_MAX {
            self.pause = Duration::ZERO;
        }
        let mut is_logged = false;
        while self.closers.load(Ordering::Relaxed) > CLOSERS_MAX {
            if !std::mem::replace(&mut is_logged, true) {
                log_limit::warn!(
                    self.device.log,
                    "the next front end has to wait until the descriptors of earlier ones are closed"
                );
            }
            if self.is_stopped_within(RETRY)? {
                return Ok(End::Stopped);
            }
        }
        Ok(end)
    }

    fn converse(&self, front: UnixStream) -> Result<End, ServeError> {
        converse(self.device, front, self.around, &self.closers, None)
    }

    fn is_stopped_within(&self, time: Duration) -> Result<bool, ServeError> {
        Ok(wait([self.around.stop], Some(time))?[0])
    }
}

/// Logs why a front end was refused, such as private memory, or no descriptors left. The next one may be served.
fn log_refusal(log: &LogLimit, end: Result<End, ServeError>) -> Result<End, ServeError> {
    match end {
        Err(error) => {
            log_limit::error!(log, "a front end was refused: {error}");
            Ok(End::Gone)
        }
        Ok(end) => Ok(end),
    }
}
