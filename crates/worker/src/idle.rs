//! What a worker does while there is no work: look again, give way, or sleep, and until when.
//!
//! - `policy`: what the operator chose.
//! - `forecast`: when the next work of a queue pair is due.
//! - `batching`: how soon a transmit ring is looked at again under sustained load.
//! - `sleep`: epoll.

pub mod batching;
pub mod forecast;
pub mod policy;
pub mod sleep;

use std::time::Duration;

use crate::clock::{Clock, Deadline};
use crate::pairs::Pairs;

use self::forecast::{Forecast, Lengths, Worked};

pub use policy::PollPolicy;

/// Looks that find nothing from one `sched_yield` of a polling worker to the next. That system call costs as much as ten
/// looks at a ring.
const LOOKS_A_YIELD: u32 = 8;

/// Time from a timer's expiry until its thread runs, before any was measured.
const LATENESS: Duration = Duration::from_micros(50);

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Look for work.
    Look,
    /// Let other threads have this CPU, then look for work.
    GiveWay,
    /// Sleep until work comes, or for this time at most.
    Sleep(Option<Duration>),
}

/// A worker's idle gap: how long there has been nothing to do.
#[derive(Debug)]
pub struct IdleGap {
    policy: PollPolicy,
    clock: Clock,
    /// One for each queue pair.
    forecasts: Vec<Forecast>,
    /// How long `adaptive` polls, ticks.
    spin: u64,
    /// [`LATENESS`] in ticks.
    lateness: u64,
    /// By how much sleeps lasted longer than asked for.
    late: Lengths,
    /// When there was last known to be no work, or a sleep ended, ticks. A turn with work is not part of the gap before
    /// it.
    looked: u64,
    /// How long ago the last sleep should have ended when it did, ticks; 0 after a look for work.
    overslept: u64,
    /// When the present sleep should end, ticks.
    wake_at: Option<u64>,
    /// Since when there has been neither work nor a wake-up, ticks.
    since: Option<u64>,
    /// Number of looks that found nothing.
    looks: u32,
    /// Whether it has lasted longer than [`Self::spin`].
    is_long: bool,
}

impl IdleGap {
    /// For a worker with `pairs` queue pairs.
    pub fn new(policy: PollPolicy, clock: Clock, pairs: usize) -> Self {
        let spin = match policy {
            PollPolicy::Adaptive(time) => clock.ticks_in(time),
            PollPolicy::Never | PollPolicy::Always => 0,
        };
        Self {
            policy,
            clock,
            forecasts: (0..pairs).map(|_| Forecast::default()).collect(),
            spin,
            lateness: clock.ticks_in(LATENESS),
            late: Lengths::default(),
            looked: 0,
            overslept: 0,
            wake_at: None,
            since: None,
            looks: 0,
            is_long: false,
        }
    }

    /// What the operator chose.
    pub const fn policy(&self) -> PollPolicy {
        self.policy
    }

    /// There was work: the gap is over.
    #[inline]
    pub fn end(&mut self, pairs: &mut Pairs) {
        if self.is_long {
            self.learn(pairs);
        }
        (self.since, self.looks) = (None, 0);
    }

    /// A sleep is over. `woken`: an event ended it, not the timer. Then the worker polls again from the start, whether or
    /// not it finds work.
    pub fn slept(&mut self, woken: bool) {
        self.looked = self.clock.now();
        if let Some(wake_at) = self.wake_at.take()
            && let Some(late) = self.looked.checked_sub(wake_at)
        {
            self.late.learn(late);
        }
        self.overslept = self.late.usual().unwrap_or(self.lateness);
        if woken {
            self.since = None;
        }
    }

    /// What to do after a look that found nothing.
    #[inline]
    pub fn next(&mut self, pairs: &mut Pairs) -> Idle {
        let sleep = match self.policy {
            _ if pairs.cannot_be_kicked() => None,
            PollPolicy::Never => Some(Idle::Sleep(None)),
            PollPolicy::Always => None,
            PollPolicy::Adaptive(_) => self.adapt(pairs),
        };
        sleep.unwrap_or_else(|| {
            self.looks = self.looks.wrapping_add(1);
            if self.looks.is_multiple_of(LOOKS_A_YIELD) { Idle::GiveWay } else { Idle::Look }
        })
    }

    /// Polls at the gap's beginning and around the moment that a pair's forecast gives; sleeps otherwise.
    #[inline]
    fn adapt(&mut self, pairs: &mut Pairs) -> Option<Idle> {
        let now = self.clock.now();
        let since = *self.since.get_or_insert_with(|| {
            for (at, forecast) in self.forecasts.iter_mut().enumerate() {
                let worked = pairs.take_worked(at);
                if worked != Worked::default() {
                    forecast.begin(worked, now);
                }
            }
            now
        });
        (self.looked, self.overslept) = (now, 0);
        if !Deadline::after(since, self.spin).is_due(now) {
            return None;
        }
        self.is_long = true;
        self.wait(now)
    }

    /// How long to sleep at `now`; none if the time is too short for a sleep.
    #[cold]
    fn wait(&mut self, now: u64) -> Option<Idle> {
        let due = self.forecasts.iter().filter_map(|forecast| forecast.due(now, self.spin));
        let next = due.map(|due| due.start).min();
        self.wake_at = None;
        let Some(next) = next else { return Some(Idle::Sleep(None)) };
        let lead = self.late.most().unwrap_or(self.lateness).min(self.spin);
        let wake_at = next.saturating_sub(lead);
        // Falling asleep takes about as long as waking up.
        let ticks = wake_at.checked_sub(now).filter(|&ticks| ticks > lead)?;
        self.wake_at = Some(wake_at);
        Some(Idle::Sleep(Some(self.clock.duration_of(ticks))))
    }

    #[cold]
    fn learn(&mut self, pairs: &Pairs) {
        self.is_long = false;
        let over = self.looked.saturating_sub(self.overslept);
        let (inexact, spin) = (self.overslept, self.spin);
        for (at, forecast) in self.forecasts.iter_mut().enumerate() {
            // Perhaps it was this pair that ended the gap.
            if pairs.worked(at) != Worked::default() {
                forecast.learn(over, inexact, spin);
            }
        }
    }
}
