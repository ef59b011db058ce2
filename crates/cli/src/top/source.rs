//! A recorder that is followed, also across the daemon's restarts.

use std::path::PathBuf;

use burst_trace::Reader;
use burst_trace::clock::Anchor;
use host_files::FileId;
use report::breakdown::is_alive;
use report::{Facts, Follower, Interval, without_controls};

use crate::recorder::Found;

/// A recorder, and the file it was opened from.
#[derive(Debug)]
pub struct Source {
    name: String,
    path: PathBuf,
    start: Anchor,
    follower: Follower,
}

/// What the head of the screen shows.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The daemon's name.
    pub name: String,
    /// What the daemon reported about its run.
    pub facts: Facts,
    /// The daemon's process.
    pub pid: u64,
    /// Whether that process still runs.
    pub is_alive: bool,
    /// How often the guest's rings went on in another daemon.
    pub restarts: u64,
}

impl Source {
    /// Follows `found` from now on.
    #[must_use]
    pub fn new(found: Found) -> Self {
        let Found { name, path, reader } = found;
        let start = reader.anchor_start();
        Self { name, path, start, follower: Follower::new(reader) }
    }

    /// Reads the records written since the last call.
    pub fn poll(&mut self) {
        self.follower.poll();
    }

    /// Returns the figures since the last call. Then switches to a new daemon's recorder if there is one.
    pub fn take(&mut self) -> Interval {
        let interval = self.follower.take();
        if self.is_replaced()
            && let Ok(reader) = Reader::open(&self.path)
        {
            self.start = reader.anchor_start();
            self.follower = Follower::new(reader);
        }
        interval
    }

    /// A new daemon makes a new file, or writes the old one again with its own start time in it.
    fn is_replaced(&self) -> bool {
        let reader = self.follower.reader();
        let is_new_file = FileId::of_path(&self.path).is_some_and(|file| file != reader.file());
        is_new_file || reader.anchor_start() != self.start
    }

    /// The file's name, which is unique in its run directory.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.name
    }

    /// Whether the file was removed and nobody writes it any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        !self.path.exists() && !is_alive(self.follower.reader())
    }

    /// The daemon that writes this recorder.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let reader = self.follower.reader();
        let facts = Facts::parse(&reader.facts());
        Identity {
            name: facts.name.clone().unwrap_or_else(|| without_controls(&self.name)),
            facts,
            pid: reader.pid(),
            is_alive: is_alive(reader),
            restarts: reader.restarts(),
        }
    }
}
