//! The end of a process whose thread made a call that its filter does not allow.
//!
//! The filter answers with SIGSYS. The handler says which thread called what, and ends the process with the same signal, as the
//! kernel would. Whatever an attacker does to the handler, the call itself is never made: if SIGSYS is blocked or ignored, the
//! kernel ends the process itself (`force_sig_info`).
#![allow(unsafe_code, reason = "a signal handler")]

use std::cell::Cell;
use std::io;
use std::ptr::null_mut;

use crate::names::name_of;
use crate::role::Role;

thread_local! {
    /// The role of the calling thread. Constant and without a destructor, so that a handler may read it.
    static ROLE: Cell<Option<Role>> = const { Cell::new(None) };
}

/// From now on the calling thread is called `role` in messages.
pub fn note(role: Role) {
    ROLE.set(Some(role));
}

/// The parts of `siginfo_t` for SIGSYS (`include/uapi/asm-generic/siginfo.h`), on 64-bit architectures.
#[repr(C)]
struct SigSys {
    signal: i32,
    errno: i32,
    code: i32,
    padding: i32,
    call_address: usize,
    call: i32,
    architecture: u32,
}

/// Installs the handler.
pub fn install() -> io::Result<()> {
    let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_forbidden_call;
    // SAFETY: an all-zero sigaction is valid: no flags, an empty mask. The handler has the signature that SA_SIGINFO asks for,
    // and does only what a handler may.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND;
        libc::sigaction(libc::SIGSYS, &raw const action, null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A message that is put together without an allocation.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Line {
    fn push(&mut self, text: &str) {
        for byte in text.bytes() {
            if let Some(slot) = self.bytes.get_mut(self.len) {
                *slot = byte;
                self.len += 1;
            }
        }
    }

    fn push_number(&mut self, number: u32) {
        let mut digits = [0; 10];
        let (mut at, mut rest) = (digits.len(), number);
        loop {
            at -= 1;
            digits[at] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.push(std::str::from_utf8(&digits[at..]).unwrap_or("?"));
    }
}

/// The message about a call.
fn message(role: Option<Role>, call: i32) -> Line {
    let mut line = Line { bytes: [0; 256], len: 0 };
    line.push("ringscoped: the thread '");
    line.push(role.map_or("unknown", Role::name));
    line.push("' made the system call ");
    line.push(name_of(call.into()).unwrap_or("of number"));
    line.push(" (");
    line.push_number(call.unsigned_abs());
    line.push("), which it may not, so the daemon ends: its guest may have taken it over; if not, please report this, and use --seccomp log until then\n");
    line
}

extern "C" fn on_forbidden_call(
    _signal: i32,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid siginfo, which has these parts for SIGSYS from a filter.
    let call = unsafe { (*info.cast::<SigSys>()).call };
    let line = message(ROLE.get(), call);
    // SAFETY: the pointer is to the line, which outlives the call. The call with the number -1 is in no filter: the signal is
    // blocked while this handler runs, so the kernel ends the process now. Where there is no filter, it does nothing, and the
    // signal is raised instead.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len);
        libc::syscall(-1);
        libc::raise(libc::SIGSYS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::Wire;

    #[test]
    fn the_message_names_the_thread_and_the_call() {
        let text = |role, call| {
            let line = message(role, call);
            String::from_utf8(line.bytes[..line.len].to_vec()).unwrap()
        };
        let call = i32::try_from(libc::SYS_execve).unwrap();
        let known = text(Some(Role::Worker(Wire::Tap)), call);
        let expected =
            format!("the thread 'worker of a tap' made the system call execve ({call}), which");
        assert!(known.contains(&expected), "{known}");
        assert!(known.ends_with("until then\n"), "{known}");
        assert!(
            text(None, 4_000_000).contains("'unknown' made the system call of number (4000000)")
        );
        assert_eq!(size_of::<SigSys>(), 32);
    }
}
