//! The recorder that a daemon before this one left under the same name.
//!
//! The new recorder is another file, with the records of the old one. Readers that have the old file open see that its
//! daemon is gone and that the name leads to another file. Both files have the same sizes, but for a writer for times in the host kernel, whose
//! records only go on where both have one. The daemons ran in the same
//! boot of the host, because its clock starts again with it. Counters begin at 0: they are the daemon's. Sequence numbers go
//! on, and so do the counters of restarts.
//!
//! To copy the records takes milliseconds, so they are copied when the guest is served already ([`Old::copy`]). They have a
//! part of the file of their own, which no worker writes. Its mark is written last, and read when a reader opens the file:
//! so a reader has all of these records, or none.
//!
//! Records of a daemon that ran with other flags are left out: figures of two datapaths in one table would be of neither.
//!
//! Anything may be in the old file. Each record is checked, and its place in the new file does not depend on the old one.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use host_files::own::own_file;
use host_files::{FileId, open_regular};

use crate::clock::{Anchor, Clock};
use crate::file::{HEADER_WORDS, Layout, MAGIC, RING_FIRST, WORKER_BEFORE, Words, word};
use crate::header::ReadError;
use crate::reader::Reader;
use crate::record::Record;
use crate::restart::Ending;
use crate::restarting;

/// Largest error of an anchor: the CPU was lost while it was taken.
const ANCHOR_ERROR: Duration = Duration::from_millis(5);

/// Most packets of a ring: more than any daemon counts, and so few that counting on never overflows.
const SEQUENCE_MAX: u64 = 1 << 62;

/// Newest records of a writer that are searched for its last burst, while no guest is served. The writer for times in the
/// host kernel has none.
const SEARCHED: u64 = 4096;

/// What a new recorder found under its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// No records.
    Nothing,
    /// As many records, which the new recorder has, too.
    Continued(u64),
    /// A recorder of a daemon that ran with other flags. Its records are not in the new one.
    OtherFlags,
    /// A recorder whose records are not in the new one, for this reason.
    Unfit(String),
}

/// What the records of an old recorder must fit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Own<'a> {
    pub layout: &'a Layout,
    pub clock: &'a Clock,
    pub boot: Option<[u64; 2]>,
    pub facts: &'a str,
}

/// The daemon of the file at a recorder's path.
#[derive(Clone, Copy, Debug)]
struct Left {
    /// The process that writes the file, or wrote it.
    pid: u64,
    /// The daemon runs, or crashed.
    is_running: bool,
    /// The header is whole. If not, the file has no records.
    has_mark: bool,
}

/// The file at a recorder's path.
#[derive(Debug)]
pub(crate) struct AtPath {
    path: PathBuf,
    left: Left,
    file: FileId,
}

/// A recorder of a daemon before, whose records the new one gets.
#[derive(Debug)]
pub(crate) struct Old {
    reader: Reader,
    clock: Clock,
    is_ended: bool,
}

/// Where a daemon before stopped.
#[derive(Debug)]
pub(crate) struct Stand {
    /// The sequence number of each ring's next packet.
    firsts: Vec<u64>,
    /// The end of its last burst, ticks.
    last_burst: Option<u64>,
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

    /// Opens it, if its records fit into the new recorder. It may be written by a daemon that runs.
    ///
    /// # Errors
    /// [`Before`] without records.
    pub(crate) fn open(&self, own: Own<'_>) -> Result<Old, Before> {
        if !self.left.has_mark {
            return Err(Before::Nothing);
        }
        let reader = Reader::open(&self.path).map_err(|error| {
            Before::Unfit(match error {
                ReadError::Version { found, .. } => {
                    format!("expected version {}, found version {found}", crate::file::VERSION)
                }
                ReadError::Io { source, .. } => source.to_string(),
                error => error.to_string(),
            })
        })?;
        if reader.file() != self.file {
            return Err(Before::Unfit("another process replaced it".into()));
        }
        Old::new(reader, own, !self.left.is_running)
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

impl Old {
    fn new(reader: Reader, own: Own<'_>, is_ended: bool) -> Result<Self, Before> {
        fits(&reader, own).map_err(Before::Unfit)?;
        if comparable(&reader.facts()) != comparable(own.facts) {
            return Err(Before::OtherFlags);
        }
        Ok(Self { reader, clock: *own.clock, is_ended })
    }

    /// Where its daemon stopped.
    ///
    /// # Errors
    /// When its counters make no sense.
    pub(crate) fn stand(&self, layout: &Layout) -> Result<Stand, String> {
        let firsts = next_sequences(&self.reader, layout)?;
        let latest = latest(&self.clock);
        let last = |worker| self.reader.last_burst(worker, SEARCHED);
        let bursts = (0..layout.workers.min(self.reader.workers())).filter_map(last);
        let bursts = bursts.filter(|burst| is_possible(&Record::Burst(*burst), layout, latest));
        Ok(Stand { firsts, last_burst: bursts.map(|burst| burst.last).max() })
    }

    /// What its daemon left. `taken_over_at`: when that stopped the rings for this one, `CLOCK_MONOTONIC` nanoseconds.
    pub(crate) fn left(
        &self,
        stand: &Stand,
        taken_over_at: Option<u64>,
    ) -> Option<restarting::Left> {
        let process = u32::try_from(self.reader.pid()).unwrap_or(0);
        let (at, ending) = match taken_over_at {
            Some(at) => (self.clock.anchor().ticks_at(at, &self.clock), Ending::TakenOver),
            None if self.is_ended => (stand.last_burst?, Ending::Ended),
            None => (stand.last_burst?, Ending::Killed),
        };
        Some(restarting::Left { at, ending, process })
    }

    /// Whether it has no records for a file of this layout.
    pub(crate) fn is_empty(&self, layout: &Layout) -> bool {
        (0..self.reader.workers().min(layout.workers)).all(|worker| self.reader.held(worker) == 0)
    }

    /// Counts on in the new file `to`.
    pub(crate) fn count_on(&self, stand: &Stand, to: &Words, layout: &Layout) {
        for (ring, first) in stand.firsts.iter().enumerate() {
            to.at(layout.ring(ring) + RING_FIRST).store(*first, Ordering::Relaxed);
        }
        for at in [word::RESTARTS, word::SENT_TWICE_MAX] {
            to.at(at).store(self.reader.number(at), Ordering::Relaxed);
        }
    }

    /// Copies the records to the new file `to`, which has room for them. Returns their number.
    ///
    /// # Errors
    /// Why they are not in the new file.
    pub(crate) fn copy(&self, to: &Words, layout: &Layout) -> Result<u64, String> {
        let (latest, mut records) = (latest(&self.clock), 0);
        for worker in 0..layout.workers.min(self.reader.workers()) {
            let held = usize::try_from(self.reader.held(worker)).unwrap_or(usize::MAX);
            let (mut copied, mut is_sound) = (0, true);
            let lost = self.reader.read(&mut self.reader.oldest(worker), |record| {
                is_sound &= copied < held && is_possible(record, layout, latest);
                if is_sound {
                    let slot = layout.capacity - held + copied;
                    to.store_record(layout.record_before(worker, slot), &record.to_words());
                    copied += 1;
                }
            });
            if !is_sound {
                return Err(format!("record {copied} of its writer {worker} is damaged"));
            }
            if lost > 0 || copied != held || self.reader.is_torn() {
                return Err("another process changed it meanwhile".into());
            }
            to.at(layout.head(worker) + WORKER_BEFORE).store(held as u64, Ordering::Relaxed);
            records += held as u64;
        }
        to.at(word::BEFORE).store(1, Ordering::Release);
        Ok(records)
    }
}

/// The time now, with some time to spare for stamps of the kernel, ticks.
fn latest(clock: &Clock) -> u64 {
    clock.now().saturating_add(clock.ticks_per_second())
}

/// Whether the records of `old` have a meaning in the new recorder; if not, why.
fn fits(old: &Reader, own: Own<'_>) -> Result<(), String> {
    let Own { layout, clock, boot, .. } = own;
    let expect = |what: &str, expected: usize, found: usize| match expected == found {
        true => Ok(()),
        false => Err(format!("expected {expected} {what}, found {found}")),
    };
    // One of both may have a writer for times in the host kernel, the last one.
    if layout.workers.abs_diff(old.workers()) > 1 {
        expect("writers", layout.workers, old.workers())?;
    }
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

/// Reads which daemon left the recorder at `path`, of any version; `None` when the file is no recorder. An empty file, or
/// one without its mark yet, counts as a recorder without records.
fn left(path: &Path) -> io::Result<Option<Left>> {
    let file = open_regular(path)?;
    let number = |at: usize| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at as u64 * 8).map(|()| u64::from_le_bytes(bytes))
    };
    if file.metadata()?.len() < HEADER_WORDS as u64 * 8 {
        let is_empty = file.metadata()?.len() == 0;
        return Ok(is_empty.then_some(Left { pid: 0, is_running: false, has_mark: false }));
    }
    match number(word::MAGIC)? {
        MAGIC => {
            let is_running = number(word::RUNNING)? == 1;
            Ok(Some(Left { pid: number(word::PID)?, is_running, has_mark: true }))
        }
        // The mark is written last.
        0 => Ok(Some(Left { pid: 0, is_running: false, has_mark: false })),
        _ => Ok(None),
    }
}

/// The facts of a daemon but its version, its control socket, and what of the host kernel it measured for a time: they are its flags. A
/// newer daemon goes on with the records of an older one.
fn comparable(facts: &str) -> String {
    let mut left_out = vec!["version", "control", "kernel_windows"];
    if facts.contains(r#""kernel_windows":["#) || facts.contains(r#""kernel_stages":null"#) {
        left_out.push("kernel_stages");
    }
    left_out.iter().fold(facts.to_owned(), |facts, key| {
        let cut = facts.split_once(&format!(r#""{key}":"#));
        let cut = cut.and_then(|(before, rest)| Some((before, &rest[value_len(rest)?..])));
        let cut = cut.map(|(before, after)| (before, after.strip_prefix(',').unwrap_or(after)));
        cut.map_or_else(|| facts.clone(), |(before, after)| format!("{before}{after}"))
    })
}

/// The length of the JSON value at the beginning of `text`, in an object.
fn value_len(text: &str) -> Option<usize> {
    let (mut depth, mut in_string, mut is_escaped) = (0_usize, false, false);
    text.bytes().position(|byte| {
        let is_end = !in_string && depth == 0 && matches!(byte, b',' | b'}');
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = in_string,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        is_end
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

/// Whether a daemon that has ended by now can have written this record.
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
