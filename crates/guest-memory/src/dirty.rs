//! The dirty log: which pages of the guest's memory the device has written, for a live migration.
//!
//! The front end gives a file with one bit for each page of guest-physical address (vhost-user, "Migration"). The device
//! sets bits; the front end reads and clears them while it copies the guest's memory, again and again until little is left.
//! Then it stops the device, and reads the log a last time. So a bit may be set at any time after the write and before
//! the device has stopped. It must not be set before the write: the front end could clear it and copy the old bytes.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use file_mapping::SharedWords;

use crate::memory::GuestMemory;
use crate::slice::GuestSlice;

/// Bytes of guest memory for each bit (vhost-user, "Migration").
pub const PAGE: u64 = 4096;
/// Pages for each word of the log. A word is little-endian, as are all machines on which this runs.
const PAGES_A_WORD: u64 = u64::BITS as u64;

/// A dirty log in a file of the front end. If the file is shortened, later marks are lost ([`is_torn`](Self::is_torn)).
#[derive(Debug)]
pub struct DirtyLog {
    words: SharedWords,
}

impl DirtyLog {
    /// Maps the `len` bytes of the log from byte `offset` of `file` on. The caller has checked that the file has them.
    ///
    /// # Errors
    /// As [`SharedWords::map_part`].
    pub fn map(file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        Ok(Self { words: SharedWords::map_part(file, offset, len)? })
    }

    /// Whether it has bits for all pages of the `len` bytes at guest-physical `address`.
    #[must_use]
    pub fn covers(&self, address: u64, len: u64) -> bool {
        let pages = self.words().len() as u64 * PAGES_A_WORD;
        address.checked_add(len).is_some_and(|end| end.div_ceil(PAGE) <= pages)
    }

    /// Whether its file became shorter, so that marks were lost.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.words.is_torn()
    }

    /// To mark what was written before this call.
    #[must_use]
    pub fn marker(&self) -> Marker<'_> {
        // A bit that is set already is not set again. The bytes must be visible before that bit is read: the front end
        // clears it and then reads the bytes, so either it sees the bytes, or its clearing is seen here.
        fence(Ordering::SeqCst);
        Marker { words: self.words() }
    }

    fn words(&self) -> &[AtomicU64] {
        self.words.words()
    }
}

/// Marks pages that were written before this was made.
#[derive(Clone, Copy, Debug)]
pub struct Marker<'l> {
    words: &'l [AtomicU64],
}

impl Marker<'_> {
    /// Marks the pages of the `len` bytes at guest-physical `address`. Pages that the log does not cover are left out.
    pub fn mark(&self, address: u64, len: u64) {
        let Some(behind) = len.checked_sub(1) else { return };
        let last = address.saturating_add(behind) / PAGE;
        for page in address / PAGE..=last {
            let word = usize::try_from(page / PAGES_A_WORD).ok().and_then(|at| self.words.get(at));
            let Some(word) = word else { return };
            let bit = 1 << (page % PAGES_A_WORD);
            // Most pages are marked already. Reading leaves the line in the caches of all CPUs.
            if word.load(Ordering::Relaxed) & bit == 0 {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    /// Marks the first `len` bytes of the run `slices`, which are of `memory`.
    pub fn mark_run(&self, memory: &GuestMemory, slices: &[GuestSlice<'_>], mut len: usize) {
        for slice in slices {
            let count = slice.len().min(len);
            if count == 0 {
                return;
            }
            if let Some(address) = memory.guest_address(slice) {
                self.mark(address, count as u64);
            }
            len -= count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{LastRegion, Mapping};
    use proptest::prelude::*;
    use std::fs::File;
    use std::os::fd::AsFd as _;
    use std::sync::Arc;
    use vm_memory::GuestAddress;

    fn log(len: u64) -> (File, DirtyLog) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        let log = DirtyLog::map(file.as_fd(), 0, usize::try_from(len).unwrap()).unwrap();
        (file, log)
    }

    /// The pages that are marked, as a front end reads the file: bit by bit of each byte.
    fn marked(file: &File) -> Vec<u64> {
        use std::os::unix::fs::FileExt as _;
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let is_set = |page: &u64| bytes[(page / 8) as usize] & 1 << (page % 8) != 0;
        (0..bytes.len() as u64 * 8).filter(is_set).collect()
    }

    #[test]
    #[cfg_attr(miri, ignore = "files cannot be mapped there")]
    fn every_page_of_a_range_is_marked_and_no_other() {
        for (address, len, pages) in [
            (0, 1, vec![0]),
            (0x1000, 0, vec![]),
            (0xfff, 2, vec![0, 1]),
            (0x1000, 0x1000, vec![1]),
            (0x3f_000, 0x2000, vec![63, 64]),
            (0x7f_fff, 0x1000, vec![127]),
            (0x80_000, 1, vec![]),
            (u64::MAX, 1, vec![]),
            (u64::MAX - 1, u64::MAX, vec![]),
            (0, u64::MAX, (0..128).collect()),
        ] {
            let (file, log) = log(16);
            log.marker().mark(address, len);
            assert_eq!(marked(&file), pages, "{address:#x} {len:#x}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "files cannot be mapped there")]
    fn a_log_covers_what_it_has_bits_for() {
        let (_file, log) = log(16);
        assert!(log.covers(0, 0x80_000) && log.covers(0x7f_fff, 1) && log.covers(0x80_000, 0));
        assert!(!log.covers(0, 0x80_001) && !log.covers(0x80_000, 1));
        assert!(!log.covers(u64::MAX, 1) && !log.covers(u64::MAX, u64::MAX));
    }

    #[test]
    #[cfg_attr(miri, ignore = "files cannot be mapped there")]
    fn a_log_begins_at_its_offset_and_does_not_change_what_is_before() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096 + 8).unwrap();
        let log = DirtyLog::map(file.as_fd(), 4096, 8).unwrap();
        log.marker().mark(0x5000, 1);
        assert_eq!(marked(&file), [4096 * 8 + 5]);
        assert!(DirtyLog::map(file.as_fd(), 1, 8).is_err(), "not at a page of the file");
        assert!(DirtyLog::map(file.as_fd(), 0, 0).is_err(), "no log at all");
    }

    #[test]
    #[cfg_attr(miri, ignore = "files cannot be mapped there")]
    fn a_log_that_is_shortened_is_torn_and_marking_goes_on() {
        let (file, log) = log(8192);
        file.set_len(0).unwrap();
        assert!(!log.is_torn());
        log.marker().mark(0, 1 << 28);
        assert!(log.is_torn());
    }

    #[test]
    #[cfg_attr(miri, ignore = "files cannot be mapped there")]
    fn a_page_that_the_front_end_cleared_is_marked_again() {
        use std::os::unix::fs::FileExt as _;
        let (file, log) = log(8);
        log.marker().mark(0x2000, 1);
        file.write_all_at(&[0], 0).unwrap();
        log.marker().mark(0x2000, 1);
        assert_eq!(marked(&file), [2]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Two adjacent regions, a hole, and one more: a run is marked where it lies in guest-physical addresses.
        #[test]
        #[cfg_attr(miri, ignore = "files cannot be mapped there")]
        fn a_run_is_marked_by_guest_physical_address(at in 0..0x6000_u64, len in 1..0x4000_u64, less in 0..0x4000_u64) {
            let ranges = [(0x1000, 0x3000), (0x4000, 0x3000), (0x2_0000, 0x3000)];
            let map = Mapping::from_ranges(&ranges.map(|(at, len)| (GuestAddress(at), len))).unwrap();
            let memory = GuestMemory::new(Arc::new(map));
            let at = 0x1000 + at;
            let mut run = Vec::new();
            let translated =
                memory.translator(LastRegion::default()).translate(at, len, |slice| run.push(slice));
            prop_assume!(translated.is_ok());
            let (file, log) = log(8);
            let written = len - less.min(len);
            log.marker().mark_run(&memory, &run, usize::try_from(written).unwrap());
            let expected: Vec<_> = (0..64)
                .filter(|page| at < (page + 1) * PAGE && at + written > page * PAGE && written > 0)
                .collect();
            prop_assert_eq!(marked(&file), expected);
        }
    }
}
