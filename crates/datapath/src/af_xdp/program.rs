//! The XDP program that redirects frames to sockets (`bpf/sockets.bpf.c`). It is loaded and attached here, and leaves
//! the interface when this process ends.
#![allow(unsafe_code, reason = "creates a link with flags, which libbpf-rs cannot")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Mutex;

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
    /// The map of sockets by queue. The worker of every queue pair accesses it. The lock is taken at start and stop,
    /// never for a frame.
    sockets: Mutex<MapHandle>,
    /// The mode in which it runs: native or generic.
    mode: XdpMode,
    // Field order is drop order: first the link, which detaches the program from the interface.
    _link: OwnedFd,
    _object: Object,
}

impl Program {
    /// Loads the program for `queues` receive queues and attaches it to the interface numbered `ifindex`, in `mode`.
    /// With [`XdpMode::Auto`] that is native mode if the driver supports it, else generic mode. `stamps`: whether the
    /// program stamps each frame with its arrival time.
    ///
    /// # Errors
    /// Those of libbpf and the kernel: `EBUSY` when the interface has another XDP program.
    pub fn attach(ifindex: i32, queues: u32, mode: XdpMode, stamps: bool) -> io::Result<Self> {
        quiet();
        let object = load(queues, stamps)?;
        let program = object.progs().next().ok_or(io::ErrorKind::NotFound)?;
        let (link, mode) = match mode {
            XdpMode::Auto => match link(program.as_fd(), ifindex, libbpf_sys::XDP_FLAGS_DRV_MODE) {
                Ok(link) => (link, XdpMode::Native),
                Err(error) if is_unsupported(&error) => {
                    log::info!("the driver runs no XDP programs itself ({error}): generic mode");
                    let link = link(program.as_fd(), ifindex, libbpf_sys::XDP_FLAGS_SKB_MODE)?;
                    (link, XdpMode::Generic)
                }
                Err(error) => return Err(error),
            },
            XdpMode::Native => {
                (link(program.as_fd(), ifindex, libbpf_sys::XDP_FLAGS_DRV_MODE)?, mode)
            }
            XdpMode::Generic => {
                (link(program.as_fd(), ifindex, libbpf_sys::XDP_FLAGS_SKB_MODE)?, mode)
            }
        };
        let map =
            object.maps().find(|map| map.name() == "sockets").ok_or(io::ErrorKind::NotFound)?;
        let sockets = Mutex::new(MapHandle::try_from(&map).map_err(system)?);
        Ok(Self { sockets, mode, _link: link, _object: object })
    }

    /// The mode in which it runs.
    pub const fn mode(&self) -> XdpMode {
        self.mode
    }

    /// Directs the frames of `queue` to `socket`, or to the host's network stack if there is none.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn direct(&self, queue: u32, socket: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let key = queue.to_ne_bytes();
        let sockets = self.sockets.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match socket {
            Some(socket) => {
                let value = socket.as_raw_fd().to_ne_bytes();
                sockets.update(&key, &value, MapFlags::ANY).map_err(system)
            }
            None => match sockets.delete(&key) {
                Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => Err(system(error)),
                _ => Ok(()),
            },
        }
    }
}

fn load(queues: u32, stamps: bool) -> io::Result<Object> {
    let mut object = ObjectBuilder::default().open_memory(&OBJECT.0).map_err(system)?;
    for mut map in object.maps_mut() {
        if map.name() == "sockets" {
            map.set_max_entries(queues).map_err(system)?;
        } else if let Some(constants) = map.initial_value_mut()
            && let Some(first) = constants.first_chunk_mut()
        {
            // `stamps`, the only constant of the program.
            *first = i32::from(stamps).to_ne_bytes();
        }
    }
    object.load().map_err(system)
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
