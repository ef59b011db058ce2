//! Distributions as an HdrHistogram interval log, which many tools draw.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use burst_trace::{BurstRecord, Direction, KernelStage, RecordKind, Source, Wakeup, Wakeups};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{
    IntervalLogWriter, IntervalLogWriterBuilder, IntervalLogWriterError, Tag,
};
use hdrhistogram::serialization::{V2DeflateSerializeError, V2DeflateSerializer};

use crate::figures::TickRate;
use crate::when::When;

/// One line a second and time.
const INTERVAL_NS: u64 = 1_000_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;
/// Bursts of so many last seconds of an interval count in the next one with their wake-ups: those may still come.
const LATE_S: f64 = 0.05;

/// Why a log could not be written.
#[derive(Debug, thiserror::Error)]
pub enum HlogError {
    /// What was written to answered.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A histogram could not be written.
    #[error("a histogram could not be written: {0}")]
    Histogram(V2DeflateSerializeError),
}

/// Writes the times of all packets of `source` in nanoseconds: one histogram for each direction, time and second, tagged
/// `tx.total`, `tx.egress` and so on; of the host kernel's stages (`tx.wakeup`, `tx.host-tx`, `rx.host-rx`, `rx.inject`) where
/// there are any. A wake-up counts for the packets of its burst, other kernel times once each. `each` is called for every record. Returns how many records were lost.
///
/// # Errors
/// See [`HlogError`].
pub fn write_hlog(
    out: &mut impl Write,
    source: &Source,
    mut each: impl FnMut(&BurstRecord),
) -> Result<u64, HlogError> {
    let (rate, when) = (TickRate::new(source.ticks_per_second()), When::of(source));
    let start_ns = when.realtime_ns(source.anchor_start().ticks);
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
        let is_burst = record.kind == RecordKind::Burst as u8;
        let kernel = record.kernel_stage();
        if written.is_err() || !(is_burst || kernel.is_some()) {
            return;
        }
        let number = when.realtime_ns(record.last).saturating_sub(start_ns) / INTERVAL_NS;
        if number > interval.number {
            interval.join_wakeups(|wakeups| wakeups.take_old(rate.ticks(LATE_S)), rate);
            written = interval.write(&mut log);
            interval.number = number;
        }
        match kernel {
            Some(stage) => interval.add_kernel(record, stage, rate),
            None => interval.add(record, rate),
        }
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

/// The tags of a direction: its stages in order, then total, wakeup, and what else the host kernel measures.
const TAGS: [&[&str]; 2] = [
    &[
        "tx.notice",
        "tx.queued",
        "tx.gather",
        "tx.egress",
        "tx.complete",
        "tx.signal",
        "tx.total",
        "tx.wakeup",
        "tx.host-tx",
    ],
    &[
        "rx.notice",
        "rx.starved",
        "rx.place",
        "rx.publish",
        "rx.signal",
        "rx.total",
        "rx.wakeup",
        "rx.host-rx",
        "rx.inject",
    ],
];

impl Interval {
    fn new() -> Self {
        let way = |tags: &[&'static str]| {
            tags.iter()
                .filter_map(|tag| Some((Tag::new(tag)?, Histogram::new(SIGNIFICANT_DIGITS).ok()?)))
                .collect()
        };
        Self { number: 0, ways: TAGS.map(way), wakeups: Wakeups::default() }
    }

    fn add(&mut self, record: &BurstRecord, rate: TickRate) {
        let direction = record.direction();
        let way = &mut self.ways[usize::from(direction == Direction::Rx)];
        let stages = direction.stages().len();
        let times = record.stages[..stages].iter().copied().map(Some);
        let times = times.chain([Some(record.total()), record.wakeup.map(u64::from)]);
        for ((_, histogram), ticks) in way.iter_mut().zip(times) {
            if let Some(ticks) = ticks {
                put(histogram, rate.ns(ticks), record.packets);
            }
        }
        self.wakeups.add_burst(record);
    }

    fn add_kernel(&mut self, record: &BurstRecord, stage: KernelStage, rate: TickRate) {
        let Some(direction) = stage.direction() else { return self.wakeups.add(record) };
        let ns = rate.ns(record.last.saturating_sub(record.first));
        self.put(direction, stage, ns, 1);
    }

    fn join_wakeups(&mut self, take: impl Fn(&mut Wakeups) -> Vec<Wakeup>, rate: TickRate) {
        for Wakeup { direction, packets, ticks } in take(&mut self.wakeups) {
            self.put(direction, KernelStage::Wakeup, rate.ns(ticks), packets);
        }
    }

    /// Counts `packets` whose stage in the kernel took `ns`.
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
    // A histogram that grows takes every number of 64 bits that is a time.
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
