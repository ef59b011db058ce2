//! Frames that wait for room in their receiver's ring.
//!
//! A receiver without buffers must not hold up the frames that its sender has for others. So frames wait for a receiver
//! only while no frame for anybody else is in sight after them. Where more frames may follow than are in sight, they wait
//! only for a moment. Then they are dropped, and counted on the receiver's side.

use std::time::Duration;

use virtio_net::{BURST_MAX, Frames, SegmentProgress};

use super::pause::RETURNING;
use super::place::all;
use super::sort::go_one_way;
use super::{Fabric, UPLINK};
use crate::clock::{Clock, Deadline};
use crate::pairs::Pairs;
use crate::receiver::Receiver;
use crate::transmitter::Transmitter;

/// Longest wait of frames for a receiver that takes none.
pub const STUCK: Duration = Duration::from_millis(100);
/// Longest wait where more frames may follow than are in sight.
pub const CROWDED: Duration = Duration::from_millis(1);

/// A queue pair, or the uplink, as the switch sees it. Times in ticks.
#[derive(Clone, Copy, Debug)]
pub struct PortQueue {
    port: u8,
    queue: usize,
    /// What its frames wait for; of the uplink, the frame that was read.
    wait: Option<Wait>,
    /// The wait that began at the last try. The next try takes it and continues there.
    begun: Option<Wait>,
    /// Since when it has not taken all frames that it should get.
    full_since: Option<u64>,
    /// When it last took a frame after that.
    took: u64,
}

/// Frames wait for the buffers of a pair, or for the uplink.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// The pair.
    pub receiver: usize,
    /// When the frames are dropped if there is still no room.
    pub until: Deadline,
    /// Progress through the first of the frames.
    pub progress: SegmentProgress,
}

/// Frames of one sender for the uplink.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// One bit for each frame of a burst.
    pub left: u64,
    /// Progress through the first of them.
    pub progress: SegmentProgress,
}

/// The longest waits, in ticks.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    stuck: u64,
    crowded: u64,
    returning: u64,
}

impl Patience {
    pub fn new(clock: &Clock) -> Self {
        let [stuck, crowded, returning] =
            [STUCK, CROWDED, RETURNING].map(|time| clock.ticks_in(time));
        Self { stuck, crowded, returning }
    }

    /// [`STUCK`] after `since`.
    pub fn stuck(&self, since: u64) -> Deadline {
        Deadline::after(since, self.stuck)
    }

    /// [`CROWDED`] after `since`.
    pub fn crowded(&self, since: u64) -> Deadline {
        Deadline::after(since, self.crowded)
    }

    /// [`RETURNING`] after `since`.
    pub fn returning(&self, since: u64) -> Deadline {
        Deadline::after(since, self.returning)
    }
}

/// A burst for which there was not room everywhere.
#[derive(Clone, Copy)]
pub struct Crowd {
    /// Number of its frames that were looked at.
    pub count: usize,
    /// Whether frames may follow that go elsewhere.
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

impl Fabric {
    /// Whether the frames of pair `at` must go on waiting for another pair's buffers: nothing has come that could end the
    /// wait.
    #[cold]
    pub(super) fn still_waits(
        &mut self,
        at: usize,
        sender: &Transmitter,
        rx: &[Receiver],
        is_uplink_blocked: bool,
        now: u64,
    ) -> bool {
        let waits = self.queues[at].wait().is_some_and(|wait| {
            let can_go_on = if wait.receiver == UPLINK {
                !is_uplink_blocked
            } else {
                rx[wait.receiver].may_have_room()
            };
            !can_go_on && !sender.has_grown() && !wait.until.is_due(now)
        });
        if !waits {
            self.queues[at].try_again();
        }
        waits
    }

    /// Whether the frame that was read from the uplink still waits for its receiver.
    pub(super) fn uplink_still_waits(&mut self, rx: &[Receiver], now: u64) -> bool {
        let Some(wait) = self.uplink_queue.wait() else { return false };
        let waits = !wait.until.is_due(now) && !rx[wait.receiver].may_have_room();
        if !waits {
            self.uplink_queue.try_again();
        }
        waits
    }

    /// Whether frames that wait can go on now.
    pub(super) fn can_go_on(&self, pairs: &Pairs) -> bool {
        let can_go_on = |(queue, tx): (&PortQueue, &Transmitter)| {
            let Some(Wait { receiver, .. }) = queue.wait() else { return false };
            tx.has_grown() || (receiver != UPLINK && pairs.receiver(receiver).may_have_room())
        };
        let transmitters = pairs.iter().map(|(tx, _)| tx);
        self.queues.iter().zip(transmitters).any(can_go_on)
    }

    /// Whether the frames `left` may wait for their receiver: not if a frame for anybody else follows them.
    #[cold]
    pub(super) fn may_wait(&self, wait: Wait, left: u64, crowd: Crowd, now: u64) -> bool {
        let first = left.trailing_zeros();
        let behind = all(crowd.count) >> first << first;
        left == behind && left & self.flooded == 0 && !wait.until.is_due(now)
    }

    /// Ends the wait of pair `at` as a sender; its next frame begins with its first segment.
    #[cold]
    pub(super) fn stop_waiting(&mut self, at: usize, rx: &mut [Receiver]) {
        if let Some(wait) = self.queues[at].stop_waiting() {
            self.let_go(wait.receiver, rx);
        }
    }

    /// Frames that waited for pair `receiver` are gone. Unless others wait for it, it is not starved any more.
    #[cold]
    pub(super) fn let_go(&self, receiver: usize, rx: &mut [Receiver]) {
        let waits_for_it =
            |queue: &PortQueue| queue.wait().is_some_and(|it| it.receiver == receiver);
        if receiver != UPLINK && !self.all_queues().any(waits_for_it) {
            rx[receiver].end_starvation();
        }
    }
}

impl PortQueue {
    pub const fn new(port: u8, queue: usize) -> Self {
        Self { port, queue, wait: None, begun: None, full_since: None, took: 0 }
    }

    /// The number of its port.
    pub const fn port(&self) -> u8 {
        self.port
    }

    /// Its number among the pairs of its port.
    pub const fn queue(&self) -> usize {
        self.queue
    }

    /// What its frames wait for, if they do.
    pub const fn wait(&self) -> Option<Wait> {
        self.wait
    }

    /// Whether its frames wait, or waited at the last try.
    pub const fn is_waiting(&self) -> bool {
        self.wait.is_some() || self.begun.is_some()
    }

    /// Its frames wait from now on.
    pub const fn start_waiting(&mut self, wait: Wait) {
        (self.wait, self.begun) = (Some(wait), Some(wait));
    }

    /// Its frames are tried again now.
    pub const fn try_again(&mut self) {
        self.wait = None;
    }

    /// Takes the wait that began at the last try.
    pub const fn take_begun(&mut self) -> Option<Wait> {
        self.begun.take()
    }

    /// Its frames wait no more. Returns what they waited for.
    const fn stop_waiting(&mut self) -> Option<Wait> {
        let (wait, begun) = (self.wait.take(), self.begun.take());
        if wait.is_some() { wait } else { begun }
    }

    /// It took all frames, or gets none any more.
    pub const fn note_room(&mut self) {
        self.full_since = None;
    }

    /// It did not take all frames; some of them if `took`.
    pub fn note_full(&mut self, now: u64, took: bool) {
        if self.full_since.is_none() || took {
            self.took = now;
        }
        self.full_since.get_or_insert(now);
    }

    /// When frames that wait for it are dropped: [`STUCK`] after it last took one or, where more frames may follow than
    /// are in sight (`is_crowded`), [`CROWDED`] after it was first full.
    pub fn wait_until(&self, is_crowded: bool, patience: &Patience) -> Deadline {
        if is_crowded {
            patience.crowded(self.full_since.unwrap_or_default())
        } else {
            patience.stuck(self.took)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use log_limit::LogLimit;

    use super::super::Member;
    use super::*;
    use crate::probe_targets::ProbeTargets;

    /// A guest that enables its rings over and over does not make frames of others wait longer, and no segment is sent twice.
    #[test]
    fn a_change_of_one_guests_rings_leaves_what_waits_for_others() {
        let member = Member { queue_pairs: 2, mac: None, mac_locked: false };
        let clock = Clock::from(burst_trace::Clock::default());
        let mut fabric = Fabric::new(&[member; 3], false, &clock);
        let log = Arc::new(LogLimit::new(""));
        let receiver = |pair| Receiver::new(0, Arc::clone(&log), pair, &ProbeTargets::default());
        let mut rx: Vec<_> = (0..6).map(receiver).collect();
        for (at, queue) in fabric.queues.iter_mut().enumerate() {
            let (until, progress) = (Deadline::after(0, 100), SegmentProgress::default());
            queue.start_waiting(Wait { receiver: (at + 2) % 6, until, progress });
            queue.note_full(50, false);
        }
        fabric.rings_changed(2, &mut rx, 80);
        for (at, queue) in fabric.queues.iter().enumerate() {
            let found = (queue.wait.is_some(), queue.begun.is_some(), queue.full_since.is_some());
            assert_eq!(found, (at != 2, at != 2, at != 2), "pair {at}");
        }
    }
}
