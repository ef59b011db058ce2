//! `ringscope record`: copies the records of a flight recorder to a file before they are overwritten.

mod keep;
mod kernel;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agent::Progress;
use burst_trace::{Clock, Cursor, Gap, Reader, Record};
use host_files::{FileId, Output};
use kernel_stages::Cost;
use report::breakdown::is_alive;
use report::trigger::Trigger;
use report::units::{grouped, time};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::Outcome;
use crate::output::{BinaryToTerminal, guard};
use crate::recorder::{Choice, Found};
use crate::stats::{seconds, seconds_or_none};
use keep::{KeepError, Keeper, Until, facts};
use kernel::{Kernel, Measured};

/// Time between two reads: a busy worker fills its part of a recorder in a tenth of a second.
const POLL_EVERY: Duration = Duration::from_millis(5);
/// Time between two checks whether the daemon still runs.
const LOOK_EVERY: Duration = Duration::from_millis(200);

const EXAMPLES: &str = "\
Examples:
  ringscope record -o now.rec                    until Ctrl-C
  ringscope record --seconds 10 -o ten.rec       for 10 seconds
  ringscope record --last 30 -o before.rec       the last 30 s before Ctrl-C
  ringscope record --when 'rx.total>500us' -o slow.rec
                                                 2 s before and after a burst
                                                 that takes longer
  ringscope record --kernel-stages --seconds 5 -o k.rec
                                                 with the host kernel's times
  ringscope report slow.rec                      where the time went

Conditions: --when takes DIRECTION.TIME>LIMIT or DIRECTION.TIME>=LIMIT.
  DIRECTION  tx or rx
  TIME       total, one of the daemon's stages, or one in the host kernel:
             wakeup (of the worker, for either direction), host-tx of tx,
             host-rx and inject of rx; those need --kernel-stages
  LIMIT      a number with a unit: ns, us (or \u{b5}s), ms or s

The file:
  FILE is FILE.part until the recording is finished. Then it replaces a
  regular file. A link is followed. A device or FIFO is written directly; the
  recording then has no totals.
  On a full disk or at a file-size limit the recording ends with exit code 1,
  and FILE holds the part that fitted. If record is killed, FILE.part stays:
  `ringscope report FILE.part` reads it. With --last and --when, nothing is
  written before the end. A second Ctrl-C ends record at once.
  Records that are overwritten before they are read are counted, and the file
  marks where they are missing.

--kernel-stages loads BPF programs into the kernel while this command runs.
They see every frame of the host, and cost a busy guest about 5 % of its rate.
It needs root.

To read what a recorder holds, no recording is needed: `ringscope report`
also reads the recorder of a daemon that runs, has ended or has crashed
(NAME.trace.crashed).";

/// The flags of `ringscope record`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    choice: Choice,
    /// Write the recording to this file; - is standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Stop after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    seconds: Option<Duration>,
    /// Keep only the last SECONDS before the end, in memory until then
    #[arg(long, value_name = "SECONDS", value_parser = seconds, conflicts_with = "when")]
    last: Option<Duration>,
    /// Wait for a burst that fulfils this, and keep the time around it
    #[arg(long, value_name = "CONDITION")]
    when: Option<Trigger>,
    /// With --when: seconds kept before the burst
    #[arg(long, value_name = "SECONDS", value_parser = seconds_or_none, default_value = "2", requires = "when")]
    before: Duration,
    /// With --when: seconds kept after the burst
    #[arg(long, value_name = "SECONDS", value_parser = seconds_or_none, default_value = "2", requires = "when")]
    after: Duration,
    /// Measure times in the host kernel as well: frames of the tap, wake-ups,
    /// interrupts
    #[arg(long)]
    kernel_stages: bool,
}

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

/// Runs `ringscope record` until it is done or ended by a signal.
///
/// # Errors
/// When there is no recorder to follow, or the file cannot be written.
pub fn run(arguments: &Arguments) -> Outcome {
    let Found { path, reader, .. } = arguments.choice.open()?;
    let until = match (&arguments.when, arguments.last) {
        (Some(trigger), _) => Until::Met(*trigger, arguments.before, arguments.after),
        (None, Some(last)) => Until::Last(last),
        (None, None) => Until::All,
    };
    // Nothing can be measured for a daemon that has ended; the end is reported below.
    let measures = arguments.kernel_stages && is_alive(&reader);
    let kernel = measures.then(|| Kernel::attach(&reader)).transpose()?;
    // This takes some milliseconds, so it is done first: when the file appears, the recording has begun.
    let facts = facts(&reader, kernel.as_ref().map(Kernel::facts));
    let clock = Clock::new();
    let path_of = &arguments.output;
    // Before signals are handled: opening a FIFO waits for its reader, and a signal must end the wait.
    let output = Output::open(path_of, guard(&[reader.file()]))
        .map_err(|source| KeepError::Nothing { path: path_of.clone(), source })?;
    if output.is_terminal() {
        return Err(BinaryToTerminal("a recording").into());
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // A second signal ends the process at once: a write may be waiting for a reader.
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let started = Instant::now();
    let mut keeper = Keeper::create(output, path_of, &reader, &facts, until, clock)?;
    let mut following = Following::new(path, reader, kernel, keeper.wants_the_past());
    let end = following.follow(&mut keeper, arguments.seconds, &stop);
    let (end, so_far) = match end {
        Ok(end) => (Some(end), Ok(())),
        Err(error) => (None, Err(error)),
    };
    let summary = keeper.finish(&following.reader, so_far)?;
    match end {
        Some(End::Done) | None => {}
        Some(End::Stopped) => eprintln!("ringscope: ended by a signal"),
        Some(End::DaemonGone) => {
            eprintln!("ringscope: the daemon has ended: the recording ends with it");
        }
    }
    eprintln!("ringscope: {summary}");
    if let Some(cost) = following.measured.cost {
        eprintln!("ringscope: {}", in_words(cost, started.elapsed()));
    }
    Ok(())
}

/// The cost of the kernel's programs, as a sentence.
fn in_words(cost: Cost, elapsed: Duration) -> String {
    let share = cost.time.as_secs_f64() / elapsed.as_secs_f64();
    let each = cost.time.as_nanos() as f64 / cost.runs.max(1) as f64;
    let (runs, each) = (grouped(cost.runs), time(each));
    format!(
        "the kernel's programs ran {runs} times, for {each} each: {:.2} % of a CPU",
        share * 100.0
    )
}

/// A recorder that is followed.
struct Following {
    path: PathBuf,
    reader: Reader,
    cursors: Vec<Cursor>,
    kernel: Option<Kernel>,
    /// The writer and the end, ticks, of the newest kernel span.
    newest_span: (u8, u64),
    /// What the kernel's programs lost and cost, known at the end.
    measured: Measured,
}

impl Following {
    fn new(path: PathBuf, reader: Reader, kernel: Option<Kernel>, from_the_oldest: bool) -> Self {
        let cursor = |worker| {
            if from_the_oldest { reader.oldest(worker) } else { reader.newest(worker) }
        };
        let cursors = (0..reader.workers()).map(cursor).collect();
        let (newest_span, measured) = Default::default();
        Self { path, cursors, reader, kernel, newest_span, measured }
    }

    fn follow(
        &mut self,
        keeper: &mut Keeper,
        limit: Option<Duration>,
        stop: &AtomicBool,
    ) -> std::io::Result<End> {
        let started = Instant::now();
        let mut progress = Progress::new();
        let mut looked = started;
        loop {
            let end = if stop.load(Ordering::Relaxed) {
                Some(End::Stopped)
            } else if keeper.is_done() || limit.is_some_and(|limit| started.elapsed() >= limit) {
                Some(End::Done)
            } else if looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                keeper.flush()?;
                progress.show(|| keeper.state());
                if let Some(kernel) = &mut self.kernel {
                    kernel.see_front_end(&self.reader);
                }
                self.is_over().then_some(End::DaemonGone)
            } else {
                None
            };
            // Records up to now are read in every case.
            if end.is_some()
                && let Some(kernel) = &mut self.kernel
            {
                self.measured = kernel.end();
            }
            let came = self.read(keeper)?;
            if let Some(end) = end {
                return Ok(end);
            }
            if came < self.reader.capacity() / 8 {
                std::thread::sleep(POLL_EVERY);
            }
        }
    }

    /// Reads the new records. Returns the largest number from one worker.
    fn read(&mut self, keeper: &mut Keeper) -> std::io::Result<usize> {
        let mut most = 0;
        if let Some(kernel) = &self.kernel {
            for span in kernel.spans() {
                keeper.take(&Record::KernelSpan(span))?;
                self.newest_span = (span.writer, span.end);
            }
            let (writer, at) = self.newest_span;
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
