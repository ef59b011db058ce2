//! The stamps of a burst.

use std::time::Duration;

use burst_trace::stage::STAGES_MAX;
use burst_trace::{Anchor, BurstRecord, Direction, DropCause, DropCounts, Stage, Writer};

use datapath::Counted;

use crate::clock::{Clock, Deadline};
use crate::fault::Fault;

/// A burst on its way: the boundaries it has crossed.
#[derive(Clone, Copy, Debug)]
pub struct Journey {
    direction: Direction,
    first: u64,
    last: u64,
    stages: [u64; STAGES_MAX],
    crossed: usize,
    /// Ticks from the first frame's arrival to the first boundary, where the arrival is known.
    wakeup: Option<u64>,
}

impl Journey {
    /// Begins at the boundary `wake`.
    #[inline]
    pub const fn begin(direction: Direction, wake: u64) -> Self {
        Self {
            direction,
            first: wake,
            last: wake,
            stages: [0; STAGES_MAX],
            crossed: 0,
            wakeup: None,
        }
    }

    /// The last boundary crossed, ticks.
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// The first frame came at `arrived`, ticks. When that was after the first boundary, which was a look that found
    /// nothing, it is the first boundary itself: what polling can only bound is exact then.
    #[inline]
    fn arrive(&mut self, arrived: u64) {
        self.wakeup = Some(self.first.saturating_sub(arrived));
        let late = arrived.saturating_sub(self.first).min(self.stages[0]);
        self.first += late;
        self.stages[0] -= late;
    }

    #[inline]
    fn cross(&mut self, now: u64) {
        // Stamps of one thread do not go back; a clock that did would give an empty stage, not a huge one.
        self.stages[self.crossed] = now.saturating_sub(self.last);
        self.last = self.last.max(now);
        self.crossed += 1;
    }
}

/// What a burst came to.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The virtqueue.
    pub ring: u16,
    /// Sequence number of the first packet in its ring.
    pub sequence: u64,
    /// Packets that went through.
    pub packets: u16,
    /// Their bytes.
    pub bytes: u32,
    /// Whether the worker was polling.
    pub polled: bool,
}

/// A worker's clock, its end of the recorder, and the delays planted in it.
#[derive(Debug)]
pub struct Tracer {
    clock: Clock,
    writer: Writer,
    fault: Option<Fault>,
    records: bool,
    /// The recorder is torn, and that was logged.
    torn: bool,
    /// An instant on the recorder's clock and on the kernel's.
    anchor: Anchor,
    /// [`ANCHORED`] in ticks.
    anchored: u64,
}

/// An anchor is good for so long: the two clocks drift by a few nanoseconds until then.
const ANCHORED: Duration = Duration::from_millis(10);

impl Tracer {
    /// With `records` off, packets and drops are still counted, but no burst is stamped.
    pub fn new(clock: Clock, writer: Writer, fault: Fault, records: bool) -> Self {
        let fault = (!fault.is_empty()).then_some(fault);
        let (anchor, anchored) = (Anchor::default(), clock.ticks_in(ANCHORED));
        Self { clock, writer, fault, records, torn: false, anchor, anchored }
    }

    /// Logs once that the recorder was shortened by another process. `prefix`: the log prefix.
    #[cold]
    pub fn look_at_recorder(&mut self, prefix: &str) {
        if self.writer.is_torn() && !std::mem::replace(&mut self.torn, true) {
            log::error!(
                "{prefix}the flight recorder was truncated: what it counts and records from now on is lost; traffic \
                 goes on, and a restart of the daemon makes a new one"
            );
        }
    }

    /// The time now, ticks: for the poll policy.
    #[inline]
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// The time now, for a boundary; 0 when bursts are not stamped.
    #[inline]
    pub fn stamp(&self) -> u64 {
        if self.records { self.clock.now() } else { 0 }
    }

    /// The time of the last boundary, which was just crossed; now, when bursts are not stamped.
    #[inline]
    pub fn recent(&self, journey: &Journey) -> u64 {
        if self.records { journey.last } else { self.clock.now() }
    }

    /// Time left until `deadline`.
    pub fn time_until(&self, deadline: Deadline) -> Duration {
        self.clock.duration_of(deadline.left(self.clock.now()))
    }

    /// Whether delays are planted.
    pub const fn has_fault(&self) -> bool {
        self.fault.is_some()
    }

    /// Crosses the boundary that ends `stage`, now.
    #[inline]
    pub fn cross(&mut self, journey: &mut Journey, stage: Stage) {
        self.wait(journey, stage);
        journey.cross(self.stamp());
    }

    /// Crosses the boundary that ends `stage` with the stamp `at`, which was taken before.
    #[inline]
    pub fn cross_at(&mut self, journey: &mut Journey, stage: Stage, at: u64) {
        let at = if self.wait(journey, stage) { self.stamp() } else { at };
        journey.cross(at);
    }

    /// The first frame of the burst came at `monotonic_ns` of the kernel's clock (`CLOCK_MONOTONIC`).
    #[inline]
    pub fn arrived(&mut self, journey: &mut Journey, monotonic_ns: u64) {
        if !self.records {
            return;
        }
        if journey.last.abs_diff(self.anchor.ticks) > self.anchored {
            self.anchor = self.clock.anchor();
        }
        journey.arrive(self.anchor.ticks_at(monotonic_ns, &self.clock));
    }

    /// Leaves a burst behind that has crossed all its boundaries, and returns what is recorded of it.
    #[inline]
    pub fn finish(&mut self, journey: &Journey, outcome: Outcome) -> BurstRecord {
        debug_assert_eq!(journey.crossed, journey.direction.stages().len());
        let record = BurstRecord {
            first: journey.first,
            last: journey.last,
            sequence: outcome.sequence,
            stages: journey.stages,
            bytes: outcome.bytes,
            packets: outcome.packets,
            ring: outcome.ring,
            worker: 0,
            is_polled: outcome.polled,
            wakeup: journey.wakeup.map(|ticks| u32::try_from(ticks).unwrap_or(u32::MAX)),
        };
        if self.records {
            self.writer.burst(&record);
        } else {
            self.writer.count(&record);
        }
        record
    }

    /// Leaves a probe behind that the burst of `record` carried.
    pub fn probe(&mut self, record: &BurstRecord, run: u32, sequence: u64) {
        if self.records {
            self.writer.probe(record, run, sequence);
        }
    }

    /// Takes over what was counted behind the datapath of a pair with these virtqueues: receive, transmit.
    #[cold]
    pub fn counted(&mut self, rings: [u16; 2], what: Counted, times: u64) {
        match what {
            Counted::Lost(cause) => self.lost(rings[0], cause, times),
            Counted::Event(event) => {
                let ring = if event.direction() == Direction::Rx { rings[0] } else { rings[1] };
                self.writer.count_event(ring, event, times);
            }
        }
    }

    /// Counts frames for virtqueue `ring` that were lost before the worker saw them.
    fn lost(&mut self, ring: u16, cause: DropCause, mut packets: u64) {
        let now = self.clock.now();
        while packets > 0 {
            let some = u16::try_from(packets).unwrap_or(u16::MAX);
            if self.records {
                self.writer.dropped(ring, cause, some, now);
            } else {
                self.writer.count_dropped(ring, cause, some);
            }
            packets -= u64::from(some);
        }
    }

    /// Counts addresses that moved between the guest's port of a switch and another one, on its virtqueue `ring`.
    pub fn moved(&mut self, ring: u16, addresses: u64) {
        self.writer.count_moves(ring, addresses);
    }

    /// Counts what was dropped of a burst of virtqueue `ring`.
    #[inline]
    pub fn dropped(&mut self, ring: u16, drops: &DropCounts) {
        if !drops.is_empty() {
            self.dropped_some(ring, drops);
        }
    }

    #[cold]
    fn dropped_some(&mut self, ring: u16, drops: &DropCounts) {
        let now = self.clock.now();
        for (cause, packets) in drops.iter() {
            if self.records {
                self.writer.dropped(ring, cause, packets, now);
            } else {
                self.writer.count_dropped(ring, cause, packets);
            }
        }
    }

    #[inline]
    fn wait(&mut self, journey: &Journey, stage: Stage) -> bool {
        debug_assert_eq!(journey.direction.stages().get(journey.crossed), Some(&stage));
        match &mut self.fault {
            None => false,
            Some(fault) => fault.wait(journey.direction, stage, &self.clock),
        }
    }
}
