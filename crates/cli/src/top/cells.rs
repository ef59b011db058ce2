//! What the tables of `ringscope top` have in common.

use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Cell;

use report::Figures;
use report::units::time;

/// Titles.
pub const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
/// Above the columns.
pub const HEADING: Style = Style::new().add_modifier(Modifier::UNDERLINED);
/// What should not be.
pub const ALARM: Style = Style::new().fg(Color::Red);
/// Wide enough for a time with its unit.
pub const FIGURE_WIDTH: u16 = 9;

/// Mean, p50, p99 and max, or dashes.
#[must_use]
pub fn figure_cells(figures: Option<Figures>) -> [String; 4] {
    let Some(figures) = figures else { return [dash(), dash(), dash(), dash()] };
    let Figures { mean_ns, p50_ns, p99_ns, max_ns, .. } = figures;
    [time(mean_ns), time(p50_ns as f64), time(p99_ns as f64), time(max_ns as f64)]
}

/// In place of a figure that there is not.
#[must_use]
pub fn dash() -> String {
    "-".into()
}

/// A cell that ends where its column does.
#[must_use]
pub fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

/// A text, as an alarm if it is one.
#[must_use]
pub fn alarm_if(is_alarm: bool, text: String) -> Span<'static> {
    if is_alarm { Span::styled(text, ALARM) } else { Span::raw(text) }
}

/// Takes so many lines off the top of `rest`, or what there is.
pub fn cut(rest: &mut Rect, lines: u16) -> Rect {
    let height = lines.min(rest.height);
    let top = Rect { height, ..*rest };
    rest.y += height;
    rest.height -= height;
    top
}

/// Takes the last line off `rest`, if there is one.
pub fn cut_last(rest: &mut Rect) -> Rect {
    let height = rest.height.min(1);
    rest.height -= height;
    Rect { y: rest.y + rest.height, height, ..*rest }
}

/// A number of lines.
#[must_use]
pub fn lines(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}
