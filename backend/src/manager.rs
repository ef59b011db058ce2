//! The service manager (systemd): it may have made the guests' sockets (`sd_listen_fds(3)`), and the daemon tells it when it
//! serves, when it ends (`sd_notify(3)`), and that its workers answer (`sd_watchdog_enabled(3)`). Without a service manager
//! nothing happens here.
//!
//! The socket to it is opened at the start, so that nothing has to be opened later.

use std::env;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use worker::Mailbox;

use crate::stop::Stop;

/// First descriptor that a service manager hands over (`SD_LISTEN_FDS_START`).
const FIRST_LISTENING: RawFd = 3;
/// Most descriptors that it may hand over: more than guests of one daemon.
const LISTENING_MAX: RawFd = 4096;

/// Begins the message that front ends can connect.
pub const READY: &str = "READY=1";
/// The message that all is well.
const WELL: &str = "WATCHDOG=1";

/// The interval of the watchdog, if this process has one.
fn watchdog() -> Option<Duration> {
    let is_ours = env::var_os("WATCHDOG_PID").is_none() || is_for_us("WATCHDOG_PID");
    let watchdog = env::var("WATCHDOG_USEC").ok().filter(|_| is_ours);
    let watchdog = watchdog.and_then(|text| text.parse().ok()).filter(|&usec| usec > 0);
    watchdog.map(Duration::from_micros)
}

/// The numbers of the descriptors that the service manager hands over to this process.
pub fn listening() -> std::ops::Range<RawFd> {
    let count =
        |text: String| text.parse().ok().filter(|count| (0..=LISTENING_MAX).contains(count));
    let count = env::var("LISTEN_FDS").ok().filter(|_| is_for_us("LISTEN_PID")).and_then(count);
    FIRST_LISTENING..FIRST_LISTENING + count.unwrap_or(0)
}

/// Whether the variable has the number of this process. A program that the service started has inherited it otherwise.
fn is_for_us(variable: &str) -> bool {
    env::var(variable).is_ok_and(|text| text.parse() == Ok(std::process::id()))
}

/// The service manager that started this process, if one did.
#[derive(Debug)]
pub struct Manager {
    /// What it is called in messages.
    name: &'static str,
    socket: UnixDatagram,
    /// Interval in which it expects to hear that all is well.
    watchdog: Option<Duration>,
}

impl Manager {
    /// Finds it in the environment. `is_part`: it is this daemon's supervisor, at the other end of the standard input.
    pub fn find(is_part: bool) -> Option<Self> {
        if is_part {
            return Self::supervisor();
        }
        let address = env::var("NOTIFY_SOCKET").ok()?;
        let socket = connect(&address)
            .inspect_err(|error| {
                log::warn!("the service manager cannot be reached at {address}: {error}")
            })
            .ok()?;
        Some(Self { name: "service manager", socket, watchdog: watchdog() })
    }

    fn supervisor() -> Option<Self> {
        let socket = io::stdin().as_fd().try_clone_to_owned().map(UnixDatagram::from);
        let socket = socket.and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
        let socket = socket
            .inspect_err(|error| log::warn!("the supervisor cannot be reached: {error}"))
            .ok()?;
        Some(Self { name: "supervisor", socket, watchdog: watchdog() })
    }

    /// The interval in which it expects to hear that all is well.
    pub const fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Tells it that all is well.
    pub fn is_well(&self) {
        self.tell(WELL);
    }

    /// Tells it that this daemon ends.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=ends");
    }

    /// Tells it that front ends can connect.
    pub fn ready(&self, guests: usize) {
        let guests = if guests == 1 { "1 guest".into() } else { format!("{guests} guests") };
        self.tell(&format!("{READY}\nSTATUS=serves {guests}"));
    }

    /// Tells it twice in its interval that all workers answer, and when the daemon is asked to end. Returns then, or when
    /// `finished` is readable.
    pub fn attend(&self, workers: &[Arc<Mailbox>], stop: &Stop, finished: impl AsFd) {
        let pause = self.watchdog.map(|interval| interval / 2);
        let pause = pause.and_then(|pause| Timespec::try_from(pause).ok());
        loop {
            let (asked, finished) = (stop.as_fd(), finished.as_fd());
            let mut ends =
                [PollFd::new(&asked, PollFlags::IN), PollFd::new(&finished, PollFlags::IN)];
            match poll(&mut ends, pause.as_ref()) {
                Ok(0) => self.watch(workers),
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    log::error!("the {} hears no more of this process: {error}", self.name);
                    return;
                }
            }
        }
        self.stopping();
    }

    fn watch(&self, workers: &[Arc<Mailbox>]) {
        if workers.iter().all(|worker| worker.look().is_ok()) {
            self.is_well();
        } else {
            log::warn!(
                "a worker does not answer; if that lasts, the {}'s watchdog ends this process",
                self.name
            );
        }
    }

    fn tell(&self, state: &str) {
        if let Err(error) = self.socket.send(state.as_bytes()) {
            log::warn!("the {} cannot be told '{}': {error}", self.name, state.replace('\n', ", "));
        }
    }
}

/// `address` is a path, or a name in the abstract namespace after `@`.
fn connect(address: &str) -> io::Result<UnixDatagram> {
    let address = match address.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // If the service manager reads too slowly, a message is lost. The daemon does not wait for it.
    socket.set_nonblocking(true)?;
    Ok(socket)
}
