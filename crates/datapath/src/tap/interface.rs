//! The interface of a tap: found by its name, and again when it was removed and made again.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use host_links::holder::{Holder, tap_users};
use libc::{TUNGETFEATURES, TUNSETIFF};

use super::error::TapError;
use super::finder::Finder;
use crate::claim::{Claim, Taken};
use crate::sys::{self, InterfaceRequest};

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

/// The facts about an interface that are known before a queue of it is open.
#[derive(Clone, Debug)]
pub struct QueueFacts {
    /// The datapath's name on the command line.
    pub kind: &'static str,
    /// The interface's name.
    pub name: String,
    /// The largest payload of a link frame, bytes.
    pub mtu: u16,
    /// Whether a queue can be detached from the interface while other queues are served. If not, the kernel keeps up to
    /// `txqueuelen` frames for an inactive queue.
    pub lets_go: bool,
    /// Number of frames that the kernel keeps at most while nobody reads them (`txqueuelen`).
    pub waiting_max: u32,
    /// How a queue is attached again when the interface was removed and made again; `None` if it cannot be.
    pub again: Option<Again>,
    /// Keeps other processes from serving the interface.
    pub claim: Option<Arc<Claim>>,
}

/// How a queue is attached again.
#[derive(Clone, Debug)]
pub struct Again {
    options: TapOptions,
    /// The index of the interface that it was attached to last.
    index: Option<u32>,
    /// Does it: the queue's worker may not open files.
    finder: Arc<Finder>,
}

impl Again {
    /// The interface's name.
    fn name(&self) -> &str {
        &self.options.name
    }

    /// Attaches a queue as [`attach_again`] does, on another thread.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn find(&self, file: &File) -> Result<Option<QueueFacts>, TapError> {
        let fail = |error| system(self.name(), "looking for it again", error);
        let (file, again) = (file.try_clone().map_err(fail)?, self.clone());
        let found = self.finder.run(move || attach_again(&file, &again));
        found.unwrap_or_else(|| Err(fail(io::Error::other("there is no thread for that"))))
    }
}

impl QueueFacts {
    /// `finder` attaches a queue again.
    pub fn of(
        options: &TapOptions,
        lets_go: bool,
        claim: Option<Arc<Claim>>,
        finder: Arc<Finder>,
    ) -> Self {
        let name = &options.name;
        Self {
            kind: "tap",
            name: name.clone(),
            mtu: mtu_of(name),
            lets_go,
            waiting_max: waiting_max(name),
            again: Some(Again { options: options.clone(), index: index_of(name), finder }),
            claim,
        }
    }
}

/// Finds the interface, and opens its queues.
///
/// # Errors
/// See [`TapError`].
pub fn open(options: &TapOptions) -> Result<(QueueFacts, Vec<File>), TapError> {
    let lets_go = has_several_queues(&options.name, options.queues)?;
    // The kernel lets a single process open a tap with one queue.
    let claim = lets_go.then(|| claim(&options.name)).transpose()?.flatten();
    if lets_go {
        warn_of_users(&options.name);
    }
    let facts = QueueFacts::of(options, lets_go, claim, Arc::new(Finder::start()));
    let files = (0..options.queues).map(|_| {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(|error| system(&options.name, "opening /dev/net/tun", error))?;
        attach(&file, options, lets_go).map(|()| file)
    });
    let files = files.collect::<Result<_, TapError>>()?;
    Ok((facts, files))
}

/// Attaches a queue, whose interface was removed, to the one that was made again under its name. Returns the facts about
/// that; `None` if there is none yet, or if its maker still has it open.
///
/// # Errors
/// See [`TapError`].
fn attach_again(file: &File, again: &Again) -> Result<Option<QueueFacts>, TapError> {
    let Again { options, index, finder } = again;
    let name = &options.name;
    // If there is none, the kernel would make one (`tun_set_iff` of `drivers/net/tun.c`). One that is being removed has no
    // queues any more, but is still there.
    let now = index_of(name);
    if now.is_none() || now == *index {
        return Ok(None);
    }
    let lets_go = has_several_queues(name, options.queues)?;
    let claim = match lets_go.then(|| claim(name)).transpose() {
        // Another queue pair of this daemon has claimed it already.
        Err(TapError::Served { process, .. }) if process == std::process::id() => None,
        claim => claim?.flatten(),
    };
    match attach(file, options, lets_go) {
        Err(TapError::Busy { .. }) => Ok(None),
        attached => {
            attached.map(|()| Some(QueueFacts::of(options, lets_go, claim, Arc::clone(finder))))
        }
    }
}

fn system(name: &str, step: &'static str, source: io::Error) -> TapError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            TapError::Permission { name: name.to_owned(), what: format!("tap '{name}'") }
        }
        Some(libc::EBUSY | libc::E2BIG) => TapError::Busy { name: name.to_owned() },
        _ => TapError::System { name: name.to_owned(), step, source },
    }
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

fn attach(file: &File, options: &TapOptions, multi_queue: bool) -> Result<(), TapError> {
    let name = &options.name;
    let several = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
    if options.napi {
        let known = sys::ioctl_get_int(file, TUNGETFEATURES)
            .map_err(|error| system(name, "asking for its features (TUNGETFEATURES)", error))?;
        if known & libc::IFF_NAPI == 0 {
            return Err(TapError::NoNapi);
        }
        flags |= libc::IFF_NAPI;
    }
    let mut request = InterfaceRequest::new(name, flags);
    sys::ioctl_interface(file, TUNSETIFF, &mut request)
        .map_err(|error| system(name, "attaching to it (TUNSETIFF)", error))?;
    Ok(())
}

/// Whether there is an interface of this name.
pub fn is_interface(name: &str) -> bool {
    !name.is_empty()
        && name.len() < libc::IFNAMSIZ
        && !name.contains('/')
        && !matches!(name, "." | "..")
        && Path::new("/sys/class/net").join(name).exists()
}

pub fn index_of(name: &str) -> Option<u32> {
    read_sysfs(name, "ifindex")?.parse().ok()
}

pub fn mtu_of(name: &str) -> u16 {
    read_sysfs(name, "mtu").and_then(|text| text.parse().ok()).unwrap_or(1500)
}

/// Number of frames that the kernel keeps at most in a queue of the interface. If that cannot be read, as for a tap of
/// another network namespace: the default of the kernel (`DEFAULT_TX_QUEUE_LEN`).
pub fn waiting_max(name: &str) -> u32 {
    read_sysfs(name, "tx_queue_len").and_then(|text| text.parse().ok()).unwrap_or(1000)
}

pub fn read_sysfs(name: &str, entry: &str) -> Option<String> {
    let path = format!("/sys/class/net/{name}/{entry}");
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
