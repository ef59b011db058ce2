//! Joined round trips as a table, and as a JSON object.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::rows::{Row, Times, bounds, mean, quantile, round_trips, rows};
use super::stamps::GuestStages;
use super::{GUEST_INTERRUPT, GUEST_KICK, GuestClock, Journeys, OneWays, Part};
use crate::round_trip::Initiator;
use crate::units::{grouped, percent, time};

/// A table with notes, for a person to read.
#[must_use]
pub fn to_text(joined: &Journeys) -> String {
    let Journeys { initiator, journeys, unseen, lost, has_echo, .. } = joined;
    let (from, to) = match initiator {
        Initiator::Host => ("the host", "the guest"),
        Initiator::Guest => ("the guest", "the host"),
    };
    let count = grouped(journeys.len() as u64);
    let mut text =
        format!("{count} probes from {from} to {to} and back, joined packet by packet\n");
    if *lost > 0 {
        let _ = writeln!(text, "note: {} more did not come back", grouped(*lost as u64));
    }
    if *unseen > 0 {
        let unseen = grouped(*unseen as u64);
        let _ = writeln!(
            text,
            "note: {unseen} more are not in the recorder, or only one way (--trace-probe PORT?)"
        );
    }
    if !has_echo {
        let _ = writeln!(text, "note: without --echo the turn of {to} is not taken apart");
    }
    if let Some(note) = joined.clock_note {
        let _ = writeln!(text, "note: {note}");
    }
    if let GuestStages::NotAvailable(reason) = &joined.guest_stages {
        let _ = writeln!(text, "note: guest stages n/a: {reason}");
    }
    if journeys.is_empty() {
        return text;
    }
    let trips = round_trips(joined);
    let whole = mean(&trips).unwrap_or(0.0);
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "of",
        "stage",
        "tier",
        "count",
        "mean",
        "p50",
        "p99",
        "max",
        "share",
        "slowest 1 %",
    ]);
    let rows = rows(joined);
    for row in &rows {
        table.add_row(cells(row, whole * journeys.len() as f64));
    }
    let mut sum = vec!["".into(), "round trip".into(), "".into(), count];
    sum.extend(spread(&trips));
    sum.push(percent(whole, whole));
    table.add_row(sum);
    let ways = OneWays::of(joined);
    if let Some(OneWays { to_guest, from_guest, .. }) = &ways {
        table.add_row(way("to the guest", to_guest));
        table.add_row(way("from the guest", from_guest));
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let _ = writeln!(text, "\n{}", table.trim_fmt());
    text += &between_clocks(joined, &rows);
    if let Some(OneWays { bound_ns, .. }) = ways {
        let bound = time(bound_ns as f64);
        let _ = writeln!(text, "One way, from application to application, is known to {bound}.");
    }
    text
}

/// What is known of the time between the clocks.
fn between_clocks(joined: &Journeys, rows: &[Row]) -> String {
    let bounds = bounds(joined);
    let bound = |percent| quantile(&bounds, percent).map_or(0.0, |ns| ns as f64);
    let (p50, p99) = (time(bound(50)), time(bound(99)));
    let Some(GuestClock { relation, .. }) = joined.clock else {
        return format!(
            "\nThe parts of each packet add up to its round trip. The remainder lies between two clocks: interrupts and\n\
             drivers of the guest, and kicks; it is known to {p50} (p50) or {p99} (p99). No offset between the clocks is assumed.\n"
        );
    };
    // A probe that found the driver polling has no interrupt of its own.
    let into = if joined.guest_stages == GuestStages::Stamped {
        "until its interrupt"
    } else {
        "interrupt and driver"
    };
    let mut text = format!(
        "\nThe parts of each packet add up to its round trip. The time between the two clocks is guest-interrupt on the\n\
         way in ({into}) and guest-kick on the way out; each is known to {p50} (p50) or {p99} (p99).\n\
         The offset between the clocks is bounded by all probes (relation: {relation}), without assuming equal ways.\n"
    );
    for part in [GUEST_INTERRUPT, GUEST_KICK] {
        let times = rows.iter().find(|row| row.part == part).and_then(|row| mean(&row.times));
        if let Some(mean) = times.filter(|mean| *mean < bound(50)) {
            let (stage, most) = (part.stage, time(mean + bound(50)));
            let _ = writeln!(
                text,
                "The bound of {stage} is wider than its mean: it is at most {most}."
            );
        }
    }
    text
}

/// The row of one way.
fn way(name: &str, times: &Times) -> Vec<String> {
    let ns = |ns: Option<f64>| ns.map_or_else(|| "-".into(), time);
    let whole = |it: Option<i64>| ns(it.map(|ns| ns as f64));
    let count = grouped(times.count as u64);
    let spread = [ns(times.mean_ns), whole(times.p50_ns), whole(times.p99_ns), whole(times.max_ns)];
    ["one way".into(), name.into(), "".into(), count].into_iter().chain(spread).collect()
}

fn cells(row: &Row, whole_of_all: f64) -> Vec<String> {
    let mut cells =
        vec![row.part.side.name().to_owned(), row.part.stage.to_owned(), row.part.tier.to_owned()];
    match mean(&row.times) {
        None => cells.push("n/a".into()),
        Some(mean) => {
            cells.push(grouped(row.times.len() as u64));
            cells.extend(spread(&row.times));
            cells.push(percent(mean * row.times.len() as f64, whole_of_all));
            cells.push(row.tail_ns.map_or("-".into(), time));
        }
    }
    cells
}

fn spread(sorted: &[i64]) -> [String; 4] {
    let at = |percent| quantile(sorted, percent).map_or_else(|| "-".into(), |ns| time(ns as f64));
    [mean(sorted).map_or_else(|| "-".into(), time), at(50), at(99), at(100)]
}

#[derive(Serialize)]
struct Object<'a> {
    initiator: &'static str,
    lost: usize,
    unseen: usize,
    /// How the guest's clock relates to the host's, if that is bounded.
    clock: Option<GuestClock>,
    clock_note: Option<&'static str>,
    /// `on`, or `n/a: ` and why; `null` if the agent was not asked for them.
    guest_stages: Option<String>,
    one_way: Option<OneWays>,
    stages: Vec<Stage>,
    journeys: Vec<Line<'a>>,
}

#[derive(Serialize)]
struct Stage {
    #[serde(flatten)]
    part: Part,
    count: Option<usize>,
    mean_ns: Option<f64>,
    p50_ns: Option<i64>,
    p99_ns: Option<i64>,
    max_ns: Option<i64>,
}

#[derive(Serialize)]
struct Line<'a> {
    run: u32,
    sequence: u64,
    round_trip_ns: i64,
    bound_ns: i64,
    to_guest_ns: Option<i64>,
    from_guest_ns: Option<i64>,
    /// In the order of the stages.
    parts_ns: &'a [Option<i64>],
}

/// One JSON object: the stages, and for each round trip its time in each of them.
///
/// # Panics
/// Never: all keys are strings.
#[must_use]
pub fn to_json(joined: &Journeys) -> String {
    let stage = |Row { part, times, .. }: Row| Stage {
        part,
        count: (!times.is_empty()).then_some(times.len()),
        mean_ns: mean(&times),
        p50_ns: quantile(&times, 50),
        p99_ns: quantile(&times, 99),
        max_ns: times.last().copied(),
    };
    let lines = joined.journeys.iter().map(|journey| Line {
        run: journey.id.run,
        sequence: journey.id.sequence,
        round_trip_ns: journey.round_trip_ns,
        bound_ns: journey.bound_ns,
        to_guest_ns: journey.one_way.map(|ways| ways.to_guest_ns),
        from_guest_ns: journey.one_way.map(|ways| ways.from_guest_ns),
        parts_ns: &journey.parts,
    });
    let object = Object {
        initiator: joined.initiator.name(),
        lost: joined.lost,
        unseen: joined.unseen,
        clock: joined.clock,
        clock_note: joined.clock_note,
        guest_stages: joined.guest_stages.in_words(),
        one_way: OneWays::of(joined),
        stages: rows(joined).into_iter().map(stage).collect(),
        journeys: lines.collect(),
    };
    serde_json::to_string_pretty(&object).expect("an object with string keys")
}
