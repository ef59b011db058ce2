//! What the turns of the rings need of their worker.

use crate::clock::Clock;
use crate::idle::sleep::Sleeper;
use crate::timeline::Sighting;
use crate::tracer::Tracer;

/// What is the same for all rings of a worker.
#[derive(Debug)]
pub struct Shared {
    pub clock: Clock,
    pub sleeper: Sleeper,
    /// When the worker last woke up, ticks.
    pub woken: u64,
    /// Whether it looks for frames without having been woken for them.
    pub polling: bool,
    /// [`HOLD`](crate::receiver::HOLD) in ticks.
    pub hold: u64,
    /// [`RETRY`](crate::topology::reads::RETRY) in ticks.
    pub retry: u64,
    /// [`LONGEST`](crate::idle::batching::LONGEST) in ticks.
    pub longest: u64,
}

/// A worker, borrowed for a turn of its rings.
pub struct View<'w> {
    /// One for each guest.
    pub tracers: &'w mut [Tracer],
    pub shared: &'w Shared,
}

impl View<'_> {
    #[inline]
    pub const fn tracer(&mut self, guest: usize) -> &mut Tracer {
        &mut self.tracers[guest]
    }

    /// The time now, ticks.
    #[inline]
    pub fn now(&self) -> u64 {
        self.shared.clock.now()
    }

    /// Work that was found at `seen` in a place last looked at at `last_look`. Its first boundary is the wake-up since
    /// then, or that look.
    #[inline]
    pub const fn sighting(&self, last_look: u64, seen: u64) -> Sighting {
        let woken = self.shared.woken;
        if woken > last_look {
            Sighting { wake: woken, seen, polled: false }
        } else {
            Sighting { wake: last_look, seen, polled: true }
        }
    }
}
