//! A breakdown as the one object that `ringscope stats --json` prints, and an interval as a line of `ringscope top --json`.
//!
//! A stage or total has figures if and only if its `count` is above 0: one that is not measured has
//! `"count": null`, one without packets has `"count": 0`, and neither has any figure. `not_running_mean_ns` and
//! `interruptions` are `null` where interruptions are not measured. `kvm` says whether exits of KVM are among them: `on`, or
//! `n/a: ` and why not; it is `null` where nobody asked for interruptions.

use std::time::Duration;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use burst_trace::{
    Culprit, Direction, DropCause, GroCounts, Interruption, InterruptionCause, Notifications,
    Totals,
};

use crate::breakdown::Breakdown;
use crate::causes::{self, Blamed};
use crate::collect::DirectionBreakdown;
use crate::cyclic::CyclicTraffic;
use crate::figures::TickRate;
use crate::follow::{DirectionInterval, Interval, Outlier};
use crate::interruption::InterruptionRow;
use crate::migration::MigrationRow;
use crate::restart::RestartRow;
use crate::stages::StageRow;

#[derive(Serialize)]
struct Object<'a> {
    name: &'a str,
    window_s: f64,
    clock: &'a str,
    features: &'a [String],
    tx: DirectionObject<'a>,
    rx: DirectionObject<'a>,
    queues: Vec<QueueObject>,
    cyclic: &'a CyclicTraffic,
    interruptions: Option<&'a [InterruptionRow]>,
    kvm: Option<&'a str>,
    restarted: u64,
    sent_twice_max: u64,
    restarts: &'a [RestartRow],
    migrations: &'a [MigrationRow],
}

#[derive(Serialize)]
struct DirectionObject<'a> {
    packets: u64,
    bytes: u64,
    bursts: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    counted: Option<TotalsObject>,
    drops: Drops<'a>,
    #[serde(flatten)]
    gro: Option<GroObject>,
    stages: &'a [StageRow],
    total: &'a StageRow,
}

/// Packets that were each made of several frames of the guest.
#[derive(Serialize)]
struct GroObject {
    gro_frames: u64,
    gro_segments: u64,
    gro_mean_segments: Option<f64>,
}

impl From<GroCounts> for GroObject {
    fn from(counts: GroCounts) -> Self {
        let GroCounts { frames, segments } = counts;
        let gro_mean_segments = counts.mean_segments();
        Self { gro_frames: frames, gro_segments: segments, gro_mean_segments }
    }
}

/// What the daemon has counted, whether records still hold it or not.
#[derive(Serialize)]
struct TotalsObject {
    packets: u64,
    bytes: u64,
    bursts: u64,
}

impl From<Totals> for TotalsObject {
    fn from(totals: Totals) -> Self {
        let Totals { packets, bytes, bursts } = totals;
        Self { packets, bytes, bursts }
    }
}

/// Kicks and calls of a virtqueue that had any.
#[derive(Serialize)]
struct QueueObject {
    queue: u16,
    direction: &'static str,
    #[serde(flatten)]
    counted: Counted,
}

struct Counted(Notifications);

impl Serialize for Counted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(kind, count)| (kind.name(), count)))
    }
}

fn queues(of: impl Iterator<Item = (u16, Notifications)>) -> Vec<QueueObject> {
    of.filter(|(_, counted)| !counted.is_empty())
        .map(|(queue, counted)| {
            let direction = Direction::of_ring(queue).name();
            QueueObject { queue, direction, counted: Counted(counted) }
        })
        .collect()
}

struct Drops<'a>(&'a [(DropCause, u64)]);

impl Serialize for Drops<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (cause, count) in self.0 {
            map.serialize_entry(cause.name(), count)?;
        }
        map.end()
    }
}

impl<'a> From<&'a DirectionBreakdown> for DirectionObject<'a> {
    fn from(way: &'a DirectionBreakdown) -> Self {
        Self {
            packets: way.packets,
            bytes: way.bytes,
            bursts: way.bursts,
            counted: way.counted.map(Into::into),
            drops: Drops(&way.drops),
            gro: way.gro.map(Into::into),
            stages: &way.stages,
            total: &way.total,
        }
    }
}

/// The object, indented.
///
/// # Panics
/// Never: all keys are strings.
#[must_use]
pub fn to_json(breakdown: &Breakdown) -> String {
    let object = Object {
        name: &breakdown.name,
        window_s: breakdown.window_s,
        clock: breakdown.clock,
        features: &breakdown.features,
        tx: (&breakdown.tx).into(),
        rx: (&breakdown.rx).into(),
        queues: queues(breakdown.notifications.iter().copied()),
        cyclic: &breakdown.cyclic,
        interruptions: breakdown.interruptions.as_deref(),
        kvm: breakdown.facts.kernel_state("kvm"),
        restarted: breakdown.restarted,
        sent_twice_max: breakdown.sent_twice_max,
        restarts: &breakdown.restarts,
        migrations: &breakdown.migrations,
    };
    serde_json::to_string_pretty(&object).expect("an object with string keys")
}

#[derive(Serialize)]
struct Line<'a> {
    time_ns: u128,
    name: &'a str,
    window_s: f64,
    tx: DirectionObject<'a>,
    rx: DirectionObject<'a>,
    queues: Vec<QueueObject>,
    outliers: Vec<OutlierObject>,
    lost_records: u64,
}

#[derive(Serialize)]
struct OutlierObject {
    direction: &'static str,
    queue: u16,
    worker: u8,
    sequence: u64,
    packets: u16,
    bytes: u32,
    start_ns: u64,
    polled: bool,
    wakeup_ns: Option<u64>,
    stages_ns: Stages,
    total_ns: u64,
    not_running_ns: Option<u64>,
    interrupted: Option<InterruptionObject>,
}

/// What took most of the time in which a burst's worker did not run.
#[derive(Serialize)]
struct InterruptionObject {
    cause: &'static str,
    culprit: Option<CulpritObject>,
    detail: u32,
    cpu: u16,
    time_ns: u64,
    words: String,
}

#[derive(Serialize)]
struct CulpritObject {
    name: String,
    process: u32,
    thread: u32,
    class: String,
}

impl InterruptionObject {
    fn new(blamed: &Blamed, rate: TickRate) -> Self {
        let Interruption { cause, culprit, detail, cpu, .. } = blamed.longest;
        // Only these two causes have a culprit.
        let is_known = culprit != Culprit::default()
            && matches!(cause, InterruptionCause::Preempted | InterruptionCause::Interrupt);
        Self {
            cause: cause.name(),
            culprit: is_known.then(|| CulpritObject {
                name: culprit.name(),
                process: culprit.process,
                thread: culprit.thread,
                class: culprit.class(),
            }),
            detail,
            cpu,
            time_ns: rate.ns(u64::try_from(blamed.ticks).unwrap_or(u64::MAX)),
            words: causes::in_short(&blamed.longest),
        }
    }
}

struct Stages(Outlier);

impl Serialize for Stages {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Outlier { record, rate, .. } = self.0;
        let stages = record.direction().stages();
        let mut map = serializer.serialize_map(Some(stages.len()))?;
        for (stage, ticks) in stages.iter().zip(record.stages) {
            map.serialize_entry(stage.name(), &rate.ns(ticks))?;
        }
        map.end()
    }
}

impl From<&Outlier> for OutlierObject {
    fn from(outlier: &Outlier) -> Self {
        let Outlier { record, rate, start_ns, interrupted } = *outlier;
        Self {
            direction: record.direction().name(),
            queue: record.ring,
            worker: record.worker,
            sequence: record.sequence,
            packets: record.packets,
            bytes: record.bytes,
            start_ns,
            polled: record.is_polled,
            wakeup_ns: record.wakeup.map(|ticks| rate.ns(ticks.into())),
            stages_ns: Stages(*outlier),
            total_ns: rate.ns(record.total()),
            not_running_ns: interrupted.map(|it| rate.ns(it.not_running)),
            interrupted: interrupted
                .and_then(|it| it.most)
                .map(|most| InterruptionObject::new(&most, rate)),
        }
    }
}

/// Counts are the daemon's own, times are of the records that could be read.
impl<'a> From<&'a DirectionInterval> for DirectionObject<'a> {
    fn from(way: &'a DirectionInterval) -> Self {
        Self {
            packets: way.totals.packets,
            bytes: way.totals.bytes,
            bursts: way.totals.bursts,
            drops: Drops(&way.drops),
            gro: Some(way.gro.into()),
            ..(&way.records).into()
        }
    }
}

/// The interval of the daemon `name` that ended `time` after 1970 began, on one line.
///
/// # Panics
/// Never: all keys are strings.
#[must_use]
pub fn interval_to_json(interval: &Interval, name: &str, time: Duration) -> String {
    let line = Line {
        time_ns: time.as_nanos(),
        name,
        window_s: interval.seconds,
        tx: (&interval.tx).into(),
        rx: (&interval.rx).into(),
        queues: queues(interval.queues.iter().map(|queue| (queue.ring, queue.notifications))),
        outliers: interval.outliers.iter().map(Into::into).collect(),
        lost_records: interval.lost,
    };
    serde_json::to_string(&line).expect("an object with string keys")
}
