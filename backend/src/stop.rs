//! The request to end the daemon: by a signal, or after a panic.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use worker::PanicAlarm;

use crate::sys;

/// Becomes readable, and stays so, when the daemon is to end.
#[derive(Debug)]
pub struct Stop {
    asked: UnixStream,
    ask: UnixStream,
    /// Gets a byte for each SIGHUP, if that does not end the daemon.
    hangup: Option<UnixStream>,
    alarm: PanicAlarm,
}

impl Stop {
    /// Listens for SIGTERM, and for SIGINT and SIGHUP unless the parent process had them ignored. `reloads`: SIGHUP does not
    /// end the daemon, because there is a file to read again.
    ///
    /// # Errors
    /// What the system answers.
    pub fn on_signals(reloads: bool) -> io::Result<Self> {
        let (asked, ask) = UnixStream::pair()?;
        pipe::register(SIGTERM, ask.try_clone()?)?;
        let mut hangup = None;
        for signal in [SIGINT, SIGHUP] {
            if sys::is_ignored(signal) {
                continue;
            }
            let mut signalled = ask.try_clone()?;
            if signal == SIGHUP && reloads {
                let hangups;
                (hangups, signalled) = UnixStream::pair()?;
                hangup = Some(hangups);
            }
            pipe::register(signal, signalled)?;
        }
        let alarm = PanicAlarm::new(ask.try_clone()?);
        Ok(Self { asked, ask, hangup, alarm })
    }

    /// Ends the daemon when a worker or a guest's thread panics.
    pub const fn alarm(&self) -> &PanicAlarm {
        &self.alarm
    }

    /// What gets a byte for each SIGHUP; `None` if that ends the daemon, or is ignored.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn hangups(&self) -> io::Result<Option<UnixStream>> {
        self.hangup.as_ref().map(UnixStream::try_clone).transpose()
    }

    /// What asks the daemon to end.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn asking(&self) -> io::Result<Ask> {
        self.ask.try_clone().map(Ask)
    }

    /// Whether the daemon is to end.
    pub fn is_asked(&self) -> bool {
        let mut asked = [PollFd::new(&self.asked, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut asked, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

/// Asks the daemon to end.
#[derive(Debug)]
pub struct Ask(UnixStream);

impl Ask {
    /// Asks the daemon to end, as SIGTERM does.
    pub fn ask(&self) {
        // If the pipe is full, it was asked already.
        let _ = (&self.0).write(&[0]);
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.asked.as_fd()
    }
}
