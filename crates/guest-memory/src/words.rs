//! The contents of ring parts under loom.

use loom::sync::atomic::{AtomicU16, AtomicU64};

/// The words of a part of a ring, shared by both sides.
///
/// Loom knows no accesses of different sizes to one place, so a wider access is one to each word in it: the
/// two halves of an event suppression structure may be read from different times. No hardware is weaker.
#[derive(Debug)]
pub(crate) enum Words {
    /// Descriptor tables.
    Long(Vec<AtomicU64>),
    /// Driver and device areas.
    Short(Vec<AtomicU16>),
}
