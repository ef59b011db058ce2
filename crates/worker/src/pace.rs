//! How soon a transmit ring is looked at again while its guest sends in a rush.
//!
//! Every look at a ring takes a cache line from the guest that is writing there, and buffers that come back one
//! burst at a time keep its driver busy with clearing up. A worker that is faster than its guest slows it down by
//! looking as often as it can: half as many packets again come through when it lets some gather, and more. So where
//! bursts come thick and fast, the next look waits for as long as [`GATHERED`] packets take to come, a few
//! microseconds at most. Whether that does good depends on the guest (one that waits for its buffers, or for
//! answers, only loses), so both ways are tried, again and again, and the one that carries more is kept. A guest that
//! sends little is looked at at once.

use std::time::Duration;

/// How many packets a look waits for. DPDK's driver has enough of them under way then to clear up after each
/// burst what it needs, not all of a ring at once (`virtio_xmit_cleanup`).
const GATHERED: u64 = 128;
/// In a rush a look that waited finds so many packets at least, and so many come within [`LONGEST`].
const DENSE: u32 = 16;
/// The longest wait.
pub const LONGEST: Duration = Duration::from_micros(8);
/// What is measured at a time lasts so many times [`LONGEST`]: several turns of a guest's ring.
const WINDOW: u64 = 48;
/// For so many times [`LONGEST`] nothing is measured once the way has changed: what comes then was still sent in the
/// other way.
const SETTLING: u64 = 12;
/// After so many times [`LONGEST`] without a burst what is being measured is given up: more than a wait and the longest
/// burst take.
const QUIET: u64 = 6;
/// So many windows pass from one trial of the other way, which takes one, to the next.
const WINDOWS_A_TRIAL: u32 = 40;

/// The pace of one ring.
#[derive(Debug, Default)]
pub struct Pace {
    /// When the ring is looked at next, ticks; 0 for at once.
    due: u64,
    /// When a burst was taken last, ticks.
    last: u64,
    /// Packets that the present look has found so far.
    found: u32,
    /// Whether looks wait now.
    waits: bool,
    /// How long they do, ticks.
    wait: u64,
    /// Whether the present way is on trial.
    on_trial: bool,
    /// Windows until the next trial.
    rest: u32,
    /// Packets per 2^32 ticks without waiting, and with it.
    rates: [u64; 2],
    window: Window,
    /// Ticks until something is measured.
    settling: u64,
}

/// What is being measured.
#[derive(Debug, Default)]
struct Window {
    packets: u64,
    ticks: u64,
}

impl Window {
    /// Packets per 2^32 ticks.
    fn rate(&self) -> u64 {
        (self.packets << 32) / self.ticks.max(1)
    }
}

impl Pace {
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

    /// A burst of so many packets was taken by `now`; with `more`, the look that found them found more than fit.
    /// `longest` is [`LONGEST`] in ticks.
    #[inline]
    pub fn found(&mut self, now: u64, packets: u16, more: bool, longest: u64) {
        let gap = now.saturating_sub(self.last);
        self.last = now;
        self.found = self.found.saturating_add(packets.into());
        if self.settling > 0 {
            self.settling = self.settling.saturating_sub(gap);
        } else {
            self.window.packets += u64::from(packets);
            self.window.ticks += gap;
        }
        self.due = 0;
        if gap > QUIET * longest {
            // It was quiet, which says nothing of either way, and is no rush.
            (self.window, self.found) = (Window::default(), 0);
            return;
        }
        if self.window.ticks >= WINDOW * longest || self.on_trial && self.is_hopeless(longest) {
            self.judge(longest);
        }
        if more {
            return;
        }
        let found = std::mem::take(&mut self.found);
        // Who does not wait finds few packets, however fast they come.
        if self.waits && (found >= DENSE || self.on_trial) {
            self.due = now + self.wait;
        }
    }

    /// Whether the present look, which waited, took a burst already: then only whole bursts are worth taking at once. A
    /// smaller one is where the guest is just writing.
    #[inline]
    pub const fn has_enough(&self) -> bool {
        self.waits && self.found > 0
    }

    /// What the present look has left comes with the next one.
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

    /// Whether the way on trial need not be tried to the end.
    fn is_hopeless(&self, longest: u64) -> bool {
        let other = self.rates[usize::from(!self.waits)];
        self.window.ticks > 3 * longest && self.window.rate() < other / 2
    }

    /// A window is complete: which way from now on.
    #[cold]
    fn judge(&mut self, longest: u64) {
        let window = std::mem::take(&mut self.window);
        if window.packets * longest < window.ticks * u64::from(DENSE) {
            // No rush.
            (self.waits, self.on_trial, self.rest) = (false, false, 0);
            return;
        }
        let before = self.waits;
        let rate = window.rate();
        let kept = &mut self.rates[usize::from(self.waits)];
        if self.on_trial {
            *kept = rate;
            // Fewer looks are a gain by themselves.
            self.waits = self.rates[1] >= self.rates[0] / 32 * 31;
            (self.on_trial, self.rest) = (false, WINDOWS_A_TRIAL);
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
    use super::{DENSE, Pace};

    /// A tick is a nanosecond.
    const LONGEST: u64 = 8000;
    /// What a look, and each packet of a burst, costs the worker.
    const LOOK: u64 = 50;
    const PACKET: u64 = 15;
    const BURST: u64 = 64;

    /// Serves a guest for 20 ms: `sent` says how many packets it has sent until a moment, given how many came
    /// back, when the last of them did, and how often it was looked at. Returns how many were served, in how many
    /// bursts.
    fn serve(paced: bool, sent: impl Fn(u64, u64, u64, u64) -> u64) -> (u64, u64) {
        let (mut pace, mut now, mut served, mut bursts) = (Pace::default(), 0, 0, 0);
        let (mut back, mut looks) = (0, 0);
        while now < 20_000_000 {
            now += LOOK;
            if paced && !pace.is_due(|| now) {
                continue;
            }
            looks += 1;
            let left = sent(now, served, back, looks).saturating_sub(served);
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
        let guest = |now: u64, _, _, _| now / 1600 * 32;
        let ((all, hasty), (served, bursts)) = (serve(false, guest), serve(true, guest));
        assert!(served >= all - 200, "{served} of {all}");
        assert!(bursts < hasty * 3 / 4, "{bursts} bursts, {hasty} without waiting");
    }

    #[test]
    fn a_guest_that_looks_hold_up_sends_more() {
        // Each look costs it 30 ns.
        let guest = |now: u64, _, _, looks: u64| now.saturating_sub(looks * 30) / 800 * 32;
        let ((hasty, _), (served, _)) = (serve(false, guest), serve(true, guest));
        assert!(served > hasty * 5 / 4, "{served}, {hasty} without waiting");
    }

    #[test]
    fn a_guest_that_waits_for_its_buffers_is_not_held_up() {
        // 32 packets in flight, and the next ones come 500 ns after those came back.
        let guest = |now, served, back, _| if now >= back + 500 { served + 32 } else { served };
        let ((all, _), (served, _)) = (serve(false, guest), serve(true, guest));
        assert!(served * 100 >= all * 97, "{served} of {all}");
    }

    #[test]
    fn who_sends_little_is_never_waited_for() {
        let mut pace = Pace::default();
        for now in (0..10_000_000).step_by(8000) {
            assert!(pace.is_due(|| now));
            pace.found(now, u16::try_from(DENSE).unwrap() - 1, false, LONGEST);
        }
    }

    #[test]
    fn after_a_rush_the_first_look_that_finds_little_ends_the_waiting() {
        for found in [0, 1] {
            let mut pace = Pace::default();
            (0..1000).for_each(|n| pace.found(n * 2000, 32, false, LONGEST));
            assert!(!pace.is_due(|| 999 * 2000 + 1000));
            match found {
                0 => pace.missed(),
                packets => pace.found(1000 * 2000, packets, false, LONGEST),
            }
            assert!(pace.is_due(|| 1000 * 2000));
        }
    }
}
