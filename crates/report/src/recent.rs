//! The records of the last seconds, kept until it is decided whether to record them.

use std::collections::VecDeque;

use burst_trace::Record;

/// The latest records, limited in time and in number.
#[derive(Debug)]
pub struct Recent {
    records: VecDeque<Record>,
    ticks: u64,
    max: usize,
    /// Number of records removed only because there were too many.
    crowded_out: u64,
}

impl Recent {
    /// Keeps records that ended in the last `ticks`, and at most `max` of them.
    #[must_use]
    pub fn new(ticks: u64, max: usize) -> Self {
        Self { records: VecDeque::new(), ticks, max: max.max(1), crowded_out: 0 }
    }

    /// Adds one of the newest records, and removes those that are too old by then.
    pub fn push(&mut self, record: Record) {
        let from = record.last().saturating_sub(self.ticks);
        while self.records.front().is_some_and(|oldest| oldest.last() < from) {
            self.records.pop_front();
        }
        if self.records.len() == self.max {
            self.records.pop_front();
            self.crowded_out += 1;
        }
        self.records.push_back(record);
    }

    /// Number of records removed only because there were too many.
    #[must_use]
    pub const fn crowded_out(&self) -> u64 {
        self.crowded_out
    }

    /// Removes and returns all records, oldest first.
    pub fn drain(&mut self) -> impl Iterator<Item = Record> + '_ {
        self.records.drain(..)
    }

    /// Number of records kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether no record is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burst_trace::BurstRecord;

    fn at(last: u64) -> Record {
        Record::Burst(BurstRecord { last, ..BurstRecord::default() })
    }

    #[test]
    fn old_records_are_removed() {
        let mut recent = Recent::new(100, 1000);
        (0..50).for_each(|n| recent.push(at(n * 10)));
        let kept: Vec<_> = recent.drain().map(|record| record.last()).collect();
        assert_eq!(kept, (39..50).map(|n| n * 10).collect::<Vec<_>>());
        assert!(recent.is_empty() && recent.crowded_out() == 0);
    }

    #[test]
    fn too_many_records_are_removed_and_counted() {
        let mut recent = Recent::new(u64::MAX, 10);
        (0..25).for_each(|n| recent.push(at(n)));
        assert_eq!((recent.len(), recent.crowded_out()), (10, 15));
        assert_eq!(recent.drain().next().map(|record| record.last()), Some(15));
    }
}
