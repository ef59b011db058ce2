//! The writing side of the flight recorder: [`Recorder`] makes the file, and one [`Writer`] for each worker fills it.

mod beside;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use host_files::Lock;
use host_files::own::{new_file, own_file};

use crate::clock::{Anchor, Clock};
use crate::cyclic::CyclicFrame;
use crate::file::{
    ANCHOR_WORDS, FACTS_BYTES_MAX, HEADER_WORDS, Layout, MAGIC, RING_BURSTS, RING_BYTES,
    RING_DROPS, RING_EVENTS, RING_MOVES, RING_NOTIFICATIONS, RING_PACKETS, VERSION, WORKER_THREAD,
    Words, facts_words, word,
};
use crate::header::{Left, left};
use crate::interruption::Interruption;
use crate::notification::Notification;
use crate::record::{BurstRecord, CyclicRecord, DropRecord, KernelSpan, ProbeRecord, RECORD_WORDS};
use crate::stage::{DropCause, SocketEvent};

/// File mode: readable for the user and group only, because a recorder shows when and how much a guest sends.
const MODE: u32 = 0o640;

/// Options of a recorder.
#[derive(Clone, Debug)]
pub struct RecorderOptions {
    /// The file: `RUN_DIR/NAME.trace`.
    pub path: PathBuf,
    /// Number of writers: the workers, and one more if times in the host kernel are added.
    pub workers: usize,
    /// Number of the device's queue pairs.
    pub queue_pairs: usize,
    /// Records of each worker; rounded up to a power of two.
    pub capacity: usize,
    /// Facts about this run for reports: JSON text.
    pub facts: String,
}

/// Why a recorder could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    /// The file system refused.
    #[error(
        "cannot make the flight recorder {path}: {source}; choose another --run-dir, or --trace off"
    )]
    Io {
        /// The recorder's file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The lock on the recorder's name.
    #[error(
        "cannot lock the flight recorder's name with {path}: {source}; choose another --run-dir or --name"
    )]
    Lock {
        /// The lock's file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// Another daemon that still runs writes this file.
    #[error(
        "{path} is being written by {}; choose another --name, or end that daemon",
        if *pid == 0 { "another process".into() } else { format!("process {pid}") }
    )]
    InUse {
        /// The recorder's file.
        path: PathBuf,
        /// The process that writes it; 0 if the file has no process number yet.
        pid: u64,
    },
}

/// The flight recorder file, being written.
///
/// Dropping it marks the daemon's end as orderly. The file stays and can be read.
#[derive(Debug)]
pub struct Recorder {
    /// Held as long as the daemon lives. A process number alone proves nothing: another process may have it by now. The
    /// lock is not on the recorder itself, because readers could take that lock.
    lock: Lock,
    words: Arc<Words>,
    layout: Layout,
    path: PathBuf,
    /// Its file is beside that of the daemon that this one takes over from ([`beside`]).
    is_beside: AtomicBool,
}

impl Recorder {
    /// Makes the file with all its space reserved, and its header.
    ///
    /// The recorder of a crashed daemon is renamed to `NAME.trace.crashed`.
    ///
    /// # Errors
    /// When another daemon writes the file, or the system refuses.
    pub fn create(options: &RecorderOptions, clock: &Clock) -> Result<Self, RecorderError> {
        let path = &options.path;
        let io_error = |source| RecorderError::Io { path: path.clone(), source };
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(io_error)?;
        }
        let Some(lock) = Lock::take(&lock_path(path))
            .map_err(|source| RecorderError::Lock { path: lock_path(path), source })?
        else {
            let pid = left(path).ok().flatten().map_or(0, |left| left.pid);
            return Err(RecorderError::InUse { path: path.clone(), pid });
        };
        set_aside_what_is_there(path).map_err(io_error)?;
        Self::make(options, clock, lock, path, false).map_err(io_error)
    }

    fn make(
        options: &RecorderOptions,
        clock: &Clock,
        lock: Lock,
        at: &Path,
        is_beside: bool,
    ) -> io::Result<Self> {
        let layout = Layout {
            workers: options.workers,
            queue_pairs: options.queue_pairs,
            capacity: options.capacity.next_power_of_two(),
        };
        // Always a new file: if the old one were truncated, SIGBUS would kill a reader that still maps it.
        let file = new_file(at, MODE)?;
        reserve(&file, layout.words() as u64 * 8).inspect_err(|_| {
            // A file without its space would end the daemon with SIGBUS.
            let _ = fs::remove_file(at);
        })?;
        let words = Arc::new(Words::map_writable(&file)?);
        let (path, is_beside) = (options.path.clone(), AtomicBool::new(is_beside));
        let recorder = Self { lock, words, layout, path, is_beside };
        recorder.write_header(&options.facts, clock);
        Ok(recorder)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The writer of `worker`. Each worker has exactly one.
    ///
    /// # Panics
    /// When there is no such worker.
    #[must_use]
    pub fn writer(&self, worker: usize, clock: Clock) -> Writer {
        assert!(worker < self.layout.workers, "no such worker in the recorder");
        let anchor = clock.anchor();
        Writer {
            words: Arc::clone(&self.words),
            layout: self.layout,
            head: 0,
            head_at: self.layout.head(worker),
            records_at: self.layout.records(worker),
            clock,
            start: anchor,
            refreshed_at: anchor.ticks,
            second: clock.ticks_per_second(),
            keeps_anchor: worker == 0,
        }
    }

    /// A handle that stores who takes part, from any thread.
    #[must_use]
    pub fn participants(&self) -> Participants {
        Participants { words: Arc::clone(&self.words), layout: self.layout }
    }

    fn write_header(&self, facts: &str, clock: &Clock) {
        let header = self.words.slice(0, HEADER_WORDS);
        let set = |at: usize, value: u64| header[at].store(value, Ordering::Relaxed);
        set(word::VERSION, VERSION);
        set(word::WORKERS, self.layout.workers as u64);
        set(word::QUEUE_PAIRS, self.layout.queue_pairs as u64);
        set(word::CAPACITY, self.layout.capacity as u64);
        set(word::CLOCK, clock.kind() as u64);
        set(word::TICKS_PER_SECOND, clock.ticks_per_second());
        set(word::PID, u64::from(std::process::id()));
        set(word::RUNNING, 1);
        let facts = &facts.as_bytes()[..facts.len().min(FACTS_BYTES_MAX)];
        set(word::FACTS_LEN, facts.len() as u64);
        for (n, facts) in facts_words(facts).enumerate() {
            set(word::FACTS + n, facts);
        }
        let anchor = clock.anchor();
        store_anchor(&header[word::ANCHOR_START..], anchor);
        store_anchor(&header[word::ANCHOR_LATEST..], anchor);
        header[word::MAGIC].store(MAGIC, Ordering::Release);
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if self.is_beside.load(Ordering::Relaxed) {
            let _ = fs::remove_file(beside::path(&self.path));
        }
        self.words.at(word::RUNNING).store(0, Ordering::Release);
    }
}

/// Stores in the recorder who takes part: the workers' threads, the front end's process, and the guest's features.
#[derive(Debug)]
pub struct Participants {
    words: Arc<Words>,
    layout: Layout,
}

impl Participants {
    /// Stores that `worker` is the thread `tid`.
    ///
    /// # Panics
    /// When there is no such worker.
    pub fn set_thread(&self, worker: usize, tid: u32) {
        assert!(worker < self.layout.workers, "no such worker in the recorder");
        let at = self.layout.head(worker) + WORKER_THREAD;
        self.words.at(at).store(tid.into(), Ordering::Relaxed);
    }

    /// Stores that the front end is `process`.
    pub fn set_front_end(&self, process: u32) {
        self.words.at(word::FRONT_END).store(process.into(), Ordering::Relaxed);
    }

    /// Stores the virtio features that the guest negotiated, as bits. They stay after it is gone.
    pub fn set_features(&self, features: u64) {
        self.words.at(word::FEATURES).store(features, Ordering::Relaxed);
    }

    /// Stores the features of the last guest of the daemons before.
    pub fn set_features_before(&self, features: u64) {
        self.words.at(word::FEATURES_BEFORE).store(features, Ordering::Relaxed);
    }

    /// Stores that `process` is no longer the front end. If another one has connected since, it stays.
    pub fn clear_front_end(&self, process: u32) {
        let word = self.words.at(word::FRONT_END);
        let _ = word.compare_exchange(process.into(), 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// A worker's writer: one producer, no lock, no system call.
#[derive(Debug)]
pub struct Writer {
    words: Arc<Words>,
    layout: Layout,
    head: u64,
    head_at: usize,
    records_at: usize,
    clock: Clock,
    start: Anchor,
    /// When the anchor was refreshed, ticks.
    refreshed_at: u64,
    /// A second in ticks, as measured at the start.
    second: u64,
    keeps_anchor: bool,
}

impl Writer {
    /// Stores a burst and adds it to its ring's totals.
    #[inline]
    pub fn burst(&mut self, record: &BurstRecord) {
        self.count(record);
        self.push(record.to_words());
        if self.keeps_anchor && record.last.abs_diff(self.refreshed_at) >= self.second {
            self.refresh_anchor();
        }
    }

    /// Adds a burst to its ring's totals without storing it: for `--trace off`, where only the counters are kept.
    #[inline]
    pub fn count(&mut self, record: &BurstRecord) {
        let totals = self.words.slice(self.layout.ring(usize::from(record.ring)), RING_EVENTS);
        add(&totals[RING_PACKETS], u64::from(record.packets));
        add(&totals[RING_BYTES], u64::from(record.bytes));
        add(&totals[RING_BURSTS], 1);
    }

    /// Counts `packets` of virtqueue `ring` that were dropped at time `at`, ticks, and stores the drop.
    #[cold]
    pub fn dropped(&mut self, ring: u16, cause: DropCause, packets: u16, at: u64) {
        self.count_dropped(ring, cause, packets);
        self.push(DropRecord { at, cause, packets, ring, worker: 0 }.to_words());
    }

    /// Stores a time in the host kernel. No total counts it.
    pub fn kernel(&mut self, span: &KernelSpan) {
        self.push(span.to_words());
    }

    /// Stores a time in which a thread did not run. No total counts it.
    pub fn interruption(&mut self, interruption: &Interruption) {
        self.push(interruption.to_words());
    }

    /// Stores a probe that `burst` carried. The burst's packets include it.
    pub fn probe(&mut self, burst: &BurstRecord, run: u32, sequence: u64) {
        let (packets, times) = (burst.packets, burst.times());
        self.push(ProbeRecord { run, sequence, packets, times }.to_words());
    }

    /// Stores a cyclic frame that `burst` carried. The burst's packets include it.
    pub fn cyclic(&mut self, burst: &BurstRecord, frame: CyclicFrame) {
        let (packets, times) = (burst.packets, burst.times());
        self.push(CyclicRecord { frame, packets, times }.to_words());
    }

    /// Whether another process shortened the file. If so, new records reach no reader.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.words.is_torn()
    }

    /// Counts a drop without storing it.
    pub fn count_dropped(&mut self, ring: u16, cause: DropCause, packets: u16) {
        let at = self.layout.ring(usize::from(ring)) + RING_DROPS + cause as usize;
        add(self.words.at(at), u64::from(packets));
    }

    /// Adds what the kernel has counted for an AF_XDP socket.
    pub fn count_event(&mut self, ring: u16, event: SocketEvent, times: u64) {
        let at = self.layout.ring(usize::from(ring)) + RING_EVENTS + event as usize;
        add(self.words.at(at), times);
    }

    /// Counts a notification of virtqueue `ring`.
    #[inline]
    pub fn count_notification(&mut self, ring: u16, kind: Notification) {
        let at = self.layout.ring(usize::from(ring)) + RING_NOTIFICATIONS + kind as usize;
        add(self.words.at(at), 1);
    }

    /// Counts addresses that moved between the guest's port of a switch and another one.
    pub fn count_moves(&mut self, ring: u16, addresses: u64) {
        add(self.words.at(self.layout.ring(usize::from(ring)) + RING_MOVES), addresses);
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the capacity is far below 2^32")]
    fn push(&mut self, record: [u64; RECORD_WORDS]) {
        let slot = self.head as usize & (self.layout.capacity - 1);
        let slot = self.words.slice(self.records_at + slot * RECORD_WORDS, RECORD_WORDS);
        // The slot is overwritten only after the count that made it the oldest one is visible: a reader
        // that sees a changed slot also sees that count, and discards its copy.
        fence(Ordering::Release);
        for (word, value) in slot.iter().zip(record) {
            word.store(value, Ordering::Relaxed);
        }
        self.head += 1;
        self.words.at(self.head_at).store(self.head, Ordering::Release);
        // The next slot was last written megabytes ago. Without a prefetch, the fence before the check for a signal would
        // wait for its cache line.
        let next = self.head as usize & (self.layout.capacity - 1);
        self.words.prefetch_to_write(self.records_at + next * RECORD_WORDS);
    }

    /// Runs once a second of work: stores the counter's current relation to the monotonic clock, and its rate since the
    /// start.
    #[cold]
    fn refresh_anchor(&mut self) {
        let anchor = self.clock.anchor();
        self.refreshed_at = anchor.ticks;
        let version = self.words.at(word::ANCHOR_VERSION);
        let now = version.load(Ordering::Relaxed);
        version.store(now + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        store_anchor(self.words.slice(word::ANCHOR_LATEST, ANCHOR_WORDS), anchor);
        if anchor.monotonic_ns.saturating_sub(self.start.monotonic_ns) > 500_000_000 {
            match self.clock.rate_since(self.start, anchor) {
                Some(rate) => self.words.at(word::TICKS_PER_SECOND).store(rate, Ordering::Relaxed),
                // The counter jumped. Its rate is measured from here on.
                None => self.start = anchor,
            }
        }
        version.store(now + 2, Ordering::Release);
    }
}

/// Adds to a counter that only this thread writes, so no locked instruction is needed.
#[inline]
fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

fn store_anchor(words: &[AtomicU64], anchor: Anchor) {
    words[0].store(anchor.ticks, Ordering::Relaxed);
    words[1].store(anchor.monotonic_ns, Ordering::Relaxed);
    words[2].store(anchor.realtime_ns, Ordering::Relaxed);
}

/// Reserves the file's blocks: a write to a hole would raise SIGBUS on a full file system.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    crate::sys::fallocate(file.as_raw_fd(), bytes)
}

/// Moves the recorder of a crashed daemon at `path` to `NAME.trace.crashed`, and removes one that ended in order.
fn set_aside_what_is_there(path: &Path) -> io::Result<()> {
    if own_file(path)?.is_none() {
        return Ok(());
    }
    match left(path)? {
        // We hold the lock, so that daemon is gone.
        Some(Left { is_running: true, .. }) => {
            let mut aside = path.as_os_str().to_owned();
            aside.push(".crashed");
            fs::rename(path, aside)
        }
        Some(_) => fs::remove_file(path),
        None => {
            let why = "the file there is no flight recorder; remove it";
            Err(io::Error::new(io::ErrorKind::InvalidInput, why))
        }
    }
}

/// `RUN_DIR/NAME.lock` of the recorder `RUN_DIR/NAME.trace`.
fn lock_path(recorder: &Path) -> PathBuf {
    recorder.with_extension("lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_starts_again_keeps_its_rate() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::new();
        let options = RecorderOptions {
            path: directory.path().join("vm.trace"),
            workers: 1,
            queue_pairs: 1,
            capacity: 64,
            facts: String::new(),
        };
        let recorder = Recorder::create(&options, &clock).unwrap();
        let mut writer = recorder.writer(0, clock);
        let second = clock.ticks_per_second();
        let rate = || recorder.words.at(word::TICKS_PER_SECOND).load(Ordering::Relaxed);
        // The counter was days ahead, or at 0, when the recorder was made a second ago.
        for ticks in [writer.start.ticks + (second << 20), 0] {
            writer.start.ticks = ticks;
            writer.start.monotonic_ns -= 1_000_000_000;
            writer.refresh_anchor();
            assert_eq!(rate(), second);
            assert!(
                writer.start.ticks.abs_diff(clock.now()) < second,
                "it is measured from here on"
            );
        }
    }
}
