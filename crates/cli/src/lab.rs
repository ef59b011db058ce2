//! `ringscope lab`: compares ways between a guest and the wire.

mod beside;
mod cases;
mod nested;
mod peer;
mod report;
mod talker;

use std::error::Error;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand, ValueEnum};
use lab::command::Stop;
use lab::cpus::Cpus;
use lab::experiment::{self, Event, ExperimentError, Plan};
use lab::kept::{DOCTOR, Host, Kept, Manifest};
use lab::plan::{Load, Probes};
use lab::results::{Results, Trouble};
use lab::table::to_text;
use lab::talker::{Home, Talker, TalkerCpu, has_disciplines};
use lab::variant::{self, UpOptions};
use lab::verdict::PAIRS_MIN;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::Outcome;
use crate::output::print;
use crate::plain::shown;
use beside::{LoadName, OtherName};
use peer::PeerFlags;
use report::ReportArguments;
use talker::TalkerFlags;

const EXAMPLES: &str = "\
Examples:
  ringscope lab list                       all variants
  ringscope lab --quick --variants host-host,tap-bridge --guest uml --out lab1
                                           two of them, and keep everything
  ringscope lab --against tap-bridge,af-xdp
                                           two in turn, and which is faster
  ringscope lab report lab1                the table of a kept run again
  ringscope lab report lab1 --format html -o lab.html
                                           its page, with the slow packets

Without --variants, --quick takes a few minutes, and a full run less than an
hour. Variants with other back ends need the packages of
`qemu-scripts/setup --lab`.

Each variant is built in network namespaces of its own, and taken down again,
also after Ctrl-C. If the lab is killed, its next start takes down what is
left. The commands that build a variant by hand are in qemu-scripts/variants;
`qemu-scripts/variant` runs one of them.

A variant with a change is a row of its own. --xdp-printk adds tap-xdp+printk,
--untraced adds tap-bridge+untraced. --variants takes such names, too: every
variant with ringscoped on a wire has +untraced.

A verdict compares the median round trips of two rows, repeat by repeat, by
Wilcoxon's signed-rank test (exact, two-sided, level 5 %): of equal rows it
tells apart one pair in 20 or fewer. It needs 6 repeats. --against ends with
one, and with the difference of the means part by part; A and B may be the
same. With 6 repeats or more, every run compares each variant with the first.

Probes are sent at fixed times, and their round trips are counted from these
times. For each measurement, counters at each place of the way have to show
that the probes went the way of the variant. Repeats go through the variants
there and back, so that a change of the host meets all of them alike. No
figure is left out. Latency under load is that of the probes.

Capacity (--capacity on) is measured in the first repeat, with UDP packets of
1500 bytes: first the responder sends, then the talker. Trials of half a second
search the highest rate at which nothing is lost. Where the sender reached no
more, the table has >= before the rate. CPU time is that at 50 % of the rate;
probes measure round trips at 10, 50 and 90 % of it. This takes about 25 s for
each variant.

With --peer the talker is another host, and the wire is real: for example
`--peer ssh:root@far --iface eth1 --peer-iface eth1`. ssh logs in there as root,
with the configuration and keys of this user, and without a question. The far
host needs only its ssh server and iproute2. The agent is copied there and
removed again, and the interface there has the address 10.77.0.1 meanwhile. An
interface of this host that is in use is refused. Each host has a clock of its
own, so there are no times of one way; the report says what the clocks follow.

After the probes, ping and isochron measure the same way (--others). A second
table shows them beside the probes, and says where they differ by more than the
repeats do.

ringscoped and the other back ends have the last CPU for themselves; guests,
talker and load have the rest (--pin off: any CPU). The talker of --talker
pinned has a CPU of its own, if there are three. With a cpu- load or cache, the
talker has the first CPU for itself, if there are more than the others need. If
not, it shares one with the guests, and cpu-guest and cpu-other are the same.

With etf and taprio, each probe has a launch time, and its times count from
there. Probes that the queueing discipline drops are counted as missed,
invalid or no buffer, not as lost. A probe that is due while taprio's gate is
closed waits for it: this part of its time is shown as `gate`. If this host's
kernel has no etf or taprio, the talker runs in User Mode Linux; compare it
with the talker uml.

--nested is for variants that this host's kernel cannot have: a card that
belongs to the guest (vfio), vhost-net, the kernel's Open vSwitch. They run in
a machine in QEMU that has the host's files and Debian's kernel. Its hardware
is emulated, so the figures only show that a variant works; they have a table
of their own. Probes are fewer there, and there is no load. It takes some
minutes more; `--nested --variants vfio` runs only this variant, and only there.

Exit code: 0; 1 with one sentence on standard error, also if a variant that
--variants names has failed; 2 for wrong flags; 130 after Ctrl-C.";

/// The flags of `ringscope lab`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    order: Option<Order>,
    #[command(flatten)]
    experiment: Experiment,
}

#[derive(Debug, Subcommand)]
enum Order {
    /// Report a run that --out kept: as table, JSON or one HTML page
    Report(ReportArguments),
    /// Print the name of each variant, and what it is
    List,
}

#[derive(Debug, Args)]
struct Experiment {
    /// One repeat (with --against: 6), and 1000 probes
    #[arg(long)]
    quick: bool,
    /// Only these, separated by commas, in this order; +CHANGE adds a change [default: all that can be built]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    variants: Vec<String>,
    /// Only these two, in turn, and a verdict: whether B is faster or slower than A, or not to be told apart
    #[arg(
        long,
        value_name = "A,B",
        value_delimiter = ',',
        conflicts_with_all = ["variants", "xdp_printk", "untraced"]
    )]
    against: Vec<String>,
    /// Also in an emulated machine, for what this kernel cannot do; with --variants only there
    #[arg(long, conflicts_with_all = ["against", "peer"])]
    nested: bool,
    /// What guests run in
    #[arg(long, value_enum, default_value_t = Guest::Qemu)]
    guest: Guest,
    /// What runs beside the probes, each in turn [default: none,streams; with --against: none]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_enum)]
    loads: Vec<LoadName>,
    #[command(flatten)]
    talker: TalkerFlags,
    /// Other programs that then measure the same way, beside the same load
    /// [default: ping,isochron; with --quick or --against: ping]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_enum)]
    others: Vec<OtherName>,
    /// How often each variant is built and measured [default: 6; with --quick: 1; with --against: 10, with both: 6]
    #[arg(long, value_name = "N")]
    repeats: Option<NonZeroUsize>,
    /// Probes of each measurement [default: 2000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    count: Option<u64>,
    /// Time between two probes; the defaults are prime to the kernel's timer
    /// [default: 2503, with --guest uml 5003]
    #[arg(long, value_name = "US", value_parser = clap::value_parser!(u64).range(1..))]
    interval_us: Option<u64>,
    /// UDP payload of a probe, bytes
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u64).range(32..=1472))]
    size: u64,
    /// Give the back end the last CPU for itself
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pin: Switch,
    /// Measure in the host kernel as well
    #[arg(long, value_enum, default_value_t = Switch::On)]
    kernel_stages: Switch,
    /// Search the rate at which each variant loses nothing, measure CPU time and
    /// round trips there [default: on; with --quick or --against: off]
    #[arg(long, value_enum)]
    capacity: Option<Switch>,
    /// Also tap-xdp with a message for each frame (bpf_printk) and a reader of the messages: as tap-xdp+printk
    #[arg(long)]
    xdp_printk: bool,
    /// Also one variant of ringscoped with tracing off, as tap-bridge+untraced: the cost of tracing
    /// [default: on; with --quick: off]
    #[arg(long, value_enum)]
    untraced: Option<Switch>,
    #[command(flatten)]
    peer: PeerFlags,
    /// Keep all stamps, recordings and logs in this new directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Guest {
    Qemu,
    Uml,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// Flags and host that do not go together.
#[derive(Debug, thiserror::Error)]
enum LabError {
    #[error("expected root, for namespaces and interfaces; found user {0}: use sudo")]
    NotRoot(u32),
    #[error(
        "--against: expected {PAIRS_MIN} repeats or more, of which a verdict can be given, found --repeats {0}"
    )]
    TooFewRepeats(usize),
    #[error(
        "--loads {0}: expected that each part of a variant has CPUs of its own, found --pin off, with which they may run anywhere; leave out --pin off, or this load"
    )]
    Unpinned(&'static str),
    #[error("--loads {0}: expected two CPUs or more, found one; leave out this load")]
    OneCpu(&'static str),
    #[error("no variant could be measured")]
    Nothing,
    #[error("{0}")]
    Failed(String),
}

/// Whether a signal has ended the lab.
pub fn is_interruption(error: &(dyn Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(ExperimentError::Interrupted))
}

/// Runs `ringscope lab`.
///
/// # Errors
/// When nothing can be built or measured, and after a signal.
pub fn run(arguments: &Arguments) -> Outcome {
    match &arguments.order {
        Some(Order::List) => {
            let lines =
                variant::all()?.into_iter().map(|it| format!("{:<14} {}\n", it.name, it.title));
            Ok(print(&lines.collect::<String>())?)
        }
        Some(Order::Report(arguments)) => report::run(arguments),
        None => compare(&arguments.experiment),
    }
}

fn compare(flags: &Experiment) -> Outcome {
    let user = rustix::process::geteuid();
    if !user.is_root() {
        return Err(LabError::NotRoot(user.as_raw()).into());
    }
    let plan = plan(flags)?;
    // Removed at the end, if nobody wants it.
    let scratch;
    let out = match &flags.out {
        Some(dir) => dir,
        None => {
            scratch = tempfile::tempdir()?;
            scratch.path()
        }
    };
    let kept = Kept::create(out)?;
    let mut manifest = manifest(flags);
    keep_doctor(&plan.up.programs.join("ringscope"), &kept.dir().join(DOCTOR));
    let stop = Stop::default();
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, stop.flag())?;
    }
    let began = Instant::now();
    let ended = experiment::run(&stop, &plan, &kept, &mut manifest, |event| say(began, &event));
    if !matches!(ended, Ok(()) | Err(ExperimentError::Interrupted)) {
        return Ok(ended?);
    }
    let in_machine = match &ended {
        Ok(()) if flags.nested => {
            let ringscope = plan.up.programs.join("ringscope");
            nested::run(&stop, flags, &ringscope, kept.dir(), |line| {
                say(began, &Event::Machine(line))
            })
        }
        _ => Ok(()),
    };
    let results = Results::read(&kept, &manifest)?;
    if !results.is_empty() {
        print(&if flags.json { results.to_json() } else { shown(to_text(&results)) })?;
    }
    ended?;
    in_machine?;
    if results.is_empty() {
        return Err(LabError::Nothing.into());
    }
    // Talkers are named, too.
    let is_named = |it: &&Trouble| {
        it.talker.is_some() || flags.variants.contains(&it.variant) || !flags.against.is_empty()
    };
    let in_machine = results.nested.iter().flat_map(|it| &it.troubles);
    let named = results.troubles.iter().chain(in_machine).find(is_named);
    named.map_or(Ok(()), |it| Err(LabError::Failed(format!("{}: {}", it.variant, it.why)).into()))
}

fn plan(flags: &Experiment) -> Result<Plan, Box<dyn Error>> {
    let cases = cases::cases(flags, &variant::all()?)?;
    // In the machine only.
    let is_elsewhere = flags.nested && !flags.variants.is_empty();
    let cases = if is_elsewhere { Vec::new() } else { cases };
    if !flags.against.is_empty() && repeats(flags) < PAIRS_MIN {
        return Err(LabError::TooFewRepeats(repeats(flags)).into());
    }
    flags.talker.check(flags.peer.peer().is_some())?;
    let cpus = dealt_cpus(flags, Host::here().cpus)?;
    let programs = std::env::current_exe()?;
    let programs = programs.parent().unwrap_or_else(|| Path::new("/")).to_path_buf();
    let up = UpOptions {
        programs,
        guest: if flags.guest == Guest::Qemu { "qemu" } else { "uml" }.into(),
        cpus,
        kernel_stages: flags.kernel_stages == Switch::On,
        home: Home::Variant,
        peer: flags.peer.peer(),
    };
    Ok(Plan { cases, up, has_disciplines: has_disciplines() })
}

/// The CPU of a pinned talker.
fn talker_cpu(flags: &Experiment) -> Option<TalkerCpu> {
    let has_back_end_cpu = flags.pin == Switch::On && Host::here().cpus > 1;
    flags.talker.cpu(has_back_end_cpu, flags.peer.peer().is_some())
}

/// The CPUs of each part. Loads on the CPU of one part need them to be known, and apart.
fn dealt_cpus(flags: &Experiment, cpus: usize) -> Result<Option<Cpus>, LabError> {
    let pressure = loads(flags).into_iter().find(|it| it.is_pressure());
    let is_here = flags.peer.peer().is_none();
    let of_talker = usize::from(talker_cpu(flags).is_some_and(|it| it.is_own && is_here));
    let is_pinned = flags.pin == Switch::On;
    let dealt = is_pinned.then(|| Cpus::deal(cpus, of_talker, pressure.is_some())).flatten();
    match (pressure, dealt) {
        (Some(load), None) if flags.pin == Switch::Off => Err(LabError::Unpinned(load.name())),
        (Some(load), None) => Err(LabError::OneCpu(load.name())),
        _ => Ok(dealt),
    }
}

fn manifest(flags: &Experiment) -> Manifest {
    let quick = |quick, full| if flags.quick { quick } else { full };
    Manifest {
        format: Manifest::FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        began_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs()),
        command: std::env::args().collect(),
        host: Host::here(),
        accelerator: None,
        probes: Probes {
            count: flags.count.unwrap_or_else(|| quick(1000, 2000)),
            interval_us: flags.interval_us.unwrap_or(match flags.guest {
                // An emulated guest takes half a millisecond for an answer, and beside TCP streams more.
                Guest::Qemu => 2503,
                // A program in it takes up to 3 ms.
                Guest::Uml => 5003,
            }),
            size: flags.size as usize,
        },
        loads: loads(flags),
        capacity: flags
            .capacity
            .map_or(!flags.quick && flags.against.is_empty(), |it| it == Switch::On),
        talkers: flags.talker.talkers(),
        talker_cpu: talker_cpu(flags),
        talker_troubles: Vec::new(),
        others: beside::probes(&flags.others, flags.quick || !flags.against.is_empty()),
        repeats: repeats(flags),
        variants: Vec::new(),
    }
}

fn loads(flags: &Experiment) -> Vec<Load> {
    match &flags.loads[..] {
        [] if flags.against.is_empty() => vec![Load::None, Load::Streams],
        [] => vec![Load::None],
        given => given.iter().copied().map(Load::from).collect(),
    }
}

fn repeats(flags: &Experiment) -> usize {
    flags.repeats.map_or(
        match (flags.against.is_empty(), flags.quick) {
            (true, true) => 1,
            // Every full run can give verdicts.
            (true, false) | (false, true) => PAIRS_MIN,
            (false, false) => 10,
        },
        NonZeroUsize::get,
    )
}

/// Keeps what `ringscope doctor` says of this host. Warnings are no error here.
fn keep_doctor(ringscope: &Path, path: &Path) {
    let output = Command::new(ringscope).arg("doctor").stdin(Stdio::null()).output();
    let text = output.map_or_else(|error| error.to_string().into_bytes(), |it| it.stdout);
    if let Err(error) = fs::write(path, text) {
        eprintln!("ringscope: cannot write {}: {error}", path.display());
    }
}

fn say(began: Instant, event: &Event<'_>) {
    let line = match event {
        Event::Cleaned(names) => {
            format!("taken down what an earlier lab has left: {}", names.join(", "))
        }
        Event::Trying(peer) => format!("trying the far host {}", peer.host),
        Event::Building { variant, repeat, left } => {
            let left = left.map_or_else(String::new, |left| format!("; {} left", about(left)));
            format!("{variant}: building it, repeat {}{left}", repeat + 1)
        }
        Event::Capacity { variant, way } => {
            format!("{variant}: searching its capacity, the {} sends", way.sender())
        }
        Event::Measuring { variant, load, talker } => {
            let talker = match talker {
                Talker::Default => String::new(),
                talker => format!(", talker {}", talker.name()),
            };
            format!("{variant}: measuring, load {}{talker}", load.name())
        }
        Event::TalkerFailed { variant, talker, why } => {
            format!("{variant}: talker {} given up: {why}", talker.name())
        }
        Event::Machine(line) => format!("emulated machine: {line}"),
        Event::Failed { variant, why } => format!("{variant}: given up: {why}"),
    };
    eprintln!("[{:4} s] {}", began.elapsed().as_secs(), shown(line));
}

fn about(left: Duration) -> String {
    match left.as_secs() {
        seconds @ 0..=90 => format!("about {seconds} s"),
        seconds => format!("about {} min", seconds.div_ceil(60)),
    }
}
