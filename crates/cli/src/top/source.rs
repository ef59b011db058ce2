//! The recorder that is followed, also across the daemon's restarts.

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

/// What the head of the screen says.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The daemon's name.
    pub name: String,
    /// What the daemon said of its run.
    pub facts: Facts,
    /// The daemon's process.
    pub pid: u64,
    /// Whether that process is there.
    pub is_alive: bool,
}

impl Source {
    /// Follows what was found, from now on.
    #[must_use]
    pub fn new(found: Found) -> Self {
        let Found { name, path, reader } = found;
        let start = reader.anchor_start();
        Self { name, path, start, follower: Follower::new(reader) }
    }

    /// Reads what came since the last time.
    pub fn poll(&mut self) {
        self.follower.poll();
    }

    /// What there was since the last time; goes over to a new daemon's recorder if there is one.
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

    /// A new daemon makes a new file, or writes the old one anew, with its own start in it.
    fn is_replaced(&self) -> bool {
        let reader = self.follower.reader();
        let is_new_file = FileId::of_path(&self.path).is_some_and(|file| file != reader.file());
        is_new_file || reader.anchor_start() != self.start
    }

    /// The name of the file: no other recorder of its run directory has it.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.name
    }

    /// Whether the file was removed, and nobody writes it any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        !self.path.exists() && !is_alive(self.follower.reader())
    }

    /// Whose recorder it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let reader = self.follower.reader();
        let facts = Facts::parse(&reader.facts());
        Identity {
            name: facts.name.clone().unwrap_or_else(|| without_controls(&self.name)),
            facts,
            pid: reader.pid(),
            is_alive: is_alive(reader),
        }
    }
}
