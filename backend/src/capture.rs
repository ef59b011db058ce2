//! The capture of a guest's frames: begun with the daemon (`--pcap`), or by the operator while frames flow.

use std::path::Path;
use std::sync::Arc;

use burst_trace::Clock;
use datapath::pcap::{self, Filter};
use datapath::{CaptureOptions, CaptureThread, Lane};
use worker::{Mailbox, Setting, WorkerGone};

use crate::error::Error;
use crate::plan::GuestPlan;

/// The thread that writes a guest's captures, if it may have one: with `--pcap`, or when there is a control socket. It lives
/// longer than its lanes in the workers, so no worker waits for it.
///
/// # Errors
/// When the system refuses it.
pub fn thread(plan: &GuestPlan, has_control: bool) -> Result<Option<CaptureThread>, Error> {
    let is_needed = plan.capture.is_some() || has_control;
    Ok(is_needed.then(CaptureThread::start).transpose()?)
}

/// The capture that the plan asks for, if it does: its file is there.
///
/// # Errors
/// When it cannot begin.
pub fn of(
    plan: &GuestPlan,
    thread: Option<&CaptureThread>,
    clock: Clock,
) -> Result<Vec<Lane>, Error> {
    let Some((path, thread)) = plan.capture.as_ref().zip(thread) else { return Ok(Vec::new()) };
    let (options, file) = (options(plan, path, None, None), pcap::create(path)?);
    Ok(thread.begin(options, file, plan.queue_pairs, clock)?)
}

/// How a guest's frames are captured.
pub fn options(
    plan: &GuestPlan,
    path: &Path,
    size: Option<u64>,
    filter: Option<Filter>,
) -> CaptureOptions {
    CaptureOptions {
        path: path.to_owned(),
        application: concat!("ringscoped ", env!("CARGO_PKG_VERSION")).into(),
        name: plan.name.clone(),
        description: format!("virtio-net of the guest on {}", plan.datapath),
        size,
        filter,
    }
}

/// Spreads the lanes of a guest's queue pairs over its workers, as the queue pairs are.
pub fn hands(lanes: Vec<Lane>, workers: usize) -> Vec<Vec<(u16, Lane)>> {
    let mut hands: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
    for (pair, lane) in (0..).zip(lanes) {
        hands[usize::from(pair) % workers].push((pair, lane));
    }
    hands
}

/// Has a guest's workers capture the frames of its queue pairs. Without lanes they capture nothing any longer.
///
/// # Errors
/// When a worker does not answer. The others were asked.
pub fn hand_out(lanes: Vec<Lane>, workers: &[Arc<Mailbox>]) -> Result<(), WorkerGone> {
    let hands = hands(lanes, workers.len());
    let asked = workers.iter().zip(hands);
    let answers: Vec<_> =
        asked.map(|(worker, lanes)| worker.set(Setting::Capture(lanes))).collect();
    answers.into_iter().collect()
}
