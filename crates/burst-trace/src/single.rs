//! One file of records: a flight recorder or a recording.

use std::ops::Deref;

use crate::header::Header;
use crate::reader::Reader;
use crate::record::Record;
use crate::recording::Recording;

/// A flight recorder or a recording.
#[derive(Debug)]
pub enum Single {
    /// `NAME.trace`.
    Recorder(Reader),
    /// A file written by `ringscope record`.
    Recording(Recording),
}

/// Both have what their header has.
impl Deref for Single {
    type Target = Header;

    fn deref(&self) -> &Header {
        match self {
            Self::Recorder(reader) => reader,
            Self::Recording(recording) => recording,
        }
    }
}

impl Single {
    /// Number of records, or an upper bound of it.
    pub fn records_max(&self) -> usize {
        match self {
            Self::Recorder(reader) => held_max(reader),
            Self::Recording(recording) => recording.len(),
        }
    }

    /// Hands every record but gaps to `each`. Returns the number of those that are missing.
    pub fn read(&self, each: impl FnMut(&Record)) -> u64 {
        match self {
            Self::Recorder(reader) => read_recorder(reader, each),
            Self::Recording(recording) => read_recording(recording, each),
        }
    }

    /// The same, roughly in the order of time.
    pub fn read_by_time(&self, each: impl FnMut(&Record)) -> u64 {
        match self {
            Self::Recorder(reader) => read_recorder_by_time(reader, each),
            Self::Recording(recording) => read_recording(recording, each),
        }
    }
}

/// Upper bound of the number of records in a recorder.
pub fn held_max(reader: &Reader) -> usize {
    reader.capacity() * reader.workers()
}

/// Hands every record to `each`: those of one worker in order. Returns the number of those that were overwritten.
pub fn read_recorder(reader: &Reader, mut each: impl FnMut(&Record)) -> u64 {
    (0..reader.workers())
        .map(|worker| reader.read(&mut reader.oldest(worker), &mut each))
        .fold(0, u64::saturating_add)
}

/// The same, in the order of their ends.
pub fn read_recorder_by_time(reader: &Reader, each: impl FnMut(&Record)) -> u64 {
    let mut records = Vec::new();
    let lost = read_recorder(reader, |record| records.push(*record));
    records.sort_by_key(Record::last);
    records.iter().for_each(each);
    lost
}

/// Hands every record but gaps to `each`, in the order of the file. Returns the number of those that gaps stand for.
pub fn read_recording(recording: &Recording, mut each: impl FnMut(&Record)) -> u64 {
    let mut lost = 0_u64;
    for n in 0..recording.len() {
        match recording.record(n) {
            Record::Gap(gap) => lost = lost.saturating_add(gap.records),
            record => each(&record),
        }
    }
    lost
}
