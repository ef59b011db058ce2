//! What the daemon under test recorded, and what must hold of it whatever happened.

use std::path::Path;
use std::time::Duration;

use burst_trace::Totals;
use burst_trace::location::recorder_path;
use burst_trace::{BurstRecord, Direction, DropCause, Reader, Record, Stage};

use crate::eventually::{SOON, eventually};

/// A recorder of a daemon, open.
#[derive(Debug)]
pub struct Trace {
    reader: Reader,
}

impl Trace {
    /// Opens the recorder of the daemon `name` with the run directory `directory`.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn open(directory: &Path, name: &str) -> Self {
        let reader = Reader::open(&recorder_path(directory, name));
        Self { reader: reader.expect("a recorder") }
    }

    /// All bursts that went through virtqueue `ring` since the daemon's start, in order.
    ///
    /// # Panics
    /// When the recorder does not hold all of them any more.
    #[must_use]
    pub fn bursts(&self, ring: u16) -> Vec<BurstRecord> {
        let mut bursts = Vec::new();
        for worker in 0..self.reader.workers() {
            let mut cursor = self.reader.oldest_of_last_daemon(worker);
            let lost = self.reader.read(&mut cursor, |record| {
                bursts.extend(record.as_burst().filter(|burst| burst.ring == ring));
            });
            assert_eq!(lost, 0, "the recorder is too small for this test");
        }
        bursts
    }

    /// How long it took from the socket of the last daemon to its first burst, if it goes on after another one.
    #[must_use]
    pub fn last_gap(&self) -> Option<Duration> {
        let mut last = None;
        for worker in 0..self.reader.workers() {
            let mut cursor = self.reader.oldest_of_last_daemon(worker);
            let _ = self.reader.read(&mut cursor, |record| {
                if let Record::Restart(restart) = record {
                    last = Some(restart.after.saturating_sub(restart.listening));
                }
            });
        }
        let ns = u128::from(last?) * 1_000_000_000 / u128::from(self.reader.ticks_per_second());
        Some(Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX)))
    }

    /// How many packets or buffers of virtqueue `ring` were dropped for this reason.
    #[must_use]
    pub fn drops(&self, ring: u16, cause: DropCause) -> u64 {
        self.reader.drops(ring.into(), cause)
    }

    /// How many addresses moved between the guest's port of a switch and another one.
    #[must_use]
    pub fn moves(&self) -> u64 {
        (0..self.reader.queue_pairs() * 2).map(|ring| self.reader.moves(ring)).sum()
    }

    /// How many packets went through virtqueue `ring`.
    #[must_use]
    pub fn packets(&self, ring: u16) -> u64 {
        self.reader.totals(ring.into()).packets
    }

    /// Checks every burst of virtqueue `ring`: its stages add up to its total to the tick, and sequence
    /// numbers and totals cover every packet exactly once. Returns the totals.
    ///
    /// # Panics
    /// When that does not hold, also not in a moment: a guest may have a burst before it is recorded.
    #[must_use]
    pub fn check(&self, ring: u16) -> Totals {
        eventually(SOON, &format!("records and totals of ring {ring} to agree"), || {
            let (sum, totals) = (self.sum(ring), self.reader.totals(usize::from(ring)));
            if sum == totals { Ok(sum) } else { Err(format!("records {sum:?}, {totals:?}")) }
        })
    }

    fn sum(&self, ring: u16) -> Totals {
        let (mut sum, first) = (Totals::default(), self.reader.first_sequence(ring.into()));
        let mut last = 0;
        for burst in self.bursts(ring) {
            assert_eq!(burst.stages.iter().sum::<u64>(), burst.last - burst.first, "{burst:?}");
            assert_eq!(burst.sequence, first + sum.packets, "{burst:?}");
            assert!(burst.packets > 0 && burst.last >= last, "{burst:?} ends after {last}");
            last = burst.last;
            sum.packets += u64::from(burst.packets);
            sum.bytes += u64::from(burst.bytes);
            sum.bursts += 1;
        }
        sum
    }

    /// Ticks as microseconds.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "times of a test")]
    pub fn us(&self, ticks: u64) -> f64 {
        ticks as f64 * 1e6 / self.reader.ticks_per_second() as f64
    }

    /// What a burst spent in `stage`, microseconds.
    ///
    /// # Panics
    /// When its direction does not have that stage.
    #[must_use]
    pub fn stage_us(&self, burst: &BurstRecord, stage: Stage) -> f64 {
        let at = position(burst.direction(), stage);
        self.us(burst.stages[at])
    }
}

/// Where `stage` stands among those of `direction`.
///
/// # Panics
/// When it has no such stage.
#[must_use]
pub fn position(direction: Direction, stage: Stage) -> usize {
    direction.stages().iter().position(|&it| it == stage).expect("a stage of this direction")
}
