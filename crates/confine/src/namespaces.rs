//! Namespaces in which nothing is (`namespaces(7)`): no file, no interface, no object of System V IPC.
//!
//! They are made once, if this process has the capabilities for it, by a thread that ends then. Threads that need nothing of the host by a
//! name join them. What is open already goes on: a tap or a socket belongs to the network namespace in which it was made.

use std::fs::File;
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};

use caps::{CapSet, Capability};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{chdir, pivot_root};

use crate::role::{Role, Wire};

/// The namespaces.
#[derive(Debug)]
struct Empty {
    mount: File,
    net: File,
    ipc: File,
}

static MAKING: Mutex<Option<JoinHandle<io::Result<Empty>>>> = Mutex::new(None);
static EMPTY: OnceLock<Option<Empty>> = OnceLock::new();

/// What is needed to make them and to join them (`setns(2)`).
const NEEDED: [Capability; 2] = [Capability::CAP_SYS_ADMIN, Capability::CAP_SYS_CHROOT];

/// Begins to make them, which takes some milliseconds.
pub fn prepare() {
    let has = |needed| caps::has_cap(None, CapSet::Effective, needed).unwrap_or(false);
    if !NEEDED.into_iter().all(has) {
        return;
    }
    let making = Builder::new().name("namespaces".into()).spawn(Empty::make).ok();
    *MAKING.lock().unwrap_or_else(PoisonError::into_inner) = making;
}

/// Waits until they are made, if they will be.
pub fn wait() {
    let _ = EMPTY.get_or_init(made);
}

/// Has the calling thread join those in which `role` can work, if they were made. No parent of such a thread has entered a role.
///
/// # Errors
/// When it cannot.
pub fn enter(role: Role) -> io::Result<()> {
    if !matches!(role, Role::Worker(_) | Role::Capture | Role::Records) {
        return Ok(());
    }
    let Some(Empty { mount, net, ipc }) = EMPTY.get_or_init(made) else { return Ok(()) };
    // A thread that shares its root directory with others cannot change it.
    unshare(CloneFlags::CLONE_FS)?;
    setns(mount, CloneFlags::CLONE_NEWNS)?;
    setns(ipc, CloneFlags::CLONE_NEWIPC)?;
    // With new guest memory such a worker opens a socket on the interface.
    if role != Role::Worker(Wire::AfXdpInPlace) {
        setns(net, CloneFlags::CLONE_NEWNET)?;
    }
    Ok(())
}

fn made() -> Option<Empty> {
    let making = MAKING.lock().unwrap_or_else(PoisonError::into_inner).take()?;
    let made = making.join().ok()?;
    made.inspect_err(|error| {
        log::info!("workers are in the host's namespaces, as others cannot be made: {error}")
    })
    .ok()
}

impl Empty {
    fn make() -> io::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC)?;
        let own = |name: &str| File::open(format!("/proc/thread-self/ns/{name}"));
        let empty = Self { mount: own("mnt")?, net: own("net")?, ipc: own("ipc")? };
        let nothing = None::<&str>;
        // Nothing of this reaches the host's.
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
        let flags =
            MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        // Any directory that is there will do.
        mount(Some("none"), "/proc", Some("tmpfs"), flags, Some("size=4k,mode=0555"))?;
        chdir("/proc")?;
        // The root before is on top of the new one, and goes (`pivot_root(2)`).
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        // It is in them already: this shows whether a thread may join them.
        setns(&empty.mount, CloneFlags::CLONE_NEWNS)?;
        Ok(empty)
    }
}
