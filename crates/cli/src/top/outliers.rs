//! The slowest bursts of the interval, and the stage in which each spent most time.

use ratatui::layout::Constraint;
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row, Table};

use report::Outlier;
use report::units::{grouped, percent, time, time_of_day};

use super::cells::{FIGURE_WIDTH, HEADING, right};

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
    let Outlier { record, rate, start_ns } = outlier;
    let direction = record.direction();
    let total = record.total();
    // A burst found by polling may have come at any time since the last poll that found nothing.
    let bound = if record.is_polled { "≤ " } else { "" };
    let stages = direction.stages().iter().zip(record.stages);
    let most = stages.max_by_key(|(_, ticks)| *ticks).map_or_else(String::new, |(stage, ticks)| {
        format!("{} {}", stage.name(), percent(ticks as f64, total as f64))
    });
    Row::new([
        Cell::from(time_of_day(*start_ns)),
        Cell::from(format!("{:<3}{}", record.ring, direction.name())),
        right(grouped(record.packets.into())),
        right(format!("{bound}{}", time(rate.ns(total) as f64))),
        Cell::from(Line::from(most)),
    ])
}
