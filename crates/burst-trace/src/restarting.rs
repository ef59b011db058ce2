//! A restart that is under way. The recorder knows the last burst of the daemon before; the worker that carries the first
//! burst after it stores the record.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::before::Old;
use crate::restart::Restart;

/// A restart that is under way. All writers of a recorder have it.
#[derive(Debug)]
pub(crate) struct Restarting {
    /// The end of the last burst of the daemon before, and whether that daemon was killed; `None` if there was none.
    before: Option<(u64, bool)>,
    listening: AtomicU64,
    /// 0 until the first ring starts.
    started: AtomicU64,
    is_resumed: AtomicBool,
    is_over: AtomicBool,
}

impl Restarting {
    pub(crate) fn after(old: Option<&Old>) -> Self {
        let before = old.and_then(|old| Some((old.last_burst?, !old.is_ended)));
        let (listening, started) = Default::default();
        Self {
            before,
            listening,
            started,
            is_resumed: AtomicBool::new(false),
            is_over: AtomicBool::new(before.is_none()),
        }
    }

    /// The socket is there.
    pub(crate) fn listens(&self, at: u64) {
        self.listening.store(at, Ordering::Relaxed);
    }

    /// A ring was started.
    pub(crate) fn ring_started(&self, at: u64) {
        let _ = self.started.compare_exchange(0, at, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// A ring went on where the daemon before stood. Returns whether it is the first one.
    pub(crate) fn ring_resumed(&self) -> bool {
        !self.is_resumed.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// A burst was carried until `after`. Returns the restart if it is the first burst.
    pub(crate) fn ends(&self, after: u64) -> Option<Restart> {
        let (before, is_killed) = self.before?;
        if self.is_over.swap(true, Ordering::Relaxed) {
            return None;
        }
        Some(Restart {
            before,
            listening: self.listening.load(Ordering::Relaxed),
            started: self.started.load(Ordering::Relaxed),
            after,
            is_killed,
            is_resumed: self.is_resumed.load(Ordering::Relaxed),
            writer: 0,
        })
    }
}
