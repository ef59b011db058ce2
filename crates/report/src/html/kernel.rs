//! What the host kernel had to do with the slowest bursts.
//!
//! Kernel times come from another producer than bursts, in any order, and no record says whose frame they are of. They
//! belong to a burst by their time:
//!
//! - `wakeup`: the latest of the worker's thread before the burst began, if no other burst of the worker began since; the
//!   burst's own record counts more.
//! - `host-rx`: a frame that was handed to the datapath after the ring's burst before was in place, and before this one was.
//! - `host-tx`: a frame that the kernel took within the burst's egress.
//! - `inject`: the front end was woken up while the burst was signalled.
//!
//! All but the first are of a guest, not of a queue: where there are several queue pairs, nobody knows whose they are.

use std::collections::{BTreeMap, VecDeque};

use burst_trace::{BurstRecord, Direction, KernelStage, Stage};
use serde::Serialize;

use crate::figures::TickRate;

/// So many times, the last ones, are looked at for one burst.
const CANDIDATES: usize = 256;

/// A time in the kernel that belongs to a burst: where there were several, the longest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KernelTime {
    stage: &'static str,
    /// When it began, after the burst's first boundary.
    at_ns: i64,
    ns: u64,
    /// How many there were.
    count: usize,
}

/// Finds them for some bursts.
pub struct Kernel {
    /// By worker and by ring: which bursts, in the order of their first boundary.
    workers: BTreeMap<u32, Vec<Place>>,
    rings: BTreeMap<u16, Vec<Place>>,
    bursts: Vec<Known>,
    /// The longest of the bursts, ticks.
    longest: u64,
    has_one_pair: bool,
}

/// A burst in one of the orders.
#[derive(Clone, Copy)]
struct Place {
    first: u64,
    burst: usize,
    /// The latest wake-up that was not after its first boundary, if it is after the burst's before.
    woken: u64,
    /// The latest that is known of a burst before it: its first boundary, or when its frames were in place.
    before: u64,
}

struct Known {
    record: BurstRecord,
    /// From when to when, by stage.
    times: VecDeque<(KernelStage, u64, u64)>,
}

impl Kernel {
    /// For these bursts.
    pub fn new(bursts: impl Iterator<Item = BurstRecord>, queue_pairs: usize) -> Self {
        let bursts: Vec<_> =
            bursts.map(|record| Known { record, times: VecDeque::new() }).collect();
        let (mut workers, mut rings) = (BTreeMap::new(), BTreeMap::new());
        for (burst, Known { record, .. }) in bursts.iter().enumerate() {
            let place = Place { first: record.first, burst, woken: 0, before: 0 };
            workers.entry(record.worker.into()).or_insert_with(Vec::new).push(place);
            rings.entry(record.ring).or_insert_with(Vec::new).push(place);
        }
        let all = workers.values_mut().chain(rings.values_mut());
        all.for_each(|places| places.sort_unstable_by_key(|place| place.first));
        let longest = bursts.iter().map(|it| it.record.total()).max().unwrap_or(0);
        Self { workers, rings, bursts, longest, has_one_pair: queue_pairs == 1 }
    }

    /// Takes a burst into account that may be before one of them.
    pub fn add_burst(&mut self, record: &BurstRecord) {
        // What it says holds for all later ones; that is seen to in the end.
        if let Some(next) =
            next(self.workers.get_mut(&record.worker.into()), record.first.saturating_add(1))
        {
            next.before = next.before.max(record.first);
        }
        if let Some(next) = next(self.rings.get_mut(&record.ring), record.first.saturating_add(1)) {
            next.before = next.before.max(in_place(record));
        }
    }

    /// Takes a time in the kernel into account.
    pub fn add(&mut self, record: &BurstRecord, stage: KernelStage) {
        let Some(direction) = stage.direction() else {
            if let Some(next) = next(self.workers.get_mut(&record.bytes), record.first) {
                next.woken = next.woken.max(record.first);
            }
            return;
        };
        // Where a frame is the datapath's, or the front end is called.
        let at = if stage == KernelStage::HostRx { record.last } else { record.first };
        if !self.has_one_pair {
            return;
        }
        let Some(places) = self.rings.get(&u16::from(direction == Direction::Tx)) else { return };
        let from = places.partition_point(|place| place.first.saturating_add(self.longest) < at);
        for place in &places[from..] {
            let burst = &mut self.bursts[place.burst];
            let (begin, end) = match stage {
                KernelStage::HostTx => during(&burst.record, Stage::Egress),
                KernelStage::Inject => during(&burst.record, Stage::Signal),
                // Since when is known in the end.
                KernelStage::HostRx | KernelStage::Wakeup => (0, in_place(&burst.record)),
            };
            if (begin..=end).contains(&at) {
                if burst.times.len() == CANDIDATES {
                    burst.times.pop_front();
                }
                burst.times.push_back((stage, record.first, record.last));
                // A frame is of the first burst that could have it.
                break;
            }
        }
    }

    /// What belongs to each of them, in their order.
    pub fn finish(mut self, rate: TickRate) -> Vec<Vec<KernelTime>> {
        let mut found: Vec<_> = self.bursts.iter().map(|_| Vec::new()).collect();
        for place in self.rings.values_mut().flat_map(|places| in_order(places)) {
            let Known { record, times } = &mut self.bursts[place.burst];
            times.retain(|&(stage, _, last)| stage != KernelStage::HostRx || last > place.before);
            let stages = [KernelStage::HostRx, KernelStage::HostTx, KernelStage::Inject];
            found[place.burst].extend(stages.iter().filter_map(|stage| {
                let of_it = times.iter().filter(|(it, ..)| it == stage);
                let count = of_it.clone().count();
                let ticks = |(_, first, last): &(_, u64, u64)| last.saturating_sub(*first);
                let longest = of_it.max_by_key(|it| ticks(it))?;
                let at_ns = since(record, longest.1, rate);
                Some(KernelTime { stage: stage.name(), at_ns, ns: rate.ns(ticks(longest)), count })
            }));
        }
        for place in self.workers.values_mut().flat_map(|places| in_order(places)) {
            let record = &self.bursts[place.burst].record;
            let is_polled = record.flags & BurstRecord::POLLED != 0;
            let joined = (!is_polled && place.woken > 0 && place.woken > place.before)
                .then(|| record.first - place.woken);
            if let Some(ticks) = record.wakeup.map(u64::from).or(joined) {
                let ns = rate.ns(ticks);
                let stage = KernelStage::Wakeup.name();
                let at_ns = -ns.cast_signed();
                found[place.burst].push(KernelTime { stage, at_ns, ns, count: 1 });
            }
        }
        found
    }
}

/// The first of the bursts that begins at `from` or later.
fn next(places: Option<&mut Vec<Place>>, from: u64) -> Option<&mut Place> {
    let places = places?;
    let at = places.partition_point(|place| place.first < from);
    places.get_mut(at)
}

/// With what is known of bursts before each.
fn in_order(places: &mut [Place]) -> Vec<Place> {
    let (mut before, mut woken) = (0, 0);
    for place in &mut *places {
        before = place.before.max(before);
        woken = place.woken.max(woken);
        (place.before, place.woken) = (before, woken);
    }
    places.to_vec()
}

/// From when to when a burst was in a stage of its direction.
fn during(record: &BurstRecord, stage: Stage) -> (u64, u64) {
    let stages = record.direction().stages();
    let at = stages.iter().position(|it| *it == stage).unwrap_or(0);
    // Whatever a file says.
    let begin =
        record.stages[..at].iter().fold(record.first, |at, ticks| at.saturating_add(*ticks));
    (begin, begin.saturating_add(record.stages[at]))
}

/// When a burst's frames were in guest memory, or with the datapath.
fn in_place(record: &BurstRecord) -> u64 {
    match record.direction() {
        Direction::Rx => during(record, Stage::Place).1,
        Direction::Tx => during(record, Stage::Egress).1,
    }
}

fn since(record: &BurstRecord, ticks: u64, rate: TickRate) -> i64 {
    let ns = rate.ns(ticks.abs_diff(record.first)).cast_signed();
    if ticks < record.first { -ns } else { ns }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burst_trace::RecordKind;

    /// From 100 on, 10 in each stage.
    fn burst(worker: u8, ring: u16, first: u64) -> BurstRecord {
        let stages = Direction::of_ring(ring).stages().len();
        let mut record = BurstRecord { worker, ring, first, packets: 1, ..BurstRecord::default() };
        record.kind = RecordKind::Burst as u8;
        record.stages[..stages].fill(10);
        record.last = first + 10 * stages as u64;
        record
    }

    fn time(kernel: &mut Kernel, stage: KernelStage, worker: u32, first: u64, last: u64) {
        let record = BurstRecord { bytes: worker, first, last, ..BurstRecord::default() };
        kernel.add(&record, stage);
    }

    fn found(kernel: Kernel) -> Vec<Vec<(&'static str, i64, u64, usize)>> {
        let times = kernel.finish(TickRate::new(1_000_000_000));
        let said = |it: &KernelTime| (it.stage, it.at_ns, it.ns, it.count);
        times.iter().map(|times| times.iter().map(said).collect()).collect()
    }

    #[test]
    fn times_belong_to_the_burst_they_were_within() {
        use KernelStage::{HostRx, HostTx, Inject, Wakeup};
        let slow = [burst(0, 1, 1000), burst(0, 0, 2000)];
        let mut kernel = Kernel::new(slow.into_iter(), 1);
        // Kernel times first, and bursts around the slow ones.
        time(&mut kernel, Wakeup, 0, 900, 910);
        time(&mut kernel, Wakeup, 0, 990, 999);
        time(&mut kernel, Wakeup, 1, 995, 996);
        time(&mut kernel, Wakeup, 0, 1970, 1990);
        // Egress is from 1030 to 1040.
        for (first, last) in [(1029, 1500), (1031, 1033), (1035, 1042), (1041, 1045)] {
            time(&mut kernel, HostTx, 0, first, last);
        }
        // The one before was in place at 1930, this one is at 2030.
        for (first, last) in [(1900, 1930), (1910, 1931), (2020, 2030), (2020, 2031)] {
            time(&mut kernel, HostRx, 0, first, last);
        }
        // Signal is from 2040 to 2050.
        time(&mut kernel, Inject, 0, 2039, 2060);
        time(&mut kernel, Inject, 0, 2045, 2075);
        for record in [burst(0, 0, 950), burst(1, 0, 998), burst(0, 0, 1900)].iter().chain(&slow) {
            kernel.add_burst(record);
        }
        assert_eq!(
            found(kernel),
            [
                vec![("host-tx", 35, 7, 2), ("wakeup", -10, 10, 1)],
                vec![("host-rx", -90, 21, 2), ("inject", 45, 30, 1), ("wakeup", -30, 30, 1)],
            ]
        );
    }

    #[test]
    fn a_wake_up_is_not_of_the_burst_after_next_nor_of_what_was_polled() {
        let polled = BurstRecord { flags: BurstRecord::POLLED, ..burst(0, 1, 3000) };
        let told = BurstRecord { wakeup: Some(7), ..burst(0, 1, 4000) };
        let slow = [burst(0, 1, 1000), burst(0, 0, 1000), burst(0, 1, 2000), polled, told];
        let mut kernel = Kernel::new(slow.into_iter(), 1);
        for at in [995, 2995, 3995] {
            time(&mut kernel, KernelStage::Wakeup, 0, at, at + 1);
        }
        slow.iter().for_each(|record| kernel.add_burst(record));
        let of = |ns: u64| vec![("wakeup", -ns.cast_signed(), ns, 1)];
        assert_eq!(found(kernel), [of(5), of(5), vec![], vec![], of(7)]);
    }

    #[test]
    fn with_several_queues_nobody_knows_whose_a_frame_was() {
        let mut kernel = Kernel::new([burst(0, 1, 1000)].into_iter(), 2);
        time(&mut kernel, KernelStage::HostTx, 0, 1031, 1033);
        time(&mut kernel, KernelStage::Wakeup, 0, 990, 999);
        assert_eq!(found(kernel), [vec![("wakeup", -10, 10, 1)]]);
    }

    #[test]
    fn many_frames_before_a_burst_do_not_hide_its_own() {
        let mut kernel = Kernel::new([burst(0, 0, 9000)].into_iter(), 1);
        for n in 0..2 * CANDIDATES as u64 {
            time(&mut kernel, KernelStage::HostRx, 0, n, n + 5);
        }
        time(&mut kernel, KernelStage::HostRx, 0, 8990, 8999);
        kernel.add_burst(&burst(0, 0, 8000));
        assert_eq!(found(kernel), [vec![("host-rx", -10, 9, 1)]]);
    }
}
