//! The daemons that run on this host, and what may take their CPUs from them.

use std::collections::{BTreeMap, BTreeSet};

use report::without_controls;

use super::cpus::Cpus;
use super::files::Files;
use super::host::CPUS;

/// The daemon's name, as the kernel has it.
const DAEMON: &str = "ringscoped";
/// How the names of its workers' threads begin.
const WORKER: &str = "worker-";
const GROUPS: &str = "/sys/fs/cgroup";
/// Kernel threads, in the flags of `/proc/PID/stat` (`PF_KTHREAD` in `include/linux/sched.h`).
const KERNEL_THREAD: u64 = 0x0020_0000;

/// What runs, and what may interrupt it.
#[derive(Clone, Debug, Default)]
pub struct Running {
    /// Threads of workers.
    pub workers: Vec<Thread>,
    /// Threads of a real-time class, without those of the kernel that are on every CPU.
    pub real_time: Vec<Thread>,
    /// CPU quotas that daemons or front ends have.
    pub quotas: Vec<Quota>,
    /// For each numbered interrupt, the CPUs that may serve it; `None` if that cannot be read.
    pub interrupts: Option<Vec<Affinity>>,
    /// For each interface with RPS, the CPUs that it uses.
    pub rps: BTreeMap<String, Cpus>,
    /// Time that the hypervisor used, since the start of this kernel; `None` if that cannot be read.
    pub stolen: Option<Stolen>,
    /// The CPUs of this host.
    pub online: Cpus,
}

/// A thread and where it may run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its process.
    pub process: u32,
    /// Its id.
    pub thread: u32,
    /// Its name.
    pub name: String,
    /// Its class; `None` if it is no real-time class.
    pub class: Option<Class>,
    /// The CPUs on which it may run.
    pub cpus: Cpus,
}

/// A real-time class. A thread of a higher one preempts those of a lower one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// `SCHED_FIFO` or `SCHED_RR`, with its priority, 1 to 99.
    Fixed(u8),
    /// `SCHED_DEADLINE`.
    Deadline,
}

/// A limit of CPU time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quota {
    /// Whose: the name of a process and its id.
    pub whose: String,
    /// The file that has it.
    pub file: String,
    /// The quota in that file: microseconds, and those of the period where the same file has them.
    pub quota: String,
    /// What lifts the limit, written to the file.
    pub none: &'static str,
}

/// An interrupt's CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// Those that may serve it.
    pub allowed: Cpus,
    /// Those that do, where the kernel says so.
    pub effective: Option<Cpus>,
}

/// Stolen time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stolen {
    /// In ticks of `/proc/stat`.
    pub ticks: u64,
    /// All time of all CPUs, in the same ticks.
    pub of: u64,
}

/// One line of `/proc/PID/task/TID/stat`.
struct Stat {
    name: String,
    flags: u64,
    class: Option<Class>,
}

impl Running {
    /// Looks at this host.
    pub fn look() -> Self {
        Self::from_files(&Files::of_this_host())
    }

    fn from_files(files: &Files) -> Self {
        let processes = numbers(files, "/proc");
        let name = |process: &u32| files.text(&format!("/proc/{process}/comm"));
        let daemons: Vec<_> =
            processes.iter().copied().filter(|it| name(it).as_deref() == Some(DAEMON)).collect();
        let mut running = Self {
            online: files
                .text(&format!("{CPUS}/online"))
                .and_then(|list| Cpus::from_list(&list))
                .unwrap_or_default(),
            stolen: Stolen::from_files(files),
            ..Self::default()
        };
        if daemons.is_empty() {
            return running;
        }
        for &process in &processes {
            running.add_threads(files, process, daemons.contains(&process));
        }
        let sockets: BTreeSet<_> =
            daemons.iter().flat_map(|&daemon| sockets(files, daemon)).collect();
        let is_front_end = |process: &&u32| {
            let command = files.text(&format!("/proc/{process}/cmdline")).unwrap_or_default();
            !daemons.contains(*process) && sockets.iter().any(|path| command.contains(path))
        };
        let front_ends = processes.iter().filter(is_front_end);
        let quotas: BTreeSet<_> =
            daemons.iter().chain(front_ends).flat_map(|&process| quotas(files, process)).collect();
        running.quotas = quotas.into_iter().collect();
        running.interrupts = interrupts(files);
        running.rps = rps(files);
        running
    }

    /// The workers to judge: those that have CPUs of their own, or all if none has.
    pub fn judged(&self) -> Vec<&Thread> {
        let has_own = |worker: &&Thread| !self.online.without(&worker.cpus).is_empty();
        let own: Vec<_> = self.workers.iter().filter(has_own).collect();
        if own.is_empty() { self.workers.iter().collect() } else { own }
    }

    /// The CPUs on which these workers may run.
    pub fn worker_cpus(&self) -> Cpus {
        self.judged().iter().fold(Cpus::default(), |all, worker| all.and(&worker.cpus))
    }

    fn add_threads(&mut self, files: &Files, process: u32, is_daemon: bool) {
        for thread in numbers(files, &format!("/proc/{process}/task")) {
            let directory = format!("/proc/{process}/task/{thread}");
            let stat = files.text(&format!("{directory}/stat"));
            let Some(Stat { name, flags, class }) = stat.and_then(|line| Stat::parse(&line)) else {
                continue;
            };
            // A kernel thread of an interrupt is where its interrupt is. Others stay on their CPUs.
            let is_bound = flags & KERNEL_THREAD != 0 && !name.starts_with("irq/");
            let is_worker = is_daemon && name.starts_with(WORKER);
            if !is_worker && (class.is_none() || is_bound) {
                continue;
            }
            let Some(cpus) = allowed(files, &directory) else { continue };
            let found = Thread { process, thread, name, class, cpus };
            if class.is_some() && !is_bound {
                self.real_time.push(found.clone());
            }
            if is_worker {
                self.workers.push(found);
            }
        }
    }
}

impl Stat {
    /// The fields by their numbers in `proc_pid_stat(5)`. A name may contain blanks and parentheses.
    fn parse(line: &str) -> Option<Self> {
        const FLAGS: usize = 9;
        const PRIORITY: usize = 40;
        const POLICY: usize = 41;
        let (head, rest) = line.rsplit_once(')')?;
        let name = without_controls(head.split_once('(')?.1);
        let fields: Vec<_> = rest.split_whitespace().collect();
        // The first after the name is the third.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let priority = u8::try_from(field(PRIORITY)?).ok()?;
        let class = match field(POLICY)? {
            1 | 2 => Some(Class::Fixed(priority)),
            6 => Some(Class::Deadline),
            _ => None,
        };
        Some(Self { name, flags: field(FLAGS)?, class })
    }
}

impl Stolen {
    /// The sums of the line `cpu` in `/proc/stat`: the eighth is stolen time, those after it are parts of others.
    fn from_files(files: &Files) -> Option<Self> {
        const STOLEN: usize = 7;
        let text = files.text("/proc/stat")?;
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let fields = line.split_whitespace().map(|field| field.parse::<u64>().ok());
        let fields: Vec<_> = fields.take(STOLEN + 1).collect::<Option<_>>()?;
        let of = fields.iter().copied().fold(0, u64::saturating_add);
        Some(Self { ticks: *fields.get(STOLEN)?, of })
    }
}

/// The names in a directory that are numbers.
fn numbers(files: &Files, directory: &str) -> Vec<u32> {
    let names = files.names(directory, "").unwrap_or_default();
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

/// Where a thread may run.
fn allowed(files: &Files, directory: &str) -> Option<Cpus> {
    let text = files.text(&format!("{directory}/status"))?;
    Cpus::from_list(text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?)
}

/// The paths of a process's unix sockets, and of the one that it was told to use (with `--client` its own has none).
fn sockets(files: &Files, process: u32) -> Vec<String> {
    let descriptors = files.names(&format!("/proc/{process}/fd"), "").unwrap_or_default();
    let own = descriptors.iter().filter_map(|descriptor| {
        let name = files.link_name(&format!("/proc/{process}/fd/{descriptor}"))?;
        Some(name.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
    });
    let own: BTreeSet<_> = own.collect();
    let all = files.text(&format!("/proc/{process}/net/unix")).unwrap_or_default();
    let mut paths: Vec<_> = all
        .lines()
        .filter_map(|line| {
            // Num RefCount Protocol Flags Type St Inode Path
            let fields: Vec<_> = line.split_whitespace().collect();
            let path = fields.get(7)?;
            (path.starts_with('/') && own.contains(*fields.get(6)?)).then(|| (*path).to_owned())
        })
        .collect();
    let command = files.text(&format!("/proc/{process}/cmdline")).unwrap_or_default();
    let words: Vec<_> = command.split('\0').collect();
    let given = words.iter().position(|word| *word == "--socket-path");
    let given = given.and_then(|at| words.get(at + 1)).filter(|path| !path.is_empty());
    paths.extend(given.map(|path| (*path).to_owned()));
    paths
}

/// The CPU quotas of all control groups that a thread of this process is in, directly or by a group above.
fn quotas(files: &Files, process: u32) -> Vec<Quota> {
    let name = files.text(&format!("/proc/{process}/comm")).unwrap_or_default();
    let whose = format!("{} (process {process})", without_controls(&name));
    let mut quotas = BTreeMap::new();
    for thread in numbers(files, &format!("/proc/{process}/task")) {
        let text = files.text(&format!("/proc/{process}/task/{thread}/cgroup"));
        for line in text.unwrap_or_default().lines() {
            // The hierarchy, its controllers and the group (`cgroups(7)`).
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
            let (root, file, none) = match controllers {
                "" => (GROUPS.to_owned(), "cpu.max", "max"),
                _ if controllers.split(',').any(|it| it == "cpu") => {
                    (format!("{GROUPS}/cpu"), "cpu.cfs_quota_us", "-1")
                }
                _ => continue,
            };
            let mut group = group.trim_end_matches('/');
            loop {
                let file = format!("{root}{group}/{file}");
                if let Some(quota) = files.text(&file).filter(|it| !it.starts_with(none)) {
                    let whose = whose.clone();
                    quotas.insert(file.clone(), Quota { whose, file, quota, none });
                }
                let Some((above, _)) = group.rsplit_once('/') else { break };
                group = above;
            }
        }
    }
    quotas.into_values().collect()
}

/// The CPUs of each numbered interrupt that has a handler.
fn interrupts(files: &Files) -> Option<Vec<Affinity>> {
    let text = files.text("/proc/interrupts")?;
    let numbers =
        text.lines().filter_map(|line| line.split_once(':')?.0.trim().parse::<u32>().ok());
    let affinity = |number: u32| {
        let cpus =
            |file: &str| Cpus::from_list(&files.text(&format!("/proc/irq/{number}/{file}"))?);
        let effective = cpus("effective_affinity_list").filter(|cpus| !cpus.is_empty());
        Some(Affinity { allowed: cpus("smp_affinity_list")?, effective })
    };
    let found: Vec<_> = numbers.filter_map(affinity).collect();
    (!found.is_empty()).then_some(found)
}

/// The CPUs to which each interface of this namespace spreads its packets.
fn rps(files: &Files) -> BTreeMap<String, Cpus> {
    let directory = "/sys/class/net";
    let mut all = BTreeMap::new();
    for name in files.names(directory, "").unwrap_or_default() {
        let queues = files.names(&format!("{directory}/{name}/queues"), "rx-").unwrap_or_default();
        let masks = queues.iter().filter_map(|queue| {
            Cpus::from_mask(&files.text(&format!("{directory}/{name}/queues/{queue}/rps_cpus"))?)
        });
        let cpus = masks.fold(Cpus::default(), |all, cpus| all.and(&cpus));
        if !cpus.is_empty() {
            all.insert(name, cpus);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::Pretended;
    use super::*;

    /// A line of `stat`, with the fields that are read.
    fn stat(name: &str, flags: u64, priority: u8, policy: u8) -> String {
        let zeros = |count| vec!["0"; count].join(" ");
        format!("1 ({name}) S {} {flags} {} {priority} {policy} 0", zeros(5), zeros(30))
    }

    fn cpus(list: &str) -> Cpus {
        Cpus::from_list(list).unwrap()
    }

    /// Threads: process, thread, line of `stat`, CPUs.
    fn host(threads: &[(u32, u32, String, &str)], more: &[(&str, &str)]) -> Pretended {
        let mut all = vec![("/sys/devices/system/cpu/online".to_owned(), "0-3\n".to_owned())];
        for (process, thread, stat, cpus) in threads {
            let directory = format!("/proc/{process}/task/{thread}");
            all.push((format!("{directory}/stat"), stat.clone()));
            let status = format!("Name:\tx\nCpus_allowed:\tf\nCpus_allowed_list:\t{cpus}\n");
            all.push((format!("{directory}/status"), status));
        }
        let more = more.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
        all.extend(more);
        let all: Vec<_> = all.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        Pretended::new(&all)
    }

    #[test]
    fn workers_and_real_time_threads_are_found_and_the_kernels_own_left_out() {
        let threads = [
            (10, 10, stat("ringscoped", 0, 0, 0), "0-3"),
            (10, 11, stat("worker-0", 0, 50, 1), "1"),
            (20, 20, stat("a (b) c\u{7}", 0, 60, 2), "0-1"),
            (21, 21, stat("migration/1", KERNEL_THREAD, 99, 1), "1"),
            (22, 22, stat("irq/27-eth0", KERNEL_THREAD, 50, 1), "1"),
            (23, 23, stat("deadline", 0, 0, 6), "0-3"),
            (24, 24, stat("worker-0", 0, 0, 0), "1"),
        ];
        let pretended = host(&threads, &[("/proc/10/comm", "ringscoped\n")]);
        let running = Running::from_files(&pretended.files());
        let names = |threads: &[Thread]| -> Vec<_> {
            threads.iter().map(|it| (it.name.clone(), it.class)).collect()
        };
        assert_eq!(names(&running.workers), [("worker-0".to_owned(), Some(Class::Fixed(50)))]);
        assert_eq!(running.worker_cpus(), cpus("1"));
        let expected = [
            ("worker-0", Class::Fixed(50)),
            ("a (b) c\u{fffd}", Class::Fixed(60)),
            ("irq/27-eth0", Class::Fixed(50)),
            ("deadline", Class::Deadline),
        ];
        assert_eq!(
            names(&running.real_time),
            expected.map(|(name, class)| (name.to_owned(), Some(class)))
        );
        assert!(Class::Deadline > Class::Fixed(99) && Some(Class::Fixed(1)) > None);
        assert!(Stat::parse("1 (x) S 0 0").is_none());
    }

    #[test]
    fn a_quota_of_a_group_above_limits_the_front_end_as_well() {
        let unix = "Num RefCount Protocol Flags Type St Inode Path\n\
                    0000: 00000002 00000000 00010000 0001 01 77 /run/vm0.sock\n\
                    0000: 00000002 00000000 00010000 0001 01 78 /run/other.sock\n";
        let threads = [
            (10, 10, stat("ringscoped", 0, 0, 0), "0-3"),
            (30, 31, stat("qemu", 0, 0, 0), "0-3"),
            (40, 40, stat("other", 0, 0, 0), "0-3"),
        ];
        let more = [
            ("/proc/10/comm", "ringscoped\n"),
            ("/proc/10/net/unix", unix),
            ("/proc/10/task/10/cgroup", "4:memory:/a\n0::/system.slice/rs.service\n"),
            ("/proc/30/comm", "qemu\n"),
            ("/proc/30/cmdline", "qemu\0-chardev\0socket,path=/run/vm0.sock\0"),
            ("/proc/30/task/31/cgroup", "3:cpu,cpuacct:/vm\n"),
            ("/proc/40/comm", "other\n"),
            ("/proc/40/cmdline", "other\0/run/other.sock\0"),
            ("/proc/40/task/40/cgroup", "3:cpu,cpuacct:/vm\n"),
            ("/sys/fs/cgroup/system.slice/rs.service/cpu.max", "max 100000\n"),
            ("/sys/fs/cgroup/system.slice/cpu.max", "50000 100000\n"),
            ("/sys/fs/cgroup/cpu/vm/cpu.cfs_quota_us", "20000\n"),
        ];
        let pretended = host(&threads, &more).link("/proc/10/fd/5", "socket:[77]");
        let found: Vec<_> = Running::from_files(&pretended.files())
            .quotas
            .into_iter()
            .map(|it| (it.whose, it.file, it.quota))
            .collect();
        let expected = [
            ("qemu (process 30)", "/sys/fs/cgroup/cpu/vm/cpu.cfs_quota_us", "20000"),
            ("ringscoped (process 10)", "/sys/fs/cgroup/system.slice/cpu.max", "50000 100000"),
        ];
        assert_eq!(
            found,
            expected.map(|(whose, file, quota)| (
                whose.to_owned(),
                file.to_owned(),
                quota.to_owned()
            ))
        );
    }

    #[test]
    fn interrupts_and_rps_have_their_cpus_and_stolen_time_its_share() {
        let threads = [(10, 10, stat("ringscoped", 0, 0, 0), "0-3")];
        let more = [
            ("/proc/10/comm", "ringscoped\n"),
            ("/proc/interrupts", "  CPU0 CPU1\n 27: 1 2 eth0\n 28: 0 0 eth1\nLOC: 5 5 timer\n"),
            ("/proc/irq/27/smp_affinity_list", "0-3\n"),
            ("/proc/irq/27/effective_affinity_list", "2\n"),
            ("/proc/irq/28/smp_affinity_list", "1\n"),
            ("/proc/irq/28/effective_affinity_list", "\n"),
            ("/sys/class/net/eth0/queues/rx-0/rps_cpus", "0\n"),
            ("/sys/class/net/eth0/queues/rx-1/rps_cpus", "6\n"),
            ("/sys/class/net/lo/queues/rx-0/rps_cpus", "0\n"),
            ("/proc/stat", "cpu  10 20 30 40 0 0 0 25 7 7\ncpu0 1 1\n"),
        ];
        let running = Running::from_files(&host(&threads, &more).files());
        let affinity = |allowed, effective: Option<&str>| Affinity {
            allowed: cpus(allowed),
            effective: effective.map(cpus),
        };
        assert_eq!(running.interrupts.unwrap(), [affinity("0-3", Some("2")), affinity("1", None)]);
        assert_eq!(running.rps, BTreeMap::from([("eth0".to_owned(), cpus("1-2"))]));
        assert_eq!(running.stolen, Some(Stolen { ticks: 25, of: 125 }));
    }

    #[test]
    fn without_a_daemon_or_any_file_there_is_nothing() {
        let running = Running::from_files(&Pretended::new(&[("/proc/5/comm", "x\n")]).files());
        assert!(running.workers.is_empty() && running.quotas.is_empty());
        assert_eq!((running.interrupts, running.stolen), (None, None));
    }
}
