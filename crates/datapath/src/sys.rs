//! The system calls of the datapaths.
#![allow(unsafe_code, reason = "ioctl, readv, writev and poll on raw descriptors")]

use std::ffi::c_ulong;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use guest_memory::GuestSlice;

/// `struct ifreq` with a name and flags, as the tun driver reads it (`linux/if.h`).
#[repr(C)]
pub struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: i16,
    rest: [u8; 22],
}

impl InterfaceRequest {
    /// A request for the interface `name`, which is shorter than `IFNAMSIZ`.
    pub fn new(name: &str, flags: i32) -> Self {
        let mut bytes = [0; libc::IFNAMSIZ];
        let len = name.len().min(bytes.len() - 1);
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        #[expect(clippy::cast_possible_truncation, reason = "IFF_* of tun fit 16 bits")]
        Self { name: bytes, flags: flags as i16, rest: [0; 22] }
    }
}

impl InterfaceRequest {
    /// The interface's name, as the kernel filled it in.
    pub fn name(&self) -> String {
        let len = self.name.iter().position(|&byte| byte == 0).unwrap_or(self.name.len());
        String::from_utf8_lossy(&self.name[..len]).into_owned()
    }

    /// The link address, as the kernel filled it in (`SIOCGIFHWADDR`): `sa_data` begins behind the family, which is
    /// where flags are otherwise.
    pub fn address(&self) -> [u8; 6] {
        std::array::from_fn(|n| self.rest[n])
    }

    /// The flags, as the kernel filled them in.
    pub const fn flags(&self) -> i16 {
        self.flags
    }
}

/// An ioctl whose argument is an `ifreq`.
pub fn ioctl_interface(
    file: &File,
    request: c_ulong,
    argument: &mut InterfaceRequest,
) -> io::Result<()> {
    // SAFETY: `argument` is a whole `struct ifreq` (40 bytes) that outlives the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut *argument) })
}

/// An ioctl whose argument is a pointer to an `int`.
pub fn ioctl_int(file: &File, request: c_ulong, argument: i32) -> io::Result<()> {
    // SAFETY: the argument is an int that outlives the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, &raw const argument) })
}

/// An ioctl that fills in an `int`.
pub fn ioctl_get_int(file: &File, request: c_ulong) -> io::Result<i32> {
    let mut answer = 0_i32;
    // SAFETY: the argument is an int that outlives the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut answer) })?;
    Ok(answer)
}

/// An ioctl whose argument is a number.
pub fn ioctl_number(file: &File, request: c_ulong, argument: u32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, c_ulong::from(argument)) })
}

/// `setsockopt` with an `int`.
pub fn set_socket_option(
    socket: BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: i32,
) -> io::Result<()> {
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the value is an int that outlives the call, and so long.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len)
    })
}

/// Reads once into `list`.
#[inline]
pub fn readv(file: &File, list: &[GuestSlice<'_>]) -> io::Result<usize> {
    let list = GuestSlice::as_iovecs(list);
    // SAFETY: each entry is a checked run of mapped, writable bytes (`GuestSlice`), and nothing in this
    // process refers to them.
    count(unsafe { libc::readv(file.as_raw_fd(), list.as_ptr(), len(list)) })
}

/// Writes `list` at once.
#[inline]
pub fn writev(file: &File, list: &[GuestSlice<'_>]) -> io::Result<usize> {
    let list = GuestSlice::as_iovecs(list);
    // SAFETY: each entry is a checked run of mapped bytes (`GuestSlice`).
    count(unsafe { libc::writev(file.as_raw_fd(), list.as_ptr(), len(list)) })
}

/// Whether there is something to read now. A read of a tap whose interface is gone fails, which is news too.
pub fn is_readable(file: &File) -> bool {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd that outlives the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready > 0 && poll.revents & (libc::POLLIN | libc::POLLERR) != 0
}

#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "at most 1024")]
const fn len(list: &[libc::iovec]) -> i32 {
    list.len() as i32
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[inline]
fn count(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
