//! A restart that is under way. The recorder knows the last burst of the daemon before; the worker that carries the first
//! burst after it stores the record.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::restart::{Ending, Restart};

/// A restart that is under way. All writers of a recorder have it.
#[derive(Debug)]
pub(crate) struct Restarting {
    /// Set before the first ring starts, if there was a burst before.
    before: OnceLock<Left>,
    listening: AtomicU64,
    /// 0 until the first ring starts.
    started: AtomicU64,
    is_resumed: AtomicBool,
    is_over: AtomicBool,
}

/// What the daemon before left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    /// The end of its last burst. At a take-over: when it stopped the rings.
    pub(crate) at: u64,
    pub(crate) ending: Ending,
    /// Its process; 0 if that is not known.
    pub(crate) process: u32,
}

impl Restarting {
    /// After a daemon that left this. `may_follow`: it is still served by that daemon.
    pub(crate) fn after(before: Option<Left>, may_follow: bool) -> Self {
        let (listening, started) = Default::default();
        Self {
            is_over: AtomicBool::new(before.is_none() && !may_follow),
            before: before.map_or_else(OnceLock::new, OnceLock::from),
            listening,
            started,
            is_resumed: AtomicBool::new(false),
        }
    }

    /// The daemon takes over now.
    pub(crate) fn take_over(&self, before: Left) {
        let _ = self.before.set(before);
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
        if self.is_over.swap(true, Ordering::Relaxed) {
            return None;
        }
        let Left { at, ending, process } = *self.before.get()?;
        let (listening, started) =
            (self.listening.load(Ordering::Relaxed), self.started.load(Ordering::Relaxed));
        let is_taken_over = ending == Ending::TakenOver;
        Some(Restart {
            before: at,
            // The socket was there all the time.
            listening: if is_taken_over { started } else { listening },
            started,
            after,
            ending,
            is_resumed: is_taken_over || self.is_resumed.load(Ordering::Relaxed),
            processes: [process, std::process::id()],
            writer: 0,
        })
    }
}
