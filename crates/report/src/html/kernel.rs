//! The times in the host kernel that belong to a burst, for the page.

use burst_trace::BurstRecord;
use burst_trace::attribution::BurstSpan;
use serde::Serialize;

use crate::figures::TickRate;

/// A time in the host kernel that belongs to a burst. Of several, the longest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KernelTime {
    stage: &'static str,
    /// Its start, relative to the burst's first boundary.
    at_ns: i64,
    ns: u64,
    /// Number of times of this stage.
    count: usize,
}

impl KernelTime {
    pub fn new(burst: &BurstRecord, span: &BurstSpan, rate: TickRate) -> Self {
        let BurstSpan { stage, start, end, count } = *span;
        let since = rate.ns(start.abs_diff(burst.first)).cast_signed();
        let ns = rate.ns(end.saturating_sub(start));
        let at_ns = if start < burst.first { -since } else { since };
        Self { stage: stage.name(), at_ns, ns, count }
    }
}
