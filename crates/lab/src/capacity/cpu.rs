//! CPU time of the back end, the front end, the kernel's threads and the whole host, from /proc (proc(5)).

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Clock ticks a second in /proc (`USER_HZ`).
const TICKS_A_SECOND: f64 = 100.0;
/// The flag of the kernel's own threads in /proc/PID/stat (include/linux/sched.h).
const PF_KTHREAD: u64 = 0x0020_0000;
/// Programs that are a back end, as the start of /proc/PID/comm, which has 15 characters.
const BACK_ENDS: [&str; 4] = ["ringscoped", "ovs-vswitchd", "dpdk-testpmd", "passt"];
/// Programs that are a front end.
const FRONT_ENDS: [&str; 2] = ["qemu-system", "linux"];

/// CPU time within a while, seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuUse {
    /// The while.
    pub seconds: f64,
    /// All threads of ringscoped or another back end; `None` if the variant has none of its own.
    pub back_end_s: Option<f64>,
    /// QEMU, or User Mode Linux with its processes: what runs in the guest is part of it. `None` without a guest.
    pub front_end_s: Option<f64>,
    /// The kernel's threads, as ksoftirqd and kworker.
    pub kernel_threads_s: f64,
    /// All CPUs of the host, whatever ran there, with interrupts.
    pub host_s: f64,
}

/// To what a process belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    BackEnd,
    FrontEnd,
    KernelThreads,
}

#[derive(Clone, Copy, Debug)]
struct Process {
    /// When it started, in ticks since the boot. A later process with the same number has another time.
    started: u64,
    part: Option<Part>,
    cpu_s: f64,
}

/// CPU time so far.
#[derive(Debug)]
pub struct Snapshot {
    at: Instant,
    processes: HashMap<u32, Process>,
    host_s: f64,
}

impl Snapshot {
    /// Reads it. `variant` is the directory of the variant, by which its processes are found.
    #[must_use]
    pub fn take(variant: &Path) -> Self {
        let stats = all_stats();
        let mut parts = HashMap::new();
        for (&pid, stat) in &stats {
            if let Some(part) = part_of(pid, &stats, variant) {
                parts.insert(pid, (part, stat));
            }
        }
        let processes = parts.into_iter().map(|(pid, (part, stat))| {
            let cpu_s = scheduled_s(pid).unwrap_or(stat.cpu_s);
            (pid, Process { started: stat.started, part: Some(part), cpu_s })
        });
        let host = fs::read_to_string("/proc/stat").unwrap_or_default();
        Self { at: Instant::now(), processes: processes.collect(), host_s: host_busy_s(&host) }
    }

    /// CPU time since then.
    #[must_use]
    pub fn since(&self, before: &Self) -> CpuUse {
        let sum = |part| {
            let mut of = self.processes.iter().filter(|(_, it)| it.part == Some(part)).peekable();
            of.peek()?;
            let rise = |(pid, it): (&u32, &Process)| {
                let earlier = before.processes.get(pid).filter(|was| was.started == it.started);
                (it.cpu_s - earlier.map_or(0.0, |was| was.cpu_s)).max(0.0)
            };
            Some(of.map(rise).sum())
        };
        CpuUse {
            seconds: self.at.duration_since(before.at).as_secs_f64(),
            back_end_s: sum(Part::BackEnd),
            front_end_s: sum(Part::FrontEnd),
            kernel_threads_s: sum(Part::KernelThreads).unwrap_or(0.0),
            host_s: (self.host_s - before.host_s).max(0.0),
        }
    }
}

/// What /proc/PID/stat says.
#[derive(Clone, Debug, PartialEq)]
struct Stat {
    name: String,
    parent: u32,
    is_kernel_thread: bool,
    /// All its threads together.
    cpu_s: f64,
    started: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // A name may have spaces and parentheses.
        let (head, rest) = text.rsplit_once(')')?;
        let (_, name) = head.split_once('(')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // The first one is number 3 of proc_pid_stat(5).
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            name: name.into(),
            parent: fields.get(1)?.parse().ok()?,
            is_kernel_thread: field(9)? & PF_KTHREAD != 0,
            cpu_s: (field(14)? + field(15)?) as f64 / TICKS_A_SECOND,
            started: field(22)?,
        })
    }
}

/// All processes; one that ends meanwhile is missing.
fn all_stats() -> HashMap<u32, Stat> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some((pid, Stat::parse(&text)?))
    })
    .collect()
}

/// A process of the variant is known by its environment, which it inherits from `variant up`; processes of User Mode Linux
/// may have none, but a parent.
fn part_of(pid: u32, stats: &HashMap<u32, Stat>, variant: &Path) -> Option<Part> {
    let stat = stats.get(&pid)?;
    if stat.is_kernel_thread {
        return Some(Part::KernelThreads);
    }
    let is = |names: &[&str], stat: &Stat| names.iter().any(|it| stat.name.starts_with(it));
    if is(&BACK_ENDS, stat) && is_of_variant(pid, variant) {
        return Some(Part::BackEnd);
    }
    // The number of steps is bounded: parents may end, and numbers be used again, while all of this is read.
    let mut it = pid;
    for _ in 0..stats.len() {
        let Some(stat) = stats.get(&it) else { break };
        if is(&FRONT_ENDS, stat) && is_of_variant(it, variant) {
            return Some(Part::FrontEnd);
        }
        it = stat.parent;
    }
    None
}

fn is_of_variant(pid: u32, variant: &Path) -> bool {
    let wanted = format!("RINGSCOPE_VARIANT={}", variant.display());
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|&byte| byte == 0).any(|it| it == wanted.as_bytes())
}

/// CPU time of all threads that a process has now, as its scheduler counted it, to the nanosecond. `None` if this kernel
/// does not say. A thread that has ended is missing, which makes less than there was, not more.
fn scheduled_s(pid: u32) -> Option<f64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let of = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    let ns: u64 = tasks.flatten().filter_map(of).sum();
    (ns > 0).then_some(ns as f64 / 1e9)
}

/// All that is not idle, and not taken by a hypervisor: the first line of /proc/stat without idle, iowait and steal. A
/// guest's time is part of user time.
fn host_busy_s(text: &str) -> f64 {
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> =
        line.split_whitespace().skip(1).filter_map(|it| it.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else { return 0.0 };
    (user + nice + system + irq + softirq) as f64 / TICKS_A_SECOND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_have_anything() {
        let numbers = (4..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let stat = Stat::parse(&format!("17 (a) (b c) S {numbers}\n")).unwrap();
        assert_eq!((stat.name.as_str(), stat.parent, stat.started), ("a) (b c", 4, 22));
        assert_eq!((stat.cpu_s, stat.is_kernel_thread), (0.29, false));
        assert_eq!(Stat::parse("17 (a) S 1 2"), None);
    }

    #[test]
    fn the_host_is_busy_with_all_but_waiting() {
        let text = "cpu  100 20 30 5000 600 7 3 900 50 0\ncpu0 1 2 3\n";
        assert_eq!(host_busy_s(text), 1.6);
        assert_eq!(host_busy_s(""), 0.0);
    }

    #[test]
    fn this_process_uses_the_host_and_is_no_part_of_a_variant() {
        let variant = Path::new("/no/such/variant");
        let before = Snapshot::take(variant);
        let began = Instant::now();
        while began.elapsed().as_millis() < 100 {
            std::hint::black_box(0);
        }
        let used = Snapshot::take(variant).since(&before);
        assert!(used.seconds >= 0.1 && used.host_s > 0.03, "{used:?}");
        assert_eq!((used.back_end_s, used.front_end_s), (None, None));
        assert!(scheduled_s(std::process::id()).is_none_or(|it| it > 0.03));
    }
}
