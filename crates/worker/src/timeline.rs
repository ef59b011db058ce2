//! The boundaries that a burst has crossed, and its record.

use burst_trace::stage::STAGES_MAX;
use burst_trace::{BurstRecord, Direction, Stage};

/// When work came into sight, ticks.
#[derive(Clone, Copy, Debug)]
pub struct Sighting {
    /// When the worker was able to look: at its last wake-up, or at its last look that found nothing.
    pub wake: u64,
    /// When it looked and found the work.
    pub seen: u64,
    /// Whether the worker was polling.
    pub polled: bool,
}

/// The boundaries that a burst has crossed so far, ticks.
#[derive(Clone, Copy, Debug)]
pub struct Timeline {
    direction: Direction,
    first: u64,
    last: u64,
    stages: [u64; STAGES_MAX],
    crossed: usize,
    /// Ticks from the first frame's arrival to the first boundary, if the arrival is known.
    wakeup: Option<u64>,
}

impl Timeline {
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

    pub const fn direction(&self) -> Direction {
        self.direction
    }

    /// The last boundary crossed.
    #[inline]
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// The stage that ends at the next boundary.
    pub fn next(&self) -> Option<Stage> {
        self.direction.stages().get(self.crossed).copied()
    }

    /// The first frame came at `arrived`. If that was after the first boundary (a look that found nothing), the arrival
    /// becomes the first boundary: polling gives only a bound, and the arrival is exact.
    #[inline]
    pub fn arrive(&mut self, arrived: u64) {
        self.wakeup = Some(self.first.saturating_sub(arrived));
        let late = arrived.saturating_sub(self.first).min(self.stages[0]);
        self.first += late;
        self.stages[0] -= late;
    }

    #[inline]
    pub fn cross(&mut self, now: u64) {
        // Stamps of one thread do not go back; a clock that did would give an empty stage, not a huge one.
        self.stages[self.crossed] = now.saturating_sub(self.last);
        self.last = self.last.max(now);
        self.crossed += 1;
    }
}

/// A burst that is published to its guest, which has no signal for it yet.
#[derive(Debug)]
pub struct Unsignalled {
    pub timeline: Timeline,
    pub packets: u16,
    pub bytes: u32,
    pub polled: bool,
}

impl Unsignalled {
    /// The record of the burst, once it has crossed all boundaries. `ring`: its virtqueue; `sequence`: number of the
    /// first packet in that ring.
    #[inline]
    pub fn record(&self, ring: u16, sequence: u64) -> BurstRecord {
        let Self { timeline, packets, bytes, polled } = self;
        debug_assert_eq!(timeline.next(), None);
        BurstRecord {
            first: timeline.first,
            last: timeline.last,
            sequence,
            stages: timeline.stages,
            bytes: *bytes,
            packets: *packets,
            ring,
            worker: 0,
            is_polled: *polled,
            wakeup: timeline.wakeup.map(|ticks| u32::try_from(ticks).unwrap_or(u32::MAX)),
        }
    }
}
