//! What the operator asked for, for the whole process.

use std::io;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::capabilities::{drop_all_but, supported};
use crate::files::{self, Places};
use crate::filter::{self, FilterError, Seccomp};
use crate::namespaces;
use crate::role::Role;
use crate::violation;

/// How much the threads of this process give up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// What happens when a thread makes a system call that its role does not need.
    pub seccomp: Seccomp,
    /// The daemon's directories. They must exist when a thread enters its role.
    pub places: Places,
}

/// Why a thread cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its capabilities stay.
    #[error("its capabilities cannot be given up: {0}")]
    Capabilities(String),
    /// Namespaces.
    #[error("it cannot join namespaces that are empty: {0}")]
    Namespaces(io::Error),
    /// Files.
    #[error("what it may do with files cannot be restricted: {0}")]
    Files(#[from] landlock::RulesetError),
    /// Its system calls.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// It may still gain privileges.
    #[error("no_new_privs cannot be set: {0}")]
    Privileges(io::Error),
}

impl Error {
    /// Whether the process, or the host, has no descriptor left.
    fn is_shortage(&self) -> bool {
        let is_it = |error: &(dyn std::error::Error + 'static)| {
            let number = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
            number.is_some_and(|number| [libc::EMFILE, libc::ENFILE].contains(&number))
        };
        std::iter::successors(std::error::Error::source(self), |error| error.source()).any(is_it)
    }
}

/// Time that a thread waits for a descriptor.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time between two tries.
const PAUSE: Duration = Duration::from_millis(10);

static POLICY: OnceLock<Policy> = OnceLock::new();

/// From now on each thread that [enters](enter) its role is confined. Only the first call counts.
///
/// # Errors
/// When this kernel or this architecture has no filters of system calls. Better now than when a guest is being served.
pub fn start(policy: Policy) -> Result<(), Error> {
    for role in Role::all() {
        filter::programs(role, policy.seccomp)?;
    }
    if policy.seccomp != Seccomp::Off {
        violation::install().map_err(|error| FilterError::of(&error))?;
        do_what_libraries_do_once();
        panic_without_backtrace();
    }
    // It is in a file, which there is in no empty namespace.
    let _ = supported();
    namespaces::prepare();
    let _ = POLICY.set(policy);
    Ok(())
}

/// Libraries make some calls once and remember the answers. They are made now, because a worker may not make them:
///
/// - glibc opens a file of `/proc` the first time that it gives memory of a thread back to the kernel (`check_may_shrink_heap`).
/// - rustix asks for the auxiliary vector (`PR_GET_AUXV`), where the vDSO is.
fn do_what_libraries_do_once() {
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let _ = rustix::param::page_size();
    // More than a thread keeps (`M_TRIM_THRESHOLD` and `M_TOP_PAD`, 128 KiB each), in pieces below `M_MMAP_THRESHOLD`. Nothing is
    // written to it: that would take the kernel milliseconds.
    let give_back = || {
        let all: Vec<Vec<u8>> = (0..8).map(|_| Vec::with_capacity(64 << 10)).collect();
        drop(std::hint::black_box(all));
    };
    let _ = std::thread::spawn(give_back).join();
}

/// A backtrace opens the executable, which most threads may not.
fn panic_without_backtrace() {
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        eprintln!(
            "thread '{name}' {info}\nnote: run with --seccomp off and RUST_BACKTRACE=1 to see a backtrace"
        );
    }));
}

/// Gives up what the calling thread does not need in `role`. If that fails, the process ends: it must not serve a guest with
/// more privileges than the operator knows of.
pub fn enter(role: Role) {
    let Some(policy) = POLICY.get() else { return };
    let until = Instant::now() + PATIENCE;
    // Once, because the capability for it is given up next.
    if let Err(error) = namespaces::enter(role) {
        give_up(role, &Error::Namespaces(error));
    }
    while let Err(error) = confine(policy, role) {
        // Front ends may have used up the descriptors. Until there is one, the thread does nothing.
        if error.is_shortage() && Instant::now() < until {
            sleep(PAUSE);
            continue;
        }
        give_up(role, &error);
    }
}

fn give_up(role: Role, error: &Error) -> ! {
    log::error!(
        "the thread '{role}' cannot be confined, so the daemon ends: {error}; --sandbox none runs without"
    );
    std::process::exit(1);
}

/// As [`enter`], for a thread whose parent has entered a role. Without a free descriptor it keeps what its parent has kept: it
/// may be the one that gives descriptors back.
pub fn narrow(role: Role) {
    let Some(policy) = POLICY.get() else { return };
    match confine(policy, role) {
        Err(error) if error.is_shortage() => {
            log::debug!("the thread '{role}' keeps what its parent has: {error}");
        }
        Err(_) => enter(role),
        Ok(()) => {}
    }
}

fn confine(policy: &Policy, role: Role) -> Result<(), Error> {
    violation::note(role);
    drop_all_but(role).map_err(|error| Error::Capabilities(error.to_string()))?;
    rustix::thread::set_no_new_privs(true).map_err(|error| Error::Privileges(error.into()))?;
    files::enter(role, &policy.places)?;
    Ok(filter::enter(role, policy.seccomp)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use caps::CapSet;

    /// The kernel keeps all of this for each thread, so a thread of a test can try it.
    #[test]
    fn a_thread_is_left_with_what_its_role_keeps() {
        for role in Role::all() {
            let before = caps::read(None, CapSet::Permitted).unwrap();
            let left = std::thread::spawn(move || {
                confine(&Policy { seccomp: Seccomp::Off, ..Policy::default() }, role).unwrap();
                let sets = [CapSet::Permitted, CapSet::Effective, CapSet::Bounding];
                (
                    sets.map(|set| caps::read(None, set).unwrap()),
                    rustix::thread::no_new_privs().unwrap(),
                )
            });
            let ([permitted, effective, bounding], no_new_privs) = left.join().unwrap();
            let kept = role.keeps().iter().map(|(capability, _)| *capability);
            let kept: caps::CapsHashSet = kept.filter(|it| before.contains(it)).collect();
            assert_eq!((&permitted, &effective), (&kept, &kept), "{role}");
            assert!(bounding == kept || before.is_empty(), "{role}: {bounding:?}");
            assert!(no_new_privs, "{role}");
        }
        assert!(!rustix::thread::no_new_privs().unwrap());
    }
}
