//! Why a thread did not run, in words, and what to change.
//!
//! - `system_calls`: the names of system calls; `kvm_exits`: those of KVM's exits.
//! - `blame`: which cause took most time.

mod blame;
mod kvm_exits;
mod system_calls;

use burst_trace::{Culprit, Interruption, InterruptionCause, KvmExit, Subject};

pub use blame::{Blame, Blamed};
pub use kvm_exits::kvm_exit;
pub use system_calls::system_call;

/// The softirqs by their numbers, as in `/proc/softirqs` (`include/linux/interrupt.h`).
const SOFTIRQS: [&str; 10] =
    ["HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU"];
/// `SCHED_FIFO`, `SCHED_RR` and `SCHED_DEADLINE` (`include/uapi/linux/sched.h`).
const FIFO: u8 = 1;
const RR: u8 = 2;
const DEADLINE: u8 = 6;
/// The highest priority in `SCHED_FIFO` and `SCHED_RR`.
const PRIORITY_MAX: u8 = 99;
/// [`Interruption::detail`] of a thread whose control group was frozen.
const FROZEN: u32 = 1;

/// The cause of an interruption in a few words: `preempted by hog (fifo 50)`.
#[must_use]
pub fn in_short(interruption: &Interruption) -> String {
    let Interruption { cause, culprit, detail, .. } = interruption;
    let name = culprit.name();
    match cause {
        InterruptionCause::Preempted if name.is_empty() => "preempted".into(),
        InterruptionCause::Preempted => format!("preempted by {name} ({})", culprit.class()),
        InterruptionCause::Throttled => "throttled by its CPU quota".into(),
        InterruptionCause::Stopped if *detail == FROZEN => "frozen".into(),
        InterruptionCause::Stopped => "stopped".into(),
        InterruptionCause::Blocked => format!("blocked in {}", system_call(*detail)),
        InterruptionCause::PageFault => "page fault".into(),
        InterruptionCause::Interrupt => interrupt(culprit, *detail),
        InterruptionCause::Softirq => format!("softirq {}", softirq(*detail)),
        InterruptionCause::Hypervisor => "unaccounted: likely the hypervisor".into(),
        InterruptionCause::Printk => "bpf_printk".into(),
        InterruptionCause::KvmExit => {
            format!("KVM exit {}", kvm_exit(KvmExit::from_detail(*detail)))
        }
    }
}

/// What happened to a thread of `subject`, as a clause, and what to do about it, as a sentence without its full stop, with
/// the command. The other arguments are the fields of the [`Interruption`].
#[must_use]
pub fn of_cause(
    subject: Subject,
    cause: InterruptionCause,
    culprit: &Culprit,
    detail: u32,
    cpu: u16,
) -> (String, String) {
    let whose = whose(subject);
    match cause {
        InterruptionCause::Preempted => (
            format!("{} took CPU {cpu} from {whose}", named(culprit)),
            preempted(subject, culprit, cpu),
        ),
        InterruptionCause::Throttled => {
            (format!("the control group of {whose} had used up its CPU quota"), throttled(subject))
        }
        InterruptionCause::Stopped => stopped(subject, culprit, detail),
        InterruptionCause::Blocked => (
            format!("{whose} waited in the system call {}", system_call(detail)),
            blocked(subject, detail),
        ),
        InterruptionCause::PageFault => {
            (format!("{whose} waited for a page of memory"), page_fault(subject))
        }
        InterruptionCause::Interrupt => (
            format!("CPU {cpu} served {} in place of {whose}", interrupt(culprit, detail)),
            interrupted(culprit, detail, cpu),
        ),
        InterruptionCause::Softirq => (
            format!("CPU {cpu} did softirq {} in place of {whose}", softirq(detail)),
            deferred(detail, cpu),
        ),
        InterruptionCause::Hypervisor => (
            format!(
                "nothing on this kernel ran in place of {whose} on CPU {cpu}: unaccounted, likely the hypervisor"
            ),
            "on the host below this virtual machine, give each of its virtual CPUs a CPU that nothing else uses \
             (virsh vcpupin), or rent a machine with dedicated CPUs; `ringscope doctor` shows how much time was stolen"
                .into(),
        ),
        InterruptionCause::Printk => (
            format!("a BPF program printed a message (bpf_printk) in the work of {whose} on CPU {cpu}"),
            "remove bpf_printk from the program: `bpftool prog` lists programs, /sys/kernel/tracing/trace_pipe shows their \
             messages"
                .into(),
        ),
        InterruptionCause::KvmExit => {
            let exit = KvmExit::from_detail(detail);
            (format!("{whose} was outside the guest: KVM exit {}", kvm_exit(exit)), kvm_exits::advice(exit, cpu))
        }
    }
}

/// Whose thread it was.
fn whose(subject: Subject) -> String {
    match subject {
        Subject::Worker(number) => format!("worker {number}"),
        Subject::FrontEnd => "a thread of the front end".into(),
        Subject::FarEnd => "a thread of the far end".into(),
    }
}

/// The culprit with its ids and class: `hog (process 123, fifo 50)`.
fn named(culprit: &Culprit) -> String {
    let Culprit { process, thread, .. } = *culprit;
    let name = culprit.name();
    match (process, thread) {
        (0, 0) if name.is_empty() => "another thread".into(),
        (0, 0) => format!("{name} ({})", culprit.class()),
        (process, thread) if process == thread || thread == 0 => {
            format!("{name} (process {process}, {})", culprit.class())
        }
        (process, thread) => {
            format!("{name} (thread {thread} of process {process}, {})", culprit.class())
        }
    }
}

fn softirq(number: u32) -> String {
    let name = usize::try_from(number).ok().and_then(|number| SOFTIRQS.get(number));
    name.map_or_else(|| number.to_string(), |name| (*name).into())
}

/// The interrupt, by its name in `/proc/interrupts` and its number there.
fn interrupt(culprit: &Culprit, number: u32) -> String {
    match culprit.name() {
        name if is_of_the_cpu(&name) => format!("interrupt {name}"),
        name if name.is_empty() => format!("interrupt {number}"),
        name => format!("interrupt {number} ({name})"),
    }
}

/// Whether `/proc/interrupts` has a name in place of a number: the CPU's timer and other CPUs cause such interrupts.
fn is_of_the_cpu(name: &str) -> bool {
    name.len() == 3 && name.bytes().all(|byte| byte.is_ascii_uppercase())
}

/// A CPU that is not `cpu`.
const fn another(cpu: u16) -> u16 {
    if cpu == 0 { 1 } else { 0 }
}

fn preempted(subject: Subject, culprit: &Culprit, cpu: u16) -> String {
    let (name, other) = (culprit.name(), another(cpu));
    let own = own_cpu(subject);
    let higher = higher_class(subject, culprit).map_or_else(String::new, |it| format!(", or {it}"));
    if let Some(number) = interrupt_of_thread(&name) {
        return format!(
            "move interrupt {number}, whose work this thread does (echo {other} > \
             /proc/irq/{number}/smp_affinity_list), or {own}{higher}"
        );
    }
    if is_bound_to_its_cpu(&name) {
        return format!(
            "this thread of the kernel serves its own CPU: keep the work that wakes it up off CPU {cpu} (`ringscope doctor` \
             shows interrupts and RPS), or {own}{higher}"
        );
    }
    if name.starts_with("worker-") {
        return format!(
            "give each worker of ringscoped a CPU that no other thread uses (ringscoped --cpus LIST){higher}"
        );
    }
    match culprit.thread {
        0 => format!("{own}{higher}"),
        thread => {
            format!("move it to another CPU (taskset -cp {other} {thread}), or {own}{higher}")
        }
    }
}

fn own_cpu(subject: Subject) -> &'static str {
    match subject {
        Subject::Worker(_) => {
            "give the worker a CPU of its own (ringscoped --cpus N, and isolcpus=N on the kernel's command line)"
        }
        Subject::FrontEnd => {
            "give each thread of the front end a CPU of its own (taskset -cp N THREAD; libvirt: virsh vcpupin)"
        }
        Subject::FarEnd => "give that program a CPU of its own (taskset -acp N PROCESS)",
    }
}

/// The class in which the culprit would not have preempted the thread; `None` where there is none.
fn higher_class(subject: Subject, culprit: &Culprit) -> Option<String> {
    let priority = match culprit.policy {
        DEADLINE => return None,
        FIFO | RR if culprit.priority >= PRIORITY_MAX => return None,
        FIFO | RR => culprit.priority + 1,
        _ => 1,
    };
    Some(match subject {
        Subject::Worker(_) => format!("give the worker a higher class (--sched fifo:{priority})"),
        Subject::FrontEnd | Subject::FarEnd => {
            format!("give it a higher class (chrt -f -p {priority} THREAD)")
        }
    })
}

/// The number in a name such as `irq/27-eth0`: the thread of a threaded interrupt handler.
fn interrupt_of_thread(name: &str) -> Option<u32> {
    name.strip_prefix("irq/")?.split('-').next()?.parse().ok()
}

/// Whether the kernel has such a thread for each CPU, which cannot be moved.
fn is_bound_to_its_cpu(name: &str) -> bool {
    ["ksoftirqd/", "kworker/", "migration/", "rcuc/", "cpuhp/"]
        .iter()
        .any(|start| name.starts_with(start))
}

fn throttled(subject: Subject) -> String {
    let named = match subject {
        Subject::Worker(_) | Subject::FrontEnd => "; `ringscope doctor` names the file",
        Subject::FarEnd => "",
    };
    format!(
        "raise the quota of that control group: echo max > /sys/fs/cgroup/GROUP/cpu.max (with cgroup v1: echo -1 > \
         /sys/fs/cgroup/cpu/GROUP/cpu.cfs_quota_us; systemd: systemctl set-property UNIT CPUQuota=){named}"
    )
}

fn stopped(subject: Subject, culprit: &Culprit, detail: u32) -> (String, String) {
    let whose = whose(subject);
    if detail == FROZEN {
        return (
            format!("the control group of {whose} was frozen"),
            "look for what freezes it (a container's pause, systemctl freeze), and thaw it: echo 0 > \
             /sys/fs/cgroup/GROUP/cgroup.freeze (systemd: systemctl thaw UNIT)"
                .into(),
        );
    }
    let by = match culprit.name() {
        name if name.is_empty() => "a signal or a debugger".into(),
        _ => named(culprit),
    };
    let process = match subject {
        Subject::Worker(_) => "$(pidof ringscoped)",
        Subject::FrontEnd | Subject::FarEnd => "PROCESS",
    };
    (
        format!("{by} had stopped {whose}"),
        format!(
            "look for what sends SIGSTOP, or traces the process (grep TracerPid /proc/{process}/status); kill -CONT {process} \
             lets it go on"
        ),
    )
}

fn blocked(subject: Subject, number: u32) -> String {
    let place = "/proc/PROCESS/task/THREAD/stack shows where in the kernel";
    match (subject, system_call(number).as_str()) {
        (
            Subject::Worker(_),
            "write" | "writev" | "pwritev" | "sendto" | "sendmsg" | "sendmmsg",
        ) => {
            format!(
                "look at what is behind the datapath, which took the frames late: queueing discipline (tc -s qdisc), bridge, \
                 driver; {place}"
            )
        }
        (Subject::Worker(_), "mmap" | "munmap" | "mprotect" | "madvise" | "futex") => format!(
            "look at what the front end does meanwhile: a worker waits for memory and locks while a front end adds memory or \
             starts queues; {place}"
        ),
        (Subject::Worker(_), _) => format!("a worker should wait for events only: {place}"),
        (
            _,
            "fsync" | "fdatasync" | "pread64" | "preadv" | "pwrite64" | "pwritev" | "io_submit",
        ) => {
            format!(
                "move disk work off the threads that serve the guest's network (QEMU: -object iothread, aio=native or \
                 io_uring); {place}"
            )
        }
        _ => format!("look at what it waits for there: {place}"),
    }
}

fn page_fault(subject: Subject) -> String {
    let memory = "keep the guest's memory resident: QEMU with -overcommit mem-lock=on and prealloc=on, or huge pages \
                  (memory-backend-memfd,hugetlb=on)";
    let reclaim = "protect it from reclaim (echo BYTES > /sys/fs/cgroup/GROUP/memory.low)";
    match subject {
        Subject::Worker(_) => format!(
            "{memory}; {reclaim}; the daemon's first access to each page costs a fault, too, soon after the guest has started"
        ),
        Subject::FrontEnd => format!("{memory}; {reclaim}"),
        Subject::FarEnd => format!("lock that program's memory (mlockall), or {reclaim}"),
    }
}

fn interrupted(culprit: &Culprit, number: u32, cpu: u16) -> String {
    match culprit.name().as_str() {
        "LOC" => format!(
            "keep the timer off this CPU: nohz_full={cpu} rcu_nocbs={cpu} isolcpus={cpu} on the kernel's command line"
        ),
        name if is_of_the_cpu(name) => format!(
            "other CPUs interrupted this one: keep the scheduler's and the kernel's work off it (isolcpus={cpu} \
             nohz_full={cpu} on the kernel's command line)"
        ),
        _ => format!(
            "move it to another CPU: echo {} > /proc/irq/{number}/smp_affinity_list (and stop irqbalance, which may move it \
             back)",
            another(cpu)
        ),
    }
}

fn deferred(number: u32, cpu: u16) -> String {
    match softirq(number).as_str() {
        "NET_RX" | "NET_TX" => format!(
            "keep other interfaces' packets off CPU {cpu}: move their interrupts (echo {other} > \
             /proc/irq/N/smp_affinity_list), and leave it out of their RPS (echo 0 > \
             /sys/class/net/IF/queues/rx-N/rps_cpus); `ringscope doctor` lists both",
            other = another(cpu)
        ),
        "TIMER" | "HRTIMER" | "SCHED" | "RCU" => format!(
            "keep the kernel's periodic work off this CPU: isolcpus={cpu} nohz_full={cpu} rcu_nocbs={cpu} on the kernel's \
             command line"
        ),
        _ => format!(
            "move the interrupts of the device that causes it: echo {} > /proc/irq/N/smp_affinity_list",
            another(cpu)
        ),
    }
}

#[cfg(test)]
mod tests {
    use burst_trace::fixture;

    use super::*;

    fn culprit(name: &str, thread: u32, policy: u8, priority: u8) -> Culprit {
        Culprit { policy, priority, ..fixture::culprit(name, thread) }
    }

    fn advice(
        subject: Subject,
        cause: InterruptionCause,
        culprit: &Culprit,
        detail: u32,
    ) -> String {
        of_cause(subject, cause, culprit, detail, 1).1
    }

    #[test]
    fn a_culprit_is_named_with_what_it_took_and_with_a_command_against_it() {
        let hog = culprit("hog", 123, FIFO, 50);
        let (words, todo) = of_cause(Subject::Worker(0), InterruptionCause::Preempted, &hog, 0, 1);
        assert_eq!(words, "hog (process 123, fifo 50) took CPU 1 from worker 0");
        for part in ["taskset -cp 0 123", "--cpus N", "isolcpus=N", "--sched fifo:51"] {
            assert!(todo.contains(part), "no {part} in: {todo}");
        }
        let thread = Culprit { process: 120, ..hog };
        let (words, todo) =
            of_cause(Subject::FrontEnd, InterruptionCause::Preempted, &thread, 0, 0);
        let expected =
            "hog (thread 123 of process 120, fifo 50) took CPU 0 from a thread of the front end";
        assert_eq!(words, expected);
        assert!(todo.contains("taskset -cp 1 123") && todo.contains("vcpupin"), "{todo}");
        assert!(todo.contains("chrt -f -p 51"), "{todo}");
    }

    #[test]
    fn no_class_is_advised_above_the_highest_and_an_ordinary_culprit_needs_the_lowest() {
        let against = |policy, priority| {
            let hog = culprit("hog", 7, policy, priority);
            advice(Subject::Worker(0), InterruptionCause::Preempted, &hog, 0)
        };
        for (policy, priority) in [(FIFO, 99), (RR, 255), (DEADLINE, 0)] {
            assert!(!against(policy, priority).contains("--sched"), "{policy} {priority}");
        }
        assert!(against(0, 20).contains("--sched fifo:1)"));
    }

    #[test]
    fn threads_that_cannot_be_moved_are_not_to_be_moved() {
        let against = |name: &str| {
            advice(Subject::Worker(0), InterruptionCause::Preempted, &culprit(name, 9, 0, 20), 0)
        };
        for name in ["ksoftirqd/1", "kworker/1:2", "worker-1"] {
            assert!(!against(name).contains("taskset"), "{name}");
        }
        assert!(against("irq/27-eth0").contains("echo 0 > /proc/irq/27/smp_affinity_list"));
        assert!(against("irq/x").contains("taskset -cp 0 9"));
        let unknown = Culprit::default();
        let (words, todo) =
            of_cause(Subject::Worker(3), InterruptionCause::Preempted, &unknown, 0, 1);
        assert_eq!(words, "another thread took CPU 1 from worker 3");
        assert!(!todo.contains("taskset"), "{todo}");
    }

    #[test]
    fn every_cause_of_every_subject_has_words_and_advice_whatever_the_numbers() {
        for subject in [Subject::Worker(u32::MAX), Subject::FrontEnd, Subject::FarEnd] {
            for cause in InterruptionCause::ALL {
                for (detail, cpu) in [(0, 0), (1, 1), (9, 2), (u32::MAX, u16::MAX)] {
                    let culprit = culprit("a\x1bb", detail, u8::MAX, u8::MAX);
                    let (words, todo) = of_cause(subject, cause, &culprit, detail, cpu);
                    for text in [&words, &todo] {
                        assert!(!text.is_empty() && !text.ends_with('.'), "{text}");
                        assert!(!text.contains(char::is_control) && !text.contains("  "), "{text}");
                    }
                }
            }
        }
    }

    #[test]
    fn interrupts_and_softirqs_have_their_names() {
        let of = |name: &str, cause, detail| {
            of_cause(Subject::Worker(0), cause, &culprit(name, 0, 0, 0), detail, 1)
        };
        let (words, todo) = of("eth0-rx-0", InterruptionCause::Interrupt, 27);
        assert_eq!(words, "CPU 1 served interrupt 27 (eth0-rx-0) in place of worker 0");
        assert!(todo.contains("echo 0 > /proc/irq/27/smp_affinity_list"), "{todo}");
        let (words, todo) = of("LOC", InterruptionCause::Interrupt, 236);
        assert_eq!(words, "CPU 1 served interrupt LOC in place of worker 0");
        assert!(todo.contains("nohz_full=1") && !todo.contains("/proc/irq"), "{todo}");
        let (words, todo) = of("", InterruptionCause::Softirq, 3);
        assert_eq!(words, "CPU 1 did softirq NET_RX in place of worker 0");
        assert!(todo.contains("rps_cpus"), "{todo}");
        assert!(of("", InterruptionCause::Softirq, 99).0.contains("softirq 99"));
    }

    #[test]
    fn a_cause_in_short() {
        let of = |cause, name: &str, detail| {
            let culprit = culprit(name, 7, FIFO, 50);
            in_short(&Interruption { cause, culprit, detail, ..fixture::preempted(0, 9) })
        };
        let blocked = u32::try_from(libc::SYS_writev).unwrap();
        for (cause, name, detail, expected) in [
            (InterruptionCause::Preempted, "hog", 0, "preempted by hog (fifo 50)"),
            (InterruptionCause::Stopped, "", 0, "stopped"),
            (InterruptionCause::Stopped, "", 1, "frozen"),
            (InterruptionCause::Blocked, "", blocked, "blocked in writev"),
            (InterruptionCause::Interrupt, "eth0", 27, "interrupt 27 (eth0)"),
            (InterruptionCause::Softirq, "", 9, "softirq RCU"),
            (InterruptionCause::KvmExit, "", 0x0100_0030, "KVM exit EPT_VIOLATION (VMX)"),
        ] {
            assert_eq!(of(cause, name, detail), expected);
        }
    }
}
