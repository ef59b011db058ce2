//! The figures, time lines and slowest bursts of the page, from the records.

use std::borrow::Cow;
use std::collections::BTreeMap;

use burst_trace::attribution::Chosen;
use burst_trace::{BurstRecord, Direction, Interruptions, Record, Source};
use serde::Serialize;

use super::kernel::{InterruptionTime, KernelTime};
use super::words::{Interrupted, words};
use crate::breakdown::{Breakdown, Window};
use crate::collect::{Collector, DirectionBreakdown};
use crate::figures::{Distribution, TickRate};
use crate::slowest::Slowest;
use crate::stages::StageRow;
use crate::tail::{Composition, Tail};
use crate::when::When;

/// Number of each direction's slowest bursts in the page.
const OUTLIERS: usize = 200;
/// Time before and after a slow burst in which its worker's other bursts are shown.
const AROUND_NS: u64 = 1_000_000;
/// Most bursts shown around a slow one.
const NEIGHBOURS: usize = 24;
/// Most points of the time line.
const BINS: u64 = 600;
/// Columns of a histogram from a time to twice that time.
const COLUMNS_AN_OCTAVE: f64 = 8.0;
const QUANTILES: [f64; 14] =
    [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99995, 0.99999, 1.0];

/// One direction.
#[derive(Serialize)]
pub struct DirectionCharts {
    direction: &'static str,
    packets: u64,
    bytes: u64,
    bursts: u64,
    polled: u64,
    drops: BTreeMap<&'static str, u64>,
    words: Vec<String>,
    stages: Vec<StageRow>,
    total: StageRow,
    /// The daemon's own stages, in order.
    own: Vec<&'static str>,
    mean: Option<Composition>,
    tail: Option<Composition>,
    tail_over_ns: u64,
    spreads: Vec<Spread>,
    bins: Vec<Bin>,
    outliers: Vec<Outlier>,
}

/// The distribution of one time.
#[derive(Serialize)]
struct Spread {
    name: &'static str,
    /// Pairs of quantile and time in ns.
    curve: Vec<(f64, u64)>,
    /// Pairs of a column's number and its packets. Column n begins at 2^(n/8) ns.
    columns: Vec<(i32, u64)>,
}

/// A point of the time line.
#[derive(Clone, Serialize)]
struct Bin {
    /// Seconds since the start of the time line.
    at_s: f64,
    packets: u64,
    mean_ns: f64,
    max_ns: u64,
}

/// A slow burst.
#[derive(Serialize)]
struct Outlier {
    #[serde(flatten)]
    burst: Burst,
    kernel: Vec<KernelTime>,
    interruptions: Vec<InterruptionTime>,
    around: Vec<Burst>,
}

/// A burst's timeline.
#[derive(Clone, Serialize)]
struct Burst {
    direction: &'static str,
    sequence: u64,
    ring: u16,
    worker: u8,
    packets: u16,
    bytes: u32,
    /// Its first boundary, ns since the start of the time line.
    start_ns: u64,
    total_ns: u64,
    is_polled: bool,
    stages_ns: Vec<u64>,
}

/// Reads `source`. Returns its figures, those of both directions, and the start of the time line (`CLOCK_REALTIME`, ns).
pub fn ways(
    source: &Source,
    name: &str,
    each: &mut impl FnMut(),
) -> (Breakdown, Vec<DirectionCharts>, u64) {
    let rate = TickRate::new(source.ticks_per_second());
    let mut collector = Collector::new(rate);
    let (mut first, mut last) = (u64::MAX, 0);
    let breakdown = Breakdown::read_with(source, name, Window::Held, |record| {
        each();
        collector.add(record);
        if let Record::Burst(burst) = record {
            (first, last) = (first.min(burst.first), last.max(burst.last));
        }
    });
    let first = first.min(last);
    let interruptions = match breakdown.interruptions {
        Some(_) => Interruptions::read(source),
        None => Interruptions::default(),
    };
    let mut second = breakdown.directions().map(|way| Second::new(way, rate, first, last));
    source.read(|record| {
        each();
        if let Record::Burst(burst) = record {
            second.iter_mut().for_each(|way| way.add(burst, &interruptions));
        }
    });
    let mut outliers = second.each_mut().map(Second::outliers);
    let mut around = Around::new(&outliers, rate);
    let bursts = outliers.iter().flatten().map(|(record, _)| record.times());
    let mut kernel = Chosen::new(bursts, source.queue_pairs());
    source.read(|record| {
        each();
        kernel.add(record);
        if let Record::Burst(burst) = record {
            around.add(burst, &mut outliers, rate, first);
        }
    });
    let mut kernel = kernel.finish().into_iter();
    let mut outlier = |(record, around)| {
        let spans = kernel.next().unwrap_or_default();
        let kernel = spans.iter().map(|span| KernelTime::new(&record, span, rate)).collect();
        let interruptions = InterruptionTime::all(&record, &spans, &interruptions, rate);
        Outlier { burst: Burst::new(&record, rate, first), kernel, interruptions, around }
    };
    let outliers = outliers.map(|all| all.into_iter().map(&mut outlier).collect());
    let ways = breakdown.directions().into_iter().zip(second).zip(outliers);
    let ways = ways.map(|((way, second), outliers)| {
        second.finish(way, &collector, outliers, source.queue_pairs())
    });
    let start_ns = When::of(source).realtime_ns(first);
    let ways = ways.collect();
    (breakdown, ways, start_ns)
}

impl Burst {
    fn new(record: &BurstRecord, rate: TickRate, first: u64) -> Self {
        let stages = record.direction().stages().len();
        Self {
            direction: record.direction().name(),
            sequence: record.sequence,
            ring: record.ring,
            worker: record.worker,
            packets: record.packets,
            bytes: record.bytes,
            start_ns: rate.ns(record.first.saturating_sub(first)),
            total_ns: rate.ns(record.total()),
            is_polled: record.is_polled,
            stages_ns: record.stages[..stages].iter().map(|&ticks| rate.ns(ticks)).collect(),
        }
    }
}

/// The second pass over one direction.
struct Second {
    direction: Direction,
    rate: TickRate,
    first: u64,
    bin_ticks: u64,
    bins: Vec<(u64, u128, u64)>,
    tail: Tail,
    over_ns: u64,
    mean: Tail,
    interrupted: Interrupted,
    slowest: Slowest,
}

impl Second {
    fn new(way: &DirectionBreakdown, rate: TickRate, first: u64, last: u64) -> Self {
        let over_ns = way.total.figures.map_or(0, |figures| figures.p99_ns);
        let bin_ticks = ((last - first) / BINS + 1).max(1);
        let bins = usize::try_from((last - first) / bin_ticks + 1).unwrap_or(1);
        Self {
            direction: way.direction,
            rate,
            first,
            bin_ticks,
            bins: vec![(0, 0, 0); bins],
            tail: Tail::new(way.direction, over_ns),
            over_ns,
            mean: Tail::of_all(way.direction),
            interrupted: Interrupted::default(),
            slowest: Slowest::new(OUTLIERS),
        }
    }

    fn add(&mut self, record: &BurstRecord, interruptions: &Interruptions) {
        if record.direction() != self.direction {
            return;
        }
        let total = record.total();
        let bin = record.last.saturating_sub(self.first) / self.bin_ticks;
        if let Some(bin) = usize::try_from(bin).ok().and_then(|bin| self.bins.get_mut(bin)) {
            bin.0 += u64::from(record.packets);
            bin.1 += u128::from(total) * u128::from(record.packets);
            bin.2 = bin.2.max(total);
        }
        self.tail.add(record, self.rate);
        self.mean.add(record, self.rate);
        let (times, packets) = (record.times(), record.packets);
        self.interrupted.mean.add(&times, packets, interruptions);
        if self.rate.ns(total) > self.over_ns {
            self.interrupted.tail.add(&times, packets, interruptions);
        }
        self.slowest.add(record);
    }

    /// The slowest bursts, in the order of time.
    fn outliers(&mut self) -> Vec<(BurstRecord, Vec<Burst>)> {
        let mut bursts = self.slowest.take();
        bursts.sort_by_key(|record| record.first);
        bursts.into_iter().map(|record| (record, Vec::new())).collect()
    }

    fn finish(
        self,
        way: &DirectionBreakdown,
        collector: &Collector,
        outliers: Vec<Outlier>,
        queue_pairs: usize,
    ) -> DirectionCharts {
        let Self { rate, bin_ticks, .. } = self;
        let tail = self.tail.composition(rate);
        let bins = (0..).zip(&self.bins).filter(|(_, bin)| bin.0 > 0);
        DirectionCharts {
            direction: way.direction.name(),
            packets: way.packets,
            bytes: way.bytes,
            bursts: way.bursts,
            polled: way.polled_packets,
            drops: way
                .drops
                .iter()
                .filter(|(_, n)| *n > 0)
                .map(|(it, n)| (it.name(), *n))
                .collect(),
            words: words(way, tail.as_ref(), queue_pairs, &self.interrupted),
            stages: way.stages.clone(),
            total: way.total,
            own: way.direction.stages().iter().map(|stage| stage.name()).collect(),
            mean: self.mean.composition(rate),
            tail,
            tail_over_ns: self.over_ns,
            spreads: spreads(collector, way.direction, rate),
            bins: bins
                .map(|(n, &(packets, sum, max))| Bin {
                    at_s: rate.seconds(n * bin_ticks),
                    packets,
                    mean_ns: rate.mean_ns(i128::try_from(sum).unwrap_or(i128::MAX), packets),
                    max_ns: rate.ns(max),
                })
                .collect(),
            outliers,
        }
    }
}

fn spreads(collector: &Collector, direction: Direction, rate: TickRate) -> Vec<Spread> {
    let spread = |(name, times): (&'static str, Cow<'_, Distribution>)| {
        let mut columns = BTreeMap::new();
        for (ns, packets) in times.buckets() {
            // Times below 1 ns have a column of their own, the first.
            let column = ((ns.max(1) as f64).log2() * COLUMNS_AN_OCTAVE).floor() as i32;
            *columns.entry(if ns == 0 { -1 } else { column }).or_insert(0) += packets;
        }
        let curve = QUANTILES.map(|quantile| (quantile, times.quantile_ns(quantile, rate)));
        Spread { name, curve: curve.to_vec(), columns: columns.into_iter().collect() }
    };
    let all = collector.distributions(direction).into_iter();
    all.filter(|(_, times)| times.count() > 0).map(spread).collect()
}

/// The third pass: finds the slow bursts that a burst is near to.
struct Around {
    /// By worker: from when to when a burst is near, and the direction and index of the slow burst that it is near to.
    near: BTreeMap<u8, Vec<(u64, u64, usize, usize)>>,
    longest: u64,
}

impl Around {
    fn new(outliers: &[Vec<(BurstRecord, Vec<Burst>)>; 2], rate: TickRate) -> Self {
        let reach = rate.ticks(AROUND_NS as f64 / 1e9);
        let mut near: BTreeMap<u8, Vec<_>> = BTreeMap::new();
        for (way, outliers) in outliers.iter().enumerate() {
            for (n, (record, _)) in outliers.iter().enumerate() {
                let from = record.first.saturating_sub(reach);
                near.entry(record.worker).or_default().push((
                    from,
                    record.last.saturating_add(reach),
                    way,
                    n,
                ));
            }
        }
        near.values_mut().for_each(|near| near.sort_unstable());
        let longest = near.values().flatten().map(|(from, to, ..)| to.saturating_sub(*from));
        let longest = longest.max().unwrap_or(0);
        Self { near, longest }
    }

    fn add(
        &mut self,
        record: &BurstRecord,
        outliers: &mut [Vec<(BurstRecord, Vec<Burst>)>; 2],
        rate: TickRate,
        first: u64,
    ) {
        let Some(near) = self.near.get(&record.worker) else { return };
        let begin =
            near.partition_point(|(from, ..)| from.saturating_add(self.longest) < record.last);
        for &(from, to, way, n) in &near[begin..] {
            if from > record.last {
                break;
            }
            let (outlier, around) = &mut outliers[way][n];
            if record.first <= to && around.len() < NEIGHBOURS && outlier != record {
                around.push(Burst::new(record, rate, first));
            }
        }
    }
}
