//! What a worker records for one guest: stamps, bursts, drops and probes.

use std::sync::Arc;
use std::time::Duration;

use burst_trace::{
    Anchor, BurstRecord, CyclicFrame, Direction, DropCause, DropCounts, Notification, Stage, Step,
    Writer,
};
use datapath::Counted;
use log_limit::LogLimit;
use virtio_net::MacAddress;

use crate::clock::Clock;
use crate::fault::{Delay, Fault};
use crate::timeline::{Timeline, Unsignalled};

/// A worker's end of a guest's recorder, with its clock and the faults planted in its stages.
#[derive(Debug)]
pub struct Tracer {
    clock: Clock,
    writer: Writer,
    fault: Option<Fault>,
    records: bool,
    /// Where messages about the guest go.
    log: Arc<LogLimit>,
    /// Whether it is logged what unmapped buffers may come from, since the guest's memory changed.
    unmapped: bool,
    /// Whether it is logged that the recorder is torn.
    torn: bool,
    /// One instant on both the recorder's clock and the kernel's.
    anchor: Anchor,
    /// [`ANCHORED`] in ticks.
    anchored: u64,
}

/// How long an anchor is used. The two clocks drift apart by a few nanoseconds in this time.
const ANCHORED: Duration = Duration::from_millis(10);

impl Tracer {
    /// With `records` off, packets and drops are still counted, but no burst is stamped.
    pub fn new(
        clock: Clock,
        writer: Writer,
        fault: Fault,
        records: bool,
        log: Arc<LogLimit>,
    ) -> Self {
        let fault = (!fault.is_empty()).then_some(fault);
        let (anchor, anchored) = (Anchor::default(), clock.ticks_in(ANCHORED));
        let (unmapped, torn) = (false, false);
        Self { clock, writer, fault, records, log, unmapped, torn, anchor, anchored }
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

    /// Whether bursts are stamped and recorded.
    pub const fn records(&self) -> bool {
        self.records
    }

    /// From now on, bursts are stamped and recorded, or only counted. Returns whether they were. Times that were noted while
    /// bursts were not stamped are 0.
    pub const fn set_records(&mut self, records: bool) -> bool {
        std::mem::replace(&mut self.records, records)
    }

    /// The delays that are planted.
    pub fn delays(&self) -> Vec<Delay> {
        self.fault.as_ref().map(Fault::delays).unwrap_or_default()
    }

    /// Plants `delays` in place of those before.
    pub fn set_delays(&mut self, delays: &[Delay]) {
        let mut fault = self.fault.take().unwrap_or_default();
        fault.set_delays(delays, &self.clock);
        self.fault = (!fault.is_empty()).then_some(fault);
    }

    /// The time now, for a boundary; 0 if bursts are not stamped.
    #[inline]
    pub fn stamp(&self) -> u64 {
        if self.records { self.clock.now() } else { 0 }
    }

    /// The time of the last boundary, which was just crossed; the time now if bursts are not stamped.
    #[inline]
    pub fn recent(&self, timeline: &Timeline) -> u64 {
        if self.records { timeline.last() } else { self.clock.now() }
    }

    /// Whether delays are planted.
    pub const fn has_fault(&self) -> bool {
        self.fault.is_some()
    }

    /// Crosses the boundary that ends `stage`, now.
    #[inline]
    pub fn cross(&mut self, timeline: &mut Timeline, stage: Stage) {
        self.wait(timeline, stage);
        timeline.cross(self.stamp());
    }

    /// Crosses the boundary that ends `stage`, with the stamp `at` taken earlier.
    #[inline]
    pub fn cross_at(&mut self, timeline: &mut Timeline, stage: Stage, at: u64) {
        let at = if self.wait(timeline, stage) { self.stamp() } else { at };
        timeline.cross(at);
    }

    /// The first frame of the burst came at `monotonic_ns` of the kernel's clock (`CLOCK_MONOTONIC`).
    #[inline]
    pub fn arrived(&mut self, timeline: &mut Timeline, monotonic_ns: u64) {
        if !self.records {
            return;
        }
        if timeline.last().abs_diff(self.anchor.ticks) > self.anchored {
            self.anchor = self.clock.anchor();
        }
        timeline.arrive(self.anchor.ticks_at(monotonic_ns, &self.clock));
    }

    /// Records a burst that has crossed all its boundaries. `ring`: its virtqueue; `sequence`: number of the first packet
    /// in that ring. Returns the record.
    #[inline]
    pub fn record(&mut self, burst: &Unsignalled, ring: u16, sequence: u64) -> BurstRecord {
        let record = burst.record(ring, sequence);
        if self.records {
            self.writer.burst(&record);
        } else {
            self.writer.count(&record);
        }
        record
    }

    /// Records a probe that the burst of `record` carried.
    pub fn probe(&mut self, record: &BurstRecord, run: u32, sequence: u64) {
        if self.records {
            self.writer.probe(record, run, sequence);
        }
    }

    /// Records a cyclic frame that the burst of `record` carried.
    pub fn cyclic(&mut self, record: &BurstRecord, frame: CyclicFrame) {
        if self.records {
            self.writer.cyclic(record, frame);
        }
    }

    /// Counts what the kernel counted for a datapath whose pair has these virtqueues: receive, transmit.
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

    /// Counts and records that virtqueue `ring` was started now. `again`: if it went on where a daemon before stood, the most
    /// frames that are sent again. Returns the sequence number of the first packet that this daemon counts.
    pub fn ring_started(&mut self, ring: u16, again: Option<u16>) -> u64 {
        self.writer.ring_started(again);
        self.happened(Step::RingStarted(ring));
        self.writer.first_sequence(ring)
    }

    /// Records that this happened now.
    pub fn happened(&mut self, step: Step) {
        if self.records {
            self.writer.milestone(self.clock.now(), step);
        }
    }

    /// Records that the guest was announced by the frame of the burst of `record`.
    pub fn announced(&mut self, record: &BurstRecord, address: MacAddress) {
        if self.records {
            self.writer.milestone(record.last, Step::Announced(address.0));
        }
    }

    /// Counts a notification of virtqueue `ring`.
    #[inline]
    pub fn notified(&mut self, ring: u16, kind: Notification) {
        self.writer.count_notification(ring, kind);
    }

    /// Counts addresses that moved between the guest's port of a switch and another one, on its virtqueue `ring`.
    pub fn moved(&mut self, ring: u16, addresses: u64) {
        self.writer.count_moves(ring, addresses);
    }

    /// Counts packets that were made of several frames of virtqueue `ring`, and these frames.
    #[inline]
    pub fn joined(&mut self, ring: u16, packets: u32, frames: u32) {
        if packets > 0 {
            self.writer.count_gro(ring, packets, frames);
        }
    }

    /// Counts the frames of a burst of virtqueue `ring` that were dropped.
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
            if matches!(cause, DropCause::TxUnmapped | DropCause::RxUnmapped) {
                self.explain_unmapped(ring);
            }
            if self.records {
                self.writer.dropped(ring, cause, packets, now);
            } else {
                self.writer.count_dropped(ring, cause, packets);
            }
        }
    }

    /// Logs once what may be behind buffers outside of the memory that the front end shares.
    fn explain_unmapped(&mut self, ring: u16) {
        if !std::mem::replace(&mut self.unmapped, true) {
            log_limit::warn!(
                self.log,
                "queue {ring}: the guest offers buffers outside of the memory that its front end shares, and their frames are \
                 dropped; if memory was plugged in, it must be shared too: use memory-backend-memfd with share=on, not \
                 memory-backend-ram; otherwise the guest's driver is at fault"
            );
        }
    }

    /// The guest has another memory table.
    pub const fn memory_changed(&mut self) {
        self.unmapped = false;
    }

    #[inline]
    fn wait(&mut self, timeline: &Timeline, stage: Stage) -> bool {
        debug_assert_eq!(timeline.next(), Some(stage));
        match &mut self.fault {
            None => false,
            Some(fault) => fault.wait(timeline.direction(), stage, &self.clock),
        }
    }
}
