//! Recorders that are followed until their recordings end.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agent::Progress;
use burst_trace::{Cursor, Gap, Reader};
use host_files::FileId;
use kernel_stages::Cost;
use report::breakdown::is_alive;

use super::keep::{KeepError, Keeper};
use super::kernel::{Kernel, Measured};

/// Time between two reads: a busy worker fills its part of a recorder in a tenth of a second.
const POLL_EVERY: Duration = Duration::from_millis(5);
/// Time between two checks whether the daemon still runs.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Why a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The time is over, or the burst that was waited for has come.
    Done,
    /// By a signal.
    Stopped,
    /// The daemon has ended, or another one has taken its place.
    DaemonGone,
}

/// Follows all recorders until each of their recordings has ended.
pub fn follow(all: &mut [Following], limit: Option<Duration>, stop: &AtomicBool) {
    let started = Instant::now();
    let mut progress = Progress::new();
    let mut looked = started;
    loop {
        let is_over = limit.is_some_and(|limit| started.elapsed() >= limit);
        let asked = match (stop.load(Ordering::Relaxed), is_over) {
            (true, _) => Some(End::Stopped),
            (false, true) => Some(End::Done),
            (false, false) => None,
        };
        let looks = looked.elapsed() >= LOOK_EVERY;
        let mut is_behind = false;
        for one in all.iter_mut().filter(|one| one.end.is_none()) {
            is_behind |= one.turn(asked, looks);
        }
        if looks {
            looked = Instant::now();
            let states = all.iter().map(|one| format!("{}: {}", one.name, one.keeper.state()));
            progress.show(|| states.collect::<Vec<_>>().join("; "));
        }
        if let Some(met) = all.iter().find_map(|one| one.keeper.met_at()) {
            for one in all.iter_mut().filter(|one| one.end.is_none()) {
                one.keep(|keeper| keeper.join(met));
            }
        }
        if all.iter().all(|one| one.end.is_some()) {
            return;
        }
        if !is_behind {
            std::thread::sleep(POLL_EVERY);
        }
    }
}

/// A recorder that is followed.
pub struct Following {
    name: String,
    path: PathBuf,
    reader: Reader,
    keeper: Keeper,
    cursors: Vec<Cursor>,
    kernel: Option<Kernel>,
    /// The writer and the end, ticks, of the newest kernel span or interruption.
    newest_of_kernel: (u8, u64),
    /// What the kernel's programs lost and cost, known at the end.
    measured: Measured,
    end: Option<io::Result<End>>,
}

impl Following {
    /// Follows the recorder at `path`, and keeps what `keeper` wants of it.
    pub fn new(
        name: String,
        path: PathBuf,
        reader: Reader,
        kernel: Option<Kernel>,
        keeper: Keeper,
    ) -> Self {
        let from_the_oldest = keeper.wants_the_past();
        let cursor = |worker| {
            if from_the_oldest { reader.oldest(worker) } else { reader.newest(worker) }
        };
        let cursors = (0..reader.workers()).map(cursor).collect();
        let (newest_of_kernel, measured) = Default::default();
        Self { name, path, reader, keeper, cursors, kernel, newest_of_kernel, measured, end: None }
    }

    /// What the kernel's programs cost, if they ran and the kernel counts that.
    pub const fn cost(&self) -> Option<Cost> {
        self.measured.cost
    }

    /// Finishes the recording. Returns in words what the file holds; nothing when nothing fulfilled the condition.
    pub fn finish(self) -> Result<Option<String>, KeepError> {
        let so_far = match self.end {
            Some(Err(error)) => Err(error),
            Some(Ok(End::Stopped)) => {
                eprintln!("ringscope: ended by a signal");
                Ok(())
            }
            Some(Ok(End::DaemonGone)) => {
                eprintln!("ringscope: the daemon has ended: the recording ends with it");
                Ok(())
            }
            Some(Ok(End::Done)) | None => Ok(()),
        };
        self.keeper.finish(&self.reader, so_far)
    }

    /// Reads what has come. `asked` ends the recording; with `looks` it may end by itself. Returns whether records come
    /// faster than they are read at leisure.
    fn turn(&mut self, asked: Option<End>, looks: bool) -> bool {
        let mut end = asked.or_else(|| self.keeper.is_done().then_some(End::Done));
        if end.is_none() && looks {
            self.keep(Keeper::flush);
            if let Some(kernel) = &mut self.kernel {
                kernel.see_front_end(&self.reader);
            }
            end = self.is_over().then_some(End::DaemonGone);
        }
        // Records up to now are read in every case.
        if end.is_some()
            && let Some(kernel) = &mut self.kernel
        {
            self.measured = kernel.end();
        }
        match self.read() {
            Ok(came) => {
                if self.end.is_none() {
                    self.end = end.map(Ok);
                }
                came >= self.reader.capacity() / 8
            }
            Err(error) => {
                self.end = Some(Err(error));
                false
            }
        }
    }

    /// Has the keeper write; an error ends the recording.
    fn keep(&mut self, write: impl FnOnce(&mut Keeper) -> io::Result<()>) {
        if let Err(error) = write(&mut self.keeper) {
            self.end = Some(Err(error));
        }
    }

    /// Reads the new records. Returns the largest number from one worker.
    fn read(&mut self) -> io::Result<usize> {
        let (mut most, keeper) = (0, &mut self.keeper);
        if let Some(kernel) = &self.kernel {
            for record in kernel.records() {
                keeper.take(&record)?;
                self.newest_of_kernel = (record.writer(), record.last());
            }
            let (writer, at) = self.newest_of_kernel;
            keeper.lost(Gap { writer, records: self.measured.lost, at })?;
        }
        for (writer, cursor) in (0..).zip(&mut self.cursors) {
            let (mut came, mut at, mut kept) = (0, 0, Ok(()));
            let records = self.reader.read(cursor, |record| {
                came += 1;
                at = record.last();
                if kept.is_ok() {
                    kept = keeper.take(record);
                }
            });
            kept?;
            keeper.lost(Gap { writer, records, at })?;
            most = most.max(came);
        }
        Ok(most)
    }

    fn is_over(&self) -> bool {
        !is_alive(&self.reader) || FileId::of_path(&self.path) != Some(self.reader.file())
    }
}
