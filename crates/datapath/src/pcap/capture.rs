//! A capture: its options, its thread, and the channel to that thread.
//!
//! Bursts come over a bounded channel in blocks, which are used again. A worker takes an empty block, fills it and
//! hands it over. It never waits, and once the blocks have grown to the size of the bursts it does not allocate. When
//! there is no empty block, or too many bytes wait for the disk, frames are left out and counted.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{Builder, JoinHandle};

use burst_trace::file::MAGIC;
use burst_trace::{BurstRecord, Clock};
use confine::Role;
use host_files::create_own;

use super::filter::Filter;
use super::scribe::{Block, Progress, Scribe};

/// Number of blocks for each queue.
const BLOCKS: usize = 512;
/// Most bytes that may wait for the disk.
const WAITING_MAX: u64 = 32 << 20;
/// File mode: readable for the owner only.
const MODE: u32 = 0o600;

/// The options of a capture.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// The file's path, for messages.
    pub path: PathBuf,
    /// The name of the program that writes it, with its version.
    pub application: String,
    /// The name of the interface: the guest's.
    pub name: String,
    /// The description of the interface.
    pub description: String,
    /// Most bytes of the file: then it is complete.
    pub size: Option<u64>,
    /// The frames that are written; all if there is none.
    pub filter: Option<Filter>,
}

/// Why no capture can be made.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file of a daemon that starts cannot be made.
    #[error("cannot write the capture {path}: {source}; choose another file for --pcap")]
    Create {
        /// The file's path.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write the capture {path}: {source}")]
    File {
        /// The file's path.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The thread cannot be started.
    #[error("no thread for the capture: {0}")]
    Thread(io::Error),
    /// It still writes what came before.
    #[error("the capture before is still being written; try again in a second")]
    Busy,
}

/// How a capture stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// The file.
    pub path: PathBuf,
    /// Its most bytes.
    pub size: Option<u64>,
    /// Bytes that are written to it.
    pub bytes: u64,
    /// Frames in it, or on their way.
    pub frames: u64,
    /// Frames that are missing, because the file cannot be written, or not as fast.
    pub left_out: u64,
    /// The file cannot be written any more.
    pub has_failed: bool,
}

/// Creates the file of a capture. A regular file of this user at the path is replaced; anything else is refused.
///
/// # Errors
/// When it cannot be created.
pub fn create(path: &Path) -> Result<File, CaptureError> {
    let refused = |source| CaptureError::Create { path: path.to_owned(), source };
    create_own(path, MODE, MAGIC.to_le_bytes()).map_err(refused)
}

/// One queue's channel to the file. When the last lane is dropped, the file is complete.
#[derive(Debug)]
pub struct Lane {
    // Field order is drop order: the sender before the thread, because the thread ends when all senders are gone.
    full: SyncSender<Block>,
    empty: Receiver<Block>,
    queue: usize,
    progress: Arc<Progress>,
    _thread: CaptureThread,
}

impl Lane {
    /// Whether the file takes no more frames.
    pub fn is_over(&self) -> bool {
        self.progress.is_over.load(Ordering::Relaxed)
    }

    /// How the capture stands; `None` if the file is complete.
    pub fn captured(&self) -> Option<Captured> {
        let progress = &*self.progress;
        let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
        (!self.is_over()).then(|| Captured {
            path: progress.path.clone(),
            size: progress.size,
            bytes: count(&progress.bytes),
            frames: count(&progress.frames),
            left_out: count(&progress.left_out),
            has_failed: progress.has_failed.load(Ordering::Relaxed),
        })
    }

    /// An empty block, if the disk keeps up.
    pub fn block(&self) -> Option<Block> {
        self.empty.try_recv().ok()
    }

    /// Whether `len` bytes more may wait for the disk.
    pub fn reserve(&self, len: usize) -> bool {
        let (waiting, len) = (&self.progress.waiting, len as u64);
        let fits = waiting.fetch_add(len, Ordering::Relaxed) + len <= WAITING_MAX;
        if !fits {
            waiting.fetch_sub(len, Ordering::Relaxed);
        }
        fits
    }

    /// Counts frames that are left out.
    pub fn leave_out(&self, frames: usize) {
        self.progress.left_out.fetch_add(frames as u64, Ordering::Relaxed);
    }

    /// Hands over a burst of `handed` frames. Each of them is in the block or was left out.
    pub fn send(&self, mut block: Block, record: &BurstRecord, handed: usize) {
        (block.queue, block.record, block.handed) = (self.queue, *record, handed);
        // This does not fail for lack of room: there are no more blocks than the channel holds.
        let _ = self.full.try_send(block);
    }

    /// Discards the kept frames of a burst, and counts them as left out.
    pub fn forget(&self, mut block: Block) {
        self.leave_out(block.len());
        self.progress.waiting.fetch_sub(block.bytes() as u64, Ordering::Relaxed);
        block.clear();
        // The block comes back from the thread as that of a burst without frames.
        self.send(block, &BurstRecord::default(), 0);
    }
}

/// A thread that writes captures, one after the other. It ends with the last clone and the last lane, and the last one that is
/// dropped waits for it.
#[derive(Clone, Debug)]
pub struct CaptureThread(Arc<Thread>);

#[derive(Debug)]
struct Thread {
    /// Captures to write. The thread ends when this is closed.
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// A capture to write.
struct Job {
    scribe: Scribe,
    /// Bursts of all queues.
    bursts: Receiver<Block>,
    /// For each queue, where its blocks go back to.
    home: Vec<SyncSender<Block>>,
}

impl CaptureThread {
    /// Starts it.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start() -> Result<Self, CaptureError> {
        let (jobs, waiting) = sync_channel::<Job>(1);
        let write = move || {
            confine::enter(Role::Capture);
            for Job { mut scribe, bursts, home } in waiting {
                scribe.run(&bursts, &home);
            }
        };
        let thread =
            Builder::new().name("capture".into()).spawn(write).map_err(CaptureError::Thread)?;
        Ok(Self(Arc::new(Thread { jobs: Some(jobs), thread: Some(thread) })))
    }

    /// Begins a capture of `queues` queue pairs in `file`, which is empty.
    ///
    /// # Errors
    /// When the file cannot be written, or the capture before is still being written.
    pub fn begin(
        &self,
        options: CaptureOptions,
        mut file: File,
        queues: u16,
        clock: Clock,
    ) -> Result<Vec<Lane>, CaptureError> {
        let queues = usize::from(queues);
        let CaptureOptions { path, application, name, description, size, filter } = options;
        let mut header = Vec::new();
        pcapng::begin(&mut header, &application, &name, &description);
        // The header is written here, so that a file that cannot be written is reported at once.
        file.write_all(&header)
            .map_err(|source| CaptureError::File { path: path.clone(), source })?;
        let bytes = AtomicU64::new(header.len() as u64);
        let progress = Arc::new(Progress { path, size, bytes, ..Progress::default() });
        let (full, bursts) = sync_channel(BLOCKS * queues);
        let rounds: Vec<_> = (0..queues).map(|_| sync_channel(BLOCKS)).collect();
        let (home, empty): (Vec<_>, Vec<_>) = rounds.into_iter().unzip();
        for home in &home {
            (0..BLOCKS).for_each(|_| drop(home.try_send(Block::default())));
        }
        let scribe = Scribe::new(file, filter, queues, clock, Arc::clone(&progress));
        let job = Job { scribe, bursts, home };
        let jobs = self.0.jobs.as_ref().ok_or(CaptureError::Busy)?;
        jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => CaptureError::Busy,
            TrySendError::Disconnected(_) => CaptureError::Thread(io::Error::other("it has ended")),
        })?;
        let lane = |(queue, empty)| {
            let (full, progress) = (full.clone(), Arc::clone(&progress));
            Lane { full, empty, queue, progress, _thread: self.clone() }
        };
        Ok(empty.into_iter().enumerate().map(lane).collect())
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the capture ended by a fault of its own; see the message above");
        }
    }
}
