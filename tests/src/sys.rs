//! The system call of the tests that has no safe form.
#![allow(unsafe_code, reason = "process_madvise has no safe form")]

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::ptr::without_provenance_mut;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Most ranges of one call (`UIO_MAXIOV`, include/uapi/linux/uio.h).
const RANGES_MAX: usize = 1024;

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
