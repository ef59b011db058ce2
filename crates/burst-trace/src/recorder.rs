//! The flight recorder's file, made by the daemon: [`Recorder`].

mod beside;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use host_files::own::{new_file, own_file};
use host_files::{Lock, boot_id};

use crate::before::{AtPath, Before, Old, Own};
use crate::clock::{Clock, monotonic_ns};
use crate::file::{
    FACTS_BYTES_MAX, HEADER_WORDS, Layout, MAGIC, VERSION, WORKER_THREAD, Words, facts_words, word,
};
use crate::header::store_anchor;
use crate::restarting::{Left, Restarting};
use crate::writer::Writer;

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
    file: File,
    layout: Layout,
    path: PathBuf,
    before: Mutex<Predecessor>,
    restarting: Arc<Restarting>,
    /// Its file is beside that of the daemon that this one takes over from ([`beside`]).
    is_beside: AtomicBool,
}

/// The recorder of the daemon before.
#[derive(Debug)]
enum Predecessor {
    /// Its daemon still serves the guest.
    Serving(Box<Old>),
    /// Its records are to be copied.
    Waiting(Box<Old>),
    Done(Before),
}

impl Recorder {
    /// Makes the file with all its space reserved, and its header. The sequence numbers of the daemon before go on; its
    /// records are for [`copy_before`](Self::copy_before).
    ///
    /// The recorder of a crashed daemon is also kept, as `NAME.trace.crashed`.
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
            let pid = AtPath::find(path).ok().flatten().map_or(0, |found| found.pid());
            return Err(RecorderError::InUse { path: path.clone(), pid });
        };
        let old = AtPath::find(path).map_err(io_error)?;
        // It gets its name when it is whole.
        let new = unfinished(path);
        if own_file(&new).map_err(io_error)?.is_some() {
            fs::remove_file(&new).map_err(io_error)?;
        }
        let recorder =
            Self::make(options, clock, lock, &new, old.as_ref(), false).map_err(io_error)?;
        let named = old.map_or_else(|| fs::rename(&new, path), |old| old.replace(&new));
        named.map_err(|error| {
            let _ = fs::remove_file(&new);
            io_error(error)
        })?;
        Ok(recorder)
    }

    /// Makes the file `at`, with the records of `old`.
    fn make(
        options: &RecorderOptions,
        clock: &Clock,
        lock: Lock,
        at: &Path,
        old: Option<&AtPath>,
        is_beside: bool,
    ) -> io::Result<Self> {
        let layout = Layout {
            workers: options.workers,
            queue_pairs: options.queue_pairs,
            capacity: options.capacity.next_power_of_two(),
        };
        // Always a new file: if the old one were truncated, SIGBUS would kill a reader that still maps it.
        let file = new_file(at, MODE)?;
        let own = Own { layout: &layout, clock, boot: boot_id(), facts: &options.facts };
        let words = Self::fill(&file, own).inspect_err(|_| {
            let _ = fs::remove_file(at);
        })?;
        let (before, left) = match old.map_or(Err(Before::Nothing), |old| old.open(own)) {
            Ok(old) if is_beside => (Predecessor::Serving(Box::new(old)), None),
            Ok(old) => count_on(old, None, &words, &layout),
            Err(why) => (Predecessor::Done(why), None),
        };
        words.at(word::MAGIC).store(MAGIC, Ordering::Release);
        let (path, restarting) = (options.path.clone(), Restarting::after(left, is_beside));
        let (words, restarting) = (Arc::new(words), Arc::new(restarting));
        let (before, is_beside) = (Mutex::new(before), AtomicBool::new(is_beside));
        Ok(Self { lock, words, file, layout, path, before, restarting, is_beside })
    }

    /// Writes the header of the new file `to`, without its mark.
    fn fill(to: &File, own: Own<'_>) -> io::Result<Words> {
        // A file without its space would end the daemon with SIGBUS.
        reserve(to, own.layout.words() as u64 * 8)?;
        let words = Words::map_writable(to)?;
        write_header(&words, own);
        Ok(words)
    }

    /// Whether this daemon goes on after another one and has carried no burst yet.
    #[must_use]
    pub fn awaits_burst(&self) -> bool {
        !self.restarting.is_over()
    }

    /// Copies the records of the daemon before, unless that is done, and returns what became of them. It takes milliseconds:
    /// call it when the guest is served. Without that, they are copied at the end.
    pub fn copy_before(&self) -> Before {
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        let done = match &*before {
            Predecessor::Done(before) => before.clone(),
            Predecessor::Serving(_) => return Before::Nothing,
            Predecessor::Waiting(old) if old.is_empty(&self.layout) => Before::Nothing,
            Predecessor::Waiting(old) => {
                self.copy(old).map_or_else(Before::Unfit, Before::Continued)
            }
        };
        *before = Predecessor::Done(done.clone());
        done
    }

    fn copy(&self, old: &Old) -> Result<u64, String> {
        let room = reserve(&self.file, self.layout.words_with_before() as u64 * 8)
            .and_then(|()| Words::map_writable(&self.file));
        old.copy(
            &room.map_err(|error| format!("there is no room for them: {error}"))?,
            &self.layout,
        )
    }

    /// Notes that the daemon's socket was there at `ticks`.
    pub fn listens(&self, ticks: u64) {
        self.restarting.listens(ticks);
    }

    /// Another descriptor of the file.
    ///
    /// # Errors
    /// When this process has none left.
    pub fn share(&self) -> io::Result<File> {
        self.file.try_clone()
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
        let (words, restarting) = (Arc::clone(&self.words), Arc::clone(&self.restarting));
        Writer::new(words, self.layout, worker, clock, restarting)
    }

    /// A handle that stores who takes part, from any thread.
    #[must_use]
    pub fn participants(&self) -> Participants {
        Participants { words: Arc::clone(&self.words), layout: self.layout }
    }
}

/// Counts on from where the daemon of `old` stopped. Returns what is to be done with its records, and what it left.
fn count_on(
    old: Old,
    taken_over_at: Option<u64>,
    to: &Words,
    layout: &Layout,
) -> (Predecessor, Option<Left>) {
    match old.stand(layout) {
        Ok(stand) => {
            old.count_on(&stand, to, layout);
            let left = old.left(&stand, taken_over_at);
            (Predecessor::Waiting(Box::new(old)), left)
        }
        Err(why) => (Predecessor::Done(Before::Unfit(why)), None),
    }
}

fn write_header(words: &Words, own: Own<'_>) {
    let Own { layout, clock, boot, facts } = own;
    let header = words.slice(0, HEADER_WORDS);
    let set = |at: usize, value: u64| header[at].store(value, Ordering::Relaxed);
    set(word::VERSION, VERSION);
    set(word::WORKERS, layout.workers as u64);
    set(word::QUEUE_PAIRS, layout.queue_pairs as u64);
    set(word::CAPACITY, layout.capacity as u64);
    set(word::CLOCK, clock.kind() as u64);
    set(word::TICKS_PER_SECOND, clock.ticks_per_second());
    set(word::PID, u64::from(std::process::id()));
    set(word::RUNNING, 1);
    for (n, part) in boot.unwrap_or_default().into_iter().enumerate() {
        set(word::BOOT + n, part);
    }
    store_facts(words, facts);
    let anchor = clock.anchor();
    store_anchor(&header[word::ANCHOR_START..], anchor);
    store_anchor(&header[word::ANCHOR_LATEST..], anchor);
    store_clock_error(words, anchor.monotonic_ns);
}

fn store_facts(words: &Words, facts: &str) {
    let facts = &facts.as_bytes()[..facts.len().min(FACTS_BYTES_MAX)];
    words.at(word::FACTS_LEN).store(facts.len() as u64, Ordering::Relaxed);
    for (n, facts) in facts_words(facts).enumerate() {
        words.at(word::FACTS + n).store(facts, Ordering::Relaxed);
    }
}

/// Stores by how much the clock that other hosts have as well may be wrong now.
fn store_clock_error(words: &Words, monotonic_ns: u64) {
    let error = crate::sys::realtime_error_us().map_or(0, |error| error.saturating_add(1));
    words.at(word::CLOCK_ERROR_AT).store(monotonic_ns, Ordering::Relaxed);
    words.at(word::CLOCK_ERROR).store(error, Ordering::Relaxed);
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.copy_before();
        if self.is_beside.load(Ordering::Relaxed) {
            let _ = fs::remove_file(beside::path(&self.path));
        }
        self.words.at(word::RUNNING).store(0, Ordering::Release);
    }
}

/// Stores in the recorder who takes part: the workers' threads, the front end's process, and the guest's features; and what is
/// measured of them.
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

    /// Stores that the front end is `process`, and by how much the host's clock may be wrong by now: the guest may come from
    /// another host.
    pub fn set_front_end(&self, process: u32) {
        store_clock_error(&self.words, monotonic_ns());
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

    /// Replaces the facts, JSON text. One thread may do that.
    pub fn set_facts(&self, facts: &str) {
        let version = self.words.at(word::FACTS_VERSION);
        let before = version.load(Ordering::Relaxed);
        version.store(before + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        store_facts(&self.words, facts);
        version.store(before + 2, Ordering::Release);
    }

    /// Stores that `process` is no longer the front end, and again by how much the clock may be wrong. If another one has connected since, it stays.
    pub fn clear_front_end(&self, process: u32) {
        store_clock_error(&self.words, monotonic_ns());
        let word = self.words.at(word::FRONT_END);
        let _ = word.compare_exchange(process.into(), 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Reserves the file's blocks: a write to a hole would raise SIGBUS on a full file system.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    crate::sys::fallocate(file.as_raw_fd(), bytes)
}

/// `RUN_DIR/NAME.trace.new` of the recorder `RUN_DIR/NAME.trace`, as long as it is being made. A file that is there already
/// is of a daemon that was killed while it made one.
fn unfinished(recorder: &Path) -> PathBuf {
    let mut unfinished = recorder.as_os_str().to_owned();
    unfinished.push(".new");
    unfinished.into()
}

/// `RUN_DIR/NAME.lock` of the recorder `RUN_DIR/NAME.trace`.
fn lock_path(recorder: &Path) -> PathBuf {
    recorder.with_extension("lock")
}
