//! Whether a host is fit for a measurement, decided from its facts alone.

use burst_trace::ClockKind;
use serde::Serialize;

use super::host::{Host, HugePages, Kvm};

/// Longer than this to leave an idle state shows in a latency, microseconds.
const IDLE_LATENCY_US_MAX: u32 = 10;
/// Frames over several buffers on AF_XDP sockets, and what a driver can do told by netlink, are both in.
const RELEASE_WANTED: (u32, u32) = (6, 6);

/// What to think of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// A command makes it better.
    Change,
    /// Nothing to change, and to be known when figures are read.
    Note,
    /// The kernel does not tell.
    Unknown,
}

impl Verdict {
    /// The word in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Change => "change",
            Self::Note => "note",
            Self::Unknown => "unknown",
        }
    }
}

/// One thing that a measurement depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name.
    pub check: &'static str,
    /// What to think of it.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// The command that changes it, with `Verdict::Change`.
    pub change: Option<String>,
}

const NOT_AVAILABLE: &str = "not available here";

impl Check {
    fn new(check: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self { check, verdict, found: found.into(), change: None }
    }

    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, Verdict::Ok, found)
    }

    fn note(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, Verdict::Note, found)
    }

    fn unknown(check: &'static str) -> Self {
        Self::new(check, Verdict::Unknown, NOT_AVAILABLE)
    }

    fn change(check: &'static str, found: impl Into<String>, command: impl Into<String>) -> Self {
        Self { change: Some(command.into()), ..Self::new(check, Verdict::Change, found) }
    }
}

/// All of them.
pub fn checks(host: &Host) -> Vec<Check> {
    vec![
        kernel(host),
        machine(host),
        kvm(host),
        clock(host),
        clock_source(host),
        governor(host),
        idle(host),
        smt(host),
        isolation(host),
        irqbalance(host),
        huge_pages(host),
        memlock(host),
    ]
}

fn kernel(host: &Host) -> Check {
    let name = "kernel";
    let Some(release) = &host.release else { return Check::unknown(name) };
    let (major, minor) = RELEASE_WANTED;
    match version(release) {
        Some(version) if version >= RELEASE_WANTED => Check::ok(name, release),
        _ => Check::note(
            name,
            format!("{release}; AF_XDP takes frames over several buffers from {major}.{minor} on"),
        ),
    }
}

/// The first two numbers of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn machine(host: &Host) -> Check {
    let name = "machine";
    let hypervisor = &host.hypervisor;
    let of = hypervisor.machine.as_ref().map(|machine| format!(": {machine}")).unwrap_or_default();
    match hypervisor.is_there {
        Some(true) => Check::note(
            name,
            format!("a virtual machine{of}; the host below it can take a CPU away at any time"),
        ),
        Some(false) => Check::ok(name, format!("no virtual machine{of}")),
        None => match &hypervisor.machine {
            Some(machine) => Check::note(name, machine),
            None => Check::unknown(name),
        },
    }
}

fn kvm(host: &Host) -> Check {
    let name = "KVM";
    match host.kvm {
        Kvm::Missing => {
            Check::note(name, "no /dev/kvm: guests are emulated, and several times slower")
        }
        Kvm::Refused => {
            let found = "no permission for /dev/kvm: guests would be emulated";
            Check::change(name, found, "usermod -aG kvm $USER  # and log in again")
        }
        Kvm::Opens if host.hypervisor.is_there == Some(true) => Check::note(
            name,
            "/dev/kvm opens; guests are nested ones: only a trial shows whether they boot \
             (qemu-scripts/launch makes one)",
        ),
        Kvm::Opens => Check::ok(name, "/dev/kvm opens"),
    }
}

fn clock(host: &Host) -> Check {
    let name = "stamps";
    match host.clock {
        ClockKind::Monotonic => Check::note(
            name,
            "by clock_gettime: the kernel does not trust the CPU's counter, or does not say so; each stamp costs more",
        ),
        kind => Check::ok(
            name,
            format!("by the CPU's counter ({}), which the kernel trusts", kind.name()),
        ),
    }
}

fn clock_source(host: &Host) -> Check {
    let name = "clock source";
    let Some(source) = &host.clock_source else { return Check::unknown(name) };
    // Those that are read without a system call.
    let fast = ["tsc", "arch_sys_counter", "kvm-clock", "hyperv_clocksource_tsc_page"];
    let current = source.current.as_str();
    if fast.contains(&current) {
        return Check::ok(name, current);
    }
    let found = format!("{current}: each look at the time is a system call");
    if source.available.iter().any(|other| other == "tsc") {
        let file = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        return Check::change(name, found, format!("echo tsc > {file}"));
    }
    Check::note(name, found)
}

fn governor(host: &Host) -> Check {
    let name = "CPU governor";
    if host.governors.is_empty() {
        return Check::unknown(name);
    }
    let of = |(governor, count): (&String, &usize)| format!("{governor} on {count} policies");
    let found = host.governors.iter().map(of).collect::<Vec<_>>().join(", ");
    if host.governors.keys().all(|governor| governor == "performance") {
        return Check::ok(name, found);
    }
    let command = "echo performance | tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor";
    Check::change(name, format!("{found}: the frequency follows the load"), command)
}

fn idle(host: &Host) -> Check {
    let name = "C-states";
    let enabled: Vec<_> = host.idle_states.iter().filter(|state| state.is_enabled).collect();
    let Some(deepest) = enabled.iter().max_by_key(|state| state.latency_us) else {
        return match host.idle_states.is_empty() {
            true => Check::unknown(name),
            false => Check::ok(name, "all disabled"),
        };
    };
    let found = format!("{} takes {} µs to leave", deepest.name, deepest.latency_us);
    let deep = enabled.iter().filter(|state| state.latency_us > IDLE_LATENCY_US_MAX);
    // There are at most ten (`CPUIDLE_STATE_MAX`): a digit each.
    let numbers: std::collections::BTreeSet<_> = deep.map(|state| state.number).collect();
    if numbers.is_empty() {
        return Check::ok(name, found);
    }
    let numbers: String = numbers.iter().map(u32::to_string).collect();
    let files = format!("/sys/devices/system/cpu/cpu*/cpuidle/state[{numbers}]/disable");
    let found = format!("{found}, and so does a packet that finds its CPU there");
    Check::change(name, found, format!("echo 1 | tee {files}"))
}

fn smt(host: &Host) -> Check {
    let name = "SMT";
    match host.is_smt_active {
        None => Check::unknown(name),
        Some(false) => Check::ok(name, "one thread a core"),
        Some(true) => Check::change(
            name,
            "two threads share a core, and each other's speed",
            "echo off > /sys/devices/system/cpu/smt/control",
        ),
    }
}

fn isolation(host: &Host) -> Check {
    let name = "isolated CPUs";
    let (Some(isolated), Some(last)) = (&host.isolated, host.last_cpu) else {
        return Check::unknown(name);
    };
    let nohz_full = host.nohz_full.as_deref();
    if !isolated.is_empty() && nohz_full != Some("") {
        let tick = match nohz_full {
            Some(cpus) => format!("without a tick {cpus}"),
            None => "this kernel has no nohz_full".into(),
        };
        return Check::ok(name, format!("isolated {isolated}; {tick}"));
    }
    if last == 0 {
        return Check::note(name, "none, and there is only one CPU");
    }
    let cpus = if isolated.is_empty() { last.to_string() } else { isolated.clone() };
    let found = match isolated.is_empty() {
        true => "none: other programs and interrupts share the worker's CPU".into(),
        false => format!("isolated {isolated}, with a timer tick"),
    };
    let tick = nohz_full.map(|_| format!(" nohz_full={cpus} rcu_nocbs={cpus}")).unwrap_or_default();
    let command = format!(
        "kernel command line: isolcpus=managed_irq,domain,{cpus}{tick}  # then ringscoped --cpus {cpus}"
    );
    Check::change(name, found, command)
}

fn irqbalance(host: &Host) -> Check {
    let name = "irqbalance";
    match host.has_irqbalance {
        None => Check::unknown(name),
        Some(false) => Check::ok(name, "not running"),
        Some(true) => Check::change(
            name,
            "running: it moves interrupts from CPU to CPU",
            "systemctl stop irqbalance",
        ),
    }
}

fn huge_pages(host: &Host) -> Check {
    let name = "huge pages";
    let Some(smallest) = host.huge_pages.first() else { return Check::unknown(name) };
    let of = |pages: &HugePages| {
        format!("{} of {} free of {} MiB", pages.free, pages.total, pages.size_kib >> 10)
    };
    let found = host.huge_pages.iter().map(of).collect::<Vec<_>>().join(", ");
    if host.huge_pages.iter().any(|pages| pages.free > 0) {
        return Check::ok(name, found);
    }
    let size = smallest.size_kib;
    // A guest of 1 GiB.
    let count = (1 << 20) / size.max(1);
    let command =
        format!("echo {count} > /sys/kernel/mm/hugepages/hugepages-{size}kB/nr_hugepages");
    let command = format!("{command}  # then QEMU: memory-backend-memfd,...,hugetlb=on");
    Check::change(name, format!("{found}: guest memory costs more to translate"), command)
}

fn memlock(host: &Host) -> Check {
    let name = "locked memory";
    let memlock = host.memlock;
    let text = memlock.text();
    if memlock.is_enough() {
        let why = if memlock.exempt { ", which CAP_IPC_LOCK lifts" } else { "" };
        return Check::ok(name, format!("{text}{why}"));
    }
    let found = format!("at most {text}, of which AF_XDP's buffers are taken");
    Check::change(
        name,
        found,
        "ulimit -l unlimited  # as root, in the shell that starts ringscoped",
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::host::{ClockSource, Hypervisor, IdleState, Memlock};
    use super::*;

    /// A host on which nothing is to be changed.
    fn fit() -> Host {
        let state = |number, latency_us| IdleState {
            number,
            name: format!("C{number}"),
            latency_us,
            is_enabled: true,
        };
        Host {
            release: Some("6.12.9-amd64".into()),
            hypervisor: Hypervisor { is_there: Some(false), machine: None },
            clock: ClockKind::Tsc,
            clock_source: Some(ClockSource { current: "tsc".into(), available: Vec::new() }),
            governors: BTreeMap::from([("performance".into(), 8)]),
            idle_states: vec![state(0, 0), state(1, 2)],
            is_smt_active: Some(false),
            last_cpu: Some(7),
            isolated: Some("6-7".into()),
            nohz_full: Some("6-7".into()),
            huge_pages: vec![HugePages { size_kib: 2048, total: 512, free: 512 }],
            memlock: Memlock { bytes: None, exempt: false },
            has_irqbalance: Some(false),
            kvm: Kvm::Opens,
        }
    }

    fn verdicts(host: &Host) -> Vec<(&'static str, Verdict)> {
        let checks = checks(host).into_iter().map(|check| (check.check, check.verdict));
        checks.filter(|(_, verdict)| *verdict != Verdict::Ok).collect()
    }

    fn change(check: Check) -> String {
        assert_eq!(check.verdict, Verdict::Change, "{check:?}");
        check.change.unwrap()
    }

    #[test]
    fn a_fit_host_needs_nothing() {
        assert_eq!(verdicts(&fit()), []);
    }

    #[test]
    fn a_command_stands_where_one_helps_and_nowhere_else() {
        let mut host = fit();
        host.governors.insert("powersave".into(), 1);
        host.is_smt_active = Some(true);
        host.has_irqbalance = Some(true);
        host.huge_pages[0].free = 0;
        host.memlock.bytes = Some(8 << 20);
        host.kvm = Kvm::Refused;
        for check in checks(&host) {
            assert_eq!(check.change.is_some(), check.verdict == Verdict::Change, "{check:?}");
        }
        let changed: Vec<_> = verdicts(&host).into_iter().map(|(name, _)| name).collect();
        let expected = ["KVM", "CPU governor", "SMT", "irqbalance", "huge pages", "locked memory"];
        assert_eq!(changed, expected);
        assert!(change(huge_pages(&host)).starts_with("echo 512 > "));
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_not_judged() {
        let mut host = fit();
        host.release = None;
        host.clock_source = None;
        host.governors.clear();
        host.idle_states.clear();
        host.is_smt_active = None;
        host.isolated = None;
        host.huge_pages.clear();
        host.has_irqbalance = None;
        host.hypervisor.is_there = None;
        let found = verdicts(&host);
        assert_eq!(found.len(), 9);
        assert!(found.iter().all(|(_, verdict)| *verdict == Verdict::Unknown));
    }

    #[test]
    fn only_deep_idle_states_are_disabled() {
        let mut host = fit();
        for (number, latency_us) in [(2, 85), (3, 133)] {
            let name = format!("C{number}");
            host.idle_states.push(IdleState { number, name, latency_us, is_enabled: true });
        }
        let command = change(idle(&host));
        assert_eq!(command, "echo 1 | tee /sys/devices/system/cpu/cpu*/cpuidle/state[23]/disable");
        for state in &mut host.idle_states {
            state.is_enabled = false;
        }
        assert_eq!(idle(&host).found, "all disabled");
    }

    #[test]
    fn isolation_names_cpus_of_this_host_and_only_what_the_kernel_has() {
        let with = |isolated: &str, nohz_full: Option<&str>| {
            let mut host = fit();
            host.isolated = Some(isolated.into());
            host.nohz_full = nohz_full.map(Into::into);
            isolation(&host)
        };
        let command = change(with("", Some("")));
        assert!(command.contains("isolcpus=managed_irq,domain,7 nohz_full=7 rcu_nocbs=7"));
        assert!(!change(with("", None)).contains("nohz_full"));
        assert!(change(with("2-3", Some(""))).contains("domain,2-3 nohz_full=2-3"));
        assert_eq!(with("2-3", None).verdict, Verdict::Ok);
        let alone = Host { last_cpu: Some(0), isolated: Some(String::new()), ..fit() };
        assert_eq!(isolation(&alone).verdict, Verdict::Note);
    }

    #[test]
    fn a_slow_clock_source_is_changed_where_there_is_a_fast_one() {
        let with = |available: &[&str]| {
            let available = available.iter().map(|&name| name.into()).collect();
            let source = ClockSource { current: "hpet".into(), available };
            clock_source(&Host { clock_source: Some(source), ..fit() })
        };
        assert!(change(with(&["tsc", "hpet"])).starts_with("echo tsc > "));
        assert_eq!(with(&["hpet"]).verdict, Verdict::Note);
    }

    #[test]
    fn old_kernels_and_virtual_machines_are_told() {
        let mut host = fit();
        host.release = Some("6.1.0-40-cloud-amd64".into());
        host.hypervisor = Hypervisor { is_there: Some(true), machine: Some("QEMU".into()) };
        host.clock = ClockKind::Monotonic;
        let names = ["kernel", "machine", "KVM", "stamps"];
        assert_eq!(verdicts(&host), names.map(|name| (name, Verdict::Note)));
        assert_eq!(version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(version("unknown"), None);
    }
}
