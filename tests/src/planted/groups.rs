//! Control groups of either version, made for one process, for a while.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use super::undo::Undo;
use crate::qemu::Failure;

/// Attempts to remove a group, which may be busy for a moment after its last process has left.
const ATTEMPTS: u32 = 100;
/// Time between two attempts.
const PAUSE: Duration = Duration::from_millis(1);

/// Version of a hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy for each controller, or for some.
    One,
    /// One hierarchy for all controllers.
    Two,
}

/// A hierarchy of control groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    root: PathBuf,
    version: Version,
    controller: &'static str,
}

impl Hierarchy {
    /// The mounted hierarchies of version 1 that have this controller, and that of version 2, which may lack it.
    #[must_use]
    pub fn all(controller: &'static str) -> Vec<Self> {
        all_of(&fs::read_to_string("/proc/mounts").unwrap_or_default(), controller)
    }

    /// Its version.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Where it is mounted.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether groups below its root can have the controller.
    #[must_use]
    pub fn offers(&self) -> bool {
        let controllers = || fs::read_to_string(self.root.join("cgroup.subtree_control"));
        self.version == Version::One
            || controllers().is_ok_and(|all| all.split_whitespace().any(|it| it == self.controller))
    }

    /// Makes a group below its root.
    ///
    /// # Errors
    /// What the system answers.
    pub fn make(&self) -> io::Result<Group> {
        let name = format!("ringscope-{}-{}", self.controller, std::process::id());
        let path = self.root.join(name);
        fs::create_dir(&path)?;
        Ok(Group { path })
    }

    /// Moves a process into a group of this hierarchy. Undone, the process is moved back and the group removed.
    ///
    /// # Errors
    /// What the system answers; then the group is removed, too.
    pub fn take(&self, process: u32, group: Group) -> Result<Undo, Failure> {
        let path = group.path.clone();
        let home = match self.home_of(process) {
            Ok(home) => home,
            // It could not be moved back.
            Err(error) => {
                group.remove()?;
                return Err(error);
            }
        };
        let undo = Undo::new(move || {
            // The process may have ended.
            let returned = fs::write(home, process.to_string());
            group.remove()?;
            Ok(returned?)
        });
        fs::write(path.join("cgroup.procs"), process.to_string())?;
        Ok(undo)
    }

    /// Where a process is moved back to.
    fn home_of(&self, process: u32) -> Result<PathBuf, Failure> {
        let text = fs::read_to_string(format!("/proc/{process}/cgroup"))?;
        let group = self.group_of(&text).ok_or("expected the process to be in a group")?;
        let home = self.root.join(group.trim_start_matches('/')).join("cgroup.procs");
        match home.exists() {
            true => Ok(home),
            false => Err(format!("expected {}, found nothing there", home.display()).into()),
        }
    }

    /// The group of a process in its `/proc/PID/cgroup` (`cgroups(7)`).
    fn group_of<'t>(&self, text: &'t str) -> Option<&'t str> {
        text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, group) = (fields.next()?, fields.next()?);
            let is_it = match self.version {
                Version::One => controllers.split(',').any(|name| name == self.controller),
                Version::Two => controllers.is_empty(),
            };
            is_it.then_some(group)
        })
    }
}

/// A group that was made.
#[derive(Clone, Debug)]
pub struct Group {
    path: PathBuf,
}

impl Group {
    /// Writes one of its settings.
    ///
    /// # Errors
    /// What the system answers.
    pub fn set(&self, file: &str, value: &str) -> io::Result<()> {
        fs::write(self.path.join(file), value)
    }

    /// Removes it.
    ///
    /// # Errors
    /// What the system answers.
    pub fn remove(&self) -> io::Result<()> {
        for _ in 1..ATTEMPTS {
            match fs::remove_dir(&self.path) {
                Err(error) if error.kind() == ErrorKind::ResourceBusy => sleep(PAUSE),
                other => return other,
            }
        }
        fs::remove_dir(&self.path)
    }
}

fn all_of(mounts: &str, controller: &'static str) -> Vec<Hierarchy> {
    let hierarchy = |line: &str| {
        let fields: Vec<_> = line.split(' ').collect();
        let [_, root, kind, options, ..] = fields[..] else { return None };
        let version = match kind {
            "cgroup" if options.split(',').any(|option| option == controller) => Version::One,
            "cgroup2" => Version::Two,
            _ => return None,
        };
        Some(Hierarchy { root: root.into(), version, controller })
    };
    mounts.lines().filter_map(hierarchy).collect()
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

    fn hierarchy(root: &str, version: Version) -> Hierarchy {
        Hierarchy { root: root.into(), version, controller: "cpu" }
    }

    #[test]
    fn a_controller_is_found_in_either_version() {
        let expected = [
            hierarchy("/sys/fs/cgroup/cpu,cpuacct", Version::One),
            hierarchy("/sys/fs/cgroup/unified", Version::Two),
        ];
        assert_eq!(all_of(MOUNTS, "cpu"), expected);
        assert_eq!(all_of("tmpfs /tmp tmpfs rw 0 0\n", "cpu"), []);
    }

    #[test]
    fn the_group_of_a_process_is_found_in_either_version() {
        let text = "5:memory:/a\n4:cpuset:/\n1:cpu,cpuacct:/b/c\n0::/d\n";
        assert_eq!(hierarchy("/", Version::One).group_of(text), Some("/b/c"));
        assert_eq!(hierarchy("/", Version::Two).group_of(text), Some("/d"));
        assert_eq!(hierarchy("/", Version::One).group_of("4:cpuset:/\n"), None);
    }
}
