//! `clock --ptp`: bounds of the offset between the clocks of a KVM guest and its host, by the guest's clock device.
//!
//! The driver `ptp_kvm` reads the host's `CLOCK_REALTIME` by a call of the hypervisor (`KVM_HC_CLOCK_PAIRING` in
//! Documentation/virt/kvm/x86/hypercalls.rst), and offers it as a PTP clock. Where the guest's clock source is `kvm-clock`, the
//! host also says at which value of the guest's counter it has read its clock. So the kernel knows both clocks at one moment
//! (`PTP_SYS_OFFSET_PRECISE`). Elsewhere the guest reads its own clock before and after the host's (`PTP_SYS_OFFSET`).
//! `PTP_SYS_OFFSET_EXTENDED` would do the same, but the driver has no such reading (`gettimex64` in
//! `drivers/ptp/ptp_kvm_common.c`).
//!
//! The guest's `CLOCK_REALTIME` becomes its `CLOCK_MONOTONIC` by readings of both.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::bounds::telling;
use super::{ClockBound, ClockBounds, Error};
use crate::clock::RealtimeAhead;
use crate::sys::{
    PtpClockTime, PtpSysOffset, PtpSysOffsetPrecise, ptp_sys_offset, ptp_sys_offset_precise,
};

/// The kernel's clock devices, with their names in `clock_name` (Documentation/ABI/testing/sysfs-ptp).
const DEVICES: &str = "/sys/class/ptp";
/// The name of the driver's clock (`ptp_kvm_caps` in `drivers/ptp/ptp_kvm_common.c`).
pub const NAME: &str = "KVM virtual PTP";
/// Name of the relation in [`ClockBounds`].
const RELATION: &str = "ptp-kvm";
/// Readings of the device: some milliseconds.
const ROUNDS: u32 = 400;
/// Readings of the guest's clocks.
const READINGS: u32 = 1000;

/// Bounds the offset of this guest's clock from the host's `CLOCK_REALTIME`, by which [`ClockBound::host_ns`] is here.
///
/// # Errors
/// If this machine has no such device, or it cannot be read.
pub fn bound_clock() -> Result<ClockBounds, Error> {
    let path = find(Path::new(DEVICES))?;
    let failed = |source| Error::File { doing: "read the clock", path: path.clone(), source };
    let device = File::open(&path).map_err(failed)?;
    let ahead = RealtimeAhead::read(READINGS).bounds_ns();
    let mut all = Vec::new();
    for _ in 0..ROUNDS {
        read(&device, ahead, &mut all).map_err(failed)?;
    }
    all.sort_unstable_by_key(|bound| bound.host_ns);
    Ok(ClockBounds {
        relation: RELATION.into(),
        exchanges: all.len() as u64,
        shortest_ns: all.iter().map(ClockBound::width_ns).min().unwrap_or(0),
        bounds: telling(&all),
    })
}

/// The device of the driver, by the names of all devices.
fn find(devices: &Path) -> Result<PathBuf, Error> {
    let mut names = Vec::new();
    for entry in fs::read_dir(devices).into_iter().flatten().flatten() {
        let name = fs::read_to_string(entry.path().join("clock_name")).unwrap_or_default();
        if name.trim() == NAME {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
        names.push(name.trim().to_owned());
    }
    names.sort_unstable();
    let found = if names.is_empty() { "no clock".into() } else { names.join(", ") };
    Err(Error::NoPtp { devices: devices.into(), found })
}

/// Adds what one reading of the device bounds. `ahead`: how far this guest's `CLOCK_REALTIME` is ahead of its
/// `CLOCK_MONOTONIC`, nanoseconds.
fn read(device: &File, ahead: [i64; 2], all: &mut Vec<ClockBound>) -> io::Result<()> {
    match ptp_sys_offset_precise(device) {
        Ok(precise) => all.push(by_precise(&precise, ahead)),
        // The guest's clock source is another one, or the kernel is older than 4.6.
        Err(Errno::OPNOTSUPP | Errno::NODEV | Errno::NOTTY) => {
            all.extend(by_samples(&ptp_sys_offset(device)?, ahead));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn by_precise(read: &PtpSysOffsetPrecise, ahead: [i64; 2]) -> ClockBound {
    bound(&read.device, [&read.sys_realtime, &read.sys_realtime], ahead)
}

/// The guest's stamps and the host's follow each other, and the guest's are first and last.
fn by_samples(read: &PtpSysOffset, ahead: [i64; 2]) -> impl Iterator<Item = ClockBound> {
    let samples = (read.n_samples as usize).min(read.ts.len() / 2);
    let stamps = read.ts[..2 * samples + 1].windows(3).step_by(2);
    stamps.map(move |stamps| bound(&stamps[1], [&stamps[0], &stamps[2]], ahead))
}

/// The bound when the host's clock was read between two readings of the guest's `CLOCK_REALTIME`.
fn bound(host: &PtpClockTime, guest: [&PtpClockTime; 2], ahead: [i64; 2]) -> ClockBound {
    let [least, most] = guest.map(PtpClockTime::ns);
    let [least_ahead, most_ahead] = ahead;
    let host_ns = host.ns();
    // Clocks are read without the fractions of their nanoseconds.
    ClockBound {
        host_ns: host_ns.unsigned_abs(),
        low_ns: (least - most_ahead).saturating_sub(host_ns + 1),
        high_ns: (most + 1 - least_ahead).saturating_sub(host_ns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_S: i64 = 1_790_000_000;
    const DAY_NS: i64 = DAY_S * 1_000_000_000;
    /// The guest started 100 s ago: its `CLOCK_REALTIME` is ahead by this, give or take 20 ns.
    const AHEAD: [i64; 2] = [DAY_NS - 100_000_000_020, DAY_NS - 99_999_999_980];

    fn at(ns: i64) -> PtpClockTime {
        let of_second = ns.rem_euclid(1_000_000_000);
        PtpClockTime::new(DAY_S + ns.div_euclid(1_000_000_000), of_second.try_into().unwrap())
    }

    #[test]
    fn one_moment_on_both_clocks_bounds_the_offset_to_the_error_of_the_guests_readings() {
        // The guest's time of day is 250 ns ahead of the host's.
        let read = PtpSysOffsetPrecise {
            device: at(-400),
            sys_realtime: at(-150),
            ..PtpSysOffsetPrecise::default()
        };
        let found = by_precise(&read, AHEAD);
        let ahead = 100_000_000_000 - DAY_NS + 250;
        assert_eq!(found.host_ns, (DAY_NS - 400).unsigned_abs());
        assert_eq!((found.low_ns, found.high_ns), (ahead - 21, ahead + 21));
    }

    #[test]
    fn each_reading_of_the_host_lies_between_two_of_the_guest() {
        let mut read = PtpSysOffset::of(2);
        for (stamp, ns) in read.ts.iter_mut().zip([1_000, 1_200, 2_500, 2_600, 3_100]) {
            *stamp = at(ns);
        }
        let found: Vec<_> = by_samples(&read, AHEAD).collect();
        let base = 100_000_000_000 - DAY_NS;
        let expected = [(1_200, -200 - 21, 1_300 + 21), (2_600, -100 - 21, 500 + 21)];
        let expected = expected.map(|(at, low, high)| ClockBound {
            host_ns: (DAY_NS + at).unsigned_abs(),
            low_ns: base + low,
            high_ns: base + high,
        });
        assert_eq!(found, expected);
        read.n_samples = u32::MAX;
        assert_eq!(by_samples(&read, AHEAD).count(), 25);
    }

    #[test]
    fn the_drivers_clock_is_found_among_others() {
        let directory = tempfile::tempdir().unwrap();
        let add = |device: &str, name: &str| {
            fs::create_dir_all(directory.path().join(device)).unwrap();
            fs::write(directory.path().join(device).join("clock_name"), name).unwrap();
        };
        let error = find(directory.path()).unwrap_err().to_string();
        assert!(error.contains("found no clock") && error.contains("modprobe ptp_kvm"), "{error}");
        add("ptp0", "ixgbe\n");
        assert!(find(directory.path()).unwrap_err().to_string().contains("found ixgbe"));
        add("ptp1", "KVM virtual PTP\n");
        assert_eq!(find(directory.path()).unwrap(), Path::new("/dev/ptp1"));
    }
}
