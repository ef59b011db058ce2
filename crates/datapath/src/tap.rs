//! A tap interface (kernel `drivers/net/tun.c`), one of its queues for each queue pair.
//!
//! The virtio-net header goes straight through, because the kernel reads and writes the same structure
//! (`IFF_VNET_HDR`). So the guest is offered exactly the checksum and segmentation offloads that this kernel's tap
//! takes.
//!
//! - `queue`: an open queue, of a tap or a macvtap; one `writev` or `readv` for each frame.
//! - `uring`: a burst of frames with one system call.

mod error;
mod queue;
mod uring;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use host_links::holder::{Holder, tap_users};
use libc::{TUNGETFEATURES, TUNGETIFF, TUNSETIFF};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, major, makedev};

use crate::claim::{Claim, Taken};
use crate::sys::{self, InterfaceRequest};

pub use error::TapError;
pub(crate) use queue::{QueueFacts, probe_offloads};
pub use queue::{Readv, TapQueue};
pub use uring::Uring;

/// The device number of `/dev/net/tun` (`linux/miscdevice.h`, `TUN_MINOR`).
const TUN: (u32, u32) = (10, 200);

/// How the queues of a tap are opened.
#[derive(Clone, Debug)]
pub struct TapOptions {
    /// The interface, which must exist.
    pub name: String,
    /// Number of queues.
    pub queues: usize,
    /// Whether frames from the guest enter the kernel as from a NIC's NAPI (`IFF_NAPI`), which merges TCP
    /// segments of a burst (GRO). Not with `IFF_NAPI_FRAGS`, which parses frames from the guest
    /// before the kernel has them as a whole, and refuses those that lie in many pieces.
    pub napi: bool,
}

/// Opens the queues of a tap. Those of a multi-queue tap start inactive: the kernel gives them no frames.
///
/// # Errors
/// See [`TapError`].
pub fn open(options: &TapOptions) -> Result<Vec<TapQueue>, TapError> {
    let TapOptions { name, queues, .. } = options;
    let lets_go = has_several_queues(name, *queues)?;
    // The kernel lets a single process open a tap with one queue.
    let claim = lets_go.then(|| claim(name)).transpose()?.flatten();
    if lets_go {
        warn_of_users(name);
    }
    let facts = QueueFacts {
        kind: "tap",
        name: name.clone(),
        mtu: mtu_of(name),
        lets_go,
        waiting_max: waiting_max(name),
        _claim: claim,
    };
    let mut files = Vec::new();
    for _ in 0..*queues {
        files.push(attach(options, lets_go)?);
    }
    let offloads = files.first().map(probe_offloads).unwrap_or_default();
    let queue = |file| TapQueue::new(file, facts.clone(), offloads);
    let opened = files.into_iter().map(queue).collect::<io::Result<_>>();
    let step = "detaching the queue";
    opened.map_err(|source| TapError::System { name: name.clone(), step, source })
}

/// Takes a tap that another process opened and attached to its interface, which may be in another network namespace.
///
/// # Errors
/// See [`TapError`].
pub fn open_handed(fd: OwnedFd) -> Result<TapQueue, TapError> {
    let number = fd.as_raw_fd();
    let file = File::from(fd);
    let is = |found: String| TapError::Descriptor { fd: number, found };
    if device_of(&file) != Some(makedev(TUN.0, TUN.1)) {
        let is_macvtap = device_of(&file).is_some_and(is_macvtap);
        return Err(is(if is_macvtap { "a macvtap's" } else { "no tap's" }.into()));
    }
    let mut request = InterfaceRequest::new("", 0);
    sys::ioctl_interface(&file, TUNGETIFF, &mut request)
        .map_err(|error| is(format!("attached to no interface ({error})")))?;
    let has = |flag: i32| i32::from(request.flags()) & flag != 0;
    for (flag, missing) in [
        (libc::IFF_TAP, "a tun's, not a tap's"),
        (libc::IFF_NO_PI, "without IFF_NO_PI"),
        (libc::IFF_VNET_HDR, "without IFF_VNET_HDR"),
    ] {
        if !has(flag) {
            return Err(is(missing.into()));
        }
    }
    let (name, lets_go) = (request.name(), has(libc::IFF_MULTI_QUEUE));
    let facts = QueueFacts {
        kind: "tap",
        mtu: mtu_of(&name),
        waiting_max: waiting_max(&name),
        name,
        lets_go,
        _claim: None,
    };
    take(file, facts).map_err(|(name, step, source)| TapError::System { name, step, source })
}

/// Makes a queue of a descriptor that another process opened. Otherwise returns the interface's name, the step that
/// failed, and the error.
pub(crate) fn take(
    file: File,
    facts: QueueFacts,
) -> Result<TapQueue, (String, &'static str, io::Error)> {
    let name = facts.name.clone();
    let set = fcntl_getfl(&file).and_then(|flags| fcntl_setfl(&file, flags | OFlags::NONBLOCK));
    if let Err(error) = set {
        return Err((name, "setting O_NONBLOCK", error.into()));
    }
    let offloads = probe_offloads(&file);
    TapQueue::new(file, facts, offloads).map_err(|error| (name, "detaching the queue", error))
}

/// The number of the device that a descriptor is of, if it is a character device.
pub(crate) fn device_of(file: &File) -> Option<u64> {
    let found = file.metadata().ok()?;
    found.file_type().is_char_device().then(|| found.rdev())
}

/// Whether this is the number of a macvtap: its major number is not a fixed one.
pub(crate) fn is_macvtap(device: u64) -> bool {
    let devices = fs::read_to_string("/proc/devices").unwrap_or_default();
    devices
        .lines()
        .filter_map(|line| line.trim().split_once(' '))
        .any(|(number, name)| name == "macvtap" && number.parse() == Ok(major(device)))
}

/// Warns of other processes that have queues of the tap: the kernel gives each queue a part of the flows.
fn warn_of_users(name: &str) {
    let own = std::process::id();
    for Holder { process, name: user } in tap_users(name).into_iter().filter(|it| it.process != own)
    {
        log::warn!(
            "tap '{name}': process {process} ({user}) has a queue of it, or of one of this name in another network namespace; \
             the guest would get only a part of the frames: end that process, or use another tap"
        );
    }
}

/// Makes sure that no other daemon serves the tap `name`.
fn claim(name: &str) -> Result<Option<Arc<Claim>>, TapError> {
    let Some(index) = index_of(name) else { return Ok(None) };
    let served = |Taken { process }| TapError::Served { name: name.to_owned(), process };
    Claim::take(index).map(|claim| Some(Arc::new(claim))).map_err(served)
}

/// Whether the tap `name` is there, and was made for several queues.
fn has_several_queues(name: &str, queues: usize) -> Result<bool, TapError> {
    if !is_interface(name) {
        return Err(TapError::Missing { name: name.to_owned(), multi_queue: queues > 1 });
    }
    let flags = read_sysfs(name, "tun_flags")
        .and_then(|text| i32::from_str_radix(text.trim_start_matches("0x"), 16).ok())
        .filter(|flags| flags & libc::IFF_TAP != 0)
        .ok_or_else(|| TapError::NotATap { name: name.to_owned() })?;
    let several = flags & libc::IFF_MULTI_QUEUE != 0;
    if queues > 1 && !several {
        return Err(TapError::OneQueue { name: name.to_owned(), queues });
    }
    Ok(several)
}

fn attach(options: &TapOptions, multi_queue: bool) -> Result<File, TapError> {
    let name = &options.name;
    let system = |step, source: io::Error| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            TapError::Permission { name: name.to_owned(), what: format!("tap '{name}'") }
        }
        Some(libc::EBUSY | libc::E2BIG) => TapError::Busy { name: name.to_owned() },
        _ => TapError::System { name: name.to_owned(), step, source },
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(|error| system("opening /dev/net/tun", error))?;
    let several = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
    if options.napi {
        let known = sys::ioctl_get_int(&file, TUNGETFEATURES)
            .map_err(|error| system("asking for its features (TUNGETFEATURES)", error))?;
        if known & libc::IFF_NAPI == 0 {
            return Err(TapError::NoNapi);
        }
        flags |= libc::IFF_NAPI;
    }
    let mut request = InterfaceRequest::new(name, flags);
    sys::ioctl_interface(&file, TUNSETIFF, &mut request)
        .map_err(|error| system("attaching to it (TUNSETIFF)", error))?;
    Ok(file)
}

/// Whether there is an interface of this name.
pub(crate) fn is_interface(name: &str) -> bool {
    !name.is_empty()
        && name.len() < libc::IFNAMSIZ
        && !name.contains('/')
        && !matches!(name, "." | "..")
        && Path::new("/sys/class/net").join(name).exists()
}

pub(crate) fn index_of(name: &str) -> Option<u32> {
    read_sysfs(name, "ifindex")?.parse().ok()
}

pub(crate) fn mtu_of(name: &str) -> u16 {
    read_sysfs(name, "mtu").and_then(|text| text.parse().ok()).unwrap_or(1500)
}

/// Number of frames that the kernel keeps at most in a queue of the interface. If that cannot be read, as for a tap of
/// another network namespace: the default of the kernel (`DEFAULT_TX_QUEUE_LEN`).
fn waiting_max(name: &str) -> u32 {
    read_sysfs(name, "tx_queue_len").and_then(|text| text.parse().ok()).unwrap_or(1000)
}

pub(crate) fn read_sysfs(name: &str, entry: &str) -> Option<String> {
    let path = format!("/sys/class/net/{name}/{entry}");
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &str, queues: usize) -> TapError {
        open(&TapOptions { name: name.into(), queues, napi: false }).unwrap_err()
    }

    #[test]
    fn a_tap_that_is_not_there_says_how_to_make_it() {
        let error = refused("ringscope-none", 2).to_string();
        assert!(error.contains("ip tuntap add dev ringscope-none mode tap multi_queue"), "{error}");
    }

    #[test]
    fn an_interface_of_another_kind_is_refused() {
        assert!(matches!(refused("lo", 1), TapError::NotATap { .. }));
        assert!(matches!(refused("..", 1), TapError::Missing { .. }));
    }

    #[test]
    fn a_descriptor_of_another_kind_is_refused() {
        let file = File::open("/dev/null").unwrap();
        let error = open_handed(file.into()).unwrap_err().to_string();
        assert!(error.contains("is no tap's; expected an open tap"), "{error}");
    }
}
