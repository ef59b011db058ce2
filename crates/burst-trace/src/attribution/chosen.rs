//! All kernel spans of a few bursts.

use std::collections::{BTreeMap, VecDeque};

use super::{in_place, is_for, lacks_wakeup, moment, window};
use crate::record::{BurstTimes, KernelSpan, Record};
use crate::stage::{Direction, KernelStage};

/// Most spans that are considered for one burst: the latest ones.
const CANDIDATES_MAX: usize = 256;

/// A time in the host kernel that belongs to a burst. Of several, the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BurstSpan {
    /// Which stage.
    pub stage: KernelStage,
    /// When it began, ticks.
    pub start: u64,
    /// When it ended, ticks.
    pub end: u64,
    /// Number of spans of this stage that belong to the burst.
    pub count: usize,
}

/// Finds the kernel spans of chosen bursts. It is given every record once, in any order.
#[derive(Debug)]
pub struct Chosen {
    /// The bursts of each worker, in the order of their first boundaries.
    workers: BTreeMap<u32, Vec<Place>>,
    /// The bursts of each ring, in the order of their first boundaries.
    rings: BTreeMap<u16, Vec<Place>>,
    bursts: Vec<Known>,
    /// The longest time of any of the bursts, ticks.
    longest: u64,
    has_one_pair: bool,
}

/// A chosen burst among those of its worker or ring.
#[derive(Clone, Copy, Debug)]
struct Place {
    first: u64,
    /// Its index in [`Chosen::bursts`].
    burst: usize,
    /// The latest wake-up up to its first boundary.
    woken: Option<u64>,
    /// Of the worker's bursts before it, the latest first boundary; of the ring's, the latest that was in place.
    before: Option<u64>,
}

#[derive(Debug)]
struct Known {
    times: BurstTimes,
    spans: VecDeque<KernelSpan>,
}

impl Chosen {
    /// Looks for the spans of these bursts. The device has `queue_pairs` queue pairs.
    #[must_use]
    pub fn new(bursts: impl Iterator<Item = BurstTimes>, queue_pairs: usize) -> Self {
        let bursts: Vec<_> = bursts.map(|times| Known { times, spans: VecDeque::new() }).collect();
        let (mut workers, mut rings) = (BTreeMap::new(), BTreeMap::new());
        for (burst, Known { times, .. }) in bursts.iter().enumerate() {
            let place = Place { first: times.first, burst, woken: None, before: None };
            workers.entry(times.worker.into()).or_insert_with(Vec::new).push(place);
            rings.entry(times.ring).or_insert_with(Vec::new).push(place);
        }
        let all = workers.values_mut().chain(rings.values_mut());
        all.for_each(|places| places.sort_unstable_by_key(|place| place.first));
        let longest = bursts.iter().map(|it| it.times.last.wrapping_sub(it.times.first)).max();
        let longest = longest.unwrap_or(0);
        Self { workers, rings, bursts, longest, has_one_pair: queue_pairs == 1 }
    }

    /// Takes a record into account, whether it is one of the chosen bursts, another one, or a kernel span.
    pub fn add(&mut self, record: &Record) {
        match record {
            Record::Burst(burst) => self.add_burst(&burst.times()),
            Record::KernelSpan(span) => self.add_span(span),
            _ => {}
        }
    }

    /// A burst ends what may belong to the chosen one after it. That holds for all later ones too; `finish` sees to it.
    fn add_burst(&mut self, burst: &BurstTimes) {
        let after = burst.first.saturating_add(1);
        if let Some(next) = next(self.workers.get_mut(&burst.worker.into()), after) {
            next.before = next.before.max(Some(burst.first));
        }
        if let Some(next) = next(self.rings.get_mut(&burst.ring), after) {
            next.before = next.before.max(Some(in_place(burst)));
        }
    }

    fn add_span(&mut self, span: &KernelSpan) {
        let at = moment(span);
        let Some(direction) = span.stage.direction() else {
            let places = span.worker.and_then(|worker| self.workers.get_mut(&worker));
            if let Some(next) = next(places, at) {
                next.woken = next.woken.max(Some(at));
            }
            return;
        };
        if !self.has_one_pair {
            return;
        }
        let Some(places) = self.rings.get(&u16::from(direction == Direction::Tx)) else { return };
        let from = places.partition_point(|place| place.first.saturating_add(self.longest) < at);
        for place in &places[from..] {
            let burst = &mut self.bursts[place.burst];
            let (begin, end) = window(span.stage, &burst.times);
            if (begin..=end).contains(&at) {
                if burst.spans.len() == CANDIDATES_MAX {
                    burst.spans.pop_front();
                }
                burst.spans.push_back(*span);
                // It belongs to the first burst that it can belong to.
                break;
            }
        }
    }

    /// The spans of each burst, in the order in which the bursts were given.
    #[must_use]
    pub fn finish(mut self) -> Vec<Vec<BurstSpan>> {
        let mut found: Vec<_> = self.bursts.iter().map(|_| Vec::new()).collect();
        for place in self.rings.values_mut().flat_map(|places| in_order(places)) {
            let spans = &mut self.bursts[place.burst].spans;
            let is_later = |span: &KernelSpan| place.before.is_none_or(|it| moment(span) > it);
            spans.retain(|span| span.stage != KernelStage::HostRx || is_later(span));
            let stages = [KernelStage::HostRx, KernelStage::HostTx, KernelStage::Inject];
            found[place.burst].extend(stages.iter().filter_map(|&stage| {
                let of_stage = spans.iter().filter(|span| span.stage == stage);
                let count = of_stage.clone().count();
                let &KernelSpan { start, end, .. } = of_stage.max_by_key(|span| span.total())?;
                Some(BurstSpan { stage, start, end: end.max(start), count })
            }));
        }
        for place in self.workers.values_mut().flat_map(|places| in_order(places)) {
            let burst = &self.bursts[place.burst].times;
            let joined = place.woken.filter(|&woken| is_for(woken, place.before));
            let own = burst.wakeup.map(|ticks| burst.first.saturating_sub(ticks.into()));
            if let Some(start) = own.or(joined.filter(|_| lacks_wakeup(burst))) {
                let (stage, end) = (KernelStage::Wakeup, burst.first);
                found[place.burst].push(BurstSpan { stage, start, end, count: 1 });
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

/// The same bursts; each also has what is known from those before it.
fn in_order(places: &mut [Place]) -> Vec<Place> {
    let (mut before, mut woken) = (None, None);
    for place in &mut *places {
        before = place.before.max(before);
        woken = place.woken.max(woken);
        (place.before, place.woken) = (before, woken);
    }
    places.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::BurstRecord;
    use crate::stage::Stage;

    /// From `first` on, 10 in each stage. No limit held it back.
    fn burst(worker: u8, ring: u16, first: u64) -> BurstRecord {
        let stages = Direction::of_ring(ring).stages();
        let mut record = BurstRecord { worker, ring, first, packets: 1, ..BurstRecord::default() };
        for (ticks, stage) in record.stages.iter_mut().zip(stages) {
            *ticks = if *stage == Stage::Limited { 0 } else { 10 };
        }
        record.last = first + record.stages.iter().sum::<u64>();
        record
    }

    fn chosen(bursts: &[BurstRecord], queue_pairs: usize) -> Chosen {
        Chosen::new(bursts.iter().map(BurstRecord::times), queue_pairs)
    }

    fn span(chosen: &mut Chosen, stage: KernelStage, worker: u32, start: u64, end: u64) {
        let worker = stage.is_of_a_worker().then_some(worker);
        chosen.add(&Record::KernelSpan(KernelSpan { stage, start, end, worker, writer: 9 }));
    }

    /// Each burst's spans: stage, start, length and count.
    fn found(chosen: Chosen) -> Vec<Vec<(KernelStage, u64, u64, usize)>> {
        let said = |it: &BurstSpan| (it.stage, it.start, it.end - it.start, it.count);
        chosen.finish().iter().map(|spans| spans.iter().map(said).collect()).collect()
    }

    #[test]
    fn spans_belong_to_the_burst_they_were_within() {
        use KernelStage::{HostRx, HostTx, Inject, Wakeup};
        let slow = [burst(0, 1, 1000), burst(0, 0, 2000)];
        let mut kernel = chosen(&slow, 1);
        // Kernel spans first, and bursts around the slow ones.
        span(&mut kernel, Wakeup, 0, 900, 910);
        span(&mut kernel, Wakeup, 0, 990, 999);
        span(&mut kernel, Wakeup, 1, 995, 996);
        span(&mut kernel, Wakeup, 0, 1970, 1990);
        // Egress is from 1030 to 1040.
        for (start, end) in [(1029, 1500), (1031, 1033), (1035, 1042), (1041, 1045)] {
            span(&mut kernel, HostTx, 0, start, end);
        }
        // The one before was in place at 1930, this one is at 2030.
        for (start, end) in [(1900, 1930), (1910, 1931), (2020, 2030), (2020, 2031)] {
            span(&mut kernel, HostRx, 0, start, end);
        }
        // Signal is from 2040 to 2050.
        span(&mut kernel, Inject, 0, 2039, 2060);
        span(&mut kernel, Inject, 0, 2045, 2075);
        for record in [burst(0, 0, 950), burst(1, 0, 998), burst(0, 0, 1900)].iter().chain(&slow) {
            kernel.add(&Record::Burst(*record));
        }
        assert_eq!(
            found(kernel),
            [
                vec![(HostTx, 1035, 7, 2), (Wakeup, 990, 10, 1)],
                vec![(HostRx, 1910, 21, 2), (Inject, 2045, 30, 1), (Wakeup, 1970, 30, 1)],
            ]
        );
    }

    #[test]
    fn a_wake_up_belongs_neither_to_the_burst_after_next_nor_to_one_found_by_polling() {
        let polled = BurstRecord { is_polled: true, ..burst(0, 1, 3000) };
        let own = BurstRecord { wakeup: Some(7), ..burst(0, 1, 4000) };
        let slow = [burst(0, 1, 1000), burst(0, 0, 1000), burst(0, 1, 2000), polled, own];
        let mut kernel = chosen(&slow, 1);
        for at in [995, 2995, 3995] {
            span(&mut kernel, KernelStage::Wakeup, 0, at, at + 1);
        }
        slow.iter().for_each(|record| kernel.add(&Record::Burst(*record)));
        let of = |start, ticks| vec![(KernelStage::Wakeup, start, ticks, 1)];
        assert_eq!(found(kernel), [of(995, 5), of(995, 5), vec![], vec![], of(3993, 7)]);
    }

    #[test]
    fn with_several_queue_pairs_frames_belong_to_no_burst() {
        let mut kernel = chosen(&[burst(0, 1, 1000)], 2);
        span(&mut kernel, KernelStage::HostTx, 0, 1031, 1033);
        span(&mut kernel, KernelStage::Wakeup, 0, 990, 999);
        assert_eq!(found(kernel), [vec![(KernelStage::Wakeup, 990, 10, 1)]]);
    }

    #[test]
    fn many_frames_before_a_burst_do_not_hide_its_own() {
        let mut kernel = chosen(&[burst(0, 0, 9000)], 1);
        for n in 0..2 * CANDIDATES_MAX as u64 {
            span(&mut kernel, KernelStage::HostRx, 0, n, n + 5);
        }
        span(&mut kernel, KernelStage::HostRx, 0, 8990, 8999);
        kernel.add(&Record::Burst(burst(0, 0, 8000)));
        assert_eq!(found(kernel), [vec![(KernelStage::HostRx, 8990, 9, 1)]]);
    }
}
