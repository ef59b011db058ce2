//! How tests wait for a state: [`eventually`].

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

/// Deadline of what takes milliseconds, on a machine that is busy with other things.
pub const SOON: Duration = Duration::from_secs(2);
/// Time without pauses, at the beginning: most states are reached within it.
const BUSY: Duration = Duration::from_millis(1);
/// Pause between two questions after that.
const PAUSE: Duration = Duration::from_micros(500);

/// Asks `state` again and again until it answers `Ok`, and returns that. An `Err` is the state found instead.
///
/// `what` names the state that is waited for. It completes the sentence "expected ... within 5 s".
///
/// # Panics
/// When `state` does not answer `Ok` within `deadline`. The message has `what`, and the state found last.
#[track_caller]
pub fn eventually<T, F: Display>(
    deadline: Duration,
    what: &str,
    mut state: impl FnMut() -> Result<T, F>,
) -> T {
    let begun = Instant::now();
    loop {
        match state() {
            Ok(reached) => return reached,
            Err(found) => {
                let waited = begun.elapsed();
                assert!(waited < deadline, "expected {what} within {deadline:?}; found {found}");
                if waited < BUSY { yield_now() } else { sleep(PAUSE) }
            }
        }
    }
}

/// An answer for [`eventually`]: whether the state is reached, and the state found.
///
/// # Errors
/// `found`, if the state is not reached.
pub fn when<F>(is_reached: bool, found: F) -> Result<(), F> {
    if is_reached { Ok(()) } else { Err(found) }
}

/// Sets a flag when dropped: threads that watch it end, even if a wait fails.
#[derive(Debug)]
pub struct SetOnDrop<'f>(pub &'f AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_answer_is_returned() {
        let mut count = 0;
        let answer = eventually(Duration::from_secs(5), "three questions", || {
            count += 1;
            if count == 3 { Ok("three") } else { Err(count) }
        });
        assert_eq!((answer, count), ("three", 3));
    }

    #[test]
    #[should_panic(expected = "expected nine frames within 2ms; found 8 frames")]
    fn a_state_that_is_not_reached_is_shown() {
        eventually(Duration::from_millis(2), "nine frames", || when(false, "8 frames"));
    }
}
