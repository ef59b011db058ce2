//! `ringscope top --json`: interval by interval, one object a line, for programs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use report::json;

use super::POLL_EVERY;
use super::source::Source;
use crate::output;

/// Prints a line for each `interval` until it is to stop.
///
/// # Errors
/// When standard output cannot be written, or whoever reads it has gone.
pub fn follow(mut source: Source, interval: Duration, stop: &AtomicBool) -> std::io::Result<()> {
    let mut next = Instant::now() + interval;
    while !stop.load(Ordering::Relaxed) {
        sleep(next.saturating_duration_since(Instant::now()).min(POLL_EVERY));
        source.poll();
        if Instant::now() >= next {
            next = Instant::now() + interval;
            // It is of this daemon, also when the next one begins with it.
            let name = source.identity().name;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            output::print(&(json::interval_to_json(&source.take(), &name, now) + "\n"))?;
        }
    }
    Ok(())
}
