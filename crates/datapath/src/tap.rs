//! A tap interface (kernel `drivers/net/tun.c`), one of its queues for each queue pair.
//!
//! The virtio-net header goes straight through, because the kernel reads and writes the same structure
//! (`IFF_VNET_HDR`). So the guest is offered exactly the checksum and segmentation offloads that this kernel's tap
//! takes.
//!
//! - `interface`: the interface, found by its name, and again when it was removed and made again; `finder`: the thread that
//!   does that.
//! - `queue`: an open queue, of a tap or a macvtap; one `writev` or `readv` for each frame.
//! - `shared`: the queues of a daemon before this one, which are served on; `handed`: such a queue.
//! - `engine`: what a queue needs of the calls by which frames pass it.
//! - `gro`: frames of one flow with one `writev`.
//! - `uring`: a burst of frames with one system call.

mod engine;
mod error;
mod finder;
mod gro;
mod handed;
mod interface;
mod queue;
mod shared;
mod uring;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use libc::TUNGETIFF;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, major, makedev};

use crate::sys::{self, InterfaceRequest};

pub use error::TapError;
pub use handed::SharedQueue;
pub use interface::TapOptions;
use interface::waiting_max;
pub(crate) use interface::{QueueFacts, is_interface, mtu_of, read_sysfs};
pub(crate) use queue::probe_offloads;
pub use queue::{Readv, TapQueue};
pub use shared::go_on;
pub(crate) use shared::{interface_of, queue_of};
pub use uring::Uring;

/// The device number of `/dev/net/tun` (`linux/miscdevice.h`, `TUN_MINOR`).
const TUN: (u32, u32) = (10, 200);

/// Opens the queues of a tap. Those of a multi-queue tap start inactive: the kernel gives them no frames.
///
/// # Errors
/// See [`TapError`].
pub fn open(options: &TapOptions) -> Result<Vec<TapQueue>, TapError> {
    let (facts, files) = interface::open(options)?;
    let name = &options.name;
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
        again: None,
        claim: None,
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
