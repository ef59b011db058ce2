//! What two daemons say to each other, said by a test.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);

/// A message as daemons send it.
///
/// # Panics
/// When the text is longer than 4 GiB.
#[must_use]
pub fn message(version: u32, text: &str) -> Vec<u8> {
    let len = u32::try_from(text.len()).unwrap();
    let numbers = [version, len, 0, 0].map(u32::to_le_bytes).concat();
    [b"RINGTAKE", &numbers[..], text.as_bytes()].concat()
}

/// Reads a message, and drops its descriptors.
///
/// # Panics
/// When none comes.
#[must_use]
pub fn read(from: &mut UnixStream) -> String {
    from.set_read_timeout(Some(SOON)).unwrap();
    let mut header = [0; 24];
    from.read_exact(&mut header).unwrap();
    let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap()) as usize;
    // A byte for every 200 descriptors.
    let mut text = vec![0; number(12) + number(16).div_ceil(200)];
    from.read_exact(&mut text).unwrap();
    String::from_utf8(text).unwrap()
}
