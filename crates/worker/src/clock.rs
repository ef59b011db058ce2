//! The worker's time: the recorder's clock, and deadlines on it.
//!
//! The clock may jump. After a suspend the CPU's counter starts again on some machines, and a virtual machine that moves
//! to another host may get another counter. A deadline made before a jump must not be days away after it.

use std::ops::Deref;

/// The recorder's clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    clock: burst_trace::Clock,
    /// Ticks that a test has the clock jump by.
    #[cfg(test)]
    jump: Option<&'static std::sync::atomic::AtomicU64>,
}

impl Clock {
    /// The time now, ticks.
    #[inline]
    pub fn now(&self) -> u64 {
        let now = self.clock.now();
        #[cfg(test)]
        if let Some(jump) = self.jump {
            return now.wrapping_add(jump.load(std::sync::atomic::Ordering::Relaxed));
        }
        now
    }

    /// A clock that reads `jump` ticks more than it should.
    #[cfg(test)]
    pub fn jumping(jump: &'static std::sync::atomic::AtomicU64) -> Self {
        Self { clock: burst_trace::Clock::new(), jump: Some(jump) }
    }
}

impl From<burst_trace::Clock> for Clock {
    fn from(clock: burst_trace::Clock) -> Self {
        Self {
            clock,
            #[cfg(test)]
            jump: None,
        }
    }
}

impl Deref for Clock {
    type Target = burst_trace::Clock;

    fn deref(&self) -> &burst_trace::Clock {
        &self.clock
    }
}

/// A point in time, ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    at: u64,
    /// Ticks from its making to `at`.
    span: u64,
}

impl Deadline {
    /// `span` ticks after `now`.
    #[inline]
    pub const fn after(now: u64, span: u64) -> Self {
        Self { at: now.saturating_add(span), span }
    }

    /// Whether it is reached.
    #[inline]
    pub const fn is_due(self, now: u64) -> bool {
        self.left(now) == 0
    }

    /// Ticks left; 0 if more than twice the span would be left, because the clock has gone back then. Up to twice the span
    /// is accepted, because `now` may be a little older than the deadline.
    #[inline]
    pub const fn left(self, now: u64) -> u64 {
        if self.is_far(now) { 0 } else { self.at.saturating_sub(now) }
    }

    /// Whether more than twice the span would be left, because the clock has gone back.
    #[inline]
    pub const fn is_far(self, now: u64) -> bool {
        self.at.saturating_sub(now) > self.span.saturating_mul(2)
    }
}

#[cfg(test)]
mod tests {
    use super::Deadline;

    #[test]
    fn a_deadline_comes_also_when_the_clock_goes_back() {
        let deadline = Deadline::after(1_000_000, 100);
        assert!(!deadline.is_due(1_000_000) && deadline.is_due(1_000_100));
        assert_eq!((deadline.left(1_000_040), deadline.left(1_000_200)), (60, 0));
        // `now` was read just before the deadline was made.
        assert!(!deadline.is_due(999_990));
        assert!(deadline.is_due(0) && deadline.is_due(999_000) && deadline.is_due(u64::MAX));
        assert!(Deadline::after(u64::MAX - 1, 100).left(u64::MAX - 1) <= 100);
        assert!(Deadline::after(5, 0).is_due(5));
    }
}
