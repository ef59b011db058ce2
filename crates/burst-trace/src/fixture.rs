//! Interruptions for tests of what reads them.

use crate::{Culprit, Interruption, InterruptionCause, Subject};

/// A process of one thread with this name, in the class `fifo 50`.
///
/// # Panics
/// When the name is longer than 16 bytes.
#[must_use]
pub fn culprit(name: impl AsRef<[u8]>, process: u32) -> Culprit {
    let name = name.as_ref();
    let mut command = [0; 16];
    command[..name.len()].copy_from_slice(name);
    Culprit { process, thread: process, command, policy: 1, priority: 50 }
}

/// `hog`, process 123, has CPU 1 from `start` to `end` (ticks) in place of worker 0, whose thread is 5. Writer 1 stored it.
#[must_use]
pub fn preempted(start: u64, end: u64) -> Interruption {
    Interruption {
        start,
        end,
        subject: Subject::Worker(0),
        thread: 5,
        cause: InterruptionCause::Preempted,
        culprit: culprit("hog", 123),
        detail: 0,
        cpu: 1,
        writer: 1,
    }
}
