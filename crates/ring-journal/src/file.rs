//! The file, and the part of it that belongs to one ring.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence};
use std::sync::{Arc, Mutex, PoisonError};

use file_mapping::SharedWords;
use host_files::boot_id;
use host_files::own::{new_file, open_own, own_file};
use rustix::fs::{FallocateFlags, fallocate};

use crate::entry::{Entry, Published, RingIdentity, position};

/// `RINGJNL1`, little endian.
const MAGIC: u64 = u64::from_le_bytes(*b"RINGJNL1");
/// The version of the layout. It changes whenever an older daemon would misread it.
const VERSION: u64 = 1;
/// File mode: for the daemon's user alone.
const MODE: u32 = 0o600;

/// Words of the header, by position.
mod word {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 1;
    pub const BOOT: usize = 2;
    pub const RINGS: usize = 4;
}
/// The header's length in words: a page.
const HEADER_WORDS: usize = 512;
/// Words of a ring: a cache line that is written when it starts, and one that each burst writes.
const RING_WORDS: usize = 16;

/// Words of a ring, by position.
mod ring {
    pub const STATE: usize = 0;
    pub const PARTS: usize = 1;
    pub const SETUP: usize = 4;
    pub const TAKEN: usize = 8;
    pub const PUBLISHED: usize = 9;
    pub const PENDING: usize = 10;
}
/// The state of a ring in service.
const IN_SERVICE: u64 = 1;

/// What was at the journal's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// The journal of a daemon before this one. It is continued.
    Journal,
    /// A file that cannot be continued, for this reason. A new one is in its place.
    Unfit(String),
}

/// The journal of a guest's rings. The daemon that opens it must hold the lock on the guest's name.
#[derive(Debug)]
pub struct Journal {
    words: SharedWords,
    rings: usize,
    /// Whether this daemon has begun to note the ring.
    begun: Vec<AtomicBool>,
    /// Where the file is and where it belongs, if it has not its place yet.
    beside: Mutex<Option<[PathBuf; 2]>>,
}

/// Removes a file that never got its place.
impl Drop for Journal {
    fn drop(&mut self) {
        let beside = self.beside.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some([path, _]) = beside {
            let _ = fs::remove_file(path);
        }
    }
}

impl Journal {
    /// Continues the journal at `path`, or makes a new one, for `rings` virtqueues.
    ///
    /// # Errors
    /// When something else than a regular file of this user is at `path`, or the system refuses.
    pub fn open(path: &Path, rings: u16) -> io::Result<(Arc<Self>, Found)> {
        let found = match Self::find(path, rings)? {
            Ok(journal) => return Ok((Arc::new(journal), Found::Journal)),
            Err(found) => found,
        };
        if found != Found::Nothing {
            fs::remove_file(path)?;
        }
        Ok((Arc::new(Self::make(path, rings)?), found))
    }

    /// The same for a daemon that takes over from one that still uses the journal at `path`. A new one is beside that until
    /// [`take_place`](Self::take_place).
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_beside(path: &Path, rings: u16) -> io::Result<(Arc<Self>, Found)> {
        let found = match Self::find(path, rings)? {
            Ok(journal) => return Ok((Arc::new(journal), Found::Journal)),
            Err(found) => found,
        };
        let mut beside = path.as_os_str().to_owned();
        beside.push(".next");
        let beside = PathBuf::from(beside);
        // A daemon that was killed while it took over may have left one.
        if own_file(&beside)?.is_some() {
            fs::remove_file(&beside)?;
        }
        let mut journal = Self::make(&beside, rings)?;
        journal.beside = Mutex::new(Some([beside, path.into()]));
        Ok((Arc::new(journal), found))
    }

    /// The file gets its place: the daemon before does not use the one there any more.
    ///
    /// # Errors
    /// What the system answers.
    pub fn take_place(&self) -> io::Result<()> {
        let mut beside = self.beside.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some([from, to]) = &*beside {
            fs::rename(from, to)?;
            *beside = None;
        }
        Ok(())
    }

    /// Makes a new journal at `path`, where nothing may be.
    fn make(path: &Path, rings: u16) -> io::Result<Self> {
        let rings = usize::from(rings);
        let (boot, len) = (boot_id(), HEADER_WORDS + rings * RING_WORDS);
        let file = new_file(path, MODE)?;
        // Without its space, stores would be lost on a full file system.
        fallocate(&file, FallocateFlags::empty(), 0, len as u64 * 8).inspect_err(|_| {
            let _ = fs::remove_file(path);
        })?;
        let journal = Self::new(SharedWords::map(&file)?, rings);
        let header = &journal.words.words()[..HEADER_WORDS];
        let set = |at: usize, value: u64| header[at].store(value, Ordering::Relaxed);
        set(word::VERSION, VERSION);
        for (n, part) in boot.unwrap_or_default().into_iter().enumerate() {
            set(word::BOOT + n, part);
        }
        set(word::RINGS, rings as u64);
        header[word::MAGIC].store(MAGIC, Ordering::Release);
        Ok(journal)
    }

    /// The journal at `path`, if it can be continued.
    fn find(path: &Path, rings: u16) -> io::Result<Result<Self, Found>> {
        match open_own(path)? {
            None => Ok(Err(Found::Nothing)),
            Some(file) => Ok(Self::continued(&file, rings.into())?.map_err(Found::Unfit)),
        }
    }

    /// The journal in `file`, or why it cannot be continued.
    fn continued(file: &File, rings: usize) -> io::Result<Result<Self, String>> {
        let (boot, len) = (boot_id(), HEADER_WORDS + rings * RING_WORDS);
        let (expected, found) = (len as u64 * 8, file.metadata()?.len());
        if found != expected {
            return Ok(Err(format!("expected {expected} bytes, found {found}")));
        }
        let words = SharedWords::map(file)?;
        let header = &words.words()[..HEADER_WORDS];
        let number = |at: usize| header[at].load(Ordering::Relaxed);
        Ok(if number(word::MAGIC) != MAGIC {
            Err("it does not begin as a journal does".into())
        } else if number(word::VERSION) != VERSION {
            Err(format!("expected version {VERSION}, found version {}", number(word::VERSION)))
        } else if number(word::RINGS) != rings as u64 {
            Err(format!("expected {rings} rings, found {}", number(word::RINGS)))
        } else if boot != Some([number(word::BOOT), number(word::BOOT + 1)]) {
            Err("the host was booted since".into())
        } else {
            Ok(Self::new(words, rings))
        })
    }

    fn new(words: SharedWords, rings: usize) -> Self {
        let begun = (0..rings).map(|_| AtomicBool::new(false)).collect();
        Self { words, rings, begun, beside: Mutex::default() }
    }

    /// The part of virtqueue `ring`; `None` if it has none.
    #[must_use]
    pub fn slot(self: &Arc<Self>, ring: u16) -> Option<Slot> {
        let ring = usize::from(ring);
        (ring < self.rings).then(|| Slot { journal: Arc::clone(self), ring })
    }

    fn ring(&self, ring: usize) -> &[AtomicU64; RING_WORDS] {
        let at = HEADER_WORDS + ring * RING_WORDS;
        self.words.words()[at..].first_chunk().expect("its length was checked when it was opened")
    }
}

/// The part of the journal that belongs to one ring. One thread writes it.
#[derive(Debug)]
pub struct Slot {
    journal: Arc<Journal>,
    ring: usize,
}

impl Slot {
    /// What was noted of the ring: by this daemon, or by one before it.
    #[must_use]
    pub fn entry(&self) -> Option<Entry> {
        let words = self.words();
        let load = |at: usize| words[at].load(Ordering::Relaxed);
        if words[ring::STATE].load(Ordering::Acquire) != IN_SERVICE {
            return None;
        }
        let parts = [0, 1, 2].map(|n| load(ring::PARTS + n));
        let taken = load(ring::TAKEN);
        Some(Entry {
            identity: RingIdentity::from_words(parts, load(ring::SETUP))?,
            used: position(taken),
            taken: position(taken >> 16),
            published: Published::from_word(load(ring::PUBLISHED)),
            pending: load(ring::PENDING),
        })
    }

    /// Whether what was noted of the ring is of a daemon before this one.
    #[must_use]
    pub fn is_of_daemon_before(&self) -> bool {
        !self.journal.begun[self.ring].load(Ordering::Relaxed)
    }

    /// Notes the ring that starts at `position`. `published`: its last group, if it is known.
    pub fn begin(&self, identity: &RingIdentity, position: u16, published: Option<Published>) {
        let words = self.words();
        self.forget();
        self.journal.begun[self.ring].store(true, Ordering::Relaxed);
        for (n, part) in identity.parts.into_iter().enumerate() {
            words[ring::PARTS + n].store(part, Ordering::Relaxed);
        }
        words[ring::SETUP].store(identity.setup_word(), Ordering::Relaxed);
        self.taken(position, position);
        let published = published.map_or(0, Published::to_word);
        words[ring::PUBLISHED].store(published, Ordering::Relaxed);
        words[ring::STATE].store(IN_SERVICE, Ordering::Release);
    }

    /// Removes what was noted of the ring: the front end knows where it continues, or the guest starts it from the beginning.
    pub fn forget(&self) {
        self.words()[ring::STATE].store(0, Ordering::SeqCst);
    }

    /// Notes that the chains from `used` to `taken` are with the device.
    #[inline]
    pub fn taken(&self, used: u16, taken: u16) {
        let word = u64::from(used) | u64::from(taken) << 16;
        self.words()[ring::TAKEN].store(word, Ordering::Release);
    }

    /// Notes a group of used descriptors that becomes visible next.
    #[inline]
    pub fn publishing(&self, group: Published) {
        self.words()[ring::PUBLISHED].store(group.to_word(), Ordering::Release);
    }

    /// Notes the first descriptor of a group that begins.
    #[inline]
    pub fn pending(&self, word: u64) {
        self.words()[ring::PENDING].store(word, Ordering::Release);
        // The other descriptors of the group are stored after this.
        compiler_fence(Ordering::Release);
    }

    #[inline]
    fn words(&self) -> &[AtomicU64; RING_WORDS] {
        self.journal.ring(self.ring)
    }
}

#[cfg(test)]
mod tests;
