//! Judges a host from its facts alone: is it fit for a measurement?

use std::collections::BTreeSet;

use burst_trace::ClockKind;
use serde::Serialize;

use super::NOT_AVAILABLE;
use super::host::{CLOCK_SOURCE, CPUS, HUGE_PAGES, Host, HugePages, Kvm};

/// An idle state that takes longer to leave shows in latencies, microseconds.
const IDLE_LATENCY_US_MAX: u32 = 10;
/// The first kernel whose AF_XDP sockets take frames over several buffers, and whose drivers report their XDP features.
const RELEASE_WANTED: (u32, u32) = (6, 6);
/// Memory of the guest that the advice on huge pages is for, in KiB.
const GUEST_KIB: u64 = 1 << 20;

/// The judgement of one fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// A command improves it.
    Change,
    /// Nothing to change, but it matters when figures are read.
    Note,
    /// The kernel does not report it.
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

/// One fact that a measurement depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name.
    pub check: &'static str,
    /// The judgement.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// The command that changes it, with `Verdict::Change`.
    pub change: Option<String>,
}

/// A judgement without its name, which is in [`CHECKS`].
fn judged(verdict: Verdict, found: impl Into<String>) -> Check {
    Check { check: "", verdict, found: found.into(), change: None }
}

/// As it should be.
pub fn ok(found: impl Into<String>) -> Check {
    judged(Verdict::Ok, found)
}

/// Nothing to change here.
pub fn note(found: impl Into<String>) -> Check {
    judged(Verdict::Note, found)
}

/// Not reported by the kernel.
pub fn unknown() -> Check {
    judged(Verdict::Unknown, NOT_AVAILABLE)
}

/// Improved by this command.
pub fn change(found: impl Into<String>, command: impl Into<String>) -> Check {
    Check { change: Some(command.into()), ..judged(Verdict::Change, found) }
}

/// Judges one fact.
type Judge = fn(&Host) -> Check;

/// All checks, in the order of the report.
const CHECKS: [(&str, Judge); 13] = [
    ("kernel", kernel),
    ("machine", machine),
    ("KVM", kvm),
    ("exits of KVM", kvm_exits),
    ("stamps", clock),
    ("clock source", clock_source),
    ("CPU governor", governor),
    ("C-states", idle),
    ("SMT", smt),
    ("isolated CPUs", isolation),
    ("irqbalance", irqbalance),
    ("huge pages", huge_pages),
    ("locked memory", memlock),
];

/// Runs all checks.
pub fn checks(host: &Host) -> Vec<Check> {
    CHECKS.iter().map(|&(check, judge)| Check { check, ..judge(host) }).collect()
}

fn kernel(host: &Host) -> Check {
    let Some(release) = &host.release else { return unknown() };
    let (major, minor) = RELEASE_WANTED;
    match version(release) {
        Some(version) if version >= RELEASE_WANTED => ok(release),
        _ => note(format!(
            "{release}; AF_XDP takes frames over several buffers from {major}.{minor} on"
        )),
    }
}

/// The first two numbers of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn machine(host: &Host) -> Check {
    let machine = host.hypervisor.machine.as_ref();
    let of = machine.map(|machine| format!(": {machine}")).unwrap_or_default();
    match host.hypervisor.is_there {
        Some(true) => note(format!(
            "a virtual machine{of}; the host below it can take a CPU away at any time"
        )),
        Some(false) => ok(format!("no virtual machine{of}")),
        None => machine.map_or_else(unknown, note),
    }
}

fn kvm(host: &Host) -> Check {
    match host.kvm {
        Kvm::Missing => note("no /dev/kvm: guests are emulated, and several times slower"),
        Kvm::Refused => change(
            "no permission for /dev/kvm: guests would be emulated",
            "usermod -aG kvm $USER  # and log in again",
        ),
        Kvm::Opens if host.hypervisor.is_there == Some(true) => note(
            "/dev/kvm opens; guests would be nested: only a trial shows whether they boot \
             (qemu-scripts/launch makes one)",
        ),
        Kvm::Opens => ok("/dev/kvm opens"),
    }
}

fn kvm_exits(host: &Host) -> Check {
    match &host.kvm_exits {
        Ok(()) => ok("seen with --kernel-stages"),
        Err(reason) => note(format!("not seen with --kernel-stages: {reason}")),
    }
}

fn clock(host: &Host) -> Check {
    match host.clock {
        ClockKind::Monotonic => note(
            "from clock_gettime, which costs more for each stamp: the kernel does not trust the CPU's counter, or does \
             not report whether it does",
        ),
        kind => ok(format!("from the CPU's counter ({}), which the kernel trusts", kind.name())),
    }
}

fn clock_source(host: &Host) -> Check {
    // Those that are read without a system call.
    const FAST: [&str; 4] = ["tsc", "arch_sys_counter", "kvm-clock", "hyperv_clocksource_tsc_page"];
    let Some(source) = &host.clock_source else { return unknown() };
    let current = source.current.as_str();
    if FAST.contains(&current) {
        return ok(current);
    }
    let found = format!("{current}: each clock read is a system call");
    if source.available.iter().any(|other| other == "tsc") {
        return change(found, format!("echo tsc > {CLOCK_SOURCE}/current_clocksource"));
    }
    note(found)
}

fn governor(host: &Host) -> Check {
    if host.governors.is_empty() {
        return unknown();
    }
    let of = |(governor, count): (&String, &usize)| format!("{governor} on {count} policies");
    let found = host.governors.iter().map(of).collect::<Vec<_>>().join(", ");
    if host.governors.keys().all(|governor| governor == "performance") {
        return ok(found);
    }
    let command = format!("echo performance | tee {CPUS}/cpufreq/policy*/scaling_governor");
    change(format!("{found}: the frequency follows the load"), command)
}

fn idle(host: &Host) -> Check {
    let enabled: Vec<_> = host.idle_states.iter().filter(|state| state.is_enabled).collect();
    let Some(deepest) = enabled.iter().max_by_key(|state| state.latency_us) else {
        return if host.idle_states.is_empty() { unknown() } else { ok("all disabled") };
    };
    let found = format!("{} takes {} µs to leave", deepest.name, deepest.latency_us);
    let deep = enabled.iter().filter(|state| state.latency_us > IDLE_LATENCY_US_MAX);
    // There are at most ten (`CPUIDLE_STATE_MAX`): a digit each.
    let numbers: BTreeSet<_> = deep.map(|state| state.number).collect();
    if numbers.is_empty() {
        return ok(found);
    }
    let numbers: String = numbers.iter().map(u32::to_string).collect();
    change(
        format!("{found}: a packet that wakes its CPU from it waits that long"),
        format!("echo 1 | tee {CPUS}/cpu*/cpuidle/state[{numbers}]/disable"),
    )
}

fn smt(host: &Host) -> Check {
    match host.is_smt_active {
        None => unknown(),
        Some(false) => ok("one thread a core"),
        Some(true) => {
            let command = format!("echo off > {CPUS}/smt/control");
            change("two threads share each core, and slow each other down", command)
        }
    }
}

fn isolation(host: &Host) -> Check {
    let (Some(isolated), Some(last)) = (&host.isolated, host.last_cpu) else { return unknown() };
    let nohz_full = host.nohz_full.as_deref();
    if !isolated.is_empty() && nohz_full != Some("") {
        let tick = match nohz_full {
            Some(cpus) => format!("without a timer tick {cpus}"),
            None => "this kernel has no nohz_full".into(),
        };
        return ok(format!("isolated {isolated}; {tick}"));
    }
    if last == 0 {
        return note("none, and there is only one CPU");
    }
    let (cpus, found) = match isolated.as_str() {
        "" => {
            (last.to_string(), "none: other programs and interrupts share the worker's CPU".into())
        }
        cpus => (cpus.into(), format!("isolated {cpus}, with a timer tick")),
    };
    let tick = nohz_full.map(|_| format!(" nohz_full={cpus} rcu_nocbs={cpus}")).unwrap_or_default();
    let command = format!(
        "kernel command line: isolcpus=managed_irq,domain,{cpus}{tick}  # then ringscoped --cpus {cpus}"
    );
    change(found, command)
}

fn irqbalance(host: &Host) -> Check {
    match host.has_irqbalance {
        None => unknown(),
        Some(false) => ok("not running"),
        Some(true) => {
            change("running: it moves interrupts from CPU to CPU", "systemctl stop irqbalance")
        }
    }
}

fn huge_pages(host: &Host) -> Check {
    let Some(smallest) = host.huge_pages.first() else { return unknown() };
    let of = |pages: &HugePages| {
        format!("{} of {} free of {} MiB", pages.free, pages.total, pages.size_kib >> 10)
    };
    let found = host.huge_pages.iter().map(of).collect::<Vec<_>>().join(", ");
    if host.huge_pages.iter().any(|pages| pages.free > 0) {
        return ok(found);
    }
    let size = smallest.size_kib;
    let count = GUEST_KIB / size.max(1);
    let command = format!(
        "echo {count} > {HUGE_PAGES}/hugepages-{size}kB/nr_hugepages  \
         # then QEMU: memory-backend-memfd,...,hugetlb=on"
    );
    change(format!("{found}: address translation of guest memory costs more"), command)
}

fn memlock(host: &Host) -> Check {
    let memlock = host.memlock;
    if memlock.is_enough() {
        return ok(memlock.text());
    }
    change(
        format!("at most {}, and AF_XDP's buffers count as locked memory", memlock.text()),
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
            kvm_exits: Ok(()),
        }
    }

    fn verdicts(host: &Host) -> Vec<(&'static str, Verdict)> {
        let checks = checks(host).into_iter().map(|check| (check.check, check.verdict));
        checks.filter(|(_, verdict)| *verdict != Verdict::Ok).collect()
    }

    fn command(check: Check) -> String {
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
        assert!(command(huge_pages(&host)).starts_with("echo 512 > "));
    }

    #[test]
    fn what_the_kernel_does_not_report_is_not_judged() {
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
        let line = command(idle(&host));
        assert_eq!(line, "echo 1 | tee /sys/devices/system/cpu/cpu*/cpuidle/state[23]/disable");
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
        let line = command(with("", Some("")));
        assert!(line.contains("isolcpus=managed_irq,domain,7 nohz_full=7 rcu_nocbs=7"));
        assert!(!command(with("", None)).contains("nohz_full"));
        assert!(command(with("2-3", Some(""))).contains("domain,2-3 nohz_full=2-3"));
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
        assert!(command(with(&["tsc", "hpet"])).starts_with("echo tsc > "));
        assert_eq!(with(&["hpet"]).verdict, Verdict::Note);
    }

    #[test]
    fn old_kernels_and_virtual_machines_are_noted() {
        let mut host = fit();
        host.release = Some("6.1.0-40-cloud-amd64".into());
        host.hypervisor = Hypervisor { is_there: Some(true), machine: Some("QEMU".into()) };
        host.clock = ClockKind::Monotonic;
        host.kvm_exits = Err("this kernel has no KVM".into());
        let names = ["kernel", "machine", "KVM", "exits of KVM", "stamps"];
        assert_eq!(verdicts(&host), names.map(|name| (name, Verdict::Note)));
        assert_eq!(version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(version("unknown"), None);
    }
}
