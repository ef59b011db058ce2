//! Why a thread that packets wait for did not run (tier K), as BPF programs see it while they are attached.
//!
//! An [`Interruption`] is stored beside the bursts, as kernel spans are. Its layout in the file:
//!
//! ```text
//! word  bits
//! 0              start
//! 1              end
//! 2-3            the culprit's name, padded with zeroes
//! 4     0-31     the culprit's process     32-63  its thread
//! 5     0-31     the interrupted thread    32-63  detail
//! 6     0-31     worker     32-47  CPU     48-55  the culprit's policy     56-63  its priority
//! 7     0-7      kind: 7    8-15  whose    16-23  cause     24-31  writer
//! ```

/// The length in the file, 64-bit words: that of every record.
const WORDS: usize = 8;

/// An interval in which a thread did not run although packets waited for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interruption {
    /// When it began, ticks.
    pub start: u64,
    /// When it ended, ticks.
    pub end: u64,
    /// Whose thread it was.
    pub subject: Subject,
    /// The thread's id; 0 if unknown.
    pub thread: u32,
    /// Why it did not run.
    pub cause: InterruptionCause,
    /// Who or what was responsible.
    pub culprit: Culprit,
    /// See [`InterruptionCause`].
    pub detail: u32,
    /// The CPU on which the thread had run before.
    pub cpu: u16,
    /// The number of the recorder's writer that stored it, after those of the workers.
    pub writer: u8,
}

/// Whose thread was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// The worker with this number.
    Worker(u32),
    /// The guest's front end: a virtual CPU or another thread of its process.
    FrontEnd,
    /// A program at the far end, on this host.
    FarEnd,
}

impl Subject {
    /// `worker`, `front-end` or `far-end`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Worker(_) => "worker",
            Self::FrontEnd => "front-end",
            Self::FarEnd => "far-end",
        }
    }
}

/// Why a thread did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum InterruptionCause {
    /// It could have run, but another thread had its CPU: the culprit.
    Preempted = 1,
    /// Its control group had used up its CPU quota (`cpu.max`).
    Throttled = 2,
    /// A signal or a debugger had stopped it, or its control group was frozen (then `detail` is 1).
    Stopped = 3,
    /// It waited in a system call, whose number is `detail`.
    Blocked = 4,
    /// The kernel had to bring in a page of memory that it touched.
    PageFault = 5,
    /// Its CPU served an interrupt. `detail` is its number; the culprit is named as in `/proc/interrupts`.
    Interrupt = 6,
    /// Its CPU did deferred work of the kernel after an interrupt. `detail` is the number of the softirq.
    Softirq = 7,
    /// The hypervisor ran something else on its CPU. `detail` is the stolen time in ticks, as the kernel accounts it, between
    /// `start` and `end`.
    Hypervisor = 8,
    /// A BPF program printed a debug message (`bpf_printk`) on its CPU, in its own work. It has a time, and no length.
    Printk = 9,
    /// KVM had taken a virtual CPU out of its guest. `detail` is the exit, as [`KvmExit`] reads it. Halts, in which the guest has
    /// nothing to do, are none.
    KvmExit = 10,
}

impl InterruptionCause {
    /// Every cause, in the order of the numbers.
    pub const ALL: [Self; 10] = [
        Self::Preempted,
        Self::Throttled,
        Self::Stopped,
        Self::Blocked,
        Self::PageFault,
        Self::Interrupt,
        Self::Softirq,
        Self::Hypervisor,
        Self::Printk,
        Self::KvmExit,
    ];

    /// Its name in JSON, CSV and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Preempted => "preempted",
            Self::Throttled => "throttled",
            Self::Stopped => "stopped",
            Self::Blocked => "blocked",
            Self::PageFault => "page-fault",
            Self::Interrupt => "interrupt",
            Self::Softirq => "softirq",
            Self::Hypervisor => "hypervisor",
            Self::Printk => "printk",
            Self::KvmExit => "kvm-exit",
        }
    }

    /// The cause with this number, in a record or an event of the BPF programs.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| *cause as u8 == number)
    }
}

/// Why KVM left a guest: the `detail` of an interruption by [`InterruptionCause::KvmExit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvmExit {
    /// By which instruction set the guest ran; `None` if this version does not know it.
    pub isa: Option<KvmIsa>,
    /// The hardware's number of the reason: of VMX `EXIT_REASON_*` (`arch/x86/include/uapi/asm/vmx.h`), of SVM the lower 32 bits
    /// of `SVM_EXIT_*` (`svm.h`).
    pub reason: u32,
}

/// By which instruction set of x86 a guest runs (`KVM_ISA_*` in `arch/x86/kvm/trace.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvmIsa {
    /// Intel's.
    Vmx,
    /// AMD's.
    Svm,
}

impl KvmExit {
    /// Reads a `detail`. The highest byte is the instruction set. The others hold the reason: its highest bit, and its lowest 23.
    #[must_use]
    pub const fn from_detail(detail: u32) -> Self {
        let isa = match detail >> 24 {
            1 => Some(KvmIsa::Vmx),
            2 => Some(KvmIsa::Svm),
            _ => None,
        };
        let reason = match (isa, detail & 0xff_ffff) {
            // SVM_EXIT_ERR, the one reason that is below zero.
            (Some(KvmIsa::Svm), 0xff_ffff) => u32::MAX,
            (_, bits) => (bits >> 23) << 31 | bits & 0x7f_ffff,
        };
        Self { isa, reason }
    }
}

/// Who or what had the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Culprit {
    /// Its process; 0 if it is none.
    pub process: u32,
    /// Its thread; 0 if it is none.
    pub thread: u32,
    /// The thread's name, or the interrupt's, padded with zeroes.
    pub command: [u8; 16],
    /// The thread's scheduling policy (`include/uapi/linux/sched.h`): 0 `SCHED_OTHER`, 1 `SCHED_FIFO`, 2 `SCHED_RR`,
    /// 3 `SCHED_BATCH`, 5 `SCHED_IDLE`, 6 `SCHED_DEADLINE`.
    pub policy: u8,
    /// 1 to 99 in `SCHED_FIFO` and `SCHED_RR`; otherwise its nice value plus 20.
    pub priority: u8,
}

impl Culprit {
    /// The name, without control characters.
    #[must_use]
    pub fn name(&self) -> String {
        let len = self.command.iter().position(|byte| *byte == 0).unwrap_or(self.command.len());
        let text = String::from_utf8_lossy(&self.command[..len]);
        text.chars().map(|it| if it.is_control() { '?' } else { it }).collect()
    }

    /// The scheduling policy and priority, as in `fifo 50` or `other, nice 0`.
    #[must_use]
    pub fn class(&self) -> String {
        match self.policy {
            1 => format!("fifo {}", self.priority),
            2 => format!("rr {}", self.priority),
            6 => "deadline".to_owned(),
            other => {
                let name = match other {
                    3 => "batch",
                    5 => "idle",
                    _ => "other",
                };
                format!("{name}, nice {}", i16::from(self.priority) - 20)
            }
        }
    }
}

impl Interruption {
    /// How long the thread did not run, ticks. For [`InterruptionCause::Hypervisor`] that is less than the interval.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.within(self.start, self.end)
    }

    /// How much of it falls between `from` and `to`, ticks. Of stolen time, of which only the sum is known, the most that can.
    #[must_use]
    pub const fn within(&self, from: u64, to: u64) -> u64 {
        let start = if self.start > from { self.start } else { from };
        let end = if self.end < to { self.end } else { to };
        let both = end.saturating_sub(start);
        let stolen = self.detail as u64;
        match self.cause {
            InterruptionCause::Hypervisor if stolen < both => stolen,
            _ => both,
        }
    }

    /// What tells it from others of its cause: the number of the system call, interrupt or softirq, the exit of KVM, and whether
    /// a stopped thread's control group was frozen. 0 for other causes, also where `detail` is a time.
    #[must_use]
    pub const fn which(&self) -> u32 {
        match self.cause {
            InterruptionCause::Stopped
            | InterruptionCause::Blocked
            | InterruptionCause::Interrupt
            | InterruptionCause::Softirq
            | InterruptionCause::KvmExit => self.detail,
            InterruptionCause::Preempted
            | InterruptionCause::Throttled
            | InterruptionCause::PageFault
            | InterruptionCause::Hypervisor
            | InterruptionCause::Printk => 0,
        }
    }

    /// The number of its kind in the file.
    pub(crate) const KIND: u8 = 7;

    pub(crate) fn to_words(self) -> [u64; WORDS] {
        let Self { subject, culprit, .. } = self;
        let half = |at: usize| {
            let bytes = culprit.command[at..at + 8].try_into().expect("eight bytes");
            u64::from_le_bytes(bytes)
        };
        let (whose, worker) = match subject {
            Subject::Worker(number) => (0, number),
            Subject::FrontEnd => (1, 0),
            Subject::FarEnd => (2, 0),
        };
        [
            self.start,
            self.end,
            half(0),
            half(8),
            u64::from(culprit.process) | u64::from(culprit.thread) << 32,
            u64::from(self.thread) | u64::from(self.detail) << 32,
            u64::from(worker)
                | u64::from(self.cpu) << 32
                | u64::from(culprit.policy) << 48
                | u64::from(culprit.priority) << 56,
            u64::from(Self::KIND)
                | whose << 8
                | (self.cause as u64) << 16
                | u64::from(self.writer) << 24,
        ]
    }

    /// The interruption that `words` hold; `None` when this version does not know its cause or whose it is.
    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of packed words")]
    pub(crate) fn from_words(words: &[u64; WORDS]) -> Option<Self> {
        let mut command = [0; 16];
        command[..8].copy_from_slice(&words[2].to_le_bytes());
        command[8..].copy_from_slice(&words[3].to_le_bytes());
        let subject = match (words[7] >> 8) as u8 {
            0 => Subject::Worker(words[6] as u32),
            1 => Subject::FrontEnd,
            2 => Subject::FarEnd,
            _ => return None,
        };
        Some(Self {
            start: words[0],
            end: words[1],
            subject,
            thread: words[5] as u32,
            cause: InterruptionCause::from_number((words[7] >> 16) as u8)?,
            culprit: Culprit {
                process: words[4] as u32,
                thread: (words[4] >> 32) as u32,
                command,
                policy: (words[6] >> 48) as u8,
                priority: (words[6] >> 56) as u8,
            },
            detail: (words[5] >> 32) as u32,
            cpu: (words[6] >> 32) as u16,
            writer: (words[7] >> 24) as u8,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stolen(start: u64, end: u64, detail: u32) -> Interruption {
        Interruption {
            start,
            end,
            subject: Subject::Worker(0),
            thread: 0,
            cause: InterruptionCause::Hypervisor,
            culprit: Culprit::default(),
            detail,
            cpu: 0,
            writer: 1,
        }
    }

    #[test]
    fn stolen_time_is_no_longer_than_the_kernel_accounts_and_no_longer_than_asked() {
        let interruption = stolen(100, 200, 30);
        assert_eq!(interruption.total(), 30);
        assert_eq!(interruption.within(150, 160), 10);
        assert_eq!(interruption.within(0, 90), 0);
        let preempted = Interruption { cause: InterruptionCause::Preempted, ..interruption };
        assert_eq!((preempted.total(), preempted.within(150, 300)), (100, 50));
    }

    #[test]
    fn an_exit_is_read_from_its_detail() {
        let exit = |isa, reason| KvmExit { isa, reason };
        for (detail, expected) in [
            (0x0100_0030, exit(Some(KvmIsa::Vmx), 48)),
            (0x0180_0021, exit(Some(KvmIsa::Vmx), 0x8000_0021)),
            (0x0200_0400, exit(Some(KvmIsa::Svm), 0x400)),
            (0x0280_0004, exit(Some(KvmIsa::Svm), 0x8000_0004)),
            (0x02ff_ffff, exit(Some(KvmIsa::Svm), u32::MAX)),
            (0x0700_0001, exit(None, 1)),
            (0, exit(None, 0)),
        ] {
            assert_eq!(KvmExit::from_detail(detail), expected, "{detail:#x}");
        }
    }

    #[test]
    fn a_culprit_is_named_with_its_class_and_without_control_characters() {
        let mut command = [0; 16];
        command[..4].copy_from_slice(b"h\x1bog");
        let culprit = Culprit { command, policy: 1, priority: 50, ..Culprit::default() };
        assert_eq!((culprit.name().as_str(), culprit.class().as_str()), ("h?og", "fifo 50"));
        let nice = Culprit { policy: 0, priority: 15, ..culprit };
        assert_eq!(nice.class(), "other, nice -5");
        assert_eq!(Culprit { command: [b'x'; 16], ..culprit }.name(), "x".repeat(16));
    }
}
