//! The system calls of each kind of thread. Everything else ends the process (`--seccomp kill`).
//!
//! What is here was found by tracing every end-to-end test, and by reading what each thread does. A call that looks unusual for
//! its thread has its reason beside it. Both C libraries are thought of: glibc and musl differ in the calls behind `malloc`,
//! `pthread_create` and `clock_gettime`.
//!
//! A plain call is allowed whatever its arguments are; the kernel then remembers that, and runs no filter for it (from Linux 5.11
//! on: `seccomp_cache_prepare`). So only calls that are rare on the datapath have conditions.

use crate::role::{Role, Wire};

/// What an argument must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// This number.
    Is(u64),
    /// None of these bits.
    Without(u64),
    /// All of these bits.
    With(u64),
    /// The number of this process.
    Own,
}

/// A call that is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number.
    pub number: libc::c_long,
    /// Which argument, counted from 0, and what it must be: one of these is enough. Nothing: any arguments.
    pub tests: &'static [(u8, Test)],
}

macro_rules! calls {
    ($($call:ident),* $(,)?) => { &[$(Call { number: libc::$call, tests: &[] }),*] };
}

/// Calls that newer architectures do not have; there the C libraries make others, which are listed, too.
macro_rules! old_calls {
    ($($call:ident),* $(,)?) => {{
        #[cfg(target_arch = "x86_64")]
        const OLD: &[Call] = calls![$($call),*];
        #[cfg(not(target_arch = "x86_64"))]
        const OLD: &[Call] = &[];
        OLD
    }};
}

const fn only(number: libc::c_long, tests: &'static [(u8, Test)]) -> Call {
    Call { number, tests }
}

#[expect(clippy::cast_sign_loss, reason = "flags of C")]
const fn bits(flags: i32) -> u64 {
    flags as u32 as u64
}

/// Calls of one kind.
type Group = &'static [Call];

/// Memory, locks, time and logging, of which no thread can do without.
#[rustfmt::skip]
const EVERY: Group = calls![
    SYS_brk, SYS_munmap, SYS_mremap, SYS_madvise,
    SYS_futex, SYS_sched_yield, SYS_membarrier, SYS_rseq, SYS_set_robust_list, SYS_restart_syscall,
    SYS_read, SYS_write, SYS_close, SYS_fcntl, SYS_ppoll,
    SYS_clock_gettime, SYS_clock_getres, SYS_clock_nanosleep, SYS_nanosleep, SYS_getrandom, SYS_gettid, SYS_getpid,
    // A thread's stack is measured at its beginning (`pthread_getattr_np` of glibc). At its end it is given back.
    SYS_sched_getaffinity, SYS_sigaltstack, SYS_exit, SYS_exit_group,
    // Handlers: SIGTERM may come on any thread, whose handler then sends one byte; SIGBUS puts the action before back.
    SYS_rt_sigreturn, SYS_rt_sigprocmask, SYS_rt_sigaction, SYS_sendto,
];

const EVERY_WITH_CONDITIONS: Group = &[
    // Nothing that was written is ever executed.
    only(libc::SYS_mmap, &[(2, Test::Without(bits(libc::PROT_EXEC)))]),
    only(libc::SYS_mprotect, &[(2, Test::Without(bits(libc::PROT_EXEC)))]),
    // A worker is interrupted; `abort` signals itself.
    only(libc::SYS_tgkill, &[(0, Test::Own)]),
];

const EVERY_OLD: Group = old_calls![SYS_poll];

/// A worker's sleep: epoll, and timers.
#[rustfmt::skip]
const SLEEP: Group = calls![
    SYS_epoll_pwait, SYS_epoll_ctl, SYS_timerfd_settime,
    // The alarm that ends a write that blocks (`worker/src/alarm.rs`).
    SYS_timer_settime, SYS_timer_delete,
];
const SLEEP_OLD: Group = old_calls![SYS_epoll_wait];

/// A tap's frames, and its settings, which a guest may change.
const TAP: Group = calls![SYS_readv, SYS_writev];
const TAP_SETTINGS: Group = &[only(
    libc::SYS_ioctl,
    &[
        (1, Test::Is(0x4004_54d8)), // TUNSETVNETHDRSZ
        (1, Test::Is(0x4004_54d0)), // TUNSETOFFLOAD
        (1, Test::Is(0x4004_54d9)), // TUNSETQUEUE
    ],
)];

/// The ring takes nothing but reads and writes (`datapath/src/tap/uring.rs`).
const URING: Group = calls![SYS_io_uring_enter];

/// The sockets are kicked, asked for their losses, and put into the program's map or taken out of it ([`BPF_MAPS`]).
const AF_XDP: Group = calls![SYS_recvfrom, SYS_getsockopt];
const BPF_MAPS: Group = &[only(
    libc::SYS_bpf,
    &[
        (0, Test::Is(1)), // BPF_MAP_LOOKUP_ELEM
        (0, Test::Is(2)), // BPF_MAP_UPDATE_ELEM
        (0, Test::Is(3)), // BPF_MAP_DELETE_ELEM
    ],
)];

/// What BPF programs have measured comes by a ring buffer, and libbpf asks what kind of map that is.
const RING_BUFFER: Group = &[only(
    libc::SYS_bpf,
    &[
        (0, Test::Is(1)),  // BPF_MAP_LOOKUP_ELEM
        (0, Test::Is(15)), // BPF_OBJ_GET_INFO_BY_FD
    ],
)];

/// Programs on kprobes, uprobes and, where the kernel has no other way, tracepoints are switched off before they are closed
/// (`bpf_link_perf_detach` of libbpf).
const DETACH: Group = &[only(libc::SYS_ioctl, &[(1, Test::Is(0x2401))])]; // PERF_EVENT_IOC_DISABLE

/// New memory of the guest needs a new socket, because a socket keeps its first one.
const AF_XDP_OPEN: Group = calls![SYS_bind, SYS_setsockopt];
const AF_XDP_SOCKET: Group = &[only(libc::SYS_socket, &[(0, Test::Is(bits(libc::AF_XDP)))])];

/// Descriptors come and go with messages.
#[rustfmt::skip]
const MESSAGES: Group = calls![
    SYS_recvmsg, SYS_sendmsg, SYS_recvfrom, SYS_getsockopt, SYS_setsockopt, SYS_shutdown, SYS_accept4,
    SYS_getsockname, SYS_getpeername, SYS_socketpair, SYS_pipe2, SYS_dup, SYS_eventfd2,
    SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_timerfd_create, SYS_timerfd_settime, SYS_ioctl,
];
const MESSAGES_OLD: Group = old_calls![SYS_epoll_wait];

/// Sockets of this host's processes only.
const UNIX_SOCKETS: Group = &[only(libc::SYS_socket, &[(0, Test::Is(bits(libc::AF_UNIX)))])];
const CONNECT: Group = calls![SYS_bind, SYS_listen, SYS_connect];

/// The kernel's reports on interfaces.
const NETLINK: Group = &[only(
    libc::SYS_socket,
    &[(0, Test::Is(bits(libc::AF_NETLINK))), (0, Test::Is(bits(libc::AF_UNIX)))],
)];

/// How exactly the clock is known, which is noted when a front end comes or leaves. Only CAP_SYS_TIME changes it.
const CLOCK_ERROR: Group = calls![SYS_clock_adjtime, SYS_adjtimex];

/// What files are: a front end's, in `/proc`, and in `/sys`.
#[rustfmt::skip]
const LOOK: Group = calls![
    SYS_statx, SYS_fstat, SYS_newfstatat, SYS_fstatfs, SYS_readlinkat, SYS_faccessat, SYS_faccessat2, SYS_lseek, SYS_pread64,
    SYS_getdents64, SYS_geteuid, SYS_getuid,
];
const LOOK_OLD: Group = old_calls![SYS_readlink, SYS_access, SYS_stat, SYS_lstat];
const READ_FILES: Group = &[
    only(
        libc::SYS_openat,
        &[(2, Test::Without(bits(libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC)))],
    ),
    #[cfg(target_arch = "x86_64")]
    only(
        libc::SYS_open,
        &[(1, Test::Without(bits(libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC)))],
    ),
];
/// Also the settings of an interface, which are put back; none is made.
const WRITE_FILES: Group = &[only(libc::SYS_openat, &[(2, Test::Without(bits(libc::O_CREAT)))])];

/// The daemon's own files are removed at the end.
const REMOVE_FILES: Group = calls![SYS_unlinkat, SYS_renameat2];
const REMOVE_FILES_OLD: Group = old_calls![SYS_unlink, SYS_rename];

/// Threads that are started later, and no processes. `clone3` is refused, because its flags are in memory that a filter cannot
/// see; the C library then calls `clone`.
const THREADS: Group = calls![SYS_clone3, SYS_set_tid_address];
const THREADS_ONLY: Group = &[only(libc::SYS_clone, &[(0, Test::With(bits(libc::CLONE_THREAD)))])];

/// What a thread that is started later needs to enter its own role: it only gives up more.
#[rustfmt::skip]
const ENTER: Group = calls![
    SYS_capget, SYS_capset, SYS_landlock_create_ruleset, SYS_landlock_add_rule, SYS_landlock_restrict_self, SYS_dup,
];
const ENTER_WITH_CONDITIONS: Group = &[
    only(libc::SYS_seccomp, &[(0, Test::Is(1))]), // SECCOMP_SET_MODE_FILTER
    only(
        libc::SYS_prctl,
        &[
            (0, Test::Is(bits(libc::PR_SET_NAME))),
            (0, Test::Is(bits(libc::PR_SET_NO_NEW_PRIVS))),
            (0, Test::Is(bits(libc::PR_CAPBSET_READ))),
            (0, Test::Is(bits(libc::PR_CAPBSET_DROP))),
            (0, Test::Is(bits(libc::PR_CAP_AMBIENT))),
        ],
    ),
];

/// The interface's program is loaded again, and libbpf looks at the kernel first. Memory that no capability limits is counted. The
/// frames of a new socket are in a file.
#[rustfmt::skip]
const LOAD: Group = calls![
    SYS_bpf, SYS_memfd_create, SYS_ftruncate, SYS_dup3, SYS_uname, SYS_prlimit64, SYS_sysinfo, SYS_bind, SYS_connect, SYS_io_uring_register,
];
const LOAD_SOCKETS: Group = &[only(
    libc::SYS_socket,
    &[
        (0, Test::Is(bits(libc::AF_XDP))),
        (0, Test::Is(bits(libc::AF_NETLINK))),
        (0, Test::Is(bits(libc::AF_UNIX))),
        // For its ioctls (`SIOCETHTOOL`).
        (0, Test::Is(bits(libc::AF_INET))),
    ],
)];

/// A capture that could not be written whole is cut after its last whole block.
const APPEND: Group = calls![SYS_writev, SYS_ftruncate, SYS_lseek, SYS_fstat, SYS_fdatasync];

/// A file gets more room. Where a file system has no `fallocate`, glibc writes in its place.
const GROW: Group =
    calls![SYS_fallocate, SYS_pwrite64, SYS_pread64, SYS_fstat, SYS_statx, SYS_fstatfs];

impl Role {
    /// The calls of its threads; `None` for those without a filter.
    #[rustfmt::skip]
    pub const fn calls(self) -> Option<&'static [Group]> {
        Some(match self {
            Self::Worker(Wire::Nothing) => {
                &[EVERY, EVERY_WITH_CONDITIONS, EVERY_OLD, SLEEP, SLEEP_OLD]
            }
            Self::Worker(Wire::Tap) => {
                &[EVERY, EVERY_WITH_CONDITIONS, EVERY_OLD, SLEEP, SLEEP_OLD, TAP, TAP_SETTINGS]
            }
            Self::Worker(Wire::Uring) => {
                &[EVERY, EVERY_WITH_CONDITIONS, EVERY_OLD, SLEEP, SLEEP_OLD, TAP, TAP_SETTINGS, URING]
            }
            Self::Worker(Wire::AfXdp) => {
                &[EVERY, EVERY_WITH_CONDITIONS, EVERY_OLD, SLEEP, SLEEP_OLD, AF_XDP, BPF_MAPS]
            }
            Self::Worker(Wire::AfXdpInPlace) => &[
                EVERY, EVERY_WITH_CONDITIONS, EVERY_OLD, SLEEP, SLEEP_OLD, AF_XDP, BPF_MAPS, AF_XDP_OPEN, AF_XDP_SOCKET,
            ],
            // The files of a front end are looked at, its kicks are new eventfds, its sockets are connected to (`--client`), and
            // memory files are made to learn how the kernel calls them. With kernel stages a front end is put into a map.
            Self::Control => &[
                EVERY, EVERY_WITH_CONDITIONS, EVERY_OLD, MESSAGES, MESSAGES_OLD, UNIX_SOCKETS, CONNECT, LOOK, LOOK_OLD,
                READ_FILES, REMOVE_FILES, REMOVE_FILES_OLD, THREADS, THREADS_ONLY, ENTER, ENTER_WITH_CONDITIONS, BPF_MAPS,
                // Its children are closers.
                SLEEP, CLOSE, CLOCK_ERROR, calls![SYS_memfd_create, SYS_writev],
            ],
            Self::Closer => &[
                EVERY, EVERY_WITH_CONDITIONS, EVERY_OLD, MESSAGES, MESSAGES_OLD, LOOK, LOOK_OLD, READ_FILES, SLEEP, CLOSE,
            ],
            Self::TakeOver => &[
                CLOCK_ERROR, EVERY, EVERY_WITH_CONDITIONS, EVERY_OLD, MESSAGES, MESSAGES_OLD, LOOK, LOOK_OLD, READ_FILES, REMOVE_FILES,
                REMOVE_FILES_OLD,
            ],
            // Clients come and go; it asks the workers through memory. Workers are put into the maps of programs that a client hands
            // over.
            Self::Operator => &[
                EVERY, EVERY_WITH_CONDITIONS, EVERY_OLD, MESSAGES, MESSAGES_OLD, LOOK, LOOK_OLD, READ_FILES, BPF_MAPS,
                RING_BUFFER,
            ],
            Self::Link { .. } => &[
                EVERY, EVERY_WITH_CONDITIONS, EVERY_OLD, MESSAGES, MESSAGES_OLD, NETLINK, CONNECT,
            ],
            // TUNSETIFF is among the ioctls. A claim is an abstract socket.
            Self::TapAgain => &[
                EVERY, EVERY_WITH_CONDITIONS, EVERY_OLD, MESSAGES, MESSAGES_OLD, UNIX_SOCKETS, CONNECT, LOOK, LOOK_OLD,
                READ_FILES,
            ],
            Self::Interface => &[
                EVERY, EVERY_WITH_CONDITIONS, EVERY_OLD, MESSAGES, MESSAGES_OLD, LOAD, LOAD_SOCKETS, LOOK, LOOK_OLD, WRITE_FILES,
            ],
            Self::Metrics => &[
                EVERY, EVERY_WITH_CONDITIONS, EVERY_OLD, MESSAGES, MESSAGES_OLD, LOOK, LOOK_OLD, READ_FILES, THREADS,
                THREADS_ONLY, ENTER, ENTER_WITH_CONDITIONS,
            ],
            Self::Capture => &[EVERY, EVERY_WITH_CONDITIONS, EVERY_OLD, APPEND],
            Self::KernelStages => &[
                EVERY, EVERY_WITH_CONDITIONS, EVERY_OLD, SLEEP, SLEEP_OLD, RING_BUFFER, DETACH, LOOK, LOOK_OLD,
                READ_FILES, calls![SYS_epoll_create1],
            ],
            // Its socket is open.
            Self::Manager => &[EVERY, EVERY_WITH_CONDITIONS, EVERY_OLD],
            // The signal comes by a socket.
            Self::Reload => &[
                EVERY, EVERY_WITH_CONDITIONS, EVERY_OLD, LOOK, LOOK_OLD, READ_FILES, calls![SYS_recvfrom],
            ],
            // Both files are open.
            Self::Records => &[EVERY, EVERY_WITH_CONDITIONS, EVERY_OLD, GROW],
            Self::Main => &[
                CLOCK_ERROR, EVERY, EVERY_WITH_CONDITIONS, EVERY_OLD, MESSAGES, MESSAGES_OLD, LOOK, LOOK_OLD, READ_FILES, REMOVE_FILES,
                REMOVE_FILES_OLD, SLEEP, BPF_MAPS,
            ],
            // They execute programs.
            Self::Helper => return None,
        })
    }

    /// Whether its threads start others.
    pub const fn starts_threads(self) -> bool {
        matches!(self, Self::Control | Self::Metrics)
    }
}

/// A closer's own alarm.
const CLOSE: Group = calls![SYS_timer_create];
