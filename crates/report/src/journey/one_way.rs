//! One way at a time: from application to application, where the clocks of both sides are known as one.

use serde::Serialize;

use super::rows::{Times, quantile};
use super::{Journeys, OneWay};

/// Both ways of all round trips.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct OneWays {
    /// From the host's application to the guest's.
    pub to_guest: Times,
    /// From the guest's application to the host's.
    pub from_guest: Times,
    /// By how much each time may be wrong, nanoseconds: of 99 in 100 at most this.
    pub bound_ns: i64,
}

impl OneWays {
    /// `None` if no round trip has them.
    pub fn of(joined: &Journeys) -> Option<Self> {
        let sorted = |of: fn(OneWay) -> i64| {
            let each = joined.journeys.iter().filter_map(|journey| journey.one_way);
            let mut times: Vec<_> = each.map(of).collect();
            times.sort_unstable();
            times
        };
        Some(Self {
            bound_ns: quantile(&sorted(|it| it.bound_ns), 99)?,
            to_guest: Times::of(&sorted(|it| it.to_guest_ns)),
            from_guest: Times::of(&sorted(|it| it.from_guest_ns)),
        })
    }
}
