//! The files that a role may still reach (Landlock, `Documentation/userspace-api/landlock.rst`).
//!
//! Files that are open already are not concerned: recorders, captures and journals are written through descriptors that set-up
//! opened. So what is left is little: a few files of `/proc` and `/sys`, and the daemon's own names, which are removed at the end.
//! Nothing is written by its name, with one exception, and no thread connects by TCP.
//!
//! A kernel without Landlock, or with an older version, restricts what it can. `ringscope doctor` says what that is.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus, path_beneath_rules,
};

use crate::role::Role;

/// The version up to which kernels know what is forbidden here: ioctls on devices (Linux 6.10), and TCP (6.7).
const KNOWN: ABI = ABI::V5;

/// The daemon's directories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Those of its own sockets and recorders, where it removes them at the end.
    pub own: Vec<PathBuf>,
    /// That of `--config`, whose file is read again.
    pub config: Option<PathBuf>,
}

/// What a role may do with the files below these paths.
type Reach = (Vec<PathBuf>, BitFlags<AccessFs>);

/// What the C library's allocator looks at: how memory is overcommitted, and how many CPUs there are.
const ALLOCATOR: [&str; 2] = ["/proc/sys/vm", "/sys/devices/system/cpu"];

impl Role {
    /// The files that its threads reach.
    fn reaches(self, Places { own, config }: &Places) -> Option<Vec<Reach>> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let at = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        Some(match self {
            Self::Worker(_) | Self::Link { .. } | Self::Capture | Self::Records | Self::Manager => {
                Vec::new()
            }
            Self::Main | Self::TakeOver => {
                vec![(own.clone(), read | AccessFs::RemoveFile), (at(&ALLOCATOR), read)]
            }
            // What a front end's files are, and how it maps them.
            Self::Control => {
                vec![(at(&["/proc", "/sys"]), read), (own.clone(), AccessFs::RemoveFile.into())]
            }
            // The kernel's release is among what it says.
            Self::Operator => vec![(at(&["/proc/sys/kernel"]), read), (at(&ALLOCATOR), read)],
            Self::Closer => vec![(at(&["/proc"]), read), (at(&ALLOCATOR[1..]), read)],
            Self::Metrics => vec![(own.clone(), read), (at(&ALLOCATOR), read)],
            Self::Reload => vec![(Vec::from_iter(config.clone()), read), (at(&ALLOCATOR), read)],
            Self::TapAgain | Self::KernelStages => vec![(at(&["/proc", "/sys"]), read)],
            // What was set for busy polling is put back there.
            Self::Interface => {
                vec![(at(&["/proc"]), read), (at(&["/sys"]), read | AccessFs::WriteFile)]
            }
            // A front end's files are opened there by their descriptors, and may lie anywhere.
            Self::Helper => return None,
        })
    }
}

/// Leaves the calling thread with the files that `role` reaches. Returns how far the kernel can do that.
pub fn enter(role: Role, places: &Places) -> Result<RulesetStatus, RulesetError> {
    let Some(reaches) = role.reaches(places) else { return Ok(RulesetStatus::NotEnforced) };
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .create()?;
    for (paths, access) in reaches {
        rules = rules.add_rules(path_beneath_rules(paths, access))?;
    }
    rules.restrict_self().map(|status| status.ruleset)
}

/// The directory of a file, for [`Places`].
#[must_use]
pub fn directory_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent.into(),
        _ => ".".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::TcpStream;

    use super::*;
    use crate::role::Wire;

    /// The kernel restricts each thread, so a thread of a test can try it.
    fn confined<T: Send + 'static>(
        role: Role,
        own: &Path,
        attempt: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let places = Places { own: vec![own.into()], ..Places::default() };
        let tried = std::thread::spawn(move || {
            enter(role, &places).unwrap();
            attempt()
        });
        tried.join().unwrap()
    }

    #[test]
    fn a_worker_reaches_no_file_and_main_only_removes_its_own() {
        let status = std::thread::spawn(|| enter(Role::Capture, &Places::default()).unwrap())
            .join()
            .unwrap();
        if status == RulesetStatus::NotEnforced {
            eprintln!("not tried: this kernel has no Landlock");
            return;
        }
        let own = std::env::temp_dir().join(format!("confine-test-{}", std::process::id()));
        fs::create_dir(&own).unwrap();
        let (file, other) = (own.join("a"), own.join("b"));
        fs::write(&file, "a").unwrap();
        let read = file.clone();
        let found = confined(Role::Worker(Wire::Tap), &own, move || fs::read(read).is_ok());
        assert!(!found, "a worker reads a file");
        let read = || fs::read("/proc/self/status").is_ok();
        assert!(!confined(Role::Worker(Wire::Tap), &own, read));
        assert!(confined(Role::Control, &own, read));
        let write = other.clone();
        assert!(
            !confined(Role::Main, &own, move || fs::write(write, "b").is_ok()),
            "main makes a file"
        );
        assert!(!confined(Role::Main, &own, || fs::read("/etc/passwd").is_ok()));
        let remove = file.clone();
        assert!(confined(Role::Main, &own, move || fs::remove_file(remove).is_ok()));
        assert!(!file.exists() && !other.exists());
        fs::remove_dir(&own).unwrap();
    }

    #[test]
    fn nobody_connects_by_tcp() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connects = move || TcpStream::connect(address).is_ok();
        assert!(connects());
        for role in [Role::Control, Role::Interface, Role::Metrics] {
            if confined(role, Path::new("/"), || fs::read("/etc/hostname").is_ok()) {
                // Without Landlock for networks nothing can be tried. Below `/` a file may only be read by Metrics.
                continue;
            }
            assert!(!confined(role, Path::new("/nowhere"), connects), "{role}");
        }
    }
}
