//! The commands that the keys of `ringscope top` give.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// The command of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// End the program.
    End,
    /// Open the screen of the marked guest.
    Open,
    /// Open the screen of the guest on this line, from 0.
    OpenLine(usize),
    /// Go back to the previous screen.
    Back,
    /// Go to another line.
    Move(Step),
    /// Sort by the next column.
    Sort,
    /// Reverse the order.
    Reverse,
    /// Show the slowest bursts first, or at their usual place.
    Outliers,
    /// Hold the screen, or let it go on.
    Pause,
    /// Show the help on keys and columns, or close it.
    Help,
}

/// A step from the current line to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// This number of lines down, or up if negative.
    By(isize),
    /// The first line.
    First,
    /// The last line.
    Last,
}

/// Lines that a page key moves by.
const PAGE: isize = 10;

/// The command of this key, if it has one.
#[must_use]
pub fn command(key: &KeyEvent) -> Option<Command> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) {
        let is_control_c = key.code == KeyCode::Char('c') && key.modifiers == KeyModifiers::CONTROL;
        return is_control_c.then_some(Command::End);
    }
    Some(match key.code {
        KeyCode::Char('q') => Command::End,
        KeyCode::Char('s') => Command::Sort,
        KeyCode::Char('r') => Command::Reverse,
        KeyCode::Char('o') => Command::Outliers,
        KeyCode::Char('p' | ' ') => Command::Pause,
        KeyCode::Char('h' | '?') => Command::Help,
        KeyCode::Char(digit @ '1'..='9') => Command::OpenLine(digit as usize - '1' as usize),
        KeyCode::Enter | KeyCode::Right => Command::Open,
        KeyCode::Esc | KeyCode::Left | KeyCode::Backspace => Command::Back,
        KeyCode::Up => Command::Move(Step::By(-1)),
        KeyCode::Down => Command::Move(Step::By(1)),
        KeyCode::PageUp => Command::Move(Step::By(-PAGE)),
        KeyCode::PageDown => Command::Move(Step::By(PAGE)),
        KeyCode::Home => Command::Move(Step::First),
        KeyCode::End => Command::Move(Step::Last),
        _ => return None,
    })
}

impl Step {
    /// The line that the step leads to from line `from`, if `last` is the last one.
    #[must_use]
    pub fn within(self, from: usize, last: usize) -> usize {
        match self {
            Self::By(lines) => from.saturating_add_signed(lines).min(last),
            Self::First => 0,
            Self::Last => last,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: KeyCode, modifiers: KeyModifiers) -> Option<Command> {
        command(&KeyEvent::new(code, modifiers))
    }

    #[test]
    fn keys_ask_for_what_the_help_says() {
        let plain = |code| of(code, KeyModifiers::NONE);
        assert_eq!(plain(KeyCode::Char('q')), Some(Command::End));
        assert_eq!(plain(KeyCode::Char(' ')), Some(Command::Pause));
        assert_eq!(plain(KeyCode::Char('3')), Some(Command::OpenLine(2)));
        assert_eq!(plain(KeyCode::Char('0')), None);
        assert_eq!(plain(KeyCode::Esc), Some(Command::Back));
        // Some terminals report the shift key that a question mark needs.
        assert_eq!(of(KeyCode::Char('?'), KeyModifiers::SHIFT), Some(Command::Help));
    }

    #[test]
    fn of_keys_with_control_only_c_counts() {
        assert_eq!(of(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Command::End));
        assert_eq!(of(KeyCode::Char('s'), KeyModifiers::CONTROL), None);
        assert_eq!(of(KeyCode::Char('c'), KeyModifiers::NONE), None);
        let mut released = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE);
        released.kind = KeyEventKind::Release;
        assert_eq!(command(&released), None);
    }

    #[test]
    fn a_step_stays_among_the_lines() {
        assert_eq!((Step::By(3).within(1, 2), Step::By(-3).within(1, 2)), (2, 0));
        assert_eq!((Step::Last.within(1, 2), Step::First.within(1, 2)), (2, 0));
        assert_eq!((Step::By(1).within(0, 0), Step::Last.within(0, 0)), (0, 0));
    }
}
