//! The slowest bursts of a time span.

use burst_trace::BurstRecord;

/// The slowest bursts of those added, up to a maximum number.
#[derive(Clone, Debug)]
pub struct Slowest {
    /// Slowest first. Of two equal ones, the one added first comes first.
    bursts: Vec<BurstRecord>,
    max: usize,
}

impl Slowest {
    /// Keeps at most `max` bursts; 0 counts as 1.
    #[must_use]
    pub fn new(max: usize) -> Self {
        let max = max.max(1);
        Self { bursts: Vec::with_capacity(max), max }
    }

    /// Adds a burst if it is one of the slowest.
    pub fn add(&mut self, record: &BurstRecord) {
        let at = self.bursts.partition_point(|kept| kept.total() >= record.total());
        if at < self.max {
            self.bursts.truncate(self.max - 1);
            self.bursts.insert(at, *record);
        }
    }

    /// The bursts, slowest first.
    #[must_use]
    pub fn bursts(&self) -> &[BurstRecord] {
        &self.bursts
    }

    /// Removes and returns all bursts, slowest first.
    pub fn take(&mut self) -> Vec<BurstRecord> {
        std::mem::replace(&mut self.bursts, Vec::with_capacity(self.max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_are_kept_in_order() {
        let mut slowest = Slowest::new(3);
        for (sequence, last) in [5, 1, 7, 5, 3, 9].into_iter().enumerate() {
            let sequence = sequence as u64;
            slowest.add(&BurstRecord { sequence, last, ..BurstRecord::default() });
        }
        let kept: Vec<_> = slowest.take().iter().map(|it| (it.sequence, it.last)).collect();
        assert_eq!(kept, [(5, 9), (2, 7), (0, 5)]);
        assert!(slowest.take().is_empty());
    }
}
