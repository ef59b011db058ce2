//! What a worker sleeps on: kicks, datapaths, its mailbox and a timer, all edge triggered.
//!
//! With edge triggering a kick need not be read, because each new write is a new event. This saves one system call per
//! burst.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use epoll::{ControlOptions, Event, Events};
use vmm_sys_util::timerfd::TimerFd;

use crate::alarm::Alarm;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// A command waits.
    Mailbox,
    /// This guest kicked this virtqueue.
    Kick { guest: u16, ring: u16 },
    /// The datapath of this queue pair has frames, or takes frames again.
    Datapath(u16),
    /// The same for the uplink of a switch.
    Uplink,
}

impl Token {
    /// For virtqueue `ring` of `guest`, its number among those of the worker.
    #[expect(clippy::cast_possible_truncation, reason = "a worker serves far fewer guests")]
    pub const fn kick(guest: usize, ring: u16) -> Self {
        Self::Kick { guest: guest as u16, ring }
    }

    const fn to_number(self) -> u64 {
        match self {
            Self::Mailbox => 0,
            Self::Kick { guest, ring } => 1 << 32 | (guest as u64) << 16 | ring as u64,
            Self::Datapath(pair) => 2 << 32 | pair as u64,
            Self::Uplink => 3 << 32,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the low half is what was put there")]
    const fn from_number(number: u64) -> Self {
        match number >> 32 {
            0 => Self::Mailbox,
            1 => Self::Kick { guest: (number >> 16) as u16, ring: number as u16 },
            2 => Self::Datapath(number as u16),
            _ => Self::Uplink,
        }
    }
}

/// Event number of the timer, which no token has.
const TIMER: u64 = u64::MAX;

const EVENTS_MAX: usize = 32;

/// An epoll instance.
#[derive(Debug)]
pub struct Sleeper {
    epoll: OwnedFd,
    events: [Event; EVENTS_MAX],
    timer: TimerFd,
    /// Whether the timer may still fire.
    is_timed: bool,
    /// Ends a signal that blocks, if the worker serves several guests.
    alarm: Option<Arc<Alarm>>,
}

impl Sleeper {
    /// For the calling thread, which serves `guests`.
    pub fn new(guests: usize) -> io::Result<Self> {
        let events = [Event::new(Events::empty(), 0); EVENTS_MAX];
        let sleeper = Self {
            epoll: crate::sys::new_epoll()?,
            events,
            timer: TimerFd::new()?,
            is_timed: false,
            alarm: (guests > 1).then(|| Alarm::new().map(Arc::new)).transpose()?,
        };
        sleeper.add_number(&sleeper.timer, Events::EPOLLIN, TIMER)?;
        Ok(sleeper)
    }

    /// Wakes up for `fd` from now on; immediately when it is ready already.
    pub fn add(&self, fd: &impl AsRawFd, token: Token) -> io::Result<()> {
        let events = match token {
            Token::Datapath(_) | Token::Uplink => Events::EPOLLIN | Events::EPOLLOUT,
            Token::Mailbox | Token::Kick { .. } => Events::EPOLLIN,
        };
        self.add_number(fd, events, token.to_number())
    }

    fn add_number(&self, fd: &impl AsRawFd, events: Events, number: u64) -> io::Result<()> {
        let event = Event::new(events | Events::EPOLLET, number);
        epoll::ctl(self.epoll.as_raw_fd(), ControlOptions::EPOLL_CTL_ADD, fd.as_raw_fd(), event)
    }

    /// No longer wakes up for `fd`.
    pub fn remove(&self, fd: &impl AsRawFd) {
        let event = Event::new(Events::empty(), 0);
        // This fails only when `fd` is not registered, which is the wanted state.
        let _ = epoll::ctl(
            self.epoll.as_raw_fd(),
            ControlOptions::EPOLL_CTL_DEL,
            fd.as_raw_fd(),
            event,
        );
    }

    pub const fn alarm(&self) -> Option<&Arc<Alarm>> {
        self.alarm.as_ref()
    }

    /// Sleeps until something happens or `limit` has passed. Returns what happened.
    pub fn sleep(&mut self, limit: Option<Duration>) -> impl Iterator<Item = Token> + '_ {
        self.set_timer(limit);
        if let Some(alarm) = &self.alarm {
            alarm.disarm();
        }
        let count = epoll::wait(self.epoll.as_raw_fd(), -1, &mut self.events);
        // An interrupted sleep returns no events; the loop then sleeps again.
        self.events.iter().take(count.unwrap_or(0)).filter_map(|event| {
            let number = event.data;
            (number != TIMER).then(|| Token::from_number(number))
        })
    }

    /// Sets a timer, because `epoll_wait` has a timeout in milliseconds only.
    fn set_timer(&mut self, limit: Option<Duration>) {
        let set = match limit {
            Some(limit) => self.timer.reset(limit, None),
            None if self.is_timed => self.timer.clear(),
            None => return,
        };
        // Linux refuses only what is not a timer or not a valid time.
        debug_assert!(set.is_ok(), "{set:?}");
        self.is_timed = limit.is_some();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for token in [
            Token::Mailbox,
            Token::kick(0, 0),
            Token::kick(3, 511),
            Token::Datapath(255),
            Token::Uplink,
        ] {
            assert_eq!(Token::from_number(token.to_number()), token);
        }
    }
}
