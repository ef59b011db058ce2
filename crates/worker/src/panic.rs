//! The alarm that a panicking thread raises.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Raised when a thread that guests depend on has panicked. The daemon then ends in order with its own exit status, so
/// that a supervisor restarts it. If it went on, it would refuse every front end.
#[derive(Clone, Debug)]
pub struct PanicAlarm(Arc<State>);

#[derive(Debug)]
struct State {
    wake: UnixStream,
    is_raised: AtomicBool,
}

/// Raises a [`PanicAlarm`] if the thread that drops it panics.
#[derive(Debug)]
pub struct RaiseOnPanic(PanicAlarm);

impl PanicAlarm {
    /// `wake` is written to when the alarm is raised.
    #[must_use]
    pub fn new(wake: UnixStream) -> Self {
        Self(Arc::new(State { wake, is_raised: AtomicBool::new(false) }))
    }

    /// Watches the calling thread while the result lives.
    #[must_use]
    pub fn watch(&self) -> RaiseOnPanic {
        RaiseOnPanic(self.clone())
    }

    /// Whether it was raised.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.0.is_raised.load(Ordering::Acquire)
    }

    fn raise(&self) {
        self.0.is_raised.store(true, Ordering::Release);
        // It fails only when the daemon is already ending.
        let _ = (&self.0.wake).write_all(&[0]);
    }
}

impl Drop for RaiseOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.raise();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn only_a_panic_raises_it() {
        let (wake, mut woken) = UnixStream::pair().unwrap();
        let alarm = PanicAlarm::new(wake);
        let run = |panics: bool| {
            let alarm = alarm.clone();
            let thread = std::thread::spawn(move || {
                let _watched = alarm.watch();
                assert!(!panics, "planted");
            });
            thread.join().is_err()
        };
        assert!(!run(false) && !alarm.is_raised());
        assert!(run(true) && alarm.is_raised());
        woken.read_exact(&mut [0]).unwrap();
    }
}
