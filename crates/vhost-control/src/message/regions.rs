//! Checks regions of guest memory before they are mapped.
//!
//! A region is a file from the front end, and a mapped file can do harm. Access beyond the end of the file is SIGBUS. A
//! page that a program or a server provides (FUSE, NFS, 9p) can block the accessing thread for ever. Many large files use
//! up this process's address space.
//!
//! No call goes to a file before its file system is known to answer at once (`files`).

use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Stat, fstat};

use super::files::{self, FileSystem};
use crate::limits::REGIONS_MAX;

/// Most bytes of all guests together: half of a process's address space (47 bits), so that each table can be replaced
/// with another one of its size.
const ALL_BYTES_MAX: u64 = 1 << 46;
/// Most bytes of one guest: 16 TiB.
const BYTES_MAX: u64 = 1 << 44;

/// Limits of one guest's memory.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most bytes of memory.
    pub bytes_max: u64,
    /// The front end's process, where it is known.
    pub peer: Option<u32>,
}

/// Most bytes of memory for each of `guests` guests.
#[must_use]
pub const fn bytes_max(guests: usize) -> u64 {
    let guests = if guests == 0 { 1 } else { guests as u64 };
    let share = ALL_BYTES_MAX / guests;
    if share < BYTES_MAX { share } else { BYTES_MAX }
}

/// A region of guest memory, as messages describe it (vhost-user, "Memory region description").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical address of the first byte.
    pub guest_address: u64,
    /// Length in bytes.
    pub len: u64,
    /// Its address in the front end's own memory. Ring addresses are of this kind.
    pub user_address: u64,
    /// Its offset in its file, bytes.
    pub offset: u64,
}

impl Region {
    /// The four numbers of a region, in the order of its message.
    #[must_use]
    pub const fn words(&self) -> [u64; 4] {
        [self.guest_address, self.len, self.user_address, self.offset]
    }

    /// The region with these numbers.
    #[must_use]
    pub const fn from_words([guest_address, len, user_address, offset]: [u64; 4]) -> Self {
        Self { guest_address, len, user_address, offset }
    }

    /// Whether the `len` bytes at `address` of the front end's own memory lie in it.
    #[must_use]
    pub fn holds(&self, address: u64, len: u64) -> bool {
        address
            .checked_sub(self.user_address)
            .and_then(|offset| offset.checked_add(len))
            .is_some_and(|end| end <= self.len)
    }
}

/// Checks the regions `new`, with their `files`, which come to those in `present`.
///
/// # Errors
/// Why they are refused, with the number of the region.
pub fn check(
    present: &[Region],
    new: &[Region],
    files: &[BorrowedFd<'_>],
    limits: &Limits,
) -> Result<(), String> {
    let all: Vec<Region> = present.iter().chain(new).copied().collect();
    if all.len() > REGIONS_MAX {
        return Err(format!("{} regions; expected at most {REGIONS_MAX}", all.len()));
    }
    for (number, region) in all.iter().enumerate() {
        let ends = [region.guest_address, region.user_address, region.offset]
            .map(|start| start.checked_add(region.len));
        if region.len == 0 || ends.contains(&None) {
            return Err(format!("region {number}: {} bytes, which is none or wraps", region.len));
        }
    }
    let bytes = all.iter().fold(0, |sum: u64, region| sum.saturating_add(region.len));
    if bytes > limits.bytes_max {
        let (mib, max) = (bytes >> 20, limits.bytes_max >> 20);
        return Err(format!("{mib} MiB of memory; expected at most {max} MiB for one guest"));
    }
    let mut sorted: Vec<_> = all.iter().enumerate().collect();
    sorted.sort_by_key(|(_, region)| region.guest_address);
    for pair in sorted.windows(2) {
        let [(one, first), (two, second)] = [pair[0], pair[1]];
        if second.guest_address - first.guest_address < first.len {
            return Err(format!("regions {one} and {two} overlap at {:#x}", second.guest_address));
        }
    }
    for (n, (region, &file)) in new.iter().zip(files).enumerate() {
        let number = present.len() + n;
        check_file(region, file, limits).map_err(|why| format!("region {number}: {why}"))?;
    }
    Ok(())
}

/// Checks the file of a dirty log of `len` bytes from byte `offset` on.
///
/// # Errors
/// Why it is refused.
pub fn check_log(
    len: u64,
    offset: u64,
    file: BorrowedFd<'_>,
    limits: &Limits,
) -> Result<(), String> {
    offset.checked_add(len).ok_or_else(|| format!("{len} bytes from byte {offset} on wrap"))?;
    check_file(&Region { guest_address: 0, len, user_address: 0, offset }, file, limits)
}

fn check_file(region: &Region, file: BorrowedFd<'_>, limits: &Limits) -> Result<(), String> {
    let system = files::file_system(file, limits.peer)?;
    let stat = fstat(file)
        .map_err(|error| format!("the size of its file cannot be found out: {error}"))?;
    let size = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => u64::try_from(stat.st_size).unwrap_or(0),
        FileType::CharacterDevice => files::dax_len(stat.st_rdev)
            .ok_or("its file is a device other than a dax device; expected a file of memory")?,
        other => return Err(format!("its file is a {other:?}; expected a file of memory")),
    };
    let Region { len, offset, .. } = *region;
    if size < offset + len {
        return Err(format!(
            "its file has {size} bytes; expected at least {}, {len} from byte {offset} on",
            offset + len
        ));
    }
    if system == FileSystem::HugePages {
        check_huge(&stat, region)?;
    }
    Ok(())
}

/// Checks that the region has whole huge pages: a part of one can be mapped, but not unmapped.
fn check_huge(stat: &Stat, region: &Region) -> Result<(), String> {
    let page = u64::try_from(stat.st_blksize).unwrap_or(0).max(1);
    let Region { len, offset, .. } = *region;
    if len.is_multiple_of(page) && offset.is_multiple_of(page) {
        return Ok(());
    }
    Err(format!(
        "{len} bytes from byte {offset} on; expected multiples of its huge pages of {page} bytes"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd as _;

    const LIMITS: Limits = Limits { bytes_max: 1 << 30, peer: None };

    const fn region(guest_address: u64, len: u64, offset: u64) -> Region {
        let user_address = guest_address.wrapping_add(0x7000_0000_0000);
        Region { guest_address, len, user_address, offset }
    }

    fn memory(len: u64) -> File {
        let file = rustix::fs::memfd_create("m", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        file.set_len(len).unwrap();
        file
    }

    /// What is wrong with a region of this file.
    fn wrong(file: &File, region: Region) -> String {
        check(&[], &[region], &[file.as_fd()], &LIMITS).err().unwrap_or_default()
    }

    #[test]
    fn a_file_holds_all_of_its_region() {
        let file = memory(0x3000);
        assert_eq!(wrong(&file, region(0, 0x2000, 0x1000)), "");
        let short = wrong(&file, region(0, 0x2000, 0x2000));
        assert!(
            short.contains("region 0: its file has 12288 bytes; expected at least 16384"),
            "{short}"
        );
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory");
        std::fs::write(&path, [0; 4096]).unwrap();
        assert_eq!(wrong(&File::open(&path).unwrap(), region(0, 4096, 0)), "");
        let directory = wrong(&File::open(directory.path()).unwrap(), region(0, 4096, 0));
        assert!(directory.contains("expected a file of memory"), "{directory}");
        let device = wrong(&File::open("/dev/zero").unwrap(), region(0, 4096, 0));
        assert!(device.contains("region 0: "), "{device}");
    }

    #[test]
    fn files_of_systems_that_may_never_answer_are_refused() {
        for path in ["/proc/self/maps", "/sys/kernel/mm/transparent_hugepage/enabled"] {
            let why = wrong(&File::open(path).unwrap(), region(0, 4096, 0));
            assert!(why.contains("file system"), "{path}: {why}");
        }
    }

    #[test]
    fn regions_are_few_small_and_apart() {
        let file = memory(1 << 20);
        let refused = |present: &[Region], new: &[Region]| {
            let files: Vec<_> = new.iter().map(|_| file.as_fd()).collect();
            check(present, new, &files, &LIMITS).err().unwrap_or_default()
        };
        let many: Vec<_> = (0..509).map(|n| region(n * 0x1000, 0x1000, 0)).collect();
        assert_eq!(refused(&many[..508], &many[508..]), "");
        let one_more = refused(&many, &[region(509 * 0x1000, 0x1000, 0)]);
        assert!(one_more.contains("510 regions; expected at most 509"), "{one_more}");
        let large = refused(&[], &[region(0, 1 << 47, 0)]);
        assert!(large.contains("at most 1024 MiB"), "{large}");
        let aliases: Vec<_> = (0..3).map(|n| region(n << 29, 1 << 29, 0)).collect();
        assert!(refused(&aliases[..2], &aliases[2..]).contains("at most 1024 MiB"));
        let overlap = refused(&many[..4], &[region(0x1800, 0x1000, 0)]);
        assert!(overlap.contains("overlap"), "{overlap}");
        assert!(refused(&[], &[region(0, 0, 0)]).contains("none or wraps"));
        assert!(refused(&[], &[region(u64::MAX - 4095, 0x2000, 0)]).contains("none or wraps"));
    }

    #[test]
    fn guests_share_the_addresses() {
        assert_eq!(bytes_max(1), 16 << 40);
        assert_eq!(bytes_max(64), 1 << 40);
    }
}
