//! The table of a guest's queues that are in use.

use ratatui::layout::Constraint;
use ratatui::widgets::{Cell, Row, Table};

use burst_trace::Direction;
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
}

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

/// A line for each queue with packets or drops.
#[must_use]
pub fn table(interval: &Interval, order: &Order<Column>) -> Table<'static> {
    let mut queues: Vec<_> = used(interval).collect();
    order.sort(&mut queues, |queue, column| value(queue, column));
    let rows = queues.iter().map(|queue| {
        let rate = |amount: u64| scaled(amount as f64 / interval.seconds);
        let direction = Direction::of_ring(queue.ring).name();
        let [mean, p50, p99, max] = figure_cells(queue.total);
        let bits = rate(8 * queue.totals.bytes);
        let cells = [rate(queue.totals.packets), mean, p50, p99, max, bits, grouped(queue.dropped)];
        let name = Cell::from(format!("{:<3}{direction}", queue.ring));
        Row::new([name].into_iter().chain(cells.map(right)))
    });
    let header = <Column as order::Column>::ALL.iter().map(|&column| {
        let heading = order.heading(column);
        if column == Column::Queue { Cell::from(heading) } else { right(heading) }
    });
    let widths = [Constraint::Length(10)].into_iter().chain([Constraint::Length(FIGURE_WIDTH); 7]);
    Table::new(rows, widths).header(Row::new(header).style(HEADING))
}

fn used(interval: &Interval) -> impl Iterator<Item = &QueueInterval> {
    interval.queues.iter().filter(|queue| queue.totals.packets > 0 || queue.dropped > 0)
}

fn value(queue: &QueueInterval, column: Column) -> Value {
    let figure = |of: fn(Figures) -> f64| queue.total.map(of);
    Value::Number(match column {
        Column::Queue => Some(queue.ring.into()),
        Column::Rate => Some(queue.totals.packets as f64),
        Column::Mean => figure(|figures| figures.mean_ns),
        Column::P50 => figure(|figures| figures.p50_ns as f64),
        Column::P99 => figure(|figures| figures.p99_ns as f64),
        Column::Max => figure(|figures| figures.max_ns as f64),
        Column::Bits => Some(queue.totals.bytes as f64),
        Column::Drops => Some(queue.dropped as f64),
    })
}
