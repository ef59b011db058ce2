//! What is known of the clocks of a recorder's host, beside the recorder's own.

use burst_trace::{ClockKind, Header};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::facts::without_controls;
use crate::when::When;

/// How a KVM guest's time stamp counter follows from the host's (`kvm_scale_tsc` and `kvm_read_l1_tsc` in
/// `arch/x86/kvm/x86.c`): `guest = (host * scaling_ratio >> fraction_bits) + tsc_offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestCounter {
    /// Ticks of the guest.
    pub tsc_offset: i64,
    /// Ticks of the guest for one of the host, times two to the power of the next field.
    pub scaling_ratio: u64,
    /// Bits of the ratio after the binary point.
    pub fraction_bits: u32,
}

impl GuestCounter {
    /// The least and the highest counter of the host, ticks, when the guest's is `guest`; `None` if it has no such counter.
    #[must_use]
    pub fn on_host(&self, guest: u64) -> Option<[u64; 2]> {
        let Self { tsc_offset, scaling_ratio, fraction_bits } = *self;
        let scaled = u128::try_from(i128::from(guest) - i128::from(tsc_offset)).ok()?;
        let ratio = u128::from(scaling_ratio);
        let whole = |scaled: u128| scaled.checked_mul(1_u128.checked_shl(fraction_bits)?);
        // The fraction of a tick is cut off.
        let least = whole(scaled)?.checked_div(ratio)?;
        let most = whole(scaled + 1)?.checked_add(ratio)?.checked_div(ratio)?;
        Some([u64::try_from(least).ok()?, u64::try_from(most).ok()?])
    }
}

/// The clocks of a recorder's host.
#[derive(Clone, Debug)]
pub struct HostClocks {
    when: When,
    recorder: ClockKind,
    /// How far `CLOCK_REALTIME` is ahead of `CLOCK_MONOTONIC`, nanoseconds: at least, and at most.
    realtime_ahead_ns: Option<[i64; 2]>,
    guest_counter: Result<GuestCounter, String>,
}

impl HostClocks {
    /// Those of a recorder or recording. `clocks`: what was found on its host, as a recording has it in its facts as `clocks`;
    /// its members may be missing.
    #[must_use]
    pub fn new(header: &Header, clocks: &Value) -> Self {
        Self::with(When::of(header), header.clock(), clocks)
    }

    fn with(when: When, recorder: ClockKind, clocks: &Value) -> Self {
        let counter = &clocks["guest_counter"];
        let guest_counter =
            GuestCounter::deserialize(counter).map_err(|_| match counter.as_str() {
                Some(reason) => without_controls(reason.trim_start_matches("n/a: ")),
                None => "nothing was recorded of it; use a recording of `ringscope record`".into(),
            });
        Self {
            when,
            recorder,
            realtime_ahead_ns: <[i64; 2]>::deserialize(&clocks["realtime_ahead_ns"])
                .ok()
                .filter(|[low, high]| low <= high),
            guest_counter,
        }
    }

    /// How far `CLOCK_REALTIME` is ahead of `CLOCK_MONOTONIC`, nanoseconds: at least, and at most.
    ///
    /// # Errors
    /// The reason why it is not known, in words.
    pub(super) fn realtime_ahead_ns(&self) -> Result<[i64; 2], String> {
        self.realtime_ahead_ns.ok_or_else(|| {
            "the host's CLOCK_REALTIME is not known; use a recording of `ringscope record`".into()
        })
    }

    /// The host's `CLOCK_MONOTONIC` when the guest's counter was `guest`, nanoseconds: at least, and at most.
    ///
    /// # Errors
    /// The reason why it is not known, in words.
    pub(super) fn at_guest_counter(&self, guest: u64) -> Result<[i64; 2], String> {
        let counter = self.guest_counter.as_ref().map_err(|reason| {
            format!("the offset of the guest's counter from the host's is not known: {reason}")
        })?;
        if self.recorder != ClockKind::Tsc {
            return Err(format!(
                "the recorder's clock is {}, and KVM's offset is one of the TSC",
                self.recorder.name()
            ));
        }
        let host = counter.on_host(guest).ok_or_else(|| {
            format!("the guest's counter {guest} is none with the offset {}", counter.tsc_offset)
        })?;
        let [from, to] = host.map(|ticks| self.when.monotonic_ns(ticks).cast_signed());
        Ok([from, to.saturating_add(1)])
    }
}

#[cfg(test)]
pub(super) mod tests {
    use burst_trace::Anchor;

    use super::*;

    /// A host with these clocks, whose recorder's tick is a nanosecond of `CLOCK_MONOTONIC`.
    pub fn host(clocks: &str) -> HostClocks {
        let clocks = serde_json::from_str(clocks).unwrap();
        HostClocks::with(When::new(Anchor::default(), 1.0), ClockKind::Tsc, &clocks)
    }

    /// A host of which nothing else is known.
    pub fn plain() -> HostClocks {
        host("{}")
    }

    #[test]
    fn the_guests_counter_leads_back_to_the_hosts() {
        // A ratio of 1 in 48 bits (VMX); a guest of 3 GHz on a host of 2.5 GHz in 32 bits (SVM); one of 1 GHz.
        for (scaling_ratio, fraction_bits) in
            [(1_u64 << 48, 48), (5_153_960_755, 32), (1_717_986_918, 32), (1, 0)]
        {
            for tsc_offset in [0, -123_456_789_012_345, 5_000_000] {
                let counter = GuestCounter { tsc_offset, scaling_ratio, fraction_bits };
                for host in [200_000_000_000_000_u64, 987_654_321_098_765, 1 << 55] {
                    let scaled = (u128::from(host) * u128::from(scaling_ratio)) >> fraction_bits;
                    let guest = i128::try_from(scaled).unwrap() + i128::from(tsc_offset);
                    let Ok(guest) = u64::try_from(guest) else { continue };
                    let [least, most] = counter.on_host(guest).unwrap();
                    assert!(least <= host && host <= most, "{counter:?}: {least} {host} {most}");
                    assert!(most - least <= 5, "{counter:?}: {least} to {most}");
                }
            }
        }
    }

    #[test]
    fn numbers_of_no_counter_are_refused() {
        let counter = |tsc_offset, scaling_ratio, fraction_bits| GuestCounter {
            tsc_offset,
            scaling_ratio,
            fraction_bits,
        };
        assert_eq!(counter(100, 1, 0).on_host(99), None, "before the host's counter began");
        assert_eq!(counter(0, 0, 0).on_host(1), None);
        assert_eq!(counter(0, 1, 200).on_host(1), None);
        assert_eq!(counter(i64::MIN, 1, 63).on_host(u64::MAX), None);
    }

    #[test]
    fn what_is_missing_is_said() {
        let found = host(r#"{"guest_counter":"n/a: process 7 has no guest of KVM"}"#);
        let error = found.at_guest_counter(5).unwrap_err();
        assert!(error.ends_with("not known: process 7 has no guest of KVM"), "{error}");
        for nonsense in [r#"{"realtime_ahead_ns":[5,4]}"#, r#"{"realtime_ahead_ns":7}"#, "[]"] {
            assert!(host(nonsense).realtime_ahead_ns().is_err(), "{nonsense}");
        }
        let counter = r#"{"guest_counter":{"tsc_offset":0,"scaling_ratio":1,"fraction_bits":0}}"#;
        let monotonic = HostClocks { recorder: ClockKind::Monotonic, ..host(counter) };
        assert!(monotonic.at_guest_counter(5).unwrap_err().contains("monotonic"));
        assert_eq!(host(counter).at_guest_counter(5), Ok([5, 8]));
    }
}
