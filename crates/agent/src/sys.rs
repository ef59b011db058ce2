//! The system calls of the agent that have no safe form.
#![allow(
    unsafe_code,
    reason = "the scheduling class, locked memory and clock devices have no safe form"
)]

use std::fs::File;
use std::io;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// Puts the calling thread, and those that it starts from now on, into the real-time class `SCHED_FIFO`
/// (`sched_setscheduler(2)`).
pub fn run_in_real_time(priority: u8) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority.into() };
    // SAFETY: the structure has plain numbers and outlives the call.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) })
}

/// Keeps all memory of this process in RAM, also what it maps later (`mlockall(2)`).
pub fn lock_memory() -> io::Result<()> {
    // SAFETY: the call takes a plain number and changes no content.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) })
}

/// `struct ptp_clock_time` (`include/uapi/linux/ptp_clock.h`, as all below).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PtpClockTime {
    sec: i64,
    nsec: u32,
    reserved: u32,
}

impl PtpClockTime {
    /// Nanoseconds since the clock's beginning.
    pub const fn ns(&self) -> i64 {
        self.sec.saturating_mul(1_000_000_000).saturating_add(self.nsec as i64)
    }

    #[cfg(test)]
    pub const fn new(sec: i64, nsec: u32) -> Self {
        Self { sec, nsec, reserved: 0 }
    }
}

/// `struct ptp_sys_offset_precise`: one moment on the device's clock and on this machine's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PtpSysOffsetPrecise {
    pub device: PtpClockTime,
    pub sys_realtime: PtpClockTime,
    pub sys_monoraw: PtpClockTime,
    pub reserved: [u32; 4],
}

/// `PTP_MAX_SAMPLES`.
const PTP_SAMPLES: u32 = 25;

/// `struct ptp_sys_offset`: readings of this machine's `CLOCK_REALTIME` and of the device's clock in turn.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PtpSysOffset {
    pub n_samples: u32,
    reserved: [u32; 3],
    pub ts: [PtpClockTime; 2 * PTP_SAMPLES as usize + 1],
}

impl PtpSysOffset {
    /// For this number of readings of the device, at most [`PTP_SAMPLES`].
    pub const fn of(n_samples: u32) -> Self {
        let none = PtpClockTime { sec: 0, nsec: 0, reserved: 0 };
        Self { n_samples, reserved: [0; 3], ts: [none; 2 * PTP_SAMPLES as usize + 1] }
    }
}

/// Reads a clock device and this machine's clock at one moment (`PTP_SYS_OFFSET_PRECISE`).
pub fn ptp_sys_offset_precise(device: &File) -> Result<PtpSysOffsetPrecise, Errno> {
    const PRECISE: Opcode = opcode::read_write::<PtpSysOffsetPrecise>(b'=', 8);
    let mut read = PtpSysOffsetPrecise::default();
    // SAFETY: the request is the kernel's for this structure, which has the kernel's layout and outlives the call. Any bytes
    // that the kernel writes are valid numbers. A device of another kind refuses the request.
    unsafe { ioctl(device, Updater::<PRECISE, _>::new(&mut read))? };
    Ok(read)
}

/// Reads this machine's clock and a clock device in turn (`PTP_SYS_OFFSET`).
pub fn ptp_sys_offset(device: &File) -> Result<PtpSysOffset, Errno> {
    // The kernel writes, too, although its name for the request does not say so.
    const SYS_OFFSET: Opcode = opcode::write::<PtpSysOffset>(b'=', 5);
    let mut read = PtpSysOffset::of(PTP_SAMPLES);
    // SAFETY: as above.
    unsafe { ioctl(device, Updater::<SYS_OFFSET, _>::new(&mut read))? };
    Ok(read)
}

fn check(answer: i32) -> io::Result<()> {
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
