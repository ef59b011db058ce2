//! The layout of `NAME.trace`: a file of 64-bit words, mapped shared.
//!
//! ```text
//! header    4096 bytes  magic, version, sizes, clock and its anchors, facts as JSON
//! rings     512 bytes for each virtqueue: totals, drops by cause and notifications, written by the ring's worker, and the
//!           number of the first packet in these totals
//! workers   64 bytes for each worker: the number of records, its thread, and how many records of daemons before it has
//! records   64 bytes each ([`record`](crate::record)), `capacity` of them for each worker; the oldest is overwritten first
//! before    records of daemons before, as many places again, the last of them used; added while the daemon serves already
//! ```
//!
//! Every word is an atomic: writer and readers share the mapping without locks. The worker's count tells a reader which
//! records were overwritten while it read.
#![allow(unsafe_code, reason = "a shared file mapping seen as atomic words")]

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use file_mapping::FileMapping;

use crate::notification::Notification;
use crate::record::RECORD_WORDS;
use crate::stage::{DropCause, SocketEvent};

/// `RINGSCP1`, little endian.
pub const MAGIC: u64 = u64::from_le_bytes(*b"RINGSCP1");
/// Begins a recording: `RINGREC1`.
pub const RECORDING_MAGIC: u64 = u64::from_le_bytes(*b"RINGREC1");
/// The version of the layout. It changes whenever a reader of the old layout would misread the new one.
pub const VERSION: u64 = 1;

/// Words of the header, by position.
pub mod word {
    /// [`MAGIC`](super::MAGIC). Written last, so that a reader never sees half a header.
    pub const MAGIC: usize = 0;
    /// [`VERSION`](super::VERSION).
    pub const VERSION: usize = 1;
    /// Number of workers that write.
    pub const WORKERS: usize = 2;
    /// Number of the device's queue pairs.
    pub const QUEUE_PAIRS: usize = 3;
    /// Records of each worker; a power of two.
    pub const CAPACITY: usize = 4;
    /// [`ClockKind`](crate::ClockKind) as a number.
    pub const CLOCK: usize = 5;
    /// The clock's rate; the daemon refines it while it runs.
    pub const TICKS_PER_SECOND: usize = 6;
    /// The daemon's process id.
    pub const PID: usize = 7;
    /// 1 while the daemon runs and after a crash, 0 after an orderly end.
    pub const RUNNING: usize = 8;
    /// Length of the facts in bytes.
    pub const FACTS_LEN: usize = 9;
    /// The anchor taken at the start.
    pub const ANCHOR_START: usize = 10;
    /// Odd while the latest anchor is being replaced.
    pub const ANCHOR_VERSION: usize = ANCHOR_START + super::ANCHOR_WORDS;
    /// The latest anchor.
    pub const ANCHOR_LATEST: usize = ANCHOR_VERSION + 1;
    /// In a recording: 1 when the rings' totals are those of its time.
    pub const COUNTED: usize = ANCHOR_LATEST + super::ANCHOR_WORDS;
    /// The process of the connected front end; 0 for none.
    pub const FRONT_END: usize = COUNTED + 1;
    /// In a finished recording: the number of its records, gaps included, plus 1; 0 in any other.
    pub const RECORDS: usize = FRONT_END + 1;
    /// The virtio features that the guest negotiated last; 0 for none.
    pub const FEATURES: usize = RECORDS + 1;
    /// The same of the daemon before.
    pub const FEATURES_BEFORE: usize = FEATURES + 1;
    /// The boot of the host, two words; 0 in files of daemons that did not write it.
    pub const BOOT: usize = FEATURES_BEFORE + 1;
    /// How often a ring went on where a daemon before stood, counted once for each daemon. It goes on with the records.
    pub const RESTARTS: usize = BOOT + 2;
    /// Most frames that were sent twice because of that. It goes on with the records.
    pub const SENT_TWICE_MAX: usize = RESTARTS + 1;
    /// The most by which `CLOCK_REALTIME` was wrong at [`CLOCK_ERROR_AT`], microseconds, plus 1; 0 if that is not known.
    pub const CLOCK_ERROR: usize = SENT_TWICE_MAX + 1;
    /// When that was read: `CLOCK_MONOTONIC`, nanoseconds.
    pub const CLOCK_ERROR_AT: usize = CLOCK_ERROR + 1;
    /// 1 when all records of daemons before are in the file. Written last.
    pub const BEFORE: usize = CLOCK_ERROR_AT + 1;
    /// The most by which the line through two anchors, of the rate and the latest one, is from `CLOCK_MONOTONIC` for all that
    /// their readings say, nanoseconds, plus 1; 0 if that is not known: the rate is measured in the first second.
    pub const ANCHOR_ERROR: usize = BEFORE + 1;
    /// How often the facts were replaced, twice; odd while that happens.
    pub const FACTS_VERSION: usize = ANCHOR_ERROR + 1;
    /// Facts: JSON text of at most [`FACTS_BYTES_MAX`](super::FACTS_BYTES_MAX).
    pub const FACTS: usize = 64;
}

/// Words of an anchor: ticks, `CLOCK_MONOTONIC` and `CLOCK_REALTIME` of one instant.
pub const ANCHOR_WORDS: usize = 3;
/// The header's length in words.
pub const HEADER_WORDS: usize = 512;
/// Longest facts, bytes.
pub const FACTS_BYTES_MAX: usize = (HEADER_WORDS - word::FACTS) * 8;

/// Words of a ring: totals, socket events, moves of addresses, drops, and at the end GRO and notifications.
pub const RING_WORDS: usize = 64;
/// The word of a ring that counts its packets.
pub const RING_PACKETS: usize = 0;
/// The word of a ring that counts its bytes.
pub const RING_BYTES: usize = 1;
/// The word of a ring that counts its bursts.
pub const RING_BURSTS: usize = 2;
/// The first of a ring's socket events, in the order of [`SocketEvent::ALL`].
pub const RING_EVENTS: usize = 3;
/// The word of a ring that counts addresses moved between the guest's port of a switch and another one.
pub const RING_MOVES: usize = RING_EVENTS + SocketEvent::ALL.len();
/// The first of a ring's drops, in the order of [`DropCause::ALL`].
pub const RING_DROPS: usize = RING_MOVES + 1;
/// The first of a ring's notifications, in the order of [`Notification::ALL`]. Files of daemons that did not count them
/// have zeroes there.
pub const RING_NOTIFICATIONS: usize = RING_WORDS - Notification::ALL.len();

/// The word of a ring that holds the number of the first packet that this daemon counts.
pub const RING_FIRST: usize = RING_NOTIFICATIONS - 1;

/// The word of a ring that counts packets made of several frames (GRO). Files of daemons that made none have zeroes there and
/// in the next.
pub const RING_GRO_FRAMES: usize = RING_FIRST - 2;
/// The word of a ring that counts the frames in them.
pub const RING_GRO_SEGMENTS: usize = RING_FIRST - 1;

/// Words of a worker. The first one counts its records.
pub const WORKER_WORDS: usize = 8;
/// The word of a worker that holds its thread's number; 0 for none.
pub const WORKER_THREAD: usize = 1;
/// The word of a worker that holds its number of records of daemons before.
pub const WORKER_BEFORE: usize = 2;

/// Most records of all workers together: 1 GiB, more than any daemon writes.
pub const RECORDS_MAX: usize = 1 << 24;

// The lists may grow at their ends as far as there is room. Whatever moves a word needs another `VERSION`.
const _: () = {
    assert!(VERSION == 1 && RING_MOVES == 7 && RING_DROPS == 8, "the layout of version 1");
    assert!(RING_NOTIFICATIONS == 60, "the layout of version 1");
    assert!(word::FRONT_END == 18 && word::FRONT_END < word::FACTS, "the layout of version 1");
    assert!(
        RING_DROPS + DropCause::ALL.len() <= RING_GRO_FRAMES,
        "a ring's words hold every drop cause"
    );
    assert!(WORKER_BEFORE < WORKER_WORDS, "a worker's words hold all that is written of it");
    assert!(word::FACTS_VERSION < word::FACTS, "the header's words end before the facts");
};

/// The sizes of a file, and where its parts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Number of workers that write.
    pub workers: usize,
    /// Number of the device's queue pairs.
    pub queue_pairs: usize,
    /// Records of each worker; a power of two.
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

    /// The first word of the record in `slot` of `worker`.
    #[must_use]
    pub const fn record(&self, worker: usize, slot: usize) -> usize {
        self.records(worker) + slot * RECORD_WORDS
    }

    /// The length in words of a file without records of daemons before.
    #[must_use]
    pub const fn words(&self) -> usize {
        self.records(self.workers)
    }

    /// The first word of the record in `slot` of those of daemons before, of `worker`.
    #[must_use]
    pub const fn record_before(&self, worker: usize, slot: usize) -> usize {
        self.words() + (worker * self.capacity + slot) * RECORD_WORDS
    }

    /// The length in words of a file with records of daemons before.
    #[must_use]
    pub const fn words_with_before(&self) -> usize {
        self.record_before(self.workers, 0)
    }

    /// Whether a daemon may write these sizes. If so, no position overflows.
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

/// The facts as words, eight bytes each.
pub(crate) fn facts_words(facts: &[u8]) -> impl Iterator<Item = u64> + '_ {
    facts.chunks(8).map(|chunk| {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(bytes)
    })
}

/// A file mapped shared, as atomic 64-bit words. If another process shortens the file, missing pages read as zeroes.
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

    /// Number of words.
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

    /// Prefetches the cache line of the word at `index` for writing. `index` may be outside the file: it is only a hint.
    #[inline]
    pub fn prefetch_to_write(&self, index: usize) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: a prefetch affects nothing but timing, at any address; CPUs without the instruction execute it as a no-op.
        unsafe {
            let at = self.map.as_ptr().wrapping_add(index * 8);
            std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let _ = index;
    }

    /// Stores a record from the word at `index` on.
    ///
    /// # Panics
    /// As [`Words::slice`].
    #[inline]
    pub fn store_record(&self, index: usize, record: &[u64; RECORD_WORDS]) {
        for (word, value) in self.slice(index, RECORD_WORDS).iter().zip(record) {
            word.store(*value, Ordering::Relaxed);
        }
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
