//! The dirty log of a live migration, as its front end has it: a memory file with a bit for each page of guest memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use crate::Error;
use crate::memory::memory_file;

/// Bytes of guest memory for each bit (vhost-user, "Migration").
const PAGE: u64 = 4096;

/// A dirty log.
#[derive(Debug)]
pub struct DirtyFile {
    file: Arc<File>,
    len: u64,
}

impl DirtyFile {
    /// A log with a bit for each page below guest-physical address `end`, and none set.
    ///
    /// # Errors
    /// When the system has no memory.
    pub fn new(end: u64) -> Result<Self, Error> {
        let (file, len) = (memory_file()?, end.div_ceil(8 * PAGE).next_multiple_of(8));
        file.set_len(len).map_err(Error::system("sizing the dirty log"))?;
        Ok(Self { file, len })
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Length of the log in bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The numbers of the pages that are marked.
    ///
    /// # Errors
    /// When the file cannot be read.
    #[expect(clippy::cast_possible_truncation, reason = "logs of tests are small")]
    pub fn pages(&self) -> io::Result<Vec<u64>> {
        let mut bytes = vec![0; self.len as usize];
        self.file.read_exact_at(&mut bytes, 0)?;
        let is_set = |page: &u64| bytes[(page / 8) as usize] & 1 << (page % 8) != 0;
        Ok((0..self.len * 8).filter(is_set).collect())
    }

    /// Clears all bits.
    ///
    /// # Errors
    /// When the file cannot be written.
    #[expect(clippy::cast_possible_truncation, reason = "logs of tests are small")]
    pub fn clear(&self) -> io::Result<()> {
        self.file.write_all_at(&vec![0; self.len as usize], 0)
    }
}
