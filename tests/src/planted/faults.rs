//! Faults that need nothing but a few system calls or commands. Each ends when its [`Undo`] is dropped.

use std::fs;
use std::process::Command;

use lab::outside::Outside;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::process::{Pid, Signal, kill_process};

use super::undo::Undo;
use crate::processes::stat_field;
use crate::qemu::{Failure, said};

/// The token bucket: about 230 probes a second, after the first 15. Of 1000 that come, most wait.
const TOKEN_BUCKET: &str = "tbf rate 200kbit burst 1600 latency 1s";

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
    [14, 15].iter().filter_map(|&number| stat_field(stat, number)?.parse::<u64>().ok()).sum()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_thread_is_that_in_user_space_and_in_the_kernel() {
        let stat = "7 (a) b) S 1 1 1 0 -1 4194304 1 0 0 0 31 4 0 0 20 0 1 0";
        assert_eq!(cpu_ticks(stat), 35);
    }
}
