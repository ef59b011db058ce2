//! `CLOCK_MONOTONIC` in nanoseconds. All namespaces of a machine share it, so stamps of an agent in a namespace can be
//! compared with stamps of the daemon.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Sleeps until the given time.
pub fn sleep_until(at_ns: u64) {
    let left = at_ns.saturating_sub(now_ns());
    if left > 0 {
        std::thread::sleep(Duration::from_nanos(left));
    }
}

/// Makes this thread's timers fire on time; by default they are up to 50 us late.
pub fn sharpen_timers() {
    // If refused, more packets are sent late, and these are counted.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
}
