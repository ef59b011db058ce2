//! Where the frames of a worker's queue pairs go to and come from.
//!
//! - `wire`: each pair has a datapath of its own.
//! - `reflect`: each pair's frames go back to its own guest.
//! - [`switch`]: the pairs of several guests are joined, perhaps with an uplink.
//! - `reads`: whether a datapath is worth reading.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use burst_trace::BurstRecord;
use datapath::{Captured, Lane, Observer, Planted};
use guest_memory::GuestMemory;
use virtio_net::{MacAddress, Negotiated};

use crate::heritage::{Heritage, UplinkHeritage};
use crate::idle::sleep::{Sleeper, Token};
use crate::pairs::Pairs;
use crate::view::View;

pub mod reads;
pub mod reflect;
pub mod switch;
pub mod wire;

/// How the queue pairs of a worker are joined. Pairs are named by their place in [`Pairs`].
///
/// Only [`turn`](Self::turn) is needed by all. The other methods are for those that have datapaths, which want to be
/// attached and wake the worker up, or whose frames wait for one another.
pub trait Topology: Send + 'static {
    /// One burst each way for every pair. Returns whether there was any.
    fn turn(&mut self, pairs: &mut Pairs, view: &mut View<'_>) -> bool;

    /// The worker begins.
    ///
    /// # Errors
    /// What the system answers; the worker does not begin then.
    fn begin(&mut self, _sleeper: &Sleeper) -> io::Result<()> {
        Ok(())
    }

    /// From now on, datapaths wake the worker up. One that has frames already does so immediately.
    fn listen(&mut self, _sleeper: &Sleeper) {}

    /// The same for those that did not while their frames waited for a limit.
    fn listen_again(&mut self, _sleeper: &Sleeper) {}

    /// From now on, datapaths do not wake the worker up.
    fn ignore(&mut self, _sleeper: &Sleeper) {}

    /// An event that is not a ring's woke the worker up.
    fn woken(&mut self, _token: Token, _pairs: &mut Pairs) {}

    /// Whether there is work that no kick reports. Called before the worker sleeps, after the rings have asked for kicks.
    fn has_work(&mut self, _pairs: &Pairs) -> bool {
        false
    }

    /// The longest time that the worker may sleep, if something has to be done that no event reports.
    fn limit(&self, _pairs: &Pairs, _view: &View<'_>) -> Option<Duration> {
        None
    }

    /// Whether frames can be lost in a place that only [`account`](Self::account) looks at.
    fn counts_losses(&mut self) -> bool {
        false
    }

    /// Counts the frames that were lost before the worker could see them.
    fn account(&mut self, _pairs: &Pairs, _view: &mut View<'_>) {}

    /// A ring of pair `at` is about to start.
    ///
    /// # Errors
    /// What the system answers; the ring does not start then.
    fn configure(&mut self, _at: usize, _negotiated: Negotiated) -> io::Result<()> {
        Ok(())
    }

    /// Frames of a guest with this memory will come from the transmit ring of pair `at`.
    ///
    /// # Errors
    /// Why they cannot be carried; the ring does not start then, or stops.
    fn attach(&mut self, _at: usize, _memory: &Arc<GuestMemory>) -> io::Result<()> {
        Ok(())
    }

    /// No more frames of this guest's memory come, and the memory must not be touched any more.
    fn detach(&mut self, _at: usize) {}

    /// Waits until the frames of pair `at` whose buffers the guest has not got back yet are sent. Returns whether some were
    /// not sent in time; then pair `at` is detached.
    fn settle(&mut self, _at: usize, _pairs: &mut Pairs, _view: &mut View<'_>) -> bool {
        false
    }

    /// Sends a frame from pair `at` to everyone that says that the guest's `address` is there. The pair's transmit ring is
    /// served. Does not wait: returns whether it was carried.
    fn announce(
        &mut self,
        _at: usize,
        _address: MacAddress,
        _pairs: &mut Pairs,
        _view: &mut View<'_>,
    ) -> bool {
        false
    }

    /// Another daemon goes on with pair `at`, of which a ring is about to be stopped for that. Returns what the pair has besides
    /// its rings. If the other daemon fails, a ring is started again. `now`: ticks.
    fn part(&mut self, _at: usize, _now: u64) -> Heritage {
        Heritage::default()
    }

    /// What pair `at` had in the daemon before, besides frames: addresses that were learned from its guest, and the uplink's.
    /// `now`: ticks.
    fn inherit(
        &mut self,
        _at: usize,
        _addresses: &[MacAddress],
        _uplink: Option<UplinkHeritage>,
        _now: u64,
    ) {
    }

    /// All that comes from the daemon before is there. `is_over`: that daemon has ended. `now`: ticks.
    fn go_on(&mut self, _is_over: bool, _pairs: &mut Pairs, _now: u64) {}

    /// Whether the receive ring of pair `at` takes frames from now on.
    ///
    /// # Errors
    /// What the system answers.
    fn set_active(&mut self, _at: usize, _active: bool) -> io::Result<()> {
        Ok(())
    }

    /// Plants these faults in the wire, in place of those before.
    fn plant(&mut self, _faults: &[Planted]) {}

    /// The faults that are planted in the wire.
    fn planted(&self) -> Vec<Planted> {
        Vec::new()
    }

    /// Captures the frames of pair `at` from now on, or no longer.
    fn capture(&mut self, _at: usize, _lane: Option<Lane>) {}

    /// How the capture stands.
    fn captured(&self) -> Option<Captured> {
        None
    }

    /// A ring of pair `at` was started, stopped, enabled or disabled, or it broke because its memory is torn, or the
    /// guest has another memory table. `now`: ticks.
    fn rings_changed(&mut self, _at: usize, _pairs: &mut Pairs, _now: u64) {}
}

/// Passes the record of a burst to the datapath's observer, if it has one.
#[inline]
fn observe(observer: Option<&mut impl Observer>, record: &BurstRecord) {
    if let Some(observer) = observer {
        observer.recorded(record);
    }
}
