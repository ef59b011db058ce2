//! Writes the file of a capture: bursts in, blocks of pcapng out.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use burst_trace::clock::Anchor;
use burst_trace::{BurstRecord, Clock, Direction, Stage};
use host_files::write_counted;
use log_limit::LogLimit;
use pcapng::comment::{Described, describe};
use pcapng::{Packet, PacketDirection, Totals};

use super::filter::Filter;

/// Bytes that an empty block keeps allocated. It frees the rest: one burst of the largest frames takes 4 MiB.
const BLOCK_BYTES_KEPT: usize = 64 << 10;
/// Bytes that are written at a time.
const WRITE_BYTES: usize = 256 << 10;
/// Bytes that stay free for two blocks with the number of frames.
const STATISTICS: u64 = 2 * 52;
/// Longest time until captured frames are written to the file.
const FLUSH: Duration = Duration::from_millis(500);

/// A burst on its way to the file.
#[derive(Debug, Default)]
pub struct Block {
    /// The queue pair.
    pub queue: usize,
    /// The burst.
    pub record: BurstRecord,
    /// Number of frames in the burst, including those that are left out here.
    pub handed: usize,
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

    /// Number of their bytes.
    pub const fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.bytes.clear();
    }
}

/// How a capture stands, for its lanes, its thread, and who asks.
#[derive(Debug, Default)]
pub struct Progress {
    /// The file's path, for messages.
    pub path: PathBuf,
    /// Its most bytes.
    pub size: Option<u64>,
    /// Bytes of frames that wait to be written to the file.
    pub waiting: AtomicU64,
    /// Frames that could not be written.
    pub left_out: AtomicU64,
    /// Frames that were written.
    pub frames: AtomicU64,
    /// Bytes in the file.
    pub bytes: AtomicU64,
    /// The file has its size.
    pub is_over: AtomicBool,
    /// The file could not be written.
    pub has_failed: AtomicBool,
}

/// Writes the file.
pub struct Scribe {
    /// `None` after a write has failed, or when the file has its size.
    file: Option<File>,
    filter: Option<Filter>,
    /// Number of bytes in the file that are whole blocks.
    good: u64,
    /// The bytes that are not written yet.
    out: Vec<u8>,
    comment: String,
    time: WallClock,
    /// Time of the last frame of each ring, in nanoseconds since 1970.
    last_ns: Vec<u64>,
    /// Number of frames that the filter does not want.
    unwanted: u64,
    progress: Arc<Progress>,
    /// Number of frames left out at the last report.
    left_out: u64,
    /// Limits the log lines about frames left out: when a guest floods, each block leaves some out.
    log: LogLimit,
}

impl Scribe {
    /// Appends to `file` the frames of `queues` queue pairs that `filter` wants.
    pub fn new(
        file: File,
        filter: Option<Filter>,
        queues: usize,
        clock: Clock,
        progress: Arc<Progress>,
    ) -> Self {
        Self {
            file: Some(file),
            filter,
            good: progress.bytes.load(Ordering::Relaxed),
            out: Vec::with_capacity(2 * WRITE_BYTES),
            comment: String::new(),
            time: WallClock::new(clock),
            last_ns: vec![0; 2 * queues],
            unwanted: 0,
            progress,
            left_out: 0,
            log: LogLimit::new(""),
        }
    }

    /// Writes `bursts` until the last sender is gone. The blocks go `home`, each to its queue.
    pub fn run(&mut self, bursts: &Receiver<Block>, home: &[SyncSender<Block>]) {
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
                    self.progress.waiting.fetch_sub(block.bytes.len() as u64, Ordering::Relaxed);
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
        let left_out = self.progress.left_out.load(Ordering::Relaxed);
        if self.file.is_none() && !self.is_over() && left_out > self.left_out {
            let path = self.progress.path.display();
            log::warn!("{left_out} frames are not in {path}, which ended early");
        }
    }

    fn write(&mut self, block: &Block) {
        if block.frames.is_empty() {
            return;
        }
        if self.file.is_none() {
            if !self.is_over() {
                self.progress.left_out.fetch_add(block.frames.len() as u64, Ordering::Relaxed);
            }
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
            if self.filter.as_ref().is_some_and(|filter| !filter.wants(bytes)) {
                self.unwanted += 1;
                continue;
            }
            self.comment.clear();
            let frames = Described::One { number: number.into(), handed: block.handed };
            let nanoseconds = |ticks| self.time.nanoseconds(ticks);
            describe(&mut self.comment, record, frames, nanoseconds);
            let (comment, queue, original_len) = (&self.comment, Some(record.ring / 2), len);
            let packet = Packet { time_ns, queue, direction, bytes, original_len, comment };
            let before = self.out.len();
            pcapng::packet(&mut self.out, &packet);
            if !self.has_room() {
                self.out.truncate(before);
                self.complete();
                return;
            }
            self.progress.frames.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_over(&self) -> bool {
        self.progress.is_over.load(Ordering::Relaxed)
    }

    /// Whether the file may get more than it has.
    fn has_room(&self) -> bool {
        let len = self.good + self.out.len() as u64 + STATISTICS;
        self.progress.size.is_none_or(|size| len <= size)
    }

    /// The file has its size.
    fn complete(&mut self) {
        self.put_statistics();
        self.flush();
        // If that failed, the message was another one.
        if self.file.take().is_some() {
            log::info!("the capture {} is complete", self.progress.path.display());
        }
        self.progress.is_over.store(true, Ordering::Relaxed);
    }

    /// Reports in the log and in the file how many frames are missing, if the number has grown.
    fn tell_left_out(&mut self) {
        let left_out = self.progress.left_out.load(Ordering::Relaxed);
        if left_out > self.left_out && self.file.is_some() {
            self.left_out = left_out;
            let path = self.progress.path.display();
            log_limit::warn!(
                self.log,
                "{left_out} frames are left out of {path} so far: it cannot be written as fast"
            );
            if self.has_room() {
                self.put_statistics();
            }
        }
    }

    fn put_statistics(&mut self) {
        let left_out = self.progress.left_out.load(Ordering::Relaxed);
        let now_ns = self.time.now();
        let written = self.progress.frames.load(Ordering::Relaxed);
        let totals = Totals { seen: written + self.unwanted + left_out, left_out };
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
                    "the capture {} ends, traffic goes on: {error}; make room there, and begin another capture",
                    self.progress.path.display()
                );
                self.progress.left_out.fetch_add(missing, Ordering::Relaxed);
                let _ = file.set_len(self.good);
                self.file = None;
                self.progress.has_failed.store(true, Ordering::Relaxed);
            } else {
                self.good += written as u64;
            }
            self.progress.bytes.store(self.good, Ordering::Relaxed);
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
