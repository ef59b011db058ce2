//! The agent's probes and those of other programs, side by side.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use agent::Figures;
use comfy_table::{CellAlignment, Table, presets};
use report::units::{grouped, time};

use super::name;
use crate::others::{FACTOR, Other, Way};
use crate::plan::OtherProbe;
use crate::results::{Results, Row};

/// The table and its sentences; empty without other programs.
pub(super) fn to_text(results: &Results) -> String {
    if results.rows.iter().all(|row| row.others.is_empty()) {
        return String::new();
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "variant", "load", "probe", "way", "n", "lost", "min", "mean", "p50", "p99", "max",
        "stddev",
    ]);
    for row in &results.rows {
        for way in [Way::RoundTrip, Way::ToResponder] {
            let others: Vec<_> = row.others.iter().filter(|it| it.way == way).collect();
            if others.iter().any(|it| it.sent > 0) {
                table.add_row(agent(row, way));
            }
            for other in others.iter().filter(|it| it.sent > 0) {
                let name = other.probe.name();
                table.add_row(cells(
                    row,
                    name,
                    way,
                    other.sent,
                    other.lost,
                    other.figures.as_ref(),
                ));
            }
        }
    }
    for column in table.column_iter_mut().skip(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!(
        "\nThe same way, measured by other programs.\n\n{}\n{}{}",
        table.trim_fmt(),
        differences(results),
        troubles(results)
    )
}

fn agent(row: &Row, way: Way) -> Vec<String> {
    match way {
        Way::RoundTrip => cells(row, "agent", way, row.sent, row.lost, row.round_trip.as_ref()),
        Way::ToResponder => cells(row, "agent", way, row.sent, row.lost, row.to_responder.as_ref()),
    }
}

fn cells(
    row: &Row,
    probe: &str,
    way: Way,
    sent: usize,
    lost: usize,
    figures: Option<&Figures>,
) -> Vec<String> {
    let mut cells = vec![
        name(&row.variant, row.talker),
        row.load.name().into(),
        probe.into(),
        way.name().into(),
        grouped(sent as u64),
        grouped(lost as u64),
    ];
    let spread = figures.map(|it| {
        let [min, p50, p99, max] = [it.min_ns, it.p50_ns, it.p99_ns, it.max_ns].map(|it| it as f64);
        [min, it.mean_ns, p50, p99, max, it.stddev_ns].map(time)
    });
    cells.extend(spread.unwrap_or_else(|| [(); 6].map(|()| "-".into())));
    cells
}

/// A sentence for each program whose median differs from the agent's: where, and why.
fn differences(results: &Results) -> String {
    let mut by_probe = BTreeMap::<OtherProbe, Vec<String>>::new();
    for (row, other) in all(results).filter(|(_, other)| other.differs) {
        let agent = match other.way {
            Way::RoundTrip => &row.round_trip,
            Way::ToResponder => &row.to_responder,
        };
        if let Some((agent, other_figures)) = agent.as_ref().zip(other.figures.as_ref()) {
            let [this, that] = [other_figures, agent].map(|it| time(it.p50_ns as f64));
            let line = format!("{}: {this}, agent {that}", place(row));
            by_probe.entry(other.probe).or_default().push(line);
        }
    }
    let bound = if results.repeats > 1 {
        "by more than repeats differ".to_owned()
    } else {
        format!("by a factor of more than {FACTOR}")
    };
    let mut text = String::new();
    for (probe, lines) in by_probe {
        let (program, why) = (probe.name(), probe.difference());
        let _ = write!(
            text,
            "\nThe median of {program} differs from the agent's {bound}:\n  {}\n{why}\n",
            lines.join("\n  ")
        );
    }
    text
}

/// Each reason why a program has no figures, with the places that it holds for.
fn troubles(results: &Results) -> String {
    let mut by_reason = BTreeMap::<(OtherProbe, &str), Vec<String>>::new();
    for (row, other) in all(results) {
        if let Some(why) = &other.trouble {
            let place = place(row);
            by_reason.entry((other.probe, why)).or_default().push(place);
        }
    }
    let mut text = String::new();
    for ((probe, why), places) in by_reason {
        let _ = writeln!(
            text,
            "\n{}: no figures, or fewer than the agent's, in {}: {why}",
            probe.name(),
            places.join("; ")
        );
    }
    text
}

fn place(row: &Row) -> String {
    format!("{}, load {}", name(&row.variant, row.talker), row.load.name())
}

fn all(results: &Results) -> impl Iterator<Item = (&Row, &Other)> {
    results.rows.iter().flat_map(|row| row.others.iter().map(move |other| (row, other)))
}
