//! When something was: from ticks of a recorder's clock to the clocks of the host.

use burst_trace::{Anchor, Header};

/// The relation of a recorder's clock to those of its host, by the latest instant that was taken on all of them.
#[derive(Clone, Copy, Debug)]
pub struct When {
    anchor: Anchor,
    ns_per_tick: f64,
}

impl When {
    /// That of a recorder or recording.
    #[must_use]
    pub fn of(header: &Header) -> Self {
        Self::new(header.anchor_latest(), 1e9 / header.ticks_per_second() as f64)
    }

    /// That of a clock with this rate, by one instant.
    #[must_use]
    pub const fn new(anchor: Anchor, ns_per_tick: f64) -> Self {
        Self { anchor, ns_per_tick }
    }

    /// `CLOCK_REALTIME` at `ticks`: nanoseconds since 1970.
    #[must_use]
    pub fn realtime_ns(&self, ticks: u64) -> u64 {
        self.anchor.realtime_ns.saturating_add_signed(self.since_anchor_ns(ticks))
    }

    /// `CLOCK_MONOTONIC` at `ticks`, nanoseconds.
    #[must_use]
    pub fn monotonic_ns(&self, ticks: u64) -> u64 {
        self.anchor.monotonic_ns.saturating_add_signed(self.since_anchor_ns(ticks))
    }

    fn since_anchor_ns(&self, ticks: u64) -> i64 {
        let ticks = i128::from(ticks) - i128::from(self.anchor.ticks);
        (ticks as f64 * self.ns_per_tick).round() as i64
    }
}
