//! Whether the guest's memory is really shared.
//!
//! QEMU without `share=on` hands over its memory file but maps it privately: the guest then writes to copies of the pages,
//! and nothing arrives here. No message reports that. But the kernel does: `/proc/PID/maps` of the front end shows how it
//! maps the file.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use foreign_files::Helper;
use rustix::fs::fstat;

/// The front end maps its guest's memory privately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the guest's memory is private to process {pid}, so nothing that the guest writes arrives here: \
     start QEMU with share=on, as in -object memory-backend-memfd,id=m,size=SIZE,share=on -numa \
     node,memdev=m"
)]
pub struct PrivateMemory {
    /// The front end's process.
    pub pid: u32,
}

/// Most bytes of `/proc/PID/maps` read for one front end, which may have any number of mappings. QEMU has some hundred KiB.
/// Mappings after that count as unknown.
const MAPS_MAX: u64 = 32 << 20;

/// Longest wait for the helper process that opens `/proc/PID/maps`.
const PATIENCE: Duration = Duration::from_millis(500);

/// Looks up how a front end maps its files.
#[derive(Debug)]
pub struct Sharing {
    /// The front end's process, where it is known.
    peer: Option<u32>,
    /// A copy of the connection to it, which shows a helper process which maps it may open for us.
    connection: Mutex<Option<OwnedFd>>,
    found: Mutex<Found>,
}

/// What was found out so far.
#[derive(Debug)]
struct Found {
    /// Files that are not private, as far as was found out: device and inode.
    known: HashSet<(u64, u64)>,
    /// Bytes that may still be read.
    left: u64,
}

impl Sharing {
    /// For the front end `peer`. `connection`: a copy of the connection to it.
    #[must_use]
    pub fn new(peer: Option<u32>, connection: Option<OwnedFd>) -> Self {
        let connection = Mutex::new(connection);
        Self {
            peer,
            connection,
            found: Mutex::new(Found { known: HashSet::new(), left: MAPS_MAX }),
        }
    }

    /// Closes the copy of the connection. Must be called while the connection itself is open: the last one is closed elsewhere,
    /// because that may block.
    pub fn leave_connection(&self) {
        drop(self.connection.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Opens the front end's maps. The daemon itself may not see those of a process of another user, or with capabilities.
    fn open_maps(&self, pid: u32) -> Option<File> {
        let path = Path::new("/proc").join(pid.to_string()).join("maps");
        File::open(path).ok().or_else(|| {
            let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
            Helper::maps(connection.as_ref()?.as_fd(), PATIENCE).ok()
        })
    }

    /// Looks up how the front end maps those of `files` that are new. `None` when it maps them shared, or when this cannot
    /// be found out.
    pub fn find_private(&self, files: impl Iterator<Item = impl AsFd>) -> Option<PrivateMemory> {
        let pid = self.peer?;
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let identity = |file| fstat(file).ok().map(|it| (it.st_dev, it.st_ino));
        let new: HashSet<_> =
            files.filter_map(identity).filter(|file| !found.known.contains(file)).collect();
        if new.is_empty() || found.left == 0 {
            return None;
        }
        let file = self.open_maps(pid)?;
        let mut maps = BufReader::new(file).take(found.left);
        let is_private = is_private(&mut maps, &new);
        found.left = maps.limit();
        if is_private && found.left > 0 {
            return Some(PrivateMemory { pid });
        }
        found.known.extend(new);
        None
    }
}

/// Whether `maps` has private mappings of one of these files, and no shared one of it.
fn is_private(maps: &mut impl BufRead, files: &HashSet<(u64, u64)>) -> bool {
    let (mut unseen, mut private) = (files.clone(), HashSet::new());
    let mut line = Vec::new();
    while maps.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
        let text = String::from_utf8_lossy(&line);
        // address perms offset dev inode pathname (proc_pid_maps(5))
        let fields: Vec<_> = text.split_ascii_whitespace().take(5).collect();
        if let [_, permissions, _, device, inode] = fields[..]
            && let Some(file) = identity(device, inode)
            && unseen.contains(&file)
        {
            if permissions.ends_with('s') {
                private.remove(&file);
                unseen.remove(&file);
            } else {
                private.insert(file);
            }
        }
        line.clear();
    }
    !private.is_empty()
}

/// Device and inode as `stat(2)` gives them.
fn identity(device: &str, inode: &str) -> Option<(u64, u64)> {
    let (major, minor) = device.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    Some((rustix::fs::makedev(number(major)?, number(minor)?), inode.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
7f0000000000-7f0020000000 rw-p 00000000 00:01 1025 /memfd:m (deleted)
7f0020000000-7f0040000000 rw-s 00000000 00:01 1026 /memfd:n (deleted)
7f0040000000-7f0040001000 r--p 00000000 00:01 1026 /memfd:n (deleted)
7f0040001000-7f0040002000 rw-p 00000000 00:00 0 [stack]
";

    fn private(files: &[(u64, u64)]) -> bool {
        is_private(&mut MAPS.as_bytes(), &files.iter().copied().collect())
    }

    #[test]
    fn a_file_is_private_when_no_mapping_of_it_is_shared() {
        assert!(private(&[(1, 1025)]));
        assert!(!private(&[(1, 1026)]));
        assert!(private(&[(1, 1026), (1, 1025)]), "one of several is enough");
        assert!(!private(&[(1, 1027)]), "not mapped: nothing is known");
        assert!(!private(&[(2, 1025)]), "another device");
    }

    #[test]
    fn a_shared_file_is_looked_up_once_and_a_private_one_each_time() {
        let program = File::open("/proc/self/exe").unwrap();
        let pid = std::process::id();
        let sharing = Sharing::new(Some(pid), None);
        let left = || sharing.found.lock().unwrap().left;
        let private = sharing.find_private([&program].into_iter());
        assert_eq!(private, Some(PrivateMemory { pid }), "programs are mapped privately");
        let read = left();
        assert!(read < MAPS_MAX);
        assert_eq!(sharing.find_private([&program].into_iter()), private);
        assert!(left() < read);
        let unmapped = tempfile::tempfile().unwrap();
        assert_eq!(sharing.find_private([&unmapped].into_iter()), None);
        let read = left();
        assert_eq!(sharing.find_private([&unmapped].into_iter()), None);
        assert_eq!(left(), read);
    }
}
