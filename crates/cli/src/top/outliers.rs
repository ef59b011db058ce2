//! The slowest bursts of the interval, the stage in which each spent most time, and who interrupted its worker.

use ratatui::layout::Constraint;
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row, Table};

use burst_trace::InterruptionCause;
use report::units::{grouped, percent, time, time_of_day};
use report::{Outlier, causes};

use super::cells::{FIGURE_WIDTH, HEADING, right};

/// An interruption is shown if this many times its length is at least its burst's.
const WORTH: u128 = 10;
/// Lines of the heading.
const HEADING_LINES: u16 = 1;

/// Lines of the table for these bursts.
#[must_use]
pub fn height(outliers: &[Outlier]) -> u16 {
    HEADING_LINES + super::cells::lines(outliers.len().max(1))
}

/// A line for each burst, the slowest first.
#[must_use]
pub fn table(outliers: &[Outlier]) -> Table<'static> {
    let mut rows: Vec<_> = outliers.iter().map(row).collect();
    if rows.is_empty() {
        rows.push(Row::new(["no bursts"]));
    }
    let headings = ["packets", "total"].map(|heading| right(heading.into()));
    let header = ["slowest at, UTC", "queue"].map(Cell::from).into_iter().chain(headings);
    let header = header.chain(["most of it in".into()]);
    let widths = [
        Constraint::Length(15),
        Constraint::Length(9),
        Constraint::Length(FIGURE_WIDTH),
        Constraint::Length(FIGURE_WIDTH + 2),
        Constraint::Fill(1),
    ];
    Table::new(rows, widths).header(Row::new(header).style(HEADING))
}

fn row(outlier: &Outlier) -> Row<'static> {
    let Outlier { record, rate, start_ns, .. } = outlier;
    let direction = record.direction();
    let total = record.total();
    // A burst found by polling may have come at any time since the last poll that found nothing.
    let bound = if record.is_polled { "≤ " } else { "" };
    let stages = direction.stages().iter().zip(record.stages);
    let most = stages.max_by_key(|(_, ticks)| *ticks).map_or_else(String::new, |(stage, ticks)| {
        format!("{} {}", stage.name(), percent(ticks as f64, total as f64))
    });
    let most = match interrupted(outlier) {
        Some(by) => format!("{by}, in {most}"),
        None => most,
    };
    Row::new([
        Cell::from(time_of_day(*start_ns)),
        Cell::from(format!("{:<3}{}", record.ring, direction.name())),
        right(grouped(record.packets.into())),
        right(format!("{bound}{}", time(rate.ns(total) as f64))),
        Cell::from(Line::from(most)),
    ])
}

/// What interrupted the burst's worker, if it took a good part of the burst. A message of a BPF program has no length of its
/// own.
fn interrupted(outlier: &Outlier) -> Option<String> {
    let most = outlier.interrupted?.most?;
    let is_worth = most.ticks.saturating_mul(WORTH) >= u128::from(outlier.record.total());
    let is_printk = most.longest.cause == InterruptionCause::Printk;
    (is_worth || is_printk).then(|| causes::in_short(&most.longest))
}
