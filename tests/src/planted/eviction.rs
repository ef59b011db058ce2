//! The kernel takes back the pages of a program, as it does when it is short of memory.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::fs::statfs;

use super::standby::Standby;
use super::undo::Undo;
use crate::beside::{run_on, set_policy};
use crate::qemu::Failure;
use crate::sys::page_out;

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

    /// Takes the pages of a process's program away again and again, until it is undone.
    ///
    /// # Errors
    /// What the system answers.
    pub fn begin(&self, process: u32) -> Result<Undo, Failure> {
        let program = fs::read_link(format!("/proc/{process}/exe"))?;
        let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
        let ranges = mapped(&maps, &program);
        let is_over = Arc::new(AtomicBool::new(false));
        let (result, end) = channel();
        self.0.order(Order { process, ranges, is_over: Arc::clone(&is_over), result })?;
        Ok(Undo::new(move || {
            is_over.store(true, Ordering::Relaxed);
            Ok(end.recv().map_err(|_| "the thread that evicts has ended")??)
        }))
    }
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
        Ok(_) => None,
    }
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
