//! The recorder that a daemon before this one left under the same name.
//!
//! The new recorder is another file, and begins with the records of the old one. Readers that have the old file open see
//! that its daemon is gone and that the name leads to another file. Both files have the same sizes, and the daemons ran in
//! the same boot of the host, because its clock starts again with it. Counters begin at 0: they are the daemon's. Sequence
//! numbers go on, and so do the counters of restarts.
//!
//! Records of a daemon that ran with other flags are left out: figures of two datapaths in one table would be of neither.
//!
//! Anything may be in the old file. Each record is checked, and its place in the new file does not depend on the old one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use host_files::FileId;
use host_files::own::own_file;

use crate::clock::{Anchor, Clock};
use crate::file::{Layout, RING_FIRST, WORKER_BEFORE, Words, word};
use crate::header::{Left, ReadError, left};
use crate::reader::Reader;
use crate::record::Record;

/// Largest error of an anchor: the CPU was lost while it was taken.
const ANCHOR_ERROR: Duration = Duration::from_millis(5);

/// Most packets of a ring: more than any daemon counts, and so few that counting on never overflows.
const SEQUENCE_MAX: u64 = 1 << 62;

/// What a new recorder found under its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// No records.
    Nothing,
    /// Records, which the new recorder begins with.
    Continued(Continued),
    /// A recorder of a daemon that ran with other flags. Its records are not in the new one.
    OtherFlags,
    /// A recorder whose records are not in the new one, for this reason.
    Unfit(String),
}

/// The part of a recorder that is of daemons before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Continued {
    /// Number of records.
    pub records: u64,
    /// The end of the last burst, ticks, if there is one.
    pub last_burst: Option<u64>,
    /// Whether the daemon before ended in order. If not, it was killed, or crashed.
    pub is_ended: bool,
}

/// The file at a recorder's path.
#[derive(Debug)]
pub(crate) struct AtPath {
    path: PathBuf,
    left: Left,
    file: FileId,
}

impl AtPath {
    /// Finds the recorder at `path`. The caller holds the lock on the name.
    ///
    /// # Errors
    /// When it is something else than a recorder of this user, or the system refuses.
    pub(crate) fn find(path: &Path) -> io::Result<Option<Self>> {
        let Some(found) = own_file(path)? else { return Ok(None) };
        match left(path)? {
            Some(left) => Ok(Some(Self { path: path.into(), left, file: FileId::of(&found) })),
            None => {
                let why = "the file there is no flight recorder; remove it";
                Err(io::Error::new(io::ErrorKind::InvalidInput, why))
            }
        }
    }

    /// Copies the records to the new file `to`, and counts them there.
    pub(crate) fn copy(
        &self,
        to: &Words,
        layout: &Layout,
        clock: &Clock,
        boot: Option<[u64; 2]>,
        facts: &str,
    ) -> Before {
        if !self.left.has_mark {
            return Before::Nothing;
        }
        match self.try_copy(to, layout, clock, boot, facts) {
            Ok(Some(Continued { records: 0, .. })) => Before::Nothing,
            Ok(Some(continued)) => Before::Continued(continued),
            Ok(None) => Before::OtherFlags,
            Err(why) => Before::Unfit(why),
        }
    }

    fn try_copy(
        &self,
        to: &Words,
        layout: &Layout,
        clock: &Clock,
        boot: Option<[u64; 2]>,
        facts: &str,
    ) -> Result<Option<Continued>, String> {
        let old = Reader::open(&self.path).map_err(|error| match error {
            ReadError::Version { found, .. } => {
                format!("expected version {}, found version {found}", crate::file::VERSION)
            }
            ReadError::Io { source, .. } => source.to_string(),
            error => error.to_string(),
        })?;
        if old.file() != self.file {
            return Err("another process replaced it".into());
        }
        fits(&old, layout, clock, boot)?;
        if comparable(&old.facts()) != comparable(facts) {
            return Ok(None);
        }
        let latest = clock.now().saturating_add(clock.ticks_per_second());
        let mut last_burst = None;
        let mut counts = Vec::with_capacity(layout.workers);
        for worker in 0..layout.workers {
            let mut copied = 0;
            let mut is_sound = true;
            let lost = old.read(&mut old.oldest(worker), |record| {
                is_sound &= copied < layout.capacity && is_possible(record, layout, latest);
                if is_sound {
                    to.store_record(layout.record(worker, copied), &record.to_words());
                    copied += 1;
                    if let Record::Burst(burst) = record {
                        last_burst = last_burst.max(Some(burst.last));
                    }
                }
            });
            if !is_sound {
                return Err(format!("record {copied} of its writer {worker} is damaged"));
            }
            if lost > 0 || copied as u64 != old.held(worker) || old.is_torn() {
                return Err("another process changed it meanwhile".into());
            }
            counts.push(copied as u64);
        }
        let firsts = next_sequences(&old, layout)?;
        for (ring, first) in firsts.into_iter().enumerate() {
            to.at(layout.ring(ring) + RING_FIRST).store(first, Ordering::Relaxed);
        }
        for (worker, &records) in counts.iter().enumerate() {
            to.at(layout.head(worker) + WORKER_BEFORE).store(records, Ordering::Relaxed);
            to.at(layout.head(worker)).store(records, Ordering::Release);
        }
        for at in [word::RESTARTS, word::SENT_TWICE_MAX] {
            to.at(at).store(old.number(at), Ordering::Relaxed);
        }
        let (records, is_ended) = (counts.iter().sum(), !self.left.is_running);
        Ok(Some(Continued { records, last_burst, is_ended }))
    }

    /// Gives the name to the file `new`. The recorder of a crashed daemon is renamed to `NAME.trace.crashed`.
    ///
    /// # Errors
    /// What the file system answers.
    pub(crate) fn replace(&self, new: &Path) -> io::Result<()> {
        if self.left.is_running {
            let mut aside = self.path.as_os_str().to_owned();
            aside.push(".crashed");
            fs::rename(&self.path, aside)?;
        }
        fs::rename(new, &self.path)
    }

    /// The process that wrote it, or writes it; 0 if it has no process number yet.
    pub(crate) const fn pid(&self) -> u64 {
        self.left.pid
    }
}

/// Whether the records of `old` have a meaning in a file with this layout, written with `clock` in this boot; if not, why.
fn fits(
    old: &Reader,
    layout: &Layout,
    clock: &Clock,
    boot: Option<[u64; 2]>,
) -> Result<(), String> {
    let expect = |what: &str, expected: usize, found: usize| match expected == found {
        true => Ok(()),
        false => Err(format!("expected {expected} {what}, found {found}")),
    };
    expect("writers", layout.workers, old.workers())?;
    expect("queue pairs", layout.queue_pairs, old.queue_pairs())?;
    expect("records of each writer", layout.capacity, old.capacity())?;
    if boot.is_none() || boot != old.boot() {
        return Err("the host was booted since".into());
    }
    if clock.kind() != old.clock() {
        let (expected, found) = (clock.kind().name(), old.clock().name());
        return Err(format!("expected the clock {expected}, found {found}"));
    }
    match goes_on(clock, old.anchor_latest(), clock.anchor()) {
        true => Ok(()),
        false => Err("its clock jumped since".into()),
    }
}

/// The facts of a daemon but its version and its control socket: they are its flags. A newer daemon goes on with the records
/// of an older one.
fn comparable(facts: &str) -> String {
    ["version", "control"].iter().fold(facts.to_owned(), |facts, key| {
        let cut = facts.split_once(&format!(r#""{key}":""#));
        let cut = cut.and_then(|(before, rest)| Some((before, rest.split_once('"')?.1)));
        cut.map_or_else(|| facts.clone(), |(before, after)| format!("{before}{after}"))
    })
}

/// The sequence number of each ring's next packet.
fn next_sequences(old: &Reader, layout: &Layout) -> Result<Vec<u64>, String> {
    // Packets are counted before their burst is stored, so after a kill in between no number comes twice.
    let next = |ring| old.first_sequence(ring).saturating_add(old.totals(ring).packets);
    let is_possible = |ring| match next(ring) {
        sequence if sequence <= SEQUENCE_MAX => Ok(sequence),
        _ => Err(format!("the counters of its queue {ring} are damaged")),
    };
    (0..layout.queue_pairs * 2).map(is_possible).collect()
}

/// Whether the counter ran at its rate from `before` to `now`, within a sixteenth and [`ANCHOR_ERROR`].
fn goes_on(clock: &Clock, before: Anchor, now: Anchor) -> bool {
    let Some(passed) = now.monotonic_ns.checked_sub(before.monotonic_ns) else { return false };
    let error = Duration::from_nanos(passed / 16) + ANCHOR_ERROR;
    let expected = before.ticks_at(now.monotonic_ns, clock);
    now.ticks.abs_diff(expected) <= clock.ticks_in(error)
}

/// Whether a daemon that has ended by now can have written this record. `latest`: the time now, with some time to spare for
/// stamps of the kernel, ticks.
fn is_possible(record: &Record, layout: &Layout, latest: u64) -> bool {
    let ring = match record {
        Record::Burst(burst) => burst.ring,
        Record::Drop(drop) => drop.ring,
        Record::Probe(probe) => probe.times.ring,
        Record::Cyclic(cyclic) => cyclic.times.ring,
        Record::KernelSpan(_)
        | Record::Interruption(_)
        | Record::Restart(_)
        | Record::Milestone(_)
        | Record::Migration(_) => 0,
        Record::Gap(_) | Record::Unknown(_) => return false,
    };
    usize::from(ring) < layout.queue_pairs * 2
        && record.first() <= latest
        && record.last() <= latest
}
