//! The kinds of fault, and which answers name them.

use std::ops::RangeInclusive;

use super::answer::Answer;
use super::hog::NAME as HOG;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// SIGSTOP of the daemon.
    DaemonStopped,
    /// SIGSTOP of the guest's process: QEMU, or User Mode Linux.
    GuestStopped,
    /// A debugger stops one virtual CPU: the thread that has used most CPU time.
    VcpuStopped,
    /// A program in real time on the worker's CPU.
    WorkerHog,
    /// A program in real time on the guest's CPU.
    VcpuHog,
    /// A program in real time on the far end's CPU.
    FarEndHog,
    /// A CPU quota for the daemon.
    DaemonQuota,
    /// A CPU quota for the guest's process.
    GuestQuota,
    /// A flood on another interface, whose packets the kernel handles on the worker's CPU.
    InterruptStorm,
    /// A guest that posts no receive buffers.
    NoBuffers,
    /// SIGSTOP of the program at the far end.
    FarEndStopped,
    /// A token bucket on the way to the far end.
    TokenBucket,
    /// An XDP program at the far end's interface that writes debug messages.
    DebugMessages,
    /// The kernel takes back the pages of the daemon's program.
    Eviction,
}

/// What runs around the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    /// Probes from the outside host, and a guest that sends them back.
    GuestAnswers,
    /// Probes from the guest, and a program on the outside host that sends them back.
    GuestAsks,
    /// A guest in software, whose frames the daemon reflects.
    GuestInSoftware,
}

/// An answer that names a fault.
#[derive(Clone, Copy, Debug)]
pub struct Accepted {
    /// Whose time it is.
    pub subject: &'static str,
    /// What happened.
    pub cause: &'static str,
    /// The beginning of the culprit's name; empty: any, or none.
    pub culprit: &'static str,
    /// Why this answer is right.
    pub reason: &'static str,
}

/// A kind of fault, and all about it.
struct Row {
    kind: Kind,
    name: &'static str,
    setting: Setting,
    /// How long it lasts, milliseconds.
    lasts_ms: RangeInclusive<u64>,
    accepted: &'static [Accepted],
}

const fn accept(
    subject: &'static str,
    cause: &'static str,
    culprit: &'static str,
    reason: &'static str,
) -> Accepted {
    Accepted { subject, cause, culprit, reason }
}

/// All kinds, with every answer that names them.
const TABLE: &[Row] = &[
    Row {
        kind: Kind::DaemonStopped,
        name: "daemon stopped",
        setting: Setting::GuestAnswers,
        lasts_ms: 20..=100,
        accepted: &[accept("worker", "stopped", "", "the signal stops all threads of the daemon")],
    },
    Row {
        kind: Kind::GuestStopped,
        name: "guest stopped",
        setting: Setting::GuestAnswers,
        lasts_ms: 20..=100,
        accepted: &[accept("front-end", "stopped", "", "the guest runs in the stopped process")],
    },
    Row {
        kind: Kind::VcpuStopped,
        name: "vCPU stopped",
        setting: Setting::GuestAnswers,
        lasts_ms: 20..=100,
        accepted: &[accept("front-end", "stopped", "", "the thread is one of the front end's")],
    },
    Row {
        kind: Kind::WorkerHog,
        name: "hog at worker",
        setting: Setting::GuestAnswers,
        lasts_ms: 20..=100,
        accepted: &[accept("worker", "preempted", HOG, "it has the worker's CPU")],
    },
    Row {
        kind: Kind::VcpuHog,
        name: "hog at vCPU",
        setting: Setting::GuestAnswers,
        lasts_ms: 20..=100,
        accepted: &[accept("front-end", "preempted", HOG, "it has the CPU of all vCPUs")],
    },
    Row {
        kind: Kind::FarEndHog,
        name: "hog at far end",
        setting: Setting::GuestAsks,
        lasts_ms: 20..=100,
        accepted: &[accept("far-end", "preempted", HOG, "it has the CPU of the program there")],
    },
    Row {
        kind: Kind::DaemonQuota,
        name: "daemon quota",
        setting: Setting::GuestAnswers,
        // The quota has to be used up first.
        lasts_ms: 80..=100,
        accepted: &[accept("worker", "throttled", "", "the worker is in the group")],
    },
    Row {
        kind: Kind::GuestQuota,
        name: "guest quota",
        setting: Setting::GuestAnswers,
        lasts_ms: 80..=100,
        accepted: &[accept("front-end", "throttled", "", "the front end is in the group")],
    },
    Row {
        kind: Kind::InterruptStorm,
        name: "interrupt storm",
        setting: Setting::GuestAnswers,
        lasts_ms: 60..=100,
        accepted: &[
            accept("worker", "interrupt", "", "each packet interrupts the CPU"),
            accept("worker", "softirq", "", "the packets are handled after the interrupt"),
            accept("worker", "preempted", "ksoftirqd/", "under load a kernel thread handles them"),
        ],
    },
    Row {
        kind: Kind::NoBuffers,
        name: "no buffers",
        setting: Setting::GuestInSoftware,
        lasts_ms: 20..=100,
        accepted: &[accept("guest", "no-buffers", "", "only the guest posts buffers")],
    },
    Row {
        kind: Kind::FarEndStopped,
        name: "far end stopped",
        setting: Setting::GuestAsks,
        lasts_ms: 20..=100,
        accepted: &[accept("far-end", "stopped", "", "the program there is stopped")],
    },
    Row {
        kind: Kind::TokenBucket,
        name: "token bucket",
        setting: Setting::GuestAsks,
        // The bucket has to be empty first.
        lasts_ms: 50..=100,
        accepted: &[accept(
            "host",
            "behind-datapath",
            "",
            "frames wait in the host, behind the tap",
        )],
    },
    Row {
        kind: Kind::DebugMessages,
        name: "debug messages",
        setting: Setting::GuestAnswers,
        lasts_ms: 30..=100,
        accepted: &[accept(
            "worker",
            "printk",
            "",
            "the program runs within the worker's own call",
        )],
    },
    Row {
        kind: Kind::Eviction,
        name: "eviction",
        setting: Setting::GuestAnswers,
        lasts_ms: 30..=100,
        accepted: &[accept("worker", "page-fault", "", "the worker's own pages are read again")],
    },
];

impl Kind {
    /// Every kind, in the order of the table.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.kind)
    }

    /// The one with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|kind| kind.name() == name)
    }

    fn row(self) -> &'static Row {
        TABLE.iter().find(|row| row.kind == self).expect("every kind has its row")
    }

    /// Its name in the results.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// What runs around it.
    #[must_use]
    pub fn setting(self) -> Setting {
        self.row().setting
    }

    /// How long such a fault lasts, milliseconds.
    #[must_use]
    pub fn lasts_ms(self) -> RangeInclusive<u64> {
        self.row().lasts_ms.clone()
    }

    /// Whether it keeps a CPU busy: while it does, nobody else could use what the hypervisor takes away, and some hold up even
    /// threads in real time, because the kernel works for them in a context that no thread can preempt.
    #[must_use]
    pub const fn keeps_a_cpu_busy(self) -> bool {
        matches!(
            self,
            Self::WorkerHog
                | Self::VcpuHog
                | Self::FarEndHog
                | Self::InterruptStorm
                | Self::DebugMessages
        )
    }

    /// The answers that name it.
    #[must_use]
    pub fn accepted(self) -> &'static [Accepted] {
        self.row().accepted
    }

    /// Whether the answer names it.
    #[must_use]
    pub fn is_named_by(self, answer: &Answer) -> bool {
        self.accepted().iter().any(|accepted| {
            answer.subject == accepted.subject
                && answer.cause == accepted.cause
                && answer.culprit.starts_with(accepted.culprit)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn answer(subject: &str, cause: &str, culprit: &str) -> Answer {
        let [subject, cause, culprit] = [subject, cause, culprit].map(str::to_owned);
        Answer { subject, cause, culprit, time: Duration::ZERO, words: String::new() }
    }

    #[test]
    fn each_kind_has_one_row_with_a_name_and_reasons() {
        let mut kinds: Vec<_> = Kind::all().collect();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), TABLE.len());
        for row in TABLE {
            assert!(!row.name.is_empty() && !row.lasts_ms.is_empty(), "{:?}", row.kind);
            assert!(row.accepted.iter().all(|it| !it.reason.is_empty()), "{:?}", row.kind);
        }
    }

    #[test]
    fn subject_cause_and_culprit_all_count() {
        assert!(Kind::WorkerHog.is_named_by(&answer("worker", "preempted", HOG)));
        assert!(!Kind::WorkerHog.is_named_by(&answer("front-end", "preempted", HOG)));
        assert!(!Kind::WorkerHog.is_named_by(&answer("worker", "stopped", HOG)));
        assert!(!Kind::WorkerHog.is_named_by(&answer("worker", "preempted", "cargo")));
        assert!(Kind::InterruptStorm.is_named_by(&answer("worker", "preempted", "ksoftirqd/0")));
    }
}
