//! Take-overs: what two daemons say to each other, said by a test, and for how long no ring was served.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);
/// Time for which no ring may be served, of 99 in 100 take-overs.
const GAP: Duration = Duration::from_millis(10);

/// Number of take-overs: `RINGSCOPE_TAKE_OVERS`, or `usual`.
///
/// # Panics
/// When it is no number.
#[must_use]
pub fn take_overs(usual: usize) -> usize {
    std::env::var("RINGSCOPE_TAKE_OVERS").map_or(usual, |count| count.parse().expect("a number"))
}

/// The time for which no ring was served, as the new daemon says.
///
/// # Panics
/// When it does not say so.
#[must_use]
pub fn gap(log: &str) -> Duration {
    let said = log.split("no ring was served for ").nth(1).and_then(|rest| rest.split(' ').next());
    let millis: f64 = said.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{log}"));
    Duration::from_secs_f64(millis / 1e3)
}

/// Prints these times, and expects 99 % of them to be short if they are many.
///
/// # Panics
/// When they are not, or when there are none.
pub fn expect_short(what: &str, mut gaps: Vec<Duration>) {
    gaps.sort();
    let at = |percent: usize| gaps[(gaps.len() * percent / 100).min(gaps.len() - 1)];
    let (count, p50, p99) = (gaps.len(), at(50), at(99));
    println!("{what}: {count} take-overs, no ring was served for p50 {p50:?}, p99 {p99:?}");
    if count >= 100 {
        assert!(p99 <= GAP, "p99 {p99:?}");
    }
}

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
