//! The XDP program that redirects frames to sockets (`bpf/sockets.bpf.c`). It is loaded and attached here, and leaves
//! the interface when this process ends.
#![allow(unsafe_code, reason = "creates a link with flags, which libbpf-rs cannot")]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use libbpf_rs::{MapCore, MapFlags, MapHandle, Object, ObjectBuilder};

use super::XdpMode;

/// Aligns the compiled program as an ELF file requires it.
#[repr(align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/sockets.bpf.o")));

/// The program attached to its interface, and its map of sockets.
#[derive(Debug)]
pub struct Program {
    /// The worker of every queue pair accesses them. The lock is taken at start and stop and when losses are counted,
    /// never for a frame.
    maps: Mutex<Maps>,
    /// The mode in which it runs: native or generic.
    mode: XdpMode,
    /// Which of the programs runs.
    kind: Kind,
    /// Whether it stamps frames.
    stamps: bool,
    /// The driver's error, if it runs in generic mode only for that reason.
    why_generic: Option<io::Error>,
    /// `None` after it was taken off its interface.
    attached: Mutex<Option<Attached>>,
    /// The program on the interface is that of another daemon, and stamps frames where this one does not, or the reverse.
    differs: AtomicBool,
}

/// The programs of `bpf/sockets.bpf.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// For every interface.
    Plain,
    /// For the interface with this number alone: puts back VLAN tags that its device removes.
    Tags { ifindex: i32 },
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Plain => "to_sockets",
            Self::Tags { .. } => "to_sockets_tags",
        }
    }
}

/// What keeps the program on its interface.
#[derive(Debug)]
struct Attached {
    // Field order is drop order: first the link, which detaches the program from the interface.
    link: OwnedFd,
    object: Object,
}

/// The program's maps (`bpf/sockets.bpf.c`).
#[derive(Debug)]
struct Maps {
    /// The sockets by queue.
    sockets: MapHandle,
    /// Number of sockets in it.
    served: MapHandle,
    /// Number of frames of other queues.
    unserved: MapHandle,
    /// The queues that have a socket.
    queues: BTreeSet<u32>,
    /// Frames of other queues that were reported.
    reported: u64,
}

/// A program that two daemons have, while one takes it over from the other.
#[derive(Debug)]
pub struct SharedProgram {
    /// What keeps it on its interface.
    pub link: OwnedFd,
    /// Its maps: sockets, number of sockets, frames of other queues.
    pub maps: [OwnedFd; 3],
    /// Whether it runs in the driver.
    pub is_native: bool,
    /// Whether it puts VLAN tags back.
    pub puts_tags_back: bool,
    /// Whether it stamps frames.
    pub stamps: bool,
}

impl Program {
    /// Goes on with the program of another daemon on the interface numbered `ifindex`, which serves these queues. It stays as it
    /// is until [`Program::take_place`].
    ///
    /// # Errors
    /// Those of libbpf and the kernel: `EINVAL` when its maps are of another program.
    pub fn go_on(
        shared: SharedProgram,
        ifindex: i32,
        stamps: bool,
        queues: BTreeSet<u32>,
    ) -> io::Result<Self> {
        quiet();
        let SharedProgram { maps, is_native, puts_tags_back, .. } = &shared;
        let kind = if *puts_tags_back { Kind::Tags { ifindex } } else { Kind::Plain };
        let mode = if *is_native { XdpMode::Native } else { XdpMode::Generic };
        let object = load(kind, stamps, Some(maps.each_ref().map(AsFd::as_fd)))?;
        let mut maps = Maps::of(&object)?;
        maps.queues = queues;
        let attached = Mutex::new(Some(Attached { link: shared.link, object }));
        let (why_generic, differs) = (None, (stamps != shared.stamps).into());
        Ok(Self { maps: Mutex::new(maps), mode, kind, stamps, why_generic, attached, differs })
    }

    /// The interface is this daemon's from now on. The daemon before has reported the frames of other queues until now. A
    /// program of its own takes the place of the one before if they differ.
    ///
    /// # Errors
    /// As [`Program::renew`].
    pub fn take_place(&self) -> io::Result<()> {
        self.unserved();
        if !self.differs.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Attached { link, object }) = attached.as_ref() else { return Ok(()) };
        update(link.as_fd(), program_of(object, self.kind)?.as_fd())
    }

    /// The program for another daemon.
    ///
    /// # Errors
    /// `NotFound` when it was taken off its interface; when this process has no descriptor left.
    pub fn share(&self) -> io::Result<SharedProgram> {
        let attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        let attached = attached.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        let [sockets, served, unserved] = maps.descriptors();
        let copy = |map: BorrowedFd<'_>| map.try_clone_to_owned();
        Ok(SharedProgram {
            link: attached.link.try_clone()?,
            maps: [copy(sockets)?, copy(served)?, copy(unserved)?],
            is_native: self.mode == XdpMode::Native,
            puts_tags_back: self.puts_tags_back(),
            stamps: self.stamps,
        })
    }

    /// Loads the program and attaches it to the interface numbered `ifindex`, in `mode`.
    /// With [`XdpMode::Auto`] that is native mode if the driver supports it, else generic mode. `stamps`: whether the
    /// program stamps each frame with its arrival time.
    ///
    /// # Errors
    /// Those of libbpf and the kernel: `EBUSY` when the interface has another XDP program.
    pub fn attach(ifindex: i32, mode: XdpMode, stamps: bool) -> io::Result<Self> {
        quiet();
        let native = |kind| {
            let object = load(kind, stamps, None)?;
            let program = program_of(&object, kind)?;
            let link = link(program.as_fd(), ifindex, libbpf_sys::XDP_FLAGS_DRV_MODE)?;
            io::Result::Ok((object, link, kind, XdpMode::Native))
        };
        let generic = || {
            let object = load(Kind::Plain, stamps, None)?;
            let program = program_of(&object, Kind::Plain)?;
            let link = link(program.as_fd(), ifindex, libbpf_sys::XDP_FLAGS_SKB_MODE)?;
            io::Result::Ok((object, link, Kind::Plain, XdpMode::Generic))
        };
        // Most drivers report no VLAN tags, and Linux before 6.8 has no such program.
        let in_driver = || native(Kind::Tags { ifindex }).or_else(|_| native(Kind::Plain));
        let mut why_generic = None;
        let (object, link, kind, mode) = match mode {
            XdpMode::Native => in_driver()?,
            XdpMode::Generic => generic()?,
            XdpMode::Auto => match in_driver() {
                Err(error) if is_unsupported(&error) => {
                    why_generic = Some(error);
                    generic()?
                }
                attached => attached?,
            },
        };
        let maps = Maps::of(&object)?;
        let attached = Mutex::new(Some(Attached { link, object }));
        let (maps, differs) = (Mutex::new(maps), false.into());
        Ok(Self { maps, mode, kind, stamps, why_generic, attached, differs })
    }

    /// Takes the program off its interface.
    pub fn detach(&self) {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Puts a copy of the program in its place, with the same maps. A veth gives the program only to the queues that it
    /// has at that time (`veth_enable_xdp` of `drivers/net/veth.c`): queues that were added since bypass it.
    ///
    /// # Errors
    /// Those of libbpf and the kernel; the program stays as it was then.
    pub fn renew(&self) -> io::Result<()> {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(attached) = attached.as_mut() else { return Ok(()) };
        let maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        let object = load(self.kind, self.stamps, Some(maps.descriptors()))?;
        let program = program_of(&object, self.kind)?;
        update(attached.link.as_fd(), program.as_fd())?;
        attached.object = object;
        Ok(())
    }

    /// Whether it puts back the VLAN tags that the device removes and reports.
    pub const fn puts_tags_back(&self) -> bool {
        matches!(self.kind, Kind::Tags { .. })
    }

    /// The mode in which it runs.
    pub const fn mode(&self) -> XdpMode {
        self.mode
    }

    /// Why it does not run in the driver, if the driver could not.
    pub const fn why_generic(&self) -> Option<&io::Error> {
        self.why_generic.as_ref()
    }

    /// Directs the frames of `queue` to `socket`, or to the host's network stack if there is none.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn direct(&self, queue: u32, socket: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let key = queue.to_ne_bytes();
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        match socket {
            Some(socket) => {
                let value = socket.as_raw_fd().to_ne_bytes();
                maps.sockets.update(&key, &value, MapFlags::ANY).map_err(system)?;
                maps.queues.insert(queue);
            }
            None => {
                match maps.sockets.delete(&key) {
                    Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => {
                        return Err(system(error));
                    }
                    _ => {}
                }
                maps.queues.remove(&queue);
            }
        }
        let served = u32::try_from(maps.queues.len()).unwrap_or(u32::MAX).to_ne_bytes();
        maps.served.update(&0u32.to_ne_bytes(), &served, MapFlags::ANY).map_err(system)
    }

    /// Number of frames, since the last call, that came on a queue without a socket while another queue had one.
    pub fn unserved(&self) -> u64 {
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        let found = maps.unserved.lookup(&0u32.to_ne_bytes(), MapFlags::ANY);
        let bytes = found.ok().flatten().and_then(|bytes| bytes.try_into().ok());
        let Some(count) = bytes.map(u64::from_ne_bytes) else { return 0 };
        count.saturating_sub(std::mem::replace(&mut maps.reported, count))
    }
}

impl Maps {
    const NAMES: [&str; 3] = ["sockets", "served", "unserved"];

    /// Those of a program that serves no queue.
    fn of(object: &Object) -> io::Result<Self> {
        let map = |name: &str| {
            let map =
                object.maps().find(|map| map.name() == name).ok_or(io::ErrorKind::NotFound)?;
            MapHandle::try_from(&map).map_err(system)
        };
        let [sockets, served, unserved] = Self::NAMES.map(map);
        let (queues, reported) = (BTreeSet::new(), 0);
        Ok(Self { sockets: sockets?, served: served?, unserved: unserved?, queues, reported })
    }

    /// In the order of their names.
    fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [self.sockets.as_fd(), self.served.as_fd(), self.unserved.as_fd()]
    }
}

/// Loads the program of this kind, with the maps of another copy of it if there is one, in the order of their names.
fn load(kind: Kind, stamps: bool, maps: Option<[BorrowedFd<'_>; 3]>) -> io::Result<Object> {
    let mut object = ObjectBuilder::default().open_memory(&OBJECT.0).map_err(system)?;
    for mut map in object.maps_mut() {
        if let Some(constants) = map.initial_value_mut() {
            if let Some(first) = constants.first_chunk_mut() {
                // `stamps`, the only constant of the program.
                *first = i32::from(stamps).to_ne_bytes();
            }
        } else if let Some(maps) = maps
            && let Some(at) = Maps::NAMES.iter().position(|name| map.name() == *name)
        {
            map.reuse_fd(maps[at]).map_err(system)?;
        }
    }
    for mut program in object.progs_mut() {
        let is_it = program.name() == kind.name();
        program.set_autoload(is_it);
        if let (true, Kind::Tags { ifindex }) = (is_it, kind) {
            program.set_ifindex(ifindex.cast_unsigned());
            program.set_flags(libbpf_sys::BPF_F_XDP_DEV_BOUND_ONLY);
        }
    }
    object.load().map_err(system)
}

fn program_of(object: &Object, kind: Kind) -> io::Result<libbpf_rs::Program<'_>> {
    let program = object.progs().find(|program| program.name() == kind.name());
    program.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Replaces the program of a link.
fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are open; without options nothing else is read.
    let result = unsafe {
        libbpf_sys::bpf_link_update(link.as_raw_fd(), program.as_raw_fd(), std::ptr::null())
    };
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

/// Attaches the program with a link. The kernel removes a link with its last file descriptor: however this process
/// ends, the program is detached.
fn link(program: BorrowedFd<'_>, ifindex: i32, flags: u32) -> io::Result<OwnedFd> {
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        flags,
        ..Default::default()
    };
    // SAFETY: the program is ours and its descriptor is open; the other arguments are plain numbers and `options`,
    // which outlives the call.
    let link = unsafe {
        libbpf_sys::bpf_link_create(
            program.as_raw_fd(),
            ifindex,
            libbpf_sys::BPF_XDP,
            &raw const options,
        )
    };
    if link < 0 {
        return Err(io::Error::from_raw_os_error(-link));
    }
    // SAFETY: the kernel has just created this descriptor for us, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS))
}

/// Logs libbpf's own messages at debug level only.
fn quiet() {
    libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Debug, |_, message| {
        log::debug!("{}", message.trim_end());
    })));
}

fn system(error: libbpf_rs::Error) -> io::Error {
    io::Error::new(
        match error.kind() {
            libbpf_rs::ErrorKind::PermissionDenied => io::ErrorKind::PermissionDenied,
            libbpf_rs::ErrorKind::NotFound => io::ErrorKind::NotFound,
            _ => io::ErrorKind::Other,
        },
        error,
    )
}
