//! One process of a supervisor.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::manager::READY;
use crate::part::Part;

/// Longest message that is read of a process.
const MESSAGE_MAX: usize = 256;
/// Messages that are read at once. A process says one twice in the interval of its watchdog.
const MESSAGES_MAX: usize = 16;

/// Longest time until it serves.
const STARTS: Duration = Duration::from_secs(30);

/// A process that runs.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Readable when it has ended.
    handle: OwnedFd,
    /// What it says.
    says: UnixDatagram,
    serves: bool,
    /// A SIGHUP waits until it serves: before, it would end by it.
    is_hung_up: bool,
    /// It was killed because it hung, and ends as soon as it is in no call.
    is_killed: bool,
    started: Instant,
    heard: Instant,
    watchdog: Option<Duration>,
}

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    /// In order.
    pub is_success: bool,
    /// In words.
    pub how: String,
    /// Time after its start.
    pub after: Duration,
}

impl Process {
    /// Starts it: this program again, also when its file was replaced since.
    ///
    /// # Errors
    /// What the system answers.
    pub fn start(part: &Part, watchdog: Option<Duration>) -> io::Result<Self> {
        let (says, its) = UnixDatagram::pair()?;
        says.set_nonblocking(true)?;
        let mut command = Command::new("/proc/self/exe");
        let mut arguments = std::env::args_os();
        command.arg0(arguments.next().unwrap_or_default());
        command.args(arguments).arg("--part").arg(part.to_string());
        command.stdin(Stdio::from(OwnedFd::from(its)));
        for variable in ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"] {
            command.env_remove(variable);
        }
        if let Some(watchdog) = watchdog {
            command.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        }
        let mut child = command.spawn()?;
        let handle =
            pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).inspect_err(|_| {
                // Nobody would notice its end.
                let _ = child.kill().and_then(|()| child.wait());
            })?;
        let (serves, is_hung_up, is_killed) = (false, false, false);
        let (started, heard) = (Instant::now(), Instant::now());
        Ok(Self { child, handle, says, serves, is_hung_up, is_killed, started, heard, watchdog })
    }

    /// The ends to wait for: its end, and what it says.
    pub fn ends(&self) -> [PollFd<'_>; 2] {
        [PollFd::new(&self.handle, PollFlags::IN), PollFd::new(&self.says, PollFlags::IN)]
    }

    /// Whether it has said that it serves.
    pub const fn serves(&self) -> bool {
        self.serves
    }

    /// When it is to be looked at although it says nothing.
    pub fn next_look(&self) -> Option<Duration> {
        let is_due = !self.serves && !self.is_killed;
        is_due.then(|| STARTS.saturating_sub(self.started.elapsed()))
    }

    /// Has it read its file again, now or when it serves.
    pub fn hang_up(&mut self) {
        self.is_hung_up = true;
        self.pass_hangup();
    }

    fn pass_hangup(&mut self) {
        if self.serves && std::mem::take(&mut self.is_hung_up) {
            self.signal(Signal::HUP);
        }
    }

    /// Hears what it says, and kills it if it does not begin to serve, or no longer says that its workers answer. Returns how it ended,
    /// if it did.
    pub fn look(&mut self) -> Option<Ended> {
        let mut message = [0; MESSAGE_MAX];
        for _ in 0..MESSAGES_MAX {
            let Ok(len) = self.says.recv(&mut message) else { break };
            self.heard = Instant::now();
            self.serves |= message[..len].starts_with(READY.as_bytes());
        }
        self.pass_hangup();
        let is_silent = self.watchdog.is_some_and(|interval| self.heard.elapsed() > interval);
        let hangs = if self.serves { is_silent } else { self.started.elapsed() > STARTS };
        if hangs && !self.is_killed {
            log::error!("process {} does not answer, and is killed", self.child.id());
            self.signal(Signal::KILL);
            self.is_killed = true;
        }
        let after = self.started.elapsed();
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => {
                Some(Ended { is_success: status.success(), how: how(status), after })
            }
            Err(error) => {
                Some(Ended { is_success: false, how: format!("has ended: {error}"), after })
            }
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.handle, signal);
    }

    /// Waits for its end. If it has not ended by `until`, it is killed.
    pub fn end(&mut self, until: Instant) {
        let mut ended = [PollFd::new(&self.handle, PollFlags::IN)];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match poll(&mut ended, Timespec::try_from(left).ok().as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(1) => break,
                Ok(_) | Err(_) => {
                    self.signal(Signal::KILL);
                    break;
                }
            }
        }
        let _ = self.child.wait();
    }
}

fn how(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was ended by signal {signal}"),
        (None, Some(code)) => format!("ended with exit code {code}"),
        (None, None) => "ended".into(),
    }
}
