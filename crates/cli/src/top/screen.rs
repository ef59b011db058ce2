//! The screen of `ringscope top`: a head, all guests or one of them, the keys, and the help over all of it.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::cells::{ALARM, BOLD, cut, cut_last};
use super::view::View;
use super::{guest, guests, help};

const PAUSED: Style =
    Style::new().fg(Color::Yellow).add_modifier(Modifier::BOLD).add_modifier(Modifier::REVERSED);
const KEYS: Style = Style::new().add_modifier(Modifier::DIM);

/// Draws what `view` shows.
pub fn render(view: &View, frame: &mut Frame) {
    let mut rest = frame.area();
    // On a terminal of one line, the head is that line.
    let head = cut(&mut rest, 1);
    frame.render_widget(keys(view), cut_last(&mut rest));
    match view.opened() {
        Some(sample) => {
            frame.render_widget(guest::head(&sample.identity), head);
            if let Some(interval) = &sample.interval {
                frame.render_widget(guest::status(interval), cut(&mut rest, 1));
                guest::render(frame, rest, interval, &view.queue_order, view.outliers_first);
            } else {
                frame.render_widget(Line::from("collecting the first interval"), rest);
            }
        }
        None => {
            frame.render_widget(head_of_all(view), head);
            render_all(view, frame, rest);
        }
    }
    if let Some(from_line) = view.help_from_line {
        help::render(frame, frame.area(), from_line);
    }
}

fn head_of_all(view: &View) -> Line<'static> {
    let guests = match view.samples.len() {
        1 => "1 guest".to_owned(),
        number => format!("{number} guests"),
    };
    let mut spans = vec![Span::styled(format!("ringscope {guests}"), BOLD)];
    if let Some(dir) = &view.dir {
        spans.push(format!("  in {}", dir.display()).into());
    }
    let ended = view.samples.iter().filter(|sample| !sample.identity.is_alive).count();
    if ended > 0 {
        spans.push(Span::styled(format!("  {ended} ended"), ALARM));
    }
    if !view.unreadable.is_empty() {
        let names = view.unreadable.join(", ");
        spans.push(Span::styled(format!("  cannot be read: {names}"), ALARM));
    }
    Line::from(spans)
}

fn render_all(view: &View, frame: &mut Frame, area: Rect) {
    if view.samples.is_empty() {
        frame.render_widget(Line::from("waiting for a daemon with --trace on"), area);
    } else {
        guests::render(frame, area, &view.samples, &view.order, view.marked_line());
    }
}

fn keys(view: &View) -> Line<'static> {
    let mut keys = match (view.opened(), &view.dir) {
        (None, _) => "q ends  Enter opens  s sorts  r reverses",
        (Some(_), Some(_)) => "q ends  Esc all guests  o slowest bursts  s sorts  r reverses",
        (Some(_), None) => "q ends  o slowest bursts  s sorts  r reverses",
    }
    .to_owned();
    let mut spans = Vec::new();
    if view.is_paused() {
        spans.push(Span::styled("PAUSED", PAUSED));
        keys = format!("  p goes on  {keys}");
    } else {
        keys += "  p pauses";
    }
    spans.push(Span::styled(keys + "  ? help", KEYS));
    Line::from(spans)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::fixture::{interrupted, picture, sample};
    use crate::top::guests::Column;
    use crate::top::keys::{Command, Step};
    use crate::top::sources::Sample;

    fn line(picture: &str, text: &str) -> String {
        let found = picture.lines().find(|line| line.contains(text));
        found.unwrap_or_else(|| panic!("no `{text}` in\n{picture}")).to_owned()
    }

    fn assert_has(line: &str, parts: &[&str]) {
        for part in parts {
            assert!(line.contains(part), "no `{part}` in {line}");
        }
    }

    /// The screen of the only guest.
    fn one() -> View {
        let mut view = View::new(None, vec![sample("vm0", 10)], Column::Name);
        view.open_first();
        view
    }

    #[test]
    fn a_guest_whose_daemon_was_started_again_says_so() {
        let mut view = one();
        assert!(!picture(&view, 120, 24).contains("restarted"));
        view.samples[0].identity.restarts = 3;
        assert_has(&line(&picture(&view, 120, 24), "ringscope vm0"), &["pid 7", "restarted 3"]);
    }

    fn all() -> View {
        let mut ended = sample("vm2", 0);
        ended.identity.is_alive = false;
        let found = Sample { interval: None, ..sample("vm1", 0) };
        let samples = vec![sample("vm0", 10), found, ended];
        View::new(Some("/run/ringscope".into()), samples, Column::Name)
    }

    #[test]
    fn a_guest_has_rates_times_shares_and_queues() {
        let picture = picture(&one(), 80, 24);
        assert_has(&line(&picture, "ringscope vm0"), &["tap:ifname=tap0  poll never  pid 7"]);
        assert_has(&line(&picture, "records lost"), &["every 2.0 s", "kernel, guest stages n/a"]);
        assert_has(&line(&picture, "guest to wire"), &["20 packets/s", "4.00 a burst  3 drops"]);
        assert_has(&line(&picture, "egress  "), &["20", "9.00 µs", "4.00 µs", "34.6 %"]);
        assert_has(&line(&picture, "notice ≤"), &["1.00 µs"]);
        assert_has(&line(&picture, "1  tx"), &["18", "21.0 µs", "3"]);
        assert_has(&line(&picture, "3  tx"), &["2", "71.0 µs"]);
        assert_has(&line(&picture, "no packets"), &[]);
        assert_has(&line(&picture, "q ends"), &["o slowest bursts", "p pauses  ? help"]);
        assert!(!picture.contains("Esc"), "there are no others");
        assert!(!picture.contains("slowest at"), "there is no room:\n{picture}");
    }

    #[test]
    fn what_the_kernel_measured_is_below_the_total_without_a_share() {
        let mut sample = sample("vm0", 10);
        let records = &mut sample.interval.as_mut().unwrap().tx.records;
        let figures = records.total.figures;
        let row = records.stages.iter_mut().find(|row| row.stage == "host-tx").unwrap();
        (row.count, row.figures) = (Some(14), figures);
        let mut view = View::new(None, vec![sample], Column::Name);
        view.open_first();
        let picture = picture(&view, 80, 40);
        let lines: Vec<_> = picture.lines().collect();
        let total = lines.iter().position(|line| line.contains("total ≤")).unwrap();
        assert_has(lines[total + 1], &["host-tx ", "  7 ", "26.0 µs", "71.0 µs", "-"]);
        assert!(!lines[total + 1].contains('%'), "{picture}");
        assert!(!picture.contains("wakeup") && lines[total + 2].contains("egress"), "{picture}");
    }

    #[test]
    fn the_slowest_bursts_are_there_where_there_is_room_or_when_they_are_asked_for() {
        let mut view = one();
        let tall = picture(&view, 80, 40);
        assert_has(&line(&tall, "slowest at, UTC"), &["queue", "total", "most of it in"]);
        assert_has(&line(&tall, "≤ 71.0 µs"), &["3  tx", "4", "egress 76.1 %"]);
        assert_has(&line(&tall, "≤ 21.0 µs"), &["1  tx", "signal 28.6 %"]);
        view.obey(Command::Outliers);
        let low = picture(&view, 80, 24);
        assert_has(&line(&low, "≤ 71.0 µs"), &["3  tx"]);
        assert!(low.lines().nth(2).unwrap().contains("slowest at"), "{low}");
    }

    #[test]
    fn a_slow_burst_names_what_interrupted_it() {
        let sample = Sample { interval: Some(interrupted(10)), ..sample("vm0", 10) };
        let mut view = View::new(None, vec![sample], Column::Name);
        view.open_first();
        let wide = picture(&view, 120, 40);
        let words = "preempted by hog (fifo 50), in egress 76.1 %";
        assert_has(&line(&wide, "≤ 71.0 µs"), &["3  tx", words]);
        assert_has(&line(&wide, "≤ 21.0 µs"), &["µs signal 28.6 %"]);
        let narrow = picture(&view, 80, 40);
        assert_has(&line(&narrow, "≤ 71.0 µs"), &["preempted by hog (fifo 50)"]);
    }

    #[test]
    fn the_bar_fills_the_line() {
        let picture = picture(&one(), 90, 30);
        let is_bar = |line: &&str| line.contains(" egress ") && line.contains(" signal ");
        let bar = picture.lines().find(is_bar).expect("a bar");
        assert_eq!(bar.trim_matches('"').chars().count(), 90);
    }

    #[test]
    fn the_queues_are_sorted() {
        let mut view = one();
        let first = |view: &View| {
            let picture = picture(view, 80, 40);
            let lines: Vec<_> = picture.lines().collect();
            let heading = lines.iter().position(|line| line.contains("bit/s     drops")).unwrap();
            (lines[heading].to_owned(), lines[heading + 1].to_owned())
        };
        let (heading, queue) = first(&view);
        assert!(heading.contains("queue▲") && queue.contains("1  tx"), "{heading}\n{queue}");
        [Command::Sort, Command::Sort].into_iter().for_each(|command| view.obey(command));
        let (heading, queue) = first(&view);
        assert!(heading.contains("mean▼") && queue.contains("3  tx"), "{heading}\n{queue}");
    }

    #[test]
    fn kicks_and_calls_are_beside_or_in_place_of_the_drops() {
        let mut view = one();
        let wide = picture(&view, 120, 40);
        assert_has(&line(&wide, "queue▲"), &["drops", "kicks/s", "calls/s", "suppr./s", "refused"]);
        assert_has(&line(&wide, "1  tx"), &["   3  ", "   2  ", "   1  ", "   4"]);
        (0..8).for_each(|_| view.obey(Command::Sort));
        let narrow = picture(&view, 80, 40);
        let heading = line(&narrow, "kicks/s▼");
        assert!(heading.contains("bit/s") && !heading.contains("drops"), "{heading}");
    }

    #[test]
    fn each_guest_is_a_line_and_those_that_are_new_or_ended_are_told() {
        let picture = picture(&all(), 160, 24);
        assert_has(&line(&picture, "ringscope"), &["3 guests  in /run/ringscope  1 ended"]);
        let heading = line(&picture, "guest▲");
        assert_has(&heading, &["datapath", "tx pps", "rx bps", "tx p50", "rx max", "drops/s"]);
        let first = line(&picture, "1 vm0");
        assert_has(&first, &["tap:ifname=tap0", "20", "16.0k", "21.0 µs", "71.0 µs"]);
        assert_has(&first, &["1", "tx egress 34.6 %"]);
        assert_has(&line(&picture, "2 vm1"), &["-"]);
        assert_has(&line(&picture, "3 vm2"), &["0", "-", "has ended"]);
        assert_has(&line(&picture, "q ends"), &["Enter opens  s sorts  r reverses"]);
    }

    #[test]
    fn a_narrow_table_has_the_names_what_they_are_sorted_by_and_what_has_room() {
        let mut view = all();
        let heading = line(&picture(&view, 80, 24), "guest▲");
        assert_has(&heading, &["tx pps", "rx pps", "tx p99", "rx p99", "drops/s", "mostly in"]);
        assert!(!heading.contains("datapath") && !heading.contains("p50"), "{heading}");
        view.obey(Command::Sort);
        assert_has(&line(&picture(&view, 30, 24), "  guest "), &["datapath▲"]);
    }

    #[test]
    fn the_marked_guest_is_in_sight() {
        let samples = (0..40).map(|n| sample(&format!("vm{n:02}"), 0)).collect();
        let mut view = View::new(Some("/run/ringscope".into()), samples, Column::Name);
        assert_has(&line(&picture(&view, 80, 10), "7 vm06"), &[]);
        view.obey(Command::Move(Step::Last));
        assert_has(&line(&picture(&view, 80, 10), "vm39"), &[]);
    }

    #[test]
    fn the_others_of_a_guest_a_pause_and_the_wait_for_the_first_are_told() {
        let mut view = all();
        view.obey(Command::OpenLine(1));
        let open = picture(&view, 80, 24);
        assert_has(&line(&open, "collecting the first interval"), &[]);
        assert_has(&line(&open, "q ends"), &["Esc all guests"]);
        view.obey(Command::Pause);
        assert_has(&line(&picture(&view, 80, 24), "PAUSED"), &["p goes on"]);
        view.obey(Command::Back);
        view.update(Vec::new(), &["old".into()]);
        let none = picture(&view, 80, 24);
        assert_has(&line(&none, "0 guests"), &["cannot be read: old"]);
        assert_has(&line(&none, "waiting for a daemon"), &[]);
    }

    #[test]
    fn help_names_every_key_in_24_lines() {
        let mut view = all();
        view.obey(Command::Help);
        let whole = picture(&view, 80, 24);
        let keys =
            ["up, down", "Enter or 1-9", "s   ", "r   ", "p or space", "o   ", "Esc", "h or ?"];
        assert_has(&whole, &keys);
        assert_has(&whole, &["signal       interrupting", "needs none", "└───"]);
        view.obey(Command::Move(Step::By(2)));
        assert!(!picture(&view, 80, 24).contains("Enter or 1-9"));
    }

    #[test]
    fn any_size_of_terminal_will_do() {
        let mut views = [one(), all(), View::new(Some("/".into()), Vec::new(), Column::Stage)];
        for commands in [None, Some(Command::Outliers), Some(Command::Pause), Some(Command::Help)] {
            for view in &mut views {
                commands.into_iter().for_each(|command| view.obey(command));
                for (width, height) in (1..=30).flat_map(|n| [(n, n), (1, n), (n, 1), (80, n)]) {
                    picture(view, width, height);
                }
                picture(view, 300, 100);
            }
        }
    }
}
