//! A recording: what was kept of a flight recorder over some time, in a file of its own.
//!
//! ```text
//! header, rings, workers   as in a flight recorder, with another mark; totals are those of the recording's time
//! records                  64 bytes each, of all workers, in the order in which they were read, up to the file's end
//! ```
//!
//! The records of one worker are in order; those of different workers are not. A recording that was not brought to an
//! end (its writer was killed, or the disk was full) is read as far as it goes; it has no totals then.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use host_files::write_counted;

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

/// Bytes written at a time.
const WRITE_BYTES: usize = 1 << 20;

/// A recording that is being written.
#[derive(Debug)]
pub struct RecordingWriter {
    file: File,
    /// Whether the header can be written again: the file is no pipe and begins with the recording.
    can_go_back: bool,
    /// Bytes not written yet.
    out: Vec<u8>,
    /// Number of bytes written.
    written: u64,
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
        Self::begin(File::create(path)?, true, of, facts)
    }

    /// The same to a file that is open and empty (`can_go_back`), or to a pipe: there the header cannot be written again,
    /// and the recording has no totals.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn begin(file: File, can_go_back: bool, of: &Reader, facts: &str) -> io::Result<Self> {
        if facts.len() > FACTS_BYTES_MAX {
            let found = facts.len();
            let message =
                format!("expected facts of at most {FACTS_BYTES_MAX} bytes, found {found}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let (out, facts) = (Vec::with_capacity(WRITE_BYTES), facts.into());
        let (start, anchor) = (counts(of), of.anchor_latest());
        let (written, records, lost) = (0, 0, 0);
        let mut writer =
            Self { file, can_go_back, out, written, facts, start, anchor, records, lost };
        writer.out = writer.head(of, false);
        writer.flush()?;
        Ok(writer)
    }

    /// Keeps a record; also what stands for records that were lost ([`BurstRecord::gap`]).
    ///
    /// # Errors
    /// What the file system answers.
    pub fn push(&mut self, record: &BurstRecord) -> io::Result<()> {
        if record.kind == RecordKind::Gap as u8 {
            self.lost = self.lost.saturating_add(record.sequence);
        } else {
            self.records += 1;
        }
        self.out.extend(record.to_words().map(u64::to_ne_bytes).as_flattened());
        if self.out.len() < WRITE_BYTES { Ok(()) } else { self.flush() }
    }

    /// Writes the records kept so far: if this process is killed, only later ones are lost.
    ///
    /// # Errors
    /// What the file system answers. After that the recording can only be [cut](Self::cut).
    pub fn flush(&mut self) -> io::Result<()> {
        let (written, result) = write_counted(&self.file, &self.out);
        self.written += written as u64;
        result?;
        self.out.clear();
        Ok(())
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
        self.flush()?;
        if self.can_go_back {
            let head = self.head(of, is_all);
            self.file.write_all_at(&head, 0)?;
        }
        Ok(())
    }

    /// Ends a recording after a failed write: it is cut after its last whole record. It has the latest anchor of the clock
    /// and no totals.
    ///
    /// # Errors
    /// When nothing of it can be read again, or what the file system answers.
    pub fn cut(self, of: &Reader) -> io::Result<()> {
        let head = self.head(of, false);
        let begin = head.len() as u64;
        if !self.can_go_back || self.written < begin {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let record = (RECORD_WORDS * 8) as u64;
        self.file.set_len(begin + (self.written - begin) / record * record)?;
        // A copy-on-write file system may have no room for that either: then the header stays as it was.
        let _ = self.file.write_all_at(&head, 0);
        Ok(())
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
