//! What the screen shows, and how keys change it.

use std::path::PathBuf;

use super::guests;
use super::help;
use super::keys::{Command, Step};
use super::order::Order;
use super::queues;
use super::sources::Sample;

/// What is shown, of which guests, in which order.
#[derive(Debug)]
pub struct View {
    /// The run directory whose table is shown, if more than one guest can be shown.
    pub(super) dir: Option<PathBuf>,
    /// In the order of the table.
    pub(super) samples: Vec<Sample>,
    /// Names of recorders that cannot be read.
    pub(super) unreadable: Vec<String>,
    pub(super) order: Order<guests::Column>,
    pub(super) queue_order: Order<queues::Column>,
    /// The marked guest by name, not by line, so that it stays marked when lines move.
    marked: Option<String>,
    /// The guest whose screen is open.
    opened: Option<String>,
    pub(super) outliers_first: bool,
    is_paused: bool,
    /// The first line of the help that is shown, while the help is open.
    pub(super) help_from_line: Option<usize>,
}

impl View {
    /// The table of `dir`, or the screen of the only guest.
    #[must_use]
    pub fn new(dir: Option<PathBuf>, samples: Vec<Sample>, sort_by: guests::Column) -> Self {
        let mut view = Self {
            dir,
            samples: Vec::new(),
            unreadable: Vec::new(),
            order: Order::by(sort_by),
            queue_order: Order::by(queues::Column::Queue),
            marked: None,
            opened: None,
            outliers_first: false,
            is_paused: false,
            help_from_line: None,
        };
        view.update(samples, &[]);
        view
    }

    /// Whether there is only one guest.
    #[must_use]
    pub const fn is_of_one(&self) -> bool {
        self.samples.len() == 1
    }

    /// Opens the screen of the first guest in place of the table.
    pub fn open_first(&mut self) {
        self.opened = self.samples.first().map(|sample| sample.key.clone());
        self.marked.clone_from(&self.opened);
    }

    /// Takes the samples that the next screen shows.
    pub fn update(&mut self, samples: Vec<Sample>, unreadable: &[String]) {
        self.samples = samples;
        self.unreadable = unreadable.to_vec();
        self.sort();
        if self.opened().is_none() {
            self.opened = None;
        }
    }

    /// Whether the screen is held as it is.
    #[must_use]
    pub const fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// The guest whose screen is open.
    #[must_use]
    pub fn opened(&self) -> Option<&Sample> {
        let opened = self.opened.as_ref()?;
        self.samples.iter().find(|sample| sample.key == *opened)
    }

    /// The table's marked line.
    #[must_use]
    pub fn marked_line(&self) -> usize {
        let is_marked = |sample: &Sample| Some(&sample.key) == self.marked.as_ref();
        self.samples.iter().position(is_marked).unwrap_or(0)
    }

    /// Executes a command of a key, except [`Command::End`].
    pub fn obey(&mut self, command: Command) {
        if let Some(from_line) = &mut self.help_from_line {
            match command {
                Command::Move(step) => {
                    *from_line = step.within(*from_line, help::last_line());
                }
                Command::Help | Command::Back | Command::Open => self.help_from_line = None,
                _ => {}
            }
            return;
        }
        let is_table = self.opened.is_none();
        match command {
            Command::Open if is_table => self.open_line(self.marked_line()),
            Command::OpenLine(line) if is_table => self.open_line(line),
            Command::Back if self.dir.is_some() => self.opened = None,
            Command::Move(step) if is_table => self.mark_line(step),
            Command::Sort if is_table => self.order = self.order.next(),
            Command::Sort => self.queue_order = self.queue_order.next(),
            Command::Reverse if is_table => self.order = self.order.reversed(),
            Command::Reverse => self.queue_order = self.queue_order.reversed(),
            Command::Outliers => self.outliers_first ^= true,
            Command::Pause => self.is_paused ^= true,
            Command::Help => self.help_from_line = Some(0),
            Command::End
            | Command::Open
            | Command::OpenLine(_)
            | Command::Back
            | Command::Move(_) => {}
        }
        self.sort();
    }

    fn open_line(&mut self, line: usize) {
        let Some(sample) = self.samples.get(line) else { return };
        self.opened = Some(sample.key.clone());
        self.marked.clone_from(&self.opened);
    }

    fn mark_line(&mut self, step: Step) {
        let last = self.samples.len().saturating_sub(1);
        let line = step.within(self.marked_line(), last);
        self.marked = self.samples.get(line).map(|sample| sample.key.clone());
    }

    fn sort(&mut self) {
        // Sorted by name first, so that equal guests do not keep an earlier order.
        self.samples.sort_by(|one, other| one.key.cmp(&other.key));
        self.order.sort(&mut self.samples, |sample, column| column.value(sample));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::fixture::{names, sample};

    /// The table of vm0, vm1 and vm2. The second has most packets, the third has none.
    fn view() -> View {
        let samples = [("vm0", 10), ("vm1", 30), ("vm2", 0)].map(|(name, n)| sample(name, n));
        View::new(Some("/run/ringscope".into()), samples.into(), guests::Column::Name)
    }

    fn opened(view: &View) -> Option<&str> {
        view.opened().map(|sample| sample.key.as_str())
    }

    #[test]
    fn a_guest_is_marked_opened_and_left() {
        let mut view = view();
        assert_eq!((opened(&view), view.marked_line()), (None, 0));
        view.obey(Command::Move(Step::By(1)));
        view.obey(Command::Open);
        assert_eq!(opened(&view), Some("vm1"));
        // The table is not shown now.
        view.obey(Command::OpenLine(0));
        view.obey(Command::Move(Step::First));
        assert_eq!(opened(&view), Some("vm1"));
        view.obey(Command::Back);
        assert_eq!((opened(&view), view.marked_line()), (None, 1));
        view.obey(Command::OpenLine(2));
        assert_eq!(opened(&view), Some("vm2"));
        view.obey(Command::Back);
        view.obey(Command::OpenLine(8));
        assert_eq!((opened(&view), view.marked_line()), (None, 2));
    }

    #[test]
    fn a_guest_that_was_named_is_not_left() {
        let mut view = View::new(None, vec![sample("vm0", 1)], guests::Column::Name);
        assert!(view.is_of_one());
        view.open_first();
        view.obey(Command::Back);
        assert_eq!(opened(&view), Some("vm0"));
    }

    #[test]
    fn the_order_changes_and_the_same_guest_stays_marked() {
        let mut view = view();
        assert_eq!(names(&view), ["vm0", "vm1", "vm2"]);
        view.obey(Command::Reverse);
        assert_eq!((names(&view), view.marked_line()), (["vm2", "vm1", "vm0"].into(), 0));
        view.obey(Command::Move(Step::Last));
        view.obey(Command::Sort);
        assert_eq!(view.order.column(), guests::Column::Datapath);
        view.obey(Command::Sort);
        assert_eq!(view.order.column(), guests::Column::TxPackets);
        assert_eq!((names(&view), view.marked_line()), (["vm1", "vm0", "vm2"].into(), 1));
        view.obey(Command::Open);
        view.obey(Command::Sort);
        assert_eq!(view.queue_order.column(), queues::Column::Rate);
        assert_eq!(view.order.column(), guests::Column::TxPackets);
    }

    #[test]
    fn the_order_is_that_of_the_newest_interval() {
        let mut view = view();
        view.order = Order::by(guests::Column::TxMax);
        let samples = vec![sample("vm2", 70), sample("vm0", 1), sample("new", 0)];
        view.update(samples, &["broken".into()]);
        assert_eq!(names(&view), ["vm0", "vm2", "new"], "all as fast, and one without a time");
        assert_eq!(view.unreadable, ["broken"]);
    }

    #[test]
    fn when_the_guest_is_gone_the_table_is_shown() {
        let mut view = view();
        view.obey(Command::OpenLine(1));
        view.update(vec![sample("vm0", 1)], &[]);
        assert_eq!(opened(&view), None);
        // It comes back as a line of the table.
        view.update(vec![sample("vm0", 1), sample("vm1", 1)], &[]);
        assert_eq!((opened(&view), view.marked_line()), (None, 1));
        view.update(Vec::new(), &[]);
        for command in [Command::Open, Command::Move(Step::Last), Command::OpenLine(0)] {
            view.obey(command);
        }
        assert_eq!((opened(&view), view.marked_line()), (None, 0));
    }

    #[test]
    fn help_has_the_keys_until_it_is_closed() {
        let mut view = view();
        view.obey(Command::Help);
        view.obey(Command::Move(Step::Last));
        view.obey(Command::Pause);
        view.obey(Command::Sort);
        assert_eq!((view.help_from_line, view.is_paused()), (Some(help::last_line()), false));
        view.obey(Command::Back);
        assert_eq!((view.help_from_line, view.order.column()), (None, guests::Column::Name));
        view.obey(Command::Pause);
        assert!(view.is_paused());
        view.obey(Command::Pause);
        assert!(!view.is_paused());
    }
}
