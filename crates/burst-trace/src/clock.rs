//! The clock that stamps boundaries.
//!
//! The CPU's counter read plainly (x86-64 TSC, aarch64 CNTVCT): about a third of what `clock_gettime`
//! costs, and no system call. Where the counter does not run at one rate on every core and in every
//! sleep state, `CLOCK_MONOTONIC` instead. Differences of ticks are exact; [`Clock::ticks_per_second`]
//! turns them into nanoseconds.
#![allow(unsafe_code, reason = "reading the CPU counter and clock_gettime have no safe form")]

use std::time::{Duration, Instant};

/// Which counter gives the ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ClockKind {
    /// x86-64 time stamp counter.
    Tsc = 1,
    /// aarch64 virtual counter.
    Cntvct = 2,
    /// `CLOCK_MONOTONIC`, one tick a nanosecond.
    Monotonic = 3,
}

impl ClockKind {
    /// The name in reports: `tsc`, `cntvct` or `monotonic`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tsc => "tsc",
            Self::Cntvct => "cntvct",
            Self::Monotonic => "monotonic",
        }
    }

    /// The kind with this number in the recorder's header.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Tsc),
            2 => Some(Self::Cntvct),
            3 => Some(Self::Monotonic),
            _ => None,
        }
    }
}

/// A clock and its rate.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    kind: ClockKind,
    ticks_per_second: u64,
}

/// How long the counter is compared with `CLOCK_MONOTONIC` where its rate is not told by the CPU.
const CALIBRATION: Duration = Duration::from_millis(20);

impl Clock {
    /// The best clock of this machine. Takes about 20 ms: it measures the counter's rate.
    #[must_use]
    pub fn new() -> Self {
        let kind = best_kind();
        let ticks_per_second = match kind {
            ClockKind::Monotonic => 1_000_000_000,
            ClockKind::Tsc | ClockKind::Cntvct => measure_rate(kind),
        };
        Self { kind, ticks_per_second }
    }

    /// Which counter it is.
    #[must_use]
    pub const fn kind(&self) -> ClockKind {
        self.kind
    }

    /// The counter's rate.
    #[must_use]
    pub const fn ticks_per_second(&self) -> u64 {
        self.ticks_per_second
    }

    /// The time now, ticks.
    #[inline]
    #[must_use]
    pub fn now(&self) -> u64 {
        ticks(self.kind)
    }

    /// How many ticks `duration` lasts.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "centuries of ticks fit 64 bits")]
    pub fn ticks_in(&self, duration: Duration) -> u64 {
        (duration.as_nanos() * u128::from(self.ticks_per_second) / 1_000_000_000) as u64
    }

    /// How long `ticks` last.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "64 bits of nanoseconds are centuries")]
    pub fn duration_of(&self, ticks: u64) -> Duration {
        let nanoseconds = u128::from(ticks) * 1_000_000_000 / u128::from(self.ticks_per_second);
        Duration::from_nanos(nanoseconds as u64)
    }

    /// One instant on three clocks: ticks, `CLOCK_MONOTONIC` and `CLOCK_REALTIME` in nanoseconds.
    #[must_use]
    pub fn anchor(&self) -> Anchor {
        // The pair with the shortest distance between its two counter reads is the least disturbed one.
        (0..5)
            .map(|_| {
                let before = self.now();
                let monotonic_ns = read_clock(libc::CLOCK_MONOTONIC);
                let after = self.now();
                let ticks = before + (after - before) / 2;
                let realtime_ns = read_clock(libc::CLOCK_REALTIME);
                (after - before, Anchor { ticks, monotonic_ns, realtime_ns })
            })
            .min_by_key(|(distance, _)| *distance)
            .map(|(_, anchor)| anchor)
            .unwrap_or_default()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// One instant on three clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Anchor {
    /// The recorder's clock, ticks.
    pub ticks: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub monotonic_ns: u64,
    /// `CLOCK_REALTIME`, nanoseconds since 1970.
    pub realtime_ns: u64,
}

impl Anchor {
    /// When it was `monotonic_ns`, in ticks of `clock`. The two clocks drift: by up to some ten microseconds a
    /// second from the anchor.
    #[inline]
    #[must_use]
    pub fn ticks_at(&self, monotonic_ns: u64, clock: &Clock) -> u64 {
        let between = |from: u64, to: u64| clock.ticks_in(Duration::from_nanos(to - from));
        if monotonic_ns >= self.monotonic_ns {
            self.ticks.saturating_add(between(self.monotonic_ns, monotonic_ns))
        } else {
            self.ticks.saturating_sub(between(monotonic_ns, self.monotonic_ns))
        }
    }
}

#[inline]
fn ticks(kind: ClockKind) -> u64 {
    match kind {
        // SAFETY: RDTSC is part of every x86-64 CPU, touches no memory, and Linux leaves it open to
        // user space (CR4.TSD clear).
        #[cfg(target_arch = "x86_64")]
        ClockKind::Tsc => unsafe { core::arch::x86_64::_rdtsc() },
        #[cfg(target_arch = "aarch64")]
        ClockKind::Cntvct => {
            let value: u64;
            // SAFETY: CNTVCT_EL0 is readable in user space on Linux and the read touches no memory.
            unsafe {
                core::arch::asm!("mrs {}, cntvct_el0", out(reg) value, options(nomem, nostack))
            };
            value
        }
        _ => read_clock(libc::CLOCK_MONOTONIC),
    }
}

fn read_clock(id: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec that the call fills.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// The TSC when it runs at one rate in every state, by the CPU's word (CPUID 8000_0007h EDX bit 8) or
/// because the kernel itself keeps time by it.
#[cfg(target_arch = "x86_64")]
fn best_kind() -> ClockKind {
    use core::arch::x86_64::__cpuid;
    let extended = __cpuid(0x8000_0000).eax;
    let invariant = extended >= 0x8000_0007 && __cpuid(0x8000_0007).edx & (1 << 8) != 0;
    let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let kernel_uses_it = std::fs::read_to_string(source).is_ok_and(|name| name.trim() == "tsc");
    if invariant || kernel_uses_it { ClockKind::Tsc } else { ClockKind::Monotonic }
}

#[cfg(target_arch = "aarch64")]
fn best_kind() -> ClockKind {
    ClockKind::Cntvct
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn best_kind() -> ClockKind {
    ClockKind::Monotonic
}

#[expect(clippy::cast_possible_truncation, reason = "a rate in Hz fits 64 bits")]
fn measure_rate(kind: ClockKind) -> u64 {
    let clock = Clock { kind, ticks_per_second: 0 };
    let first = clock.anchor();
    let start = Instant::now();
    while start.elapsed() < CALIBRATION {
        std::thread::sleep(CALIBRATION - start.elapsed().min(CALIBRATION));
    }
    let second = clock.anchor();
    let ticks = u128::from(second.ticks - first.ticks) * 1_000_000_000;
    (ticks / u128::from(second.monotonic_ns - first.monotonic_ns)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anchor_tells_the_ticks_of_a_time_before_and_after() {
        let clock = Clock::new();
        let anchor = clock.anchor();
        let second = clock.ticks_per_second();
        let ms = |ticks: u64| ticks.abs_diff(anchor.ticks) * 1000 / second;
        assert_eq!(anchor.ticks_at(anchor.monotonic_ns, &clock), anchor.ticks);
        let after = anchor.ticks_at(anchor.monotonic_ns + 5_500_000, &clock);
        let before = anchor.ticks_at(anchor.monotonic_ns - 5_500_000, &clock);
        assert!(after > anchor.ticks && before < anchor.ticks);
        assert_eq!((ms(after), ms(before)), (5, 5));
    }

    #[test]
    fn ticks_agree_with_the_monotonic_clock() {
        let clock = Clock::new();
        let (ticks, wall) = (clock.now(), Instant::now());
        std::thread::sleep(Duration::from_millis(50));
        let (ticks, wall) = (clock.now() - ticks, wall.elapsed());
        let expected = clock.ticks_in(wall);
        assert!(ticks.abs_diff(expected) < expected / 50, "{ticks} ticks, expected {expected}");
    }
}
