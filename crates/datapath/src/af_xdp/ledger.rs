//! Which chunks for frames to send are free, and how far the next frames have come: words in memory that another daemon can
//! map, too, and go on with ([`super::estate`]). One daemon at a time uses them.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use file_mapping::SharedWords;

/// Number of the free chunks.
const FREE: usize = 0;
/// Segments of the next frame from the guest that are sent already.
const SENT: usize = 1;
/// Segments of the next frame to the guest that it has already.
const PLACED: usize = 2;
/// The offsets of the free chunks begin in a cache line of their own.
const CHUNKS: usize = 8;

/// The words.
#[derive(Debug)]
pub enum Ledger {
    /// In a file.
    Shared(SharedWords),
    /// Of this process alone.
    Own(Box<[AtomicU64]>),
}

impl Ledger {
    /// Bytes for `chunks` chunks.
    pub const fn len(chunks: u32) -> usize {
        (CHUNKS + chunks as usize) * size_of::<u64>()
    }

    /// The one of this process alone, for `chunks` chunks, none of them free.
    pub fn own(chunks: u32) -> Self {
        let words = CHUNKS + chunks as usize;
        Self::Own((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    /// The one in `file` at byte `offset`, for `chunks` chunks.
    ///
    /// # Errors
    /// See [`SharedWords::map_part`].
    pub fn in_file(file: BorrowedFd<'_>, offset: u64, chunks: u32) -> io::Result<Self> {
        SharedWords::map_part(file, offset, Self::len(chunks)).map(Self::Shared)
    }

    #[inline]
    fn words(&self) -> &[AtomicU64] {
        match self {
            Self::Shared(words) => words.words(),
            Self::Own(words) => words,
        }
    }

    /// A word; 0 where there is none.
    #[inline]
    fn word(&self, at: usize) -> usize {
        let word = self.words().get(at).map_or(0, |word| word.load(Ordering::Relaxed));
        usize::try_from(word).unwrap_or(usize::MAX)
    }

    #[inline]
    fn set(&self, at: usize, value: u64) {
        if let Some(word) = self.words().get(at) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Number of free chunks.
    #[inline]
    pub fn free(&self) -> usize {
        self.word(FREE)
    }

    /// Takes a free chunk: its offset in UMEM.
    #[inline]
    pub fn take(&mut self) -> Option<u64> {
        let last = self.free().checked_sub(1)?;
        let offset = self.words().get(CHUNKS.checked_add(last)?)?.load(Ordering::Relaxed);
        self.set(FREE, last as u64);
        Some(offset)
    }

    /// Notes that the chunk at `offset` will be free, after `noted` others that were noted before it.
    #[inline]
    pub fn note(&mut self, noted: usize, offset: u64) {
        let at = self.free().saturating_add(CHUNKS + noted);
        debug_assert!(at < self.words().len(), "more chunks than there are");
        self.set(at, offset);
    }

    /// Frees the `count` chunks that were noted.
    #[inline]
    pub fn add(&mut self, count: usize) {
        let free = self.free().saturating_add(count).min(self.words().len() - CHUNKS);
        self.set(FREE, free as u64);
    }

    /// Keeps how many segments of the next frames are sent, and are placed.
    pub fn set_progress(&mut self, sent: usize, placed: usize) {
        self.set(SENT, sent as u64);
        self.set(PLACED, placed as u64);
    }

    /// How many segments of the next frames are sent, and are placed.
    pub fn progress(&self) -> (usize, usize) {
        (self.word(SENT), self.word(PLACED))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn another_mapping_of_it_goes_on_where_the_first_one_stands() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096 + Ledger::len(3) as u64).unwrap();
        let open = || Ledger::in_file(file.as_fd(), 4096, 3).unwrap();
        let (mut first, mut second) = (open(), open());
        for (noted, offset) in [2048, 4096, 6144].into_iter().enumerate() {
            first.note(noted, offset);
        }
        // What is noted and not added is lost if its process is killed then.
        assert_eq!(second.take(), None);
        first.add(3);
        assert_eq!(first.take(), Some(6144));
        first.set_progress(3, 1);
        assert_eq!((second.free(), second.take(), second.take()), (2, Some(4096), Some(2048)));
        assert_eq!((second.take(), second.progress()), (None, (3, 1)));
    }

    #[test]
    fn no_number_in_it_leads_outside() {
        let mut ledger = Ledger::own(2);
        ledger.set(FREE, u64::MAX);
        assert_eq!(ledger.take(), None);
        ledger.set(FREE, 0);
        ledger.add(7);
        assert_eq!(ledger.free(), 2);
    }
}
