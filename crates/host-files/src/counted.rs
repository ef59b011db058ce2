//! Writes that report how much was written before a failure.

use std::fs::File;
use std::io::{self, Write as _};

/// Writes all of `bytes`. Returns the number of bytes written, and the error if it is not all of them.
pub fn write_counted(mut to: &File, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match to.write(&bytes[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(len) => written += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}
