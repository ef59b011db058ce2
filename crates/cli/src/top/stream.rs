//! `ringscope top --json`: one JSON object a line for each guest and interval, for programs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use report::json;

use super::POLL_EVERY;
use super::sources::Sources;
use crate::output;

/// Prints a line for each guest after each `interval`, until `stop` is set.
///
/// # Errors
/// If standard output cannot be written, or if its reader has gone.
pub fn follow(mut sources: Sources, interval: Duration, stop: &AtomicBool) -> std::io::Result<()> {
    let mut next = Instant::now() + interval;
    while !stop.load(Ordering::Relaxed) {
        sleep(next.saturating_duration_since(Instant::now()).min(POLL_EVERY));
        sources.poll();
        if Instant::now() >= next {
            next = Instant::now() + interval;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            for sample in sources.take() {
                let Some(interval) = &sample.interval else { continue };
                let line = json::interval_to_json(interval, &sample.identity.name, now);
                output::print(&(line + "\n"))?;
            }
        }
    }
    Ok(())
}
