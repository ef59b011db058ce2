//! Times without bursts, and what happened to the front end.

use std::io::{self, Write};

use burst_trace::{Clocks, Migration, MigrationParts, Milestone, Restart, RestartParts, Step};

use super::proto::{TYPE_INSTANT, TYPE_SLICE_BEGIN, TrackEvent};
use super::{Category, Owner, Trace, end_of, event};
use crate::migration::MigrationRow;
use crate::restart::RestartRow;

impl<W: Write> Trace<'_, W> {
    /// A slice with a slice for each part.
    pub(super) fn add_restart(&mut self, restart: &Restart) -> io::Result<()> {
        let RestartParts { no_daemon, front_end, first_burst } = restart.parts();
        let row = RestartRow::new(restart, self.rate, self.when);
        let parts =
            [("no daemon", no_daemon), ("front end", front_end), ("first burst", first_burst)];
        let name = format!("{} ({})", row.kind(), row.words());
        let category = Category::Restart;
        self.add_pause(Owner::Restarts, category, name, (restart.before, restart.after), parts)
    }

    /// The same; an instant at its end if the clocks of the hosts do not say how long it was.
    pub(super) fn add_migration(&mut self, migration: &Migration) -> io::Result<()> {
        let row = MigrationRow::new(migration, self.rate, self.when);
        let (owner, category) = (Owner::Migrations, Category::Migration);
        let name = format!("migration ({})", row.gap());
        if migration.clocks == Clocks::Unknown {
            let track = self.first_lane(owner)?;
            let at = self.when.monotonic_ns(migration.after);
            return self.put_event(at, named(TYPE_INSTANT, track, category, name));
        }
        let MigrationParts { stopping, between, first_burst } = migration.parts();
        let parts = [
            ("rings stopped", stopping.unwrap_or(0)),
            ("between hosts", between),
            ("first burst", first_burst.unwrap_or(0)),
        ];
        self.add_pause(owner, category, name, (migration.before, migration.after), parts)
    }

    /// An instant.
    pub(super) fn add_milestone(&mut self, milestone: &Milestone) -> io::Result<()> {
        let name = match milestone.step {
            Step::FrontEndCame => "front end came".into(),
            Step::FrontEndLeft => "front end left".into(),
            Step::RingStarted(ring) => format!("ring {ring} started"),
            Step::RingStopped(ring) => format!("ring {ring} stopped"),
            Step::Announced(address) => {
                format!("announced {}", address.map(|byte| format!("{byte:02x}")).join(":"))
            }
        };
        let track = self.first_lane(Owner::FrontEnd)?;
        let at = self.when.monotonic_ns(milestone.at);
        self.put_event(at, named(TYPE_INSTANT, track, Category::FrontEnd, name))
    }

    fn add_pause(
        &mut self,
        owner: Owner,
        category: Category,
        name: String,
        (before, after): (u64, u64),
        parts: [(&str, u64); 3],
    ) -> io::Result<()> {
        let start = self.when.monotonic_ns(before);
        let end = self.when.monotonic_ns(after).max(start);
        let track = self.lane(owner, start, end)?;
        let begin = |name: String| named(TYPE_SLICE_BEGIN, track, category, name);
        self.put_event(start, begin(name))?;
        let (mut at, mut from) = (before, start);
        for (name, ticks) in parts {
            at += ticks;
            let to = self.when.monotonic_ns(at);
            if to > from {
                self.put_event(from, begin(name.into()))?;
                self.put_event(to, end_of(track))?;
            }
            from = to;
        }
        self.put_event(end, end_of(track))
    }
}

fn named(kind: i32, track: u64, category: Category, name: String) -> TrackEvent {
    TrackEvent { name_iid: None, name: Some(name), ..event(kind, track, category, 0, vec![]) }
}
