//! The table of a direction's stages.

use comfy_table::{CellAlignment, Table, presets};

use crate::stages::{StageRow, Tier};
use crate::units::{grouped, percent, time};

pub const NOT_MEASURED: &str = "n/a";
/// The column of the time in which the worker did not run: after the mean, of which it is a part.
const NOT_RUNNING_AT: usize = 4;
/// Marks stages whose times are upper bounds.
pub const UPPER_BOUND: &str = "≤";

/// The stages with their total, and a column of the time in which the worker did not run where that was measured.
/// `is_polled`: some packets were found by polling.
pub fn stage_table(stages: &[StageRow], total: &StageRow, is_polled: bool) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let mut header = vec!["stage", "tier", "count", "mean", "p50", "p99", "max", "share"];
    let has_not_running = total.not_running_mean_ns.is_some();
    if has_not_running {
        header.insert(NOT_RUNNING_AT, "not running");
    }
    table.set_header(header);
    let total_ns = total.figures.map_or(0.0, |figures| figures.mean_ns);
    for row in stages.iter().filter(|row| !row.is_idle_limit()).chain([total]) {
        let mut cells = cells(row, total_ns, is_polled);
        if has_not_running {
            cells.insert(NOT_RUNNING_AT, row.not_running_mean_ns.map_or("-".into(), time));
        }
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{}\n", table.trim_fmt())
}

fn cells(row: &StageRow, total_ns: f64, is_polled: bool) -> Vec<String> {
    let is_bound = is_polled && matches!(row.stage, "notice" | "total");
    let mark = if is_bound { format!(" {UPPER_BOUND}") } else { String::new() };
    let mut cells = vec![format!("{}{mark}", row.stage), row.tier.name().to_owned()];
    match (row.count, row.figures) {
        (None, _) => cells.extend([NOT_MEASURED; 6].map(str::to_owned)),
        (Some(count), None) => {
            cells.push(grouped(count));
            cells.extend(["-"; 5].map(str::to_owned));
        }
        (Some(count), Some(figures)) => {
            cells.push(grouped(count));
            cells.push(time(figures.mean_ns));
            cells
                .extend([figures.p50_ns, figures.p99_ns, figures.max_ns].map(|ns| time(ns as f64)));
            // Times in the host kernel and the guest lie beside the daemon's stages, or within them.
            cells.push(match row.tier {
                Tier::D => percent(figures.mean_ns, total_ns),
                Tier::K | Tier::G => "-".into(),
            });
        }
    }
    cells
}
