//! Distributions as an HdrHistogram interval log, which many tools can draw.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use burst_trace::{
    BurstRecord, Direction, KernelSpan, KernelStage, Record, Source, Stage, Wakeup, Wakeups,
};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{
    IntervalLogWriter, IntervalLogWriterBuilder, IntervalLogWriterError, Tag,
};
use hdrhistogram::serialization::{V2DeflateSerializeError, V2DeflateSerializer};

use crate::figures::TickRate;
use crate::when::When;

/// Length of an interval, nanoseconds.
const INTERVAL_NS: u64 = 1_000_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;
/// Longest delay of the record of a wake-up after its burst, seconds. Bursts younger than that at the end of an interval
/// count in the next one with their wake-ups.
const LATE_S: f64 = 0.05;

/// Why a log could not be written.
#[derive(Debug, thiserror::Error)]
pub enum HlogError {
    /// The output could not be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A histogram could not be written.
    #[error("a histogram could not be written: {0}")]
    Histogram(V2DeflateSerializeError),
}

/// Writes the times of all packets of `source` in nanoseconds: one histogram for each direction, time and second, tagged
/// `tx.total`, `tx.egress` and so on; `tx.wakeup`, `tx.host-tx`, `rx.host-rx` and `rx.inject` if there are any. A wake-up
/// counts for the packets of its burst, another kernel span once. `each` is called for every record, to show progress.
/// Returns the number of lost records.
///
/// # Errors
/// See [`HlogError`].
pub fn write_hlog(
    out: &mut impl Write,
    source: &Source,
    mut each: impl FnMut(&Record),
) -> Result<u64, HlogError> {
    let (rate, when) = (TickRate::new(source.ticks_per_second()), When::of(source));
    // Records of daemons before are older than this daemon's start.
    let mut start = source.anchor_start().ticks;
    source.read(|record| {
        if matches!(record, Record::Burst(_) | Record::KernelSpan(_)) {
            start = start.min(record.last());
        }
    });
    let start_ns = when.realtime_ns(start);
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("times of packets in ns, by ringscope")
        .with_start_time(SystemTime::UNIX_EPOCH + Duration::from_nanos(start_ns))
        .with_base_time(SystemTime::UNIX_EPOCH + Duration::from_nanos(start_ns))
        .begin_log_with(out, &mut serializer)?;
    let mut interval = Interval::new();
    let mut written = Ok(());
    let lost = source.read_by_time(|record| {
        each(record);
        if written.is_err() || !matches!(record, Record::Burst(_) | Record::KernelSpan(_)) {
            return;
        }
        let number = when.realtime_ns(record.last()).saturating_sub(start_ns) / INTERVAL_NS;
        if number > interval.number {
            interval.join_wakeups(|wakeups| wakeups.take_old(rate.ticks(LATE_S)), rate);
            written = interval.write(&mut log);
            interval.number = number;
        }
        interval.add(record, rate);
    });
    written?;
    interval.join_wakeups(Wakeups::take, rate);
    interval.write(&mut log)?;
    Ok(lost)
}

/// The histograms of one interval, by tag.
struct Interval {
    number: u64,
    ways: [Vec<(Tag<'static>, Histogram<u64>)>; 2],
    wakeups: Wakeups,
}

/// The tags of the daemon's stages, in the order of [`Direction::stages`].
const fn stage_tag(direction: Direction, stage: Stage) -> &'static str {
    match (direction, stage) {
        (Direction::Tx, Stage::Notice) => "tx.notice",
        (_, Stage::Queued) => "tx.queued",
        (Direction::Tx, Stage::Limited) => "tx.limited",
        (_, Stage::Gather) => "tx.gather",
        (_, Stage::Egress) => "tx.egress",
        (_, Stage::Complete) => "tx.complete",
        (Direction::Tx, Stage::Signal) => "tx.signal",
        (Direction::Rx, Stage::Notice) => "rx.notice",
        (Direction::Rx, Stage::Limited) => "rx.limited",
        (_, Stage::Starved) => "rx.starved",
        (_, Stage::Place) => "rx.place",
        (_, Stage::Publish) => "rx.publish",
        (Direction::Rx, Stage::Signal) => "rx.signal",
    }
}

/// The tags of the other times of a direction, after those of its stages.
const fn other_tags(direction: Direction) -> &'static [&'static str] {
    match direction {
        Direction::Tx => &["tx.total", "tx.wakeup", "tx.host-tx"],
        Direction::Rx => &["rx.total", "rx.wakeup", "rx.host-rx", "rx.inject"],
    }
}

impl Interval {
    fn new() -> Self {
        let way = |direction: Direction| {
            let stages = direction.stages().iter().map(|stage| stage_tag(direction, *stage));
            let tags = stages.chain(other_tags(direction).iter().copied());
            tags.filter_map(|tag| Some((Tag::new(tag)?, Histogram::new(SIGNIFICANT_DIGITS).ok()?)))
                .collect()
        };
        let ways = [Direction::Tx, Direction::Rx].map(way);
        Self { number: 0, ways, wakeups: Wakeups::default() }
    }

    fn add(&mut self, record: &Record, rate: TickRate) {
        match record {
            Record::Burst(burst) => self.add_burst(burst, rate),
            Record::KernelSpan(span) => self.add_span(span, rate),
            _ => {}
        }
    }

    fn add_burst(&mut self, burst: &BurstRecord, rate: TickRate) {
        let direction = burst.direction();
        let way = &mut self.ways[usize::from(direction == Direction::Rx)];
        let stages = direction.stages().len();
        let times = burst.stages[..stages].iter().copied().map(Some);
        let times = times.chain([Some(burst.total()), burst.wakeup.map(u64::from)]);
        for ((_, histogram), ticks) in way.iter_mut().zip(times) {
            if let Some(ticks) = ticks {
                put(histogram, rate.ns(ticks), burst.packets);
            }
        }
        self.wakeups.add_burst(&burst.times(), burst.packets);
    }

    fn add_span(&mut self, span: &KernelSpan, rate: TickRate) {
        match span.stage.direction() {
            Some(direction) => self.put(direction, span.stage, rate.ns(span.total()), 1),
            None => self.wakeups.add(span),
        }
    }

    fn join_wakeups(&mut self, take: impl Fn(&mut Wakeups) -> Vec<Wakeup>, rate: TickRate) {
        for Wakeup { direction, packets, ticks, .. } in take(&mut self.wakeups) {
            self.put(direction, KernelStage::Wakeup, rate.ns(ticks), packets);
        }
    }

    /// Adds `packets` whose stage in the host kernel took `ns`.
    fn put(&mut self, direction: Direction, stage: KernelStage, ns: u64, packets: u16) {
        let at = direction.stages().len() + 1;
        let place = match stage {
            KernelStage::Wakeup => at,
            KernelStage::HostTx | KernelStage::HostRx => at + 1,
            KernelStage::Inject => at + 2,
        };
        if let Some((_, histogram)) =
            self.ways[usize::from(direction == Direction::Rx)].get_mut(place)
        {
            put(histogram, ns, packets);
        }
    }

    fn write<W: Write>(
        &mut self,
        log: &mut IntervalLogWriter<'_, '_, W, V2DeflateSerializer>,
    ) -> Result<(), HlogError> {
        let start = Duration::from_nanos(self.number * INTERVAL_NS);
        let duration = Duration::from_nanos(INTERVAL_NS);
        for (tag, histogram) in self.ways.iter_mut().flatten().filter(|(_, it)| !it.is_empty()) {
            log.write_histogram(histogram, start, duration, Some(*tag))?;
            histogram.reset();
        }
        Ok(())
    }
}

fn put(histogram: &mut Histogram<u64>, ns: u64, packets: u16) {
    // A growing histogram takes every 64-bit time.
    let _ = histogram.record_n(ns, packets.into());
}

impl From<IntervalLogWriterError<V2DeflateSerializeError>> for HlogError {
    fn from(error: IntervalLogWriterError<V2DeflateSerializeError>) -> Self {
        match error {
            IntervalLogWriterError::IoError(error) => error.into(),
            IntervalLogWriterError::SerializeError(error) => Self::Histogram(error),
        }
    }
}
