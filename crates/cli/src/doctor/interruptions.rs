//! Judges what may take the CPU from running daemons' workers, and from their front ends.

use super::advice::shell_word;
use super::checks::{Check, change, note, ok, unknown};
use super::running::{Class, Quota, Running, Thread};

/// Most threads, files or interfaces that are named.
const NAMED_MAX: usize = 4;
/// Stolen time below this part of all time is not worth a note.
const STOLEN_WORTH: f64 = 0.001;

/// Judges one thing.
type Judge = fn(&Running) -> Check;

/// All checks, in the order of the report.
const CHECKS: [(&str, Judge); 5] = [
    ("real-time threads", real_time),
    ("CPU quotas", quotas),
    ("interrupts", interrupts),
    ("RPS", rps),
    ("stolen time", stolen),
];

/// Runs all checks.
pub fn checks(running: &Running) -> Vec<Check> {
    CHECKS.iter().map(|&(check, judge)| Check { check, ..judge(running) }).collect()
}

/// Where there are no workers there is nothing to judge.
fn no_workers() -> Check {
    ok("no worker of ringscoped runs")
}

/// What keeps a check from a command: there is no other CPU.
fn on_every_cpu(found: &str) -> Check {
    note(format!("{found}; workers may run on every CPU: start ringscoped with --cpus"))
}

/// Threads that take the CPU from a worker whenever they want to.
fn real_time(running: &Running) -> Check {
    if running.workers.is_empty() {
        return no_workers();
    }
    let judged = running.judged();
    let takes = |thread: &&Thread| {
        judged.iter().any(|worker| {
            worker.thread != thread.thread
                && thread.class >= worker.class
                && thread.cpus.overlaps(&worker.cpus)
        })
    };
    let mut threads: Vec<_> = running.real_time.iter().filter(takes).collect();
    threads.sort_by_key(|thread| (std::cmp::Reverse(thread.class), thread.thread));
    if threads.is_empty() {
        return ok("none that may take a worker's CPU");
    }
    let names = named(threads.iter().map(|thread| in_words(thread)));
    let found = format!("{names} may take a worker's CPU");
    let workers = running.worker_cpus();
    let others = running.online.without(&workers);
    if others.is_empty() {
        return on_every_cpu(&found);
    }
    let move_away = |thread: &&Thread| {
        let own = thread.cpus.without(&workers);
        let cpus = if own.is_empty() { others.list() } else { own.list() };
        let interrupt = thread.name.strip_prefix("irq/").and_then(|rest| rest.split('-').next());
        match interrupt.and_then(|number| number.parse::<u32>().ok()) {
            Some(number) => format!("echo {cpus} > /proc/irq/{number}/smp_affinity_list"),
            None => format!("taskset -cp {cpus} {}", thread.thread),
        }
    };
    let commands: Vec<_> = threads.iter().map(move_away).take(NAMED_MAX).collect();
    change(found, commands.join("; "))
}

fn in_words(thread: &Thread) -> String {
    let class = match thread.class {
        Some(Class::Fixed(priority)) => format!("real-time priority {priority}"),
        Some(Class::Deadline) => "deadline".into(),
        None => "no real-time class".into(),
    };
    let Thread { name, process, thread, .. } = thread;
    match process == thread {
        true => format!("{name} (process {process}, {class})"),
        false => format!("{name} (thread {thread} of process {process}, {class})"),
    }
}

fn quotas(running: &Running) -> Check {
    if running.quotas.is_empty() {
        return ok("none on a daemon or its front end");
    }
    let found = running.quotas.iter().map(|Quota { whose, file, quota, .. }| {
        format!("{whose} has the quota `{quota}` in {}", report::without_controls(file))
    });
    let mut lifted: Vec<_> = running
        .quotas
        .iter()
        .map(|Quota { file, none, .. }| format!("echo {none} > {}", shell_word(file)))
        .collect();
    lifted.sort_unstable();
    lifted.dedup();
    lifted.truncate(NAMED_MAX);
    change(named(found), lifted.join("; "))
}

fn interrupts(running: &Running) -> Check {
    if running.workers.is_empty() {
        return no_workers();
    }
    let Some(interrupts) = &running.interrupts else { return unknown() };
    let workers = running.worker_cpus();
    let may = interrupts.iter().filter(|it| it.allowed.overlaps(&workers)).count();
    if may == 0 {
        return ok(format!("none on the workers' CPUs {}", workers.list()));
    }
    let does = |cpus: &super::cpus::Cpus| cpus.overlaps(&workers);
    let now = interrupts.iter().filter(|it| it.effective.as_ref().is_some_and(does)).count();
    let found = format!("{may} may come to the workers' CPUs {}, and {now} do now", workers.list());
    let others = running.online.without(&workers);
    if others.is_empty() {
        return on_every_cpu(&found);
    }
    let command = format!(
        "for file in /proc/irq/[0-9]*/smp_affinity_list; do echo {} > $file; done  # a few may be refused",
        others.list()
    );
    change(found, command)
}

fn rps(running: &Running) -> Check {
    if running.workers.is_empty() {
        return no_workers();
    }
    let workers = running.worker_cpus();
    let spread: Vec<_> = running.rps.iter().filter(|(_, cpus)| cpus.overlaps(&workers)).collect();
    if spread.is_empty() {
        return ok(format!("no packets of interfaces go to the workers' CPUs {}", workers.list()));
    }
    let names = named(spread.iter().map(|(name, _)| report::without_controls(name)));
    let found = format!("packets of {names} go to the workers' CPUs {}", workers.list());
    if running.online.without(&workers).is_empty() {
        return on_every_cpu(&found);
    }
    let off = |name: &str| {
        format!("echo 0 | tee /sys/class/net/{}/queues/rx-*/rps_cpus", shell_word(name))
    };
    let commands: Vec<_> = spread.iter().map(|(name, _)| off(name)).take(NAMED_MAX).collect();
    change(found, commands.join("; "))
}

fn stolen(running: &Running) -> Check {
    let Some(stolen) = running.stolen else { return unknown() };
    let share = stolen.ticks as f64 / stolen.of.max(1) as f64;
    let found = format!("{:.2} % of the CPU time since this kernel started", 100.0 * share);
    if share < STOLEN_WORTH {
        return ok(found);
    }
    note(format!(
        "{found} was used by the hypervisor: pin this machine's virtual CPUs on the host below it (virsh vcpupin)"
    ))
}

/// The first few, and how many more there are.
fn named(all: impl Iterator<Item = String>) -> String {
    let all: Vec<_> = all.collect();
    let first = all.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(NAMED_MAX) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::checks::Verdict;
    use super::super::cpus::Cpus;
    use super::super::running::{Affinity, Stolen};
    use super::*;

    fn cpus(list: &str) -> Cpus {
        Cpus::from_list(list).unwrap()
    }

    fn thread(name: &str, thread: u32, class: Option<Class>, on: &str) -> Thread {
        Thread { process: thread, thread, name: name.into(), class, cpus: cpus(on) }
    }

    /// One worker on CPU 1 of four, and nothing that disturbs it.
    fn quiet() -> Running {
        let affinity = |on| Affinity { allowed: cpus(on), effective: None };
        Running {
            workers: vec![thread("worker-0", 11, None, "1")],
            interrupts: Some(vec![affinity("0"), affinity("2-3")]),
            rps: BTreeMap::from([("eth0".to_owned(), cpus("0,2"))]),
            stolen: Some(Stolen { ticks: 0, of: 1000 }),
            online: cpus("0-3"),
            ..Running::default()
        }
    }

    fn of(running: &Running, name: &str) -> (Verdict, String, String) {
        let check = checks(running).into_iter().find(|check| check.check == name).unwrap();
        (check.verdict, check.found, check.change.unwrap_or_default())
    }

    #[test]
    fn on_a_quiet_host_and_without_a_daemon_there_is_nothing_to_change() {
        let none = Running { stolen: Some(Stolen { ticks: 0, of: 0 }), ..Running::default() };
        for running in [quiet(), none] {
            for check in checks(&running) {
                assert_eq!((check.verdict, &check.change), (Verdict::Ok, &None), "{check:?}");
            }
        }
    }

    #[test]
    fn real_time_threads_are_moved_away_where_they_outrank_the_worker() {
        let name = "real-time threads";
        let mut running = quiet();
        running.real_time = vec![
            thread("elsewhere", 20, Some(Class::Fixed(99)), "2-3"),
            thread("hog", 21, Some(Class::Fixed(50)), "0-1"),
            thread("irq/27-eth0", 22, Some(Class::Fixed(50)), "1"),
        ];
        let (verdict, found, command) = of(&running, name);
        assert_eq!(verdict, Verdict::Change);
        let expected = "hog (process 21, real-time priority 50), irq/27-eth0 (process 22, real-time priority 50) may \
                        take a worker's CPU";
        assert_eq!(found, expected);
        assert_eq!(command, "taskset -cp 0 21; echo 0,2-3 > /proc/irq/27/smp_affinity_list");
        // A worker of a higher class keeps its CPU.
        running.workers[0].class = Some(Class::Fixed(51));
        assert_eq!(of(&running, name).0, Verdict::Ok);
        running.real_time.push(thread("sporadic", 23, Some(Class::Deadline), "0-3"));
        assert!(of(&running, name).1.starts_with("sporadic (process 23, deadline) may"));
        // It is no danger to itself.
        running.real_time = running.workers.clone();
        assert_eq!(of(&running, name).0, Verdict::Ok);
    }

    #[test]
    fn many_threads_are_counted() {
        let mut running = quiet();
        let hog = |n| thread("hog", n, Some(Class::Fixed(50)), "1");
        running.real_time = (20..30).map(hog).collect();
        let (_, found, command) = of(&running, "real-time threads");
        assert!(found.contains(" and 6 more may"), "{found}");
        assert_eq!(command.matches("taskset").count(), NAMED_MAX);
    }

    #[test]
    fn quotas_interrupts_and_rps_have_their_commands() {
        let mut running = quiet();
        running.quotas = vec![Quota {
            whose: "qemu (process 7)".into(),
            file: "/sys/fs/cgroup/vm 1/cpu.max".into(),
            quota: "50000 100000".into(),
            none: "max",
        }];
        running.interrupts.as_mut().unwrap().extend([
            Affinity { allowed: cpus("0-3"), effective: Some(cpus("1")) },
            Affinity { allowed: cpus("0-3"), effective: Some(cpus("0")) },
        ]);
        running.rps.insert("eth1".into(), cpus("0-3"));
        let (verdict, found, command) = of(&running, "CPU quotas");
        assert_eq!(
            (verdict, command.as_str()),
            (Verdict::Change, "echo max > '/sys/fs/cgroup/vm 1/cpu.max'")
        );
        assert!(found.starts_with("qemu (process 7) has the quota `50000 100000` in /sys"));
        let (verdict, found, command) = of(&running, "interrupts");
        assert_eq!(verdict, Verdict::Change);
        assert_eq!(found, "2 may come to the workers' CPUs 1, and 1 do now");
        assert!(command.contains("do echo 0,2-3 > $file; done"), "{command}");
        let (verdict, found, command) = of(&running, "RPS");
        assert_eq!(
            (verdict, found.as_str()),
            (Verdict::Change, "packets of eth1 go to the workers' CPUs 1")
        );
        assert_eq!(command, "echo 0 | tee /sys/class/net/eth1/queues/rx-*/rps_cpus");
        running.interrupts = None;
        assert_eq!(of(&running, "interrupts").0, Verdict::Unknown);
    }

    #[test]
    fn where_workers_are_on_every_cpu_nothing_can_be_moved_away() {
        let mut running = quiet();
        running.workers.push(thread("worker-0", 12, None, "0-3"));
        assert_eq!(of(&running, "interrupts").0, Verdict::Ok, "one has a CPU of its own");
        running.workers.pop();
        running.workers[0].cpus = cpus("0-3");
        running.real_time = vec![thread("hog", 21, Some(Class::Fixed(50)), "1")];
        for name in ["real-time threads", "interrupts", "RPS"] {
            let (verdict, found, _) = of(&running, name);
            assert_eq!(verdict, Verdict::Note, "{found}");
            assert!(found.ends_with("start ringscoped with --cpus"), "{found}");
        }
    }

    #[test]
    fn stolen_time_is_noted_where_it_is_some() {
        let with = |ticks| Running { stolen: Some(Stolen { ticks, of: 100_000 }), ..quiet() };
        assert_eq!(of(&with(99), "stolen time").0, Verdict::Ok);
        let (verdict, found, _) = of(&with(2300), "stolen time");
        assert_eq!(verdict, Verdict::Note);
        assert!(found.starts_with("2.30 % of the CPU time"), "{found}");
        let unknown = Running { stolen: None, ..quiet() };
        assert_eq!(of(&unknown, "stolen time").0, Verdict::Unknown);
    }
}
