//! How the queue pairs of a worker are joined: each with a wire of its own, or with one another.

use std::io;
use std::marker::PhantomData;
use std::time::Duration;

use datapath::Datapath;

use crate::idle::sleep::Sleeper;
use crate::pair::{Pair, Shared};

/// Where the frames of a worker's pairs go to and come from.
pub trait Wiring: Send + 'static {
    /// The datapath of each pair.
    type Wire: Datapath;

    /// One burst each way for every pair. Returns whether there was any.
    fn turn(&mut self, pairs: &mut [Pair<Self::Wire>], shared: &mut Shared<'_>) -> bool;

    /// Whether frames can be lost in a place that only [`account`](Self::account) looks at.
    const COUNTS_LOSSES: bool = Self::Wire::COUNTS_LOSSES;

    /// Counts the frames that were lost before they could be seen.
    fn account(&mut self, pairs: &mut [Pair<Self::Wire>], shared: &mut Shared<'_>) {
        for pair in pairs {
            pair.account(shared.of(pair.guest).tracer);
        }
    }

    /// The worker begins: it is to be woken up for what is not a pair's.
    ///
    /// # Errors
    /// What the system answers.
    fn start(&mut self, _sleeper: &Sleeper) -> io::Result<()> {
        Ok(())
    }

    /// What was to wake the worker up for it has done so.
    fn woken(&mut self) {}

    /// The control plane has started, stopped, enabled or disabled a ring of `pairs[at]`, or has given the guest another
    /// memory table, or a ring of the pair broke because its memory is torn. `now`: ticks.
    fn rings_changed(&mut self, _at: usize, _pairs: &mut [Pair<Self::Wire>], _now: u64) {}

    /// Whether there is work that the pairs, which have just asked for kicks, do not see themselves.
    fn has_work(&self, _pairs: &[Pair<Self::Wire>]) -> bool {
        false
    }

    /// How long the worker may sleep at most.
    fn limit(&self) -> Option<Duration> {
        None
    }
}

/// Each pair has its own datapath; all are of one guest.
#[derive(Debug)]
pub struct Direct<D>(PhantomData<fn() -> D>);

impl<D> Direct<D> {
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<D: Datapath> Wiring for Direct<D> {
    type Wire = D;

    #[inline]
    fn turn(&mut self, pairs: &mut [Pair<D>], shared: &mut Shared<'_>) -> bool {
        let mut context = shared.of(0);
        let mut worked = false;
        for pair in pairs {
            worked |= pair.turn(&mut context);
        }
        worked
    }
}
