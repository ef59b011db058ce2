//! The input of a report: a flight recorder, of a live daemon or not, or a recording.

use std::ops::Deref;
use std::path::Path;

use crate::header::{Header, ReadError};
use crate::reader::Reader;
use crate::record::Record;
use crate::recording::{CutOff, Recording};

/// A flight recorder or a recording.
#[derive(Debug)]
pub enum Source {
    /// `NAME.trace` of a daemon that runs, has ended or has crashed.
    Recorder(Reader),
    /// A file written by `ringscope record`.
    Recording(Recording),
}

/// Both have what their header has.
impl Deref for Source {
    type Target = Header;

    fn deref(&self) -> &Header {
        match self {
            Self::Recorder(reader) => reader,
            Self::Recording(recording) => recording,
        }
    }
}

impl From<Reader> for Source {
    fn from(reader: Reader) -> Self {
        Self::Recorder(reader)
    }
}

impl Source {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, or is neither.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        match Recording::open(path) {
            Ok(recording) => Ok(Self::Recording(recording)),
            Err(ReadError::Format { .. }) => Ok(Self::Recorder(Reader::open(path)?)),
            Err(error) => Err(error),
        }
    }

    /// Whether the header's totals and drops cover the source's whole time.
    #[must_use]
    pub fn has_totals(&self) -> bool {
        match self {
            Self::Recorder(_) => true,
            Self::Recording(recording) => recording.has_totals(),
        }
    }

    /// What is left of a recording that was cut off.
    #[must_use]
    pub fn cut_off(&self) -> Option<CutOff> {
        match self {
            Self::Recorder(_) => None,
            Self::Recording(recording) => recording.cut_off(),
        }
    }

    /// Number of records, or an upper bound of it: for showing progress.
    #[must_use]
    pub fn records_max(&self) -> usize {
        match self {
            Self::Recorder(reader) => reader.capacity() * reader.workers(),
            Self::Recording(recording) => recording.len(),
        }
    }

    /// Hands every record but gaps to `each`: those of one worker in order, those of different workers in any order.
    /// Returns the number of records that were overwritten before they could be read or recorded, by gaps too.
    pub fn read(&self, mut each: impl FnMut(&Record)) -> u64 {
        match self {
            Self::Recorder(reader) => (0..reader.workers())
                .map(|worker| reader.read(&mut reader.oldest(worker), &mut each))
                .fold(0, u64::saturating_add),
            Self::Recording(recording) => {
                let mut lost = 0_u64;
                for n in 0..recording.len() {
                    match recording.record(n) {
                        Record::Gap(gap) => lost = lost.saturating_add(gap.records),
                        record => each(&record),
                    }
                }
                lost
            }
        }
    }

    /// As [`read`](Self::read), roughly in the order of time: a record comes at most a few milliseconds before one that
    /// ended earlier.
    pub fn read_by_time(&self, mut each: impl FnMut(&Record)) -> u64 {
        let Self::Recorder(_) = self else { return self.read(each) };
        let mut records = Vec::new();
        let lost = self.read(|record| records.push(*record));
        records.sort_by_key(Record::last);
        records.iter().for_each(&mut each);
        lost
    }
}
