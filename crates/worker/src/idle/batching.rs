//! How soon a transmit ring is looked at again while its guest sends under sustained load.
//!
//! Every look at a ring takes a cache line from the guest that is writing there, and a driver that gets its buffers
//! back one burst at a time spends time on cleaning up. A worker that is faster than its guest slows it down by looking
//! as often as it can: with longer waits, half as many packets again come through, or more. So under sustained load the
//! next look waits for the time in which [`GATHERED`] packets come, a few microseconds at most. Whether that helps
//! depends on the guest: one that waits for its buffers, or for responses, only loses. So both ways are tried
//! periodically, and the one that carries more packets is kept. The ring of a guest that sends little is looked at
//! immediately.

use std::time::Duration;

/// Packets that a look waits for. With these, DPDK's driver has enough packets in flight to clean up after each burst
/// only what it needs, not a whole ring at once (`virtio_xmit_cleanup`).
const GATHERED: u64 = 128;
/// Sustained load: at least this many packets come within [`LONGEST`], and a look that waited finds as many.
const DENSE: u32 = 16;
/// Longest wait before a look.
pub const LONGEST: Duration = Duration::from_micros(8);
/// Length of a measurement, in units of [`LONGEST`]: a guest's ring wraps several times in it.
const MEASUREMENT: u64 = 48;
/// Time without measurement after a change between waiting and not waiting, in units of [`LONGEST`]: the first packets
/// were still sent under the other way.
const SETTLING: u64 = 12;
/// Time without a burst after which a measurement is given up, in units of [`LONGEST`]: more than a wait and the longest
/// burst take.
const QUIET: u64 = 6;
/// Measurements from one trial of the other way to the next; a trial takes one measurement.
const MEASUREMENTS_A_TRIAL: u32 = 40;

/// The batching of one ring.
#[derive(Debug, Default)]
pub struct Batching {
    /// When to look at the ring next, ticks; 0 for immediately.
    due: u64,
    /// When the last burst was taken, ticks.
    last: u64,
    /// Packets found by the present look so far.
    found: u32,
    /// Whether looks wait at present.
    waits: bool,
    /// How long they wait, ticks.
    wait: u64,
    /// Whether the present way, waiting or not, is on trial.
    on_trial: bool,
    /// Measurements until the next trial.
    rest: u32,
    /// Packets per 2^32 ticks without waiting, and with it.
    rates: [u64; 2],
    measurement: Measurement,
    /// Ticks until the next measurement begins.
    settling: u64,
}

/// A measurement that is not complete.
#[derive(Debug, Default)]
struct Measurement {
    packets: u64,
    ticks: u64,
}

impl Measurement {
    /// Packets per 2^32 ticks.
    fn rate(&self) -> u64 {
        (self.packets << 32) / self.ticks.max(1)
    }
}

impl Batching {
    /// Whether it is time to look. The clock is only read when there is something to wait for.
    #[inline]
    pub fn is_due(&self, now: impl FnOnce() -> u64) -> bool {
        if self.due == 0 {
            return true;
        }
        let left = self.due.saturating_sub(now());
        // More time is left than the whole wait: the clock has gone back.
        left == 0 || left > self.wait
    }

    /// A burst of `packets` was taken by `now`. `more`: the look that found them found more than fit in the burst.
    /// `longest` is [`LONGEST`] in ticks.
    #[inline]
    pub fn found(&mut self, now: u64, packets: u16, more: bool, longest: u64) {
        let gap = now.saturating_sub(self.last);
        self.last = now;
        self.found = self.found.saturating_add(packets.into());
        if self.settling > 0 {
            self.settling = self.settling.saturating_sub(gap);
        } else {
            self.measurement.packets += u64::from(packets);
            self.measurement.ticks += gap;
        }
        self.due = 0;
        if gap > QUIET * longest {
            // It was quiet: that is no sustained load, and says nothing about either way.
            (self.measurement, self.found) = (Measurement::default(), 0);
            return;
        }
        if self.measurement.ticks >= MEASUREMENT * longest
            || self.on_trial && self.is_hopeless(longest)
        {
            self.judge(longest);
        }
        if more {
            return;
        }
        let found = std::mem::take(&mut self.found);
        // A look that did not wait finds few packets, however fast they come.
        if self.waits && (found >= DENSE || self.on_trial) {
            self.due = now + self.wait;
        }
    }

    /// Whether the present look, which waited, has taken a burst already. Then only a full burst is worth taking: the guest
    /// is still writing in the cache lines of a smaller one.
    #[inline]
    pub const fn has_enough(&self) -> bool {
        self.waits && self.found > 0
    }

    /// Ends the present look. What it leaves is taken by the next one.
    #[inline]
    pub const fn leave(&mut self) {
        self.found = 0;
        self.due = self.last + self.wait;
    }

    /// A look found nothing.
    #[inline]
    pub const fn missed(&mut self) {
        self.due = 0;
    }

    /// Whether the way on trial is so slow that the trial can end early.
    fn is_hopeless(&self, longest: u64) -> bool {
        let other = self.rates[usize::from(!self.waits)];
        self.measurement.ticks > 3 * longest && self.measurement.rate() < other / 2
    }

    /// A measurement is complete: decides whether looks wait from now on.
    #[cold]
    fn judge(&mut self, longest: u64) {
        let measurement = std::mem::take(&mut self.measurement);
        if measurement.packets * longest < measurement.ticks * u64::from(DENSE) {
            // No sustained load.
            (self.waits, self.on_trial, self.rest) = (false, false, 0);
            return;
        }
        let before = self.waits;
        let rate = measurement.rate();
        let kept = &mut self.rates[usize::from(self.waits)];
        if self.on_trial {
            *kept = rate;
            // Waiting wins a draw: fewer looks save CPU time.
            self.waits = self.rates[1] >= self.rates[0] / 32 * 31;
            (self.on_trial, self.rest) = (false, MEASUREMENTS_A_TRIAL);
        } else {
            *kept = if *kept == 0 { rate } else { (*kept * 3 + rate) / 4 };
            if self.rest > 0 {
                self.rest -= 1;
            } else {
                (self.waits, self.on_trial) = (!self.waits, true);
            }
        }
        if self.waits != before {
            self.settling = SETTLING * longest;
        }
        self.wait = ((GATHERED << 32) / rate.max(1)).min(longest);
    }
}

#[cfg(test)]
mod tests {
    use super::{Batching, DENSE};

    /// A tick is a nanosecond.
    const LONGEST: u64 = 8000;
    /// What a look, and each packet of a burst, costs the worker.
    const LOOK: u64 = 50;
    const PACKET: u64 = 15;
    const BURST: u64 = 64;

    /// Serves a guest for 20 ms: `sent` says how many packets it has sent until a moment, given how many came
    /// back, when the last of them did, and how often it was looked at. Returns how many were served, in how many
    /// bursts.
    fn serve(batched: bool, sent: impl Fn(u64, u64, u64, u64) -> u64) -> (u64, u64) {
        let (mut batching, mut now, mut served, mut bursts) = (Batching::default(), 0, 0, 0);
        let (mut back, mut looks) = (0, 0);
        while now < 20_000_000 {
            now += LOOK;
            if batched && !batching.is_due(|| now) {
                continue;
            }
            looks += 1;
            let left = sent(now, served, back, looks).saturating_sub(served);
            if left == 0 {
                batching.missed();
                continue;
            }
            let burst = left.min(BURST);
            now += burst * PACKET;
            (served, back) = (served + burst, now);
            bursts += 1;
            batching.found(now, u16::try_from(burst).unwrap(), left > burst, LONGEST);
        }
        (served, bursts)
    }

    #[test]
    fn sustained_load_is_batched() {
        // 20 million packets a second, 32 at a time.
        let guest = |now: u64, _, _, _| now / 1600 * 32;
        let ((all, immediate), (served, bursts)) = (serve(false, guest), serve(true, guest));
        assert!(served >= all - 200, "{served} of {all}");
        assert!(bursts < immediate * 3 / 4, "{bursts} bursts, {immediate} without waiting");
    }

    #[test]
    fn a_guest_that_is_slowed_by_looks_sends_more() {
        // Each look costs it 30 ns.
        let guest = |now: u64, _, _, looks: u64| now.saturating_sub(looks * 30) / 800 * 32;
        let ((immediate, _), (served, _)) = (serve(false, guest), serve(true, guest));
        assert!(served > immediate * 5 / 4, "{served}, {immediate} without waiting");
    }

    #[test]
    fn a_guest_that_waits_for_its_buffers_is_not_slowed() {
        // 32 packets in flight, and the next ones come 500 ns after those came back.
        let guest = |now, served, back, _| if now >= back + 500 { served + 32 } else { served };
        let ((all, _), (served, _)) = (serve(false, guest), serve(true, guest));
        assert!(served * 100 >= all * 97, "{served} of {all}");
    }

    #[test]
    fn a_guest_that_sends_little_is_looked_at_immediately() {
        let mut batching = Batching::default();
        for now in (0..10_000_000).step_by(8000) {
            assert!(batching.is_due(|| now));
            batching.found(now, u16::try_from(DENSE).unwrap() - 1, false, LONGEST);
        }
    }

    #[test]
    fn the_first_look_that_finds_little_ends_the_waiting() {
        for found in [0, 1] {
            let mut batching = Batching::default();
            (0..1000).for_each(|n| batching.found(n * 2000, 32, false, LONGEST));
            assert!(!batching.is_due(|| 999 * 2000 + 1000));
            match found {
                0 => batching.missed(),
                packets => batching.found(1000 * 2000, packets, false, LONGEST),
            }
            assert!(batching.is_due(|| 1000 * 2000));
        }
    }
}
