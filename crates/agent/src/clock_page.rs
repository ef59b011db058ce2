//! `clock --page` and `clock --guest`: bounds of the offset between the clocks of a guest and its host, by a page of memory
//! that both share (QEMU's `ivshmem-plain`).
//!
//! The host writes a question into the page, and the guest answers with its counter. So the guest read its counter between
//! the moments at which the host wrote the question and saw the answer: an exchange. It takes about 100 ns, because nobody
//! is woken up, and no driver and no device takes part. Now and then the guest answers with a pair, that is, its
//! `CLOCK_MONOTONIC` between two readings of its counter. With the pairs around an exchange, the guest's counter becomes its
//! clock. No symmetry is assumed, and nothing of the counters' rates but that they hold for some microseconds
//! (`bounds`).
//!
//! - `page`: the words of the page, and who writes them; `host`: asks; `guest`: answers.
//! - `bounds`: from exchanges and pairs to bounds.
//! - `ptp`: bounds without a page, by the clock device of a KVM guest.

mod bounds;
mod guest;
mod host;
mod page;
mod ptp;

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use host::bound_clock;

/// Number of exchanges, if not given: some milliseconds.
pub const EXCHANGES: u32 = 20_000;
/// Name of the relation in [`ClockBounds`].
const RELATION: &str = "clock-page";
/// Time for the guest's answers, if not given.
const ANSWERS_WITHIN_S: u64 = 5;
/// Time for the host's next question, if not given.
const QUESTIONS_WITHIN_S: u64 = 60;
/// Most bytes of a file to which bounds are added: some thousand runs.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Examples of the command's help.
pub(crate) const EXAMPLES: &str = "\
Without --page, --guest and --ptp, the counter and the clock of this machine are
printed, twice. Machines that read the same counter can be compared by that, as
a host and User Mode Linux on it. The counter of a KVM guest differs from the
host's by an offset that KVM knows, and `ringscope record` finds. So the guest's
clock is bounded by what the agent prints there, before and after a run:

  guest$ ringscope agent clock >> counter.json
  ringscope report ten.rec --probes ping.csv --echo echo.csv \\
    --clock counter.json

A KVM guest whose kernel has the driver ptp_kvm reads the host's clock itself:

  guest$ ringscope agent clock --ptp -o ptp.json
  (the run)
  guest$ ringscope agent clock --ptp -o ptp.json --append
  ringscope report ten.rec --probes ping.csv --echo echo.csv --clock ptp.json

A QEMU guest has a counter of its own. It shares a page of memory with the host
if it was started with qemu-scripts/launch --clock-page FILE, or with
  -object memory-backend-file,id=clock,share=on,mem-path=FILE,size=4096
  -device ivshmem-plain,memdev=clock
The agent in the guest and the agent on the host exchange some thousand words on
it in some milliseconds. Each exchange shows between which two moments of the
host the guest has read its clock. Do it before and after a run: then the offset
is known between them, too, if the clocks drift apart at a constant rate.

  guest$ ringscope agent clock --guest
  ringscope agent clock --page /dev/shm/vm0.clock -o clock.json
  (the run, and the agent in the guest once more)
  ringscope agent clock --page /dev/shm/vm0.clock -o clock.json --append
  ringscope stats --probes ping.csv --echo echo.csv --clock clock.json

In the result, low_ns and high_ns of each bound are the least and the most by
which the guest's CLOCK_MONOTONIC was ahead of the host's at host_ns. With --ptp
host_ns is the host's CLOCK_REALTIME, and they are relative to that clock.";

/// The flags for measured offsets.
#[derive(Debug, clap::Args)]
pub struct PageArgs {
    /// On the host: bound the offset of a QEMU guest's clock by this file, its clock page.
    #[arg(long, value_name = "FILE", group = "measured")]
    page: Option<PathBuf>,
    /// In the guest: answer the agent on the host until it has finished.
    #[arg(long, conflicts_with = "page")]
    guest: bool,
    /// In a KVM guest: bound the offset of its clock by its clock device, which the driver ptp_kvm makes.
    #[arg(long, group = "measured", conflicts_with = "guest")]
    ptp: bool,
    /// With --page: number of exchanges [default: 20000].
    #[arg(long, value_name = "N", requires = "page", value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    exchanges: Option<u32>,
    /// With --page or --ptp: write the bounds to this file, not to standard output.
    #[arg(short, long, value_name = "FILE", requires = "measured")]
    output: Option<String>,
    /// Keep the bounds that the file has already, as those before a run.
    #[arg(long, requires = "output")]
    append: bool,
    /// With --page: time for the guest's answers [default: 5]; with --guest: time for the host's next question [default: 60].
    #[arg(long, value_name = "SECONDS", conflicts_with = "ptp", value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: Option<u64>,
}

impl PageArgs {
    /// Whether the offset of a guest's clock is to be measured.
    pub(crate) const fn is_given(&self) -> bool {
        self.page.is_some() || self.guest || self.ptp
    }

    fn limit(&self) -> Duration {
        let default = if self.guest { QUESTIONS_WITHIN_S } else { ANSWERS_WITHIN_S };
        Duration::from_secs(self.timeout.unwrap_or(default))
    }
}

/// The offset of a guest's clock: what `ringscope agent clock --page` and `--ptp` print.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockBounds {
    /// How it is known: `clock-page` or `ptp-kvm`.
    pub relation: String,
    /// Number of exchanges, or of readings of the clock device.
    pub exchanges: u64,
    /// The shortest exchange, or the narrowest bound by the clock device, nanoseconds.
    pub shortest_ns: u64,
    /// The bounds that say most, in the order of time. Each holds by itself.
    pub bounds: Vec<ClockBound>,
}

/// A bound of the offset at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockBound {
    /// The moment: the host's `CLOCK_MONOTONIC`, nanoseconds; of `ptp-kvm`, its `CLOCK_REALTIME`.
    pub host_ns: u64,
    /// The guest's `CLOCK_MONOTONIC` was ahead of that clock by at least this, nanoseconds.
    pub low_ns: i64,
    /// By at most this, nanoseconds.
    pub high_ns: i64,
}

impl ClockBound {
    /// Width of the bound, nanoseconds.
    #[must_use]
    pub const fn width_ns(&self) -> u64 {
        self.high_ns.abs_diff(self.low_ns)
    }
}

impl ClockBounds {
    /// Adds the bounds of a later run.
    pub fn add(&mut self, later: Self) {
        self.exchanges = self.exchanges.saturating_add(later.exchanges);
        self.shortest_ns = self.shortest_ns.min(later.shortest_ns);
        self.bounds.extend(later.bounds);
    }
}

/// Why the clocks of a guest and its host cannot be compared by a page.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be used.
    #[error("cannot {doing} {path}: {source}; check that it exists and that you may use it")]
    File {
        /// What was being done, such as "open the clock page".
        doing: &'static str,
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no clock page.
    #[error(
        "expected a clock page in {path}, found {found}: give the file of the guest's `qemu-scripts/launch --clock-page FILE`, \
         which has {} bytes; if it is that one, start the guest again with a new file",
        page::PAGE_BYTES
    )]
    NoPage {
        /// The file.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// Another process measures.
    #[error(
        "expected to be alone on the clock page {path}, found another `ringscope`: wait for its end"
    )]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The guest does not answer.
    #[error(
        "expected the guest to answer on the clock page within {limit:?}, found {found}: run `ringscope agent clock --guest` in \
         the guest that was started with this page; --timeout waits longer"
    )]
    Silent {
        /// How long it had.
        limit: Duration,
        /// What is there instead.
        found: String,
    },
    /// What the guest has answered is no clock's time.
    #[error(
        "expected {expected} on the clock page, found {found}: the guest's answers are not those of `ringscope agent clock`"
    )]
    Nonsense {
        /// What a clock does.
        expected: &'static str,
        /// What the guest has answered.
        found: String,
    },
    /// The file became shorter.
    #[error(
        "expected the clock page to stay as long as it is, found that its file was shortened: start the guest again with a new file"
    )]
    Torn,
    /// The guest has no page.
    #[error(
        "expected a PCI device 1af4:1110 (ivshmem-plain) with {} bytes, found none in {devices}: start the guest with \
         `qemu-scripts/launch --clock-page FILE`",
        page::PAGE_BYTES
    )]
    NoDevice {
        /// The directory of the devices.
        devices: PathBuf,
    },
    /// The guest has no clock device of KVM.
    #[error(
        "expected a clock named `{}` in {devices}, found {found}: run this in a KVM guest, load the driver there (modprobe \
         ptp_kvm), and see that the host's clock source is tsc",
        ptp::NAME
    )]
    NoPtp {
        /// The directory of the clock devices.
        devices: PathBuf,
        /// The names of those that are there.
        found: String,
    },
    /// The host does not ask.
    #[error(
        "expected a question of the host on the clock page within {limit:?}, found none: run `ringscope agent clock --page FILE` \
         on the host; --timeout waits longer"
    )]
    NoQuestion {
        /// How long it was waited for.
        limit: Duration,
    },
}

/// Runs the host's end, the guest's, or reads the guest's clock device.
pub(crate) fn run(args: &PageArgs) -> Result<(), crate::Error> {
    let limit = args.limit();
    let mut bounds = match &args.page {
        Some(page) => bound_clock(page, args.exchanges.unwrap_or(EXCHANGES), limit)?,
        None if args.ptp => ptp::bound_clock()?,
        None => return crate::print_json(&guest::serve(limit)?),
    };
    let Some(output) = &args.output else {
        return crate::print_json(&bounds);
    };
    if args.append
        && let Some(mut earlier) = earlier(output.as_ref(), &bounds.relation)?
    {
        earlier.add(bounds);
        bounds = earlier;
    }
    write(output, &bounds)
}

/// The bounds by `relation` that a file has, if there is one.
fn earlier(path: &Path, relation: &str) -> Result<Option<ClockBounds>, crate::Error> {
    let mut text = String::new();
    let read = host_files::open_regular(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|source| Error::File { doing: "read", path: path.into(), source })?,
    };
    let other = |found: String| crate::Error::Usage {
        flag: "--append",
        expected: format!("a file of `ringscope agent clock` with bounds by {relation}"),
        found: format!("{}: {found}", path.display()),
    };
    let bounds: ClockBounds =
        serde_json::from_str(&text).map_err(|error| other(error.to_string()))?;
    if bounds.relation != relation {
        return Err(other(format!("bounds by {}", bounds.relation)));
    }
    Ok(Some(bounds))
}

fn write(path: &str, bounds: &ClockBounds) -> Result<(), crate::Error> {
    let mut text = serde_json::to_string_pretty(bounds).map_err(io::Error::from)?;
    text.push('\n');
    let written = crate::stamps::create(path).and_then(|mut file| file.write_all(text.as_bytes()));
    Ok(written.map_err(|source| Error::File { doing: "write", path: path.into(), source })?)
}

#[cfg(test)]
mod tests;
