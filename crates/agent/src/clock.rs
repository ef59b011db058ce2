//! CLOCK_MONOTONIC in nanoseconds: one clock for all namespaces of a machine, so stamps of the
//! agent in a namespace may be compared with stamps of the daemon.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Sleeps to the given time, and returns at once when it has passed.
pub fn sleep_until(at_ns: u64) {
    let left = at_ns.saturating_sub(now_ns());
    if left > 0 {
        std::thread::sleep(Duration::from_nanos(left));
    }
}

/// Lets this thread's timers fire on time rather than up to 50 us late, which is the default.
pub fn sharpen_timers() {
    // Refusal only makes late sends likelier, and these are counted.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
}
