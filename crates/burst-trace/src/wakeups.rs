//! Wake-ups that the host kernel stamped, joined to the bursts that they were for.
//!
//! Bursts and wake-ups come from different producers of a recorder, in any order: both wait until figures are asked for,
//! or there are too many.

use std::mem;

use crate::record::BurstRecord;
use crate::stage::Direction;

/// So many bursts, and as many wake-ups, wait for one another at most: then the older ones are joined as they are.
const WAITING_MAX: usize = 1 << 20;
/// What waits to be joined.
#[derive(Clone, Debug, Default)]
pub struct Wakeups {
    bursts: Vec<Burst>,
    /// A worker, and when its thread was woken up, ticks.
    wakeups: Vec<(u32, u64)>,
}

/// A burst whose wake-up is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Burst {
    worker: u32,
    first: u64,
    ring: u16,
    packets: u16,
}

/// What the wake-up of a burst came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wakeup {
    /// Which way the burst went.
    pub direction: Direction,
    /// Its packets.
    pub packets: u16,
    /// From when its worker's thread was woken up to its first boundary.
    pub ticks: u64,
}

impl Wakeups {
    /// Adds a record of [`KernelStage::Wakeup`], which has the worker's number where a burst has its bytes.
    pub fn add(&mut self, record: &BurstRecord) {
        self.wakeups.push((record.bytes, record.first));
    }

    /// Adds a burst, unless there was no wake-up for it, or it knows itself how long that took.
    pub fn add_burst(&mut self, record: &BurstRecord) {
        if record.flags & BurstRecord::POLLED == 0 && record.wakeup.is_none() {
            let &BurstRecord { worker, first, ring, packets, .. } = record;
            self.bursts.push(Burst { worker: worker.into(), first, ring, packets });
        }
    }

    /// Forgets everything, and keeps its memory.
    pub fn clear(&mut self) {
        self.bursts.clear();
        self.wakeups.clear();
    }

    /// Everything that can be joined now.
    #[must_use]
    pub fn joined(&self) -> Vec<Wakeup> {
        self.clone().join(u64::MAX)
    }

    /// Takes out what can be joined of bursts that began before the last `waiting` ticks: the records of younger ones'
    /// wake-ups may still come.
    pub fn take_old(&mut self, waiting: u64) -> Vec<Wakeup> {
        let newest = self.bursts.iter().map(|burst| burst.first);
        let newest = newest.chain(self.wakeups.iter().map(|(_, at)| *at)).max().unwrap_or(0);
        self.take_before(newest.saturating_sub(waiting))
    }

    /// Takes out what can be joined of bursts that began before `until`, ticks, and forgets those that cannot.
    pub fn take_before(&mut self, until: u64) -> Vec<Wakeup> {
        self.join(until)
    }

    /// Takes out everything that can be joined now, and forgets the bursts that cannot.
    pub fn take(&mut self) -> Vec<Wakeup> {
        self.join(u64::MAX)
    }

    /// When there are too many to wait, joins those that are older than `waiting` ticks, or all.
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

    /// Takes out every burst that began before `until`, and tells of those that have a wake-up: the latest one of their
    /// worker's before they began. A worker that finds the next burst without having slept was not woken up for it, so
    /// a wake-up is for the bursts of one beginning only.
    fn join(&mut self, until: u64) -> Vec<Wakeup> {
        let (mut old, young) =
            mem::take(&mut self.bursts).into_iter().partition::<Vec<_>, _>(|it| it.first < until);
        self.bursts = young;
        old.sort_unstable();
        self.wakeups.sort_unstable();
        let mut joined = Vec::new();
        // Wake-ups that were taken, in order, and by which beginning.
        let mut taken: Vec<((u32, u64), u64)> = Vec::new();
        for burst in old {
            let behind = self.wakeups.partition_point(|it| *it <= (burst.worker, burst.first));
            let latest = behind.checked_sub(1).map(|n| self.wakeups[n]);
            let Some(wakeup) = latest.filter(|(worker, _)| *worker == burst.worker) else {
                continue;
            };
            if taken.last().is_none_or(|(other, _)| *other != wakeup) {
                taken.push((wakeup, burst.first));
            }
            if taken.last().is_some_and(|(_, first)| *first == burst.first) {
                let (direction, packets) = (Direction::of_ring(burst.ring), burst.packets);
                joined.push(Wakeup { direction, packets, ticks: burst.first - wakeup.1 });
            }
        }
        // The burst of the latest one may still come.
        let is_latest = |n: usize, all: &[(u32, u64)]| {
            all.get(n + 1).is_none_or(|next| next.0 != all[n].0 || next.1 >= until)
        };
        let all = mem::take(&mut self.wakeups);
        let stays = |(n, it): (usize, &(u32, u64))| {
            let is_free = || taken.binary_search_by_key(it, |(wakeup, _)| *wakeup).is_err();
            (it.1 >= until || (is_latest(n, &all) && is_free())).then_some(*it)
        };
        self.wakeups = all.iter().enumerate().filter_map(stays).collect();
        joined
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::RecordKind;
    use crate::stage::KernelStage;

    fn burst(worker: u8, first: u64, packets: u16) -> BurstRecord {
        let kind = RecordKind::Burst as u8;
        BurstRecord { kind, worker, first, last: first + 5, packets, ring: 1, ..Default::default() }
    }

    fn wakeup(worker: u32, first: u64) -> BurstRecord {
        let (kind, cause) = (RecordKind::Kernel as u8, KernelStage::Wakeup as u8);
        BurstRecord { kind, cause, bytes: worker, first, last: first + 1, ..Default::default() }
    }

    fn found(wakeups: &Wakeups) -> Vec<(u16, u64)> {
        wakeups.joined().iter().map(|it| (it.packets, it.ticks)).collect()
    }

    #[test]
    fn a_burst_has_the_latest_wake_up_of_its_worker_in_whatever_order_they_come() {
        let mut wakeups = Wakeups::default();
        wakeups.add_burst(&burst(0, 110, 1));
        wakeups.add_burst(&burst(1, 111, 2));
        wakeups.add(&wakeup(1, 104));
        wakeups.add(&wakeup(0, 90));
        wakeups.add(&wakeup(0, 103));
        wakeups.add(&wakeup(0, 120));
        wakeups.add_burst(&burst(2, 115, 3));
        assert_eq!(found(&wakeups), [(1, 7), (2, 7)]);
        assert_eq!(found(&wakeups), [(1, 7), (2, 7)], "asking changes nothing");
    }

    #[test]
    fn a_wake_up_is_for_one_beginning() {
        let mut wakeups = Wakeups::default();
        wakeups.add(&wakeup(0, 100));
        for (first, packets) in [(110, 1), (110, 2), (150, 3)] {
            wakeups.add_burst(&burst(0, first, packets));
        }
        assert_eq!(found(&wakeups), [(1, 10), (2, 10)]);
    }

    #[test]
    fn what_is_young_goes_on_waiting_and_what_was_taken_is_gone() {
        let mut wakeups = Wakeups::default();
        wakeups.add_burst(&burst(0, 110, 1));
        wakeups.add(&wakeup(0, 100));
        wakeups.add_burst(&burst(0, 210, 2));
        let ticks = |joined: Vec<Wakeup>| joined.iter().map(|it| it.ticks).collect::<Vec<_>>();
        assert_eq!(ticks(wakeups.take_old(50)), [10]);
        assert_eq!(ticks(wakeups.take_old(50)), []);
        // Late, but in time.
        wakeups.add(&wakeup(0, 203));
        assert_eq!(ticks(wakeups.take()), [7]);
        wakeups.add_burst(&burst(0, 310, 2));
        assert_eq!(ticks(wakeups.take()), [], "each wake-up is taken once");
    }

    #[test]
    fn bursts_that_were_polled_for_or_know_their_wake_up_have_none_from_here() {
        let mut wakeups = Wakeups::default();
        wakeups.add(&wakeup(0, 100));
        wakeups.add_burst(&BurstRecord { flags: BurstRecord::POLLED, ..burst(0, 110, 1) });
        wakeups.add_burst(&BurstRecord { wakeup: Some(4), ..burst(0, 110, 2) });
        assert_eq!(found(&wakeups), []);
    }

    #[test]
    fn too_many_are_joined_as_they_come_and_none_twice() {
        const WAITING: u64 = 1_000_000;
        let mut wakeups = Wakeups::default();
        let (mut joined, count) = (0, WAITING_MAX as u64 + 5_000);
        for n in 0..count {
            wakeups.add(&wakeup(0, n * 10));
            wakeups.add_burst(&burst(0, n * 10 + 3, 1));
            let early = wakeups.overflow(WAITING);
            assert!(early.iter().all(|it| it.ticks == 3));
            joined += early.len();
        }
        assert!(joined > 0 && wakeups.bursts.len() < WAITING_MAX);
        assert_eq!((joined + wakeups.joined().len()) as u64, count);
    }
}
