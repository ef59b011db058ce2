//! The times in the host kernel that belong to a burst, and the interruptions of its worker, for the page.

use std::cmp::Reverse;

use burst_trace::attribution::BurstSpan;
use burst_trace::{BurstRecord, Interruption, Interruptions, KernelStage, Subject};
use serde::Serialize;

use crate::causes::in_short;
use crate::figures::TickRate;

/// Most interruptions shown of a burst: the longest.
const INTERRUPTIONS_MAX: usize = 24;

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
        let ns = rate.ns(end.saturating_sub(start));
        Self { stage: stage.name(), at_ns: since(start, burst, rate), ns, count }
    }
}

/// A time in which the burst's worker did not run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InterruptionTime {
    cause: &'static str,
    words: String,
    cpu: u16,
    /// Its start, relative to the burst's first boundary.
    at_ns: i64,
    /// From its start to its end.
    span_ns: u64,
    /// How long the worker did not run: less, where the interval is longer than the time that was lost in it.
    ns: u64,
}

impl InterruptionTime {
    /// The longest interruptions of the worker in a burst and its wake-up, in the order of their starts.
    pub fn all(
        burst: &BurstRecord,
        spans: &[BurstSpan],
        interruptions: &Interruptions,
        rate: TickRate,
    ) -> Vec<Self> {
        let wakeup = spans.iter().find(|span| span.stage == KernelStage::Wakeup);
        let from = wakeup.map_or(burst.first, |span| span.start);
        let worker = Subject::Worker(burst.worker.into());
        let all = interruptions.during(worker, from, burst.last);
        let mut all: Vec<_> = all.copied().collect();
        all.sort_by_key(|it| Reverse(it.total()));
        all.truncate(INTERRUPTIONS_MAX);
        all.sort_by_key(|it| it.start);
        all.iter().map(|it| Self::new(burst, it, rate)).collect()
    }

    fn new(burst: &BurstRecord, interruption: &Interruption, rate: TickRate) -> Self {
        let Interruption { start, end, cpu, cause, .. } = *interruption;
        Self {
            cause: cause.name(),
            words: in_short(interruption),
            cpu,
            at_ns: since(start, burst, rate),
            span_ns: rate.ns(end.saturating_sub(start)),
            ns: rate.ns(interruption.total()),
        }
    }
}

/// From the burst's first boundary to `at`, ns.
fn since(at: u64, burst: &BurstRecord, rate: TickRate) -> i64 {
    let ns = i64::try_from(rate.ns(at.abs_diff(burst.first))).unwrap_or(i64::MAX);
    if at < burst.first { -ns } else { ns }
}
