//! The reading side of the flight recorder: opens `NAME.trace` read-only, follows it, and counts records that were
//! overwritten before they could be read.

use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::file::{Layout, MAGIC, WORKER_BEFORE};
use crate::header::{Header, ReadError};
use crate::record::{RECORD_WORDS, Record};

/// A flight recorder, open for reading. The daemon that writes it may be alive, ended or crashed.
#[derive(Debug)]
pub struct Reader {
    header: Header,
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
        Ok(Self { header: Header::open(path, MAGIC, Layout::words)? })
    }

    /// A cursor at the oldest record that the recorder holds of `worker`.
    ///
    /// # Panics
    /// When there is no such worker.
    #[must_use]
    pub fn oldest(&self, worker: usize) -> Cursor {
        let head = self.head(worker).load(Ordering::Acquire);
        Cursor { worker, next: head - self.held_of(head) }
    }

    /// A cursor at the oldest record of `worker` that is of the last daemon. Those before it are of daemons before.
    ///
    /// # Panics
    /// When there is no such worker.
    #[must_use]
    pub fn oldest_of_last_daemon(&self, worker: usize) -> Cursor {
        let oldest = self.oldest(worker);
        let before = self.number(self.header.layout().head(worker) + WORKER_BEFORE);
        Cursor { next: oldest.next.max(before), ..oldest }
    }

    /// Number of records that the recorder holds of `worker`.
    ///
    /// # Panics
    /// When there is no such worker.
    #[must_use]
    pub fn held(&self, worker: usize) -> u64 {
        self.held_of(self.head(worker).load(Ordering::Acquire))
    }

    /// The same of a worker that has written `records`.
    fn held_of(&self, records: u64) -> u64 {
        // The very oldest slot is the one that the next record will overwrite.
        records.min(self.header.layout().capacity as u64 - 1)
    }

    /// A cursor after the newest record of `worker`.
    ///
    /// # Panics
    /// When there is no such worker.
    #[must_use]
    pub fn newest(&self, worker: usize) -> Cursor {
        Cursor { worker, next: self.head(worker).load(Ordering::Acquire) }
    }

    /// Hands each record after the cursor to `each`, in order, and moves the cursor on. Returns the number of records
    /// that were overwritten before they could be read.
    pub fn read(&self, cursor: &mut Cursor, mut each: impl FnMut(&Record)) -> u64 {
        let head_word = self.head(cursor.worker);
        let capacity = self.header.layout().capacity as u64;
        let worker = u8::try_from(cursor.worker).unwrap_or(u8::MAX);
        let mut lost = 0_u64;
        let end = head_word.load(Ordering::Acquire);
        while cursor.next < end {
            let slot = usize::try_from(cursor.next % capacity).unwrap_or(0);
            let at = self.header.layout().record(cursor.worker, slot);
            let mut words = [0; RECORD_WORDS];
            for (copy, word) in words.iter_mut().zip(self.header.words().slice(at, RECORD_WORDS)) {
                *copy = word.load(Ordering::Relaxed);
            }
            fence(Ordering::Acquire);
            let head = head_word.load(Ordering::Relaxed);
            if head < end {
                // A recorder's count never goes back: the file was shortened, or another process writes into it.
                break;
            }
            if head - cursor.next >= capacity {
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

    fn head(&self, worker: usize) -> &AtomicU64 {
        assert!(worker < self.header.layout().workers, "no such worker in the recorder");
        self.header.words().at(self.header.layout().head(worker))
    }
}
