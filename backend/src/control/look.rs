//! What `info` and `status` say.

use burst_trace::{Direction, DropCause, Reader, SocketEvent};
use datapath::Captured;
use serde_json::{Map, Value, json};
use virtio_net::{Negotiated, features};
use worker::{RingStanding, Standing};

use super::subject::Subject;
use crate::plan::EndpointPlan;

/// What a guest was started with.
pub fn plan(subject: &Subject) -> Value {
    let plan = &subject.plan;
    let (kind, endpoint) = match &plan.endpoint {
        EndpointPlan::Listen(path) => ("listens_on", json!(path)),
        EndpointPlan::Connect(path) => ("connects_to", json!(path)),
        EndpointPlan::Descriptor(fd) => ("serves_descriptor", json!(fd)),
    };
    let cpus: Vec<_> = plan.workers.iter().filter_map(|worker| worker.cpu).collect();
    let probes: Vec<_> = plan.probes.iter().map(ToString::to_string).collect();
    let faults = plan.crashes.len() + plan.faults.len();
    json!({
        "name": plan.name,
        kind: endpoint,
        "datapath": plan.datapath.to_string(),
        "queue_pairs": plan.queue_pairs,
        "queue_size": plan.queue_size,
        "mac": plan.mac.map(|mac| mac.to_string()),
        "mtu": plan.mtu,
        "withheld": features::names(plan.withheld),
        "poll": plan.poll.to_string(),
        "workers": plan.workers.len(),
        "cpus": cpus,
        "sched": plan.workers[0].fifo.map(|priority| format!("fifo:{priority}")),
        "recorder": plan.recorder,
        "trace": on_off(plan.trace),
        "trace_probe": probes,
        "kernel_stages": on_off(plan.kernel_stages),
        "pcap": plan.capture,
        "limit_tx": plan.limits[1].map(|limit| limit.to_string()),
        "limit_rx": plan.limits[0].map(|limit| limit.to_string()),
        "faults_planted": plan.delays.len() + faults,
    })
}

/// How a guest stands.
///
/// # Errors
/// When one of its workers does not answer.
pub fn status(subject: &Subject) -> Result<Value, String> {
    let (plan, reader) = (&subject.plan, subject.reader.as_ref());
    let standings = subject.standings()?;
    let mut rings: Vec<&RingStanding> = standings.iter().flat_map(|it| &it.rings).collect();
    rings.sort_by_key(|ring| ring.ring);
    let features = reader.map_or(0, |reader| reader.features());
    let mut status = json!({
        "name": plan.name,
        "datapath": plan.datapath.to_string(),
        "front_end": reader.and_then(|reader| reader.front_end()),
        "features": features::names(features),
        "restarts": reader.map(|reader| reader.restarts()),
        "rings": rings.into_iter().map(|it| ring(it, reader)).collect::<Vec<_>>(),
    });
    status["settings"] = standings.first().map(settings).unwrap_or_default();
    let measured = match &subject.way.kernel {
        Some(kernel) => kernel.states(),
        None => Some(on_off(plan.kernel_stages).into()),
    };
    status["settings"]["kernel-stages"] = measured.unwrap_or_else(|| "off".into());
    Ok(status)
}

/// The settings of a guest; they are the same in all of its workers.
pub fn settings(standing: &Standing) -> Value {
    let cyclic = standing.probes.cyclic.iter().map(ToString::to_string);
    let probes = standing.probes.udp_ports.iter().map(ToString::to_string).chain(cyclic);
    let delays = standing.delays.iter().map(ToString::to_string);
    let faults = delays.chain(standing.faults.iter().map(ToString::to_string));
    json!({
        "poll": standing.poll.to_string(),
        "trace": on_off(standing.trace),
        "probe": probes.collect::<Vec<_>>(),
        "fault": faults.collect::<Vec<_>>(),
        "capture": capture(standing.capture.as_ref()),
        "limit": {
            "tx": standing.limits[1].map(|limit| limit.to_string()),
            "rx": standing.limits[0].map(|limit| limit.to_string()),
        },
    })
}

/// A capture, or that there is none.
pub fn capture(captured: Option<&Captured>) -> Value {
    let Some(captured) = captured else { return "off".into() };
    json!({
        "file": captured.path,
        "size": captured.size,
        "bytes": captured.bytes,
        "frames": captured.frames,
        "left_out": captured.left_out,
        "failed": captured.has_failed,
    })
}

fn ring(standing: &RingStanding, reader: Option<&Reader>) -> Value {
    let direction = Direction::of_ring(standing.ring);
    let mut ring = json!({
        "ring": standing.ring,
        "queue_pair": standing.ring / 2,
        "direction": direction.name(),
        "state": standing.state,
    });
    if let Some(started) = &standing.started {
        let negotiated = Negotiated(started.features);
        ring["size"] = started.size.into();
        ring["format"] = if negotiated.packed() { "packed" } else { "split" }.into();
        ring["features"] = features::names(started.features).into();
        if negotiated.packed() {
            ring["next_descriptor"] = (started.next_available & 0x7fff).into();
            ring["wrap_counter"] = (started.next_available >> 15).into();
        } else {
            ring["next_available"] = started.next_available.into();
        }
        ring["kick"] = if started.has_kick { "descriptor" } else { "none: polled" }.into();
        ring["call"] = if started.has_call { "descriptor" } else { "none" }.into();
        ring["logs_dirty_pages"] = started.is_logging.into();
        ring["waits_for"] = started.waits_for.into();
    }
    if let Some(reader) = reader.filter(|it| usize::from(standing.ring) < it.queue_pairs() * 2) {
        count(&mut ring, standing.ring.into(), direction, reader);
    }
    ring
}

/// Adds the counters of virtqueue `at` since the daemon's start.
fn count(ring: &mut Value, at: usize, direction: Direction, reader: &Reader) {
    let totals = reader.totals(at);
    ring["packets"] = totals.packets.into();
    ring["bytes"] = totals.bytes.into();
    ring["bursts"] = totals.bursts.into();
    for (kind, count) in reader.notifications(at).iter() {
        ring[kind.name()] = count.into();
    }
    let drops = DropCause::ALL.iter().map(|cause| (cause.name(), reader.drops(at, *cause)));
    let drops: Map<String, Value> = some(drops);
    ring["drops"] = drops.into();
    let its = SocketEvent::ALL.into_iter().filter(|event| event.direction() == direction);
    let events: Map<String, Value> = some(its.map(|it| (it.name(), reader.events(at, it))));
    if !events.is_empty() {
        ring["af_xdp_events"] = events.into();
    }
}

/// Those that are not 0.
fn some(counts: impl Iterator<Item = (&'static str, u64)>) -> Map<String, Value> {
    counts
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| (name.into(), count.into()))
        .collect()
}

const fn on_off(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
}
