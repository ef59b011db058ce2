//! What the plan names around a guest's datapaths: a capture, and faults.

use std::path::Path;

use burst_trace::Clock;
use datapath::{CaptureOptions, Faulty, Pcap, pcap};

use crate::error::Error;
use crate::plan::GuestPlan;

/// The datapaths of a guest's queue pairs, with what the plan names around them.
pub enum Wrapped<D> {
    /// Nothing.
    Bare(Vec<D>),
    /// Faults.
    Faulty(Vec<Faulty<D>>),
    /// A capture, and perhaps faults. Frames that a fault drops are not in the capture.
    Captured(Vec<Faulty<Pcap<D>>>),
}

/// Puts what the plan names around the datapaths. Without a capture and faults there is nothing around them.
///
/// # Errors
/// When the capture cannot begin.
pub fn wrap<D>(plan: &GuestPlan, datapaths: Vec<D>, clock: Clock) -> Result<Wrapped<D>, Error> {
    if let Some(path) = &plan.capture {
        let lanes = pcap::begin(&capture(plan, path), plan.queue_pairs, clock)?;
        let captured = datapaths.into_iter().zip(lanes).map(|(it, lane)| Pcap::new(it, lane));
        let faulty = (0..).zip(captured).map(|(queue, it)| Faulty::new(it, &plan.faults, queue));
        return Ok(Wrapped::Captured(faulty.collect()));
    }
    if plan.faults.is_empty() {
        return Ok(Wrapped::Bare(datapaths));
    }
    let faulty = (0..).zip(datapaths).map(|(queue, it)| Faulty::new(it, &plan.faults, queue));
    Ok(Wrapped::Faulty(faulty.collect()))
}

fn capture(plan: &GuestPlan, path: &Path) -> CaptureOptions {
    CaptureOptions {
        path: path.to_owned(),
        application: concat!("ringscoped ", env!("CARGO_PKG_VERSION")).into(),
        name: plan.name.clone(),
        description: format!("virtio-net of the guest on {}", plan.datapath),
    }
}
