//! How soon a transmit ring is looked at again while its guest sends in a rush.
//!
//! Every look at a ring takes a cache line from the guest that is writing there, and buffers that come back one
//! burst at a time keep its driver busy with clearing up. A worker that is faster than its guest slows it down by
//! looking as often as it can: twice as many packets come through when it lets some gather. So where bursts
//! come thick and fast, the next look waits for as long as [`GATHERED`] packets take to come, a few microseconds
//! at most; and only as long as no fewer packets come for it. A guest that waits for its buffers, or for answers,
//! is looked at at once, and so is one that sends little.

use std::time::Duration;

/// How many packets a look waits for. DPDK's driver has enough of them under way then to clear up after each
/// burst what it needs, not all of a ring at once (`virtio_xmit_cleanup`).
const GATHERED: u64 = 64;
/// The fewest packets of a burst that comes in a rush.
const DENSE: u16 = 16;
/// The longest wait.
pub const LONGEST: Duration = Duration::from_micros(8);
/// So many bursts make a sample.
const SAMPLE: u32 = 8;
/// After so many samples at most a guest for whom waiting did no good is tried again.
const PATIENCE_MAX: u32 = 4096;

/// The pace of one ring.
#[derive(Debug, Default)]
pub struct Pace {
    /// When the ring is looked at next, ticks; 0 for at once.
    due: u64,
    /// When a burst was found last, ticks.
    last: u64,
    /// How long to wait from burst to look, ticks; 0 while it is not known to do good.
    wait: u64,
    /// The sample being taken: bursts, packets, and the ticks from the first to the last.
    bursts: u32,
    packets: u64,
    ticks: u64,
    /// Packets per 2^32 ticks when nothing was waited for.
    unpaced: u64,
    /// Samples until waiting is tried, and how many that are after it does no good again.
    rest: u32,
    patience: u32,
}

impl Pace {
    /// Whether it is time to look. The clock is only read when there is something to wait for.
    #[inline]
    pub fn is_due(&self, now: impl FnOnce() -> u64) -> bool {
        self.due == 0 || now() >= self.due
    }

    /// A look at `now` found so many packets; with `more`, there are more than fit a burst. `longest` is [`LONGEST`]
    /// in ticks.
    #[inline]
    pub fn found(&mut self, now: u64, packets: u16, more: bool, longest: u64) {
        let gap = now.saturating_sub(self.last);
        self.last = now;
        if packets < DENSE && !more || gap > 2 * longest {
            self.calm();
            return;
        }
        self.bursts += 1;
        self.packets += u64::from(packets);
        self.ticks += gap;
        if self.bursts == SAMPLE {
            self.judge(longest);
        }
        self.due = if more || self.wait == 0 { 0 } else { now + self.wait };
    }

    /// A look found nothing.
    #[inline]
    pub fn missed(&mut self) {
        if self.wait > 0 {
            self.give_up();
        }
    }

    /// There is no rush.
    const fn calm(&mut self) {
        (self.wait, self.due) = (0, 0);
        self.begin_sample();
    }

    /// Waiting does no good now.
    #[cold]
    fn give_up(&mut self) {
        self.calm();
        self.patience = (2 * self.patience).clamp(SAMPLE, PATIENCE_MAX);
        self.rest = self.patience;
    }

    const fn begin_sample(&mut self) {
        (self.bursts, self.packets, self.ticks) = (0, 0, 0);
    }

    /// A sample is complete: whether and how long to wait from now on.
    fn judge(&mut self, longest: u64) {
        let rate = (self.packets << 32) / self.ticks.max(1);
        self.begin_sample();
        let wait = ((GATHERED << 32) / rate.max(1)).min(longest);
        if self.wait == 0 {
            self.unpaced = rate;
            if self.rest > 0 {
                self.rest -= 1;
            } else {
                self.wait = wait;
            }
        } else if rate < self.unpaced / 8 * 7 {
            self.give_up();
        } else {
            self.wait = wait;
            self.patience = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DENSE, Pace};

    /// A tick is a nanosecond.
    const LONGEST: u64 = 8000;
    /// What a look, and each packet of a burst, costs the worker.
    const LOOK: u64 = 50;
    const PACKET: u64 = 15;
    const BURST: u64 = 64;

    /// Serves a guest for 20 ms: `sent` says how many packets it has sent until a moment, given how many came
    /// back, and when the last of them did. Returns how many were served, in how many bursts.
    fn serve(paced: bool, sent: impl Fn(u64, u64, u64) -> u64) -> (u64, u64) {
        let (mut pace, mut now, mut served, mut bursts) = (Pace::default(), 0, 0, 0);
        let mut back = 0;
        while now < 20_000_000 {
            now += LOOK;
            if paced && !pace.is_due(|| now) {
                continue;
            }
            let left = sent(now, served, back) - served;
            if left == 0 {
                pace.missed();
                continue;
            }
            let burst = left.min(BURST);
            now += burst * PACKET;
            (served, back) = (served + burst, now);
            bursts += 1;
            pace.found(now, u16::try_from(burst).unwrap(), left > burst, LONGEST);
        }
        (served, bursts)
    }

    #[test]
    fn a_rush_gathers() {
        // 20 million packets a second, 32 at a time.
        let guest = |now: u64, _, _| now / 1600 * 32;
        let ((all, hasty), (served, bursts)) = (serve(false, guest), serve(true, guest));
        assert!(served >= all - 200, "{served} of {all}");
        assert!(bursts < hasty * 3 / 4, "{bursts} bursts, {hasty} without waiting");
    }

    #[test]
    fn a_guest_that_waits_for_its_buffers_is_not_held_up() {
        // 32 packets in flight, and the next ones come 500 ns after those came back.
        let guest = |now, served, back| if now >= back + 500 { served + 32 } else { served };
        let ((all, _), (served, _)) = (serve(false, guest), serve(true, guest));
        assert!(served * 100 >= all * 97, "{served} of {all}");
    }

    #[test]
    fn few_packets_are_never_waited_for() {
        let mut pace = Pace::default();
        for now in (0..1_000_000).step_by(1000) {
            assert!(pace.is_due(|| now));
            pace.found(now, DENSE - 1, false, LONGEST);
        }
    }

    #[test]
    fn after_a_rush_the_first_look_that_finds_little_ends_the_waiting() {
        for found in [0, 1] {
            let mut pace = Pace::default();
            (0..100).for_each(|n| pace.found(n * 2000, 32, false, LONGEST));
            assert!(!pace.is_due(|| 99 * 2000 + 1000));
            match found {
                0 => pace.missed(),
                packets => pace.found(100 * 2000, packets, false, LONGEST),
            }
            assert!(pace.is_due(|| 100 * 2000));
        }
    }
}
