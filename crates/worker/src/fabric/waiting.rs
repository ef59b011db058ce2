//! Frames that wait for room in their receiver's ring.
//!
//! A receiver without buffers must not hold up what its sender has for others. So frames wait for it only while
//! nothing for anybody else is in sight behind them; and where more may stand behind them than is in sight, only for
//! a moment. Then they are dropped, and counted on the receiver's side.

use std::time::Duration;

use datapath::Datapath;
use datapath::switch::Port;
use virtio_net::{BURST_MAX, Frames};

use super::placing::all;
use super::sorting::go_one_way;
use super::{Fabric, UPLINK};
use crate::clock::Deadline;
use crate::pair::{Pair, Shared};
use crate::ring::{Ring, RingState};

/// How long frames wait for a receiver that takes none at all.
pub const STUCK: Duration = Duration::from_millis(100);
/// How long they wait where more may stand behind them than is in sight.
pub const CROWDED: Duration = Duration::from_millis(1);

/// A queue pair as the switch sees it. Times in ticks.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub port: u8,
    /// Its number among those of its port.
    pub queue: usize,
    /// Its frames wait for another pair's buffers.
    pub waits: Option<Wait>,
    /// What they waited for at the last try.
    pub begun: Option<Wait>,
    /// Since when there was not room for all that it should get.
    pub full_since: Option<u64>,
    /// When it last took a frame since then.
    took: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// The pair.
    pub receiver: usize,
    pub until: Deadline,
    /// How many segments of the first frame it has already.
    pub segments: usize,
}

/// A burst for which there was not room everywhere.
#[derive(Clone, Copy)]
pub struct Crowd {
    /// How many of its frames were looked at.
    pub count: usize,
    /// Whether there may be frames behind it that go elsewhere.
    pub is_crowded: bool,
}

impl Crowd {
    /// Of the frames that were gathered, the first `count` were looked at.
    #[cold]
    pub fn new(gathered: Frames<'_, '_>, count: usize) -> Self {
        let goes_on = gathered.len() == BURST_MAX;
        let has_others =
            count < gathered.len() && !go_one_way(gathered.skip(count.saturating_sub(1)));
        Self { count, is_crowded: goes_on || has_others }
    }
}

impl<U: Datapath> Fabric<U> {
    /// Whether the frames of pair `at` still wait for another pair's buffers, and nothing has come that could
    /// change it.
    #[cold]
    pub(super) fn still_waits(
        &mut self,
        at: usize,
        ring: &Ring,
        pairs: &[Pair<Port>],
        shared: &mut Shared<'_>,
    ) -> bool {
        let waits = self.ends[at].waits.is_some_and(|wait| {
            let can_go_on = if wait.receiver == UPLINK {
                self.uplink.as_ref().is_none_or(|uplink| !uplink.blocked)
            } else {
                has_room(&pairs[wait.receiver])
            };
            !can_go_on && !ring.queue.has_grown() && !wait.until.is_due(shared.tracers[0].now())
        });
        if !waits {
            self.ends[at].waits = None;
        }
        waits
    }

    /// Whether the frames `left` may wait for their receiver: not, if there is one for anybody else behind them.
    #[cold]
    pub(super) fn may_wait(&self, wait: Wait, left: u64, crowd: Crowd, now: u64) -> bool {
        let first = left.trailing_zeros();
        let behind = all(crowd.count) >> first << first;
        left == behind && left & self.flooded == 0 && !wait.until.is_due(now)
    }

    /// Ends the wait of pair `at` as a sender; its next frame begins with its first segment.
    #[cold]
    pub(super) fn stop_waiting(&mut self, at: usize, pairs: &mut [Pair<Port>]) {
        let End { waits, begun, .. } = self.ends[at];
        (self.ends[at].waits, self.ends[at].begun) = (None, None);
        if let Some(wait) = waits.or(begun) {
            self.let_go(wait.receiver, pairs);
        }
    }

    /// Nothing of what waited for pair `receiver` is left: unless others do, it is not starved any more.
    #[cold]
    pub(super) fn let_go(&self, receiver: usize, pairs: &mut [Pair<Port>]) {
        let waits_for = |wait: Option<Wait>| wait.is_some_and(|it| it.receiver == receiver);
        let by_uplink = self.uplink.as_ref().is_some_and(|uplink| waits_for(uplink.waits));
        if receiver != UPLINK && !by_uplink && !self.ends.iter().any(|end| waits_for(end.waits)) {
            pairs[receiver].starved = None;
        }
    }
}

impl End {
    pub const fn new(port: u8, queue: usize) -> Self {
        Self { port, queue, waits: None, begun: None, full_since: None, took: 0 }
    }

    /// There was not room for all; for some there was, if `took`.
    pub fn note_full(&mut self, now: u64, took: bool) {
        if self.full_since.is_none() || took {
            self.took = now;
        }
        self.full_since.get_or_insert(now);
    }

    /// Until when frames may wait for it. A receiver that takes some now and then is waited for; but where more
    /// stand behind them than is in sight, only for a moment.
    pub fn patience(&self, is_crowded: bool, stuck: u64, crowded: u64) -> Deadline {
        let since = self.full_since.unwrap_or_default();
        if is_crowded { Deadline::after(since, crowded) } else { Deadline::after(self.took, stuck) }
    }
}

/// Whether there may be room in the receive ring of a pair that was found full.
#[cold]
pub fn has_room(receiver: &Pair<Port>) -> bool {
    let is_changed = |rx: &Ring| rx.state != RingState::Enabled || rx.queue.has_grown();
    receiver.starved.is_none() || receiver.rx.as_deref().is_none_or(is_changed)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datapath::{Null, switch};
    use log_limit::LogLimit;

    use super::super::{Member, pairs_of};
    use super::*;
    use crate::wiring::Wiring as _;

    /// A guest that enables its rings over and over does not make frames of others wait longer, and no segment is sent twice.
    #[test]
    fn a_change_of_one_guests_rings_leaves_what_waits_for_others() {
        let capabilities = switch::capabilities(None);
        let member = Member { queue_pairs: 2, mac: None, mac_locked: false, capabilities };
        let mut pairs = pairs_of((0..3).map(|_| (Arc::new(LogLimit::new("")), &member)));
        let mut fabric =
            Fabric::new(&[member; 3], None::<Null>, &burst_trace::Clock::default().into());
        let wait = |receiver| Some(Wait { receiver, until: Deadline::after(0, 100), segments: 7 });
        for (at, (end, pair)) in fabric.ends.iter_mut().zip(&mut pairs).enumerate() {
            (end.waits, end.begun) = (wait((at + 2) % 6), wait((at + 2) % 6));
            end.full_since = Some(50);
            pair.blocked = true;
        }
        fabric.rings_changed(2, &mut pairs, 80);
        for (at, (end, pair)) in fabric.ends.iter().zip(&pairs).enumerate() {
            let found = (end.waits.is_some(), end.full_since.is_some(), pair.blocked);
            assert_eq!(found, (at != 2, at != 2, at != 2), "pair {at}");
            assert_eq!(end.begun.map(|it| it.segments), (at != 2).then_some(7));
        }
    }
}
