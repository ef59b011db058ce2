//! An eventfd that the back end signals and the guest waits for.

use std::os::fd::AsRawFd as _;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::Error;

/// An eventfd to sleep on.
#[derive(Debug)]
pub(crate) struct Signal {
    eventfd: EventFd,
    epoll: Epoll,
}

impl Signal {
    pub(crate) fn new() -> Result<Self, Error> {
        let eventfd = eventfd()?;
        let epoll = Epoll::new().map_err(Error::system("making an epoll"))?;
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll
            .ctl(ControlOperation::Add, eventfd.as_raw_fd(), event)
            .map_err(Error::system("watching an eventfd"))?;
        Ok(Self { eventfd, epoll })
    }

    pub(crate) const fn eventfd(&self) -> &EventFd {
        &self.eventfd
    }

    /// Sleeps until it is signalled or the time is over. Returns whether it was signalled.
    pub(crate) fn wait(&self, timeout: Duration) -> Result<bool, Error> {
        // Rounded up: a wait of no time would be a busy loop.
        let timeout_ms = i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        match self.epoll.wait(timeout_ms, &mut [EpollEvent::default()]) {
            Ok(ready) => Ok(ready > 0),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(Error::system("waiting for the back end")(error)),
        }
    }

    /// Number of signals since the last call.
    pub(crate) fn take(&self) -> u64 {
        // The eventfd does not block: an error says that it was not.
        self.eventfd.read().unwrap_or(0)
    }
}

/// An eventfd that does not block.
pub(crate) fn eventfd() -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::system("making an eventfd"))
}
