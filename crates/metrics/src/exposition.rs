//! The metrics of all guests as OpenMetrics text.

use std::collections::HashSet;
use std::fmt;

use burst_trace::{
    Direction, DropCause, GroCounts, InterruptionCause, Notification, SocketEvent, Totals,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::guest::{BUCKETS_S, Guest};

type Labels = Vec<(&'static str, String)>;

/// A metric family: a name, and a value for each set of labels.
#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Counters(Vec<(Labels, u64)>),
    Seconds(Vec<(Labels, f64)>),
    Gauges(Vec<(Labels, f64)>),
    Histograms(Vec<(Labels, Histogram)>),
}

#[derive(Debug)]
struct Histogram {
    sum_s: f64,
    count: u64,
    /// Upper bound of each bucket, and its own count (not cumulative).
    buckets: Vec<(f64, u64)>,
}

/// The text of all metrics of `guests`.
///
/// # Errors
/// Never: writing to a string does not fail.
pub fn to_text(guests: &[Guest]) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("ringscope");
    registry.register_collector(Box::new(Families(families(guests))));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// The same metrics in the text format of Prometheus, 0.0.4
/// (<https://prometheus.io/docs/instrumenting/exposition_formats/>): a counter's family has the name of its samples, which
/// ends in `_total`, and there are no units and no end mark.
pub fn to_plain(open_metrics: &str) -> String {
    let counters: HashSet<&str> = open_metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        let about = ["# HELP ", "# TYPE "].into_iter().find_map(|mark| {
            let (name, rest) = line.strip_prefix(mark)?.split_once(' ')?;
            counters.contains(name).then(|| format!("{mark}{name}_total {rest}"))
        });
        text.push_str(about.as_deref().unwrap_or(line));
        text.push('\n');
    }
    text
}

fn families(guests: &[Guest]) -> Vec<Family> {
    let totals = |which: fn(&Totals) -> u64| {
        let of_ring = move |guest: &Guest, ring| {
            (of_queue(guest, ring), which(&guest.reader.totals(ring.into())))
        };
        let values =
            guests.iter().flat_map(|guest| rings(guest).map(move |ring| of_ring(guest, ring)));
        Values::Counters(values.collect())
    };
    let family = |name, help, values| Family { name, help, unit: None, values };
    let per_direction = |value: fn(&Guest, usize) -> u64| {
        let directions = |guest| {
            [0, 1].map(|direction| (of_direction(guest, direction), value(guest, direction)))
        };
        Values::Counters(guests.iter().flat_map(directions).collect())
    };
    let mut all = vec![
        family("packets", "Packets that went through", totals(|it| it.packets)),
        family("bytes", "Their bytes, without net headers", totals(|it| it.bytes)),
        family("bursts", "The bursts they came in", totals(|it| it.bursts)),
        family("drops", "Packets that went no further, by cause", Values::Counters(drops(guests))),
        family(
            "kicks",
            "Kicks of the guest that woke the worker up",
            Values::Counters(notifications(guests, &[(Notification::Kick, None)])),
        ),
        family(
            "calls",
            "Signals to the guest by outcome: sent, suppressed (it needs none) or refused by its call descriptor",
            Values::Counters(notifications(guests, &CALLS)),
        ),
        family(
            "af_xdp_events",
            "What the kernel counts of AF_XDP sockets besides lost frames",
            Values::Counters(events(guests)),
        ),
        family(
            "address_moves",
            "Addresses that moved between the guest's port of a switch and another one",
            Values::Counters(guests.iter().map(|it| (of_guest(it), moves(it))).collect()),
        ),
        family(
            "gro_frames",
            "Packets to the wire that were each made of several frames of the guest (GRO)",
            Values::Counters(gro(guests, |counts| counts.frames)),
        ),
        family(
            "gro_segments",
            "The guest's frames in them",
            Values::Counters(gro(guests, |counts| counts.segments)),
        ),
        family(
            "polled_packets",
            "Packets found by polling, whose stage notice is an upper bound, of those in the histograms",
            per_direction(|guest, direction| guest.directions[direction].polled_packets),
        ),
        family(
            "records_lost",
            "Records that were overwritten before they could be counted in the histograms",
            Values::Counters(guests.iter().map(|it| (of_guest(it), it.lost)).collect()),
        ),
        family(
            "build",
            "1, with what the daemon says of its run as labels",
            Values::Gauges(guests.iter().map(|it| (run(it), 1.0)).collect()),
        ),
    ];
    all.extend(restarts(guests));
    all.extend(times(guests));
    all
}

/// The families of restarts. They go on in the next daemon.
fn restarts(guests: &[Guest]) -> [Family; 2] {
    let family = |name, help, value: fn(&Guest) -> u64| {
        let values = guests.iter().map(|it| (of_guest(it), value(it)));
        Family { name, help, unit: None, values: Values::Counters(values.collect()) }
    };
    [
        family(
            "restarts",
            "Daemons in which the guest's rings went on where one before stood",
            |it| it.reader.restarts(),
        ),
        family("frames_sent_twice_max", "Most frames sent twice because of restarts", |it| {
            it.reader.sent_twice_max()
        }),
    ]
}

/// The families that are seconds.
fn times(guests: &[Guest]) -> [Family; 3] {
    let family = |name, help, values| Family { name, help, unit: Some(Unit::Seconds), values };
    [
        family(
            "start_time",
            "When the daemon started",
            Values::Gauges(guests.iter().map(|it| (of_guest(it), start_s(it))).collect()),
        ),
        family(
            "stage",
            "Time of a packet in a stage of the daemon's (tier D), in all of them (total), and in the host kernel (tier K)",
            Values::Histograms(guests.iter().flat_map(histograms).collect()),
        ),
        family(
            "interrupted",
            "Time in which threads did not run, by cause: a worker's in its bursts, the front end's at any time",
            Values::Seconds(guests.iter().flat_map(interrupted).collect()),
        ),
    ]
}

fn rings(guest: &Guest) -> impl Iterator<Item = u16> + use<> {
    0..u16::try_from(guest.reader.queue_pairs() * 2).unwrap_or(u16::MAX)
}

fn of_guest(guest: &Guest) -> Labels {
    vec![("guest", guest.name.clone())]
}

fn of_direction(guest: &Guest, direction: usize) -> Labels {
    vec![
        ("guest", guest.name.clone()),
        ("direction", guest.directions[direction].direction.name().into()),
    ]
}

fn of_queue(guest: &Guest, ring: u16) -> Labels {
    vec![
        ("guest", guest.name.clone()),
        ("direction", Direction::of_ring(ring).name().into()),
        ("queue", ring.to_string()),
    ]
}

/// All drop causes of the queue's direction. A cause without drops is 0, so that its first drop shows as a change.
fn drops(guests: &[Guest]) -> Vec<(Labels, u64)> {
    let mut drops = Vec::new();
    for (guest, ring) in guests.iter().flat_map(|guest| rings(guest).map(move |ring| (guest, ring)))
    {
        let direction = Direction::of_ring(ring).name();
        for cause in DropCause::ALL {
            let count = guest.reader.drops(ring.into(), *cause);
            if count > 0 || cause.name().starts_with(direction) {
                let mut labels = of_queue(guest, ring);
                labels.push(("cause", cause.name().into()));
                drops.push((labels, count));
            }
        }
    }
    drops
}

/// The outcomes of a call, as values of a label.
const CALLS: [(Notification, Option<&str>); 3] = [
    (Notification::CallSent, Some("sent")),
    (Notification::CallSuppressed, Some("suppressed")),
    (Notification::CallRefused, Some("refused")),
];

fn notifications(
    guests: &[Guest],
    kinds: &[(Notification, Option<&'static str>)],
) -> Vec<(Labels, u64)> {
    let queues = guests.iter().flat_map(|guest| rings(guest).map(move |ring| (guest, ring)));
    let counts = queues.flat_map(|(guest, ring)| {
        let counted = guest.reader.notifications(ring.into());
        kinds.iter().map(move |&(kind, outcome)| {
            let mut labels = of_queue(guest, ring);
            labels.extend(outcome.map(|outcome| ("outcome", outcome.into())));
            (labels, counted.of(kind))
        })
    });
    counts.collect()
}

fn events(guests: &[Guest]) -> Vec<(Labels, u64)> {
    let of_ring = |guest: &Guest, ring: u16, event: SocketEvent| {
        let mut labels = of_queue(guest, ring);
        labels.push(("event", event.name().into()));
        (labels, guest.reader.events(ring.into(), event))
    };
    let mut events = Vec::new();
    for guest in guests {
        for ring in rings(guest) {
            let own = |event: &SocketEvent| event.direction() == Direction::of_ring(ring);
            let all = SocketEvent::ALL.into_iter().filter(own);
            events.extend(all.map(|event| of_ring(guest, ring, event)));
        }
    }
    events
}

fn gro(guests: &[Guest], value: fn(GroCounts) -> u64) -> Vec<(Labels, u64)> {
    let of_guest = |guest: &Guest| {
        let of_rings = rings(guest).map(|ring| guest.reader.gro(ring.into()));
        value(of_rings.fold(GroCounts::default(), GroCounts::plus))
    };
    guests.iter().map(|guest| (self::of_guest(guest), of_guest(guest))).collect()
}

fn moves(guest: &Guest) -> u64 {
    rings(guest).map(|ring| guest.reader.moves(ring.into())).sum()
}

/// Nothing where it is not measured.
fn interrupted(guest: &Guest) -> Vec<(Labels, f64)> {
    let rate = guest.reader.ticks_per_second() as f64;
    let times = guest.interrupted.iter().flat_map(|it| it.times(guest.sees_exits));
    let of = |(cause, subject, ticks): (InterruptionCause, &str, u64)| {
        let mut labels = of_guest(guest);
        labels.extend([("cause", cause.name().into()), ("subject", subject.into())]);
        (labels, ticks as f64 / rate)
    };
    times.map(of).collect()
}

fn start_s(guest: &Guest) -> f64 {
    guest.reader.anchor_start().realtime_ns as f64 / 1e9
}

fn run(guest: &Guest) -> Labels {
    let mut labels = of_guest(guest);
    for name in ["version", "datapath", "poll"] {
        let value = guest.facts.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
        labels.push((name, value.into()));
    }
    labels
}

fn histograms(guest: &Guest) -> Vec<(Labels, Histogram)> {
    let rate = guest.reader.ticks_per_second() as f64;
    let mut all = Vec::new();
    for (n, direction) in guest.directions.iter().enumerate() {
        let own = direction.times.iter().map(|(name, times)| (*name, "D", times));
        // Kernel stages that are not measured here are left out.
        let kernel = direction.kernel.iter().filter(|(_, times)| times.packets > 0);
        let kernel = kernel.map(|(stage, times)| (stage.name(), "K", times));
        for (name, tier, times) in own.chain(kernel) {
            let mut labels = of_direction(guest, n);
            labels.push(("tier", tier.into()));
            labels.push(("stage", name.into()));
            let ends = BUCKETS_S.into_iter().chain([f64::MAX]);
            all.push((
                labels,
                Histogram {
                    sum_s: times.ticks as f64 / rate,
                    count: times.packets,
                    buckets: ends.zip(times.counts).collect(),
                },
            ));
        }
    }
    all
}

/// All families, as `prometheus_client` collects them.
#[derive(Debug)]
struct Families(Vec<Family>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Family { name, help, unit, values } in &self.0 {
            let kind = match values {
                Values::Counters(_) | Values::Seconds(_) => MetricType::Counter,
                Values::Gauges(_) => MetricType::Gauge,
                Values::Histograms(_) => MetricType::Histogram,
            };
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
            match values {
                Values::Counters(values) => {
                    for (labels, value) in values {
                        family
                            .encode_family(labels)?
                            .encode_counter::<NoLabelSet, _, u64>(value, None)?;
                    }
                }
                Values::Seconds(values) => {
                    for (labels, value) in values {
                        family
                            .encode_family(labels)?
                            .encode_counter::<NoLabelSet, _, u64>(value, None)?;
                    }
                }
                Values::Gauges(values) => {
                    for (labels, value) in values {
                        family.encode_family(labels)?.encode_gauge(value)?;
                    }
                }
                Values::Histograms(values) => {
                    for (labels, it) in values {
                        let Histogram { sum_s, count, buckets } = it;
                        family
                            .encode_family(labels)?
                            .encode_histogram::<NoLabelSet>(*sum_s, *count, buckets, None)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_names_counters_as_their_samples() {
        let open_metrics = "# HELP ringscope_packets Packets.\n# TYPE ringscope_packets counter\n\
                            ringscope_packets_total{name=\"a\"} 1\n# HELP ringscope_stage_seconds Time.\n\
                            # TYPE ringscope_stage_seconds histogram\n# UNIT ringscope_stage_seconds seconds\n\
                            ringscope_stage_seconds_sum 0.5\n# EOF\n";
        let expected = "# HELP ringscope_packets_total Packets.\n# TYPE ringscope_packets_total counter\n\
                        ringscope_packets_total{name=\"a\"} 1\n# HELP ringscope_stage_seconds Time.\n\
                        # TYPE ringscope_stage_seconds histogram\nringscope_stage_seconds_sum 0.5\n";
        assert_eq!(to_plain(open_metrics), expected);
    }
}
