//! The writing side of the flight recorder: one [`Writer`] for each worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::clock::{Anchor, Clock};
use crate::cyclic::CyclicFrame;
use crate::file::{
    ANCHOR_WORDS, Layout, RING_BURSTS, RING_BYTES, RING_DROPS, RING_EVENTS, RING_FIRST,
    RING_GRO_FRAMES, RING_GRO_SEGMENTS, RING_MOVES, RING_NOTIFICATIONS, RING_PACKETS, Words, word,
};
use crate::header::store_anchor;
use crate::interruption::Interruption;
use crate::milestone::{Milestone, Step};
use crate::notification::Notification;
use crate::record::{BurstRecord, CyclicRecord, DropRecord, KernelSpan, ProbeRecord, RECORD_WORDS};
use crate::restarting::Restarting;
use crate::stage::{DropCause, SocketEvent};

/// A worker's writer: one producer, no lock, no system call.
#[derive(Debug)]
pub struct Writer {
    words: Arc<Words>,
    layout: Layout,
    head: u64,
    head_at: usize,
    records_at: usize,
    clock: Clock,
    start: Anchor,
    /// When the anchor was refreshed, ticks.
    refreshed_at: u64,
    /// A second in ticks, as measured at the start.
    second: u64,
    keeps_anchor: bool,
    restarting: Arc<Restarting>,
    /// Ticks after `refreshed_at` from which a burst is followed by [`chores`](Self::chores).
    chores_after: u64,
}

impl Writer {
    /// The writer of `worker`. It goes on after the records that are there.
    pub(crate) fn new(
        words: Arc<Words>,
        layout: Layout,
        worker: usize,
        clock: Clock,
        restarting: Arc<Restarting>,
    ) -> Self {
        let anchor = clock.anchor();
        let (keeps_anchor, second) = (worker == 0, clock.ticks_per_second());
        Self {
            head: words.at(layout.head(worker)).load(Ordering::Relaxed),
            words,
            layout,
            head_at: layout.head(worker),
            records_at: layout.records(worker),
            clock,
            start: anchor,
            refreshed_at: anchor.ticks,
            second,
            keeps_anchor,
            // The first burst may end a restart.
            chores_after: if restarting.is_over() { chores_every(keeps_anchor, second) } else { 0 },
            restarting,
        }
    }

    /// The sequence number of the first packet of virtqueue `ring`: they go on where those of the daemon before ended.
    ///
    /// # Panics
    /// When there is no such virtqueue.
    #[must_use]
    pub fn first_sequence(&self, ring: u16) -> u64 {
        let ring = usize::from(ring);
        assert!(ring < self.layout.queue_pairs * 2, "no such virtqueue in the recorder");
        self.words.at(self.layout.ring(ring) + RING_FIRST).load(Ordering::Relaxed)
    }

    /// Stores a burst and adds it to its ring's totals.
    #[inline]
    pub fn burst(&mut self, record: &BurstRecord) {
        self.count(record);
        self.push(record.to_words());
        if record.last.abs_diff(self.refreshed_at) >= self.chores_after {
            self.chores(record.last);
        }
    }

    /// Counts a ring that was started now. `again`: if it went on where a daemon before stood, the most frames that are sent
    /// again.
    #[cold]
    pub fn ring_started(&mut self, again: Option<u16>) {
        self.restarting.ring_started(self.clock.now());
        if let Some(again) = again {
            // Workers of the same guest count here, too.
            let restarts = u64::from(self.restarting.ring_resumed());
            self.words.at(word::RESTARTS).fetch_add(restarts, Ordering::Relaxed);
            self.words.at(word::SENT_TWICE_MAX).fetch_add(again.into(), Ordering::Relaxed);
        }
    }

    /// Adds a burst to its ring's totals without storing it: for `--trace off`, where only the counters are kept.
    #[inline]
    pub fn count(&mut self, record: &BurstRecord) {
        let totals = self.words.slice(self.layout.ring(usize::from(record.ring)), RING_EVENTS);
        add(&totals[RING_PACKETS], u64::from(record.packets));
        add(&totals[RING_BYTES], u64::from(record.bytes));
        add(&totals[RING_BURSTS], 1);
    }

    /// Counts `packets` of virtqueue `ring` that were dropped at time `at`, ticks, and stores the drop.
    #[cold]
    pub fn dropped(&mut self, ring: u16, cause: DropCause, packets: u16, at: u64) {
        self.count_dropped(ring, cause, packets);
        self.push(DropRecord { at, cause, packets, ring, worker: 0 }.to_words());
    }

    /// Stores what happened at time `at`, ticks.
    #[cold]
    pub fn milestone(&mut self, at: u64, step: Step) {
        self.push(Milestone { at, step, writer: 0 }.to_words());
    }

    /// Stores a time in the host kernel. No total counts it.
    pub fn kernel(&mut self, span: &KernelSpan) {
        self.push(span.to_words());
    }

    /// Stores a time in which a thread did not run. No total counts it.
    pub fn interruption(&mut self, interruption: &Interruption) {
        self.push(interruption.to_words());
    }

    /// Stores a probe that `burst` carried. The burst's packets include it.
    pub fn probe(&mut self, burst: &BurstRecord, run: u32, sequence: u64) {
        let (packets, times) = (burst.packets, burst.times());
        self.push(ProbeRecord { run, sequence, packets, times }.to_words());
    }

    /// Stores a cyclic frame that `burst` carried. The burst's packets include it.
    pub fn cyclic(&mut self, burst: &BurstRecord, frame: CyclicFrame) {
        let (packets, times) = (burst.packets, burst.times());
        self.push(CyclicRecord { frame, packets, times }.to_words());
    }

    /// Whether another process shortened the file. If so, new records reach no reader.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.words.is_torn()
    }

    /// Counts a drop without storing it.
    pub fn count_dropped(&mut self, ring: u16, cause: DropCause, packets: u16) {
        let at = self.layout.ring(usize::from(ring)) + RING_DROPS + cause as usize;
        add(self.words.at(at), u64::from(packets));
    }

    /// Adds what the kernel has counted for an AF_XDP socket.
    pub fn count_event(&mut self, ring: u16, event: SocketEvent, times: u64) {
        let at = self.layout.ring(usize::from(ring)) + RING_EVENTS + event as usize;
        add(self.words.at(at), times);
    }

    /// Counts a notification of virtqueue `ring`.
    #[inline]
    pub fn count_notification(&mut self, ring: u16, kind: Notification) {
        let at = self.layout.ring(usize::from(ring)) + RING_NOTIFICATIONS + kind as usize;
        add(self.words.at(at), 1);
    }

    /// Counts packets that were made of several frames of virtqueue `ring` (GRO), and these frames.
    pub fn count_gro(&mut self, ring: u16, packets: u32, frames: u32) {
        let ring = self.layout.ring(usize::from(ring));
        add(self.words.at(ring + RING_GRO_FRAMES), packets.into());
        add(self.words.at(ring + RING_GRO_SEGMENTS), frames.into());
    }

    /// Counts addresses that moved between the guest's port of a switch and another one.
    pub fn count_moves(&mut self, ring: u16, addresses: u64) {
        add(self.words.at(self.layout.ring(usize::from(ring)) + RING_MOVES), addresses);
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the capacity is far below 2^32")]
    fn push(&mut self, record: [u64; RECORD_WORDS]) {
        let slot = self.head as usize & (self.layout.capacity - 1);
        // The slot is overwritten only after the count that made it the oldest one is visible: a reader
        // that sees a changed slot also sees that count, and discards its copy.
        fence(Ordering::Release);
        self.words.store_record(self.records_at + slot * RECORD_WORDS, &record);
        self.head += 1;
        self.words.at(self.head_at).store(self.head, Ordering::Release);
        // The next slot was last written megabytes ago. Without a prefetch, the fence before the check for a signal would
        // wait for its cache line.
        let next = self.head as usize & (self.layout.capacity - 1);
        self.words.prefetch_to_write(self.records_at + next * RECORD_WORDS);
    }

    /// Runs after the first burst, and once a second of work if it keeps the anchor.
    #[cold]
    fn chores(&mut self, last: u64) {
        if let Some(restart) = self.restarting.ends(last) {
            self.push(restart.to_words());
        }
        self.chores_after = chores_every(self.keeps_anchor, self.second);
        if last.abs_diff(self.refreshed_at) >= self.chores_after {
            self.refresh_anchor();
        }
    }

    /// Runs once a second of work: stores the counter's current relation to the monotonic clock, and its rate since the
    /// start.
    #[cold]
    fn refresh_anchor(&mut self) {
        let anchor = self.clock.anchor();
        self.refreshed_at = anchor.ticks;
        let version = self.words.at(word::ANCHOR_VERSION);
        let now = version.load(Ordering::Relaxed);
        version.store(now + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        store_anchor(self.words.slice(word::ANCHOR_LATEST, ANCHOR_WORDS), anchor);
        if anchor.monotonic_ns.saturating_sub(self.start.monotonic_ns) > 500_000_000 {
            match self.clock.rate_since(self.start, anchor) {
                Some(rate) => {
                    self.words.at(word::TICKS_PER_SECOND).store(rate, Ordering::Relaxed);
                    let error = error_of_line(self.start, anchor).saturating_add(1);
                    self.words.at(word::ANCHOR_ERROR).store(error, Ordering::Relaxed);
                }
                // The counter jumped. Its rate is measured from here on.
                None => {
                    self.words.at(word::ANCHOR_ERROR).store(0, Ordering::Relaxed);
                    self.start = anchor;
                }
            }
        }
        version.store(now + 2, Ordering::Release);
    }
}

/// By how much the line through two anchors is from the clock at any time between them, and in the second until the next one,
/// nanoseconds.
fn error_of_line(start: Anchor, latest: Anchor) -> u64 {
    let error = start.error_ns.max(latest.error_ns);
    let between = latest.monotonic_ns.saturating_sub(start.monotonic_ns).max(1);
    let turned = u128::from(error) * 2 * 1_000_000_000 / u128::from(between);
    error.saturating_add(u64::try_from(turned).unwrap_or(u64::MAX))
}

/// Ticks between two chores of a writer.
const fn chores_every(keeps_anchor: bool, second: u64) -> u64 {
    if keeps_anchor { second } else { u64::MAX }
}

/// Adds to a counter that only this thread writes, so no locked instruction is needed.
#[inline]
fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader::Reader;
    use crate::recorder::{Recorder, RecorderOptions};

    #[test]
    fn a_counter_that_starts_again_keeps_its_rate() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::new();
        let options = RecorderOptions {
            path: directory.path().join("vm.trace"),
            workers: 1,
            queue_pairs: 1,
            capacity: 64,
            facts: String::new(),
        };
        let recorder = Recorder::create(&options, &clock).unwrap();
        let mut writer = recorder.writer(0, clock);
        let second = clock.ticks_per_second();
        let reader = Reader::open(recorder.path()).unwrap();
        let rate = || reader.ticks_per_second();
        // The counter was days ahead, or at 0, when the recorder was made a second ago.
        for ticks in [writer.start.ticks + (second << 20), 0] {
            writer.start.ticks = ticks;
            writer.start.monotonic_ns -= 1_000_000_000;
            writer.refresh_anchor();
            assert_eq!(rate(), second);
            assert!(
                writer.start.ticks.abs_diff(clock.now()) < second,
                "it is measured from here on"
            );
        }
    }
}
