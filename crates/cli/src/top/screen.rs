//! The picture of `ringscope top`.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table};

use burst_trace::Direction;
use report::follow::DirectionInterval;
use report::stages::Tier;
use report::units::{grouped, percent, scaled, time};
use report::{Figures, Interval, QueueInterval, StageRow};

use super::source::Identity;

/// One a stage, in the order of the bar.
const COLORS: [Color; 6] =
    [Color::Blue, Color::Magenta, Color::Cyan, Color::Green, Color::Yellow, Color::Red];
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const HEADING: Style = Style::new().add_modifier(Modifier::UNDERLINED);
const FIGURE_WIDTH: u16 = 9;

/// What is drawn.
#[derive(Debug)]
pub struct Screen {
    identity: Identity,
    interval: Option<Interval>,
}

impl Screen {
    /// A screen before its first interval.
    #[must_use]
    pub const fn new(identity: Identity) -> Self {
        Self { identity, interval: None }
    }

    /// Takes what the next picture shows.
    pub fn update(&mut self, interval: Interval, identity: Identity) {
        self.interval = Some(interval);
        self.identity = identity;
    }

    /// Draws it.
    pub fn render(&self, frame: &mut Frame) {
        let Some(interval) = &self.interval else {
            let [head, rest] =
                Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(frame.area());
            frame.render_widget(self.head(), head);
            frame.render_widget("collecting the first interval", rest);
            return;
        };
        let [head, status, tx, rx, queues] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(height(Direction::Tx)),
            Constraint::Length(height(Direction::Rx)),
            Constraint::Fill(1),
        ])
        .areas(frame.area());
        frame.render_widget(self.head(), head);
        frame.render_widget(status_line(interval), status);
        render_direction(frame, tx, &interval.tx, interval.seconds);
        render_direction(frame, rx, &interval.rx, interval.seconds);
        render_queues(frame, queues, interval);
    }

    fn head(&self) -> Line<'_> {
        let Identity { name, facts, pid, is_alive } = &self.identity;
        let mut text = String::new();
        for (what, fact) in [("", &facts.datapath), ("poll ", &facts.poll)] {
            if let Some(fact) = fact {
                text += &format!("  {what}{fact}");
            }
        }
        let state = if *is_alive {
            Span::raw(format!("  pid {pid}"))
        } else {
            Span::styled(format!("  pid {pid} has ended"), Style::new().fg(Color::Red))
        };
        Line::from(vec![Span::styled(format!("ringscope {name}"), BOLD), text.into(), state])
    }
}

/// Title, headings, the daemon's stages, total, bar.
fn height(direction: Direction) -> u16 {
    u16::try_from(direction.stages().len()).unwrap_or(0) + 4
}

fn status_line(interval: &Interval) -> Line<'static> {
    let lost = format!(
        "records lost: {} now, {} in all",
        scaled(interval.lost as f64),
        scaled(interval.lost_in_all as f64)
    );
    let style = if interval.lost > 0 { Style::new().fg(Color::Red) } else { Style::new() };
    Line::from(vec![
        Span::raw(format!("q ends  every {:.1} s  ", interval.seconds)),
        Span::styled(lost, style),
        Span::raw(not_measured(interval)),
    ])
}

/// Whose stages the recorder has no figures of.
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

fn render_direction(frame: &mut Frame, area: Rect, way: &DirectionInterval, seconds: f64) {
    let [title, table, bar] =
        Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)])
            .areas(area);
    frame.render_widget(title_line(way, seconds), title);
    frame.render_widget(stage_table(way, seconds), table);
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
    let drops = drops_span(way.dropped);
    Line::from(vec![Span::styled(name, BOLD), text.into(), drops])
}

fn drops_span(dropped: u64) -> Span<'static> {
    let style = if dropped > 0 { Style::new().fg(Color::Red) } else { Style::new() };
    Span::styled(format!("  {} drops", grouped(dropped)), style)
}

fn stage_table(way: &DirectionInterval, seconds: f64) -> Table<'static> {
    let records = &way.records;
    let total_ns = records.total.figures.map_or(0.0, |figures| figures.mean_ns);
    let is_polled = records.polled_packets > 0;
    let mut colors = COLORS.iter();
    let rows = records
        .stages
        .iter()
        .filter(|row| row.tier == Tier::D)
        .map(|row| (row, colors.next().copied().unwrap_or(Color::Reset)))
        .chain([(&records.total, Color::Reset)])
        .map(|(row, color)| {
            let is_bound = is_polled && matches!(row.stage, "notice" | "total");
            let name = format!("{}{}", row.stage, if is_bound { " ≤" } else { "" });
            let mut cells = vec![Cell::from(name).style(Style::new().fg(color))];
            cells.extend(stage_cells(row, way.totals.packets, seconds, total_ns).map(right));
            Row::new(cells)
        });
    let headings = ["rate/s", "mean", "p50", "p99", "max", "share"];
    let mut widths = vec![Constraint::Length(10)];
    widths.extend([Constraint::Length(FIGURE_WIDTH); 6]);
    let mut header = vec![Cell::from("stage")];
    header.extend(headings.map(|heading| right(heading.into())));
    Table::new(rows, widths).header(Row::new(header).style(HEADING))
}

fn stage_cells(row: &StageRow, packets: u64, seconds: f64, total_ns: f64) -> [String; 6] {
    let rate = scaled(packets as f64 / seconds);
    let share = row.figures.map_or_else(dash, |figures| percent(figures.mean_ns, total_ns));
    let [mean, p50, p99, max] = figure_cells(row.figures);
    [rate, mean, p50, p99, max, share]
}

fn figure_cells(figures: Option<Figures>) -> [String; 4] {
    let Some(figures) = figures else { return [dash(), dash(), dash(), dash()] };
    let Figures { mean_ns, p50_ns, p99_ns, max_ns, .. } = figures;
    [time(mean_ns), time(p50_ns as f64), time(p99_ns as f64), time(max_ns as f64)]
}

fn dash() -> String {
    "-".into()
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

/// What the mean consists of: a stretch a stage, as long as its share, with its name where that fits.
fn bar_line(way: &DirectionInterval, width: u16) -> Line<'static> {
    let stages = way.records.stages.iter().filter(|row| row.tier == Tier::D);
    let means: Vec<_> =
        stages.map(|row| (row.stage, row.figures.map_or(0.0, |f| f.mean_ns))).collect();
    let total_ns: f64 = means.iter().map(|(_, mean_ns)| mean_ns).sum();
    if total_ns <= 0.0 {
        return Line::from("no packets");
    }
    let (mut sum_ns, mut drawn) = (0.0, 0);
    let spans = means.iter().zip(COLORS).map(|(&(stage, mean_ns), color)| {
        // Ends are rounded, not lengths: so the stretches fill the line exactly.
        sum_ns += mean_ns;
        let end = (sum_ns / total_ns * f64::from(width)).round() as usize;
        let length = end - drawn;
        drawn = end;
        let name = if stage.len() < length { stage } else { "" };
        Span::styled(format!("{name:^length$}"), Style::new().fg(Color::Black).bg(color))
    });
    Line::from(spans.collect::<Vec<_>>())
}

fn render_queues(frame: &mut Frame, area: Rect, interval: &Interval) {
    let used = |queue: &&QueueInterval| queue.totals.packets > 0 || queue.dropped > 0;
    let rows = interval.queues.iter().filter(used).map(|queue| {
        let rate = |amount: u64| scaled(amount as f64 / interval.seconds);
        let direction = Direction::of_ring(queue.ring).name();
        let [mean, p50, p99, max] = figure_cells(queue.total);
        let bits = scaled(8.0 * queue.totals.bytes as f64 / interval.seconds);
        let cells = [rate(queue.totals.packets), mean, p50, p99, max, bits, grouped(queue.dropped)];
        let name = Cell::from(format!("{:<3}{direction}", queue.ring));
        Row::new([name].into_iter().chain(cells.map(right)))
    });
    let mut header = vec![Cell::from("queue")];
    let headings = ["rate/s", "mean", "p50", "p99", "max", "bit/s", "drops"];
    header.extend(headings.map(|heading| right(heading.into())));
    let mut widths = vec![Constraint::Length(10)];
    widths.extend([Constraint::Length(FIGURE_WIDTH); 7]);
    frame.render_widget(Table::new(rows, widths).header(Row::new(header).style(HEADING)), area);
}

#[cfg(test)]
mod tests {
    use burst_trace::{
        BurstRecord, Clock, DropCause, Reader, RecordKind, Recorder, RecorderOptions,
    };
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use report::{Facts, Follower};

    use super::*;

    /// The picture of an interval in which 40 packets of 1 to 6 µs a stage left by queue 1.
    fn picture(width: u16, height: u16) -> String {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::new();
        let options = RecorderOptions {
            path: dir.path().join("vm0.trace"),
            workers: 1,
            queue_pairs: 1,
            capacity: 64,
            facts: String::new(),
        };
        let recorder = Recorder::create(&options, &clock).unwrap();
        let mut follower = Follower::new(Reader::open(recorder.path()).unwrap());
        let mut writer = recorder.writer(0, clock);
        let microseconds = clock.ticks_per_second() / 1_000_000;
        let stages = [1, 2, 3, 4, 5, 6].map(|n| n * microseconds);
        let (first, last) = (1000, 1000 + 21 * microseconds);
        let kind = RecordKind::Burst as u8;
        let flags = BurstRecord::POLLED;
        let burst = BurstRecord {
            first,
            last,
            stages,
            packets: 4,
            ring: 1,
            kind,
            flags,
            ..BurstRecord::default()
        };
        (0..10).for_each(|_| writer.burst(&burst));
        writer.dropped(1, DropCause::TxLinkDown, 3, last);
        let identity = Identity {
            name: "vm0".into(),
            facts: Facts { poll: Some("never".into()), ..Facts::default() },
            pid: 7,
            is_alive: false,
        };
        let mut screen = Screen::new(identity.clone());
        screen.update(Interval { seconds: 2.0, ..follower.take() }, identity);
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.render(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn a_picture_shows_rates_times_shares_and_queues() {
        let picture = picture(80, 24);
        let line = |text: &str| {
            let found = picture.lines().find(|line| line.contains(text));
            found.unwrap_or_else(|| panic!("no `{text}` in\n{picture}")).to_owned()
        };
        assert!(line("ringscope vm0").contains("poll never  pid 7 has ended"));
        assert!(line("records lost").contains("0 in all  kernel, guest stages n/a"));
        assert!(line("guest to wire").contains("20 packets/s"));
        assert!(line("guest to wire").contains("4.00 a burst  3 drops"));
        let egress = line("egress  ");
        for figure in ["20", "4.00 µs", "19.0 %"] {
            assert!(egress.contains(figure), "{egress}");
        }
        assert!(line("notice ≤").contains("1.00 µs"));
        assert!(line("gather").contains("3.00 µs"));
        assert!(line("1  tx").contains("21.0 µs"));
        assert!(picture.contains("no packets"), "{picture}");
    }

    #[test]
    fn the_bar_fills_the_line() {
        let picture = picture(90, 30);
        let is_bar = |line: &&str| line.contains(" egress ") && line.contains(" signal ");
        let bar = picture.lines().find(is_bar).expect("a bar");
        assert_eq!(bar.trim_matches('"').chars().count(), 90);
    }

    #[test]
    fn any_size_of_terminal_will_do() {
        for (width, height) in [(1, 1), (10, 3), (40, 12), (300, 100)] {
            picture(width, height);
        }
    }
}
