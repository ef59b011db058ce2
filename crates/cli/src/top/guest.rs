//! The screen of one guest: each direction's stages, the queues, and the slowest bursts.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table};

use burst_trace::Direction;
use report::follow::DirectionInterval;
use report::stages::Tier;
use report::units::{grouped, percent, scaled};
use report::{Interval, StageRow};

use super::cells::{ALARM, BOLD, FIGURE_WIDTH, HEADING, alarm_if, cut, dash, figure_cells, right};
use super::order::Order;
use super::outliers;
use super::queues::{self, Column};
use super::source::Identity;

/// One colour for each stage, in the order of the bar.
const COLORS: [Color; 7] = [
    Color::Blue,
    Color::Magenta,
    Color::LightRed,
    Color::Cyan,
    Color::Green,
    Color::Yellow,
    Color::Red,
];

/// The guest's name, and what the daemon reported about its run.
#[must_use]
pub fn head(identity: &Identity) -> Line<'static> {
    let Identity { name, facts, pid, is_alive, restarts } = identity;
    let mut text = String::new();
    for (what, fact) in [("", &facts.datapath), ("poll ", &facts.poll)] {
        if let Some(fact) = fact {
            text += &format!("  {what}{fact}");
        }
    }
    let state = if *is_alive {
        Span::raw(format!("  pid {pid}"))
    } else {
        Span::styled(format!("  pid {pid} has ended"), ALARM)
    };
    let restarts = match restarts {
        0 => String::new(),
        restarts => format!("  restarted {restarts}"),
    };
    Line::from(vec![
        Span::styled(format!("ringscope {name}"), BOLD),
        text.into(),
        state,
        restarts.into(),
    ])
}

/// What the times are of, and what is missing in them.
#[must_use]
pub fn status(interval: &Interval) -> Line<'static> {
    let lost = format!(
        "records lost: {} now, {} in all",
        scaled(interval.lost as f64),
        scaled(interval.lost_in_all as f64)
    );
    Line::from(vec![
        Span::raw(format!("every {:.1} s  ", interval.seconds)),
        alarm_if(interval.lost > 0, lost),
        Span::raw(not_measured(interval)),
    ])
}

/// Draws the tables that there is room for.
pub fn render(
    frame: &mut Frame,
    area: Rect,
    interval: &Interval,
    order: &Order<Column>,
    outliers_first: bool,
) {
    let mut rest = area;
    if outliers_first {
        render_outliers(frame, &mut rest, interval);
    }
    for (way, has_heading) in [(&interval.tx, true), (&interval.rx, false)] {
        let area = cut(&mut rest, height(way, has_heading));
        render_direction(frame, area, way, interval.seconds, has_heading);
    }
    let table = queues::table(interval, order, area.width);
    frame.render_widget(table, cut(&mut rest, queues::height(interval)));
    if !outliers_first {
        render_outliers(frame, &mut rest, interval);
    }
}

fn render_outliers(frame: &mut Frame, rest: &mut Rect, interval: &Interval) {
    let area = cut(rest, outliers::height(&interval.outliers));
    frame.render_widget(outliers::table(&interval.outliers), area);
}

/// Lines of one direction: title, headings, the daemon's stages, total, the kernel's stages, bar.
fn height(way: &DirectionInterval, has_heading: bool) -> u16 {
    let stages = own(way).count() + in_the_kernel(way).count();
    super::cells::lines(stages) + 3 + u16::from(has_heading)
}

/// The daemon's stages.
fn own(way: &DirectionInterval) -> impl Iterator<Item = &StageRow> {
    way.records.stages.iter().filter(|row| row.tier == Tier::D && !row.is_idle_limit())
}

/// The stages of the host kernel that were measured.
fn in_the_kernel(way: &DirectionInterval) -> impl Iterator<Item = &StageRow> {
    way.records.stages.iter().filter(|row| row.tier == Tier::K && row.figures.is_some())
}

/// Names the tiers whose stages have no figures in the recorder.
fn not_measured(interval: &Interval) -> String {
    let lacks = |tier| {
        let rows = interval.tx.records.stages.iter().chain(&interval.rx.records.stages);
        rows.into_iter().any(|row| row.tier == tier && row.count.is_none())
    };
    let tiers: Vec<_> = [(Tier::K, "kernel"), (Tier::G, "guest")]
        .into_iter()
        .filter(|(tier, _)| lacks(*tier))
        .map(|(_, name)| name)
        .collect();
    if tiers.is_empty() { String::new() } else { format!("  {} stages n/a", tiers.join(", ")) }
}

/// The second table has the columns of the first.
fn render_direction(
    frame: &mut Frame,
    area: Rect,
    way: &DirectionInterval,
    seconds: f64,
    has_heading: bool,
) {
    let [title, table, bar] =
        Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)])
            .areas(area);
    frame.render_widget(title_line(way, seconds), title);
    frame.render_widget(stage_table(way, seconds, has_heading), table);
    frame.render_widget(Paragraph::new(bar_line(way, bar.width)), bar);
}

fn title_line(way: &DirectionInterval, seconds: f64) -> Line<'static> {
    let name = match way.records.direction {
        Direction::Tx => "guest to wire (tx)",
        Direction::Rx => "wire to guest (rx)",
    };
    let rate = |amount: u64| scaled(amount as f64 / seconds);
    let totals = &way.totals;
    let mut text = format!(
        "  {} packets/s  {}bit/s",
        rate(totals.packets),
        scaled(8.0 * totals.bytes as f64 / seconds)
    );
    if totals.bursts > 0 {
        text += &format!("  {:.2} a burst", totals.packets as f64 / totals.bursts as f64);
    }
    let drops = alarm_if(way.dropped > 0, format!("  {} drops", grouped(way.dropped)));
    Line::from(vec![Span::styled(name, BOLD), text.into(), drops])
}

fn stage_table(way: &DirectionInterval, seconds: f64, has_heading: bool) -> Table<'static> {
    let records = &way.records;
    let total_ns = records.total.figures.map_or(0.0, |figures| figures.mean_ns);
    let is_polled = records.polled_packets > 0;
    let mut colors = COLORS.iter();
    let rows = own(way)
        .map(|row| (row, colors.next().copied().unwrap_or(Color::Reset)))
        .chain([(&records.total, Color::Reset)])
        .map(|(row, color)| {
            let is_bound = is_polled && matches!(row.stage, "notice" | "total");
            let name = format!("{}{}", row.stage, if is_bound { " ≤" } else { "" });
            let mut cells = vec![Cell::from(name).style(Style::new().fg(color))];
            cells.extend(stage_cells(row, way.totals.packets, seconds, total_ns).map(right));
            Row::new(cells)
        })
        .chain(in_the_kernel(way).map(|row| kernel_row(row, seconds)));
    let widths = [Constraint::Length(10)].into_iter().chain([Constraint::Length(FIGURE_WIDTH); 6]);
    let table = Table::new(rows, widths);
    if !has_heading {
        return table;
    }
    let headings = ["rate/s", "mean", "p50", "p99", "max", "share"];
    let mut header = vec![Cell::from("stage")];
    header.extend(headings.map(|heading| right(heading.into())));
    table.header(Row::new(header).style(HEADING))
}

/// A stage of the host kernel lies beside the daemon's stages, and partly within them. So it has no share.
fn kernel_row(row: &StageRow, seconds: f64) -> Row<'static> {
    let [rate, mean, p50, p99, max, _] =
        stage_cells(row, row.count.unwrap_or_default(), seconds, 0.0);
    let mut cells = vec![Cell::from(row.stage)];
    cells.extend([rate, mean, p50, p99, max, dash()].map(right));
    Row::new(cells)
}

fn stage_cells(row: &StageRow, packets: u64, seconds: f64, total_ns: f64) -> [String; 6] {
    let rate = scaled(packets as f64 / seconds);
    let share = row.figures.map_or_else(dash, |figures| percent(figures.mean_ns, total_ns));
    let [mean, p50, p99, max] = figure_cells(row.figures);
    [rate, mean, p50, p99, max, share]
}

/// A bar that shows what the mean consists of: for each stage a segment as long as its share, with its name if that
/// fits.
fn bar_line(way: &DirectionInterval, width: u16) -> Line<'static> {
    let stages = own(way);
    let means: Vec<_> =
        stages.map(|row| (row.stage, row.figures.map_or(0.0, |f| f.mean_ns))).collect();
    let total_ns: f64 = means.iter().map(|(_, mean_ns)| mean_ns).sum();
    if total_ns <= 0.0 {
        return Line::from("no packets");
    }
    let (mut sum_ns, mut drawn) = (0.0, 0);
    let spans = means.iter().zip(COLORS).map(|(&(stage, mean_ns), color)| {
        // Ends are rounded, not lengths, so the segments fill the line exactly.
        sum_ns += mean_ns;
        let end = (sum_ns / total_ns * f64::from(width)).round() as usize;
        let length = end - drawn;
        drawn = end;
        let name = if stage.len() < length { stage } else { "" };
        Span::styled(format!("{name:^length$}"), Style::new().fg(Color::Black).bg(color))
    });
    Line::from(spans.collect::<Vec<_>>())
}
