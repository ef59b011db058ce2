//! The page's data about probes that were joined from application to application.

use std::cmp::Reverse;

use serde::Serialize;

use crate::journey::rows::{Row, Times, bounds, round_trips, rows, tail};
use crate::journey::{GuestClock, Journey, Journeys, OneWays, Part};

/// Number of the slowest round trips in the page, each of which `#probe-RUN-SEQUENCE` opens.
pub const SLOWEST: usize = 200;
/// Most points of the time line.
const BINS: u64 = 600;

/// All round trips.
#[derive(Serialize)]
pub struct Trips {
    initiator: &'static str,
    lost: usize,
    unseen: usize,
    has_echo: bool,
    round_trip: Times,
    /// In the order of time; the remainder, if there is one, last.
    parts: Vec<PartTimes>,
    /// The errors of what lies between two clocks.
    bound: Times,
    /// How the guest's clock relates to the host's, if that is bounded.
    clock: Option<GuestClock>,
    clock_note: Option<&'static str>,
    /// `on`, or `n/a: ` and why; `null` if the agent was not asked for them.
    guest_stages: Option<String>,
    one_way: Option<OneWays>,
    mean: Option<Composition>,
    /// Of the round trips above the 99th percentile.
    tail: Option<Composition>,
    bins: Vec<Bin>,
    /// In the order of time.
    slowest: Vec<Trip>,
}

#[derive(Serialize)]
struct PartTimes {
    #[serde(flatten)]
    part: Part,
    #[serde(flatten)]
    times: Times,
}

/// The mean of each part, and the mean of the round trip, which is exactly their sum. A part that was not measured in a
/// round trip counts as 0 there, because its time is in another part of that round trip.
#[derive(Serialize)]
struct Composition {
    trips: usize,
    parts_ns: Vec<f64>,
    total_ns: f64,
}

/// A point of the time line.
#[derive(Default, Serialize)]
struct Bin {
    /// Seconds since the first probe was sent.
    at_s: f64,
    packets: u64,
    mean_ns: f64,
    max_ns: i64,
}

/// A slow round trip.
#[derive(Serialize)]
struct Trip {
    run: u32,
    sequence: u64,
    /// Time since the first probe was sent.
    start_ns: u64,
    total_ns: i64,
    bound_ns: i64,
    parts_ns: Vec<Option<i64>>,
}

impl Trips {
    pub fn new(joined: &Journeys) -> Self {
        let Journeys { initiator, journeys, unseen, lost, has_echo, .. } = joined;
        let all: Vec<_> = journeys.iter().collect();
        let first = journeys.iter().map(|it| it.sent_ns).min().unwrap_or(0);
        let part = |Row { part, times, .. }| PartTimes { part, times: Times::of(&times) };
        Self {
            initiator: initiator.name(),
            lost: *lost,
            unseen: *unseen,
            has_echo: *has_echo,
            round_trip: Times::of(&round_trips(joined)),
            parts: rows(joined).into_iter().map(part).collect(),
            bound: Times::of(&bounds(joined)),
            clock: joined.clock,
            clock_note: joined.clock_note,
            guest_stages: joined.guest_stages.in_words(),
            one_way: OneWays::of(joined),
            mean: composition(&all),
            tail: composition(&tail(joined)),
            bins: bins(&all, first),
            slowest: slowest(all, first),
        }
    }
}

fn composition(trips: &[&Journey]) -> Option<Composition> {
    let first = trips.first()?;
    let mean = |sum: i128| sum as f64 / trips.len() as f64;
    let sum_of = |n: usize| trips.iter().filter_map(|it| it.parts[n]).map(i128::from).sum();
    Some(Composition {
        trips: trips.len(),
        parts_ns: (0..first.parts.len()).map(|n| mean(sum_of(n))).collect(),
        total_ns: mean(trips.iter().map(|it| i128::from(it.round_trip_ns)).sum()),
    })
}

fn bins(trips: &[&Journey], first: u64) -> Vec<Bin> {
    let last = trips.iter().map(|it| it.sent_ns - first).max().unwrap_or(0);
    let bin_ns = last / BINS + 1;
    let mut bins: Vec<_> = (0..=last / bin_ns)
        .map(|n| Bin { at_s: (n * bin_ns) as f64 / 1e9, ..Bin::default() })
        .collect();
    for trip in trips {
        let n = usize::try_from((trip.sent_ns - first) / bin_ns).unwrap_or(usize::MAX);
        let Some(bin) = bins.get_mut(n) else { continue };
        bin.packets += 1;
        bin.mean_ns += (trip.round_trip_ns as f64 - bin.mean_ns) / bin.packets as f64;
        bin.max_ns = bin.max_ns.max(trip.round_trip_ns);
    }
    bins.retain(|bin| bin.packets > 0);
    bins
}

fn slowest(mut trips: Vec<&Journey>, first: u64) -> Vec<Trip> {
    trips.sort_by_key(|it| Reverse(it.round_trip_ns));
    trips.truncate(SLOWEST);
    trips.sort_by_key(|it| it.sent_ns);
    let trip = |it: &Journey| Trip {
        run: it.id.run,
        sequence: it.id.sequence,
        start_ns: it.sent_ns - first,
        total_ns: it.round_trip_ns,
        bound_ns: it.bound_ns,
        parts_ns: it.parts.clone(),
    };
    trips.into_iter().map(trip).collect()
}
