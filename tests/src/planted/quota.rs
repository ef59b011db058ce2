//! A CPU quota for a process, by control groups of either version.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use super::undo::Undo;
use crate::qemu::Failure;

/// CPU time in each period of 100 ms, microseconds: the least that the kernel accepts (`min_cfs_quota_period`,
/// kernel/sched/core.c).
const QUOTA_US: &str = "1000";
/// Attempts to remove a group, which may be busy for a moment after its last process has left.
const ATTEMPTS: u32 = 100;
/// Time between two attempts.
const PAUSE: Duration = Duration::from_millis(1);

/// A hierarchy of control groups with the CPU controller.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    root: PathBuf,
    version: u8,
}

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
        Ok(group) => remove(&group).err().map(|error| error.to_string()),
        Err(error) => {
            Some(format!("no group can be made in {}: {error}", hierarchy.root.display()))
        }
    }
}

/// Gives all threads of a process together 1 ms of CPU time in each 100 ms.
///
/// # Errors
/// If control groups cannot be used here.
pub fn limit(process: u32) -> Result<Undo, Failure> {
    let hierarchy = hierarchy().ok_or("expected the CPU controller of control groups")?;
    let own = fs::read_to_string(format!("/proc/{process}/cgroup"))?;
    let own = group_of(&own, hierarchy.version).ok_or("expected the process to be in a group")?;
    let home = hierarchy.root.join(own.trim_start_matches('/')).join("cgroup.procs");
    let group = make(&hierarchy)?;
    let (limited, id) = (group.clone(), process.to_string());
    let undo = Undo::new(move || {
        // It may have ended.
        let returned = fs::write(&home, &id);
        remove(&limited)?;
        Ok(returned?)
    });
    fs::write(group.join("cgroup.procs"), process.to_string())?;
    Ok(undo)
}

/// Whether a thread is in a real-time class, by its `stat` (`proc_pid_stat(5)`, field 41).
fn is_real_time(stat: &str) -> bool {
    // After the name, which may hold anything, the first field is number 3.
    let policy = stat.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(41 - 3));
    matches!(policy, Some("1" | "2" | "6"))
}

/// Makes a group with the quota.
fn make(hierarchy: &Hierarchy) -> io::Result<PathBuf> {
    let group = hierarchy.root.join(format!("ringscope-planted-{}", std::process::id()));
    fs::create_dir(&group)?;
    let set = match hierarchy.version {
        1 => fs::write(group.join("cpu.cfs_quota_us"), QUOTA_US),
        _ => fs::write(group.join("cpu.max"), format!("{QUOTA_US} 100000")),
    };
    if set.is_err() {
        remove(&group)?;
    }
    set.map(|()| group)
}

fn remove(group: &Path) -> io::Result<()> {
    for _ in 1..ATTEMPTS {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => sleep(PAUSE),
            other => return other,
        }
    }
    fs::remove_dir(group)
}

fn hierarchy() -> Option<Hierarchy> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let offers = |root: &Path| {
        let controllers = fs::read_to_string(root.join("cgroup.subtree_control"));
        controllers.is_ok_and(|names| names.split_whitespace().any(|name| name == "cpu"))
    };
    hierarchy_of(&mounts, offers)
}

/// The hierarchy among these mounts; `offers` says whether groups below the root of one of version 2 have the controller.
fn hierarchy_of(mounts: &str, offers: impl Fn(&Path) -> bool) -> Option<Hierarchy> {
    mounts.lines().find_map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        let [_, root, kind, options, ..] = fields[..] else { return None };
        let root = PathBuf::from(root);
        let version = match kind {
            "cgroup" if options.split(',').any(|option| option == "cpu") => 1,
            "cgroup2" if offers(&root) => 2,
            _ => return None,
        };
        Some(Hierarchy { root, version })
    })
}

/// The group of a process in its `/proc/PID/cgroup` (`cgroups(7)`).
fn group_of(text: &str, version: u8) -> Option<&str> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        let is_it = match version {
            1 => controllers.split(',').any(|name| name == "cpu"),
            _ => controllers.is_empty(),
        };
        is_it.then_some(group)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpuset cgroup rw,relatime,cpuset 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
";

    #[test]
    fn the_cpu_controller_is_found_in_either_version() {
        let first = hierarchy_of(MOUNTS, |_| true).unwrap();
        let expected = Hierarchy { root: "/sys/fs/cgroup/cpu,cpuacct".into(), version: 1 };
        assert_eq!(first, expected);
        let second = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        assert_eq!(hierarchy_of(second, |_| true).unwrap().version, 2);
        assert_eq!(hierarchy_of(second, |_| false), None);
    }

    #[test]
    fn a_real_time_class_is_found_behind_any_name() {
        let stat = |policy| format!("7 (a) b) S{} {policy} 0\n", " 0".repeat(37));
        assert!(is_real_time(&stat(2)) && !is_real_time(&stat(0)) && !is_real_time(""));
    }

    #[test]
    fn the_group_of_a_process_is_found_in_either_version() {
        let text = "5:memory:/a\n4:cpuset:/\n1:cpu,cpuacct:/b/c\n0::/d\n";
        assert_eq!((group_of(text, 1), group_of(text, 2)), (Some("/b/c"), Some("/d")));
        assert_eq!(group_of("4:cpuset:/\n", 1), None);
    }
}
