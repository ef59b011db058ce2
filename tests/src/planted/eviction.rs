//! The kernel takes back the pages of a program, as it does when it is short of memory, and reads them again from a slow disk.

use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::fs::{major, minor, statfs};
use rustix::process::{Pid, Signal, kill_process};

use super::groups::{Group, Hierarchy, Version};
use super::standby::Standby;
use super::undo::Undo;
use crate::beside::{run_on, set_policy};
use crate::processes::{children, stat_field};
use crate::qemu::Failure;
use crate::sys::page_out;

/// Reads of the disk that are allowed each second. Most take as long as the disk needs: it may be fast, or another host's memory.
const READS: u32 = 100;
/// File system in memory (include/uapi/linux/magic.h).
const TMPFS_MAGIC: i128 = 0x0102_1994;

/// A thread that evicts pages on request.
#[derive(Debug)]
pub struct Eviction(Standby<Order>);

/// Pages to evict, again and again.
#[derive(Debug)]
struct Order {
    process: u32,
    ranges: Vec<Range<usize>>,
    is_over: Arc<AtomicBool>,
    result: Sender<io::Result<()>>,
}

impl Eviction {
    /// Starts the thread on this CPU. It must not be the one of the program whose pages are taken: there it would compete for the
    /// CPU, which is another fault.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn prepare(cpu: usize) -> Result<Self, Failure> {
        let thread = Standby::start("eviction", move |next: Receiver<Order>| {
            run_on(cpu);
            // Any other program gets that CPU at once.
            set_policy(&["--idle", "--pid", "0"]);
            for order in next {
                // Nobody may wait for it any more.
                let _ = order.result.send(evict(&order));
            }
        })?;
        Ok(Self(thread))
    }

    /// Takes the pages of a process's program away again and again, until it is undone. Ends the children of that process: they map
    /// the same program, and the kernel evicts no page that two processes map (`madvise_cold_or_pageout_pte_range`,
    /// mm/madvise.c). The daemon asks them only while a front end connects or leaves.
    ///
    /// # Errors
    /// What the system answers.
    pub fn begin(&self, process: u32) -> Result<Undo, Failure> {
        let program = fs::read_link(format!("/proc/{process}/exe"))?;
        let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
        let ranges = mapped(&maps, &program);
        for child in children(process)? {
            let child = Pid::from_raw(child.cast_signed()).ok_or("expected a process")?;
            kill_process(child, Signal::KILL)?;
        }
        let slow = slow_reads(&program, process)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let (result, end) = channel();
        self.0.order(Order { process, ranges, is_over: Arc::clone(&is_over), result })?;
        Ok(Undo::new(move || {
            is_over.store(true, Ordering::Relaxed);
            end.recv().map_err(|_| "the thread that evicts has ended")??;
            slow.now()
        }))
    }
}

/// How often a page of a process had to be read from a file (`proc_pid_stat(5)`, field 12).
///
/// # Errors
/// If there is no such process.
pub fn major_faults(process: u32) -> Result<u64, Failure> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    Ok(stat_field(&stat, 12).ok_or("expected the number of major faults")?.parse()?)
}

fn evict(order: &Order) -> io::Result<()> {
    while !order.is_over.load(Ordering::Relaxed) {
        page_out(order.process, &order.ranges)?;
    }
    Ok(())
}

/// Why pages of this program cannot be evicted; `None` if they can.
#[must_use]
pub fn obstacle(program: &Path) -> Option<String> {
    match statfs(program) {
        Err(error) => Some(error.to_string()),
        Ok(place) if i128::from(place.f_type) == TMPFS_MAGIC => {
            Some(format!("{} is in memory itself (tmpfs)", program.display()))
        }
        Ok(_) => {
            let tried = limited(program).and_then(|limited| Ok(limited.group.remove()?));
            let tried = tried.and_then(|()| Ok(children(std::process::id())?));
            tried.err().map(|error| error.to_string())
        }
    }
}

/// A group whose processes read a disk only [`READS`] times a second.
struct Limited {
    hierarchy: Hierarchy,
    group: Group,
    disk: String,
}

/// Makes such a group for the disk of a file.
fn limited(file: &Path) -> Result<Limited, Failure> {
    let (disk, hierarchy) = (disk_of(file)?, hierarchy()?);
    let group = hierarchy.make()?;
    let limited = Limited { hierarchy, group, disk };
    let set = limited.set(Some(READS));
    if set.is_err() {
        limited.group.remove()?;
    }
    set.map(|()| limited)
}

impl Limited {
    /// Allows this number of reads a second; any number with `None`.
    fn set(&self, reads: Option<u32>) -> Result<(), Failure> {
        let Self { hierarchy, group, disk } = self;
        let done = match (hierarchy.version(), reads) {
            (Version::One, reads) => {
                let line = format!("{disk} {}", reads.unwrap_or(0));
                group.set("blkio.throttle.read_iops_device", &line)
            }
            (Version::Two, Some(reads)) => group.set("io.max", &format!("{disk} riops={reads}")),
            (Version::Two, None) => group.set("io.max", &format!("{disk} riops=max")),
        };
        Ok(done?)
    }
}

/// Lets a process read the disk of a file only [`READS`] times a second.
fn slow_reads(file: &Path, process: u32) -> Result<Undo, Failure> {
    let limited = limited(file)?;
    let taken = limited.hierarchy.take(process, limited.group.clone())?;
    Ok(Undo::new(move || {
        // What is waiting to be read would go on waiting.
        limited.set(None)?;
        taken.now()
    }))
}

/// The hierarchy of control groups that can limit reads.
fn hierarchy() -> Result<Hierarchy, Failure> {
    let all = [("blkio", Version::One), ("io", Version::Two)];
    let found = all.into_iter().find_map(|(name, version)| {
        Hierarchy::all(name).into_iter().find(|it| it.version() == version && it.offers())
    });
    Ok(found.ok_or("no hierarchy of control groups can limit what is read of a disk")?)
}

/// The disk that a file is on, as in `254:0`: a partition has no limits of its own.
fn disk_of(file: &Path) -> Result<String, Failure> {
    let device = fs::metadata(file)?.dev();
    let number = format!("{}:{}", major(device), minor(device));
    let place = fs::canonicalize(format!("/sys/dev/block/{number}"))
        .map_err(|_| format!("{} is on no disk", file.display()))?;
    let is_partition = place.join("partition").exists();
    let disk = place.parent().filter(|_| is_partition).unwrap_or(&place);
    Ok(fs::read_to_string(disk.join("dev"))?.trim_end().to_owned())
}

/// The address ranges in which a file is mapped (`proc_pid_maps(5)`).
fn mapped(maps: &str, file: &Path) -> Vec<Range<usize>> {
    let range = |line: &str| {
        let (addresses, rest) = line.split_once(' ')?;
        let path = rest.splitn(5, ' ').nth(4)?.trim_start();
        let (start, end) = addresses.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        (Path::new(path) == file).then_some(number(start)?..number(end)?)
    };
    maps.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranges_of_a_program_are_those_of_its_file() {
        let maps = "\
5580000000-5580001000 r--p 00000000 fe:00 123                            /a/daemon
5580001000-5580009000 r-xp 00001000 fe:00 123                            /a/daemon
7f00000000-7f00001000 rw-p 00000000 00:00 0
7f00001000-7f00002000 r-xp 00000000 fe:00 9                              /lib/c
";
        let ranges = mapped(maps, Path::new("/a/daemon"));
        assert_eq!(ranges, [0x55_8000_0000..0x55_8000_1000, 0x55_8000_1000..0x55_8000_9000]);
    }
}
