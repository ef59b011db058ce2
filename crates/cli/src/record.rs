//! `ringscope record`: copies the records of a flight recorder to a file before they are overwritten.

mod following;
mod keep;
mod kernel;

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ::report::without_controls;
use agent::Progress;
use burst_trace::{Clock, KernelStage};
use host_files::Output;
use kernel_stages::Cost;
use report::breakdown::is_alive;
use report::trigger::Trigger;
use report::units::{grouped, time};
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::Outcome;
use crate::output::{BinaryToTerminal, guard};
use crate::plain::shown;
use crate::recorder::{Choice, Found};
use crate::stats::{seconds, seconds_or_none};
use following::{Following, follow};
use keep::{KeepError, Keeper, Until, facts};
use kernel::Kernel;

const EXAMPLES: &str = "\
Examples:
  ringscope record -o now.rec                    until Ctrl-C
  ringscope record --seconds 10 -o ten.rec       for 10 seconds
  ringscope record --last 30 -o before.rec       the last 30 s before Ctrl-C
  ringscope record --when 'rx.total>500us' -o slow.rec
                                                 2 s before and after a burst
                                                 that takes longer
  mkdir here && ringscope record --all --when 'rx.total>5ms' -o here
                                                 all guests at that time
  ringscope record --kernel-stages --seconds 5 -o k.rec
                                                 with the host kernel's times
  ringscope report slow.rec                      where the time went
  ringscope why k.rec                            and why it took so long

Conditions: --when takes DIRECTION.TIME>LIMIT or DIRECTION.TIME>=LIMIT.
  DIRECTION  tx or rx
  TIME       total, one of the daemon's stages, or one in the host kernel:
             wakeup (of the worker, for either direction), host-tx of tx,
             host-rx and inject of rx; those need --kernel-stages, except
             wakeup on AF_XDP
  LIMIT      a number with a unit: ns, us, ms or s

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

--all makes a file for each guest whose daemon runs, because a recording has
the clock, the facts and the totals of one guest. With --when, the first burst
of any guest that fulfils the condition ends all recordings. A guest that
starts later is not recorded.

Exit code: 0; 1 with one sentence on standard error; 2 for wrong flags; 3 if
nothing fulfilled the condition of --when, and nothing was written.

--kernel-stages loads BPF programs into the kernel while this command runs.
They see every frame of the host, and cost a busy guest about 10 % of its rate.
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
    /// Record every guest of the run directory, each to the file NAME.rec in
    /// the directory given by -o
    #[arg(long, conflicts_with_all = ["name", "kernel_stages"])]
    all: bool,
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
    /// interrupts; and why workers and the front end did not run
    #[arg(long)]
    kernel_stages: bool,
    /// With --kernel-stages: also why the threads of this process did not run,
    /// a program at the far end on this host; may be given several times
    #[arg(long, value_name = "PID", requires = "kernel_stages")]
    far_end: Vec<u32>,
}

/// Signals that come within this time are one: `timeout` of coreutils sends one to its child, and then one to its process
/// group, to which the child belongs.
const TOGETHER: Duration = Duration::from_millis(200);

/// Nothing fulfilled the condition.
#[derive(Debug, thiserror::Error)]
#[error("nothing fulfilled the condition, and nothing was recorded; a file that was at {} is as it was", .0.display())]
pub struct NothingMet(PathBuf);

/// Why the recording cannot begin.
#[derive(Debug, thiserror::Error)]
enum RecordError {
    /// The condition's stage is not measured.
    #[error(
        "--when waits for {stage}, which is not measured ({why}); give --kernel-stages, as root"
    )]
    NotMeasured { stage: &'static str, why: String },
    /// The output of several recordings has to be a directory.
    #[error("cannot write the recordings into {}: expected a directory, for a file NAME.rec of each guest; make it", .0.display())]
    NoDirectory(PathBuf),
    /// There is no daemon.
    #[error("expected guests of running daemons in {}, found none; start ringscoped, or give its run directory with --run-dir", .0.display())]
    NobodyRuns(PathBuf),
}

/// Runs `ringscope record` until it is done or ended by a signal.
///
/// # Errors
/// When there is no recorder to follow, or the file cannot be written.
pub fn run(arguments: &Arguments) -> Outcome {
    let mut recordings = match arguments.all {
        false => vec![begin(arguments, arguments.choice.open()?, &arguments.output)?],
        true => begin_all(arguments)?,
    };
    let stop = stop_at_signal()?;
    let started = Instant::now();
    follow(&mut recordings, arguments.seconds, &stop);
    let mut outcome = Ok(());
    for recording in recordings {
        let cost = recording.cost();
        match recording.finish() {
            Ok(Some(summary)) => eprintln!("ringscope: {}", shown(summary)),
            Ok(None) => outcome = Err(NothingMet(arguments.output.clone()).into()),
            // Others are finished all the same.
            Err(error) if arguments.all => {
                eprintln!("ringscope: {}", without_controls(&error.to_string()));
                outcome = Err(error.into());
            }
            Err(error) => outcome = Err(error.into()),
        }
        if let Some(cost) = cost {
            eprintln!("ringscope: {}", shown(in_words(cost, started.elapsed())));
        }
    }
    outcome
}

/// What is set by the first signal. A later one ends this process at once: a write may be waiting for a reader.
fn stop_at_signal() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let asked = Arc::clone(&stop);
    thread::Builder::new().name("signals".into()).spawn(move || {
        let mut first = None;
        for signal in signals.forever() {
            if first.get_or_insert_with(Instant::now).elapsed() >= TOGETHER {
                let _ = emulate_default_handler(signal);
            }
            asked.store(true, Ordering::Relaxed);
        }
    })?;
    Ok(stop)
}

/// Begins the recording of one guest.
fn begin(
    arguments: &Arguments,
    Found { path, reader, name }: Found,
    to: &Path,
) -> Result<Following, Box<dyn Error>> {
    let until = match (&arguments.when, arguments.last) {
        (Some(trigger), _) => Until::Met(*trigger, arguments.before, arguments.after),
        (None, Some(last)) => Until::Last(last),
        (None, None) => Until::All,
    };
    // Nothing can be measured for a daemon that has ended; the end is reported below.
    let measures = arguments.kernel_stages && is_alive(&reader);
    let kernel = measures.then(|| Kernel::attach(&reader, &arguments.far_end)).transpose()?;
    // This takes some milliseconds, so it is done first: when the file appears, the recording has begun.
    let facts = facts(&reader, kernel.as_ref().and_then(Kernel::facts));
    if let Some(stage) = arguments.when.and_then(|trigger| trigger.kernel_stage()) {
        check_measured(stage, &facts)?;
    }
    let clock = Clock::new();
    // Before signals are handled: opening a FIFO waits for its reader, and a signal must end the wait.
    let mut progress = Progress::new();
    progress.show(|| format!("waiting until somebody reads {}", to.display()));
    let output = Output::open(to, guard(&[reader.file()]))
        .map_err(|source| KeepError::Nothing { path: to.into(), source })?;
    drop(progress);
    if output.is_terminal() {
        return Err(BinaryToTerminal("a recording").into());
    }
    let keeper = Keeper::create(output, to, &reader, &facts, until, clock)?;
    Ok(Following::new(name, path, reader, kernel, keeper))
}

/// Begins the recordings of all guests whose daemons run.
fn begin_all(arguments: &Arguments) -> Result<Vec<Following>, Box<dyn Error>> {
    let directory = &arguments.output;
    if !directory.is_dir() {
        return Err(RecordError::NoDirectory(directory.clone()).into());
    }
    let found = arguments.choice.open_all()?;
    if found.is_empty() {
        return Err(RecordError::NobodyRuns(arguments.choice.run_dir()?).into());
    }
    let each = |found: Found| {
        let to = directory.join(format!("{}.rec", found.name));
        begin(arguments, found, &to)
    };
    found.into_iter().map(each).collect()
}

/// Checks that a condition's stage in the host kernel is measured: otherwise it would be waited for in vain. A worker's
/// wake-up may also be in the records of its bursts.
fn check_measured(stage: KernelStage, facts: &str) -> Result<(), RecordError> {
    let facts: Value = serde_json::from_str(facts).unwrap_or_default();
    let state = facts["kernel_stages"][stage.name()].as_str();
    if stage == KernelStage::Wakeup || state == Some("on") {
        return Ok(());
    }
    let why = without_controls(state.unwrap_or("nobody has asked for it"));
    Err(RecordError::NotMeasured { stage: stage.name(), why })
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
