//! Standard output, whose reader may close it (`ringscope stats | head -1` is no error), and files that must not be
//! overwritten.

use std::error::Error;
use std::io::{self, Write};

use burst_trace::file::MAGIC;
use host_files::{FileId, Guard};

/// Writes `text` to standard output and flushes it.
///
/// # Errors
/// What the system answers, a closed pipe included.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Binary data for a terminal, which would show it as garbage.
#[derive(Debug, thiserror::Error)]
#[error("expected a file or pipe for {0}, found a terminal: give -o FILE")]
pub struct BinaryToTerminal(pub &'static str);

/// Refuses to overwrite inputs and recorders.
pub const fn guard(inputs: &[FileId]) -> Guard<'_> {
    Guard { inputs, mark: MAGIC.to_le_bytes() }
}

/// Whether the error, or one of its causes, is that the reader of our output has closed it.
pub fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    let mut error = Some(error);
    while let Some(cause) = error {
        let io = cause.downcast_ref::<io::Error>();
        if io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            return true;
        }
        error = cause.source();
    }
    false
}
