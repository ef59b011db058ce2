//! One connection, from its beginning to its end.
//!
//! The calling thread waits for all events at once: messages of the front end and answers of the framework, other front
//! ends, a worker that a call descriptor blocks, commands on the control queue, and the request to stop. The framework's
//! thread handles the messages.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use host_files::socket::Peer;
use log_limit::LogLimit;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::Error as ProtocolError;
use vhost_user_backend::Error as DaemonError;
use worker::Custody;

use crate::device::Device;
use crate::error::{ServeError, system};
use crate::message::session::Session;
use crate::message::{Read, Relay, framework};
use crate::parting::{Inheritance, Surroundings, hand_over_front};

/// Delay before the next try to accept or to connect.
pub const RETRY: Duration = Duration::from_millis(200);
/// Longest time from a connection to its first message, if we listen. If we connect, there is no limit: the front end
/// may accept later.
const FIRST_MESSAGE_TIME: Duration = Duration::from_secs(5);

/// Longest delay of the daemon's end by a front end whose descriptors a helper has to close.
const HANDED_OVER_TIME: Duration = Duration::from_millis(500);

/// A front end that stays longer found enough queue pairs.
const UNSERVED_TIME_MAX: Duration = Duration::from_secs(1);

/// How a conversation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The front end is gone, or was disconnected.
    Gone,
    /// It left as one does that wants more queue pairs than there are.
    Unserved,
    /// It was disconnected because it made a worker block.
    Hung,
    /// The daemon was asked to stop.
    Stopped,
    /// Another daemon has the connection.
    Left,
}

/// Stays with a front end until it goes, or `stop` becomes readable. `closers` counts the threads that close its
/// descriptors. `heir`: the daemon before served it.
///
/// # Errors
/// When its memory is not shared, or the system refuses.
pub fn converse(
    device: &Arc<Device>,
    front: UnixStream,
    around: Surroundings<'_>,
    closers: &Arc<AtomicUsize>,
    heir: Option<Inheritance>,
) -> Result<End, ServeError> {
    let (log, began) = (&device.log, Instant::now());
    let peer = Peer::of(&front).ok().and_then(|peer| peer.process);
    log_limit::info!(
        log,
        "a front end is {}{}",
        if heir.is_some() { "taken over" } else { "connected" },
        peer.map_or(String::new(), |pid| format!(": process {pid}"))
    );
    // A front end that is taken over came to the daemon before.
    if let (None, Some(worker)) = (&heir, device.workers.first()) {
        worker.front_end_came();
    }
    let custody = Custody::new(closers).map_err(system("setting up a connection"))?;
    let session = Session::new(device, peer, front.as_fd(), &custody)
        .map_err(system("setting up a connection"))?;
    let session = Arc::new(session);
    let (mut daemon, framework) =
        framework::start(&session).map_err(system("setting up a connection"))?;
    let mut relay =
        Relay::new(front, framework, &session, &custody).map_err(system("relaying messages"))?;
    let mut visit = Visit {
        log,
        around,
        custody: &custody,
        session: &session,
        commands_at: None,
        listen_at: None,
        refused: false,
    };
    let is_ours = heir.is_none_or(|heir| heir.begin(&mut relay, &session, around));
    let end = if is_ours { visit.relay_until_end(&mut relay) } else { Ok(End::Left) };
    if matches!(end, Ok(End::Stopped)) {
        device.workers.iter().for_each(|worker| worker.hurry());
    }
    // The framework's thread ends with its socket. The front end's socket is closed last: as soon as it is closed, QEMU
    // takes a ring's used index for its position, so no worker may change it after that.
    let is_unserved = matches!(end, Ok(End::Gone))
        && relay.wants_other_pairs()
        && began.elapsed() < UNSERVED_TIME_MAX;
    session.leave_connection();
    let front = relay.into_front();
    let result = daemon.wait();
    session.end();
    close(log, &custody, front, end.as_ref().ok());
    match result {
        Err(error) if !is_goodbye(&error) => {
            log_limit::warn!(log, "the connection to the front end was ended: {error}");
        }
        _ if matches!(end, Ok(End::Left)) => {}
        _ => log_limit::info!(log, "the front end is gone"),
    }
    log.settle();
    if matches!(end, Ok(End::Left)) {
        return end;
    }
    device.workers.first().into_iter().for_each(|worker| worker.front_end_left());
    match session.refused() {
        Some(private) => Err(private.into()),
        None if is_unserved => Ok(End::Unserved),
        None => end,
    }
}

/// Closes the connection to the front end, or leaves it to another daemon. If this daemon ends, waits for what is closed.
fn close(log: &LogLimit, custody: &Arc<Custody>, front: UnixStream, end: Option<&End>) {
    if end == Some(&End::Left) {
        custody.leave_connection(front);
    } else {
        custody.close_connection(front);
    }
    if !matches!(end, Some(End::Stopped | End::Left)) {
        return;
    }
    hand_over_all(custody);
    if custody.here() > 0 {
        log_limit::warn!(
            log,
            "the daemon ends when {} files of the front end are closed, which blocks: a file system in user space does \
             not answer; kill its server, or abort its connection in /sys/fs/fuse/connections",
            custody.here()
        );
    }
}

/// Waits until no descriptor of a front end is this process's, so that closing them does not keep it from ending.
pub fn hand_over_all(custody: &Custody) {
    let until = Instant::now() + HANDED_OVER_TIME;
    while custody.here() > 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The other events of a connection.
struct Visit<'v> {
    log: &'v LogLimit,
    around: Surroundings<'v>,
    custody: &'v Arc<Custody>,
    session: &'v Session,
    /// When to look for commands of the guest again, if no event reports them.
    commands_at: Option<Instant>,
    /// No other front end is accepted before this time, because the last try failed.
    listen_at: Option<Instant>,
    /// A second front end was refused, and that was logged.
    refused: bool,
}

impl Visit<'_> {
    fn relay_until_end(&mut self, relay: &mut Relay) -> Result<End, ServeError> {
        let log = self.log;
        let silent_until = self.around.server.map(|_| Instant::now() + FIRST_MESSAGE_TIME);
        loop {
            let now = Instant::now();
            let due = if relay.heard() { relay.due() } else { relay.due().or(silent_until) };
            if due.is_some_and(|due| due <= now) {
                let what = if relay.due().is_some() { "all of a message" } else { "a message" };
                log_limit::warn!(log, "the front end is disconnected: {what} did not come in time");
                return Ok(End::Gone);
            }
            self.listen_at = self.listen_at.filter(|&at| at > now);
            let limit = due.into_iter().chain(self.listen_at).chain(self.commands_at).min();
            let limit = limit.map(|at| at.saturating_duration_since(now));
            let Surroundings { stop, server, .. } = self.around;
            let listener = match (server, self.listen_at) {
                (Some(server), None) => server.listener.as_fd(),
                _ => stop,
            };
            let [front, framework] = relay.ends();
            let (hung, commands) = (self.custody.hung(), self.session.control_events());
            let asked = self.around.asked();
            let [stopped, hung, front_sent, framework_sent, second, commanded, is_wanted] =
                wait([stop, hung, front, framework, listener, commands, asked], limit)?;
            if stopped {
                return Ok(End::Stopped);
            }
            if hung {
                return Ok(End::Hung);
            }
            if commanded || self.commands_at.is_some_and(|at| at <= Instant::now()) {
                let due = self.session.serve_control();
                self.commands_at = due.map(|due| Instant::now() + due);
            }
            // Answers first, so that the last one before the framework closes its socket is not lost.
            let answered = if framework_sent { relay.pass_answer() } else { Ok(Read::Some) };
            let asked = if front_sent { relay.pass_request() } else { Ok(Read::Some) };
            match (answered, asked) {
                (Ok(Read::Some), Ok(Read::Some)) => {}
                (Err(error), _) | (_, Err(error)) => {
                    log_limit::warn!(log, "the front end is disconnected: {error}");
                    return Ok(End::Gone);
                }
                _ => return Ok(End::Gone),
            }
            if is_wanted && hand_over_front(self.around, relay, self.session) {
                return Ok(End::Left);
            }
            // A front end that has closed the connection may have left messages. They are read first.
            if second && !has_hung_up(relay.ends()[0]) {
                if !relay.heard() && relay.due().is_none() {
                    log_limit::warn!(
                        log,
                        "the front end sent no message, and another one takes its place"
                    );
                    return Ok(End::Gone);
                }
                self.refuse_second();
            }
        }
    }

    /// Refuses a further front end. Logged once for each front end that is served, however many others try.
    fn refuse_second(&mut self) {
        let Some(server) = self.around.server else { return };
        match server.listener.accept() {
            Ok((second, _)) => {
                self.custody.close_connection(second);
                let log = self.log;
                if !std::mem::replace(&mut self.refused, true) {
                    log_limit::warn!(
                        log,
                        "a second front end was refused, because the first one is still connected"
                    );
                }
            }
            // The front end stays in the listener's queue. Without a delay this would be a busy loop.
            Err(_) => self.listen_at = Some(Instant::now() + RETRY),
        }
    }
}

/// Whether `error` means only that the front end is gone: it closes the socket, sometimes in the middle of a message.
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

/// Waits until one of `fds` is readable, or `limit` has passed. Returns which are readable.
///
/// # Errors
/// What the system answers.
pub fn wait<const N: usize>(
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
