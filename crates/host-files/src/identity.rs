//! The identity and the kind of a file.

use std::fs::{self, File, FileType, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// Device and inode: equal for all names of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// The identity of an open file.
    ///
    /// # Errors
    /// The error of `fstat`.
    pub fn of_file(file: &File) -> io::Result<Self> {
        Ok(Self::of(&file.metadata()?))
    }

    /// The identity of the file that `path` leads to now, if there is one. Links are followed.
    #[must_use]
    pub fn of_path(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|file| Self::of(&file))
    }

    /// The identity of the file with this metadata.
    #[must_use]
    pub fn of(file: &Metadata) -> Self {
        Self { device: file.dev(), inode: file.ino() }
    }
}

/// The kind of a file in words: `a FIFO`, `a directory`.
#[must_use]
pub fn kind(of: FileType) -> &'static str {
    if of.is_file() {
        "a regular file"
    } else if of.is_dir() {
        "a directory"
    } else if of.is_symlink() {
        "a symbolic link"
    } else if of.is_fifo() {
        "a FIFO"
    } else if of.is_socket() {
        "a socket"
    } else if of.is_block_device() {
        "a block device"
    } else {
        "a device"
    }
}

/// The error for a file of the wrong kind or of another user.
pub(crate) fn refused(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why.into())
}
