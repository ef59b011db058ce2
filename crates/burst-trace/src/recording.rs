//! A recording: the records of a flight recorder over some time, in a file of their own.
//!
//! ```text
//! header, rings, workers   as in a flight recorder, with another mark; totals are those of the recording's time
//! records                  64 bytes each, of all workers, in the order in which they were read, up to the file's end
//! ```
//!
//! The records of one worker are in order; those of different workers are not. An unfinished recording (its writer was
//! killed, or the disk was full) is read up to its end; it has no totals. A finished one knows its number of records, so
//! that a file that was cut off later is noticed.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use host_files::write_counted;

use crate::clock::Anchor;
use crate::file::{
    ANCHOR_WORDS, FACTS_BYTES_MAX, Layout, RECORDING_MAGIC, RING_BURSTS, RING_BYTES, RING_DROPS,
    RING_EVENTS, RING_GRO_FRAMES, RING_GRO_SEGMENTS, RING_MOVES, RING_NOTIFICATIONS, RING_PACKETS,
    RING_WORDS, VERSION, facts_words, word,
};
use crate::header::{Header, ReadError};
use crate::reader::Reader;
use crate::record::{RECORD_WORDS, Record};
use crate::stage::{DropCause, SocketEvent};

/// A recording, open for reading.
#[derive(Debug)]
pub struct Recording {
    header: Header,
    records: usize,
    /// Whether the file ends within a record.
    ends_within: bool,
}

/// What is left of a recording whose file was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutOff {
    /// Number of whole records in the file.
    pub records: u64,
    /// Number of records that it was finished with, if it was.
    pub of: Option<u64>,
}

/// A recording has what its header has.
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
        let words = header.words().len() - header.layout().records(0);
        let (records, ends_within) = (words / RECORD_WORDS, words % RECORD_WORDS != 0);
        Ok(Self { header, records, ends_within })
    }

    /// What is left, if the file ends within a record or has fewer records than it was finished with.
    #[must_use]
    pub fn cut_off(&self) -> Option<CutOff> {
        let (records, of) = (self.records as u64, self.header.number(word::RECORDS).checked_sub(1));
        (self.ends_within || of.is_some_and(|of| of > records)).then_some(CutOff { records, of })
    }

    /// Number of records.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "nothing asks whether a recording is empty")]
    pub const fn len(&self) -> usize {
        self.records
    }

    /// Whether its header has the totals of the recording's time.
    #[must_use]
    pub fn has_totals(&self) -> bool {
        self.header.number(word::COUNTED) == 1
    }

    /// Record number `n`, from 0, in the order of the file.
    ///
    /// # Panics
    /// When `n` is not below [`len`](Self::len).
    #[inline]
    #[must_use]
    pub fn record(&self, n: usize) -> Record {
        assert!(n < self.records, "no such record in the recording");
        let at = self.header.layout().records(0) + n * RECORD_WORDS;
        let mut words = [0; RECORD_WORDS];
        for (copy, word) in words.iter_mut().zip(self.header.words().slice(at, RECORD_WORDS)) {
            *copy = word.load(Ordering::Relaxed);
        }
        Record::from_words(&words)
    }
}

/// Size of a write, bytes.
const WRITE_BYTES: usize = 1 << 20;

/// A recording that is being written.
#[derive(Debug)]
pub struct RecordingWriter {
    file: File,
    /// Whether the header can be written again: the file is no pipe and begins with the recording.
    can_go_back: bool,
    /// Bytes that wait for a write.
    out: Vec<u8>,
    /// Number of bytes written.
    written: u64,
    facts: String,
    start: Counts,
    /// The restarts, and the most frames sent twice, when it began.
    restarts: [u64; 2],
    anchor: Anchor,
    /// The front end's process when it began, or 0.
    front_end: u64,
    records: u64,
    lost: u64,
    /// Number of records and gaps.
    entries: u64,
}

/// Everything that the recorder counts, of each ring.
type Counts = Vec<[u64; RING_WORDS]>;

impl RecordingWriter {
    /// Makes the file for records of `of` from now on. `facts` is JSON text of at most [`FACTS_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn create(path: &Path, of: &Reader, facts: &str) -> io::Result<Self> {
        Self::begin(File::create(path)?, true, of, facts)
    }

    /// As [`create`](Self::create), to a file that is open and empty (`can_go_back`) or to a pipe. A recording in a pipe has
    /// no totals, because its header cannot be written again.
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
        let restarts = [of.restarts(), of.sent_twice_max()];
        let mut writer = Self {
            file,
            can_go_back,
            out,
            written: 0,
            facts,
            start,
            restarts,
            anchor,
            front_end: of.number(word::FRONT_END),
            records: 0,
            lost: 0,
            entries: 0,
        };
        writer.out = writer.head(of, false, None);
        writer.flush()?;
        Ok(writer)
    }

    /// Adds a record. A [`Gap`](crate::Gap) stands for lost records.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn push(&mut self, record: &Record) -> io::Result<()> {
        self.entries += 1;
        match record {
            Record::Gap(gap) => self.lost = self.lost.saturating_add(gap.records),
            _ => self.records += 1,
        }
        self.out.extend(record.to_words().map(u64::to_ne_bytes).as_flattened());
        if self.out.len() < WRITE_BYTES { Ok(()) } else { self.flush() }
    }

    /// Writes all records added so far: if this process is killed, only later ones are lost.
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

    /// Number of records added, and number of records lost.
    #[must_use]
    pub const fn counts(&self) -> (u64, u64) {
        (self.records, self.lost)
    }

    /// Finishes the recording. Its header gets the latest anchor and, if every record since its start was added or
    /// counted as lost (`is_all`), the totals of that time.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn finish(mut self, of: &Reader, is_all: bool) -> io::Result<()> {
        self.flush()?;
        if self.can_go_back {
            let head = self.head(of, is_all, Some(self.entries));
            self.file.write_all_at(&head, 0)?;
        }
        Ok(())
    }

    /// Ends a recording after a failed write: cuts it after its last whole record. Its header gets the latest anchor and no
    /// totals.
    ///
    /// # Errors
    /// When nothing of it can be read, or what the file system answers.
    pub fn cut(self, of: &Reader) -> io::Result<()> {
        let layout = Layout { capacity: 1, ..*of.layout() };
        let begin = (layout.records(0) * 8) as u64;
        if !self.can_go_back || self.written < begin {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let record = (RECORD_WORDS * 8) as u64;
        let entries = (self.written - begin) / record;
        self.file.set_len(begin + entries * record)?;
        let head = self.head(of, false, Some(entries));
        // A copy-on-write file system may have no room for the new header either. Then the old one stays.
        let _ = self.file.write_all_at(&head, 0);
        Ok(())
    }

    /// The bytes before the records. `entries`: the number of records, if no more come.
    fn head(&self, of: &Reader, is_counted: bool, entries: Option<u64>) -> Vec<u8> {
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
        for (word, facts) in words[word::FACTS..].iter_mut().zip(facts_words(self.facts.as_bytes()))
        {
            *word = facts;
        }
        words[word::FEATURES] = of.features();
        let clock = [word::CLOCK_ERROR, word::CLOCK_ERROR_AT, word::ANCHOR_ERROR];
        let as_they_are = [word::BOOT, word::BOOT + 1].into_iter().chain(clock);
        as_they_are.for_each(|at| words[at] = of.number(at));
        // It may have left meanwhile.
        words[word::FRONT_END] =
            Some(of.number(word::FRONT_END)).filter(|it| *it > 0).unwrap_or(self.front_end);
        words[word::RECORDS] = entries.map_or(0, |entries| entries.saturating_add(1));
        if is_counted {
            words[word::COUNTED] = 1;
            words[word::RESTARTS] = of.restarts().saturating_sub(self.restarts[0]);
            words[word::SENT_TWICE_MAX] = of.sent_twice_max().saturating_sub(self.restarts[1]);
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
            counts[RING_PACKETS] = totals.packets;
            counts[RING_BYTES] = totals.bytes;
            counts[RING_BURSTS] = totals.bursts;
            for (cause, count) in DropCause::ALL.iter().zip(&mut counts[RING_DROPS..]) {
                *count = of.drops(ring, *cause);
            }
            for event in SocketEvent::ALL {
                counts[RING_EVENTS + event as usize] = of.events(ring, event);
            }
            counts[RING_MOVES] = of.moves(ring);
            let gro = of.gro(ring);
            (counts[RING_GRO_FRAMES], counts[RING_GRO_SEGMENTS]) = (gro.frames, gro.segments);
            for (kind, count) in of.notifications(ring).iter() {
                counts[RING_NOTIFICATIONS + kind as usize] = count;
            }
            counts
        })
        .collect()
}

fn store_anchor(words: &mut [u64], anchor: Anchor) {
    let anchor = [anchor.ticks, anchor.monotonic_ns, anchor.realtime_ns];
    words[..ANCHOR_WORDS].copy_from_slice(&anchor);
}
