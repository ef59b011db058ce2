//! A tap interface (kernel `drivers/net/tun.c`), one queue of it a queue pair.
//!
//! The virtio-net header goes straight through: the kernel reads and writes the very same structure
//! (`IFF_VNET_HDR`), so checksums and segmentation are offered to the guest exactly as far as this
//! kernel's tap takes them. One `writev` or `readv` a frame, directly on guest memory.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use guest_memory::GuestSlice;
use libc::{
    IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE, TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6,
    TUN_F_UFO, TUN_F_USO4, TUN_F_USO6, TUNSETIFF, TUNSETOFFLOAD, TUNSETQUEUE, TUNSETVNETHDRSZ,
};
use virtio_net::{Frames, GuestRoom, Negotiated, Offloads, Placed};

use crate::sys::{self, InterfaceRequest};
use crate::{Capabilities, Datapath, Look, Refusal, Transmitted};

/// Why a tap cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// There is no such interface.
    #[error(
        "no network interface '{name}'; make it first: ip tuntap add dev {name} mode tap{} vnet_hdr",
        if *.multi_queue { " multi_queue" } else { "" }
    )]
    Missing {
        /// The interface's name.
        name: String,
        /// Whether several queues were asked for.
        multi_queue: bool,
    },
    /// The interface is of another kind.
    #[error("'{name}' is a network interface but no tap; expected one made with: ip tuntap add")]
    NotATap {
        /// The interface's name.
        name: String,
    },
    /// The interface has one queue only.
    #[error(
        "tap '{name}' has one queue, but {queues} queue pairs were asked for; make it with: ip tuntap \
         add dev {name} mode tap multi_queue vnet_hdr, or use --queue-pairs 1"
    )]
    OneQueue {
        /// The interface's name.
        name: String,
        /// How many queues were asked for.
        queues: usize,
    },
    /// Another process has the interface.
    #[error("tap '{name}' is in use by another process; end that one, or choose another tap")]
    Busy {
        /// The interface's name.
        name: String,
    },
    /// No permission.
    #[error(
        "no permission to use {what}; run as root or with CAP_NET_ADMIN, or make the tap yours: ip \
         tuntap add dev {name} mode tap user $USER vnet_hdr"
    )]
    Permission {
        /// The interface's name.
        name: String,
        /// What was refused.
        what: String,
    },
    /// Anything else that the system answered.
    #[error("tap '{name}': {step} failed: {source}")]
    System {
        /// The interface's name.
        name: String,
        /// What was tried.
        step: &'static str,
        /// What the system answered.
        source: io::Error,
    },
}

/// One queue of a tap interface.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    offloads: Offloads,
    mtu: u16,
    multi_queue: bool,
    active: bool,
}

impl Tap {
    /// Opens `queues` queues of the tap `name`, which must exist. Queues of a multi-queue tap start
    /// inactive: the kernel gives them no frames.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(name: &str, queues: usize) -> Result<Vec<Self>, TapError> {
        let multi_queue = has_several_queues(name, queues)?;
        let mtu = read_sysfs(name, "mtu").and_then(|text| text.parse().ok()).unwrap_or(1500);
        let mut taps = Vec::new();
        for _ in 0..queues {
            let file = attach(name, multi_queue)?;
            let offloads = match taps.first() {
                Some(Self { offloads, .. }) => *offloads,
                None => probe_offloads(&file),
            };
            let name = name.to_owned();
            taps.push(Self { file, name, offloads, mtu, multi_queue, active: true });
        }
        for tap in &mut taps {
            tap.set_active(false).map_err(|source| TapError::System {
                name: name.to_owned(),
                step: "detaching the queue",
                source,
            })?;
        }
        Ok(taps)
    }
}

/// The most frames of one look: each costs a system call, and the guest sees the first one only when the
/// last one is there.
const RECEIVE_BURST: usize = 32;

impl Datapath for Tap {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "tap",
            from_guest: self.offloads,
            to_guest: self.offloads,
            mtu: self.mtu,
        }
    }

    fn configure(&mut self, negotiated: Negotiated) -> io::Result<()> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_possible_wrap,
            reason = "10 or 12"
        )]
        sys::ioctl_int(&self.file, TUNSETVNETHDRSZ, negotiated.header_len() as i32)?;
        sys::ioctl_number(&self.file, TUNSETOFFLOAD, flags(negotiated.guest_offloads()))
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        // A tap with one queue cannot let go of it: the kernel keeps up to txqueuelen frames.
        if self.multi_queue && active != self.active {
            let change = if active { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
            let mut request = InterfaceRequest::new(&self.name, change);
            sys::ioctl_interface(&self.file, TUNSETQUEUE, &mut request)?;
        }
        self.active = active;
        Ok(())
    }

    #[inline]
    fn transmit(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        let mut done = Transmitted::default();
        for frame in frames.iter() {
            match sys::writev(&self.file, frame.slices()) {
                #[expect(clippy::cast_possible_truncation, reason = "a frame is below 2^17 bytes")]
                Ok(_) => done.bytes += frame.len() as u32,
                Err(error) => match Refusal::of(&error) {
                    Refusal::Later => break,
                    Refusal::Lost(cause) => done.drops.add(cause),
                },
            }
            done.taken += 1;
        }
        done
    }

    #[inline]
    fn receive(&mut self, room: &mut GuestRoom<'_, '_>) -> io::Result<Look> {
        for _ in 0..RECEIVE_BURST {
            match room.scatter(|list| sys::readv(&self.file, list)) {
                Ok(Placed::Done) => {}
                Ok(Placed::NoRoom) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Look::Drained);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Look::More)
    }

    fn receive_frame(&mut self, to: GuestSlice<'_>) -> io::Result<Option<usize>> {
        match sys::readv(&self.file, &[to]) {
            Ok(len) => Ok(Some(len)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn has_frames(&self) -> bool {
        sys::is_readable(&self.file)
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

/// Whether the tap `name` is there, and was made for several queues.
fn has_several_queues(name: &str, queues: usize) -> Result<bool, TapError> {
    if name.is_empty()
        || name.len() >= libc::IFNAMSIZ
        || name.contains('/')
        || !Path::new("/sys/class/net").join(name).exists()
    {
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

fn attach(name: &str, multi_queue: bool) -> Result<File, TapError> {
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
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
    let mut request = InterfaceRequest::new(name, flags);
    sys::ioctl_interface(&file, TUNSETIFF, &mut request)
        .map_err(|error| system("attaching to it (TUNSETIFF)", error))?;
    Ok(file)
}

/// What this kernel's tap takes: the richest set that it accepts.
fn probe_offloads(file: &File) -> Offloads {
    let sets = [
        Offloads::ALL,
        Offloads { uso: false, ..Offloads::ALL },
        Offloads { uso: false, ufo: false, ..Offloads::ALL },
        Offloads { checksum: true, ..Offloads::default() },
    ];
    let accepted = |set: &Offloads| sys::ioctl_number(file, TUNSETOFFLOAD, flags(*set)).is_ok();
    let found = sets.into_iter().find(accepted).unwrap_or_default();
    // Nothing is passed on unfinished before a guest says that it takes it.
    let _ = sys::ioctl_number(file, TUNSETOFFLOAD, 0);
    found
}

fn flags(offloads: Offloads) -> u32 {
    let pick = |wanted, flag| if wanted && offloads.checksum { flag } else { 0 };
    pick(true, TUN_F_CSUM)
        | pick(offloads.tso4, TUN_F_TSO4)
        | pick(offloads.tso6, TUN_F_TSO6)
        | pick(offloads.ecn && (offloads.tso4 || offloads.tso6), TUN_F_TSO_ECN)
        | pick(offloads.ufo, TUN_F_UFO)
        | pick(offloads.uso, TUN_F_USO4 | TUN_F_USO6)
}

fn read_sysfs(name: &str, entry: &str) -> Option<String> {
    let path = format!("/sys/class/net/{name}/{entry}");
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_that_is_not_there_says_how_to_make_it() {
        let error = Tap::open("ringscope-none", 2).unwrap_err().to_string();
        assert!(error.contains("ip tuntap add dev ringscope-none mode tap multi_queue"), "{error}");
    }

    #[test]
    fn an_interface_of_another_kind_is_refused() {
        assert!(matches!(Tap::open("lo", 1), Err(TapError::NotATap { .. })));
    }

    #[test]
    fn segmentation_is_never_asked_for_without_checksums() {
        let set = Offloads { checksum: false, ..Offloads::ALL };
        assert_eq!(flags(set), 0);
        assert_eq!(flags(Offloads::ALL), 0x7f);
    }
}
