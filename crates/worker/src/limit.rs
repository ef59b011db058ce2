//! A guest's limits: bytes and packets a second, each way.
//!
//! A burst passes as soon as what passed before it is paid for. It pays afterwards, with the stamp of its own, so no clock is
//! read for it. So the rate is exact in the long run, and what is ahead of it is one burst of frames at most for each queue pair,
//! and what an idle time has saved up ([`Limit::saved`]).
//!
//! A [`Bucket`] is what has been paid for: one for a guest and direction, shared by all workers that serve it. A [`Gate`] is where
//! a ring waits.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Deadline;
use crate::timeline::Sighting;

/// The form of a limit.
const FORM: &str = "a rate such as 100Mbit, 12MB or 50kpps, perhaps two of them, and burst=MS, with commas between them";
/// Smallest rate of bytes a second: a frame of the largest size then waits for a minute.
const BYTES_MIN: u64 = 1000;
/// Largest rate, of either kind.
const RATE_MAX: u64 = 1_000_000_000_000;
/// What an idle time saves up if nothing else is said.
const SAVED: Duration = Duration::from_millis(10);
/// Most that it may save up, milliseconds.
const SAVED_MAX_MS: u64 = 1000;

/// A limit of one direction: `--limit-tx`, `--limit-rx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bytes of frames a second.
    pub bytes: Option<u64>,
    /// Packets a second.
    pub packets: Option<u64>,
    /// Time for which an idle guest may save up: what it would have been allowed in this time may pass at once later.
    pub saved: Duration,
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut limit = Self { bytes: None, packets: None, saved: SAVED };
        let mut has_burst = false;
        for part in text.split(',') {
            let wrong = || format!("expected {FORM}, found '{part}'");
            if let Some(time) = part.strip_prefix("burst=") {
                let time = time.parse().ok().filter(|ms| (1..=SAVED_MAX_MS).contains(ms));
                let time = time.filter(|_| !std::mem::replace(&mut has_burst, true));
                limit.saved = Duration::from_millis(time.ok_or_else(wrong)?);
                continue;
            }
            let unit = part.find(|letter: char| !letter.is_ascii_digit() && letter != '.');
            let (number, unit) = part.split_at(unit.ok_or_else(wrong)?);
            let (scale, unit) = match unit.as_bytes().first() {
                Some(b'k' | b'K') => (1e3, &unit[1..]),
                Some(b'M') => (1e6, &unit[1..]),
                Some(b'G') => (1e9, &unit[1..]),
                _ => (1.0, unit),
            };
            let (scale, rate) = match unit {
                "bit" => (scale / 8.0, &mut limit.bytes),
                "B" => (scale, &mut limit.bytes),
                "pps" => (scale, &mut limit.packets),
                _ => return Err(wrong()),
            };
            if rate.is_some() {
                return Err(format!(
                    "expected one rate of bytes and one of packets, found '{text}'"
                ));
            }
            let number: f64 = number.parse().map_err(|_| wrong())?;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "saturates"
            )]
            let value = (number * scale).round() as u64;
            *rate = Some(value);
        }
        let is_possible =
            |rate: Option<u64>, min| rate.is_none_or(|it| (min..=RATE_MAX).contains(&it));
        match limit {
            Self { bytes: None, packets: None, .. } => {
                Err(format!("expected {FORM}, found '{text}'"))
            }
            _ if is_possible(limit.bytes, BYTES_MIN) && is_possible(limit.packets, 1) => Ok(limit),
            _ => Err(format!(
                "expected rates from 8kbit and 1pps up to 8000Gbit and 1000Gpps, found '{text}'"
            )),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rates = [(self.bytes, "B"), (self.packets, "pps")];
        for (rate, unit) in rates.into_iter().filter_map(|(rate, unit)| Some((rate?, unit))) {
            let (number, prefix) = match rate {
                rate if rate % 1_000_000 == 0 => (rate / 1_000_000, "M"),
                rate if rate % 1000 == 0 => (rate / 1000, "k"),
                rate => (rate, ""),
            };
            write!(f, "{number}{prefix}{unit},")?;
        }
        write!(f, "burst={}", self.saved.as_millis())
    }
}

/// What was paid for of a limit, by all rings that share it.
#[derive(Debug)]
pub struct Bucket {
    limit: Limit,
    bytes: Meter,
    packets: Meter,
}

/// What was paid for at one rate.
#[derive(Debug)]
struct Meter {
    /// When all that passed is paid for, ticks.
    paid: AtomicU64,
    /// The price of one, ticks in 2^-32; 0 without a rate.
    price: u64,
    /// Most ticks that are saved up.
    saved: u64,
}

impl Bucket {
    /// Nothing has passed yet. `clock` is that of the workers.
    #[must_use]
    pub fn new(limit: Limit, clock: &burst_trace::Clock) -> Self {
        let saved = clock.ticks_in(limit.saved);
        let rate = clock.ticks_per_second();
        let [bytes, packets] =
            [limit.bytes, limit.packets].map(|limit| Meter::new(rate, limit, saved));
        Self { limit, bytes, packets }
    }

    /// The limit.
    #[must_use]
    pub const fn limit(&self) -> Limit {
        self.limit
    }

    /// When what has passed is paid for, ticks.
    fn paid(&self) -> u64 {
        self.bytes.paid.load(Ordering::Relaxed).max(self.packets.paid.load(Ordering::Relaxed))
    }

    /// The clock has gone back: nothing is owed.
    fn forgive(&self, now: u64) {
        for meter in [&self.bytes, &self.packets] {
            meter.paid.fetch_min(now, Ordering::Relaxed);
        }
    }
}

impl Meter {
    fn new(ticks_per_second: u64, rate: Option<u64>, saved: u64) -> Self {
        let price = rate.map_or(0, |rate| (u128::from(ticks_per_second) << 32) / u128::from(rate));
        let price = u64::try_from(price).unwrap_or(u64::MAX);
        Self { paid: AtomicU64::new(0), price, saved }
    }

    /// `count` more have passed at `now`. `fraction`: what a ring owes of a tick.
    fn pay(&self, count: u64, fraction: &mut u32, now: u64) {
        if self.price == 0 {
            return;
        }
        let due = u128::from(self.price) * u128::from(count) + u128::from(*fraction);
        #[expect(clippy::cast_possible_truncation, reason = "the low half")]
        let low = due as u32;
        *fraction = low;
        let ticks = u64::try_from(due >> 32).unwrap_or(u64::MAX);
        let earliest = now.saturating_sub(self.saved);
        let _ = self.paid.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid| {
            Some(paid.max(earliest).saturating_add(ticks))
        });
    }
}

/// Where a ring waits for its guest's limit.
#[derive(Debug)]
pub struct Gate {
    bucket: Arc<Bucket>,
    /// What the ring owes of a tick: of bytes, of packets.
    fractions: [u32; 2],
    /// When the next burst may pass; `None` if it may now.
    opens: Option<Deadline>,
    /// Frames are in sight, and have waited since, ticks.
    waits_since: Option<u64>,
    /// How long the frames in sight waited before, ticks.
    waited: u64,
    /// When frames from a wire came into sight.
    sighting: Option<Sighting>,
}

impl Gate {
    /// A ring of a guest with this limit.
    pub const fn new(bucket: Arc<Bucket>) -> Self {
        Self {
            bucket,
            fractions: [0; 2],
            opens: None,
            waits_since: None,
            waited: 0,
            sighting: None,
        }
    }

    /// The limit.
    pub fn limit(&self) -> Limit {
        self.bucket.limit()
    }

    /// A burst has passed at `now`, ticks.
    #[inline]
    pub fn pay(&mut self, packets: u16, bytes: u32, now: u64) {
        let Self { bucket, fractions: [of_bytes, of_packets], .. } = self;
        bucket.bytes.pay(bytes.into(), of_bytes, now);
        bucket.packets.pay(packets.into(), of_packets, now);
        self.close(now);
    }

    fn close(&mut self, now: u64) {
        let owed = self.bucket.paid().saturating_sub(now);
        self.opens = (owed > 0).then(|| Deadline::after(now, owed));
    }

    /// Whether nothing may pass. Reads the clock only if something is owed.
    #[inline]
    pub fn is_closed(&mut self, now: impl FnOnce() -> u64) -> bool {
        let Some(opens) = self.opens else { return false };
        let now = now();
        if !opens.is_due(now) {
            return true;
        }
        self.open(opens, now);
        self.opens.is_some()
    }

    /// The time is over. Others may have used up the limit meanwhile.
    #[cold]
    fn open(&mut self, opens: Deadline, now: u64) {
        if opens.is_far(now) {
            self.bucket.forgive(now);
        }
        self.close(now);
        if self.opens.is_none()
            && let Some(since) = self.waits_since.take()
        {
            self.waited = self.waited.saturating_add(now.saturating_sub(since));
        }
    }

    /// Whether frames are known to wait.
    #[inline]
    pub const fn is_waiting(&self) -> bool {
        self.waits_since.is_some()
    }

    /// Frames in sight wait from `now` on, ticks, if the limit lets nothing pass.
    #[inline]
    pub const fn wait(&mut self, now: u64) {
        if self.opens.is_some() && self.waits_since.is_none() {
            self.waits_since = Some(now);
        }
    }

    /// The same for frames of a wire, which came into sight at `sighting`.
    pub const fn wait_for(&mut self, sighting: Sighting, now: u64) {
        self.wait(now);
        self.sighting = Some(sighting);
    }

    /// How long the frames in sight have waited, ticks.
    #[inline]
    pub const fn waited(&self) -> u64 {
        self.waited
    }

    /// The same for frames of a wire, with when they came into sight. They wait no longer.
    #[inline]
    pub const fn take_waited(&mut self) -> Option<(Sighting, u64)> {
        let waited = std::mem::replace(&mut self.waited, 0);
        match self.sighting.take() {
            Some(sighting) => Some((sighting, waited)),
            None => None,
        }
    }

    /// No frames are in sight any more.
    #[inline]
    pub const fn forget(&mut self) {
        (self.waits_since, self.waited, self.sighting) = (None, 0, None);
    }

    /// Time after which frames that wait may pass, ticks; `None` if none wait.
    pub fn opens_in(&self, now: u64) -> Option<u64> {
        let opens = self.opens.filter(|_| self.is_waiting())?;
        // A timer that is set to no time at all would never fire.
        Some(opens.left(now).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_they_are_written() {
        let saved = Duration::from_millis(10);
        for (text, bytes, packets, written) in [
            ("100Mbit", Some(12_500_000), None, "12500kB,burst=10"),
            ("12MB", Some(12_000_000), None, "12MB,burst=10"),
            ("1.5GB,50kpps", Some(1_500_000_000), Some(50_000), "1500MB,50kpps,burst=10"),
            ("7pps", None, Some(7), "7pps,burst=10"),
        ] {
            let limit: Limit = text.parse().unwrap();
            assert_eq!(limit, Limit { bytes, packets, saved }, "{text}");
            assert_eq!(limit.to_string(), written);
            assert_eq!(written.parse(), Ok(limit));
        }
        assert_eq!("1MB,burst=5".parse::<Limit>().unwrap().saved, Duration::from_millis(5));
        for wrong in [
            "",
            "100",
            "Mbit",
            "100mbit",
            "1MB,2MB",
            "1MB,8Mbit",
            "burst=5",
            "1MB,burst=0",
            "1MB,burst=2000",
            "1MB,burst=5,burst=6",
            "1Mbps",
            "1bit",
            "0pps",
            "-1MB",
            "1e3MB",
            "9000GB",
            "1.2.3MB",
        ] {
            let error = wrong.parse::<Limit>().unwrap_err();
            assert!(
                error.starts_with("expected ") && error.contains("found '"),
                "{wrong}: {error}"
            );
        }
    }

    /// Sends bursts of `len` bytes as soon as the limit lets them pass. Returns the bytes that passed in `ticks`.
    fn sent(bucket: &Arc<Bucket>, burst: (u16, u32), ticks: u64, step: u64) -> u64 {
        let mut gate = Gate::new(Arc::clone(bucket));
        let (begun, mut bytes) = (1 << 40, 0);
        let mut now = begun;
        while now < begun + ticks {
            if !gate.is_closed(|| now) {
                gate.pay(burst.0, burst.1, now);
                bytes += u64::from(burst.1);
            }
            now += step;
        }
        bytes
    }

    #[test]
    fn the_rate_is_exact_at_any_size() {
        let clock = burst_trace::Clock::new();
        let second = clock.ticks_per_second();
        for text in ["10MB,burst=1", "1GB,burst=1", "12345678B,burst=1"] {
            let limit: Limit = text.parse().unwrap();
            for burst in [(1, 64), (32, 32 * 64), (1, 1500), (64, 64 * 1500)] {
                let bucket = Arc::new(Bucket::new(limit, &clock));
                let sent = sent(&bucket, burst, second / 10, second / 4_000_000) as f64;
                // In a tenth of a second, with a millisecond that was saved up.
                let rate = limit.bytes.unwrap() as f64 / 10.0;
                let allowed = rate * 1.0101 + f64::from(burst.1);
                let most_possible = 4e5 * f64::from(burst.1);
                assert!(sent <= allowed, "{text} {burst:?}: {sent}");
                assert!(
                    sent >= (rate * 0.999).min(most_possible * 0.99),
                    "{text} {burst:?}: {sent}"
                );
            }
        }
    }

    #[test]
    fn packets_are_limited_beside_bytes_and_rings_share_the_limit() {
        let clock = burst_trace::Clock::new();
        let second = clock.ticks_per_second();
        let bucket = Arc::new(Bucket::new("1GB,100kpps,burst=1".parse().unwrap(), &clock));
        let bytes = sent(&bucket, (1, 64), second, second / 1_000_000);
        assert!((bytes / 64).abs_diff(100_000) < 200, "{bytes}");
        // What one ring took is missing to another.
        let bucket = Arc::new(Bucket::new("1MB,burst=1".parse().unwrap(), &clock));
        let mut gates = [0, 1].map(|_| Gate::new(Arc::clone(&bucket)));
        let (begun, mut passed) = (1 << 40, 0_u64);
        for step in 0..100_000 {
            let now = begun + step * (second / 100_000);
            for gate in &mut gates {
                if !gate.is_closed(|| now) {
                    gate.pay(1, 1000, now);
                    passed += 1000;
                }
            }
        }
        assert!(passed.abs_diff(1_000_000) < 10_000, "{passed}");
    }

    #[test]
    fn an_idle_time_saves_up_no_more_than_is_said() {
        let clock = burst_trace::Clock::new();
        let bucket = Arc::new(Bucket::new("1MB,burst=20".parse().unwrap(), &clock));
        let mut gate = Gate::new(bucket);
        let now = 1 << 40;
        let mut passed = 0;
        while !gate.is_closed(|| now) {
            gate.pay(1, 1000, now);
            passed += 1;
        }
        assert!((20..=21).contains(&passed), "{passed}");
    }

    #[test]
    fn a_clock_that_goes_back_owes_nothing() {
        let clock = burst_trace::Clock::new();
        let bucket = Arc::new(Bucket::new("1MB,burst=1".parse().unwrap(), &clock));
        let mut gate = Gate::new(bucket);
        gate.pay(64, 64 * 1500, 1 << 50);
        assert!(gate.is_closed(|| 1 << 50));
        assert!(!gate.is_closed(|| 1 << 40));
        gate.pay(1, 1500, 1 << 40);
        assert!(gate.is_closed(|| 1 << 40));
        assert!(!gate.is_closed(|| (1 << 40) + clock.ticks_per_second()));
    }

    #[test]
    fn waiting_counts_only_while_frames_are_in_sight() {
        let clock = burst_trace::Clock::new();
        let bucket = Arc::new(Bucket::new("1MB,burst=1".parse().unwrap(), &clock));
        let mut gate = Gate::new(bucket);
        let now = 1 << 40;
        gate.wait(now);
        assert!(!gate.is_waiting(), "nothing is owed");
        gate.pay(64, 96_000, now);
        assert_eq!(gate.opens_in(now), None);
        gate.wait(now + 1000);
        let left = gate.opens_in(now + 1000).unwrap();
        assert!(gate.is_closed(|| now + 2000));
        assert!(!gate.is_closed(|| now + 1000 + left));
        assert_eq!((gate.waited(), gate.is_waiting()), (left, false));
        gate.forget();
        assert_eq!(gate.waited(), 0);
    }
}
