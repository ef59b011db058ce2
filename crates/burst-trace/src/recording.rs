//! A recording: what was kept of a flight recorder over some time, in a file of its own.
//!
//! ```text
//! header, rings, workers   as in a flight recorder, with another mark; totals are those of the recording's time
//! records                  64 bytes each, of all workers, in the order in which they were read, up to the file's end
//! ```
//!
//! The records of one worker are in order; those of different workers are not. A recording that was not brought to an
//! end (its writer was killed) is read as far as it goes; it has no totals then.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use crate::clock::Anchor;
use crate::file::{
    FACTS_BYTES_MAX, Layout, RECORDING_MAGIC, RING_DROPS, RING_WORDS, VERSION, word,
};
use crate::header::{Header, ReadError};
use crate::reader::Reader;
use crate::record::{BurstRecord, RECORD_WORDS, RecordKind};
use crate::stage::DropCause;

/// A recording, open for reading.
#[derive(Debug)]
pub struct Recording {
    header: Header,
    records: usize,
}

/// A recording knows all that its header says.
impl Deref for Recording {
    type Target = Header;

    fn deref(&self) -> &Header {
        &self.header
    }
}

impl Recording {
    /// Opens a recording.
    ///
    /// # Errors
    /// When the file cannot be read, or is not a recording of this version.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let header = Header::open(path, RECORDING_MAGIC, |layout| layout.records(0))?;
        let records = (header.words().len() - header.layout().records(0)) / RECORD_WORDS;
        Ok(Self { header, records })
    }

    /// How many records there are.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "nobody asks whether a recording is empty")]
    pub const fn len(&self) -> usize {
        self.records
    }

    /// Whether its header has the totals of its time.
    #[must_use]
    pub fn has_totals(&self) -> bool {
        self.header.number(word::COUNTED) == 1
    }

    /// Record number `n`, in the order of the file.
    ///
    /// # Panics
    /// When there are not so many.
    #[inline]
    #[must_use]
    pub fn record(&self, n: usize) -> BurstRecord {
        assert!(n < self.records, "no such record in the recording");
        let at = self.header.layout().records(0) + n * RECORD_WORDS;
        let mut words = [0; RECORD_WORDS];
        for (copy, word) in words.iter_mut().zip(self.header.words().slice(at, RECORD_WORDS)) {
            *copy = word.load(Ordering::Relaxed);
        }
        BurstRecord::from_words(&words)
    }
}

/// A recording that is being written.
#[derive(Debug)]
pub struct RecordingWriter {
    file: BufWriter<File>,
    facts: String,
    start: Counts,
    anchor: Anchor,
    records: u64,
    lost: u64,
}

/// What the recorder's counters said: packets, bytes, bursts and drops of each ring.
type Counts = Vec<[u64; RING_WORDS]>;

impl RecordingWriter {
    /// Makes the file for what comes from now on of the recorder `of`. `facts` is JSON text, at most
    /// [`FACTS_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn create(path: &Path, of: &Reader, facts: &str) -> io::Result<Self> {
        if facts.len() > FACTS_BYTES_MAX {
            let found = facts.len();
            let message =
                format!("expected facts of at most {FACTS_BYTES_MAX} bytes, found {found}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let mut writer = Self {
            file: BufWriter::with_capacity(1 << 20, File::create(path)?),
            facts: facts.into(),
            start: counts(of),
            anchor: of.anchor_latest(),
            records: 0,
            lost: 0,
        };
        let head = writer.head(of, false);
        writer.file.write_all(&head)?;
        Ok(writer)
    }

    /// Keeps a record; also what stands for records that were lost ([`BurstRecord::gap`]).
    ///
    /// # Errors
    /// What the file system answers.
    pub fn push(&mut self, record: &BurstRecord) -> io::Result<()> {
        if record.kind == RecordKind::Gap as u8 {
            self.lost += record.sequence;
        } else {
            self.records += 1;
        }
        self.file.write_all(record.to_words().map(u64::to_ne_bytes).as_flattened())
    }

    /// How many records were kept, and how many were lost.
    #[must_use]
    pub const fn counts(&self) -> (u64, u64) {
        (self.records, self.lost)
    }

    /// Brings the recording to an end: the header gets the clock's latest relations and, if it holds all that came since
    /// it was created (`is_all`), the totals of that time, which count also what was lost.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn finish(mut self, of: &Reader, is_all: bool) -> io::Result<()> {
        self.file.flush()?;
        let head = self.head(of, is_all);
        self.file.get_ref().write_all_at(&head, 0)
    }

    /// The bytes before the records.
    fn head(&self, of: &Reader, is_counted: bool) -> Vec<u8> {
        let layout = Layout { capacity: 1, ..*of.layout() };
        let mut words = vec![0; layout.records(0)];
        words[word::MAGIC] = RECORDING_MAGIC;
        words[word::VERSION] = VERSION;
        words[word::WORKERS] = layout.workers as u64;
        words[word::QUEUE_PAIRS] = layout.queue_pairs as u64;
        words[word::CAPACITY] = layout.capacity as u64;
        words[word::CLOCK] = of.clock() as u64;
        words[word::TICKS_PER_SECOND] = of.ticks_per_second();
        words[word::PID] = of.pid();
        store_anchor(&mut words[word::ANCHOR_START..], self.anchor);
        store_anchor(&mut words[word::ANCHOR_LATEST..], of.anchor_latest());
        words[word::FACTS_LEN] = self.facts.len() as u64;
        for (word, chunk) in words[word::FACTS..].iter_mut().zip(self.facts.as_bytes().chunks(8)) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_le_bytes(bytes);
        }
        if is_counted {
            words[word::COUNTED] = 1;
            for (ring, (now, before)) in counts(of).iter().zip(&self.start).enumerate() {
                let to = &mut words[layout.ring(ring)..][..RING_WORDS];
                for ((to, now), before) in to.iter_mut().zip(now).zip(before) {
                    *to = now.saturating_sub(*before);
                }
            }
        }
        words.into_iter().flat_map(u64::to_ne_bytes).collect()
    }
}

fn counts(of: &Reader) -> Counts {
    (0..of.queue_pairs() * 2)
        .map(|ring| {
            let totals = of.totals(ring);
            let mut counts = [0; RING_WORDS];
            counts[..3].copy_from_slice(&[totals.packets, totals.bytes, totals.bursts]);
            for (cause, count) in DropCause::ALL.iter().zip(&mut counts[RING_DROPS..]) {
                *count = of.drops(ring, *cause);
            }
            counts
        })
        .collect()
}

fn store_anchor(words: &mut [u64], anchor: Anchor) {
    words[..3].copy_from_slice(&[anchor.ticks, anchor.monotonic_ns, anchor.realtime_ns]);
}
