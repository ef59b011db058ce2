//! The system calls of the tests that have no safe form.
#![allow(unsafe_code, reason = "process_madvise, packet sockets and taps have no safe form")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr::without_provenance_mut;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Most ranges of one call (`UIO_MAXIOV`, include/uapi/linux/uio.h).
const RANGES_MAX: usize = 1024;

/// `SIOCGSTAMPNS` (include/uapi/asm-generic/sockios.h). Not in `libc`.
const SIOCGSTAMPNS: libc::Ioctl = 0x8907;

/// Has the kernel take back the pages in these address ranges of another process (`process_madvise(2)`, `MADV_PAGEOUT`).
/// Pages of a file that nobody has changed are read from it again when the process touches them.
///
/// # Errors
/// Without such a process or the right to do this.
pub fn page_out(process: u32, ranges: &[Range<usize>]) -> io::Result<()> {
    let pid = Pid::from_raw(process.cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
    let descriptor = pidfd_open(pid, PidfdFlags::empty())?;
    let vector = |range: &Range<usize>| libc::iovec {
        iov_base: without_provenance_mut(range.start),
        iov_len: range.len(),
    };
    let vectors: Vec<_> = ranges.iter().take(RANGES_MAX).map(vector).collect();
    // SAFETY: the kernel only reads the list, which outlives the call. Its addresses are those of the other process, whose
    // memory keeps its content.
    let advised = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            descriptor.as_raw_fd(),
            vectors.as_ptr(),
            vectors.len(),
            libc::MADV_PAGEOUT,
            0_u32,
        )
    };
    if advised < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A socket that gets each frame that passes the interface of this index, either way, and that the classic BPF program
/// `filter` accepts.
///
/// # Errors
/// Without root, or without such an interface.
pub fn packet_socket(interface: u32, filter: &[libc::sock_filter]) -> io::Result<OwnedFd> {
    // No frame comes before it is bound.
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is passed.
    let socket = checked(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: the descriptor is new, so nobody else closes it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let len = u16::try_from(filter.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the kernel only reads the program, whose instructions outlive the call.
    checked(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length_of::<libc::sock_fprog>(),
        )
    })?;
    let protocol = u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?.to_be();
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?,
        sll_protocol: protocol,
        sll_ifindex: interface.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the kernel only reads the address, which is of this length.
    checked(unsafe {
        let len = length_of::<libc::sockaddr_ll>();
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len)
    })?;
    Ok(socket)
}

/// Opens a queue of the tap of this name, which has the vnet header.
///
/// # Errors
/// Without root, or without such a tap.
pub fn open_tap(name: &str) -> io::Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    // `struct ifreq`: the name, then the flags (`linux/if.h`).
    let mut request = [0_u8; 40];
    request[..name.len().min(15)].copy_from_slice(&name.as_bytes()[..name.len().min(15)]);
    request[16..20].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the kernel reads and writes a `struct ifreq`, which has 40 bytes.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) })?;
    Ok(file)
}

/// When the kernel saw the frame that was read last from a packet socket, by the clock of the time of day.
///
/// # Errors
/// When there was none, or the kernel began to note it after that.
pub fn last_stamp(socket: &OwnedFd) -> io::Result<Duration> {
    let mut stamp = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one `timespec`.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSTAMPNS, &raw mut stamp) })?;
    let seconds = u64::try_from(stamp.tv_sec).map_err(io::Error::other)?;
    Ok(Duration::new(seconds, u32::try_from(stamp.tv_nsec).map_err(io::Error::other)?))
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[expect(clippy::cast_possible_truncation, reason = "a few bytes")]
const fn length_of<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}
