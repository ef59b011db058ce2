//! The newest records of a recorder, as the bytes of a smaller recorder: what moves with a guest to another host.

use std::sync::atomic::Ordering;

use super::Reader;
use crate::file::{Layout, WORKER_BEFORE, word};
use crate::record::RECORD_WORDS;

impl Reader {
    /// The bytes of a recorder with the header and the totals of this one, and the newest of its records, with those of daemons before:
    /// at most `records` of all workers together. Its daemon has ended, as far as that file knows. Records that are stored
    /// meanwhile may be missing.
    #[must_use]
    pub fn tail(&self, records: usize) -> Vec<u8> {
        let of = self.header.layout();
        // One place is never read: the next record would overwrite it.
        let most = (0..of.workers).map(|worker| self.held(worker) + 1).max().unwrap_or(0);
        let most = usize::try_from(most).unwrap_or(of.capacity).next_power_of_two();
        let each = (records / of.workers).max(2);
        let capacity = of.capacity.min(1 << each.ilog2()).min(most.max(2));
        let layout = Layout { capacity, ..*of };
        let mut words = vec![0; layout.words_with_before()];
        for (at, word) in words[..layout.records(0)].iter_mut().enumerate() {
            *word = self.header.number(at);
        }
        let anchor = self.header.anchor_latest();
        let anchor = [anchor.ticks, anchor.monotonic_ns, anchor.realtime_ns];
        words[word::ANCHOR_LATEST..][..anchor.len()].copy_from_slice(&anchor);
        words[word::ANCHOR_VERSION] = 0;
        words[word::CAPACITY] = layout.capacity as u64;
        words[word::RUNNING] = 0;
        let before: u64 =
            (0..of.workers).map(|worker| self.tail_of(worker, &layout, &mut words)).sum();
        words[word::BEFORE] = u64::from(before > 0);
        if before == 0 {
            words.truncate(layout.words());
        }
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    /// Copies the newest records of one worker to where they are in a file of this layout. Returns how many of them are of daemons
    /// before.
    fn tail_of(&self, worker: usize, layout: &Layout, words: &mut [u64]) -> u64 {
        let (old, new) = (self.header.layout().capacity as u64, layout.capacity as u64);
        let head = self.head(worker, Ordering::Acquire);
        let held = self.held_of(worker, head).min(new - 1);
        let mut before = 0;
        for number in head - held..head {
            let slot = |place: u64| usize::try_from(place % new).unwrap_or(0);
            let at = match number.checked_sub(old) {
                Some(own) => layout.record(worker, slot(own)),
                None => {
                    before = before.max(old - number);
                    layout.record_before(worker, slot(new - (old - number)))
                }
            };
            words[at..][..RECORD_WORDS].copy_from_slice(&self.words_of(worker, number));
        }
        words[layout.head(worker)] = head - old;
        words[layout.head(worker) + WORKER_BEFORE] = before;
        before
    }
}
