//! What the daemon writes about its run into a guest's recorder.

use std::path::Path;

use serde_json::Value;

use crate::plan::GuestPlan;

/// Begin and end of a measurement, ticks; no end yet.
pub type Window = (u64, Option<u64>);

/// The facts of this run for reports, as JSON. `kernel`: the kernel stages that are measured, and when they were, ticks, if that was for
/// a time; `control`: the control socket, where `ringscope ctl` finds it.
pub fn facts(
    plan: &GuestPlan,
    (kernel, windows): (Option<&Value>, Option<&[Window]>),
    control: Option<&Path>,
) -> String {
    let cpus: Vec<_> = plan.workers.iter().filter_map(|worker| worker.cpu).collect();
    let probes: Vec<_> = plan.probes.iter().map(ToString::to_string).collect();
    serde_json::json!({
        "name": plan.name,
        "version": env!("CARGO_PKG_VERSION"),
        "datapath": plan.datapath.to_string(),
        "queue_pairs": plan.queue_pairs,
        "poll": plan.poll.to_string(),
        "cpus": cpus,
        "sched": plan.workers[0].fifo.map(|priority| format!("fifo:{priority}")),
        "trace": if plan.trace { "on" } else { "off" },
        "faults": plan.delays.len() + plan.crashes.len() + plan.faults.len(),
        "pcap": plan.capture,
        "limit_tx": plan.limits[1].map(|limit| limit.to_string()),
        "limit_rx": plan.limits[0].map(|limit| limit.to_string()),
        "trace_probe": probes,
        "kernel_stages": kernel,
        "kernel_windows": windows,
        // Text in any case: a recorder goes on although another socket is chosen.
        "control": control.map(|path| path.to_string_lossy()).unwrap_or_default(),
    })
    .to_string()
}
