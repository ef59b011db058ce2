//! The results as one table, for a person to read.

mod launches;
mod others;

use std::fmt::Write as _;

use agent::Figures;
use comfy_table::{CellAlignment, Table, presets};
use report::journey::Side;
use report::units::{grouped, time};

use crate::capacity;
use crate::composition::Composition;
use crate::load::Pressure;
use crate::peer::PeerFacts;
use crate::results::{Obstacle, Results, Row};
use crate::talker::Talker;
use crate::{difference, verdict};

const HEADER: [&str; 13] = [
    "variant",
    "load",
    "n",
    "lost",
    "late",
    "min",
    "mean",
    "p50",
    "p99",
    "p99.9",
    "max",
    "stddev",
    "p50 of repeats",
];

/// What was measured, and where: two sentences.
pub(crate) fn head(results: &Results) -> [String; 2] {
    let Results { host, probes, .. } = results;
    let measured = format!(
        "Round trips of UDP probes, from talker to responder and back: {} bytes, one every {} us, {} a measurement.",
        probes.size,
        probes.interval_us,
        grouped(probes.count)
    );
    let guest = match results.accelerator.as_deref() {
        None => "no guests".to_owned(),
        Some("kvm") => "guests in QEMU with KVM".to_owned(),
        Some("tcg") => {
            "guests in QEMU without KVM: they are emulated, and their own share is larger than on hardware".to_owned()
        }
        Some("uml") => {
            "guests in User Mode Linux: programs in them are slow to wake up, up to 3 ms".to_owned()
        }
        Some(other) => format!("guests in {other}"),
    };
    [measured, format!("{}, {} CPUs, Linux {}; {guest}.", host.cpu, host.cpus, host.kernel)]
}

/// The table with its notes.
#[must_use]
pub fn to_text(results: &Results) -> String {
    let mut text = String::new();
    if !results.rows.is_empty() || results.nested.is_none() {
        text += &section(results);
    }
    if let Some(nested) = &results.nested {
        let before = if text.is_empty() { "" } else { "\n\n" };
        let _ = write!(text, "{before}{NESTED_HEAD}\n{}", section(nested));
    }
    text
}

/// What stands before the figures of an emulated machine.
pub(crate) const NESTED_HEAD: &str = "In an emulated machine (--nested): functional figures. They show that each variant works, and which way its frames go.\n\
     Its hardware is emulated, so they say nothing about the latency of any hardware; compare them with each other at most.";

/// The tables of one host.
fn section(results: &Results) -> String {
    let [measured, host] = head(results);
    let mut text = format!("{measured}\n{host}\n\n");
    text += &rows(results);
    text += &pressures(results);
    text += &ways(results);
    text += &others::to_text(results);
    text += &compositions(results);
    text += &capacity::table::to_text(&results.capacities);
    text += &launches::text(results);
    for Obstacle { variant, load, why } in &results.obstacles {
        let _ = writeln!(text, "\n{variant}, load {}: not measured: {why}", load.name());
    }
    text += &results.peer.as_ref().map_or_else(String::new, PeerFacts::to_text);
    for trouble in &results.troubles {
        let name = name(&trouble.variant, trouble.talker.unwrap_or_default());
        let _ = writeln!(text, "\n{name}: no figures, or fewer than asked for: {}", trouble.why);
    }
    // The verdicts are the last thing to read.
    text += &difference::to_text(&results.differences);
    text += &verdict::to_text(&results.verdicts);
    text
}

/// A variant's name, and how the talker was scheduled.
pub(crate) fn name(variant: &str, talker: Talker) -> String {
    match talker {
        Talker::Default => variant.into(),
        talker => format!("{variant}, talker {}", talker.name()),
    }
}

fn rows(results: &Results) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(HEADER);
    for row in &results.rows {
        table.add_row(cells(row));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{}\n", table.trim_fmt())
}

fn cells(row: &Row) -> Vec<String> {
    let mut cells = vec![
        name(&row.variant, row.talker),
        row.load.name().into(),
        grouped(row.sent as u64),
        grouped(row.lost as u64),
        grouped(row.late as u64),
    ];
    let Some(it) = &row.round_trip else {
        cells.resize(HEADER.len(), "-".into());
        return cells;
    };
    cells.extend(spread(it));
    let whole = |ns: u64| time(ns as f64);
    let spread = (row.repeat_p50_ns.iter().min(), row.repeat_p50_ns.iter().max());
    cells.push(match spread {
        (Some(&least), Some(&most)) if row.repeats > 1 => {
            format!("{} to {}", whole(least), whole(most))
        }
        _ => "-".into(),
    });
    cells
}

/// A sentence for each load of busy programs.
fn pressures(results: &Results) -> String {
    let mut text = String::new();
    for row in results.rows.iter().filter(|row| !row.pressure.is_empty()) {
        let took = |it: &Pressure| {
            format!("{:.0} % of CPU {}", 100.0 * it.cpu_seconds / it.seconds.max(1e-9), it.cpu)
        };
        let took: Vec<_> = row.pressure.iter().map(took).collect();
        let (variant, load) = (name(&row.variant, row.talker), row.load.name());
        let _ = writeln!(text, "{variant}, load {load}: busy programs took {}.", took.join(", "));
    }
    if text.is_empty() { text } else { format!("\n{text}") }
}

/// The times of one way, where they are known.
fn ways(results: &Results) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "variant", "load", "way", "n", "min", "mean", "p50", "p99", "p99.9", "max", "stddev",
        "known to",
    ]);
    for row in &results.rows {
        let both = [("to the responder", &row.to_responder), ("back", &row.to_talker)];
        for (way, figures) in both.iter().filter_map(|(way, it)| Some((way, it.as_ref()?))) {
            let mut cells = vec![
                name(&row.variant, row.talker),
                row.load.name().into(),
                (*way).into(),
                grouped(row.one_way_probes as u64),
            ];
            cells.extend(spread(figures));
            cells.push(match row.one_way_bound_ns {
                0 => "one clock".into(),
                ns => time(ns as f64),
            });
            table.add_row(cells);
        }
    }
    if table.row_iter().next().is_none() {
        return String::new();
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("\nOne way, where the clocks of both ends can be compared.\n\n{}\n", table.trim_fmt())
}

/// min, mean, p50, p99, p99.9, max and standard deviation.
fn spread(it: &Figures) -> [String; 7] {
    let whole = |ns: u64| time(ns as f64);
    [
        whole(it.min_ns),
        time(it.mean_ns),
        whole(it.p50_ns),
        whole(it.p99_ns),
        whole(it.p999_ns),
        whole(it.max_ns),
        time(it.stddev_ns),
    ]
}

/// Groups of parts, as the table shows them.
pub(crate) const GROUPS: [&str; 5] = ["host", "kernel", "ringscoped", "guest", "between"];

/// The group of a part: what the host kernel does for the daemon stands apart from the daemon's own stages.
pub(crate) const fn group(side: Side, is_kernel: bool) -> usize {
    match (side, is_kernel) {
        (Side::Host, _) => 0,
        (Side::Rx | Side::Tx, true) => 1,
        (Side::Rx | Side::Tx, false) => 2,
        (Side::Guest, _) => 3,
        (Side::Between, _) => 4,
    }
}

fn by_group(composition: &Composition) -> [f64; GROUPS.len()] {
    let mut sums = [0.0; GROUPS.len()];
    for share in &composition.shares {
        sums[group(share.side, share.tier == "K")] += share.mean_ns;
    }
    sums
}

fn compositions(results: &Results) -> String {
    let with: Vec<_> =
        results.rows.iter().filter_map(|row| Some((row, row.composition.as_ref()?))).collect();
    if with.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let mut header = vec!["variant", "load", "joined", "mean"];
    header.extend(GROUPS);
    header.push("known to");
    table.set_header(header);
    for (row, composition) in with {
        let mut cells = vec![
            name(&row.variant, row.talker),
            row.load.name().into(),
            grouped(composition.probes as u64),
            time(composition.round_trip_ns),
        ];
        let is_recorded = composition.shares.iter().any(|it| it.tier == "D");
        for (n, sum) in by_group(composition).into_iter().enumerate() {
            cells.push(if (1..=2).contains(&n) && !is_recorded { "-".into() } else { time(sum) });
        }
        cells.push(if is_recorded { time(composition.bound_ns) } else { "-".into() });
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!(
        "\nWhere the mean round trip went. The parts of a row add up to its mean.\n\n{}\n\n\
         host: the talker's program and kernel. kernel: until the worker and the guest's thread run. guest: its kernel\n\
         and program. between: what lies between two clocks, interrupts and drivers of the guest; without ringscoped,\n\
         also the back end and the wire.\n",
        table.trim_fmt()
    )
}
