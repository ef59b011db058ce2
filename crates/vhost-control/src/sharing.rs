//! Whether the guest's memory is really shared.
//!
//! A front end whose memory is mapped privately (QEMU without `share=on`) hands over the file all the same;
//! the guest then writes to copies of its pages, and nothing ever arrives here. No message says so. But
//! the kernel does: `/proc/PID/maps` of the front end shows how it maps that file.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

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

/// Looks how the front end's process `pid` maps `file`. None when it maps it shared, or when this cannot
/// be found out.
#[must_use]
pub fn find_private(file: &File, pid: u32) -> Option<PrivateMemory> {
    let metadata = file.metadata().ok()?;
    let maps = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("maps")).ok()?;
    is_private(&maps, metadata.dev(), metadata.ino()).then_some(PrivateMemory { pid })
}

/// Whether `maps` has private mappings of that file, and no shared one.
fn is_private(maps: &str, device: u64, inode: u64) -> bool {
    let device = format!("{:02x}:{:02x}", rustix::fs::major(device), rustix::fs::minor(device));
    let inode = inode.to_string();
    let mut private = false;
    for line in maps.lines() {
        // address perms offset dev inode pathname (proc_pid_maps(5))
        let fields: Vec<_> = line.split_ascii_whitespace().take(5).collect();
        let [_, permissions, _, its_device, its_inode] = fields[..] else { continue };
        if its_device == device && its_inode == inode {
            if permissions.ends_with('s') {
                return false;
            }
            private = true;
        }
    }
    private
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

    #[test]
    fn a_file_is_private_when_no_mapping_of_it_is_shared() {
        assert!(is_private(MAPS, 1, 1025));
        assert!(!is_private(MAPS, 1, 1026));
        assert!(!is_private(MAPS, 1, 1027), "not mapped: nothing is known");
        assert!(!is_private(MAPS, 2, 1025), "another device");
    }

    #[test]
    fn our_own_shared_mapping_is_seen_as_shared() {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let program = fs::metadata("/proc/self/exe").unwrap();
        assert!(is_private(&maps, program.dev(), program.ino()), "programs are mapped privately");
    }
}
