//! Cells, styles and cuts that the tables of `ringscope top` share.

use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Cell;

use report::Figures;
use report::units::time;

/// Style of titles.
pub const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
/// Style of column headings.
pub const HEADING: Style = Style::new().add_modifier(Modifier::UNDERLINED);
/// Style of what should not happen.
pub const ALARM: Style = Style::new().fg(Color::Red);
/// Width of a time with its unit.
pub const FIGURE_WIDTH: u16 = 9;

/// Mean, p50, p99 and max, or dashes.
#[must_use]
pub fn figure_cells(figures: Option<Figures>) -> [String; 4] {
    let Some(figures) = figures else { return [dash(), dash(), dash(), dash()] };
    let Figures { mean_ns, p50_ns, p99_ns, max_ns, .. } = figures;
    [time(mean_ns), time(p50_ns as f64), time(p99_ns as f64), time(max_ns as f64)]
}

/// Shown in place of a missing figure.
#[must_use]
pub fn dash() -> String {
    "-".into()
}

/// A right-aligned cell.
#[must_use]
pub fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

/// A text, in alarm style if it is an alarm.
#[must_use]
pub fn alarm_if(is_alarm: bool, text: String) -> Span<'static> {
    if is_alarm { Span::styled(text, ALARM) } else { Span::raw(text) }
}

/// Cuts this number of lines off the top of `rest`, or as many as there are.
pub fn cut(rest: &mut Rect, lines: u16) -> Rect {
    let height = lines.min(rest.height);
    let top = Rect { height, ..*rest };
    rest.y += height;
    rest.height -= height;
    top
}

/// Cuts the last line off `rest`, if there is one.
pub fn cut_last(rest: &mut Rect) -> Rect {
    let height = rest.height.min(1);
    rest.height -= height;
    Rect { y: rest.y + rest.height, height, ..*rest }
}

/// Converts a number of lines.
#[must_use]
pub fn lines(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}
