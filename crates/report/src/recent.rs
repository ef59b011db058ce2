//! The records of the last seconds, kept until it is known whether they are wanted.

use std::collections::VecDeque;

use burst_trace::BurstRecord;

/// Records of at most some time, and at most some number.
#[derive(Debug)]
pub struct Recent {
    records: VecDeque<BurstRecord>,
    ticks: u64,
    max: usize,
    /// How many went although they were not too old.
    crowded_out: u64,
}

impl Recent {
    /// Keeps what ended in the last `ticks`, and at most `max` records.
    #[must_use]
    pub fn new(ticks: u64, max: usize) -> Self {
        Self { records: VecDeque::new(), ticks, max: max.max(1), crowded_out: 0 }
    }

    /// Adds a record, which is about the newest, and lets go of what is too old by it.
    pub fn push(&mut self, record: BurstRecord) {
        let from = record.last.saturating_sub(self.ticks);
        while self.records.front().is_some_and(|oldest| oldest.last < from) {
            self.records.pop_front();
        }
        if self.records.len() == self.max {
            self.records.pop_front();
            self.crowded_out += 1;
        }
        self.records.push_back(record);
    }

    /// How many records went although they were not too old: there were too many.
    #[must_use]
    pub const fn crowded_out(&self) -> u64 {
        self.crowded_out
    }

    /// All that is kept, the oldest first; nothing is left.
    pub fn drain(&mut self) -> impl Iterator<Item = BurstRecord> + '_ {
        self.records.drain(..)
    }

    /// How many records are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u64) -> BurstRecord {
        BurstRecord { last, ..BurstRecord::default() }
    }

    #[test]
    fn what_is_older_goes() {
        let mut recent = Recent::new(100, 1000);
        (0..50).for_each(|n| recent.push(at(n * 10)));
        let kept: Vec<_> = recent.drain().map(|record| record.last).collect();
        assert_eq!(kept, (39..50).map(|n| n * 10).collect::<Vec<_>>());
        assert!(recent.is_empty() && recent.crowded_out() == 0);
    }

    #[test]
    fn what_is_too_many_goes_and_is_counted() {
        let mut recent = Recent::new(u64::MAX, 10);
        (0..25).for_each(|n| recent.push(at(n)));
        assert_eq!((recent.len(), recent.crowded_out()), (10, 15));
        assert_eq!(recent.drain().next().map(|record| record.last), Some(15));
    }
}
