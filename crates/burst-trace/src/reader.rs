//! The reading side of the flight recorder: opens `NAME.trace` read-only, follows it, and counts records that were
//! overwritten before they could be read.

mod tail;

use std::fs::File;
use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use crate::file::{Layout, MAGIC, WORKER_BEFORE, word};
use crate::header::{Header, ReadError};
use crate::record::{BurstRecord, RECORD_WORDS, Record};

/// A flight recorder, open for reading. The daemon that writes it may be alive, ended or crashed.
///
/// The records of a worker have numbers: its own from `capacity` on, those of daemons before up to there. A record is held
/// as long as fewer than `capacity` come after it, as if all were in one ring.
#[derive(Debug)]
pub struct Reader {
    header: Header,
    /// Number of records of daemons before, for each worker; empty if they were not all there when the file was opened.
    before: Vec<u64>,
}

/// The position up to which the records of one worker were read.
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    worker: usize,
    next: u64,
}

/// A reader has what its file's header has.
impl Deref for Reader {
    type Target = Header;

    fn deref(&self) -> &Header {
        &self.header
    }
}

impl Reader {
    /// Opens a recorder.
    ///
    /// # Errors
    /// When the file cannot be read, or is not a recorder of this version.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        Header::open(path, MAGIC, Layout::words).map(Self::with_header)
    }

    /// The recorder in this file, which was found at `path`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn of(file: &File, path: &Path) -> Result<Self, ReadError> {
        Header::of(file, path, MAGIC, Layout::words).map(Self::with_header)
    }

    fn with_header(header: Header) -> Self {
        let layout = header.layout();
        let has_before = header.words().len() >= layout.words_with_before();
        let before = match has_before && header.number(word::BEFORE) == 1 {
            true => (0..layout.workers).map(|n| header.number(layout.head(n) + WORKER_BEFORE)),
            false => return Self { header, before: Vec::new() },
        };
        Self { before: before.collect(), header }
    }

    /// A cursor at the oldest record that the recorder holds of `worker`.
    ///
    /// # Panics
    /// When there is no such worker.
    #[must_use]
    pub fn oldest(&self, worker: usize) -> Cursor {
        let head = self.head(worker, Ordering::Acquire);
        Cursor { worker, next: head - self.held_of(worker, head) }
    }

    /// A cursor at the oldest record of `worker` that is of the last daemon. Those before it are of daemons before.
    ///
    /// # Panics
    /// When there is no such worker.
    #[must_use]
    pub fn oldest_of_last_daemon(&self, worker: usize) -> Cursor {
        let oldest = self.oldest(worker);
        Cursor { next: oldest.next.max(self.header.layout().capacity as u64), ..oldest }
    }

    /// Number of records that the recorder holds of `worker`.
    ///
    /// # Panics
    /// When there is no such worker.
    #[must_use]
    pub fn held(&self, worker: usize) -> u64 {
        self.held_of(worker, self.head(worker, Ordering::Acquire))
    }

    /// The same when the worker's next record is number `head`.
    fn held_of(&self, worker: usize, head: u64) -> u64 {
        let capacity = self.header.layout().capacity as u64;
        let before = self.before.get(worker).copied().unwrap_or(0);
        // The very oldest slot is the one that the next record will overwrite.
        (head - capacity).saturating_add(before).min(capacity - 1)
    }

    /// A cursor after the newest record of `worker`.
    ///
    /// # Panics
    /// When there is no such worker.
    #[must_use]
    pub fn newest(&self, worker: usize) -> Cursor {
        Cursor { worker, next: self.head(worker, Ordering::Acquire) }
    }

    /// Hands each record after the cursor to `each`, in order, and moves the cursor on. Returns the number of records
    /// that were overwritten before they could be read.
    pub fn read(&self, cursor: &mut Cursor, mut each: impl FnMut(&Record)) -> u64 {
        let capacity = self.header.layout().capacity as u64;
        let worker = u8::try_from(cursor.worker).unwrap_or(u8::MAX);
        let mut lost = 0_u64;
        let end = self.head(cursor.worker, Ordering::Acquire);
        while cursor.next < end {
            let words = self.words_of(cursor.worker, cursor.next);
            fence(Ordering::Acquire);
            let head = self.head(cursor.worker, Ordering::Relaxed);
            if head < end {
                // A recorder's count never goes back: the file was shortened, or another process writes into it.
                break;
            }
            // Nobody overwrites a record of a daemon before.
            if cursor.next >= capacity && head - cursor.next >= capacity {
                // This slot was overwritten, or is being overwritten now. Go on well ahead of the writer.
                let next = (head - capacity + capacity / 8 + 1).min(end);
                lost = lost.saturating_add(next - cursor.next);
                cursor.next = next;
                continue;
            }
            cursor.next += 1;
            each(&Record::from_words_of(worker, words));
        }
        lost
    }

    /// The last burst among the newest `count` records of `worker`. Nobody may write them meanwhile.
    pub(crate) fn last_burst(&self, worker: usize, count: u64) -> Option<BurstRecord> {
        let newest = self.newest(worker).next;
        let first = newest - self.held(worker).min(count);
        (first..newest).rev().find_map(|number| {
            Record::from_words_of(0, self.words_of(worker, number)).as_burst().copied()
        })
    }

    /// The words of the record with this number, which may be overwritten meanwhile.
    fn words_of(&self, worker: usize, number: u64) -> [u64; RECORD_WORDS] {
        let layout = self.header.layout();
        let slot = usize::try_from(number % layout.capacity as u64).unwrap_or(0);
        let at = match number < layout.capacity as u64 {
            true => layout.record_before(worker, slot),
            false => layout.record(worker, slot),
        };
        let words = self.header.words().slice(at, RECORD_WORDS);
        std::array::from_fn(|n| words[n].load(Ordering::Relaxed))
    }

    /// The number of the next record of `worker`.
    fn head(&self, worker: usize, order: Ordering) -> u64 {
        let layout = self.header.layout();
        assert!(worker < layout.workers, "no such worker in the recorder");
        let written = self.header.words().at(layout.head(worker)).load(order);
        written.saturating_add(layout.capacity as u64)
    }
}
