//! Measures spans of a packet's path in the kernel with BPF programs on BTF tracepoints (`tp_btf`): in the host's kernel
//! (tier K) for the daemon, and in a guest's (tier G) for the agent.
//!
//! No program is loaded unless measuring is requested: [`KernelStages::attach`] loads them, and dropping its result
//! removes them. For programs that this kernel refuses, the reason is reported and their stages are not measured.
//! [`GuestStages::attach`] does the same in a guest.
//!
//! - `bpf/stages.bpf.c`: the programs that measure stages; `bpf/threads.bpf.h`: which threads are followed;
//!   `bpf/interruptions.bpf.h`: the programs that see why a thread did not run; `bpf/kvm.bpf.h`: those that see why a virtual CPU
//!   was outside its guest.
//! - `programs`: loads and attaches them; `kvm`: where the fields of KVM's tracepoints are.
//! - `handed`: takes them from the process that loaded them to another one, which may not load any.
//! - `event`: what they tell, and the records of it.
//! - `bpf/guest.bpf.c`: the programs that stamp received probes in a guest; `guest`: loads them, and reads the stamps.
//! - `object`: what both have in common.
//! - `sys`: calls for which libbpf-rs has no safe form.

mod event;
mod guest;
mod handed;
mod kvm;
mod object;
mod programs;
mod sys;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use burst_trace::KernelStage;
use libbpf_rs::query::ProgInfoIter;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netdevice;

use crate::kvm::Fields;
use crate::object::{is_in_own_pid_namespace, is_not_allowed, log_messages, refusal};
use crate::programs::{GROUPS, Process, Programs};
use crate::sys::{Rings, Table};

pub use event::{Event, Scribe, Span, ThreadEvent, Whose};
pub use guest::{GuestStages, GuestStamps};
pub use handed::{DESCRIPTORS_MAX, Handed, HandedError};

/// Why no program can be used at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This process may not load programs.
    #[error(
        "expected to be allowed to trace the kernel, found that it refuses ({0}): run as root (or with CAP_BPF and \
         CAP_PERFMON), or without kernel stages"
    )]
    NotAllowed(libbpf_rs::Error),
    /// Thread ids in this namespace differ from those that the kernel's programs see.
    #[error(
        "expected to run among all the host's processes, found a PID namespace of our own, where the kernel's programs \
         would not know the workers: share the host's (--pid=host), or run without kernel stages"
    )]
    PidNamespace,
    /// A worker could not be added to the programs' map.
    #[error("the kernel's programs cannot be told of a worker: {0}")]
    Worker(io::Error),
}

/// A stage, and either that it is measured or why not.
pub type Attached = (KernelStage, Result<(), String>);

/// The result for each stage of one guest. `followed` says whether its tap's frames are followed, or why not.
pub fn for_guest<'a>(
    attached: &'a [Attached],
    followed: &'a Result<(), String>,
) -> impl Iterator<Item = (KernelStage, Result<&'a (), &'a String>)> {
    attached.iter().map(move |(stage, result)| {
        let needs_tap = matches!(stage, KernelStage::HostTx | KernelStage::HostRx);
        let followed = followed.as_ref();
        (*stage, if needs_tap { result.as_ref().and(followed) } else { result.as_ref() })
    })
}

/// The result for one stage as text, for a recorder's facts.
pub fn in_words(result: Result<&(), &String>) -> String {
    result.map_or_else(|reason| format!("n/a: {reason}"), |()| "on".to_owned())
}

/// The name of the tap whose frames can be followed, in a datapath as it was asked for.
#[must_use]
pub fn tap_of(datapath: &str) -> Option<&str> {
    datapath.strip_prefix("tap:")?.split(',').find_map(|option| option.strip_prefix("ifname="))
}

/// Whether something is measured now, by its state in a recorder's facts.
#[must_use]
pub fn is_on(state: &str) -> bool {
    state == "on" || state.starts_with("on, ")
}

/// The loaded programs. Dropping this removes them from the kernel.
#[derive(Debug)]
pub struct KernelStages {
    groups: Vec<Programs>,
}

/// CPU time that the programs took while it was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Number of times that a program ran.
    pub runs: u64,
    /// Total time of these runs, including the time to count them.
    pub time: Duration,
}

/// Until this is dropped, the kernel counts the runs and the run time of all BPF programs of the host.
#[derive(Debug)]
pub struct Counting(#[expect(dead_code, reason = "kept open")] OwnedFd);

impl Counting {
    /// Begins to count.
    ///
    /// # Errors
    /// When the kernel cannot count them. Linux can since 5.8.
    pub fn begin() -> io::Result<Self> {
        sys::count_runs().map(Self)
    }
}

/// The front ends' processes. A worker that signals a guest wakes up a thread of its front end; the programs measure
/// that wake-up, and see why any of their threads does not run.
#[derive(Debug)]
pub struct FrontEnds(Table<4, 8>);

impl FrontEnds {
    /// Adds `process` as front end `number`, until it is [removed](Self::remove).
    ///
    /// # Errors
    /// When the map has no room for more.
    pub fn add(&self, process: u32, number: u32) -> io::Result<()> {
        self.0.set(process.to_ne_bytes(), Process::FrontEnd(number).bytes())
    }

    /// Removes `process` from the front ends.
    pub fn remove(&self, process: u32) {
        // It may never have been added.
        let _ = self.0.remove(process.to_ne_bytes());
    }
}

/// Whether this kernel has the tracepoints by which exits of KVM are seen.
///
/// # Errors
/// The reason why they cannot be seen, in words.
pub fn has_kvm() -> Result<(), String> {
    Fields::find(Path::new("/")).map(|_| ())
}

/// The reason why frames are not followed where there is no tap.
pub const NO_TAP: &str = "only frames of a tap that is given by its name are followed";

/// Time for which events collect. To read each event by itself would wake up the reading thread as often as the worker's, and
/// take the CPU from one of the threads that are measured.
const GATHER: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
/// The same after more events than [`MANY`] in that time.
const GATHER_MANY: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
/// A quarter of the longest events that the ring buffer holds.
const MANY: u32 = 800;

impl KernelStages {
    /// Attaches the programs that this kernel accepts. They follow frames of interfaces and measure wake-ups of
    /// threads; both are added afterwards. Without `taps` no interface will be added.
    ///
    /// # Errors
    /// When this process lacks the permission, or runs in another PID namespace than the host's.
    pub fn attach(taps: bool) -> Result<(Self, Vec<Attached>), Error> {
        log_messages();
        if is_in_own_pid_namespace() {
            return Err(Error::PidNamespace);
        }
        let (mut groups, mut attached) = (Vec::new(), Vec::new());
        for group in GROUPS {
            let result = if group.needs_taps && !taps {
                Err(NO_TAP.to_owned())
            } else {
                match Programs::load(&group) {
                    Ok(programs) => {
                        groups.push(programs);
                        Ok(())
                    }
                    Err(error) if is_not_allowed(&error) => return Err(Error::NotAllowed(error)),
                    Err(error) => Err(refusal(&error)),
                }
            };
            attached.extend(group.stages.iter().map(|stage| (*stage, result.clone())));
        }
        Ok((Self { groups }, attached))
    }

    /// Adds the thread `tid` of the daemon `process` as worker `number`.
    ///
    /// # Errors
    /// When the map has no room for more.
    pub fn add_worker(&self, process: u32, tid: u32, number: u32) -> Result<(), Error> {
        let add = |Programs { maps, .. }: &Programs| {
            maps.workers.set(tid.to_ne_bytes(), number.to_ne_bytes())?;
            maps.follow(process, Process::Daemon)
        };
        self.groups.iter().try_for_each(add).map_err(Error::Worker)
    }

    /// Adds a program at the far end.
    ///
    /// # Errors
    /// When the map has no room for more.
    pub fn add_far_end(&self, process: u32) -> Result<(), Error> {
        let add = |group: &Programs| group.maps.follow(process, Process::FarEnd);
        self.groups.iter().try_for_each(add).map_err(Error::Worker)
    }

    /// Whether interruptions are seen, and whether those by exits of KVM are (`kvm`), or why not: the names in a recorder's
    /// facts, and words as [`in_words`] has them.
    #[must_use]
    pub fn interruptions(&self) -> [(&'static str, String); 2] {
        let none = "n/a: this kernel refuses the programs that see threads";
        let (state, kvm) = match self.groups.iter().find(|group| group.sees_threads) {
            None => (none.to_owned(), none.to_owned()),
            Some(group) => {
                let state = match group.is_whole {
                    true => "on",
                    false => "on, without interrupts: this kernel refuses their programs",
                };
                (state.to_owned(), in_words(group.kvm.as_ref()))
            }
        };
        [("interruptions", state), ("kvm", kvm)]
    }

    /// Adds the interface `name` as tap `number` of the workers.
    ///
    /// # Errors
    /// The reason why its frames cannot be followed.
    pub fn add_tap(&self, name: &str, number: u32) -> Result<(), String> {
        // Any socket will do. A confined thread may make a pair.
        let index = UnixDatagram::pair()
            .and_then(|(socket, _)| Ok(netdevice::name_to_index(socket, name)?))
            .map_err(|error| format!("the interface {name} is not found: {error}"))?;
        let (index, number) = (index.to_ne_bytes(), number.to_ne_bytes());
        let mut groups = self.groups.iter();
        let added = groups.try_for_each(|group| group.maps.taps.set(index, number));
        added.map_err(|error| format!("the kernel's programs cannot be told of {name}: {error}"))
    }

    /// The list to which front ends are added when they connect, from any thread; `None` where no program measures
    /// their threads.
    #[must_use]
    pub fn front_ends(&self) -> Option<FrontEnds> {
        let group = self.groups.iter().find(|group| group.sees_threads)?;
        group.maps.processes.try_clone().ok().map(FrontEnds)
    }

    /// Calls `begun` when it can read, and passes every event to `each` until `stop` becomes readable. Sleeps while there are none.
    ///
    /// # Errors
    /// When the ring buffer cannot be read, or `poll(2)` fails.
    pub fn drain(
        &self,
        stop: BorrowedFd<'_>,
        begun: impl FnOnce(),
        mut each: impl FnMut(Event),
    ) -> io::Result<()> {
        let count = Cell::new(0);
        let maps: Vec<_> = self.groups.iter().map(|group| group.maps.events.as_fd()).collect();
        let Some((&first, others)) = maps.split_first() else {
            begun();
            return wait(&[stop], None).map(|_| ());
        };
        let mut rings = Rings::open(first, others, |bytes| {
            count.set(count.get() + 1);
            if let Some(event) = Event::read(bytes) {
                each(event);
            }
        })?;
        begun();
        loop {
            // While events come, nothing has to wake this thread up for the first of them.
            let mut is_over = count.get() == 0 && wait(&[stop, rings.readable()], None)?;
            let gather = if count.take() > MANY { &GATHER_MANY } else { &GATHER };
            is_over = is_over || wait(&[stop], Some(gather))?;
            rings.consume()?;
            if is_over {
                return Ok(());
            }
        }
    }

    /// CPU time that the programs took while [it was counted](Counting).
    #[must_use]
    pub fn cost(&self) -> Cost {
        let ours: Vec<u32> = self.groups.iter().flat_map(Programs::ids).collect();
        let mut cost = Cost::default();
        for program in ProgInfoIter::default().filter(|program| ours.contains(&program.id)) {
            cost.runs += program.run_cnt;
            cost.time += Duration::from_nanos(program.run_time_ns);
        }
        cost
    }

    /// Number of events that were lost because the ring buffer was full.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.groups.iter().map(Programs::lost).sum()
    }
}

/// Sleeps until one of `fds` is readable or `limit` has passed. Returns whether the first one is readable.
fn wait(fds: &[BorrowedFd<'_>], limit: Option<&Timespec>) -> io::Result<bool> {
    let entry = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
    let mut entries: Vec<_> = fds.iter().map(|fd| entry(fd.as_fd())).collect();
    loop {
        match poll(&mut entries, limit) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Ok(!entries[0].revents().is_empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tap_is_found_in_a_datapath() {
        assert_eq!(tap_of("tap:ifname=tap0"), Some("tap0"));
        assert_eq!(tap_of("tap:napi=on,ifname=tap0,engine=uring"), Some("tap0"));
        assert_eq!(tap_of("tap:fd=3"), None);
        assert_eq!(tap_of("macvtap:ifname=mv0"), None);
    }

    #[test]
    fn waiting_ends_at_once_when_the_other_end_of_a_pipe_is_gone() {
        let (stop, alive) = std::io::pipe().unwrap();
        let short = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        assert!(!wait(&[stop.as_fd()], Some(&short)).unwrap());
        drop(alive);
        assert!(wait(&[stop.as_fd()], None).unwrap());
    }
}
