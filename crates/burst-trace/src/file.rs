//! The layout of `NAME.trace`: a file of 64-bit words, mapped shared.
//!
//! ```text
//! header    4096 bytes  magic, sizes, clock and its anchors, facts as JSON
//! rings     512 bytes a virtqueue: totals and drops by cause, written by the ring's worker
//! workers   64 bytes a worker: how many records it has written, and which thread it is
//! records   64 bytes each, `capacity` of them a worker, the oldest overwritten first
//! ```
//!
//! Every word is an atomic: writer and readers share the mapping without locks, and a reader finds out by
//! the worker's count what was overwritten while it read.
#![allow(unsafe_code, reason = "a shared file mapping seen as atomic words")]

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicU64;

use file_mapping::FileMapping;

use crate::record::RECORD_WORDS;

/// `RINGSCP1`, little endian.
pub const MAGIC: u64 = u64::from_le_bytes(*b"RINGSCP1");
/// The mark of a recording: `RINGREC1`.
pub const RECORDING_MAGIC: u64 = u64::from_le_bytes(*b"RINGREC1");
/// Changes whenever a reader of the old layout would misread the new one.
pub const VERSION: u64 = 1;

/// Words of the header, by position.
pub mod word {
    /// [`MAGIC`](super::MAGIC); written last, so that a reader never sees half a header.
    pub const MAGIC: usize = 0;
    /// [`VERSION`](super::VERSION).
    pub const VERSION: usize = 1;
    /// How many workers write.
    pub const WORKERS: usize = 2;
    /// How many queue pairs the device has.
    pub const QUEUE_PAIRS: usize = 3;
    /// Records a worker; a power of two.
    pub const CAPACITY: usize = 4;
    /// [`ClockKind`](crate::ClockKind) as a number.
    pub const CLOCK: usize = 5;
    /// The clock's rate, refined while the daemon runs.
    pub const TICKS_PER_SECOND: usize = 6;
    /// The daemon's process id.
    pub const PID: usize = 7;
    /// 1 while the daemon runs, 0 when it ended in order.
    pub const RUNNING: usize = 8;
    /// Length of the facts in bytes.
    pub const FACTS_LEN: usize = 9;
    /// Three words: the anchor taken at the start.
    pub const ANCHOR_START: usize = 10;
    /// Odd while the latest anchor is being replaced.
    pub const ANCHOR_VERSION: usize = 13;
    /// Three words: the latest anchor.
    pub const ANCHOR_LATEST: usize = 14;
    /// In a recording: 1 when the rings' totals are those of its time.
    pub const COUNTED: usize = 17;
    /// The process of the front end that is connected; 0 for none.
    pub const FRONT_END: usize = 18;
    /// Facts: JSON text of at most [`FACTS_BYTES_MAX`](super::FACTS_BYTES_MAX).
    pub const FACTS: usize = 64;
}

/// The header's length in words.
pub const HEADER_WORDS: usize = 512;
/// Room for the facts.
pub const FACTS_BYTES_MAX: usize = (HEADER_WORDS - word::FACTS) * 8;
/// A ring's totals, in words: packets, bytes, bursts, socket events from [`RING_EVENTS`] on, moves of addresses at
/// [`RING_MOVES`], then drops from [`RING_DROPS`] on.
pub const RING_WORDS: usize = 64;
/// Where in a ring's words the socket events begin.
pub const RING_EVENTS: usize = 3;
/// The word of a ring that counts addresses moved between the guest's port of a switch and another one.
pub const RING_MOVES: usize = 7;
/// Where in a ring's words the drops begin.
pub const RING_DROPS: usize = 8;
/// A worker's words; the first counts its records.
pub const WORKER_WORDS: usize = 8;
/// Which of a worker's words is its thread's number; 0 for none.
pub const WORKER_THREAD: usize = 1;

/// Most records of all workers together: 1 GiB, more than any daemon writes.
pub const RECORDS_MAX: usize = 1 << 24;

/// Where everything is in a file of this shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// How many workers write.
    pub workers: usize,
    /// How many queue pairs the device has.
    pub queue_pairs: usize,
    /// Records a worker; a power of two.
    pub capacity: usize,
}

impl Layout {
    /// The first word of the totals of virtqueue `ring`.
    #[must_use]
    pub const fn ring(&self, ring: usize) -> usize {
        HEADER_WORDS + ring * RING_WORDS
    }

    /// The word that counts the records of `worker`.
    #[must_use]
    pub const fn head(&self, worker: usize) -> usize {
        self.ring(self.queue_pairs * 2) + worker * WORKER_WORDS
    }

    /// The first word of the records of `worker`.
    #[must_use]
    pub const fn records(&self, worker: usize) -> usize {
        self.head(self.workers) + worker * self.capacity * RECORD_WORDS
    }

    /// The file's length in words.
    #[must_use]
    pub const fn words(&self) -> usize {
        self.records(self.workers)
    }

    /// Whether the numbers are ones that a daemon writes, so that nothing overflows.
    #[must_use]
    pub const fn is_sane(&self) -> bool {
        self.workers >= 1
            && self.workers <= 1024
            && self.queue_pairs >= 1
            && self.queue_pairs <= 1024
            && self.capacity.is_power_of_two()
            && self.capacity <= RECORDS_MAX / self.workers
    }
}

/// A file mapped shared and seen as atomic 64-bit words. Another process may shorten the file meanwhile: missing pages
/// then read as zeroes.
#[derive(Debug)]
pub struct Words {
    map: FileMapping,
    len: usize,
}

impl Words {
    /// Maps all of `file` for reading and writing.
    ///
    /// # Errors
    /// What `mmap` answers.
    pub fn map_writable(file: &File) -> io::Result<Self> {
        let map = FileMapping::writable(file)?;
        Ok(Self { len: map.len() / 8, map })
    }

    /// Maps all of `file` for reading only.
    ///
    /// # Errors
    /// What `mmap` answers.
    pub fn map_read_only(file: &File) -> io::Result<Self> {
        let map = FileMapping::read_only(file)?;
        Ok(Self { len: map.len() / 8, map })
    }

    /// How many words there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether words are missing: the file became shorter after it was mapped.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.map.is_torn()
    }

    /// Whether the file is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The words from `first` on, `count` of them.
    ///
    /// # Panics
    /// When they reach past the file: a layout is checked against the length before it is used.
    #[inline]
    #[must_use]
    pub fn slice(&self, first: usize, count: usize) -> &[AtomicU64] {
        assert!(first <= self.len && count <= self.len - first, "words outside the recorder file");
        // SAFETY: the mapping is page aligned and at least `(first + count) * 8` bytes long (asserted),
        // it lives as long as `self`, and its bytes are only ever accessed as atomics. A reader's
        // mapping is read-only; `Reader` only loads.
        unsafe {
            std::slice::from_raw_parts(
                self.map.as_ptr().cast_const().cast::<AtomicU64>().add(first),
                count,
            )
        }
    }

    /// Asks the CPU to have the cache line of the word at `index` alone, for it will be written. Wherever that is: it is
    /// only a hint.
    #[inline]
    pub fn prefetch_to_write(&self, index: usize) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: a prefetch has no effect but on time, whatever the address; CPUs without the instruction take it for one
        // that does nothing.
        unsafe {
            let at = self.map.as_ptr().wrapping_add(index * 8);
            std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let _ = index;
    }

    /// The word at `index`.
    ///
    /// # Panics
    /// As [`Words::slice`].
    #[inline]
    #[must_use]
    pub fn at(&self, index: usize) -> &AtomicU64 {
        &self.slice(index, 1)[0]
    }
}
