//! Each kind of thread tries what an attacker would try. It ends the process, with a message that names thread and call.
//!
//! Nothing that a thread has given up can be taken back, so this test program starts itself for each kind of thread and each try.
#![allow(unsafe_code, reason = "calls that no library makes so")]

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Output, exit};

use crate::filter::Seccomp;
use crate::names::name_of;
use crate::policy::{Policy, enter, start};
use crate::role::{Role, Wire};

/// A call with its first four arguments.
type Try = (libc::c_long, [libc::c_long; 4]);

const BPF_PROG_LOAD: libc::c_long = 5;
const PERF_EVENT_IOC_DISABLE: libc::c_long = 0x2401;
const CREATE: libc::c_long = (libc::O_CREAT | libc::O_WRONLY) as libc::c_long;
const ANONYMOUS: libc::c_long = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as libc::c_long;
const EXECUTABLE: libc::c_long = (libc::PROT_READ | libc::PROT_EXEC) as libc::c_long;

/// What a guest that has taken a thread over might try.
const TRIES: [Try; 18] = [
    (libc::SYS_openat, [libc::AT_FDCWD as libc::c_long, 0, 0, 0]),
    (libc::SYS_openat, [libc::AT_FDCWD as libc::c_long, 0, CREATE, 0o600]),
    (libc::SYS_socket, [libc::AF_UNIX as libc::c_long, libc::SOCK_STREAM as libc::c_long, 0, 0]),
    (libc::SYS_socket, [libc::AF_INET6 as libc::c_long, libc::SOCK_STREAM as libc::c_long, 0, 0]),
    (libc::SYS_execve, [0; 4]),
    (libc::SYS_clone, [libc::SIGCHLD as libc::c_long, 0, 0, 0]),
    (libc::SYS_ptrace, [0; 4]),
    (libc::SYS_bpf, [BPF_PROG_LOAD, 0, 0, 0]),
    (libc::SYS_mount, [0; 4]),
    (libc::SYS_mmap, [0, 4096, EXECUTABLE, ANONYMOUS]),
    (libc::SYS_setuid, [0; 4]),
    (libc::SYS_unshare, [0; 4]),
    (libc::SYS_process_vm_writev, [1, 0, 0, 0]),
    (libc::SYS_io_uring_setup, [1, 0, 0, 0]),
    (libc::SYS_tgkill, [1, 1, 0, 0]),
    (libc::SYS_unlinkat, [libc::AT_FDCWD as libc::c_long, 0, 0, 0]),
    (libc::SYS_ioctl, [-1, PERF_EVENT_IOC_DISABLE, 0, 0]),
    (libc::SYS_ioctl, [-1, libc::TIOCSTI as libc::c_long, 0, 0]),
];

/// Whether this kind of thread makes this call.
fn needs(role: Role, attempt: usize) -> bool {
    use Role::*;
    match attempt {
        0 => !matches!(role, Worker(_) | Link { .. } | Capture | Records | Manager),
        2 => matches!(role, Control | TapAgain | Interface | Link { .. }),
        7 => role == Interface,
        15 => matches!(role, Main | Control | TakeOver),
        // Of kernels with kprobes, which this one may not be.
        16 => role == KernelStages || has_messages(role),
        17 => has_messages(role),
        _ => false,
    }
}

/// Whether this kind of thread has sockets, whose framework makes ioctls.
fn has_messages(role: Role) -> bool {
    use Role::*;
    !matches!(role, Worker(_) | Capture | KernelStages | Records | Manager | Reload)
}

fn roles() -> Vec<Role> {
    // Helpers execute programs, and have no filter.
    Role::all().into_iter().filter(|role| *role != Role::Helper).collect()
}

/// Not a test by itself: makes one try.
#[test]
fn one() {
    let Ok(which) = std::env::var("CONFINE_TRY") else { return };
    let numbers: Vec<usize> = which.split(' ').filter_map(|text| text.parse().ok()).collect();
    let [role, attempt, is_logged] = numbers[..] else { panic!("{which}") };
    let seccomp = if is_logged == 1 { Seccomp::Log } else { Seccomp::Kill };
    start(Policy { seccomp, ..Policy::default() }).unwrap();
    enter(roles()[role]);
    let (call, [a, b, c, d]) = TRIES[attempt];
    // SAFETY: none of these calls succeeds with these arguments in a way that changes this process's memory.
    unsafe { libc::syscall(call, a, b, c, d, -1_isize, 0_isize) };
    exit(0);
}

fn run(role: usize, attempt: usize, is_logged: bool) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "tries::one", "--nocapture"]);
    let which = format!("{role} {attempt} {}", u8::from(is_logged));
    command.env("CONFINE_TRY", which).output().unwrap()
}

#[test]
fn each_try_of_each_kind_of_thread_ends_the_process_and_is_named() {
    for (number, role) in roles().into_iter().enumerate() {
        for (attempt, (call, _)) in TRIES.iter().enumerate() {
            let Output { status, stderr, .. } = run(number, attempt, false);
            let (name, text) = (name_of(*call).unwrap(), String::from_utf8_lossy(&stderr));
            if needs(role, attempt) {
                assert_eq!(status.code(), Some(0), "{role}, {name}: {text}");
            } else {
                assert_eq!(status.signal(), Some(libc::SIGSYS), "{role}, {name}: {text}");
                let expected = format!("the thread '{role}' made the system call {name} (");
                assert!(text.contains(&expected), "{role}, {name}: {text}");
            }
        }
    }
}

#[test]
fn with_log_the_call_is_made() {
    let worker = roles().iter().position(|role| *role == Role::Worker(Wire::Tap)).unwrap();
    let Output { status, stderr, .. } = run(worker, 0, true);
    assert_eq!(status.code(), Some(0), "{}", String::from_utf8_lossy(&stderr));
}
