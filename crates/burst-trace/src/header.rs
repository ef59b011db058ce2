//! The part before the records, in a flight recorder and in a recording.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use host_files::{FileId, open_regular};

use crate::clock::{Anchor, ClockKind};
use crate::file::{
    ANCHOR_WORDS, FACTS_BYTES_MAX, HEADER_WORDS, Layout, RING_BURSTS, RING_BYTES, RING_DROPS,
    RING_EVENTS, RING_FIRST, RING_GRO_FRAMES, RING_GRO_SEGMENTS, RING_MOVES, RING_NOTIFICATIONS,
    RING_PACKETS, RING_WORDS, VERSION, WORKER_THREAD, Words, word,
};
use crate::gro::GroCounts;
use crate::notification::Notifications;
use crate::stage::{DropCause, SocketEvent};

/// Why a recorder or a recording could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be opened or mapped.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The file is something else, or half of one.
    #[error(
        "{path} is no flight recorder or recording that this version reads: expected {expected}, found {found}"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// The file has another version of the layout.
    #[error(
        "{path} cannot be read: expected version {VERSION} of the recorder's file format, found version {found}; read it \
         with the ringscope that belongs to the ringscoped that wrote it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// The daemon ended while it wrote the relation of the recorder's clock to the host's clocks.
    #[error(
        "{path} cannot be used: expected its clock's relation to the host's clocks, found it half written for {} ms; \
         its daemon ended, or was stopped, in that moment",
        HALF_WAIT.as_millis()
    )]
    HalfAnchor {
        /// The file.
        path: PathBuf,
    },
}

/// Longest wait for what is being replaced. A write takes nanoseconds, unless the daemon loses its CPU or ends in
/// the middle of it.
const HALF_WAIT: Duration = Duration::from_millis(500);

/// The totals of one virtqueue since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets that went through.
    pub packets: u64,
    /// Their bytes, without net headers.
    pub bytes: u64,
    /// Number of bursts they came in.
    pub bursts: u64,
}

impl Totals {
    /// Those of both.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets.saturating_add(other.packets),
            bytes: self.bytes.saturating_add(other.bytes),
            bursts: self.bursts.saturating_add(other.bursts),
        }
    }
}

/// A file's header, checked once: sizes, clock, facts, totals and drops.
#[derive(Debug)]
pub struct Header {
    words: Words,
    layout: Layout,
    clock: ClockKind,
    file: FileId,
}

impl Header {
    /// Maps the file at `path` and checks its header. It must begin with `mark` and have at least `room` words.
    ///
    /// # Errors
    /// When the file cannot be read, or is something else.
    pub(crate) fn open(
        path: &Path,
        mark: u64,
        room: impl FnOnce(&Layout) -> usize,
    ) -> Result<Self, ReadError> {
        let file =
            open_regular(path).map_err(|source| ReadError::Io { path: path.into(), source })?;
        Self::of(&file, path, mark, room)
    }

    /// The same of an open file, which was found at `path`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn of(
        file: &File,
        path: &Path,
        mark: u64,
        room: impl FnOnce(&Layout) -> usize,
    ) -> Result<Self, ReadError> {
        let io_error = |source| ReadError::Io { path: path.into(), source };
        let format = |expected: String, found: String| ReadError::Format {
            path: path.into(),
            expected,
            found,
        };
        let bytes = file.metadata().map_err(io_error)?.len();
        if bytes < HEADER_WORDS as u64 * 8 {
            return Err(format(format!("at least {} bytes", HEADER_WORDS * 8), format!("{bytes}")));
        }
        let words = Words::map_read_only(file).map_err(io_error)?;
        let found = words.at(word::MAGIC).load(Ordering::Acquire);
        if found != mark {
            let name = |mark: u64| mark.to_le_bytes().escape_ascii().to_string();
            return Err(format(format!("the mark {}", name(mark)), name(found)));
        }
        let number = |at: usize| words.at(at).load(Ordering::Relaxed);
        if number(word::VERSION) != VERSION {
            return Err(ReadError::Version { path: path.into(), found: number(word::VERSION) });
        }
        let size = |at: usize| usize::try_from(number(at)).unwrap_or(usize::MAX);
        let layout = Layout {
            workers: size(word::WORKERS),
            queue_pairs: size(word::QUEUE_PAIRS),
            capacity: size(word::CAPACITY),
        };
        if !layout.is_sane() || words.len() < room(&layout) {
            return Err(format("sizes that fit the file".into(), format!("{layout:?}")));
        }
        let clock = u32::try_from(number(word::CLOCK)).ok().and_then(ClockKind::from_number);
        let clock =
            clock.ok_or_else(|| format("a known clock".into(), number(word::CLOCK).to_string()))?;
        let file = FileId::of_file(file).map_err(io_error)?;
        let header = Self { words, layout, clock, file };
        match header.whole_anchor() {
            Some(_) => Ok(header),
            None => Err(ReadError::HalfAnchor { path: path.into() }),
        }
    }

    /// The file's identity.
    #[must_use]
    pub const fn file(&self) -> FileId {
        self.file
    }

    /// Whether another file is at `path`, from which this one was opened: another daemon has made its own.
    #[must_use]
    pub fn is_replaced(&self, path: &Path) -> bool {
        FileId::of_path(path).is_some_and(|found| found != self.file)
    }

    pub(crate) const fn words(&self) -> &Words {
        &self.words
    }

    pub(crate) const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Number of workers that write.
    #[must_use]
    pub const fn workers(&self) -> usize {
        self.layout.workers
    }

    /// Number of the device's queue pairs.
    #[must_use]
    pub const fn queue_pairs(&self) -> usize {
        self.layout.queue_pairs
    }

    /// Number of records that the recorder keeps of each worker.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.layout.capacity
    }

    /// Which clock stamped the records.
    #[must_use]
    pub const fn clock(&self) -> ClockKind {
        self.clock
    }

    /// The clock's rate, as the daemon has measured it so far.
    #[must_use]
    pub fn ticks_per_second(&self) -> u64 {
        self.number(word::TICKS_PER_SECOND).max(1)
    }

    /// The process that writes, or wrote.
    #[must_use]
    pub fn pid(&self) -> u64 {
        self.number(word::PID)
    }

    /// Whether the daemon runs or has crashed; `false` after an orderly end.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.number(word::RUNNING) == 1
    }

    /// The thread of `worker`, if it is known.
    ///
    /// # Panics
    /// When there is no such worker.
    #[must_use]
    pub fn thread(&self, worker: usize) -> Option<u32> {
        assert!(worker < self.layout.workers, "no such worker in the recorder");
        self.participant(self.layout.head(worker) + WORKER_THREAD)
    }

    /// The process of the connected front end, if there is one and it is known.
    #[must_use]
    pub fn front_end(&self) -> Option<u32> {
        self.participant(word::FRONT_END)
    }

    /// The virtio features that the guest negotiated last, as bits; 0 for none, and if the daemon did not write them.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.number(word::FEATURES)
    }

    /// The features of the last guest that any daemon with this recorder had; 0 for none.
    #[must_use]
    pub fn features_ever(&self) -> u64 {
        match self.features() {
            0 => self.number(word::FEATURES_BEFORE),
            features => features,
        }
    }

    /// How often the guest's rings went on in another daemon, as far as the recorder goes back; in a recording, in its time.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.number(word::RESTARTS)
    }

    /// Most frames that were sent twice in these restarts.
    #[must_use]
    pub fn sent_twice_max(&self) -> u64 {
        self.number(word::SENT_TWICE_MAX)
    }

    /// The boot of the host in which it was written, if the daemon wrote that.
    #[must_use]
    pub fn boot(&self) -> Option<[u64; 2]> {
        let boot = [self.number(word::BOOT), self.number(word::BOOT + 1)];
        (boot != [0, 0]).then_some(boot)
    }

    /// The most by which the host's `CLOCK_REALTIME` was wrong at `ticks`, microseconds; `None` if the kernel did not know it,
    /// because nothing synchronised the clock, or if the daemon did not write it.
    #[must_use]
    pub fn realtime_error_us(&self, ticks: u64) -> Option<u64> {
        let error = self.number(word::CLOCK_ERROR).checked_sub(1)?;
        let anchor = self.anchor_latest();
        let at = i128::from(anchor.monotonic_ns)
            + (i128::from(ticks) - i128::from(anchor.ticks)) * 1_000_000_000
                / i128::from(self.ticks_per_second());
        let away = (at - i128::from(self.number(word::CLOCK_ERROR_AT))).unsigned_abs();
        // The kernel lets the error grow by as much (`MAXFREQ`, include/linux/timex.h: 500 parts in a million).
        let grown = u64::try_from(away / 2_000_000).unwrap_or(u64::MAX);
        Some(error.saturating_add(grown))
    }

    fn participant(&self, at: usize) -> Option<u32> {
        u32::try_from(self.number(at)).ok().filter(|&number| number > 0)
    }

    /// The daemon's facts about this run: JSON text. If the daemon ended while it replaced them, they may be damaged.
    #[must_use]
    pub fn facts(&self) -> String {
        let read = || {
            let len = usize::try_from(self.number(word::FACTS_LEN)).unwrap_or(0);
            let len = len.min(FACTS_BYTES_MAX);
            let words = self.words.slice(word::FACTS, len.div_ceil(8));
            let mut bytes: Vec<u8> =
                words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
            bytes.truncate(len);
            bytes
        };
        let facts = self.whole(word::FACTS_VERSION, read).unwrap_or_else(read);
        String::from_utf8_lossy(&facts).into_owned()
    }

    /// Changes when the daemon replaces its [`facts`](Self::facts).
    #[must_use]
    pub fn facts_version(&self) -> u64 {
        self.number(word::FACTS_VERSION)
    }

    /// The anchor taken at the daemon's start.
    #[must_use]
    pub fn anchor_start(&self) -> Anchor {
        load_anchor(self.words.slice(word::ANCHOR_START, ANCHOR_WORDS))
    }

    /// The latest anchor: at most a second of work old. If the daemon ended while it wrote the latest one, the anchor of
    /// the start.
    #[must_use]
    pub fn anchor_latest(&self) -> Anchor {
        self.whole_anchor().unwrap_or_else(|| self.anchor_start())
    }

    /// The most by which ticks, made times by the latest anchor and the rate, were from the host's `CLOCK_MONOTONIC`,
    /// nanoseconds; `None` if the daemon ran for less than a second, or did not write it. It includes how far the line through
    /// the latest anchor passes the first one: the clock may have been slewed, and the rate is a whole number. Records of
    /// daemons before are farther away.
    #[must_use]
    pub fn anchor_error_ns(&self) -> Option<u64> {
        let error = self.number(word::ANCHOR_ERROR).checked_sub(1)?;
        let (start, latest) = (self.anchor_start(), self.anchor_latest());
        let ticks = i128::from(latest.ticks) - i128::from(start.ticks);
        let along = ticks * 1_000_000_000 / i128::from(self.ticks_per_second().max(1));
        let passed = i128::from(latest.monotonic_ns) - i128::from(start.monotonic_ns);
        let off = u64::try_from((passed - along).unsigned_abs()).unwrap_or(u64::MAX);
        Some(error.saturating_add(off))
    }

    /// The latest anchor; `None` when it stays half written.
    fn whole_anchor(&self) -> Option<Anchor> {
        self.whole(word::ANCHOR_VERSION, || {
            load_anchor(self.words.slice(word::ANCHOR_LATEST, ANCHOR_WORDS))
        })
    }

    /// What `read` finds, without a change meanwhile of the word `version`, which is odd while that is replaced; `None` when it
    /// stays half written.
    fn whole<T>(&self, version: usize, read: impl Fn() -> T) -> Option<T> {
        let version = self.words.at(version);
        let mut until = None;
        loop {
            let before = version.load(Ordering::Acquire);
            let found = read();
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && version.load(Ordering::Relaxed) == before {
                return Some(found);
            }
            // The clock is read only after a first failed try.
            if Instant::now() > *until.get_or_insert_with(|| Instant::now() + HALF_WAIT) {
                return None;
            }
            std::thread::yield_now();
        }
    }

    /// The totals of virtqueue `ring`.
    ///
    /// # Panics
    /// When there is no such virtqueue.
    #[must_use]
    pub fn totals(&self, ring: usize) -> Totals {
        let words = self.ring_words(ring);
        let load = |at: usize| words[at].load(Ordering::Relaxed);
        Totals { packets: load(RING_PACKETS), bytes: load(RING_BYTES), bursts: load(RING_BURSTS) }
    }

    /// The sequence number of the first packet in the totals of virtqueue `ring`. Lower numbers belong to previous daemons.
    ///
    /// # Panics
    /// When there is no such virtqueue.
    #[must_use]
    pub fn first_sequence(&self, ring: usize) -> u64 {
        self.ring_words(ring)[RING_FIRST].load(Ordering::Relaxed)
    }

    /// Number of packets that virtqueue `ring` has dropped for `cause` since the daemon started.
    ///
    /// # Panics
    /// When there is no such virtqueue.
    #[must_use]
    pub fn drops(&self, ring: usize, cause: DropCause) -> u64 {
        self.ring_words(ring)[RING_DROPS + cause as usize].load(Ordering::Relaxed)
    }

    /// How often `event` was counted for virtqueue `ring` since the daemon started.
    ///
    /// # Panics
    /// When there is no such virtqueue.
    #[must_use]
    pub fn events(&self, ring: usize, event: SocketEvent) -> u64 {
        self.ring_words(ring)[RING_EVENTS + event as usize].load(Ordering::Relaxed)
    }

    /// Kicks and calls of virtqueue `ring` since the daemon started, or in the recording's time.
    ///
    /// # Panics
    /// When there is no such virtqueue.
    #[must_use]
    pub fn notifications(&self, ring: usize) -> Notifications {
        let words = self.ring_words(ring);
        Notifications::new(|kind| words[RING_NOTIFICATIONS + kind as usize].load(Ordering::Relaxed))
    }

    /// Whether the file became shorter while it was read: missing pages read as zeroes.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.words.is_torn()
    }

    /// Number of addresses moved between the guest's port of a switch and another one since the daemon started, as counted
    /// on virtqueue `ring`.
    ///
    /// # Panics
    /// When there is no such virtqueue.
    #[must_use]
    pub fn moves(&self, ring: usize) -> u64 {
        self.ring_words(ring)[RING_MOVES].load(Ordering::Relaxed)
    }

    /// Packets made of several frames (GRO) since the daemon started, as counted on virtqueue `ring`.
    ///
    /// # Panics
    /// When there is no such virtqueue.
    #[must_use]
    pub fn gro(&self, ring: usize) -> GroCounts {
        let words = self.ring_words(ring);
        let count = |at: usize| words[at].load(Ordering::Relaxed);
        GroCounts { frames: count(RING_GRO_FRAMES), segments: count(RING_GRO_SEGMENTS) }
    }

    pub(crate) fn number(&self, at: usize) -> u64 {
        self.words.at(at).load(Ordering::Acquire)
    }

    fn ring_words(&self, ring: usize) -> &[AtomicU64] {
        assert!(ring < self.layout.queue_pairs * 2, "no such virtqueue in the recorder");
        self.words.slice(self.layout.ring(ring), RING_WORDS)
    }
}

fn load_anchor(words: &[AtomicU64]) -> Anchor {
    let load = |at: usize| words[at].load(Ordering::Relaxed);
    Anchor { ticks: load(0), monotonic_ns: load(1), realtime_ns: load(2), error_ns: 0 }
}

pub(crate) fn store_anchor(words: &[AtomicU64], anchor: Anchor) {
    words[0].store(anchor.ticks, Ordering::Relaxed);
    words[1].store(anchor.monotonic_ns, Ordering::Relaxed);
    words[2].store(anchor.realtime_ns, Ordering::Relaxed);
}
