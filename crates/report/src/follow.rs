//! A recorder that is still being written, followed and told interval by interval.
//!
//! Packets, bytes and drops come from the counters and are exact even where records were lost; times come
//! from the records.

use std::time::Instant;

use burst_trace::Totals;
use burst_trace::{Cursor, Direction, DropCause, Reader, RecordKind};

use crate::collect::{Collector, DirectionBreakdown};
use crate::figures::{Distribution, Figures, TickRate};

/// Follows a recorder from its newest record on.
#[derive(Debug)]
pub struct Follower {
    reader: Reader,
    rate: TickRate,
    cursors: Vec<Cursor>,
    collector: Collector,
    queues: Vec<Queue>,
    lost: u64,
    lost_before: u64,
    started: Instant,
}

/// What happened between two calls of [`Follower::take`].
#[derive(Clone, Debug)]
pub struct Interval {
    /// How long it was.
    pub seconds: f64,
    /// Guest to wire.
    pub tx: DirectionInterval,
    /// Wire to guest.
    pub rx: DirectionInterval,
    /// Queue by queue, in the order of their indices.
    pub queues: Vec<QueueInterval>,
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
    /// By the counters: packets that went no further.
    pub dropped: u64,
    /// By the records.
    pub records: DirectionBreakdown,
}

/// One virtqueue in an interval.
#[derive(Clone, Copy, Debug)]
pub struct QueueInterval {
    /// The virtqueue's index.
    pub ring: u16,
    /// By the counters: packets, bytes and bursts.
    pub totals: Totals,
    /// By the counters: packets that went no further.
    pub dropped: u64,
    /// By the records: last boundary minus first.
    pub total: Option<Figures>,
}

#[derive(Debug)]
struct Queue {
    ring: u16,
    totals: Totals,
    dropped: u64,
    /// Made with the first packet: a device may have many queues that are never used.
    total: Option<Distribution>,
}

impl Follower {
    /// Follows `reader` from now on.
    #[must_use]
    pub fn new(reader: Reader) -> Self {
        let rate = TickRate::new(reader.ticks_per_second());
        let rings = u16::try_from(reader.queue_pairs() * 2).unwrap_or(u16::MAX);
        Self {
            rate,
            cursors: (0..reader.workers()).map(|worker| reader.newest(worker)).collect(),
            collector: Collector::new(rate),
            queues: (0..rings).map(|ring| Queue::new(&reader, ring)).collect(),
            lost: 0,
            lost_before: 0,
            started: Instant::now(),
            reader,
        }
    }

    /// The recorder.
    #[must_use]
    pub const fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Reads what came since the last time. The oftener, the less is overwritten unread.
    pub fn poll(&mut self) {
        let Self { reader, rate, cursors, collector, queues, lost, .. } = self;
        for cursor in cursors {
            *lost += reader.read(cursor, |record| {
                collector.add(record);
                if record.kind == RecordKind::Burst as u8
                    && let Some(queue) = queues.get_mut(usize::from(record.ring))
                {
                    let total = queue.total.get_or_insert_with(Distribution::new);
                    total.add(record.total(), record.packets, *rate);
                }
            });
        }
    }

    /// Reads what came, tells what there was since the last time, and begins a new interval.
    pub fn take(&mut self) -> Interval {
        self.poll();
        let rate = self.rate;
        let queues: Vec<_> =
            self.queues.iter_mut().map(|queue| queue.take(&self.reader, rate)).collect();
        let direction = |direction| DirectionInterval::of(direction, &queues, &self.collector);
        let interval = Interval {
            seconds: self.started.elapsed().as_secs_f64(),
            tx: direction(Direction::Tx),
            rx: direction(Direction::Rx),
            queues,
            lost: self.lost - self.lost_before,
            lost_in_all: self.lost,
        };
        self.collector.clear();
        self.lost_before = self.lost;
        self.started = Instant::now();
        interval
    }
}

impl DirectionInterval {
    fn of(direction: Direction, queues: &[QueueInterval], collector: &Collector) -> Self {
        let mut way =
            Self { totals: Totals::default(), dropped: 0, records: collector.breakdown(direction) };
        for queue in queues.iter().filter(|queue| Direction::of_ring(queue.ring) == direction) {
            way.totals.packets += queue.totals.packets;
            way.totals.bytes += queue.totals.bytes;
            way.totals.bursts += queue.totals.bursts;
            way.dropped += queue.dropped;
        }
        way
    }
}

impl Queue {
    fn new(reader: &Reader, ring: u16) -> Self {
        let (totals, dropped) = counters(reader, ring);
        Self { ring, totals, dropped, total: None }
    }

    fn take(&mut self, reader: &Reader, rate: TickRate) -> QueueInterval {
        let (totals, dropped) = counters(reader, self.ring);
        let interval = QueueInterval {
            ring: self.ring,
            totals: Totals {
                packets: totals.packets.saturating_sub(self.totals.packets),
                bytes: totals.bytes.saturating_sub(self.totals.bytes),
                bursts: totals.bursts.saturating_sub(self.totals.bursts),
            },
            dropped: dropped.saturating_sub(self.dropped),
            total: self.total.as_ref().and_then(|total| total.figures(rate)),
        };
        (self.totals, self.dropped) = (totals, dropped);
        if let Some(total) = &mut self.total {
            total.clear();
        }
        interval
    }
}

fn counters(reader: &Reader, ring: u16) -> (Totals, u64) {
    let ring = usize::from(ring);
    let dropped = DropCause::ALL.iter().map(|&cause| reader.drops(ring, cause)).sum();
    (reader.totals(ring), dropped)
}
