//! What a hostile guest does to a ring, and what must come of it.

use std::ops::ControlFlow;
use std::thread::sleep;
use std::time::{Duration, Instant};

use burst_trace::DropCause;
use frontend::driver::{Buffer, Driver, Returned};
use frontend::layout::{Descriptor, PackedDescriptor};
use frontend::{Guest, GuestOptions, RegionOptions, Ring};
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::frames;
use crate::trace::Trace;

const SOON: Duration = Duration::from_secs(2);
const MIB: u64 = 1 << 20;

/// Guest memory that no ring and no honest buffer is in.
pub const SCRATCH: u64 = 14 * MIB;
/// No guest memory.
pub const UNMAPPED: u64 = 1 << 40;
/// Descriptors of each ring.
pub const SIZE: u16 = 64;

/// A guest with two queue pairs on a daemon that reflects. The first pair is abused, the second must not
/// notice. Receive rings have descriptors to spare.
#[derive(Debug)]
pub struct Scene {
    /// The guest.
    pub guest: Guest,
    /// The daemon.
    pub daemon: Daemon,
    trace: Trace,
    _directory: TempDir,
}

impl Scene {
    /// With this guest; its queue pairs, rings and memory are the scene's. Whether the daemon polls depends
    /// on the rings, so that it does and does not with either format.
    ///
    /// # Panics
    /// When daemon and guest do not come together.
    #[must_use]
    pub fn new(options: GuestOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let has = |bit: u32| options.features & 1 << bit != 0;
        let poll = if has(34) == has(35) { "never" } else { "adaptive" };
        let arguments = ["--datapath", "reflect", "--queue-pairs", "2", "--poll", poll];
        let daemon = Daemon::start(directory.path(), "hostile", &arguments).unwrap();
        let mut options = options.queue_pairs(2).queue_size(SIZE).mergeable(false);
        options.receive_pieces = 3;
        options.regions = vec![RegionOptions { address: 0, len: 16 * MIB }];
        let guest = Guest::connect(daemon.socket(), options).unwrap();
        let trace = Trace::open(directory.path(), "hostile");
        Self { guest, daemon, trace, _directory: directory }
    }

    /// Scenes with both formats, and with and without completion in order.
    pub fn all() -> impl Iterator<Item = Self> {
        frames::formats(&GuestOptions::default()).into_iter().map(Self::new)
    }

    /// Whether rings are packed.
    #[must_use]
    pub const fn is_packed(&self) -> bool {
        self.guest.features().packed()
    }

    /// Frames flow on both pairs, and nobody wrote where nobody may.
    ///
    /// # Panics
    /// When not.
    pub fn expect_traffic(&mut self) {
        frames::come_back(&mut self.guest).unwrap();
    }

    /// A chain of `buffers` on ring `index` of the first pair comes back with length 0, counted by its
    /// cause, and traffic goes on.
    ///
    /// # Panics
    /// When not.
    pub fn expect_drop(&mut self, index: u16, buffers: &[Buffer], cause: DropCause) {
        let before = self.trace.drops(index, cause);
        let ring = self.guest.ring(index);
        assert!(ring.offer_foreign(buffers), "no room for {buffers:?}");
        ring.publish();
        ring.kick_anyway().unwrap();
        let came = self.wait_for_foreign(index);
        assert_eq!(came.iter().map(|it| it.len).collect::<Vec<_>>(), [0], "{buffers:?}");
        self.expect_drops(index, cause, before + 1);
        self.expect_traffic();
    }

    /// So many were dropped on ring `index` by now, for this reason.
    ///
    /// # Panics
    /// When not.
    pub fn expect_drops(&self, index: u16, cause: DropCause, count: u64) {
        // They are counted just after the guest has its buffers back.
        within_soon(|| (self.trace.drops(index, cause) >= count).then_some(()));
        assert_eq!(self.trace.drops(index, cause), count, "{cause:?} {}", self.daemon.log());
    }

    /// How many were dropped on ring `index` for this reason.
    #[must_use]
    pub fn drops(&self, index: u16, cause: DropCause) -> u64 {
        self.trace.drops(index, cause)
    }

    fn wait_for_foreign(&mut self, index: u16) -> Vec<Returned> {
        let pair = self.guest.pair(0);
        let came = within_soon(|| {
            if index == 0 {
                // Receive buffers come back with frames only.
                pair.send(&[0; 60]).unwrap();
                while pair.receive().unwrap().is_some() {}
                Some(pair.receive_ring().foreign_used()).filter(|came| !came.is_empty())
            } else {
                pair.reap().unwrap();
                Some(pair.transmit_ring().foreign_used()).filter(|came| !came.is_empty())
            }
        });
        let came = came.unwrap_or_else(|| panic!("a chain is lost: {}", self.daemon.log()));
        // What was sent to get there comes back first.
        while pair.receive_within(Duration::from_millis(20)).unwrap().is_some() {}
        came
    }

    /// `act` breaks ring `index` of the first pair: its err descriptor is written, the log says `why`, the
    /// other pair carries frames, and all is well after a reset.
    ///
    /// # Panics
    /// When not.
    pub fn expect_break(&mut self, index: u16, why: &str, act: impl FnOnce(&mut Ring)) {
        let logged = self.daemon.log().len();
        let ring = self.guest.ring(index);
        act(ring);
        ring.kick_anyway().unwrap();
        let gave_up = within_soon(|| {
            if index == 0 {
                // A receive ring is looked at when there are frames.
                self.guest.pair(0).send(&[0; 60]).unwrap();
            }
            self.guest.ring(index).gave_up(Duration::from_millis(1)).unwrap().then_some(())
        });
        let log = self.daemon.log()[logged..].to_owned();
        assert!(gave_up.is_some(), "{why}: the ring is not given up: {log}");
        assert!(log.contains(why), "{why}: {log}");
        for other in [1 - index, 2, 3] {
            let other = self.guest.ring(other).gave_up(Duration::ZERO).unwrap();
            assert!(!other, "{why}: another ring is given up too: {log}");
        }
        if index == 0 {
            // What was sent to a receiver that is gone is lost, not kept: without another kick.
            let pair = self.guest.pair(0);
            let all = within_soon(|| {
                pair.reap().unwrap();
                (pair.transmit_ring().driver().free() == usize::from(SIZE)).then_some(())
            });
            assert!(all.is_some(), "{why}: the other ring stands still");
        }
        frames::come_back_on(&mut self.guest, 1).unwrap();
        self.guest.check_canaries().unwrap();
        self.guest.reboot().unwrap();
        self.expect_traffic();
    }
}

/// Asks again and again, for a while.
pub fn within_soon<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let until = Instant::now() + SOON;
    loop {
        let flow = ask().map_or(ControlFlow::Continue(()), ControlFlow::Break);
        match flow {
            ControlFlow::Break(answer) => return Some(answer),
            ControlFlow::Continue(()) if Instant::now() > until => return None,
            ControlFlow::Continue(()) => sleep(Duration::from_micros(200)),
        }
    }
}

/// A buffer that the device may read.
#[must_use]
pub const fn readable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: false }
}

/// A buffer that the device may write.
#[must_use]
pub const fn writable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: true }
}

/// Offers one descriptor as it is: of a split ring, descriptor 0, which goes on at `next`.
pub fn offer_one(ring: &mut Ring, address: u64, len: u32, flags: u16, next: u16) {
    match ring.driver() {
        Driver::Split(driver) => {
            driver.write_descriptor(0, Descriptor { address, len, flags, next });
            driver.offer_raw(0);
        }
        Driver::Packed(driver) => {
            driver.offer_raw(PackedDescriptor { address, len, id: 0, flags });
        }
    }
    ring.publish();
}
