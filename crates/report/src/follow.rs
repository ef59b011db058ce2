//! Follows the recorder of a running daemon, interval by interval.
//!
//! Packets, bytes and drops are those of the counters, exact even when records were lost. Times are those of the records.

mod interrupted;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use burst_trace::Totals;
use burst_trace::{
    BurstRecord, Cursor, Direction, DropCause, GroCounts, Notifications, Reader, Record,
};

use crate::collect::{Collector, DirectionBreakdown, drops_since_start};
use crate::facts::{Facts, Measured};
use crate::figures::{Distribution, Figures, TickRate};
use crate::slowest::Slowest;
use crate::when::When;
use interrupted::Latest;

pub use interrupted::Interrupted;

/// In the order of [`Follower::drops`].
const DIRECTIONS: [Direction; 2] = [Direction::Tx, Direction::Rx];
/// Number of an interval's slowest bursts that are reported.
const OUTLIERS: usize = 5;
/// Longest time between a burst's record and those of its interruptions.
const LATE: Duration = Duration::from_secs(1);

/// Follows a recorder from its newest record on.
#[derive(Debug)]
pub struct Follower {
    reader: Reader,
    rate: TickRate,
    cursors: Vec<Cursor>,
    collector: Collector,
    queues: Vec<Queue>,
    /// Drops of transmit and of receive queues since the daemon's start.
    drops: [Vec<(DropCause, u64)>; 2],
    slowest: Slowest,
    /// `None` when the daemon does not record them.
    interruptions: Option<Followed>,
    /// When that is, and the version of the facts that say so.
    measured: Measured,
    facts_version: u64,
    lost: u64,
    lost_before: u64,
    started: Instant,
}

/// The interruptions of the slowest bursts so far.
#[derive(Debug)]
struct Followed {
    latest: Latest,
    /// By worker and first boundary, as far as they were known at `aged`.
    known: HashMap<(u8, u64), Interrupted>,
    /// When older interruptions were forgotten last.
    aged: Instant,
}

/// What happened between two calls of [`Follower::take`].
#[derive(Clone, Debug)]
pub struct Interval {
    /// Its length, seconds.
    pub seconds: f64,
    /// Guest to wire.
    pub tx: DirectionInterval,
    /// Wire to guest.
    pub rx: DirectionInterval,
    /// Each queue, in the order of their indices.
    pub queues: Vec<QueueInterval>,
    /// The slowest bursts of the records, slowest first; at most five.
    pub outliers: Vec<Outlier>,
    /// Records that were overwritten before they could be read, in this interval.
    pub lost: u64,
    /// The same since the beginning.
    pub lost_in_all: u64,
}

/// One direction in an interval.
#[derive(Clone, Debug)]
pub struct DirectionInterval {
    /// By the counters: packets, bytes and bursts.
    pub totals: Totals,
    /// By the counters: packets that were dropped.
    pub dropped: u64,
    /// Dropped packets of each cause of this direction.
    pub drops: Vec<(DropCause, u64)>,
    /// By the counters: packets made of several frames of the guest.
    pub gro: GroCounts,
    /// The figures of the records.
    pub records: DirectionBreakdown,
}

/// A slow burst.
#[derive(Clone, Copy, Debug)]
pub struct Outlier {
    /// Its record, in ticks.
    pub record: BurstRecord,
    /// The rate of those ticks.
    pub rate: TickRate,
    /// `CLOCK_REALTIME` at its first boundary: nanoseconds since 1970.
    pub start_ns: u64,
    /// When its worker did not run, as far as that has been recorded by now; `None` when it is not recorded.
    pub interrupted: Option<Interrupted>,
}

/// One virtqueue in an interval.
#[derive(Clone, Copy, Debug)]
pub struct QueueInterval {
    /// The virtqueue's index.
    pub ring: u16,
    /// By the counters: packets, bytes and bursts.
    pub totals: Totals,
    /// By the counters: packets that were dropped.
    pub dropped: u64,
    /// By the counters: kicks and calls.
    pub notifications: Notifications,
    /// By the counters: packets made of several frames of the guest.
    pub gro: GroCounts,
    /// By the records: last boundary minus first.
    pub total: Option<Figures>,
}

#[derive(Debug)]
struct Queue {
    ring: u16,
    totals: Totals,
    dropped: u64,
    notifications: Notifications,
    gro: GroCounts,
    /// `None` until the first packet: many queues of a device may never be used.
    total: Option<Distribution>,
}

impl Follower {
    /// Follows `reader` from now on.
    #[must_use]
    pub fn new(reader: Reader) -> Self {
        let rate = TickRate::new(reader.ticks_per_second());
        let rings = u16::try_from(reader.queue_pairs() * 2).unwrap_or(u16::MAX);
        let mut follower = Self {
            rate,
            cursors: (0..reader.workers()).map(|worker| reader.newest(worker)).collect(),
            collector: Collector::new(rate),
            queues: (0..rings).map(|ring| Queue::new(&reader, ring)).collect(),
            drops: DIRECTIONS.map(|direction| drops_since_start(&reader, direction)),
            slowest: Slowest::new(OUTLIERS),
            interruptions: None,
            measured: Measured::default(),
            facts_version: 0,
            lost: 0,
            lost_before: 0,
            started: Instant::now(),
            reader,
        };
        follower.read_facts();
        follower
    }

    /// Reads whether the daemon records interruptions: it may do so for a time.
    fn read_facts(&mut self) {
        self.facts_version = self.reader.facts_version();
        let facts = Facts::parse(&self.reader.facts());
        match facts.has_interruptions() {
            true => _ = self.interruptions.get_or_insert_with(Followed::new),
            false => self.interruptions = None,
        }
        self.measured = facts.measured;
    }

    /// The recorder.
    #[must_use]
    pub const fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Reads the new records. The more often, the fewer are overwritten unread.
    pub fn poll(&mut self) {
        if self.reader.facts_version() != self.facts_version {
            self.read_facts();
        }
        let Self { reader, rate, cursors, collector, queues, slowest, interruptions, lost, .. } =
            self;
        for cursor in cursors {
            let missed = reader.read(cursor, |record| {
                collector.add(record);
                match (record, &mut *interruptions) {
                    (Record::Burst(burst), _) => {
                        slowest.add(burst);
                        if let Some(queue) = queues.get_mut(usize::from(burst.ring)) {
                            let total = queue.total.get_or_insert_with(Distribution::new);
                            total.add(burst.total(), burst.packets, *rate);
                        }
                    }
                    (Record::Interruption(interruption), Some(followed)) => {
                        followed.latest.add(interruption);
                    }
                    _ => {}
                }
            });
            *lost = lost.saturating_add(missed);
        }
        if let Some(followed) = interruptions {
            followed.age(slowest.bursts());
        }
    }

    /// Reads the new records, returns the figures since the last call, and begins a new interval.
    pub fn take(&mut self) -> Interval {
        self.poll();
        let rate = self.rate;
        let queues: Vec<_> =
            self.queues.iter_mut().map(|queue| queue.take(&self.reader, rate)).collect();
        let [tx, rx] = DIRECTIONS.map(|direction| self.direction(direction, &queues));
        let when = When::of(&self.reader);
        let slowest = self.slowest.take();
        let followed = self.interruptions.as_mut();
        let known = followed.map(|followed| followed.take(&slowest));
        let measured = &self.measured;
        let outliers = slowest.into_iter().enumerate().map(|(n, record)| Outlier {
            record,
            rate,
            start_ns: when.realtime_ns(record.first),
            interrupted: (known.as_ref().and_then(|known| known.get(n).copied()))
                .filter(|_| measured.covers(record.first)),
        });
        let interval = Interval {
            seconds: self.started.elapsed().as_secs_f64(),
            tx,
            rx,
            queues,
            outliers: outliers.collect(),
            lost: self.lost - self.lost_before,
            lost_in_all: self.lost,
        };
        self.collector.clear();
        self.lost_before = self.lost;
        self.started = Instant::now();
        interval
    }

    fn direction(&mut self, direction: Direction, queues: &[QueueInterval]) -> DirectionInterval {
        let now = drops_since_start(&self.reader, direction);
        let before = &mut self.drops[direction as usize];
        let mut way = DirectionInterval {
            totals: Totals::default(),
            dropped: 0,
            drops: now
                .iter()
                .zip(before.iter())
                .map(|((cause, now), (_, before))| (*cause, now.saturating_sub(*before)))
                .collect(),
            gro: GroCounts::default(),
            records: self.collector.breakdown(direction),
        };
        *before = now;
        for queue in queues.iter().filter(|queue| Direction::of_ring(queue.ring) == direction) {
            way.totals = way.totals.plus(queue.totals);
            way.dropped = way.dropped.saturating_add(queue.dropped);
            way.gro = way.gro.plus(queue.gro);
        }
        way
    }
}

impl Followed {
    fn new() -> Self {
        Self { latest: Latest::default(), known: HashMap::new(), aged: Instant::now() }
    }

    /// Forgets interruptions that no further burst had. The slowest bursts so far keep theirs.
    fn age(&mut self, slowest: &[BurstRecord]) {
        if self.aged.elapsed() < LATE {
            return;
        }
        self.known = slowest.iter().map(|burst| (key(burst), self.of(burst))).collect();
        self.latest.age();
        self.aged = Instant::now();
    }

    /// Those of each of these bursts, which are the last that ask for them.
    fn take(&mut self, slowest: &[BurstRecord]) -> Vec<Interrupted> {
        let found = slowest.iter().map(|burst| self.of(burst)).collect();
        self.known.clear();
        found
    }

    /// Those of `burst`: as they are now, or as they were before some were forgotten.
    fn of(&self, burst: &BurstRecord) -> Interrupted {
        let now = self.latest.of(burst);
        match self.known.get(&key(burst)) {
            Some(before) if now.most.is_none() || before.not_running > now.not_running => *before,
            _ => now,
        }
    }
}

const fn key(burst: &BurstRecord) -> (u8, u64) {
    (burst.worker, burst.first)
}

impl Queue {
    fn new(reader: &Reader, ring: u16) -> Self {
        let (totals, dropped) = counters(reader, ring);
        let notifications = reader.notifications(ring.into());
        let gro = reader.gro(ring.into());
        Self { ring, totals, dropped, notifications, gro, total: None }
    }

    fn take(&mut self, reader: &Reader, rate: TickRate) -> QueueInterval {
        let (totals, dropped) = counters(reader, self.ring);
        let notifications = reader.notifications(self.ring.into());
        let gro = reader.gro(self.ring.into());
        let interval = QueueInterval {
            ring: self.ring,
            totals: Totals {
                packets: totals.packets.saturating_sub(self.totals.packets),
                bytes: totals.bytes.saturating_sub(self.totals.bytes),
                bursts: totals.bursts.saturating_sub(self.totals.bursts),
            },
            dropped: dropped.saturating_sub(self.dropped),
            notifications: notifications.since(&self.notifications),
            gro: gro.since(self.gro),
            total: self.total.as_ref().and_then(|total| total.figures(rate)),
        };
        (self.totals, self.dropped) = (totals, dropped);
        (self.notifications, self.gro) = (notifications, gro);
        if let Some(total) = &mut self.total {
            total.clear();
        }
        interval
    }
}

fn counters(reader: &Reader, ring: u16) -> (Totals, u64) {
    let ring = usize::from(ring);
    let drops = DropCause::ALL.iter().map(|&cause| reader.drops(ring, cause));
    let dropped = drops.fold(0, u64::saturating_add);
    (reader.totals(ring), dropped)
}
