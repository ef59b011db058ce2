//! The table of a guest's queues that are in use.

use ratatui::layout::Constraint;
use ratatui::widgets::{Cell, Row, Table};

use burst_trace::{Direction, Notification};
use report::units::{grouped, scaled};
use report::{Figures, Interval, QueueInterval};

use super::cells::{FIGURE_WIDTH, HEADING, figure_cells, lines, right};
use super::order::{self, Order, Value};

/// What is shown of each queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Its index.
    Queue,
    /// Packets a second.
    Rate,
    /// The mean time of a packet.
    Mean,
    /// The median time of a packet.
    P50,
    /// The 99th percentile of a packet's time.
    P99,
    /// The longest time of a packet.
    Max,
    /// Bits a second.
    Bits,
    /// Packets dropped.
    Drops,
    /// Kicks a second.
    Kicks,
    /// Signals a second that were sent to the guest.
    Calls,
    /// Signals a second that the guest did not need.
    Suppressed,
    /// Signals that the front end did not take.
    Refused,
    /// Mean number of frames that go on as one packet (GRO), of those that do.
    Gro,
}

/// Columns that every screen shows. The others need a wider one.
const ALWAYS: usize = 8;
/// Width of the first column.
const NAME_WIDTH: u16 = 10;

impl order::Column for Column {
    const ALL: &'static [Self] = &[
        Self::Queue,
        Self::Rate,
        Self::Mean,
        Self::P50,
        Self::P99,
        Self::Max,
        Self::Bits,
        Self::Drops,
        Self::Kicks,
        Self::Calls,
        Self::Suppressed,
        Self::Refused,
        Self::Gro,
    ];

    fn heading(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Rate => "rate/s",
            Self::Mean => "mean",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::Max => "max",
            Self::Bits => "bit/s",
            Self::Drops => "drops",
            Self::Kicks => "kicks/s",
            Self::Calls => "calls/s",
            Self::Suppressed => "suppr./s",
            Self::Refused => "refused",
            Self::Gro => "GRO",
        }
    }

    fn is_largest_first(self) -> bool {
        self != Self::Queue
    }
}

/// Number of lines of the table.
#[must_use]
pub fn height(interval: &Interval) -> u16 {
    lines(1 + used(interval).count())
}

/// A line for each queue with packets or drops, with the columns that fit `width`.
#[must_use]
pub fn table(interval: &Interval, order: &Order<Column>, width: u16) -> Table<'static> {
    let columns = fitting(order.column(), width);
    let mut queues: Vec<_> = used(interval).collect();
    order.sort(&mut queues, |queue, column| value(queue, column));
    let rows = queues
        .iter()
        .map(|queue| Row::new(columns.iter().map(|&column| cell(queue, column, interval.seconds))));
    let header = columns.iter().map(|&column| {
        let heading = order.heading(column);
        if column == Column::Queue { Cell::from(heading) } else { right(heading) }
    });
    let widths = columns.iter().map(|&column| {
        Constraint::Length(if column == Column::Queue { NAME_WIDTH } else { FIGURE_WIDTH })
    });
    Table::new(rows, widths).header(Row::new(header).style(HEADING))
}

/// The first columns, as far as there is room. The one that lines are sorted by is the last if it has none.
fn fitting(sorted_by: Column, width: u16) -> Vec<Column> {
    // One space before each column but the first.
    let figures = usize::from(width.saturating_sub(NAME_WIDTH) / (FIGURE_WIDTH + 1));
    let mut columns = <Column as order::Column>::ALL.to_vec();
    columns.truncate((1 + figures).max(ALWAYS));
    if !columns.contains(&sorted_by) {
        columns.pop();
        columns.push(sorted_by);
    }
    columns
}

fn cell(queue: &QueueInterval, column: Column, seconds: f64) -> Cell<'static> {
    let rate = |amount: u64| scaled(amount as f64 / seconds);
    let count = |kind| queue.notifications.of(kind);
    let [mean, p50, p99, max] = figure_cells(queue.total);
    right(match column {
        Column::Queue => {
            let direction = Direction::of_ring(queue.ring).name();
            return Cell::from(format!("{:<3}{direction}", queue.ring));
        }
        Column::Rate => rate(queue.totals.packets),
        Column::Mean => mean,
        Column::P50 => p50,
        Column::P99 => p99,
        Column::Max => max,
        Column::Bits => rate(8 * queue.totals.bytes),
        Column::Drops => grouped(queue.dropped),
        Column::Kicks => rate(count(Notification::Kick)),
        Column::Calls => rate(count(Notification::CallSent)),
        Column::Suppressed => rate(count(Notification::CallSuppressed)),
        Column::Refused => grouped(count(Notification::CallRefused)),
        Column::Gro => {
            queue.gro.mean_segments().map_or_else(|| "-".into(), |mean| format!("{mean:.1}"))
        }
    })
}

fn used(interval: &Interval) -> impl Iterator<Item = &QueueInterval> {
    interval.queues.iter().filter(|queue| queue.totals.packets > 0 || queue.dropped > 0)
}

fn value(queue: &QueueInterval, column: Column) -> Value {
    let figure = |of: fn(Figures) -> f64| queue.total.map(of);
    let counted = |kind| Some(queue.notifications.of(kind) as f64);
    Value::Number(match column {
        Column::Queue => Some(queue.ring.into()),
        Column::Rate => Some(queue.totals.packets as f64),
        Column::Mean => figure(|figures| figures.mean_ns),
        Column::P50 => figure(|figures| figures.p50_ns as f64),
        Column::P99 => figure(|figures| figures.p99_ns as f64),
        Column::Max => figure(|figures| figures.max_ns as f64),
        Column::Bits => Some(queue.totals.bytes as f64),
        Column::Drops => Some(queue.dropped as f64),
        Column::Kicks => counted(Notification::Kick),
        Column::Calls => counted(Notification::CallSent),
        Column::Suppressed => counted(Notification::CallSuppressed),
        Column::Refused => counted(Notification::CallRefused),
        Column::Gro => queue.gro.mean_segments(),
    })
}
