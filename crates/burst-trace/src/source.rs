//! What a report is made of: a flight recorder, live or left behind, or a recording of one.

use std::ops::Deref;
use std::path::Path;

use crate::header::{Header, ReadError};
use crate::reader::Reader;
use crate::record::{BurstRecord, RecordKind};
use crate::recording::Recording;

/// A flight recorder or a recording, whichever the file is.
#[derive(Debug)]
pub enum Source {
    /// `NAME.trace` of a daemon that runs, ended or crashed.
    Recorder(Reader),
    /// What `ringscope record` wrote.
    Recording(Recording),
}

/// Either knows all that its header says.
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

    /// Whether the header's totals and drops tell of all of the source's time.
    #[must_use]
    pub fn has_totals(&self) -> bool {
        match self {
            Self::Recorder(_) => true,
            Self::Recording(recording) => recording.has_totals(),
        }
    }

    /// How many records there are, or may be: for whoever shows how far reading came.
    #[must_use]
    pub fn records_max(&self) -> usize {
        match self {
            Self::Recorder(reader) => reader.capacity() * reader.workers(),
            Self::Recording(recording) => recording.len(),
        }
    }

    /// Hands every record to `each`: of one worker in order; of different workers in any. Returns how many records were
    /// overwritten before they could be read or kept. Gaps are in that number only.
    pub fn read(&self, mut each: impl FnMut(&BurstRecord)) -> u64 {
        match self {
            Self::Recorder(reader) => (0..reader.workers())
                .map(|worker| reader.read(&mut reader.oldest(worker), &mut each))
                .fold(0, u64::saturating_add),
            Self::Recording(recording) => {
                let mut lost = 0;
                for record in (0..recording.len()).map(|n| recording.record(n)) {
                    if record.kind == RecordKind::Gap as u8 {
                        lost = u64::saturating_add(lost, record.sequence);
                    } else {
                        each(&record);
                    }
                }
                lost
            }
        }
    }

    /// As [`read`](Self::read), in about the order of time: what ended later comes at most a few milliseconds early.
    pub fn read_by_time(&self, mut each: impl FnMut(&BurstRecord)) -> u64 {
        let Self::Recorder(_) = self else { return self.read(each) };
        let mut records = Vec::new();
        let lost = self.read(|record| records.push(*record));
        records.sort_by_key(|record| record.last);
        records.iter().for_each(&mut each);
        lost
    }
}
