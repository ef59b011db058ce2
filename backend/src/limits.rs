//! The limits of a guest, made for its workers.

use std::sync::Arc;

use burst_trace::Clock;
use worker::Bucket;

use crate::plan::GuestPlan;

/// The limits of a guest: to it, from it.
pub type Limits = [Option<Arc<Bucket>>; 2];

/// The guest's limits, which its workers share.
pub fn limits_of(plan: &GuestPlan, clock: &Clock) -> Limits {
    plan.limits.map(|limit| limit.map(|limit| Arc::new(Bucket::new(limit, clock))))
}
