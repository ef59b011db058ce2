//! The wake-ups of all bursts.
//!
//! Bursts and wake-ups come from different writers of a recorder, in any order. Both wait until figures are asked for, or
//! until there are too many of them.

use std::mem;

use super::{is_for, lacks_wakeup};
use crate::record::{BurstTimes, KernelSpan};
use crate::stage::{Direction, KernelStage};

/// Most bursts that wait for their wake-ups, and most wake-ups that wait for their bursts. Beyond that, the older ones are
/// joined as they are.
const WAITING_MAX: usize = 1 << 20;

/// Bursts and wake-ups that wait to be joined.
#[derive(Clone, Debug, Default)]
pub struct Wakeups {
    bursts: Vec<Burst>,
    /// Workers, and when their threads were woken up, ticks.
    wakeups: Vec<(u32, u64)>,
    /// The latest first boundary of each worker's bursts so far, whether they wait or not; by worker.
    begun: Vec<Option<u64>>,
}

/// A burst that waits for its wake-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Burst {
    worker: u32,
    first: u64,
    /// The first boundary of the worker's burst before it, as far as that was known when it came.
    before: Option<u64>,
    ring: u16,
    packets: u16,
}

/// The wake-up of a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wakeup {
    /// Which way the burst went.
    pub direction: Direction,
    /// Its virtqueue index.
    pub ring: u16,
    /// Its worker.
    pub worker: u32,
    /// Its first boundary, ticks.
    pub first: u64,
    /// Its packets.
    pub packets: u16,
    /// From the wake-up of its worker's thread to its first boundary.
    pub ticks: u64,
}

impl Wakeups {
    /// Adds a kernel span; only wake-ups count.
    pub fn add(&mut self, span: &KernelSpan) {
        if span.stage == KernelStage::Wakeup
            && let Some(worker) = span.worker
        {
            self.wakeups.push((worker, span.start));
        }
    }

    /// Adds a burst of `packets`. It waits, unless it can have no wake-up or its record has it.
    pub fn add_burst(&mut self, burst: &BurstTimes, packets: u16) {
        let &BurstTimes { worker, first, ring, .. } = burst;
        let at = usize::from(worker);
        if at >= self.begun.len() {
            self.begun.resize(at + 1, None);
        }
        let before = self.begun[at].filter(|begun| *begun < first);
        self.begun[at] = self.begun[at].max(Some(first));
        if lacks_wakeup(burst) {
            self.bursts.push(Burst { worker: worker.into(), first, before, ring, packets });
        }
    }

    /// Forgets everything, and keeps its memory.
    pub fn clear(&mut self) {
        self.bursts.clear();
        self.wakeups.clear();
        self.begun.clear();
    }

    /// The wake-ups of all waiting bursts that have one by now.
    #[must_use]
    pub fn joined(&self) -> Vec<Wakeup> {
        self.clone().join(u64::MAX)
    }

    /// Removes the bursts that began before the last `waiting` ticks, and returns their wake-ups. Those of younger bursts
    /// may still come.
    pub fn take_old(&mut self, waiting: u64) -> Vec<Wakeup> {
        let newest = self.bursts.iter().map(|burst| burst.first);
        let newest = newest.chain(self.wakeups.iter().map(|(_, at)| *at)).max().unwrap_or(0);
        self.take_before(newest.saturating_sub(waiting))
    }

    /// Removes the bursts that began before `until`, ticks, and returns their wake-ups.
    pub fn take_before(&mut self, until: u64) -> Vec<Wakeup> {
        self.join(until)
    }

    /// Removes all bursts, and returns their wake-ups.
    pub fn take(&mut self) -> Vec<Wakeup> {
        self.join(u64::MAX)
    }

    /// When too many wait: removes those that are older than `waiting` ticks, or all, and returns their wake-ups.
    pub fn overflow(&mut self, waiting: u64) -> Vec<Wakeup> {
        if self.bursts.len().max(self.wakeups.len()) < WAITING_MAX {
            return Vec::new();
        }
        let mut joined = self.take_old(waiting);
        if self.bursts.len().max(self.wakeups.len()) > WAITING_MAX / 2 {
            joined.extend(self.join(u64::MAX));
        }
        joined
    }

    /// Removes every burst that began before `until`, and the wake-ups that can belong to no later one.
    fn join(&mut self, until: u64) -> Vec<Wakeup> {
        let (mut old, young) =
            mem::take(&mut self.bursts).into_iter().partition::<Vec<_>, _>(|it| it.first < until);
        self.bursts = young;
        old.sort_unstable();
        self.wakeups.sort_unstable();
        let mut joined = Vec::new();
        // Wake-ups that belong to a burst, in order.
        let mut taken: Vec<(u32, u64)> = Vec::new();
        // The worker's burst before, and its worker.
        let mut last: Option<(u32, u64)> = None;
        let mut earlier = None;
        for burst in old {
            // Bursts of one worker may come in another order than that of their first boundaries.
            if last.is_none_or(|last| last != (burst.worker, burst.first)) {
                earlier = last.filter(|(worker, _)| *worker == burst.worker).map(|(_, at)| at);
                last = Some((burst.worker, burst.first));
            }
            let after = self.wakeups.partition_point(|it| *it <= (burst.worker, burst.first));
            let latest = after.checked_sub(1).map(|n| self.wakeups[n]);
            let Some(wakeup) = latest.filter(|(worker, at)| {
                *worker == burst.worker && is_for(*at, burst.before.max(earlier))
            }) else {
                continue;
            };
            if taken.last() != Some(&wakeup) {
                taken.push(wakeup);
            }
            let Burst { worker, ring, first, packets, .. } = burst;
            let (direction, ticks) = (Direction::of_ring(ring), first - wakeup.1);
            joined.push(Wakeup { direction, ring, worker, first, packets, ticks });
        }
        // The burst of a worker's latest wake-up may still come.
        let is_latest = |n: usize, all: &[(u32, u64)]| {
            all.get(n + 1).is_none_or(|next| next.0 != all[n].0 || next.1 >= until)
        };
        let all = mem::take(&mut self.wakeups);
        let stays = |(n, it): (usize, &(u32, u64))| {
            let is_free = || taken.binary_search(it).is_err();
            (it.1 >= until || (is_latest(n, &all) && is_free())).then_some(*it)
        };
        self.wakeups = all.iter().enumerate().filter_map(stays).collect();
        joined
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn burst(worker: u8, first: u64) -> BurstTimes {
        BurstTimes {
            worker,
            first,
            last: first + 5,
            ring: 1,
            stages: [0; crate::stage::STAGES_MAX],
            is_polled: false,
            wakeup: None,
        }
    }

    fn wakeup(worker: u32, start: u64) -> KernelSpan {
        let stage = KernelStage::Wakeup;
        KernelSpan { stage, start, end: start + 1, worker: Some(worker), writer: 9 }
    }

    fn found(wakeups: &Wakeups) -> Vec<(u16, u64)> {
        wakeups.joined().iter().map(|it| (it.packets, it.ticks)).collect()
    }

    #[test]
    fn a_burst_has_the_latest_wake_up_of_its_worker_in_whatever_order_they_come() {
        let mut wakeups = Wakeups::default();
        wakeups.add_burst(&burst(0, 110), 1);
        wakeups.add_burst(&burst(1, 111), 2);
        wakeups.add(&wakeup(1, 104));
        wakeups.add(&wakeup(0, 90));
        wakeups.add(&wakeup(0, 103));
        wakeups.add(&wakeup(0, 120));
        wakeups.add_burst(&burst(2, 115), 3);
        assert_eq!(found(&wakeups), [(1, 7), (2, 7)]);
        assert_eq!(found(&wakeups), [(1, 7), (2, 7)], "asking changes nothing");
    }

    #[test]
    fn a_wake_up_belongs_to_one_beginning() {
        let mut wakeups = Wakeups::default();
        wakeups.add(&wakeup(0, 100));
        for (first, packets) in [(110, 1), (110, 2), (150, 3)] {
            wakeups.add_burst(&burst(0, first), packets);
        }
        assert_eq!(found(&wakeups), [(1, 10), (2, 10)]);
    }

    #[test]
    fn a_wake_up_before_a_burst_found_by_polling_belongs_to_no_later_one() {
        let mut wakeups = Wakeups::default();
        wakeups.add(&wakeup(0, 100));
        wakeups.add_burst(&BurstTimes { is_polled: true, ..burst(0, 110) }, 1);
        wakeups.add_burst(&burst(1, 120), 2);
        wakeups.add_burst(&burst(0, 130), 3);
        assert_eq!(found(&wakeups), []);
        wakeups.add(&wakeup(0, 125));
        assert_eq!(found(&wakeups), [(3, 5)]);
    }

    #[test]
    fn bursts_may_come_in_another_order_than_they_began() {
        let mut wakeups = Wakeups::default();
        wakeups.add(&wakeup(0, 100));
        for (first, packets) in [(110, 1), (105, 2), (105, 3), (150, 4)] {
            wakeups.add_burst(&burst(0, first), packets);
        }
        assert_eq!(found(&wakeups), [(2, 5), (3, 5)]);
    }

    #[test]
    fn young_bursts_go_on_waiting_and_old_ones_are_gone() {
        let mut wakeups = Wakeups::default();
        wakeups.add_burst(&burst(0, 110), 1);
        wakeups.add(&wakeup(0, 100));
        wakeups.add_burst(&burst(0, 210), 2);
        let ticks = |joined: Vec<Wakeup>| joined.iter().map(|it| it.ticks).collect::<Vec<_>>();
        assert_eq!(ticks(wakeups.take_old(50)), [10]);
        assert_eq!(ticks(wakeups.take_old(50)), []);
        // Late, but before its burst was removed.
        wakeups.add(&wakeup(0, 203));
        assert_eq!(ticks(wakeups.take()), [7]);
        wakeups.add_burst(&burst(0, 310), 2);
        assert_eq!(ticks(wakeups.take()), [], "each wake-up is taken once");
    }

    #[test]
    fn bursts_found_by_polling_or_with_a_wake_up_of_their_own_get_none() {
        let mut wakeups = Wakeups::default();
        wakeups.add(&wakeup(0, 100));
        wakeups.add_burst(&BurstTimes { is_polled: true, ..burst(0, 110) }, 1);
        wakeups.add_burst(&BurstTimes { wakeup: Some(4), ..burst(0, 110) }, 2);
        assert_eq!(found(&wakeups), []);
    }

    #[test]
    fn too_many_are_joined_as_they_come_and_each_once() {
        const WAITING: u64 = 1_000_000;
        let mut wakeups = Wakeups::default();
        let (mut joined, count) = (0, WAITING_MAX as u64 + 5_000);
        for n in 0..count {
            wakeups.add(&wakeup(0, n * 10));
            wakeups.add_burst(&burst(0, n * 10 + 3), 1);
            let early = wakeups.overflow(WAITING);
            assert!(early.iter().all(|it| it.ticks == 3));
            joined += early.len();
        }
        assert!(joined > 0 && wakeups.bursts.len() < WAITING_MAX);
        assert_eq!((joined + wakeups.joined().len()) as u64, count);
    }
}
