//! The handler of SIGBUS.
//!
//! It runs on the thread that accessed the missing page, at any instruction. So it takes no lock and allocates nothing. It
//! makes only calls that `signal-safety(7)` allows, and `mmap(2)`, which is a plain system call.
#![allow(unsafe_code, reason = "a signal handler, and mmap at a fixed address")]

use std::io;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::table::{self, Registered};

/// Most bytes replaced for one signal, up to the next multiple of this size. Page by page there would be a signal for
/// every 4 KiB; to replace a whole mapping of many GiB at once takes the kernel too long.
const HOLE_MAX: usize = 2 << 20;

/// The action before ours: the standard library's handler reports stack overflows.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
/// Page size in bytes.
static PAGE: AtomicUsize = AtomicUsize::new(4096);

/// The result of the installation, with the error number if it failed.
static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();

/// Installs the handler, once.
///
/// # Errors
/// The error of `sigaction(2)`.
pub fn install() -> io::Result<()> {
    let errno = |error: io::Error| error.raw_os_error().unwrap_or(libc::EINVAL);
    let installed = INSTALLED.get_or_init(|| install_now().map_err(errno));
    installed.map_err(io::Error::from_raw_os_error)
}

fn install_now() -> io::Result<()> {
    // SAFETY: the call only returns a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    PAGE.store(usize::try_from(page).unwrap_or(4096), Ordering::Relaxed);
    // SAFETY: an all-zero sigaction is valid: no flags, an empty mask, the default action.
    let (mut previous, mut action): (libc::sigaction, libc::sigaction) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    // SAFETY: the pointer is to a structure that outlives the call, and the action is not changed.
    if unsafe { libc::sigaction(libc::SIGBUS, null(), &raw mut previous) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_missing_page;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    let _ = PREVIOUS.set(previous);
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and does only what a handler may.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_missing_page(
    _signal: i32,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the pointer is valid: errno belongs to this thread.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel passes a valid siginfo, which has an address for the codes below.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // The file has no such page, or its memory is faulty. Any other cause, such as a signal sent by a process, is not
    // ours to handle.
    let is_missing = matches!(code, libc::BUS_ADRERR | libc::BUS_MCEERR_AR);
    if !(is_missing && table::mend_at(address, |it| fill(it, address))) {
        pass_on(code);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Replaces the missing page, and those that follow it, with zeroes. Returns whether that worked.
fn fill(it: Registered, address: usize) -> bool {
    let page = PAGE.load(Ordering::Relaxed);
    let end = (it.start + it.len).next_multiple_of(page);
    let from = address - address % page;
    let until = (from + 1).next_multiple_of(HOLE_MAX).min(end);
    // Huge pages can only be replaced whole. If the first call fails, the whole mapping is replaced: it has few pages.
    map_zeroes(from, until, it.protection) || map_zeroes(it.start, end, it.protection)
}

fn map_zeroes(from: usize, until: usize, protection: i32) -> bool {
    // SAFETY: the range lies in a mapping whose owner registered it for this (`Guard::new`). The mapping stays while
    // its guard lives, and the guard lives: this thread is accessing the mapping. References into it are to atomics
    // only, for which zeroes are valid.
    let mapped = unsafe {
        libc::mmap(
            std::ptr::with_exposed_provenance_mut(from),
            until - from,
            protection,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}

/// Restores the previous action, so that the process ends as it would without this handler.
fn pass_on(code: i32) {
    let is_sent = code <= 0;
    let previous = PREVIOUS.get().filter(|_| !is_sent);
    // SAFETY: an all-zero sigaction is the default action, and the pointers are to structures that outlive the call.
    // The instruction that accessed the page runs again when the handler returns. A signal that was sent is raised
    // again, and is delivered after the handler returns.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        let action = previous.unwrap_or(&default);
        libc::sigaction(libc::SIGBUS, &raw const *action, null_mut());
        if is_sent {
            libc::raise(libc::SIGBUS);
        }
    }
}
