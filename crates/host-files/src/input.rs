//! A regular file that is read.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

use crate::identity::{kind, refused};

/// Opens the regular file that `path` leads to, for reading. Links are followed.
///
/// FIFOs and devices are not opened: to open one may block.
///
/// # Errors
/// When it is not a regular file, or the system call fails.
pub fn open_regular(path: &Path) -> io::Result<File> {
    // Opening some devices has an effect, so the kind is checked first.
    let found = fs::metadata(path)?.file_type();
    if !found.is_file() {
        return Err(not_regular(kind(found)));
    }
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    // It may be another file by now.
    let found = file.metadata()?.file_type();
    if found.is_file() { Ok(file) } else { Err(not_regular(kind(found))) }
}

fn not_regular(found: &str) -> io::Error {
    refused(format!("expected a regular file, found {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_is_opened_and_nothing_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "x").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(open_regular(&path).is_ok() && open_regular(&link).is_ok());
        let fifo = directory.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
        for (path, found) in [(fifo.as_path(), "a FIFO"), (directory.path(), "a directory")] {
            let error = open_regular(path).unwrap_err().to_string();
            assert_eq!(error, format!("expected a regular file, found {found}"));
        }
        let error = open_regular(Path::new("/dev/null")).unwrap_err().to_string();
        assert!(error.ends_with("found a device"), "{error}");
    }
}
