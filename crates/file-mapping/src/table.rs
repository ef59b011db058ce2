//! The registered mappings, as the signal handler reads them: without a lock.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most registered mappings: 64 guests with 509 regions each, twice, because a new table is mapped beside the old one.
pub const SLOTS_MAX: usize = 1 << 16;

/// Room for one mapping, read without a lock (a sequence lock).
struct Slot {
    /// Odd while it is being changed.
    version: AtomicUsize,
    /// Address of the first byte; 0 for none.
    start: AtomicUsize,
    /// Length in bytes.
    len: AtomicUsize,
    protection: AtomicI32,
    torn: AtomicBool,
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Address of the first byte.
    pub start: usize,
    /// Length in bytes.
    pub len: usize,
    /// `PROT_READ`, perhaps with `PROT_WRITE`.
    pub protection: i32,
}

static SLOTS: [Slot; SLOTS_MAX] = [const { Slot::new() }; SLOTS_MAX];
/// Number of slots that were ever used. The others are not searched.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Used slots that are free again. The lock also serialises changes of the table.
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());
/// Number of times that a mapping was torn.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Changes each time a registered mapping is torn. Owners of many mappings remember it and check their mappings when it
/// has changed.
#[inline]
#[must_use]
pub fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// Registers a mapping. Returns its slot, or `None` when the table is full.
pub fn register(start: usize, len: usize, protection: i32) -> Option<usize> {
    let mut free = free();
    let at = free.pop().or_else(|| {
        let used = USED.load(Ordering::Relaxed);
        (used < SLOTS_MAX).then(|| {
            USED.store(used + 1, Ordering::Release);
            used
        })
    })?;
    SLOTS[at].change(Registered { start, len, protection });
    Some(at)
}

/// Removes a mapping.
pub fn remove(at: usize) {
    let mut free = free();
    SLOTS[at].change(Registered { start: 0, len: 0, protection: 0 });
    free.push(at);
}

/// Whether the mapping in this slot was torn.
#[inline]
pub fn is_torn(at: usize) -> bool {
    SLOTS[at].torn.load(Ordering::Relaxed)
}

/// Finds the mapping that holds `address` and calls `mend`. If `mend` succeeds, marks the mapping as torn and returns
/// true. Async-signal-safe if `mend` is.
pub fn mend_at(address: usize, mend: impl FnOnce(Registered) -> bool) -> bool {
    let used = USED.load(Ordering::Acquire);
    let found = SLOTS[..used].iter().find_map(|slot| {
        let it = slot.read()?;
        (address.checked_sub(it.start)? < it.len).then_some((slot, it))
    });
    let Some((slot, it)) = found else { return false };
    if !mend(it) {
        return false;
    }
    slot.torn.store(true, Ordering::Relaxed);
    GENERATION.fetch_add(1, Ordering::Release);
    true
}

fn free() -> MutexGuard<'static, Vec<usize>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    const fn new() -> Self {
        Self {
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            protection: AtomicI32::new(0),
            torn: AtomicBool::new(false),
        }
    }

    /// Writes the slot. The caller holds the lock.
    fn change(&self, to: Registered) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(to.start, Ordering::Relaxed);
        self.len.store(to.len, Ordering::Relaxed);
        self.protection.store(to.protection, Ordering::Relaxed);
        self.torn.store(false, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// Reads the slot. Returns `None` also while it is being changed: no thread accesses such a mapping, so it is not
    /// the one that is searched.
    fn read(&self) -> Option<Registered> {
        let version = self.version.load(Ordering::Acquire);
        let it = Registered {
            start: self.start.load(Ordering::Relaxed),
            len: self.len.load(Ordering::Relaxed),
            protection: self.protection.load(Ordering::Relaxed),
        };
        fence(Ordering::Acquire);
        let is_whole = version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        (is_whole && it.start != 0).then_some(it)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_found_by_its_addresses_until_it_is_removed() {
        // No mapping has such addresses.
        let it = Registered { start: usize::MAX - 0x3000, len: 0x2000, protection: 1 };
        let at = register(it.start, it.len, it.protection).unwrap();
        let hits = |address| {
            let mut found = None;
            mend_at(address, |it| {
                found = Some(it);
                false
            });
            found
        };
        assert_eq!(hits(it.start - 1), None);
        assert_eq!(hits(it.start), Some(it));
        assert_eq!(hits(it.start + 0x1fff), Some(it));
        assert_eq!(hits(it.start + 0x2000), None);
        assert!(!is_torn(at));
        let before = generation();
        assert!(mend_at(it.start, |_| true));
        assert!(is_torn(at) && generation() != before);
        remove(at);
        assert_eq!(hits(it.start), None);
        let again = register(it.start, it.len, it.protection).unwrap();
        assert!(!is_torn(again), "a slot is used again, its mark is not");
        remove(again);
    }
}
