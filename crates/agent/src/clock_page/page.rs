//! The words of the page. The host's words are in one cache line, and the guest's in another.
//!
//! The other side may write anything anywhere. So each side copies a word once, and uses it as a number only.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use file_mapping::SharedWords;

/// Size of the page and its file, bytes.
pub const PAGE_BYTES: u64 = 4096;
/// Shows that the page is a clock page. The guest answers only where it is.
const MARK_VALUE: u64 = u64::from_le_bytes(*b"rs-clock");

/// The host's line: its question, and the mark.
const QUESTION: usize = 0;
const MARK: usize = 1;
/// The guest's line: the question that it has answered, and its reading.
const ANSWERED: usize = 8;
const BEFORE: usize = 9;
const CLOCK: usize = 10;
const AFTER: usize = 11;

/// What the host wants of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing yet: the page is new.
    Nothing = 0,
    /// Its counter.
    Counter = 1,
    /// Its clock between two readings of its counter.
    Pair = 2,
    /// The end of its work.
    End = 3,
}

/// A question of the host: a number that no other question has, with what is wanted in its lowest two bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question(u64);

impl Question {
    /// That of a new page.
    pub const NONE: Self = Self(0);

    /// Questions begin at the time, and there are fewer than nanoseconds: no two runs have the same.
    pub const fn first(now_ns: u64) -> Self {
        Self(now_ns << 2)
    }

    /// The question after this one.
    pub const fn next(self, wanted: Wanted) -> Self {
        Self((self.0 & !3).wrapping_add(4) | wanted as u64)
    }

    /// What the guest is to do.
    pub const fn wanted(self) -> Wanted {
        match self.0 & 3 {
            0 => Wanted::Nothing,
            1 => Wanted::Counter,
            2 => Wanted::Pair,
            _ => Wanted::End,
        }
    }
}

/// What the guest has read. For [`Wanted::Counter`], `before` and `after` are the same, and the clock is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The guest's counter before its clock, ticks.
    pub before: u64,
    /// The guest's `CLOCK_MONOTONIC`, nanoseconds.
    pub clock_ns: u64,
    /// The guest's counter after its clock, ticks.
    pub after: u64,
}

/// The page, mapped.
#[derive(Debug)]
pub struct Page(SharedWords);

impl Page {
    /// Maps a file of [`PAGE_BYTES`].
    ///
    /// # Errors
    /// The error of `mmap(2)`; `UnexpectedEof` if the file is shorter.
    pub fn map(file: &File) -> io::Result<Self> {
        let words = SharedWords::map(file)?;
        let is_whole = words.words().len() > AFTER;
        is_whole.then_some(Self(words)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        &self.0.words()[at]
    }

    /// Host: writes the mark into a page that has it already, or is empty. Returns whether it is so.
    pub fn mark(&self) -> bool {
        let is_empty = || self.0.words().iter().all(|word| word.load(Ordering::Relaxed) == 0);
        let is_page = self.word(MARK).load(Ordering::Relaxed) == MARK_VALUE || is_empty();
        if is_page {
            self.word(MARK).store(MARK_VALUE, Ordering::Release);
        }
        is_page
    }

    /// Host: asks.
    pub fn ask(&self, question: Question) {
        self.word(QUESTION).store(question.0, Ordering::Release);
    }

    /// Host: the question that the guest has answered last.
    pub fn answered(&self) -> Question {
        Question(self.word(ANSWERED).load(Ordering::Acquire))
    }

    /// Host: the guest's reading. It belongs to the question that was [`answered`](Self::answered) before.
    pub fn reading(&self) -> Reading {
        let read = |at: usize| self.word(at).load(Ordering::Relaxed);
        Reading { before: read(BEFORE), clock_ns: read(CLOCK), after: read(AFTER) }
    }

    /// Guest: the host's question, [`Question::NONE`] in a page without the mark.
    pub fn asked(&self) -> Question {
        let question = self.word(QUESTION).load(Ordering::Acquire);
        let is_marked = self.word(MARK).load(Ordering::Relaxed) == MARK_VALUE;
        if is_marked { Question(question) } else { Question::NONE }
    }

    /// Guest: answers.
    pub fn answer(&self, question: Question, reading: Reading) {
        self.word(BEFORE).store(reading.before, Ordering::Relaxed);
        self.word(CLOCK).store(reading.clock_ns, Ordering::Relaxed);
        self.word(AFTER).store(reading.after, Ordering::Relaxed);
        self.word(ANSWERED).store(question.0, Ordering::Release);
    }

    /// Whether the file became shorter.
    pub fn is_torn(&self) -> bool {
        self.0.is_torn()
    }
}
