//! The clock that stamps boundaries.
//!
//! It reads the CPU's counter directly (x86-64 TSC, aarch64 CNTVCT). That costs about a third of `clock_gettime`, and
//! no system call. Where the kernel does not trust the counter, the clock is `CLOCK_MONOTONIC` instead. Differences of
//! ticks are exact; [`Clock::ticks_per_second`] converts them to nanoseconds.
#![allow(unsafe_code, reason = "reading the CPU counter and clock_gettime have no safe form")]

use std::time::{Duration, Instant};

/// The counter that gives the ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ClockKind {
    /// x86-64 time stamp counter.
    Tsc = 1,
    /// aarch64 virtual counter.
    Cntvct = 2,
    /// `CLOCK_MONOTONIC`: one tick is a nanosecond.
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

/// Time for which the counter is compared with `CLOCK_MONOTONIC` to measure its rate.
const CALIBRATION: Duration = Duration::from_millis(20);
/// The same, to find out whether the counter still has a rate that is known.
const CONFIRMATION: Duration = Duration::from_millis(1);

/// The counter that programs can read on this architecture.
const CPU_COUNTER: Option<ClockKind> = if cfg!(target_arch = "x86_64") {
    Some(ClockKind::Tsc)
} else if cfg!(target_arch = "aarch64") {
    Some(ClockKind::Cntvct)
} else {
    None
};

impl Clock {
    /// The best clock of this machine. Takes about 20 ms: it measures the counter's rate.
    #[must_use]
    pub fn new() -> Self {
        Self::with_known_rate(None)
    }

    /// The same; takes about 1 ms if the counter still has the rate `known`, in ticks a second, within 1 %.
    #[must_use]
    pub fn with_known_rate(known: Option<u64>) -> Self {
        let kind = best_kind();
        let rate = match kind {
            ClockKind::Monotonic => None,
            ClockKind::Tsc | ClockKind::Cntvct => known
                .filter(|&known| has_rate(kind, known))
                .or_else(|| measure_rate(kind, CALIBRATION)),
        };
        match rate {
            Some(ticks_per_second) => Self { kind, ticks_per_second },
            None => Self { kind: ClockKind::Monotonic, ticks_per_second: 1_000_000_000 },
        }
    }

    /// The CPU's counter, even if the kernel does not trust it. `None` if programs cannot read one here, or if it does not
    /// advance. Takes about 20 ms, as [`Clock::new`].
    #[must_use]
    pub fn of_cpu() -> Option<Self> {
        let kind = CPU_COUNTER?;
        Some(Self { kind, ticks_per_second: measure_rate(kind, CALIBRATION)? })
    }

    /// The counter's rate from `start` to `now`, in ticks a second. `None` when the counter jumped in between, as in a
    /// suspend: the rate then differs by more than a sixteenth from the rate measured when the clock was made.
    #[must_use]
    pub fn rate_since(&self, start: Anchor, now: Anchor) -> Option<u64> {
        let nominal = self.ticks_per_second;
        rate_between(start, now).filter(|rate| rate.abs_diff(nominal) <= nominal / 16)
    }

    /// The counter that gives the ticks.
    #[must_use]
    pub const fn kind(&self) -> ClockKind {
        self.kind
    }

    /// The counter's rate, in ticks a second.
    #[must_use]
    pub const fn ticks_per_second(&self) -> u64 {
        self.ticks_per_second
    }

    /// The time now, in ticks.
    #[inline]
    #[must_use]
    pub fn now(&self) -> u64 {
        ticks(self.kind)
    }

    /// The time now, in ticks, read after all loads that the program has made before. (A CPU may read its counter before an
    /// earlier load is done.)
    #[inline]
    #[must_use]
    pub fn now_after_loads(&self) -> u64 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 CPU has LFENCE; it waits for earlier loads, and changes nothing.
        unsafe {
            core::arch::asm!("lfence", options(nostack, preserves_flags))
        };
        #[cfg(target_arch = "aarch64")]
        // SAFETY: ISB waits for earlier instructions, and changes nothing.
        unsafe {
            core::arch::asm!("isb", options(nostack, preserves_flags))
        };
        self.now()
    }

    /// The number of ticks in `duration`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "centuries of ticks fit 64 bits")]
    pub fn ticks_in(&self, duration: Duration) -> u64 {
        (duration.as_nanos() * u128::from(self.ticks_per_second) / 1_000_000_000) as u64
    }

    /// The duration of `ticks`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "64 bits of nanoseconds are centuries")]
    pub fn duration_of(&self, ticks: u64) -> Duration {
        let nanoseconds = u128::from(ticks) * 1_000_000_000 / u128::from(self.ticks_per_second);
        Duration::from_nanos(nanoseconds as u64)
    }

    /// One instant on three clocks: ticks, `CLOCK_MONOTONIC` and `CLOCK_REALTIME` in nanoseconds.
    #[must_use]
    pub fn anchor(&self) -> Anchor {
        // The anchor with the shortest distance between its two counter reads is the least disturbed one.
        (0..5)
            .map(|_| {
                let before = self.now();
                let monotonic_ns = read_clock(libc::CLOCK_MONOTONIC);
                let after = self.now_after_loads();
                // If the counter restarts between the two reads, the distance is huge, and another anchor is used.
                let distance = after.wrapping_sub(before);
                let ticks = before.saturating_add(distance / 2);
                let realtime_ns = read_clock(libc::CLOCK_REALTIME);
                (distance, Anchor { ticks, monotonic_ns, realtime_ns, error_ns: 0 })
            })
            .min_by_key(|(distance, _)| *distance)
            .map(|(distance, anchor)| Anchor { error_ns: self.error_ns(distance), ..anchor })
            .unwrap_or_default()
    }

    /// By how much the middle between two readings, this number of ticks apart, may be from what was read between them. Ticks
    /// and nanoseconds are read without their fractions.
    fn error_ns(&self, distance: u64) -> u64 {
        let half = u128::from(distance / 2 + 1) * 1_000_000_000;
        let error = half.checked_div(self.ticks_per_second.into()).unwrap_or(u128::MAX);
        u64::try_from(error).map_or(u64::MAX, |error| error.saturating_add(2))
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
    /// By how much `ticks` and `monotonic_ns` may be apart, nanoseconds; 0 if it was read from a file.
    pub error_ns: u64,
}

impl Anchor {
    /// Converts `monotonic_ns` to ticks of `clock`. The two clocks drift apart, by up to some ten microseconds for each
    /// second between this time and the anchor.
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
        // SAFETY: every x86-64 CPU has RDTSC, it touches no memory, and Linux allows it in user space (CR4.TSD clear).
        #[cfg(target_arch = "x86_64")]
        ClockKind::Tsc => unsafe { core::arch::x86_64::_rdtsc() },
        #[cfg(target_arch = "aarch64")]
        ClockKind::Cntvct => {
            let value: u64;
            // SAFETY: Linux allows user space to read CNTVCT_EL0, and the read touches no memory.
            unsafe {
                core::arch::asm!("mrs {}, cntvct_el0", out(reg) value, options(nomem, nostack))
            };
            value
        }
        _ => read_clock(libc::CLOCK_MONOTONIC),
    }
}

/// `CLOCK_MONOTONIC` now, nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    read_clock(libc::CLOCK_MONOTONIC)
}

fn read_clock(id: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec that the call fills.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// The kernel's clock sources (`kernel/time/clocksource.c`): the current one and the available ones. Neither has a
/// counter that the watchdog has marked unstable.
#[derive(Clone, Debug, Default)]
struct Sources {
    current: Option<String>,
    available: Option<String>,
}

impl Sources {
    fn of_this_host() -> Self {
        let read = |file| {
            std::fs::read_to_string(format!("/sys/devices/system/clocksource/clocksource0/{file}"))
                .ok()
        };
        Self { current: read("current_clocksource"), available: read("available_clocksource") }
    }

    /// The current clock source, where `/sys` has it.
    fn current(&self) -> Option<&str> {
        self.current.as_deref().map(str::trim)
    }

    /// Whether the kernel trusts the TSC. Either it is the current source; or the current source is the hypervisor's, based
    /// on the TSC, and the TSC is available and invariant (CPUID). With any other source, or none in `/sys`, the TSC is not
    /// trusted: the CPU's claim alone is not enough.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "there is no TSC"))]
    fn trust_tsc(&self, is_invariant: bool) -> bool {
        match self.current() {
            Some("tsc") => true,
            Some("kvm-clock" | "hyperv_clocksource_tsc_page" | "xen") => {
                let available = self.available.as_deref().unwrap_or_default();
                is_invariant && available.split_whitespace().any(|name| name == "tsc")
            }
            _ => false,
        }
    }

    /// Whether the kernel trusts the aarch64 counter. By the architecture it runs at a constant rate.
    #[cfg_attr(not(target_arch = "aarch64"), allow(dead_code, reason = "there is no such counter"))]
    fn trust_cntvct(&self) -> bool {
        self.current().is_none_or(|name| name == "arch_sys_counter")
    }
}

#[cfg(target_arch = "x86_64")]
fn best_kind() -> ClockKind {
    use core::arch::x86_64::__cpuid;
    // CPUID 8000_0007h EDX bit 8: the TSC is invariant.
    let extended = __cpuid(0x8000_0000).eax;
    let is_invariant = extended >= 0x8000_0007 && __cpuid(0x8000_0007).edx & (1 << 8) != 0;
    let is_trusted = Sources::of_this_host().trust_tsc(is_invariant);
    if is_trusted { ClockKind::Tsc } else { ClockKind::Monotonic }
}

#[cfg(target_arch = "aarch64")]
fn best_kind() -> ClockKind {
    let is_trusted = Sources::of_this_host().trust_cntvct();
    if is_trusted { ClockKind::Cntvct } else { ClockKind::Monotonic }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn best_kind() -> ClockKind {
    ClockKind::Monotonic
}

/// The counter's rate, if it advances.
fn measure_rate(kind: ClockKind, time: Duration) -> Option<u64> {
    let clock = Clock { kind, ticks_per_second: 0 };
    let first = clock.anchor();
    let start = Instant::now();
    while start.elapsed() < time {
        std::thread::sleep(time - start.elapsed().min(time));
    }
    rate_between(first, clock.anchor())
}

/// Whether the counter has this rate, within 1 %.
fn has_rate(kind: ClockKind, rate: u64) -> bool {
    measure_rate(kind, CONFIRMATION).is_some_and(|found| found.abs_diff(rate) <= rate / 100)
}

/// Ticks a second from `first` to `second`; `None` if the counter stood still or went back.
fn rate_between(first: Anchor, second: Anchor) -> Option<u64> {
    let ticks = u128::from(second.ticks.checked_sub(first.ticks)?) * 1_000_000_000;
    let rate = ticks.checked_div(second.monotonic_ns.checked_sub(first.monotonic_ns)?.into())?;
    u64::try_from(rate).ok().filter(|&rate| rate > 0)
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
    fn the_kernel_decides_whether_the_tsc_is_used() {
        let sources = |current: Option<&str>, available: &str| Sources {
            current: current.map(|name| format!("{name}\n")),
            available: Some(format!("{available} \n")),
        };
        for (current, available, is_invariant, expected) in [
            (Some("tsc"), "tsc hpet acpi_pm", true, true),
            // Old CPUs do not report it, but the kernel has verified the TSC.
            (Some("tsc"), "tsc hpet acpi_pm", false, true),
            (Some("kvm-clock"), "kvm-clock tsc acpi_pm", true, true),
            (Some("kvm-clock"), "kvm-clock tsc acpi_pm", false, false),
            // The watchdog has marked it unstable.
            (Some("kvm-clock"), "kvm-clock acpi_pm", true, false),
            (Some("hpet"), "hpet acpi_pm", true, false),
            // Without high-resolution timers the TSC stays in the list.
            (Some("hpet"), "tsc hpet acpi_pm", true, false),
            (Some("acpi_pm"), "tsc-early acpi_pm", true, false),
            (Some("hyperv_clocksource_tsc_page"), "hyperv_clocksource_tsc_page tsc", true, true),
            (Some("hyperv_clocksource_msr"), "hyperv_clocksource_msr tsc", true, false),
            (None, "", true, false),
        ] {
            let found = sources(current, available).trust_tsc(is_invariant);
            assert_eq!(found, expected, "{current:?} of {available}, invariant: {is_invariant}");
        }
        assert!(sources(Some("arch_sys_counter"), "arch_sys_counter").trust_cntvct());
        assert!(Sources::default().trust_cntvct());
        assert!(!sources(Some("timer0"), "arch_sys_counter timer0").trust_cntvct());
    }

    #[test]
    fn a_counter_that_stands_or_goes_back_has_no_rate() {
        let at = |ticks, monotonic_ns| Anchor { ticks, monotonic_ns, ..Anchor::default() };
        assert_eq!(rate_between(at(5, 0), at(30_000_005, 10_000_000)), Some(3_000_000_000));
        for second in [at(1000, 10_000_000), at(0, 10_000_000), at(2000, 5)] {
            assert_eq!(rate_between(at(1000, 5), second), None);
        }
    }

    #[test]
    fn a_known_rate_is_kept_if_the_counter_still_has_it() {
        let clock = Clock::new();
        if clock.kind == ClockKind::Monotonic {
            return;
        }
        let rate = clock.ticks_per_second;
        let near = rate + rate / 1000;
        let kept = (0..10).any(|_| Clock::with_known_rate(Some(near)).ticks_per_second == near);
        assert!(kept, "{near} ticks a second");
        for wrong in [0, rate / 2, rate * 2, u64::MAX] {
            let found = Clock::with_known_rate(Some(wrong)).ticks_per_second;
            assert!(found.abs_diff(rate) < rate / 50, "{found}, {rate}");
        }
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
