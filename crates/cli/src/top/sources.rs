//! The recorders that are followed: the one that was named, or all of a run directory, including those that come later.

use std::path::PathBuf;

use report::Interval;

use super::source::{Identity, Source};
use crate::recorder::{Choice, FindError, names, open};

/// All recorders that are followed.
#[derive(Debug)]
pub struct Sources {
    /// Directory to search for new ones, unless one was named.
    dir: Option<PathBuf>,
    /// Sorted by name.
    all: Vec<Source>,
    unreadable: Vec<String>,
}

/// One guest at the end of an interval.
#[derive(Clone, Debug)]
pub struct Sample {
    /// A key that no other guest has.
    pub key: String,
    /// The daemon that writes the recorder.
    pub identity: Identity,
    /// The figures of the interval; `None` for a recorder that has just been found.
    pub interval: Option<Interval>,
}

impl Sources {
    /// Opens the named recorder, or all.
    ///
    /// # Errors
    /// If the named recorder cannot be read. Without a name: if the directory cannot be read, or none of its recorders;
    /// with `may_be_none`, the latter is no error.
    pub fn open(choice: &Choice, may_be_none: bool) -> Result<Self, FindError> {
        if choice.name().is_some() {
            let source = Source::new(choice.open()?);
            return Ok(Self { dir: None, all: vec![source], unreadable: Vec::new() });
        }
        let dir = choice.run_dir()?;
        let (mut all, mut unreadable, mut first_error) = (Vec::new(), Vec::new(), None);
        for name in names(&dir)? {
            match open(&dir, name.clone()) {
                Ok(found) => all.push(Source::new(found)),
                Err(error) => {
                    unreadable.push(name);
                    first_error.get_or_insert(error);
                }
            }
        }
        if all.is_empty() && !may_be_none {
            return Err(first_error.unwrap_or(FindError::None { dir }));
        }
        Ok(Self { dir: Some(dir), all, unreadable })
    }

    /// The run directory, if all recorders in it are followed.
    #[must_use]
    pub const fn dir(&self) -> Option<&PathBuf> {
        self.dir.as_ref()
    }

    /// Files of the directory that are no recorders of this version, or that may not be read.
    #[must_use]
    pub fn unreadable(&self) -> &[String] {
        &self.unreadable
    }

    /// Reads the records written since the last call.
    pub fn poll(&mut self) {
        self.all.iter_mut().for_each(Source::poll);
    }

    /// All guests, before any figures are known.
    #[must_use]
    pub fn first(&self) -> Vec<Sample> {
        self.all.iter().map(just_found).collect()
    }

    /// The figures since the last call, and guests that are new.
    pub fn take(&mut self) -> Vec<Sample> {
        let mut samples: Vec<_> = self
            .all
            .iter_mut()
            .map(|source| Sample {
                key: source.key().to_owned(),
                // Read before `take`, which may switch to the next daemon: the interval is this daemon's.
                identity: source.identity(),
                interval: Some(source.take()),
            })
            .collect();
        samples.extend(self.look_for_new());
        samples.sort_by(|one, other| one.key.cmp(&other.key));
        samples
    }

    fn look_for_new(&mut self) -> Vec<Sample> {
        // A directory that cannot be listed now may come back with the next daemon.
        let Some((dir, names)) = self.dir.as_ref().and_then(|dir| Some((dir, names(dir).ok()?)))
        else {
            return Vec::new();
        };
        self.all.retain(|source| !source.is_gone());
        self.unreadable.clear();
        let mut new = Vec::new();
        for name in names {
            if self.all.iter().any(|source| source.key() == name) {
                continue;
            }
            match open(dir, name.clone()) {
                Ok(found) => {
                    let source = Source::new(found);
                    new.push(just_found(&source));
                    self.all.push(source);
                }
                // Perhaps its daemon is just making it, so it is tried again each time.
                Err(_) => self.unreadable.push(name),
            }
        }
        self.all.sort_by(|one, other| one.key().cmp(other.key()));
        new
    }
}

fn just_found(source: &Source) -> Sample {
    Sample { key: source.key().to_owned(), identity: source.identity(), interval: None }
}
