//! What runs around a fault: the daemon, a guest, and traffic between it and the outside host.
//!
//! ```text
//! setting           CPU 0           CPU 1              probes from
//! guest answers     worker          guest              the outside host
//! guest asks        worker, guest   the far end        the guest
//! in software       worker          guest              the guest, to itself
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{available_parallelism, sleep};
use std::time::Duration;

use lab::outside::Outside;
use lab::process::Process;
use rustix::process::{Pid, setpriority_process};
use serde_json::Value;
use tempfile::TempDir;

use super::eviction::{self, Eviction};
use super::hog::Hog;
use super::kind::{Kind, Setting};
use super::messages::Messages;
use super::starving::StarvingGuest;
use super::storm::Storm;
use super::undo::Undo;
use super::{faults, quota};
use crate::af_xdp::{burning_program, passing_program};
use crate::daemon::{Daemon, program};
use crate::eventually::{eventually, when};
use crate::qemu::{Failure, GUEST, Place, SOON, said};
use crate::recording::RecordCommand;

/// The worker's CPU, and the other one.
pub const CPUS: [usize; 2] = [0, 1];
/// UDP port of the probes.
const PORT: &str = "7010";
/// Number of probes: for half an hour.
const COUNT: &str = "2000000";
/// The guest's memory, MiB: its agent keeps the times of all probes.
const MEMORY_MIB: u32 = 512;
/// The nice value of the guest's main thread.
const MAIN_NICE: i32 = -15;
/// The name of the daemon in software's setting, as that of a [`Place`].
const NAME: &str = "vm0";
/// Packets after which traffic is flowing.
const FLOWING: u64 = 1000;
/// More packets after which it still is.
const STILL_FLOWING: u64 = 10;
/// Debug messages of an XDP program for each frame: some 20 milliseconds.
const MESSAGES: u32 = 30_000;
/// Time of a recording: the fault, and what comes after it.
const RECORDED_SECONDS: &str = "0.3";
/// What takes longer is slow. An emulated guest now and then takes nearly as much by itself.
const OVER: &str = "10ms";

/// What the guest runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestKind {
    /// User Mode Linux. It loses the wake-up by an interrupt that comes just when it goes idle, and then sleeps until its next
    /// timer (`os_idle_sleep`, arch/um/os-Linux/time.c): every fifth recording has a stall of 10 to 500 ms.
    Uml,
    /// QEMU.
    Qemu,
}

impl GuestKind {
    /// The one with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Uml, Self::Qemu].into_iter().find(|kind| kind.name() == name)
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uml => "uml",
            Self::Qemu => "qemu",
        }
    }
}

/// A setting, with its traffic. Dropping it ends everything.
#[derive(Debug)]
pub struct Scene {
    // Field order is drop order: the faults end before the world in which they are planted.
    hog: Hog,
    faults: Option<Faults>,
    world: World,
    directory: TempDir,
}

/// Faults of a guest that answers, which are prepared before anything is recorded.
#[derive(Debug)]
struct Faults {
    storm: Storm,
    messages: Messages,
    eviction: Eviction,
}

/// The daemon and its guest.
#[derive(Debug)]
enum World {
    /// A guest with a kernel. The process on the outside host asks or answers it.
    Kernel { peer: Process, place: Box<Place>, is_asked: bool },
    /// A guest in software.
    Software { guest: StarvingGuest, daemon: Daemon },
}

/// Why faults of a kind cannot be planted here; `None` if they can.
///
/// # Errors
/// If the daemon is not built.
pub fn obstacle(kind: Kind) -> Result<Option<String>, Failure> {
    Ok(match kind {
        Kind::DaemonQuota | Kind::GuestQuota => quota::obstacle(),
        Kind::Eviction => eviction::obstacle(&program("ringscoped")?),
        _ => None,
    })
}

impl Scene {
    /// Starts everything, and waits until traffic flows.
    ///
    /// # Errors
    /// If something cannot be started; the message says what.
    pub fn start(setting: Setting, guest: GuestKind) -> Result<Self, Failure> {
        if available_parallelism()?.get() < CPUS.len() {
            return Err("expected two CPUs, one for the worker, found one".into());
        }
        let directory = tempfile::Builder::new().prefix("ringscope-planted-").tempdir()?;
        let world = match setting {
            Setting::GuestInSoftware => in_software(directory.path())?,
            Setting::GuestAnswers => guest_answers(directory.path(), guest)?,
            Setting::GuestAsks => guest_asks(directory.path(), guest)?,
        };
        let faults = match &world {
            World::Kernel { place, is_asked: false, .. } => {
                Some(Faults::prepare(&place.outside, directory.path())?)
            }
            _ => None,
        };
        let scene = Self { hog: Hog::start()?, faults, world, directory };
        scene.await_packets(FLOWING)?;
        Ok(scene)
    }

    /// The daemon.
    fn daemon(&self) -> Result<&Daemon, Failure> {
        match &self.world {
            World::Kernel { place, .. } => Ok(place.daemon.as_ref().ok_or("no daemon")?),
            World::Software { daemon, .. } => Ok(daemon),
        }
    }

    /// Waits until traffic flows both ways.
    ///
    /// # Errors
    /// If there is no daemon.
    ///
    /// # Panics
    /// If no traffic comes.
    pub fn await_traffic(&self) -> Result<(), Failure> {
        self.await_packets(STILL_FLOWING)
    }

    /// All that takes part: this one, the daemon, the guest and the outside host's program.
    ///
    /// # Errors
    /// If there is no daemon.
    pub fn processes(&self) -> Result<Vec<u32>, Failure> {
        let daemon = self.daemon()?;
        let mut processes = vec![std::process::id(), daemon.pid()];
        if let World::Kernel { peer, .. } = &self.world {
            processes.push(peer.pid());
            processes.extend(daemon.reader()?.front_end());
        }
        Ok(processes)
    }

    fn await_packets(&self, more: u64) -> Result<(), Failure> {
        let reader = self.daemon()?.reader()?;
        let [rx, tx] = [0, 1].map(|ring| reader.totals(ring).packets + more);
        eventually(SOON, "traffic both ways", || {
            let now = [0, 1].map(|ring| reader.totals(ring).packets);
            when(now[0] > rx && now[1] > tx, format!("{now:?} packets, not {rx} and {tx}"))
        });
        Ok(())
    }

    /// Whether a recording has kernel stages of its own.
    #[must_use]
    pub const fn records_own_stages(&self) -> bool {
        matches!(self.world, World::Kernel { is_asked: true, .. })
    }

    /// How often the daemon had to read a page again.
    ///
    /// # Errors
    /// If there is no daemon.
    pub fn pages_read(&self) -> Result<u64, Failure> {
        eviction::major_faults(self.daemon()?.pid())
    }

    /// Records for a while. It has begun when this returns.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn record(&self) -> Result<RecordCommand, Failure> {
        let mut arguments = vec!["--seconds".to_owned(), RECORDED_SECONDS.to_owned()];
        let run_dir = match &self.world {
            World::Kernel { place, peer, is_asked } => {
                if *is_asked {
                    let far_end = peer.pid().to_string();
                    arguments.extend(["--kernel-stages", "--far-end"].map(str::to_owned));
                    arguments.push(far_end);
                }
                place.directory()
            }
            World::Software { .. } => self.directory.path(),
        };
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        // It must not compete with those that it records.
        Ok(RecordCommand::start_idle(run_dir, &self.file(), &arguments)?)
    }

    /// The latest recording.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("fault.rec")
    }

    /// The process that the guest runs in.
    ///
    /// # Errors
    /// If none is connected.
    pub fn front_end(&self) -> Result<u32, Failure> {
        self.daemon()?.reader()?.front_end().ok_or("no front end".into())
    }

    /// The program on the outside host.
    ///
    /// # Errors
    /// If the setting has none.
    pub fn far_end(&self) -> Result<u32, Failure> {
        match &self.world {
            World::Kernel { peer, .. } => Ok(peer.pid()),
            World::Software { .. } => Err("expected an outside host".into()),
        }
    }

    /// What `ringscope why --json` says of the recording.
    ///
    /// # Errors
    /// When it fails; the message is its own.
    pub fn why(&self) -> Result<Value, Failure> {
        let mut why = Command::new(program("ringscope")?);
        why.arg("why").arg(self.file()).args(["--json", "--over", OVER]);
        Ok(serde_json::from_str(&said(&mut why)?)?)
    }

    /// Plants a fault that lasts for this long, or until it is undone.
    ///
    /// # Errors
    /// If the system refuses, or such a fault is of another setting.
    pub fn plant(&self, kind: Kind, lasts: Duration) -> Result<Undo, Failure> {
        let [worker, other] = CPUS;
        let daemon = self.daemon()?;
        let prepared = || self.faults.as_ref().ok_or("expected a guest that answers");
        match kind {
            Kind::DaemonStopped => faults::stop(daemon.pid()),
            Kind::GuestStopped => faults::stop(self.front_end()?),
            Kind::VcpuStopped => faults::hold(faults::busiest_thread(self.front_end()?)?),
            Kind::WorkerHog => self.hog.take(worker, lasts),
            Kind::VcpuHog | Kind::FarEndHog => self.hog.take(other, lasts),
            Kind::DaemonQuota => quota::limit(daemon.pid()),
            Kind::GuestQuota => quota::limit(self.front_end()?),
            Kind::Eviction => prepared()?.eviction.begin(daemon.pid()),
            Kind::InterruptStorm => prepared()?.storm.begin(),
            Kind::DebugMessages => prepared()?.messages.begin(),
            Kind::NoBuffers => match &self.world {
                World::Software { guest, .. } => Ok(guest.starve()),
                World::Kernel { .. } => Err("expected a guest in software".into()),
            },
            Kind::FarEndStopped => faults::stop(self.far_end()?),
            Kind::TokenBucket => match &self.world {
                World::Kernel { place, .. } => faults::slow_down(&place.outside),
                World::Software { .. } => Err("expected an outside host".into()),
            },
        }
    }
}

impl Faults {
    /// All of them act on the worker's CPU or its calls, from the other CPU.
    fn prepare(outside: &Outside, directory: &Path) -> Result<Self, Failure> {
        let [worker, other] = CPUS;
        Ok(Self {
            storm: Storm::prepare(other, worker, &burning_program(directory))?,
            messages: Messages::prepare(outside, &passing_program(directory, MESSAGES))?,
            eviction: Eviction::prepare(other)?,
        })
    }
}

/// A guest on the tap of an outside host. The guest may use only this CPU.
fn place(guest: GuestKind, cpu: usize, arguments: &[&str]) -> Result<Place, Failure> {
    let mut place = Place::new(1)?;
    let worker = CPUS[0].to_string();
    let own = ["--trace-probe", PORT, "--cpus", &worker];
    place.spawn(&[&own, arguments].concat())?;
    let mut options = match guest {
        GuestKind::Uml => place.uml_options()?,
        GuestKind::Qemu => place.options()?,
    };
    options.memory_mib = MEMORY_MIB;
    options.cpu_list = Some(cpu.to_string());
    place.attach(options)?;
    // All of a guest's threads share a CPU. The emulator's main thread has little to do, and must not wait for the virtual CPU.
    let main = place.daemon().reader()?.front_end().and_then(|it| Pid::from_raw(it.cast_signed()));
    setpriority_process(main, MAIN_NICE)?;
    Ok(place)
}

/// Starts the agent in the guest, where it goes on.
fn in_guest(place: &mut Place, agent: &str) -> Result<(), Failure> {
    place.guest().check(&format!("ringscope agent {agent} >/dev/null 2>&1 &"))?;
    // Nothing shows when it has bound its port.
    sleep(Duration::from_millis(500));
    Ok(())
}

fn guest_answers(directory: &Path, guest: GuestKind) -> Result<World, Failure> {
    let mut place = place(guest, CPUS[1], &["--kernel-stages"])?;
    in_guest(&mut place, &format!("udp-echo --bind 0.0.0.0:{PORT}"))?;
    let mut ping = place.outside.command(&program("ringscope")?.to_string_lossy());
    ping.args(["agent", "udp-ping", &format!("{GUEST}:{PORT}"), "--count", COUNT]);
    let peer = Process::spawn(&mut ping, &directory.join("ping.log"))?;
    Ok(World::Kernel { peer, place: Box::new(place), is_asked: false })
}

/// `ringscope record` follows the far end by kernel stages of its own.
fn guest_asks(directory: &Path, guest: GuestKind) -> Result<World, Failure> {
    // It shares its CPU with the guest, which must not take that away.
    let mut place = place(guest, CPUS[0], &["--sched", "fifo:10"])?;
    let mut echo = place.outside.command("taskset");
    echo.arg("-c").arg(CPUS[1].to_string()).arg(program("ringscope")?);
    echo.args(["agent", "udp-echo", "--bind", &format!("0.0.0.0:{PORT}")]);
    let peer = Process::spawn(&mut echo, &directory.join("echo.log"))?;
    let target = format!("{}:{PORT}", Outside::ADDRESS);
    in_guest(&mut place, &format!("udp-ping {target} --count {COUNT}"))?;
    Ok(World::Kernel { peer, place: Box::new(place), is_asked: true })
}

fn in_software(directory: &Path) -> Result<World, Failure> {
    let worker = CPUS[0].to_string();
    let arguments = ["--datapath", "reflect", "--cpus", &worker, "--kernel-stages"];
    let daemon = Daemon::start(directory, NAME, &arguments)?;
    let guest = StarvingGuest::connect(daemon.socket(), CPUS[1])?;
    Ok(World::Software { guest, daemon })
}
