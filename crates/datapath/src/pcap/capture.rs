//! The file of a capture, and the thread that writes it.
//!
//! Bursts come over a bounded channel in blocks, which are used again. A worker takes an empty block, fills it and
//! hands it over. It never waits, and once the blocks have grown to the size of the bursts it does not allocate. When
//! there is no empty block, or too many bytes wait for the disk, frames are left out and counted.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use burst_trace::clock::Anchor;
use burst_trace::file::MAGIC;
use burst_trace::{BurstRecord, Clock, Direction, Stage};
use confine::Role;
use host_files::{create_own, write_counted};
use log_limit::LogLimit;
use pcapng::comment::{Described, describe};
use pcapng::{Packet, PacketDirection, Totals};

/// Number of blocks for each queue.
const BLOCKS: usize = 512;
/// Most bytes that may wait for the disk.
const WAITING_MAX: u64 = 32 << 20;
/// Bytes that an empty block keeps allocated. It frees the rest: one burst of the largest frames takes 4 MiB.
const BLOCK_BYTES_KEPT: usize = 64 << 10;
/// File mode: readable for the owner only.
const MODE: u32 = 0o600;
/// Bytes that are written at a time.
const WRITE_BYTES: usize = 256 << 10;
/// Longest time until captured frames are written to the file.
const FLUSH: Duration = Duration::from_millis(500);

/// The options of a capture.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// The file, created new each time. A regular file of this user at the path is replaced; anything else is refused.
    pub path: PathBuf,
    /// The name of the program that writes it, with its version.
    pub application: String,
    /// The name of the interface: the guest's.
    pub name: String,
    /// The description of the interface.
    pub description: String,
}

/// Why no capture can be made.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file cannot be written.
    #[error("cannot write the capture {path}: {source}; choose another file for --pcap")]
    File {
        /// The file's path.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The thread cannot be started.
    #[error("no thread for the capture: {0}")]
    Thread(io::Error),
}

/// A burst on its way to the file.
#[derive(Debug, Default)]
pub struct Block {
    /// The queue pair.
    queue: usize,
    record: BurstRecord,
    /// Number of frames in the burst, including those that are left out here.
    handed: usize,
    /// Each frame's number in its burst, and its length.
    frames: Vec<(u16, u32)>,
    /// The frames' bytes, one after the other.
    bytes: Vec<u8>,
}

impl Block {
    /// Appends frame `number` of the burst. `fill` writes its `len` bytes.
    pub fn push(&mut self, number: u16, len: usize, fill: impl FnOnce(&mut [u8])) {
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        fill(&mut self.bytes[start..]);
        #[expect(clippy::cast_possible_truncation, reason = "a frame is below 2^17 bytes")]
        self.frames.push((number, len as u32));
    }

    /// Number of frames that the block holds.
    pub const fn len(&self) -> usize {
        self.frames.len()
    }

    fn clear(&mut self) {
        self.frames.clear();
        self.bytes.clear();
    }
}

#[derive(Debug, Default)]
struct Counters {
    /// Bytes that wait to be written to the file.
    waiting: AtomicU64,
    left_out: AtomicU64,
}

/// One queue's channel to the file. When the last lane is dropped, the file is complete.
#[derive(Debug)]
pub struct Lane {
    // Field order is drop order: the sender before the thread, because the thread ends when all senders are gone.
    full: SyncSender<Block>,
    empty: Receiver<Block>,
    queue: usize,
    counters: Arc<Counters>,
    _thread: Arc<Thread>,
}

impl Lane {
    /// An empty block, if the disk keeps up.
    pub fn block(&self) -> Option<Block> {
        self.empty.try_recv().ok()
    }

    /// Whether `len` bytes more may wait for the disk.
    pub fn reserve(&self, len: usize) -> bool {
        let (waiting, len) = (&self.counters.waiting, len as u64);
        let fits = waiting.fetch_add(len, Ordering::Relaxed) + len <= WAITING_MAX;
        if !fits {
            waiting.fetch_sub(len, Ordering::Relaxed);
        }
        fits
    }

    /// Counts frames that are left out.
    pub fn leave_out(&self, frames: usize) {
        self.counters.left_out.fetch_add(frames as u64, Ordering::Relaxed);
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
        self.counters.waiting.fetch_sub(block.bytes.len() as u64, Ordering::Relaxed);
        block.clear();
        // The block comes back from the thread as that of a burst without frames.
        self.send(block, &BurstRecord::default(), 0);
    }
}

/// Begins a capture of `queues` queue pairs.
///
/// # Errors
/// When the file cannot be created, or the thread cannot be started.
pub fn begin(
    options: &CaptureOptions,
    queues: u16,
    clock: Clock,
) -> Result<Vec<Lane>, CaptureError> {
    let queues = usize::from(queues);
    let mut out = Vec::with_capacity(2 * WRITE_BYTES);
    pcapng::begin(&mut out, &options.application, &options.name, &options.description);
    // The header is written here, so that a file that cannot be written is reported at the start.
    let file = create_own(&options.path, MODE, MAGIC.to_le_bytes())
        .and_then(|mut file| file.write_all(&out).map(|()| file))
        .map_err(|source| CaptureError::File { path: options.path.clone(), source })?;
    let good = out.len() as u64;
    out.clear();
    let counters = Arc::new(Counters::default());
    let (full, bursts) = sync_channel(BLOCKS * queues);
    let rounds: Vec<_> = (0..queues).map(|_| sync_channel(BLOCKS)).collect();
    let (home, empty): (Vec<_>, Vec<_>) = rounds.into_iter().unzip();
    for home in &home {
        (0..BLOCKS).for_each(|_| drop(home.try_send(Block::default())));
    }
    let mut scribe = Scribe {
        file: Some(file),
        path: options.path.clone(),
        good,
        out,
        comment: String::new(),
        time: WallClock::new(clock),
        last_ns: vec![0; 2 * queues],
        written: 0,
        counters: Arc::clone(&counters),
        left_out: 0,
        log: LogLimit::new(""),
    };
    let thread = Builder::new()
        .name("capture".into())
        .spawn(move || {
            confine::enter(Role::Capture);
            scribe.run(&bursts, &home);
        })
        .map_err(CaptureError::Thread)?;
    let thread = Arc::new(Thread(Some(thread)));
    let lane = |(queue, empty)| Lane {
        full: full.clone(),
        empty,
        queue,
        counters: Arc::clone(&counters),
        _thread: Arc::clone(&thread),
    };
    Ok(empty.into_iter().enumerate().map(lane).collect())
}

/// Dropping this waits for the end of the thread.
#[derive(Debug)]
struct Thread(Option<JoinHandle<()>>);

impl Drop for Thread {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take()
            && thread.join().is_err()
        {
            log::error!("the capture ended by a fault of its own; see the message above");
        }
    }
}

/// Writes the file.
struct Scribe {
    /// `None` after a write has failed.
    file: Option<File>,
    path: PathBuf,
    /// Number of bytes in the file that are whole blocks.
    good: u64,
    /// The bytes that are not written yet.
    out: Vec<u8>,
    comment: String,
    time: WallClock,
    /// Time of the last frame of each ring, in nanoseconds since 1970.
    last_ns: Vec<u64>,
    written: u64,
    counters: Arc<Counters>,
    /// Number of frames left out at the last report.
    left_out: u64,
    /// Limits the log lines about frames left out: when a guest floods, each block leaves some out.
    log: LogLimit,
}

impl Scribe {
    fn run(&mut self, bursts: &Receiver<Block>, home: &[SyncSender<Block>]) {
        let mut flushed = Instant::now();
        loop {
            // When nothing waits to be written, it sleeps without a time limit.
            let burst = if self.out.is_empty() {
                bursts.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                bursts.recv_timeout(FLUSH.saturating_sub(flushed.elapsed()))
            };
            match burst {
                Ok(mut block) => {
                    if self.out.is_empty() {
                        flushed = Instant::now();
                    }
                    self.write(&block);
                    self.counters.waiting.fetch_sub(block.bytes.len() as u64, Ordering::Relaxed);
                    block.clear();
                    block.bytes.shrink_to(BLOCK_BYTES_KEPT);
                    // This fails when the queue is gone. Then the block is not needed any more.
                    let _ = home[block.queue].try_send(block);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.out.len() >= WRITE_BYTES || flushed.elapsed() >= FLUSH {
                self.tell_left_out();
                self.flush();
                flushed = Instant::now();
            }
        }
        self.tell_left_out();
        self.put_statistics();
        self.flush();
        let left_out = self.counters.left_out.load(Ordering::Relaxed);
        if self.file.is_none() && left_out > self.left_out {
            let path = self.path.display();
            log::warn!("{left_out} frames are not in {path}, which ended early");
        }
    }

    fn write(&mut self, block: &Block) {
        if block.frames.is_empty() {
            return;
        }
        if self.file.is_none() {
            self.counters.left_out.fetch_add(block.frames.len() as u64, Ordering::Relaxed);
            return;
        }
        let record = &block.record;
        self.time.keep();
        let time_ns = self.time.at(passed_at(record));
        // The measured rate of the counter changes a little every second. That must not change the order of frames.
        let last_ns = &mut self.last_ns[usize::from(record.ring)];
        let time_ns = if last_ns.saturating_sub(time_ns) < 1_000_000 {
            time_ns.max(*last_ns)
        } else {
            time_ns
        };
        *last_ns = time_ns;
        let direction = Some(PacketDirection::of(record.direction()));
        let mut rest = block.bytes.as_slice();
        for &(number, len) in &block.frames {
            let (bytes, next) = rest.split_at(len as usize);
            rest = next;
            self.comment.clear();
            let frames = Described::One { number: number.into(), handed: block.handed };
            let nanoseconds = |ticks| self.time.nanoseconds(ticks);
            describe(&mut self.comment, record, frames, nanoseconds);
            let (comment, queue, original_len) = (&self.comment, Some(record.ring / 2), len);
            let packet = Packet { time_ns, queue, direction, bytes, original_len, comment };
            pcapng::packet(&mut self.out, &packet);
        }
        self.written += block.frames.len() as u64;
    }

    /// Reports in the log and in the file how many frames are missing, if the number has grown.
    fn tell_left_out(&mut self) {
        let left_out = self.counters.left_out.load(Ordering::Relaxed);
        if left_out > self.left_out && self.file.is_some() {
            self.left_out = left_out;
            let path = self.path.display();
            log_limit::warn!(
                self.log,
                "{left_out} frames are left out of {path} so far: it cannot be written as fast"
            );
            self.put_statistics();
        }
    }

    fn put_statistics(&mut self) {
        let left_out = self.counters.left_out.load(Ordering::Relaxed);
        let now_ns = self.time.now();
        let totals = Totals { seen: self.written + left_out, left_out };
        pcapng::statistics(&mut self.out, now_ns, totals);
    }

    /// Writes all waiting bytes. If that fails, the file is cut after its last whole block and not written again.
    fn flush(&mut self) {
        if let Some(file) = &mut self.file {
            let (written, result) = write_counted(file, &self.out);
            if let Err(error) = result {
                let (whole, missing) = pcapng::whole_blocks(&self.out, written);
                self.good += whole as u64;
                log::error!(
                    "the capture {} ends, traffic goes on: {error}; make room there, and restart the daemon to capture more",
                    self.path.display()
                );
                self.counters.left_out.fetch_add(missing, Ordering::Relaxed);
                let _ = file.set_len(self.good);
                self.file = None;
            } else {
                self.good += written as u64;
            }
        }
        self.out.clear();
    }
}

/// When a burst's frames passed the datapath, in ticks: gathered from the guest, or seen on the wire.
fn passed_at(record: &BurstRecord) -> u64 {
    let last = match record.direction() {
        Direction::Tx => Stage::Gather,
        Direction::Rx => Stage::Notice,
    };
    let stages = record.direction().stages().iter().zip(record.stages);
    let mut at = record.first;
    for (stage, ticks) in stages {
        at += ticks;
        if *stage == last {
            break;
        }
    }
    at
}

/// Converts ticks to time of day.
#[derive(Debug)]
struct WallClock {
    clock: Clock,
    start: Anchor,
    latest: Anchor,
    ticks_per_second: u64,
}

impl WallClock {
    fn new(clock: Clock) -> Self {
        let start = clock.anchor();
        Self { clock, start, latest: start, ticks_per_second: clock.ticks_per_second() }
    }

    /// Once a second, takes a new anchor of the clocks and measures the counter's rate since the start.
    fn keep(&mut self) {
        if self.clock.now().abs_diff(self.latest.ticks) < self.ticks_per_second {
            return;
        }
        self.latest = self.clock.anchor();
        if self.latest.monotonic_ns.saturating_sub(self.start.monotonic_ns) > 500_000_000 {
            match self.clock.rate_since(self.start, self.latest) {
                Some(rate) => self.ticks_per_second = rate,
                // The counter jumped. From here its rate is measured again.
                None => self.start = self.latest,
            }
        }
    }

    /// `ticks` as nanoseconds since 1970.
    fn at(&self, ticks: u64) -> u64 {
        let Anchor { ticks: then, realtime_ns, .. } = self.latest;
        if ticks >= then {
            realtime_ns + self.nanoseconds(ticks - then)
        } else {
            realtime_ns.saturating_sub(self.nanoseconds(then - ticks))
        }
    }

    fn now(&self) -> u64 {
        self.at(self.clock.now())
    }

    #[expect(clippy::cast_possible_truncation, reason = "64 bits of nanoseconds are centuries")]
    fn nanoseconds(&self, ticks: u64) -> u64 {
        (u128::from(ticks) * 1_000_000_000 / u128::from(self.ticks_per_second)) as u64
    }
}
