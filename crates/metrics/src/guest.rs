//! One guest's recorder, followed.

use std::path::Path;

use burst_trace::{BurstRecord, Cursor, Direction, ReadError, Reader, RecordKind};

/// Upper ends of the histograms' buckets, seconds; the last one is without end.
pub const BUCKETS_S: [f64; 22] = [
    1e-7, 2e-7, 5e-7, 1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2,
    2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0,
];

/// A guest, by its recorder.
#[derive(Debug)]
pub struct Guest {
    pub(crate) name: String,
    pub(crate) reader: Reader,
    pub(crate) facts: serde_json::Value,
    cursors: Vec<Cursor>,
    bounds: [u64; BUCKETS_S.len()],
    pub(crate) ways: [Way; 2],
    pub(crate) lost: u64,
}

/// What is followed of one direction.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) direction: Direction,
    /// The daemon's stages in order, then wakeup and total.
    pub(crate) times: Vec<(&'static str, Times)>,
    pub(crate) polled_packets: u64,
}

/// A histogram.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times {
    /// Packets by bucket; the last one holds what is longer than all.
    pub(crate) counts: [u64; BUCKETS_S.len() + 1],
    pub(crate) packets: u64,
    pub(crate) ticks: u128,
}

impl Guest {
    /// Opens the recorder at `path`, which is `name`'s, and follows it from its oldest record on.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(name: &str, path: &Path) -> Result<Self, ReadError> {
        let reader = Reader::open(path)?;
        let rate = reader.ticks_per_second() as f64;
        Ok(Self {
            name: name.into(),
            facts: serde_json::from_str(&reader.facts()).unwrap_or_default(),
            cursors: (0..reader.workers()).map(|worker| reader.oldest(worker)).collect(),
            bounds: BUCKETS_S.map(|seconds| (seconds * rate) as u64),
            ways: [Way::new(Direction::Tx), Way::new(Direction::Rx)],
            lost: 0,
            reader,
        })
    }

    /// Reads what came. Returns what part of the recorder the most of one worker fills: 1 is all of it.
    pub(crate) fn follow(&mut self) -> f64 {
        let Self { reader, cursors, bounds, ways, lost, .. } = self;
        let mut most = 0;
        for cursor in cursors {
            let mut came = 0;
            *lost += reader.read(cursor, |record| {
                came += 1;
                if record.kind == RecordKind::Burst as u8 {
                    ways[usize::from(record.direction() == Direction::Rx)].add(record, bounds);
                }
            });
            most = most.max(came);
        }
        f64::from(most) / reader.capacity() as f64
    }
}

impl Way {
    fn new(direction: Direction) -> Self {
        let names = direction.stages().iter().map(|stage| stage.name()).chain(["wakeup", "total"]);
        let times = names.map(|name| (name, Times::default())).collect();
        Self { direction, times, polled_packets: 0 }
    }

    fn add(&mut self, record: &BurstRecord, bounds: &[u64]) {
        let stages = &record.stages[..self.direction.stages().len()];
        let times = stages.iter().copied().map(Some);
        let times = times.chain([record.wakeup.map(u64::from), Some(record.total())]);
        for ((_, sum), ticks) in self.times.iter_mut().zip(times) {
            if let Some(ticks) = ticks {
                sum.add(ticks, record.packets.into(), bounds);
            }
        }
        if record.flags & BurstRecord::POLLED != 0 {
            self.polled_packets += u64::from(record.packets);
        }
    }
}

impl Times {
    fn add(&mut self, ticks: u64, packets: u64, bounds: &[u64]) {
        self.counts[bounds.partition_point(|bound| *bound < ticks)] += packets;
        self.packets += packets;
        self.ticks += u128::from(ticks) * u128::from(packets);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_first_bucket_that_is_not_shorter() {
        let mut times = Times::default();
        let bounds = BUCKETS_S.map(|seconds| (seconds * 1e9) as u64);
        for (ticks, bucket) in
            [(0, 0), (100, 0), (101, 1), (1_000_000_000, 21), (1_000_000_001, 22)]
        {
            let before = times.counts[bucket];
            times.add(ticks, 3, &bounds);
            assert_eq!(times.counts[bucket], before + 3, "{ticks}");
        }
        assert_eq!(times.packets, 15);
    }
}
