//! Faults that need nothing but a few system calls or commands. Each ends when its [`Undo`] is dropped.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::spawn;

use lab::outside::Outside;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::fs::statfs;
use rustix::process::{Pid, Signal, kill_process};

use super::undo::Undo;
use crate::qemu::{Failure, said};
use crate::sys::page_out;

/// The token bucket: about 230 probes a second, after the first 15. Of 1000 that come, most wait.
const TOKEN_BUCKET: &str = "tbf rate 200kbit burst 1600 latency 1s";
/// File system in memory (include/uapi/linux/magic.h).
const TMPFS_MAGIC: i128 = 0x0102_1994;

/// Stops a process (SIGSTOP).
///
/// # Errors
/// What the system answers.
pub fn stop(process: u32) -> Result<Undo, Failure> {
    let pid = Pid::from_raw(process.cast_signed()).ok_or("expected a process")?;
    kill_process(pid, Signal::STOP)?;
    Ok(Undo::new(move || Ok(kill_process(pid, Signal::CONT)?)))
}

/// Stops one thread, as a debugger does (`ptrace(2)`). It has to be undone by the calling thread.
///
/// # Errors
/// What the system answers.
pub fn hold(thread: u32) -> Result<Undo, Failure> {
    let thread = nix::unistd::Pid::from_raw(thread.cast_signed());
    ptrace::seize(thread, ptrace::Options::empty())?;
    ptrace::interrupt(thread)?;
    // It may stop at the delivery of a signal, which is delivered at the end.
    let signal = match waitpid(thread, Some(WaitPidFlag::__WALL))? {
        WaitStatus::Stopped(_, signal) => Some(signal),
        _ => None,
    };
    Ok(Undo::new(move || Ok(ptrace::detach(thread, signal)?)))
}

/// The thread of a process that has used most CPU time: of an emulator, the virtual CPU.
///
/// # Errors
/// If there is no such process.
pub fn busiest_thread(process: u32) -> Result<u32, Failure> {
    let mut most = (0, process);
    for entry in fs::read_dir(format!("/proc/{process}/task"))? {
        let entry = entry?;
        let stat = fs::read_to_string(entry.path().join("stat"))?;
        let thread = entry.file_name().to_string_lossy().parse()?;
        most = most.max((cpu_ticks(&stat), thread));
    }
    Ok(most.1)
}

/// Time on the CPUs, clock ticks (`proc_pid_stat(5)`, fields 14 and 15).
fn cpu_ticks(stat: &str) -> u64 {
    // After the name, which may hold anything, the first field is number 3.
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// Lets few frames pass on the way from the bridge to the outside host.
///
/// # Errors
/// If the kernel has no such queueing discipline.
pub fn slow_down(outside: &Outside) -> Result<Undo, Failure> {
    let wire = outside.wire().to_owned();
    let add = format!("qdisc add dev {wire} root {TOKEN_BUCKET}");
    said(Command::new("tc").args(add.split(' ')))?;
    Ok(Undo::new(move || {
        said(Command::new("tc").args(["qdisc", "del", "dev", &wire, "root"])).map(drop)
    }))
}

/// Attaches an XDP program to the outside host's interface.
///
/// # Errors
/// If the kernel refuses it.
pub fn attach(outside: &Outside, object: &str) -> Result<Undo, Failure> {
    outside.exec(&format!("ip link set dev eth0 xdpgeneric object {object} section xdp"))?;
    let namespace = outside.namespace().to_owned();
    let off = "link set dev eth0 xdpgeneric off";
    Ok(Undo::new(move || {
        said(Command::new("ip").args(["-n", &namespace]).args(off.split(' '))).map(drop)
    }))
}

/// Takes the pages of a process's program away again and again, as a kernel does that is short of memory.
///
/// # Errors
/// What the system answers.
pub fn evict(process: u32) -> Result<Undo, Failure> {
    let program = fs::read_link(format!("/proc/{process}/exe"))?;
    let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
    let ranges = mapped(&maps, &program);
    page_out(process, &ranges)?;
    let is_over = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&is_over);
    let thread = spawn(move || -> io::Result<()> {
        while !seen.load(Ordering::Relaxed) {
            page_out(process, &ranges)?;
        }
        Ok(())
    });
    Ok(Undo::new(move || {
        is_over.store(true, Ordering::Relaxed);
        Ok(thread.join().map_err(|_| "a thread has panicked")??)
    }))
}

/// Why pages of this program cannot be evicted; `None` if they can.
#[must_use]
pub fn eviction_obstacle(program: &Path) -> Option<String> {
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

    #[test]
    fn the_time_of_a_thread_is_that_in_user_space_and_in_the_kernel() {
        let stat = "7 (a) b) S 1 1 1 0 -1 4194304 1 0 0 0 31 4 0 0 20 0 1 0";
        assert_eq!(cpu_ticks(stat), 35);
    }
}
