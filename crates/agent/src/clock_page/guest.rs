//! The guest's end: finds the page among its PCI devices, and answers.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

use burst_trace::Clock;
use serde::Serialize;

use super::Error;
use super::page::{PAGE_BYTES, Page, Question, Reading, Wanted};
use crate::clock::now_ns;

/// The devices of this machine, as the kernel shows them (Documentation/PCI/sysfs-pci.rst).
const DEVICES: &str = "/sys/bus/pci/devices";
/// Vendor and device of ivshmem (QEMU, docs/specs/ivshmem-spec.rst).
const IVSHMEM: [(&str, &str); 2] = [("vendor", "0x1af4"), ("device", "0x1110")];
/// The file of the shared memory: the device's BAR 2.
const MEMORY: &str = "resource2";

/// Looks at the page without a rest, while the host asks: less than 10 ms, also in an emulated guest.
const LOOKS: u32 = 1 << 18;
/// Looks after which another program may have the CPU: an exchange takes fewer.
const LOOKS_ALONE: u32 = 4096;
/// Rest after them.
const REST: Duration = Duration::from_millis(1);

/// What the guest's end prints.
#[derive(Debug, Serialize)]
pub struct Served {
    /// Address of the PCI device, such as `0000:00:03.0`.
    device: String,
    /// Number of answers.
    answers: u64,
}

/// Answers the host until it has finished.
///
/// # Errors
/// If this machine has no clock page or no counter, or the host asks nothing for the time of `limit`.
pub fn serve(limit: Duration) -> Result<Served, crate::Error> {
    let clock = Clock::of_cpu().ok_or(crate::Error::NoCounter)?;
    let device = find(Path::new(DEVICES))?;
    let page = open(&device)?;
    let answers = answer(&page, limit, |wanted| read(&clock, wanted))?;
    let device = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Served { device, answers })
}

/// The first device whose memory is a page.
pub fn find(devices: &Path) -> Result<PathBuf, Error> {
    let listed = fs::read_dir(devices).map(|entries| entries.flatten().map(|it| it.path()));
    let mut all: Vec<_> = match listed {
        Ok(listed) => listed.collect(),
        // A kernel without PCI.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(source) => return Err(Error::File { doing: "list", path: devices.into(), source }),
    };
    all.sort();
    let is_page = |device: &PathBuf| {
        let is = |(name, expected): (&str, &str)| {
            fs::read_to_string(device.join(name)).is_ok_and(|found| found.trim() == expected)
        };
        let has_bytes = |it: fs::Metadata| it.len() == PAGE_BYTES;
        IVSHMEM.into_iter().all(is) && device.join(MEMORY).metadata().is_ok_and(has_bytes)
    };
    all.into_iter().find(is_page).ok_or_else(|| Error::NoDevice { devices: devices.into() })
}

fn open(device: &Path) -> Result<Page, Error> {
    let failed = |doing, path: PathBuf| move |source| Error::File { doing, path, source };
    let enable = device.join("enable");
    // The kernel counts how often it was enabled.
    if fs::read_to_string(&enable).is_ok_and(|it| it.trim() == "0") {
        let enabled = fs::write(&enable, "1");
        enabled.map_err(failed("enable the device by", enable))?;
    }
    let path = device.join(MEMORY);
    let file = File::options().read(true).write(true).open(&path);
    let page = file.and_then(|file| Page::map(&file));
    page.map_err(failed("map the clock page", path))
}

/// Reads this machine's counter, and its clock if that is wanted.
pub fn read(clock: &Clock, wanted: Wanted) -> Reading {
    let before = clock.now_after_loads();
    if wanted == Wanted::Counter {
        return Reading { before, clock_ns: 0, after: before };
    }
    let clock_ns = now_ns();
    Reading { before, clock_ns, after: clock.now_after_loads() }
}

/// Answers with what `read` returns until the host ends it, or has asked nothing for the time of `limit`. Returns the number of
/// answers.
pub fn answer(
    page: &Page,
    limit: Duration,
    mut read: impl FnMut(Wanted) -> Reading,
) -> Result<u64, Error> {
    let mut last = page.asked();
    // The end that is there at the beginning is an earlier exchange's. Any other question may be for this one.
    if last.wanted() != Wanted::End {
        last = Question::NONE;
    }
    let mut answers = 0;
    loop {
        let question = next(page, last, limit)?;
        match question.wanted() {
            Wanted::Counter | Wanted::Pair => {
                page.answer(question, read(question.wanted()));
                answers += 1;
            }
            Wanted::End => return Ok(answers),
            Wanted::Nothing => {}
        }
        last = question;
    }
}

/// The next question. There is no `spin_loop` hint: in an emulated guest that instruction leaves the translated code.
fn next(page: &Page, last: Question, limit: Duration) -> Result<Question, Error> {
    for look in 1..=LOOKS {
        let question = page.asked();
        if question != last {
            return Ok(question);
        }
        if look.is_multiple_of(LOOKS_ALONE) {
            yield_now();
        }
    }
    let end = Instant::now() + limit;
    loop {
        let question = page.asked();
        if question != last {
            return Ok(question);
        }
        if Instant::now() >= end {
            return Err(if page.is_torn() { Error::Torn } else { Error::NoQuestion { limit } });
        }
        sleep(REST);
    }
}
