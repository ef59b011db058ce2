//! Reads the cyclic frames of a recorder or recording: once for counters and the daemon's stages, once for the times in the
//! host kernel.

use std::collections::{BTreeMap, HashMap};

use burst_trace::attribution::{BurstSpan, Chosen};
use burst_trace::{BurstTimes, CyclicFrames, CyclicRecord, Direction, Record, Source, Stage};

use super::follow::Followed;
use super::{CyclicTraffic, Group, KERNEL_BURSTS_MAX, SLOWEST_MAX, STREAMS_MAX, SlowFrame, Stream};
use crate::collect::drops_since_start;
use crate::facts::Facts;
use crate::figures::{Distribution, TickRate};
use crate::stages::{Place, StageRow, Tier, places};
use crate::when::When;

/// A burst: several frames of one burst share its times.
type BurstKey = (u16, u64, u64);

/// The frames of one description in one direction.
struct Gathering {
    frames: u64,
    stamped: u64,
    polled: u64,
    /// The daemon's stages in order.
    stages: Vec<Distribution>,
    total: Distribution,
    /// The stages of the host kernel.
    kernel: BTreeMap<&'static str, Distribution>,
    streams: BTreeMap<u32, Followed>,
    /// Slowest first, with the time from arrival to the last boundary, ticks.
    slowest: Vec<(u64, CyclicRecord)>,
}

impl CyclicTraffic {
    /// Reads the cyclic frames whose bursts ended from `from` to `to`, ticks.
    #[must_use]
    pub fn read(source: &Source, from: u64, to: u64) -> Self {
        let facts = Facts::parse(&source.facts());
        let mut reading = Reading::new(source, &facts.cyclic);
        let lost_records = source.read_by_time(|record| {
            if let Record::Cyclic(cyclic) = record
                && (from..=to).contains(&cyclic.times.last)
            {
                reading.add(cyclic);
            }
        });
        let spans = reading.spans(source);
        reading.finish(source, &facts.cyclic, &spans, lost_records)
    }

    /// Whether no cyclic frames were asked for and none are recorded.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.unseen.is_empty()
    }
}

struct Reading {
    rate: TickRate,
    when: When,
    /// The step of each description.
    steps: Vec<u64>,
    groups: BTreeMap<(u8, Direction), Gathering>,
    streams: usize,
    left_out: u64,
    /// Bursts whose times in the host kernel are wanted, with their frames in each group.
    bursts: HashMap<BurstKey, (BurstTimes, Vec<(u8, u16)>)>,
}

impl Reading {
    fn new(source: &Source, descriptions: &[CyclicFrames]) -> Self {
        Self {
            rate: TickRate::new(source.ticks_per_second()),
            when: When::of(source),
            steps: descriptions.iter().map(CyclicFrames::step).collect(),
            groups: BTreeMap::new(),
            streams: 0,
            left_out: 0,
            bursts: HashMap::new(),
        }
    }

    fn add(&mut self, record: &CyclicRecord) {
        let (frame, times) = (record.frame, record.times);
        let direction = times.direction();
        let key = (frame.description, direction);
        let is_full = self.streams == STREAMS_MAX;
        let is_known =
            self.groups.get(&key).is_some_and(|it| it.streams.contains_key(&frame.stream));
        if is_full && !is_known {
            self.left_out += 1;
            return;
        }
        self.streams += usize::from(!is_known);
        let group = self.groups.entry(key).or_insert_with(|| Gathering::new(direction));
        let step = self.steps.get(usize::from(frame.description)).copied().unwrap_or(1);
        let arrived = arrival(&times);
        let stream = group.streams.entry(frame.stream);
        let stream = stream.or_insert_with(|| Followed::new(frame.counter_len, step));
        stream.add(record, arrived, self.rate, self.when);
        group.add(record, arrived, self.rate);
        if self.bursts.len() < KERNEL_BURSTS_MAX {
            let burst = self.bursts.entry(key_of(&times)).or_insert_with(|| (times, Vec::new()));
            match burst.1.iter_mut().find(|(description, _)| *description == frame.description) {
                Some((_, frames)) => *frames = frames.saturating_add(1),
                None => burst.1.push((frame.description, 1)),
            }
        }
    }

    /// Finds the host kernel's spans of the bursts, and adds them to the groups' distributions.
    fn spans(&mut self, source: &Source) -> HashMap<BurstKey, Vec<BurstSpan>> {
        if self.groups.is_empty() {
            return HashMap::new();
        }
        for (_, record) in self.groups.values().flat_map(|group| &group.slowest) {
            let burst = || (record.times, Vec::new());
            self.bursts.entry(key_of(&record.times)).or_insert_with(burst);
        }
        let bursts: Vec<_> = self.bursts.drain().collect();
        let times = bursts.iter().map(|(_, (times, _))| *times);
        let mut chosen = Chosen::new(times, source.queue_pairs());
        source.read(|record| chosen.add(record));
        let mut found = HashMap::new();
        for ((key, (times, frames)), spans) in bursts.into_iter().zip(chosen.finish()) {
            for (description, count) in frames {
                if let Some(group) = self.groups.get_mut(&(description, times.direction())) {
                    for span in &spans {
                        let ticks = span.end.saturating_sub(span.start);
                        let times = group.kernel.entry(span.stage.name()).or_default();
                        times.add(ticks, count, self.rate);
                    }
                }
            }
            found.insert(key, spans);
        }
        found
    }

    fn finish(
        self,
        source: &Source,
        descriptions: &[CyclicFrames],
        spans: &HashMap<BurstKey, Vec<BurstSpan>>,
        lost_records: u64,
    ) -> CyclicTraffic {
        let Self { rate, when, groups, left_out, .. } = self;
        let is_unseen = |n: usize| groups.keys().all(|(seen, _)| usize::from(*seen) != n);
        let unseen = descriptions.iter().enumerate().filter(|(n, _)| is_unseen(*n));
        let unseen = unseen.map(|(_, description)| description.to_string()).collect();
        let groups = groups.into_iter().map(|((number, direction), group)| {
            let description = descriptions.get(usize::from(number));
            let drops = drops_since_start(source, direction);
            let drops = drops.iter().fold(0, |sum: u64, (_, count)| sum.saturating_add(*count));
            group.finish((number, description), direction, spans, rate, when, drops)
        });
        CyclicTraffic { groups: groups.collect(), unseen, left_out, lost_records }
    }
}

impl Gathering {
    fn new(direction: Direction) -> Self {
        Self {
            frames: 0,
            stamped: 0,
            polled: 0,
            stages: direction.stages().iter().map(|_| Distribution::new()).collect(),
            total: Distribution::new(),
            kernel: BTreeMap::new(),
            streams: BTreeMap::new(),
            slowest: Vec::with_capacity(SLOWEST_MAX + 1),
        }
    }

    fn add(&mut self, record: &CyclicRecord, arrived: u64, rate: TickRate) {
        let times = &record.times;
        self.frames += 1;
        self.stamped += u64::from(times.wakeup.is_some());
        self.polled += u64::from(times.is_polled);
        for (stage, &ticks) in self.stages.iter_mut().zip(&times.stages) {
            stage.add(ticks, 1, rate);
        }
        self.total.add(times.last.saturating_sub(times.first), 1, rate);
        let time = times.last.saturating_sub(arrived);
        let at = self.slowest.partition_point(|(kept, _)| *kept >= time);
        if at < SLOWEST_MAX {
            self.slowest.truncate(SLOWEST_MAX - 1);
            self.slowest.insert(at, (time, *record));
        }
    }

    fn finish(
        self,
        (number, description): (u8, Option<&CyclicFrames>),
        direction: Direction,
        spans: &HashMap<BurstKey, Vec<BurstSpan>>,
        rate: TickRate,
        when: When,
        drops: u64,
    ) -> Group {
        let id = |stream: u32| match description.map(CyclicFrames::stream_len) {
            Some(0) => String::new(),
            Some(len) => format!("0x{stream:0digits$x}", digits = 2 * len),
            None => format!("0x{stream:x}"),
        };
        let slowest = self.slowest.iter().map(|(time, record)| {
            let spans = spans.get(&key_of(&record.times)).map_or(&[][..], Vec::as_slice);
            slow_frame(record, id(record.frame.stream), *time, spans, rate, when)
        });
        Group {
            direction,
            description: description
                .map_or_else(|| format!("description {number}"), ToString::to_string),
            frames: self.frames,
            stamped: self.stamped,
            polled: self.polled,
            drops,
            slowest: slowest.collect(),
            stages: rows(direction, &self.stages, &self.kernel, rate),
            total: row("total", Tier::D, Some(&self.total), rate),
            streams: streams(self.streams, id, rate),
        }
    }
}

fn streams(
    followed: BTreeMap<u32, Followed>,
    id: impl Fn(u32) -> String,
    rate: TickRate,
) -> Vec<Stream> {
    followed.into_iter().map(|(stream, followed)| followed.finish(id(stream), rate)).collect()
}

/// The stages that the daemon or the host kernel can measure. Nothing in the guest is stamped.
fn rows(
    direction: Direction,
    daemon: &[Distribution],
    kernel: &BTreeMap<&'static str, Distribution>,
    rate: TickRate,
) -> Vec<StageRow> {
    let mut daemon = daemon.iter();
    let rows = places(direction).iter().filter_map(|place| match *place {
        Place::Daemon(stage) => Some(row(stage.name(), Tier::D, daemon.next(), rate)),
        Place::Outside(name, Tier::K) => Some(row(name, Tier::K, kernel.get(name), rate)),
        Place::Outside(..) => None,
    });
    rows.collect()
}

fn row(stage: &'static str, tier: Tier, times: Option<&Distribution>, rate: TickRate) -> StageRow {
    times.map_or_else(
        || StageRow::not_measured(stage, tier),
        |times| StageRow {
            count: Some(times.count()),
            figures: times.figures(rate),
            ..StageRow::not_measured(stage, tier)
        },
    )
}

fn slow_frame(
    record: &CyclicRecord,
    stream: String,
    time: u64,
    spans: &[BurstSpan],
    rate: TickRate,
    when: When,
) -> SlowFrame {
    let times = &record.times;
    let direction = times.direction();
    let of_kernel = |name: &str| {
        let span = spans.iter().find(|span| span.stage.name() == name)?;
        Some(rate.ns(span.end.saturating_sub(span.start)))
    };
    let of_daemon = |stage: Stage| {
        let (begin, end) = times.during(stage);
        rate.ns(end - begin)
    };
    let stages = places(direction).iter().filter_map(|place| match *place {
        Place::Daemon(stage) => Some((stage.name(), of_daemon(stage))),
        Place::Outside(name, _) => Some((name, of_kernel(name)?)),
    });
    SlowFrame {
        stream,
        counter: record.frame.counter,
        at_ns: when.realtime_ns(arrival(times)),
        total_ns: rate.ns(time),
        stamped: times.wakeup.is_some(),
        polled: times.is_polled,
        packets: record.packets,
        stages_ns: stages.collect(),
    }
}

const fn key_of(times: &BurstTimes) -> BurstKey {
    (times.ring, times.first, times.last)
}

/// When the frames of a burst arrived, ticks: when the host kernel stamped the first one, otherwise when the worker saw
/// them.
fn arrival(times: &BurstTimes) -> u64 {
    match times.wakeup {
        Some(ticks) => times.first.saturating_sub(ticks.into()),
        None => times.during(Stage::Notice).1,
    }
}
