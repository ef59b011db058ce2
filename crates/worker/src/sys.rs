//! The system calls of the worker.
#![allow(
    unsafe_code,
    reason = "scheduling, signals and timers have no safe form, and neither has ownership of the epoll descriptor"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use crate::scheduling::Scheduling;

/// A new epoll instance, closed when dropped.
pub fn new_epoll() -> io::Result<OwnedFd> {
    let fd = epoll::create(true)?;
    // SAFETY: the descriptor is new, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Applies `scheduling` to the calling thread.
pub fn schedule(scheduling: Scheduling) -> io::Result<()> {
    if let Some(cpu) = scheduling.cpu {
        // SAFETY: an all-zero cpu_set_t is a valid, empty set. CPU_SET checks its index when it indexes the set's
        // words, and `assemble` only passes CPUs below CPU_SETSIZE. The set outlives the call.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            check(libc::sched_setaffinity(0, size_of_val(&set), &raw const set))?;
        }
    }
    if let Some(priority) = scheduling.fifo {
        let parameters = libc::sched_param { sched_priority: priority.into() };
        // SAFETY: the structure has plain numbers and outlives the call.
        check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) })?;
    }
    Ok(())
}

/// Sets `O_NONBLOCK`, which the front end may have cleared.
pub fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    let fd = fd.as_raw_fd();
    // SAFETY: the calls take plain numbers, and the kernel checks the descriptor.
    unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        check(flags)?;
        if flags & libc::O_NONBLOCK != 0 {
            return Ok(());
        }
        check(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK))
    }
}

/// The signal that interrupts system calls. It is not among the first real-time signals: the C library, debuggers and
/// runtimes use those.
fn interruption() -> i32 {
    libc::SIGRTMIN() + 7
}

/// Lets [`interrupt`] and [`SignalTimer`] interrupt the calling thread.
pub fn accept_interruptions() -> io::Result<()> {
    static INSTALLED: OnceLock<i32> = OnceLock::new();
    extern "C" fn nothing(_: i32) {}
    let installed = INSTALLED.get_or_init(|| {
        // SAFETY: an all-zero sigaction is valid: no flags, so no SA_RESTART, and an empty mask. The handler does
        // nothing, so it is safe wherever it interrupts.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
            libc::sigaction(interruption(), &raw const action, std::ptr::null_mut())
        }
    });
    if *installed < 0 {
        return Err(io::Error::other("no handler for the signal that interrupts workers"));
    }
    // SAFETY: the set is initialised by sigemptyset before it is used, and outlives the calls.
    let error = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, interruption());
        // The parent process may have blocked it.
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut())
    };
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// Interrupts the system call in which the thread `tid` of this process blocks, if the thread
/// [accepts that](accept_interruptions).
pub fn interrupt(tid: i32) {
    // SAFETY: the call takes plain numbers. A thread that has ended is not found. Another thread of this process that
    // got its number runs a handler that does nothing: the handler is installed before any number is handed out.
    unsafe {
        libc::tgkill(libc::getpid(), tid, interruption());
    }
}

/// A timer that interrupts its thread periodically (`timer_create(2)`, `SIGEV_THREAD_ID`).
#[derive(Debug)]
pub struct SignalTimer(i32);

/// `struct sigevent` of the kernel (include/uapi/asm-generic/siginfo.h): 64 bytes.
#[repr(C)]
struct SignalEvent {
    value: u64,
    signal: i32,
    notify: i32,
    thread: i32,
    rest: [i32; 11],
}

impl SignalTimer {
    /// A timer for the calling thread. It is off at first.
    pub fn new() -> io::Result<Self> {
        let event = SignalEvent {
            value: 0,
            signal: interruption(),
            notify: libc::SIGEV_THREAD_ID,
            thread: rustix::thread::gettid().as_raw_nonzero().get(),
            rest: [0; 11],
        };
        let mut id = 0_i32;
        // SAFETY: `event` has the kernel's layout; it and `id` outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_timer_create,
                libc::CLOCK_MONOTONIC,
                &raw const event,
                &raw mut id,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(id)) }
    }

    /// Interrupts every `period`, which is below 1 s; zero switches the timer off.
    pub fn set(&self, period: Duration) {
        let period = libc::timespec { tv_sec: 0, tv_nsec: period.subsec_nanos().into() };
        let times = libc::itimerspec { it_interval: period, it_value: period };
        // SAFETY: the kernel reads `times`, which outlives the call; the timer is ours.
        unsafe {
            libc::syscall(
                libc::SYS_timer_settime,
                self.0,
                0,
                &raw const times,
                std::ptr::null_mut::<libc::itimerspec>(),
            );
        }
    }
}

impl Drop for SignalTimer {
    fn drop(&mut self) {
        // SAFETY: the timer is ours and is not used again.
        unsafe {
            libc::syscall(libc::SYS_timer_delete, self.0);
        }
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
