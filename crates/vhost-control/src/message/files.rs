//! The file system of a front end's descriptor, found without a call to that file system.
//!
//! `fstat` and `fstatfs` of a FUSE, NFS or 9p file wait for a program or a server, without a limit. The kernel itself
//! reports the mount of a descriptor (`/proc/self/fdinfo/N`, `mnt_id`), and what is mounted there
//! (`/proc/PID/mountinfo`).

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use confine::Role;
use foreign_files::Helper;
use rustix::fs::{MemfdFlags, memfd_create};

/// File systems whose pages come from memory or from a disk of this host.
const LOCAL: &[&str] = &[
    "tmpfs",
    "ramfs",
    "rootfs",
    "hugetlbfs",
    "ext2",
    "ext3",
    "ext4",
    "xfs",
    "btrfs",
    "f2fs",
    "bcachefs",
    "zfs",
    "jfs",
    "devtmpfs",
];
/// Magic numbers (`linux/magic.h`) of local file systems that may be mounted without a line in `mountinfo`: tmpfs,
/// hugetlbfs, ramfs, ext2 to ext4, XFS, Btrfs.
const LOCAL_NUMBERS: &[u64] =
    &[0x0102_1994, HUGETLBFS, 0x8584_58f6, 0xef53, 0x5846_5342, 0x9123_683e];
const HUGETLBFS: u64 = 0x9584_58f6;
/// Most bytes read of a `mountinfo`: a front end may have any number of mounts.
const MOUNTS_MAX: u64 = 4 << 20;
/// Longest wait for `fstatfs` of an unknown file system.
const PATIENCE: Duration = Duration::from_secs(1);

/// A file system that is fit for guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// Of huge pages.
    HugePages,
    /// Another one.
    Plain,
}

/// Returns the file system of `file`, if its pages are in memory or on a local disk of this host. `peer` is the process
/// that may have it mounted.
///
/// # Errors
/// Why it cannot be guest memory.
pub fn file_system(file: BorrowedFd<'_>, peer: Option<u32>) -> Result<FileSystem, String> {
    let Some(mount) = mount_of(file) else {
        // Without /proc the mount is unknown.
        return Ok(FileSystem::Plain);
    };
    let memory = memory_mounts();
    if memory.plain == Some(mount) {
        return Ok(FileSystem::Plain);
    }
    if memory.huge.contains(&mount) {
        return Ok(FileSystem::HugePages);
    }
    let ours = mounts("self");
    let found = find(&ours, mount).or_else(|| {
        let theirs = mounts(&peer?.to_string());
        let found = find(&theirs, mount)?;
        // Any user can mount an overlay of other file systems in his own mount namespace. An overlay that this namespace
        // has is its operator's choice, also one over FUSE or NFS: neither `mountinfo` nor `statfs` shows what is below.
        let is_known = found.kind != "overlay"
            || ours
                .lines()
                .any(|line| Mount::parse(line).is_some_and(|mount| mount.device == found.device));
        is_known.then_some(found)
    });
    match found {
        Some(found) if found.kind == "hugetlbfs" => Ok(FileSystem::HugePages),
        Some(found) if found.kind == "overlay" || LOCAL.contains(&found.kind.as_str()) => {
            Ok(FileSystem::Plain)
        }
        Some(found) => Err(unfit(&found.kind)),
        None => ask(file),
    }
}

fn unfit(kind: &str) -> String {
    format!(
        "its file is of a file system ({kind}) whose pages may never come; expected a memfd, or a file of tmpfs, \
         hugetlbfs or a local disk"
    )
}

/// The length of the dax device with this number, bytes.
pub fn dax_len(device: u64) -> Option<u64> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let directory = format!("/sys/dev/char/{major}:{minor}");
    let subsystem = fs::read_link(format!("{directory}/subsystem")).ok()?;
    let is_dax = subsystem.file_name().is_some_and(|name| name == "dax");
    is_dax.then(|| fs::read_to_string(format!("{directory}/size")).ok()?.trim().parse().ok())?
}

/// A line of `mountinfo` (`proc_pid_mountinfo(5)`).
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    id: u64,
    device: String,
    kind: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (place, what) = line.split_once(" - ")?;
        let mut fields = place.split(' ');
        let id = fields.next()?.parse().ok()?;
        let device = fields.nth(1)?.to_owned();
        Some(Self { id, device, kind: what.split(' ').next()?.to_owned() })
    }
}

fn find(mounts: &str, id: u64) -> Option<Mount> {
    mounts.lines().filter_map(Mount::parse).find(|mount| mount.id == id)
}

fn mounts(process: &str) -> String {
    let mut text = Vec::new();
    if let Ok(file) = File::open(format!("/proc/{process}/mountinfo")) {
        // What was read until it failed counts.
        let _ = file.take(MOUNTS_MAX).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The number of the mount that holds a descriptor's file.
fn mount_of(file: BorrowedFd<'_>) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
}

/// The kernel's internal mounts that hold memory files (`memfd_create(2)`); no `mountinfo` lists them.
struct MemoryMounts {
    plain: Option<u64>,
    huge: Vec<u64>,
}

fn memory_mounts() -> &'static MemoryMounts {
    static MOUNTS: OnceLock<MemoryMounts> = OnceLock::new();
    MOUNTS.get_or_init(|| {
        use std::os::fd::AsFd as _;
        let mount = |flags| {
            let file = memfd_create("ringscope", flags | MemfdFlags::CLOEXEC).ok()?;
            mount_of(file.as_fd())
        };
        let sizes = [
            MemfdFlags::HUGE_64KB,
            MemfdFlags::HUGE_512KB,
            MemfdFlags::HUGE_1MB,
            MemfdFlags::HUGE_2MB,
            MemfdFlags::HUGE_8MB,
            MemfdFlags::HUGE_16MB,
            MemfdFlags::HUGE_32MB,
            MemfdFlags::HUGE_256MB,
            MemfdFlags::HUGE_512MB,
            MemfdFlags::HUGE_1GB,
            MemfdFlags::HUGE_2GB,
            MemfdFlags::HUGE_16GB,
        ];
        let huge = sizes.iter().filter_map(|&size| mount(MemfdFlags::HUGETLB | size)).collect();
        MemoryMounts { plain: mount(MemfdFlags::empty()), huge }
    })
}

/// Has a helper process call `fstatfs` of an unknown file system, which may block for ever. Only one such helper at a
/// time.
fn ask(file: BorrowedFd<'_>) -> Result<FileSystem, String> {
    static ASKING: AtomicBool = AtomicBool::new(false);
    let unknown = || unfit("unknown");
    if ASKING.swap(true, Ordering::AcqRel) {
        return Err(unknown());
    }
    let found = Helper::file_system(file, PATIENCE);
    let (helper, kind) = match found {
        Ok((helper, kind)) => (Some(helper), Ok(kind)),
        Err((helper, _)) => (helper, Err(unknown())),
    };
    let ended = move || {
        confine::narrow(Role::Closer);
        let _ = helper.map(Helper::dismiss);
        ASKING.store(false, Ordering::Release);
    };
    // Without a thread the helper stays as a zombie; there is none for a further one either.
    let _ = std::thread::Builder::new().name("file-system".into()).spawn(ended);
    let kind = kind?;
    if kind == HUGETLBFS {
        return Ok(FileSystem::HugePages);
    }
    if LOCAL_NUMBERS.contains(&kind) {
        Ok(FileSystem::Plain)
    } else {
        Err(unfit(&format!("{kind:#x}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn a_mount_is_found_by_its_number() {
        let text = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
36 22 0:31 /a /mnt/with\\040blank rw,noatime - fuse.sshfs host:/ rw,user_id=0
";
        let kind = |id| find(text, id).map(|mount| mount.kind);
        assert_eq!(kind(22).as_deref(), Some("ext4"));
        assert_eq!(find(text, 36).map(|it| it.device).as_deref(), Some("0:31"));
        assert_eq!(kind(36).as_deref(), Some("fuse.sshfs"));
        assert_eq!(kind(23), None);
    }

    #[test]
    fn memory_files_are_known_by_the_kernels_own_mount() {
        let file = memfd_create("any", MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(file_system(file.as_fd(), None), Ok(FileSystem::Plain));
        assert_eq!(mount_of(file.as_fd()), memory_mounts().plain);
        crate::message::pipe::tests::prepare();
        assert_eq!(ask(file.as_fd()), Ok(FileSystem::Plain));
    }
}
