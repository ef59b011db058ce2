//! Standard output that may go away: `ringscope stats | head -1` is no error.

use std::error::Error;
use std::io::{self, Write};

/// Writes `text` to standard output and sees it off.
///
/// # Errors
/// What the system answers, a closed pipe included.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Whether whoever read our output has gone.
pub fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
