//! The table with a line for each guest.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::widgets::{Cell, Row, Table, TableState};

use report::units::{percent, scaled, time};
use report::{DirectionBreakdown, Interval, Tier};

use super::cells::{ALARM, HEADING, dash, right};
use super::order::{self, Order, Value};
use super::sources::Sample;

/// What is shown of each guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Column {
    /// The guest's name
    Name,
    /// Its datapath
    Datapath,
    /// Packets a second, guest to wire
    TxPackets,
    /// Packets a second, wire to guest
    RxPackets,
    /// Bits a second, guest to wire
    TxBits,
    /// Bits a second, wire to guest
    RxBits,
    /// What half of the packets took at most, guest to wire
    TxP50,
    /// What 99 % of the packets took at most, guest to wire
    TxP99,
    /// What the slowest packet took, guest to wire
    TxMax,
    /// What half of the packets took at most, wire to guest
    RxP50,
    /// What 99 % of the packets took at most, wire to guest
    RxP99,
    /// What the slowest packet took, wire to guest
    RxMax,
    /// Packets a second that went no further
    Drops,
    /// The share of the stage that took most
    Stage,
}

/// Groups of columns, most important first. If not all fit, only the first ones are shown, each group as a whole.
const BY_WEIGHT: [&[Column]; 8] = [
    &[Column::TxPackets, Column::RxPackets],
    &[Column::TxP99, Column::RxP99],
    &[Column::Stage],
    &[Column::Drops],
    &[Column::TxBits, Column::RxBits],
    &[Column::TxMax, Column::RxMax],
    &[Column::TxP50, Column::RxP50],
    &[Column::Datapath],
];
/// Length at which names are cut.
const NAME_MAX: usize = 24;
/// Width of what stands before a name: the key that opens the guest, and a space.
const KEY_WIDTH: usize = 2;
const LAST_KEY: usize = 9;

impl order::Column for Column {
    const ALL: &'static [Self] = &[
        Self::Name,
        Self::Datapath,
        Self::TxPackets,
        Self::RxPackets,
        Self::TxBits,
        Self::RxBits,
        Self::TxP50,
        Self::TxP99,
        Self::TxMax,
        Self::RxP50,
        Self::RxP99,
        Self::RxMax,
        Self::Drops,
        Self::Stage,
    ];

    fn heading(self) -> &'static str {
        match self {
            Self::Name => "  guest",
            Self::Datapath => "datapath",
            Self::TxPackets => "tx pps",
            Self::RxPackets => "rx pps",
            Self::TxBits => "tx bps",
            Self::RxBits => "rx bps",
            Self::TxP50 => "tx p50",
            Self::TxP99 => "tx p99",
            Self::TxMax => "tx max",
            Self::RxP50 => "rx p50",
            Self::RxP99 => "rx p99",
            Self::RxMax => "rx max",
            Self::Drops => "drops/s",
            Self::Stage => "mostly in",
        }
    }

    fn is_largest_first(self) -> bool {
        !self.is_text()
    }
}

impl Column {
    const fn is_text(self) -> bool {
        matches!(self, Self::Name | Self::Datapath)
    }

    fn width(self, samples: &[Sample]) -> u16 {
        let longest = |text: fn(&Sample) -> &str, heading: usize| {
            let texts = samples.iter().map(|sample| text(sample).chars().count());
            super::cells::lines(texts.max().unwrap_or(0).min(NAME_MAX).max(heading))
        };
        match self {
            Self::Name => longest(name, 6) + super::cells::lines(KEY_WIDTH),
            Self::Datapath => longest(datapath, 9),
            Self::Stage => 19,
            Self::Drops => 8,
            _ => 7,
        }
    }

    /// The value that lines are sorted by for this column.
    #[must_use]
    pub fn value(self, sample: &Sample) -> Value {
        match self {
            Self::Name => Value::Text(name(sample).to_owned()),
            Self::Datapath => Value::Text(datapath(sample).to_owned()),
            Self::Stage => {
                let most = sample.interval.as_ref().and_then(most);
                Value::Number(most.map(|most| most.stage_ns / most.total_ns))
            }
            _ => Value::Number(sample.interval.as_ref().and_then(|interval| self.of(interval))),
        }
    }

    /// The column's number in an interval: a second, bits a second, or nanoseconds.
    fn of(self, interval: &Interval) -> Option<f64> {
        let rate = |amount: u64| Some(amount as f64 / interval.seconds);
        let (tx, rx) = (&interval.tx, &interval.rx);
        let [tx_figures, rx_figures] = [tx, rx].map(|way| way.records.total.figures);
        let nanoseconds = match self {
            Self::Name | Self::Datapath | Self::Stage => return None,
            Self::TxPackets => return rate(tx.totals.packets),
            Self::RxPackets => return rate(rx.totals.packets),
            Self::TxBits => return rate(8 * tx.totals.bytes),
            Self::RxBits => return rate(8 * rx.totals.bytes),
            Self::Drops => return rate(tx.dropped + rx.dropped),
            Self::TxP50 => tx_figures?.p50_ns,
            Self::TxP99 => tx_figures?.p99_ns,
            Self::TxMax => tx_figures?.max_ns,
            Self::RxP50 => rx_figures?.p50_ns,
            Self::RxP99 => rx_figures?.p99_ns,
            Self::RxMax => rx_figures?.max_ns,
        };
        Some(nanoseconds as f64)
    }

    fn cell(self, line: usize, sample: &Sample) -> Cell<'static> {
        let number = || sample.interval.as_ref().and_then(|interval| self.of(interval));
        let as_text = |to_text: fn(f64) -> String| number().map_or_else(dash, to_text);
        match self {
            Self::Name if line < LAST_KEY => format!("{} {}", line + 1, name(sample)).into(),
            Self::Name => format!("  {}", name(sample)).into(),
            Self::Datapath => datapath(sample).to_owned().into(),
            Self::Stage => stage_cell(sample),
            Self::TxPackets | Self::RxPackets | Self::TxBits | Self::RxBits => {
                right(as_text(scaled))
            }
            Self::Drops if number().is_some_and(|drops| drops > 0.0) => {
                right(as_text(scaled)).style(ALARM)
            }
            Self::Drops => right(as_text(scaled)),
            _ => right(as_text(time)),
        }
    }
}

fn name(sample: &Sample) -> &str {
    &sample.identity.name
}

fn datapath(sample: &Sample) -> &str {
    sample.identity.facts.datapath.as_deref().unwrap_or("-")
}

fn stage_cell(sample: &Sample) -> Cell<'static> {
    if !sample.identity.is_alive {
        return Cell::from("has ended");
    }
    let most = sample.interval.as_ref().and_then(most);
    most.map_or_else(dash, |Most { direction, stage, stage_ns, total_ns }| {
        format!("{direction} {stage} {}", percent(stage_ns, total_ns))
    })
    .into()
}

/// The stage in which packets spent most time: its time and that of the whole direction, each summed over packets.
struct Most {
    direction: &'static str,
    stage: &'static str,
    stage_ns: f64,
    total_ns: f64,
}

fn most(interval: &Interval) -> Option<Most> {
    let ways = [&interval.tx.records, &interval.rx.records];
    ways.into_iter()
        .filter_map(most_of)
        .max_by(|one, other| one.stage_ns.total_cmp(&other.stage_ns))
        .filter(|most| most.stage_ns > 0.0)
}

fn most_of(way: &DirectionBreakdown) -> Option<Most> {
    let packets = way.total.count? as f64;
    let total_ns = way.total.figures?.mean_ns * packets;
    let stages = way.stages.iter().filter(|row| row.tier == Tier::D);
    let sums = stages.filter_map(|row| Some((row.stage, row.figures?.mean_ns * packets)));
    let (stage, stage_ns) = sums.max_by(|(_, one), (_, other)| one.total_cmp(other))?;
    Some(Most { direction: way.direction.name(), stage, stage_ns, total_ns })
}

/// Draws the table of `samples`, which are already sorted.
pub fn render(
    frame: &mut Frame,
    area: Rect,
    samples: &[Sample],
    order: &Order<Column>,
    marked: usize,
) {
    let columns = fitting(samples, order.column(), area.width);
    let rows = samples.iter().enumerate().map(|(line, sample)| {
        let style = if sample.identity.is_alive { Style::new() } else { ALARM };
        Row::new(columns.iter().map(|column| column.cell(line, sample))).style(style)
    });
    let header = columns.iter().map(|&column| {
        let heading = order.heading(column);
        let is_left = column.is_text() || column == Column::Stage;
        if is_left { Cell::from(heading) } else { right(heading) }
    });
    let widths = columns.iter().map(|column| Constraint::Length(column.width(samples)));
    let table = Table::new(rows, widths)
        .header(Row::new(header).style(HEADING))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(marked);
    frame.render_stateful_widget(table, area, &mut state);
}

/// The columns that fit: the names, the column they are sorted by, and others while there is room.
fn fitting(samples: &[Sample], sorted_by: Column, width: u16) -> Vec<Column> {
    // One space between two columns.
    let needs = |column: &Column| usize::from(column.width(samples)) + 1;
    let mut columns = vec![Column::Name];
    if sorted_by != Column::Name {
        columns.push(sorted_by);
    }
    let taken: usize = columns.iter().map(needs).sum();
    let mut room = (usize::from(width) + 1).saturating_sub(taken);
    for group in BY_WEIGHT {
        let new: Vec<_> = group.iter().filter(|column| !columns.contains(column)).collect();
        let needed: usize = new.iter().map(|column| needs(column)).sum();
        if needed > room {
            break;
        }
        room -= needed;
        columns.extend(new);
    }
    columns.sort_by_key(|column| *column as usize);
    columns
}
