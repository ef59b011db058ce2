//! Moves of a guest from host to host: how long no burst was carried, and what each host knows of that time.

use std::fmt::Write as _;

use burst_trace::{Clocks, Migration, MigrationParts};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::figures::TickRate;
use crate::units::{time, time_of_day};
use crate::when::When;

/// Most migrations in a report: the latest ones.
const ROWS_MAX: usize = 32;
/// A time that is not known, in a table.
const UNKNOWN: &str = "-";

/// A move of the guest. Times that are not known are `None`. Each is of one host, but `gap_ns` and `between_hosts_ns`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MigrationRow {
    /// `CLOCK_REALTIME` of the host before at the end of its last burst: nanoseconds since 1970.
    pub start_ns: u64,
    /// Time from there to the end of the first burst on the next host, ns. `None` if the hosts' clocks are not related.
    pub gap_ns: Option<u64>,
    /// Largest error of `gap_ns` and `between_hosts_ns`; 0 if both hosts have one clock.
    pub error_ns: Option<u64>,
    /// Why there is no gap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_gap: Option<&'static str>,
    /// From the last burst until the front end had stopped the last ring.
    pub rings_stopped_ns: Option<u64>,
    /// From then until the first ring was started on the next host.
    pub between_hosts_ns: Option<u64>,
    /// From then until the end of the first burst.
    pub first_burst_ns: Option<u64>,
    /// From the start of the first ring until the end of the first burst that the guest sent.
    pub first_sent_ns: Option<u64>,
    /// From the start of the first ring until the guest was announced.
    pub announced_ns: Option<i64>,
    /// From the connection of the new front end until the first ring was started.
    pub front_end_waited_ns: Option<i64>,
    /// From the last burst until the front end before was gone.
    pub front_end_left_ns: Option<i64>,
}

impl MigrationRow {
    /// The row of `migration`.
    #[must_use]
    pub fn new(migration: &Migration, rate: TickRate, when: When) -> Self {
        let &Migration { before, stopped, left, connected, started, announced, sent, .. } =
            migration;
        let MigrationParts { stopping, between, first_burst } = migration.parts();
        let (error_ns, no_gap) = match migration.clocks {
            Clocks::Same => (Some(0), None),
            Clocks::Within(us) => (Some(u64::from(us) * 1000), None),
            Clocks::Unknown => (None, Some(NOT_SYNCHRONISED)),
        };
        let is_related = no_gap.is_none();
        // Ends are rounded, not parts, so the parts add up.
        let first = rate.ns(stopping.unwrap_or(0));
        let second = rate.ns(stopping.unwrap_or(0) + between);
        let gap = rate.ns(migration.total());
        let from_to = |from: u64, to: u64| (from != 0 && to != 0).then(|| signed(rate, from, to));
        Self {
            start_ns: when.realtime_ns(before),
            gap_ns: is_related.then_some(gap),
            error_ns,
            no_gap,
            rings_stopped_ns: stopping.map(|_| first),
            between_hosts_ns: is_related.then_some(second - first),
            // Without a relation the end of `between` is not known, but this part is the next host's alone.
            first_burst_ns: match is_related {
                true => first_burst.map(|_| gap - second),
                false => (started != 0).then(|| rate.ns(migration.after.saturating_sub(started))),
            },
            first_sent_ns: (started != 0 && sent != 0)
                .then(|| rate.ns(sent.saturating_sub(started))),
            announced_ns: from_to(started, announced),
            front_end_waited_ns: from_to(connected, started),
            front_end_left_ns: from_to(before, left),
        }
        .without_stop_before(before, stopped)
    }

    /// Rings that were stopped before the last burst, in a forged file, say nothing.
    fn without_stop_before(mut self, before: u64, stopped: u64) -> Self {
        if stopped < before {
            self.rings_stopped_ns = None;
        }
        self
    }

    /// The gap with its error, as in `312 ms`, `312 ms ± 4.1 ms`, or why there is none.
    #[must_use]
    pub fn gap(&self) -> String {
        match (self.gap_ns, self.error_ns) {
            (Some(gap), Some(error)) if error > 0 => {
                format!("{} ± {}", time(gap as f64), time(error as f64))
            }
            (Some(gap), _) => time(gap as f64),
            (None, _) => "not known".into(),
        }
    }
}

/// Why two hosts have no time in common.
const NOT_SYNCHRONISED: &str = "the two hosts' clocks cannot be compared: they are of different boots, and for one of them the kernel \
                                does not know the error of CLOCK_REALTIME (nothing synchronised it: run an NTP or PTP client on both)";

fn signed(rate: TickRate, from: u64, to: u64) -> i64 {
    let ns = i64::try_from(rate.ns(from.abs_diff(to))).unwrap_or(i64::MAX);
    if to < from { -ns } else { ns }
}

/// The migrations in some records.
#[derive(Clone, Debug, Default)]
pub(crate) struct Migrations(Vec<Migration>);

impl Migrations {
    pub(crate) fn add(&mut self, migration: &Migration) {
        self.0.push(*migration);
        if self.0.len() > ROWS_MAX {
            let oldest = (0..self.0.len()).min_by_key(|&n| self.0[n].after).unwrap_or(0);
            self.0.swap_remove(oldest);
        }
    }

    /// The latest ones, in the order of time.
    pub(crate) fn rows(mut self, rate: TickRate, when: When) -> Vec<MigrationRow> {
        self.0.sort_by_key(|migration| migration.after);
        self.0.iter().map(|migration| MigrationRow::new(migration, rate, when)).collect()
    }
}

/// A table of `rows`. Nothing if there was no migration.
pub(crate) fn to_text(rows: &[MigrationRow]) -> String {
    let mut text = String::new();
    if rows.is_empty() {
        return text;
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let names = ["gap", "rings stopped", "between hosts", "first burst"];
    let of_start = ["announced", "first sent"];
    table.set_header(["", "last burst (UTC)"].into_iter().chain(names).chain(of_start));
    for row in rows {
        let known = |ns: Option<u64>| ns.map_or(UNKNOWN.into(), |ns| time(ns as f64));
        let mut cells = vec!["migration".to_owned(), time_of_day(row.start_ns), row.gap()];
        let parts = [row.rings_stopped_ns, row.between_hosts_ns, row.first_burst_ns];
        cells.extend(parts.map(known));
        cells.push(row.announced_ns.map_or(UNKNOWN.into(), |ns| time(ns as f64)));
        cells.push(known(row.first_sent_ns));
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let _ = writeln!(text, "\n{}", table.trim_fmt());
    text += "announced, first sent: after the start of the first ring\n";
    if let Some(why) = rows.iter().find_map(|row| row.no_gap) {
        let _ = writeln!(text, "no gap: {why}");
    }
    text
}

#[cfg(test)]
mod tests {
    use burst_trace::Anchor;

    use super::*;

    const RATE: u64 = 2_000_000_000;

    fn migration(clocks: Clocks) -> Migration {
        Migration {
            before: 2001,
            stopped: 3000,
            left: 9000,
            connected: 1000,
            started: 5000,
            announced: 5200,
            after: 6003,
            sent: 7000,
            clocks,
            writer: 0,
        }
    }

    fn row(clocks: Clocks) -> MigrationRow {
        let when = When::new(Anchor::default(), 1e9 / RATE as f64);
        MigrationRow::new(&migration(clocks), TickRate::new(RATE), when)
    }

    #[test]
    fn rounded_parts_add_up_and_each_host_says_what_it_knows() {
        let row = row(Clocks::Same);
        let parts = [row.rings_stopped_ns, row.between_hosts_ns, row.first_burst_ns];
        assert_eq!(parts.into_iter().flatten().sum::<u64>(), 2001);
        assert_eq!((row.gap_ns, row.error_ns, row.no_gap), (Some(2001), Some(0), None));
        assert_eq!((row.announced_ns, row.first_sent_ns), (Some(100), Some(1000)));
        assert_eq!((row.front_end_waited_ns, row.front_end_left_ns), (Some(2000), Some(3500)));
        let text = to_text(&[row]);
        assert_eq!(
            text.lines().filter(|line| line.trim_start().starts_with("migration ")).count(),
            1
        );
    }

    #[test]
    fn a_gap_has_the_error_of_the_clocks_or_is_not_stated() {
        assert!(row(Clocks::Within(40)).gap().ends_with("± 40.0 µs"));
        let unknown = row(Clocks::Unknown);
        assert_eq!(
            (unknown.gap_ns, unknown.between_hosts_ns, unknown.error_ns),
            (None, None, None)
        );
        assert_eq!((unknown.rings_stopped_ns, unknown.first_burst_ns), (Some(500), Some(502)));
        assert!(to_text(&[unknown]).contains("no gap: the two hosts' clocks"));
        assert!(to_text(&[]).is_empty());
    }
}
