//! Restarts of the daemon, and take-overs: how long no burst was carried, and whose part of that time is how long.

use std::fmt::Write as _;

use burst_trace::{Ending, Restart, RestartParts};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::figures::TickRate;
use crate::units::{grouped, time, time_of_day};
use crate::when::When;

/// Most restarts in a report: the latest ones.
const ROWS_MAX: usize = 32;

/// A restart of the daemon, or a take-over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RestartRow {
    /// `CLOCK_REALTIME` at the end of the last burst before it; at a take-over, when its rings were stopped: nanoseconds
    /// since 1970.
    pub start_ns: u64,
    /// Time from there to the end of the first burst after it, ns: the sum of its parts.
    pub gap_ns: u64,
    /// Until the new daemon's socket was there; at a take-over, until the first ring was started.
    pub no_daemon_ns: u64,
    /// From then until the front end had the first ring started.
    pub front_end_ns: u64,
    /// From then until the first burst was carried.
    pub first_burst_ns: u64,
    /// Whether the daemon before was killed or crashed; else it ended in order, or was taken over from.
    pub killed: bool,
    /// Whether the daemon took over from the one before.
    pub taken_over: bool,
    /// The process of the daemon before; 0 if it is not known.
    pub process_before: u32,
    /// The process of the daemon after.
    pub process: u32,
    /// Whether rings continued at the position of the previous daemon. If not, the guest or its driver had started again.
    pub resumed: bool,
}

impl RestartRow {
    /// The row of `restart`.
    #[must_use]
    pub fn new(restart: &Restart, rate: TickRate, when: When) -> Self {
        let RestartParts { no_daemon, front_end, .. } = restart.parts();
        // Ends are rounded, not parts, so the parts add up.
        let [first, second, gap] =
            [no_daemon, no_daemon + front_end, restart.total()].map(|ticks| rate.ns(ticks));
        Self {
            start_ns: when.realtime_ns(restart.before),
            gap_ns: gap,
            no_daemon_ns: first,
            front_end_ns: second - first,
            first_burst_ns: gap - second,
            killed: restart.ending == Ending::Killed,
            taken_over: restart.ending == Ending::TakenOver,
            process_before: restart.processes[0],
            process: restart.processes[1],
            resumed: restart.is_resumed,
        }
    }

    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        if self.taken_over { "take-over" } else { "restart" }
    }

    /// How the daemon before ended.
    #[must_use]
    pub const fn ending(&self) -> &'static str {
        match (self.killed, self.taken_over) {
            (true, _) => "killed",
            (false, true) => "taken over",
            (false, false) => "ended",
        }
    }

    /// How the daemon before ended, and whether the rings went on: `killed, rings went on`.
    #[must_use]
    pub fn words(&self) -> String {
        let rings = if self.resumed { "rings went on" } else { "rings started again" };
        format!("{}, {rings}", self.ending())
    }

    /// The processes before and after it: `17 to 23`. Nothing if they are not known.
    #[must_use]
    pub fn processes(&self) -> String {
        match (self.process_before, self.process) {
            (0, _) | (_, 0) => String::new(),
            (before, after) => format!("{before} to {after}"),
        }
    }
}

/// The restarts in some records.
#[derive(Clone, Debug, Default)]
pub(crate) struct Restarts(Vec<Restart>);

impl Restarts {
    pub(crate) fn add(&mut self, restart: &Restart) {
        self.0.push(*restart);
        if self.0.len() > ROWS_MAX {
            let oldest = (0..self.0.len()).min_by_key(|&n| self.0[n].after).unwrap_or(0);
            self.0.swap_remove(oldest);
        }
    }

    /// The latest ones, in the order of time.
    pub(crate) fn rows(mut self, rate: TickRate, when: When) -> Vec<RestartRow> {
        self.0.sort_by_key(|restart| restart.after);
        self.0.iter().map(|restart| RestartRow::new(restart, rate, when)).collect()
    }
}

/// A table of `rows`, and what was counted. Nothing if there was no restart.
pub(crate) fn to_text(rows: &[RestartRow], restarted: u64, sent_twice_max: u64) -> String {
    let mut text = String::new();
    if restarted > 0 {
        let (restarted, frames) = (grouped(restarted), grouped(sent_twice_max));
        let _ = writeln!(
            text,
            "\nrestarted: {restarted}, rings went on in another daemon; frames sent twice: at most {frames}"
        );
    }
    if rows.is_empty() {
        return text;
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "",
        "since (UTC)",
        "gap",
        "no daemon",
        "front end",
        "first burst",
        "the daemon before",
        "process",
    ]);
    for row in rows {
        let times = [row.gap_ns, row.no_daemon_ns, row.front_end_ns, row.first_burst_ns];
        let mut cells = vec![row.kind().to_owned(), time_of_day(row.start_ns)];
        cells.extend(times.map(|ns| time(ns as f64)));
        cells.extend([row.words(), row.processes()]);
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(2).take(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let _ = writeln!(text, "\n{}", table.trim_fmt());
    text
}

#[cfg(test)]
mod tests {
    use burst_trace::Anchor;

    use super::*;

    const RATE: u64 = 2_000_000_000;

    fn restart(before: u64) -> Restart {
        Restart {
            before,
            listening: before + 5,
            started: before + 10,
            after: before + 21,
            ending: Ending::Killed,
            is_resumed: true,
            processes: [17, 23],
            writer: 0,
        }
    }

    fn when() -> When {
        When::new(Anchor::default(), 1e9 / RATE as f64)
    }

    #[test]
    fn rounded_parts_add_up() {
        let row = RestartRow::new(&restart(1000), TickRate::new(RATE), when());
        let parts = row.no_daemon_ns + row.front_end_ns + row.first_burst_ns;
        assert_eq!((row.start_ns, row.gap_ns, parts), (500, row.gap_ns, row.gap_ns));
        assert_eq!(row.words(), "killed, rings went on");
        assert_eq!(row.processes(), "17 to 23");
        let taken_over = Restart { ending: Ending::TakenOver, ..restart(1000) };
        let row = RestartRow::new(&taken_over, TickRate::new(RATE), when());
        assert_eq!((row.killed, row.words().as_str()), (false, "taken over, rings went on"));
    }

    #[test]
    fn of_many_restarts_the_latest_are_kept_in_order() {
        let mut restarts = Restarts::default();
        for n in [7, 3, 99, 1].into_iter().chain(8..90) {
            restarts.add(&restart(n * 1000));
        }
        let rows = restarts.rows(TickRate::new(RATE), when());
        assert_eq!(rows.len(), ROWS_MAX);
        assert!(rows.is_sorted_by_key(|row| row.start_ns));
        assert_eq!(rows[ROWS_MAX - 1].start_ns, 49_500);
        assert_eq!(
            to_text(&rows, 40, 7)
                .lines()
                .filter(|line| line.trim_start().starts_with("restart "))
                .count(),
            32
        );
        assert!(to_text(&[], 0, 0).is_empty());
    }
}
