//! The input of a report: a flight recorder, of a live daemon or not, a recording, or those of several hosts.

use std::ops::Deref;
use std::path::{Path, PathBuf};

use host_files::FileId;

use crate::header::{Header, ReadError};
use crate::joined::{Joined, NotOneGuest};
use crate::reader::Reader;
use crate::record::Record;
use crate::recording::{CutOff, Recording};
use crate::single::{Single, held_max, read_recorder, read_recorder_by_time, read_recording};

/// A flight recorder, a recording, or several of one guest.
#[derive(Debug)]
pub enum Source {
    /// `NAME.trace` of a daemon that runs, has ended or has crashed.
    Recorder(Reader),
    /// A file written by `ringscope record`.
    Recording(Recording),
    /// Those of a guest that moved.
    Joined(Joined),
}

/// All have what their header has.
impl Deref for Source {
    type Target = Header;

    fn deref(&self) -> &Header {
        match self {
            Self::Recorder(reader) => reader,
            Self::Recording(recording) => recording,
            Self::Joined(joined) => joined.header(),
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

    /// Joins files of one guest, in any order.
    ///
    /// # Errors
    /// When they cannot be of one guest.
    ///
    /// # Panics
    /// When there are none.
    pub fn join(sources: Vec<(Self, PathBuf)>) -> Result<Self, NotOneGuest> {
        let mut files = Vec::new();
        for (source, path) in sources {
            match source {
                Self::Recorder(reader) => files.push((Single::Recorder(reader), path)),
                Self::Recording(recording) => files.push((Single::Recording(recording), path)),
                Self::Joined(joined) => files.extend(joined.into_files()),
            }
        }
        Ok(Self::Joined(Joined::new(files)?))
    }

    /// The identities of its files.
    #[must_use]
    pub fn files(&self) -> Vec<FileId> {
        match self {
            Self::Recorder(_) | Self::Recording(_) => vec![self.file()],
            Self::Joined(joined) => joined.files().map(|source| source.file()).collect(),
        }
    }

    /// Whether the header's totals and drops cover the source's whole time.
    #[must_use]
    pub fn has_totals(&self) -> bool {
        match self {
            Self::Recorder(_) => true,
            Self::Recording(recording) => recording.has_totals(),
            // Those in the header are of one daemon.
            Self::Joined(_) => false,
        }
    }

    /// What is left of a recording that was cut off.
    #[must_use]
    pub fn cut_off(&self) -> Option<CutOff> {
        match self {
            Self::Recorder(_) | Self::Joined(_) => None,
            Self::Recording(recording) => recording.cut_off(),
        }
    }

    /// Number of records, or an upper bound of it: for showing progress.
    #[must_use]
    pub fn records_max(&self) -> usize {
        match self {
            Self::Recorder(reader) => held_max(reader),
            Self::Recording(recording) => recording.len(),
            Self::Joined(joined) => joined.records_max(),
        }
    }

    /// Hands every record but gaps to `each`: those of one worker in order, those of different workers in any order.
    /// Returns the number of records that were overwritten before they could be read or recorded, by gaps too.
    pub fn read(&self, each: impl FnMut(&Record)) -> u64 {
        match self {
            Self::Recorder(reader) => read_recorder(reader, each),
            Self::Recording(recording) => read_recording(recording, each),
            Self::Joined(joined) => joined.read(each),
        }
    }

    /// As [`read`](Self::read), roughly in the order of time: a record comes at most a few milliseconds before one that
    /// ended earlier.
    pub fn read_by_time(&self, each: impl FnMut(&Record)) -> u64 {
        match self {
            Self::Recorder(reader) => read_recorder_by_time(reader, each),
            Self::Recording(_) | Self::Joined(_) => self.read(each),
        }
    }
}
