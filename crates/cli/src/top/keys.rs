//! What the keys of `ringscope top` ask for.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// The end.
    End,
    /// The screen of the guest that is marked.
    Open,
    /// The screen of the guest on this line, from 0.
    OpenLine(usize),
    /// Back to where one came from.
    Back,
    /// Another line.
    Move(Step),
    /// The next column to sort by.
    Sort,
    /// The other way round.
    Reverse,
    /// The slowest bursts first, or where they belong.
    Outliers,
    /// The picture stays, or goes on.
    Pause,
    /// What the keys and columns are, or no longer.
    Help,
}

/// Which line from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many lines down, or up if negative.
    By(isize),
    /// The first line.
    First,
    /// The last line.
    Last,
}

/// Lines that a key for a page goes on.
const PAGE: isize = 10;

/// What this key asks for, if anything.
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
    /// Where it leads from line `from`, when `last` is the last one.
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
        // Some terminals tell of the shift that a question mark takes.
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
