//! A CPU quota for a process, by control groups of either version.

use std::fs;
use std::io;

use super::groups::{Group, Hierarchy, Version};
use super::undo::Undo;
use crate::processes::stat_field;
use crate::qemu::Failure;

/// CPU time in each period of 100 ms, microseconds: the least that the kernel accepts (`min_cfs_quota_period`,
/// kernel/sched/core.c).
const QUOTA_US: &str = "1000";

/// Why no quota can be set here; `None` if one can.
#[must_use]
pub fn obstacle() -> Option<String> {
    if is_real_time(&fs::read_to_string("/proc/thread-self/stat").unwrap_or_default()) {
        return Some("programs that run in real time have no quota".to_owned());
    }
    let Some(hierarchy) = hierarchy() else {
        return Some("no hierarchy of control groups has the CPU controller".to_owned());
    };
    match make(&hierarchy) {
        Ok(group) => group.remove().err().map(|error| error.to_string()),
        Err(error) => {
            Some(format!("no group can be made in {}: {error}", hierarchy.root().display()))
        }
    }
}

/// Gives all threads of a process together 1 ms of CPU time in each 100 ms.
///
/// # Errors
/// If control groups cannot be used here.
pub fn limit(process: u32) -> Result<Undo, Failure> {
    let hierarchy = hierarchy().ok_or("expected the CPU controller of control groups")?;
    let group = make(&hierarchy)?;
    hierarchy.take(process, group)
}

/// Whether a thread is in a real-time class, by its `stat` (`proc_pid_stat(5)`, field 41).
fn is_real_time(stat: &str) -> bool {
    matches!(stat_field(stat, 41), Some("1" | "2" | "6"))
}

fn hierarchy() -> Option<Hierarchy> {
    Hierarchy::all("cpu").into_iter().find(Hierarchy::offers)
}

/// Makes a group with the quota.
fn make(hierarchy: &Hierarchy) -> io::Result<Group> {
    let group = hierarchy.make()?;
    let set = match hierarchy.version() {
        Version::One => group.set("cpu.cfs_quota_us", QUOTA_US),
        Version::Two => group.set("cpu.max", &format!("{QUOTA_US} 100000")),
    };
    if set.is_err() {
        group.remove()?;
    }
    set.map(|()| group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_time_class_is_found_behind_any_name() {
        let stat = |policy| format!("7 (a) b) S{} {policy} 0\n", " 0".repeat(37));
        assert!(is_real_time(&stat(2)) && !is_real_time(&stat(0)) && !is_real_time(""));
    }
}
