//! A macvtap interface (kernel `drivers/net/macvtap.c`, `tap.c`): a tap directly on another interface, with its own
//! address and without a bridge.
//!
//! Frames are read and written as on a tap, by the same code. Only opening differs: a macvtap is opened through
//! `/dev/tapN`, where N is the interface's index.
//!
//! - `error`: why a macvtap cannot be used.
//! - `link`: whether the interface carries frames; removes the interface at the end if we made it.

mod error;
mod link;

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use burst_trace::DropCause;
use guest_memory::GuestSlice;
use host_links::macvtap::{MacVtapMode, NewMacvtap};
use libc::{TUNGETIFF, TUNSETIFF};
use rustix::fs::{CWD, FileType, Mode as Permissions, makedev, mknodat};
use virtio_net::{Frames, GuestRoom};

use crate::claim::{Claim, Taken};
use crate::sys::{self, InterfaceRequest};
use crate::tap::{self, QueueFacts, SharedQueue, TapError, TapQueue};
use crate::{Datapath, FrameReader, Look, Transmitted, Wrapper};

pub use error::MacvtapError;
use link::Made;
pub use link::WatchedLink;

/// How macvtaps over the same interface reach each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Directly.
    #[default]
    Bridge,
    /// Not at all.
    Private,
    /// Through the switch that the interface is connected to, if it sends frames back to the port that they came from.
    Vepa,
    /// There is only one macvtap. It gets all frames and has the interface's address.
    Passthru,
}

impl Mode {
    const ALL: [Self; 4] = [Self::Bridge, Self::Private, Self::Vepa, Self::Passthru];

    const fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Private => "private",
            Self::Vepa => "vepa",
            Self::Passthru => "passthru",
        }
    }

    /// The kernel's mode (`MACVLAN_MODE_*` of `linux/if_link.h`).
    const fn in_kernel(self) -> MacVtapMode {
        match self {
            Self::Private => MacVtapMode::Private,
            Self::Vepa => MacVtapMode::Vepa,
            Self::Bridge => MacVtapMode::Bridge,
            Self::Passthru => MacVtapMode::Passthrough,
        }
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|mode| mode.name() == text).ok_or_else(|| {
            format!("expected mode=bridge, private, vepa or passthru, found '{text}'")
        })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How to make a macvtap that does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Over {
    /// The lower interface.
    pub lower: String,
    /// How it reaches other macvtaps over the same interface.
    pub mode: Mode,
}

/// How the queues of a macvtap are opened.
#[derive(Clone, Debug)]
pub struct MacvtapOptions {
    /// The interface's name.
    pub name: String,
    /// Number of queues.
    pub queues: usize,
    /// How to make the interface, which is then removed at the end; `None` to use an existing one.
    pub over: Option<Over>,
    /// The address that it is made with; if `None`, the kernel chooses one.
    pub address: Option<[u8; 6]>,
}

/// One queue of a macvtap.
#[derive(Debug)]
pub struct Macvtap {
    // Field order is drop order: the queue is closed before the interface is removed.
    queue: TapQueue,
    /// `None` if the queue was handed in: its interface may belong to another network namespace.
    link: Option<Arc<WatchedLink>>,
}

/// Opens the queues of a macvtap. They start inactive: the kernel gives them no frames.
///
/// # Errors
/// See [`MacvtapError`].
pub fn open(options: &MacvtapOptions) -> Result<Vec<Macvtap>, MacvtapError> {
    let name = &options.name;
    let made = options.over.as_ref().map(|over| make(options, over)).transpose()?;
    if !tap::is_interface(name) {
        return Err(MacvtapError::Missing { name: name.clone() });
    }
    let number = |text: String| text.parse::<u32>().ok();
    let index = tap::read_sysfs(name, "ifindex").and_then(number);
    let device = index.and_then(device_number);
    let (Some(index), Some(device)) = (index, device) else {
        return Err(MacvtapError::NotAMacvtap { name: name.clone() });
    };
    let system = |step| {
        move |source: io::Error| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                MacvtapError::Permission { name: name.clone(), step: "open" }
            }
            _ => MacvtapError::System { name: name.clone(), step, source },
        }
    };
    let served = |Taken { process }| MacvtapError::Served { name: name.clone(), process };
    let claim = Arc::new(Claim::take(index).map_err(served)?);
    let link = WatchedLink::watch(name, index, made).map_err(system("listening for its state"))?;
    let link = Arc::new(link);
    let node = Node::of(index, device).map_err(system("making a device node"))?;
    let mtu = tap::mtu_of(name);
    let queue = |_| {
        let file = node.open().map_err(system("opening its device"))?;
        // The device belongs to its interface from the start. This sets the format of what is read and written.
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        let mut request = InterfaceRequest::new(name, flags);
        sys::ioctl_interface(&file, TUNSETIFF, &mut request)
            .map_err(system("setting its headers (TUNSETIFF)"))?;
        let claim = Some(Arc::clone(&claim));
        let facts = QueueFacts {
            kind: "macvtap",
            name: name.clone(),
            mtu,
            lets_go: true,
            waiting_max: 0,
            again: None,
            claim,
        };
        let offloads = tap::probe_offloads(&file);
        let queue = TapQueue::new(file, facts, offloads).map_err(system("detaching the queue"))?;
        Ok(Macvtap { queue, link: Some(Arc::clone(&link)) })
    };
    (0..options.queues).map(queue).collect()
}

/// Takes a macvtap that another process opened. It may belong to another network namespace.
///
/// # Errors
/// See [`MacvtapError`].
pub fn open_handed(fd: OwnedFd) -> Result<Macvtap, MacvtapError> {
    let number = fd.as_raw_fd();
    let file = File::from(fd);
    let is = |found: String| MacvtapError::Descriptor { fd: number, found };
    if !tap::device_of(&file).is_some_and(tap::is_macvtap) {
        return Err(is("no macvtap's".into()));
    }
    let mut request = InterfaceRequest::new("", 0);
    sys::ioctl_interface(&file, TUNGETIFF, &mut request)
        .map_err(|error| is(format!("of a macvtap that is gone ({error})")))?;
    let name = request.name();
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    let mut request = InterfaceRequest::new(&name, flags);
    let system = |(name, step, source)| MacvtapError::System { name, step, source };
    sys::ioctl_interface(&file, TUNSETIFF, &mut request)
        .map_err(|error| system((name.clone(), "setting its headers (TUNSETIFF)", error)))?;
    let mtu = tap::mtu_of(&name);
    let facts = QueueFacts {
        kind: "macvtap",
        mtu,
        name,
        lets_go: true,
        waiting_max: 0,
        again: None,
        claim: None,
    };
    Ok(Macvtap { queue: tap::take(file, facts).map_err(system)?, link: None })
}

/// Goes on with the queues of a macvtap that another daemon serves. `options`: as they were opened, unless they were handed
/// over. `made`: the other daemon made the interface. It stays until [`WatchedLink::set_stays`] says otherwise.
///
/// # Errors
/// When they are not of this macvtap.
pub fn go_on(
    queues: Vec<SharedQueue>,
    options: Option<&MacvtapOptions>,
    made: bool,
) -> Result<Vec<Macvtap>, MacvtapError> {
    let shared = |error: TapError| MacvtapError::Shared(error);
    let Some(first) = queues.first() else { return Ok(Vec::new()) };
    let (name, _) = tap::interface_of(first).map_err(shared)?;
    let link = match options {
        None => None,
        Some(options) if options.name != name => {
            let found = format!("macvtap '{name}', not '{}'", options.name);
            return Err(shared(TapError::Shared { found }));
        }
        Some(_) => {
            let index = tap::read_sysfs(&name, "ifindex").and_then(|index| index.parse().ok());
            let index = index.ok_or_else(|| MacvtapError::Missing { name: name.clone() })?;
            let made = made.then(|| Made { index, name: name.clone(), stays: true.into() });
            let step = "listening for its state";
            let system = |source| MacvtapError::System { name: name.clone(), step, source };
            Some(Arc::new(WatchedLink::watch(&name, index, made).map_err(system)?))
        }
    };
    let facts = |claim| QueueFacts {
        kind: "macvtap",
        mtu: tap::mtu_of(&name),
        name: name.clone(),
        lets_go: true,
        waiting_max: 0,
        again: None,
        claim,
    };
    let take = |queue| Macvtap { queue: tap::queue_of(queue, facts), link: link.clone() };
    Ok(queues.into_iter().map(take).collect())
}

impl Macvtap {
    /// The same queue, which joins frames of one flow from the guest (GRO).
    #[must_use]
    pub fn with_gro(self) -> Self {
        Self { queue: self.queue.with_gro(), ..self }
    }

    /// Another descriptor of the queue, for a daemon that goes on with it.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn share(&self) -> io::Result<SharedQueue> {
        self.queue.share()
    }

    /// What watches its interface; `None` if the queue was handed in.
    #[must_use]
    pub fn link(&self) -> Option<Arc<WatchedLink>> {
        self.link.clone()
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.queue.name()
    }

    /// The interface's address. Except in mode passthru, the interface lets in only frames to this address.
    ///
    /// # Errors
    /// The error of the ioctl.
    pub fn address(&self) -> io::Result<[u8; 6]> {
        self.queue.address()
    }
}

impl Wrapper for Macvtap {
    type Inner = TapQueue;

    fn inner(&self) -> &TapQueue {
        &self.queue
    }

    fn inner_mut(&mut self) -> &mut TapQueue {
        &mut self.queue
    }
}

impl Datapath for Macvtap {
    #[inline]
    fn transmit(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        if self.link.as_ref().is_some_and(|link| !link.carries()) {
            return Transmitted::refused(frames.len(), DropCause::TxLinkDown);
        }
        self.queue.transmit(frames)
    }

    #[inline]
    fn receive(&mut self, room: &mut GuestRoom<'_, '_>) -> io::Result<Look> {
        self.queue.receive(room)
    }
}

impl FrameReader for Macvtap {
    fn receive_frame(&mut self, to: GuestSlice<'_>) -> io::Result<Option<usize>> {
        self.queue.receive_frame(to)
    }
}

/// Makes the interface.
fn make(options: &MacvtapOptions, over: &Over) -> Result<Made, MacvtapError> {
    let (name, Over { lower, mode }) = (&options.name, over);
    if tap::is_interface(name) {
        return Err(MacvtapError::Exists { name: name.clone() });
    }
    let index_of = |name: &str| tap::read_sysfs(name, "ifindex").and_then(|it| it.parse().ok());
    let lower_index =
        Some(lower).filter(|lower| tap::is_interface(lower)).and_then(|it| index_of(it));
    let Some(lower_index) = lower_index else {
        return Err(MacvtapError::NoLower { name: name.clone(), lower: lower.clone() });
    };
    let address = options.address;
    let new = NewMacvtap { name, lower: lower_index, mode: mode.in_kernel(), address };
    new.make().map_err(|source| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            MacvtapError::Permission { name: name.clone(), step: "make" }
        }
        Some(libc::EBUSY | libc::EINVAL) => {
            MacvtapError::LowerBusy { name: name.clone(), lower: lower.clone(), mode: *mode }
        }
        _ => MacvtapError::System { name: name.clone(), step: "making it", source },
    })?;
    match index_of(name) {
        Some(index) => Ok(Made { index, name: name.clone(), stays: false.into() }),
        None => Err(MacvtapError::Missing { name: name.clone() }),
    }
}

/// The device number of the macvtap with this interface index.
fn device_number(index: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/sys/class/macvtap/tap{index}/dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The device node through which a macvtap is opened.
struct Node {
    path: PathBuf,
    device: u64,
    /// Whether we made it. Then it is removed when this is dropped.
    is_ours: bool,
}

impl Node {
    /// Finds the node in `/dev`. If the host makes no such nodes, or the node there is left over from another device,
    /// makes one in `/dev` or in the directory of temporary files.
    fn of(index: u32, device: u64) -> io::Result<Self> {
        let path = PathBuf::from(format!("/dev/tap{index}"));
        let node = Self { path, device, is_ours: false };
        if node.open().is_ok() {
            return Ok(node);
        }
        let name = format!(".ringscoped-tap{index}-{}", std::process::id());
        let mut result = Err(io::ErrorKind::NotFound.into());
        for directory in [Path::new("/dev"), &std::env::temp_dir()] {
            let path = directory.join(&name);
            let mode = Permissions::RUSR | Permissions::WUSR;
            result = mknodat(CWD, &path, FileType::CharacterDevice, mode, device)
                .map_err(io::Error::from)
                .map(|()| Self { path, device, is_ours: true })
                // A file system may allow nodes to be made but not opened (`nodev`).
                .and_then(|node| node.open().map(|_| node));
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn open(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        let file =
            options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&self.path)?;
        if tap::device_of(&file) != Some(self.device) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(file)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.is_ours {
            // If it is gone already, nothing is left to do.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &str, over: Option<&str>) -> MacvtapError {
        let over = over.map(|lower| Over { lower: lower.into(), mode: Mode::Bridge });
        open(&MacvtapOptions { name: name.into(), queues: 1, over, address: None }).unwrap_err()
    }

    #[test]
    fn what_cannot_be_opened_says_how_to_make_it() {
        let error = refused("ringscope-none", None).to_string();
        assert!(error.contains("name ringscope-none type macvtap mode bridge"), "{error}");
        assert!(matches!(refused("lo", None), MacvtapError::NotAMacvtap { .. }));
        assert!(matches!(refused("lo", Some("lo")), MacvtapError::Exists { .. }));
        assert!(matches!(refused("rsnone", Some("rsnone2")), MacvtapError::NoLower { .. }));
    }

    #[test]
    fn modes_are_read_as_they_are_written() {
        for mode in Mode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("router".parse::<Mode>().is_err());
    }
}
