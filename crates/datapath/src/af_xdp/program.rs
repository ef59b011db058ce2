//! The XDP program that hands frames to sockets (`bpf/sockets.bpf.c`): loaded, attached, and gone again
//! with this process.
#![allow(unsafe_code, reason = "a link with flags, which libbpf-rs cannot make")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Mutex;

use libbpf_rs::{MapCore, MapFlags, MapHandle, Object, ObjectBuilder};

use super::XdpMode;

/// The compiled program, aligned as an ELF file has to be.
#[repr(align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/sockets.bpf.o")));

/// The program on its interface, and the table of sockets that it looks into.
#[derive(Debug)]
pub struct Program {
    /// The table is reached from the worker of every queue pair; a lock a start and stop, never a frame.
    sockets: Mutex<MapHandle>,
    /// The mode that it runs in: native or generic.
    mode: XdpMode,
    // Dropped in this order: the link takes the program off the interface.
    _link: OwnedFd,
    _object: Object,
}

impl Program {
    /// Loads the program for `queues` receive queues and attaches it to the interface numbered `ifindex`: native
    /// if the driver can, else generic, or as `mode` says. `stamps`: whether it notes when each frame came.
    ///
    /// # Errors
    /// What libbpf and the kernel answer; `EBUSY` when the interface has another XDP program.
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

    /// The mode that it runs in.
    pub const fn mode(&self) -> XdpMode {
        self.mode
    }

    /// Has the frames of `queue` go to `socket`, or to the host's stack when there is none.
    ///
    /// # Errors
    /// What the kernel answers.
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
            // The only constant of the program.
            *first = i32::from(stamps).to_ne_bytes();
        }
    }
    object.load().map_err(system)
}

/// A link leaves with the last descriptor of it: however this process ends, the program is gone.
fn link(program: BorrowedFd<'_>, ifindex: i32, flags: u32) -> io::Result<OwnedFd> {
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        flags,
        ..Default::default()
    };
    // SAFETY: a program of ours that is open, plain numbers, and options that outlive the call.
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
    // SAFETY: a descriptor that was just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS))
}

/// libbpf's own messages are for those who look closely.
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
