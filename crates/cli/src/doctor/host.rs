//! The facts of this host that a measurement depends on, as the kernel reports them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;

use burst_trace::{Clock, ClockKind};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};
use serde::Serialize;

use super::files::Files;

/// Directories of sysfs that are read here, and named in advice.
pub const CPUS: &str = "/sys/devices/system/cpu";
pub const CLOCK_SOURCE: &str = "/sys/devices/system/clocksource/clocksource0";
pub const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";

/// This host. A fact that the kernel does not report is `None`.
#[derive(Clone, Debug)]
pub struct Host {
    /// The kernel's release.
    pub release: Option<String>,
    /// Whether this is a virtual machine, and its name in the firmware.
    pub hypervisor: Hypervisor,
    /// The clock of the recorder's stamps.
    pub clock: ClockKind,
    /// The kernel's own clock, and its other clocks.
    pub clock_source: Option<ClockSource>,
    /// For each governor, the number of frequency policies (of one or more CPUs each) that have it.
    pub governors: BTreeMap<String, usize>,
    /// The idle states of all CPUs, shallow to deep.
    pub idle_states: Vec<IdleState>,
    /// Whether two hardware threads share a core.
    pub is_smt_active: Option<bool>,
    /// The number of the last CPU.
    pub last_cpu: Option<u32>,
    /// CPUs that the scheduler does not use (`isolcpus`).
    pub isolated: Option<String>,
    /// CPUs without a timer tick; `None` where the kernel is built without this.
    pub nohz_full: Option<String>,
    /// Huge pages of each size, for guests.
    pub huge_pages: Vec<HugePages>,
    /// How much memory this process may lock.
    pub memlock: Memlock,
    /// Whether a program moves interrupts from CPU to CPU.
    pub has_irqbalance: Option<bool>,
    /// Whether guests run on the hardware.
    pub kvm: Kvm,
    /// Whether exits of KVM can be seen, or why not.
    pub kvm_exits: Result<(), String>,
}

/// The hypervisor, or the hardware, below the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hypervisor {
    /// What the CPU reports; `None` on CPUs that do not.
    pub is_there: Option<bool>,
    /// Vendor and product, from the firmware.
    pub machine: Option<String>,
}

/// The kernel's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClockSource {
    /// The one in use.
    pub current: String,
    /// The clocks that could be used.
    pub available: Vec<String>,
}

/// A state in which a CPU waits for work.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IdleState {
    /// `stateN` of sysfs.
    pub number: u32,
    /// The driver's name for it.
    pub name: String,
    /// Time to leave it, microseconds.
    pub latency_us: u32,
    /// Whether some CPU may enter it.
    pub is_enabled: bool,
}

/// Huge pages of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HugePages {
    /// Size of a page, KiB.
    pub size_kib: u64,
    /// Number of pages.
    pub total: u64,
    /// Number of unused pages.
    pub free: u64,
}

/// How much memory a process may lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memlock {
    /// The limit (`RLIMIT_MEMLOCK`), bytes; `None` for no limit.
    pub bytes: Option<u64>,
    /// The limit does not apply, because of `CAP_IPC_LOCK`.
    pub exempt: bool,
}

/// Whether `/dev/kvm` can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kvm {
    /// There is no such file.
    Missing,
    /// It cannot be opened.
    Refused,
    /// It can be opened.
    Opens,
}

/// The CPU's model name.
pub fn cpu_model() -> Option<String> {
    let text = Files::of_this_host().text("/proc/cpuinfo")?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

impl Host {
    /// Reads all of them.
    pub fn look() -> Self {
        let mut host = Self::from_files(&Files::of_this_host());
        host.clock = Clock::new().kind();
        host.memlock = Memlock::of_this_process();
        host.kvm = Kvm::look();
        host.kvm_exits = kernel_stages::has_kvm();
        host
    }

    fn from_files(files: &Files) -> Self {
        let cpus = |file: &str| files.text(&format!("{CPUS}/{file}"));
        Self {
            release: files.text("/proc/sys/kernel/osrelease"),
            hypervisor: Hypervisor::from_files(files),
            clock: ClockKind::Monotonic,
            clock_source: ClockSource::from_files(files),
            governors: governors(files),
            idle_states: idle_states(files),
            is_smt_active: files.parse(&format!("{CPUS}/smt/active")).map(|active: u8| active == 1),
            last_cpu: cpus("online").and_then(|list| last_of(&list)),
            isolated: cpus("isolated"),
            // `(null)` is how some kernels print an empty list.
            nohz_full: cpus("nohz_full").map(|list| list.replace("(null)", "").trim().to_owned()),
            huge_pages: huge_pages(files),
            memlock: Memlock::default(),
            has_irqbalance: has_process(files, "irqbalance"),
            kvm: Kvm::Missing,
            kvm_exits: Ok(()),
        }
    }
}

impl Hypervisor {
    fn from_files(files: &Files) -> Self {
        let info = files.text("/proc/cpuinfo");
        // Only x86 has a line of flags, with a flag for this.
        let flags = info.as_deref().and_then(|info| info.lines().find(|l| l.starts_with("flags")));
        let is_there = flags.map(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"));
        let dmi = ["sys_vendor", "product_name"];
        let words = dmi.map(|name| files.text(&format!("/sys/class/dmi/id/{name}")));
        let words: Vec<_> = words.into_iter().flatten().filter(|word| !word.is_empty()).collect();
        Self { is_there, machine: (!words.is_empty()).then(|| words.join(" ")) }
    }
}

impl ClockSource {
    fn from_files(files: &Files) -> Option<Self> {
        let current = files.text(&format!("{CLOCK_SOURCE}/current_clocksource"))?;
        let available = files.text(&format!("{CLOCK_SOURCE}/available_clocksource"))?;
        Some(Self { current, available: available.split_whitespace().map(Into::into).collect() })
    }
}

impl Memlock {
    /// The limit of this process, which programs started from the same shell share.
    pub fn of_this_process() -> Self {
        let exempt =
            capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
        Self { bytes: getrlimit(Resource::Memlock).current, exempt }
    }

    /// Whether memory can be locked without limit.
    pub const fn is_enough(self) -> bool {
        self.exempt || self.bytes.is_none()
    }

    /// The limit in words.
    pub fn text(self) -> String {
        let lifted = if self.exempt { ", which CAP_IPC_LOCK lifts" } else { "" };
        match self.bytes {
            None => format!("no limit{lifted}"),
            Some(bytes) if bytes >= 1 << 20 => format!("{} MiB{lifted}", bytes >> 20),
            Some(bytes) => format!("{} KiB{lifted}", bytes >> 10),
        }
    }
}

impl Kvm {
    fn look() -> Self {
        match File::options().read(true).write(true).open("/dev/kvm") {
            Ok(_) => Self::Opens,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::Missing,
            Err(_) => Self::Refused,
        }
    }
}

fn governors(files: &Files) -> BTreeMap<String, usize> {
    let mut governors = BTreeMap::new();
    let directory = format!("{CPUS}/cpufreq");
    for policy in files.names(&directory, "policy").unwrap_or_default() {
        if let Some(governor) = files.text(&format!("{directory}/{policy}/scaling_governor")) {
            *governors.entry(governor).or_default() += 1;
        }
    }
    governors
}

fn idle_states(files: &Files) -> Vec<IdleState> {
    // CPUs of one kind have the same states; a state is enabled if one CPU may enter it.
    let mut found = BTreeSet::new();
    for cpu in files.names(CPUS, "cpu").unwrap_or_default() {
        let directory = format!("{CPUS}/{cpu}/cpuidle");
        for state in files.names(&directory, "state").unwrap_or_default() {
            let file = |name: &str| format!("{directory}/{state}/{name}");
            let read = || {
                Some(IdleState {
                    number: state.strip_prefix("state")?.parse().ok()?,
                    name: files.text(&file("name"))?,
                    latency_us: files.parse(&file("latency"))?,
                    is_enabled: files.parse::<u64>(&file("disable"))? == 0,
                })
            };
            found.extend(read());
        }
    }
    let mut states: Vec<IdleState> = Vec::new();
    for state in found {
        match states.last_mut() {
            // The same state, set otherwise on another CPU.
            Some(last) if last.number == state.number && last.name == state.name => {
                last.latency_us = last.latency_us.max(state.latency_us);
                last.is_enabled |= state.is_enabled;
            }
            _ => states.push(state),
        }
    }
    states
}

fn huge_pages(files: &Files) -> Vec<HugePages> {
    let mut sizes = Vec::new();
    for size in files.names(HUGE_PAGES, "hugepages-").unwrap_or_default() {
        let read = || {
            Some(HugePages {
                size_kib: size.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?,
                total: files.parse(&format!("{HUGE_PAGES}/{size}/nr_hugepages"))?,
                free: files.parse(&format!("{HUGE_PAGES}/{size}/free_hugepages"))?,
            })
        };
        sizes.extend(read());
    }
    sizes.sort_by_key(|pages| pages.size_kib);
    sizes
}

/// The last CPU of a list such as `0-3,8`.
fn last_of(list: &str) -> Option<u32> {
    list.rsplit([',', '-']).next()?.parse().ok()
}

fn has_process(files: &Files, name: &str) -> Option<bool> {
    let entries = files.names("/proc", "")?;
    let mut processes =
        entries.iter().filter(|entry| entry.bytes().all(|byte| byte.is_ascii_digit()));
    Some(processes.any(|id| files.text(&format!("/proc/{id}/comm")).as_deref() == Some(name)))
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::Pretended;
    use super::*;

    #[test]
    fn a_host_that_reports_everything() {
        let pretended = Pretended::new(&[
            ("/proc/sys/kernel/osrelease", "6.18.4\n"),
            ("/proc/cpuinfo", "processor: 0\nflags\t: fpu hypervisor lahf_lm\n"),
            ("/proc/17/comm", "irqbalance\n"),
            ("/sys/class/dmi/id/sys_vendor", "QEMU\n"),
            ("/sys/class/dmi/id/product_name", "Standard PC\n"),
            ("/sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n"),
            ("/sys/devices/system/clocksource/clocksource0/available_clocksource", "tsc hpet \n"),
            ("/sys/devices/system/cpu/online", "0-2,7\n"),
            ("/sys/devices/system/cpu/isolated", "\n"),
            ("/sys/devices/system/cpu/nohz_full", "  (null)\n"),
            ("/sys/devices/system/cpu/smt/active", "1\n"),
            ("/sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "powersave\n"),
            ("/sys/devices/system/cpu/cpufreq/policy1/scaling_governor", "powersave\n"),
            ("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "512\n"),
            ("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "500\n"),
        ]);
        let host = Host::from_files(&pretended.files());
        assert_eq!(host.release.as_deref(), Some("6.18.4"));
        assert_eq!(host.hypervisor.is_there, Some(true));
        assert_eq!(host.hypervisor.machine.as_deref(), Some("QEMU Standard PC"));
        assert_eq!(host.clock_source.unwrap().available, ["tsc", "hpet"]);
        assert_eq!(host.governors, BTreeMap::from([("powersave".into(), 2)]));
        assert_eq!((host.last_cpu, host.is_smt_active), (Some(7), Some(true)));
        assert_eq!((host.isolated.as_deref(), host.nohz_full.as_deref()), (Some(""), Some("")));
        assert_eq!(host.huge_pages, [HugePages { size_kib: 2048, total: 512, free: 500 }]);
        assert_eq!(host.has_irqbalance, Some(true));
    }

    #[test]
    fn a_host_that_reports_nothing() {
        let host = Host::from_files(&Pretended::new(&[]).files());
        assert!(host.release.is_none() && host.clock_source.is_none() && host.isolated.is_none());
        assert!(host.governors.is_empty() && host.idle_states.is_empty());
        assert_eq!(host.hypervisor, Hypervisor { is_there: None, machine: None });
        assert_eq!((host.last_cpu, host.is_smt_active, host.has_irqbalance), (None, None, None));
    }

    #[test]
    fn an_idle_state_is_enabled_if_one_cpu_may_enter_it() {
        let mut paths = Vec::new();
        for (cpu, disable) in [(0, "0"), (1, "1")] {
            for (file, text) in [("name", "C6"), ("latency", "133"), ("disable", disable)] {
                paths.push((format!("{CPUS}/cpu{cpu}/cpuidle/state2/{file}"), text));
            }
        }
        let files: Vec<_> = paths.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        let host = Host::from_files(&Pretended::new(&files).files());
        let state = IdleState { number: 2, name: "C6".into(), latency_us: 133, is_enabled: true };
        assert_eq!(host.idle_states, [state]);
    }

    #[test]
    fn the_limit_of_locked_memory_is_readable() {
        let text = |bytes| Memlock { bytes, exempt: false }.text();
        assert_eq!(text(None), "no limit");
        assert_eq!((text(Some(8 << 20)), text(Some(64 << 10))), ("8 MiB".into(), "64 KiB".into()));
        assert!(Memlock { bytes: None, exempt: false }.is_enough());
        assert!(!Memlock { bytes: Some(8 << 20), exempt: false }.is_enough());
        assert!(Memlock { bytes: Some(0), exempt: true }.is_enough());
    }

    #[test]
    fn the_last_cpu_of_a_list() {
        assert_eq!(["0", "0-3", "0-3,8", ""].map(last_of), [Some(0), Some(3), Some(8), None]);
    }
}
