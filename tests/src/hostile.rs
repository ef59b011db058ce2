//! What a hostile guest does to a ring, and what must come of it.

use std::rc::Rc;
use std::time::Duration;

use burst_trace::DropCause;
use frontend::driver::{Buffer, Driver, Returned};
use frontend::layout::{Descriptor, PackedDescriptor};
use frontend::{Error, Guest, GuestOptions, Pair, RegionOptions, Ring};
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::eventually::{SOON, eventually, when};
use crate::frames;
use crate::lan::guest_table;
use crate::mirror::{Kind, Mirror};
use crate::trace::Trace;

/// Long enough for a frame that is under way.
const QUIET: Duration = Duration::from_millis(20);
const MIB: u64 = 1 << 20;

/// Guest memory that no ring and no honest buffer is in.
pub const SCRATCH: u64 = 14 * MIB;
/// No guest memory.
pub const UNMAPPED: u64 = 1 << 40;
/// Descriptors of each ring.
pub const SIZE: u16 = 64;

/// A guest that is abused, and somebody who must not notice: where the daemon reflects, the second queue pair
/// of the same guest, on a wire of the kernel's another guest of the same daemon. Receive rings have
/// descriptors to spare.
#[derive(Debug)]
pub struct Scene {
    /// The guest; its first queue pair is abused.
    pub guest: Guest,
    /// The daemon.
    pub daemon: Daemon,
    neighbour: Option<Guest>,
    kind: Kind,
    trace: Trace,
    _mirrors: Rc<[Mirror]>,
    _directory: TempDir,
}

impl Scene {
    /// On these wires of one kind, with this guest; its queue pairs, rings and memory are the scene's. The
    /// daemon polls as [`poll_for`] says.
    fn new(kind: Kind, mirrors: Rc<[Mirror]>, options: GuestOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let poll = poll_for(&options);
        let pairs = if mirrors.len() == 1 { 2 } else { 1 };
        let format = if options.features & 1 << 34 == 0 { "split" } else { "packed" };
        println!("scene: {kind} {format} {poll}");
        let table = |(n, mirror): (usize, &Mirror)| {
            let keys = [
                format!("datapath = '{}'", mirror.datapath()),
                format!("queue-pairs = {pairs}\npoll = '{poll}'"),
            ];
            guest_table(directory.path(), n, &keys.join("\n"))
        };
        let config: String = mirrors.iter().enumerate().map(table).collect();
        let daemon = Daemon::start_with_config(directory.path(), "vm0", &config).unwrap();
        let mut options = options.queue_pairs(pairs).queue_size(SIZE).mergeable(false);
        options.receive_pieces = 3;
        options.regions = vec![RegionOptions { address: 0, len: 16 * MIB }];
        let connect = |n: usize| {
            let path = directory.path().join(format!("vm{n}.sock"));
            Guest::connect(path, options.clone()).unwrap()
        };
        let (guest, neighbour) = (connect(0), (mirrors.len() > 1).then(|| connect(1)));
        let trace = Trace::open(directory.path(), "vm0");
        Self { guest, daemon, neighbour, kind, trace, _mirrors: mirrors, _directory: directory }
    }

    /// Scenes on every kind of wire with both formats, and with and without completion in order.
    ///
    /// # Panics
    /// When daemon and guest do not come together.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::all_of(&GuestOptions::default())
    }

    /// The same with such a guest.
    ///
    /// # Panics
    /// As [`all`](Self::all).
    pub fn all_of(options: &GuestOptions) -> impl Iterator<Item = Self> + use<> {
        let options = options.clone();
        Kind::ALL.into_iter().flat_map(move |kind| {
            let guests = kind.guests(&options);
            // The wires stay while daemons and guests come and go: to make one takes longer than most tests.
            let wires = if kind == Kind::Reflect { 1 } else { 2 };
            let mirrors: Rc<[Mirror]> = (0..wires).map(|_| Mirror::new(kind)).collect();
            guests.into_iter().map(move |it| Self::new(kind, Rc::clone(&mirrors), it))
        })
    }

    /// Whether rings are packed.
    #[must_use]
    pub const fn is_packed(&self) -> bool {
        self.guest.features().packed()
    }

    /// Frames flow on all pairs, and nobody wrote where nobody may.
    ///
    /// # Panics
    /// When not.
    pub fn expect_traffic(&mut self) {
        frames::come_back(&mut self.guest).unwrap();
        self.neighbour.as_mut().map_or(Ok(()), frames::come_back).unwrap();
    }

    /// The guest reboots, and then all is well.
    ///
    /// # Panics
    /// When it is not.
    pub fn expect_recovery(&mut self) {
        self.guest.reboot().unwrap();
        // What was under way in the kernel comes still.
        while self.kind != Kind::Reflect
            && self.guest.pair(0).receive_within(QUIET).unwrap().is_some()
        {}
        self.expect_traffic();
    }

    /// Who must not notice did not: none of those rings is given up, and they carry frames.
    ///
    /// # Panics
    /// When that does not hold.
    pub fn expect_others(&mut self) {
        match &mut self.neighbour {
            Some(neighbour) => {
                assert!(!has_given_up(neighbour, &[0, 1]), "another guest's ring is given up");
                frames::come_back(neighbour).unwrap();
            }
            None => {
                assert!(!has_given_up(&mut self.guest, &[2, 3]), "another pair's ring is given up");
                frames::come_back_on(&mut self.guest, 1).unwrap();
            }
        }
    }

    /// Another guest of the daemon carries frames, if there is one, and the daemon runs.
    ///
    /// # Panics
    /// When not.
    pub fn expect_neighbour(&mut self) {
        assert!(self.daemon.is_alive(), "{}", self.daemon.log());
        if self.neighbour.is_some() {
            self.expect_others();
        }
    }

    /// The guest is gone, and another one comes, to which all is well.
    ///
    /// # Panics
    /// When it is not.
    pub fn expect_successor(&mut self) {
        let options = self.guest.options().clone();
        self.guest.disconnect();
        self.guest = Guest::connect(self.daemon.socket(), options).unwrap();
        // What was under way in the kernel comes still.
        while self.kind != Kind::Reflect
            && self.guest.pair(0).receive_within(QUIET).unwrap().is_some()
        {}
        self.expect_traffic();
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
        eventually(SOON, &format!("{count} drops by {cause:?} on ring {index}"), || {
            let found = self.trace.drops(index, cause);
            when(found >= count, found)
        });
        assert_eq!(self.trace.drops(index, cause), count, "{cause:?} {}", self.daemon.log());
    }

    /// How many were dropped on ring `index` for this reason.
    #[must_use]
    pub fn drops(&self, index: u16, cause: DropCause) -> u64 {
        self.trace.drops(index, cause)
    }

    fn wait_for_foreign(&mut self, index: u16) -> Vec<Returned> {
        let (pair, daemon) = (self.guest.pair(0), &self.daemon);
        let came = eventually(SOON, "the chain to come back", || {
            let came = if index == 0 {
                // Receive buffers come back with frames only.
                pair.send(&[0; 60]).unwrap();
                while pair.receive().unwrap().is_some() {}
                pair.receive_ring().foreign_used()
            } else {
                pair.reap().unwrap();
                pair.transmit_ring().foreign_used()
            };
            if came.is_empty() { Err(daemon.log()) } else { Ok(came) }
        });
        // What was sent to get there comes back first.
        while index == 0 && pair.receive_within(QUIET).unwrap().is_some() {}
        came
    }

    /// `act` breaks ring `index` of the first pair: its err descriptor is written, the log says `why`, the
    /// others carry frames, and all is well after a reset.
    ///
    /// # Panics
    /// When not.
    pub fn expect_break(&mut self, index: u16, why: &str, act: impl FnOnce(&mut Ring)) {
        let logged = self.daemon.log().len();
        let ring = self.guest.ring(index);
        act(ring);
        ring.kick_anyway().unwrap();
        eventually(SOON, &format!("ring {index} to stop, as {why}"), || {
            if index == 0 {
                // A receive ring is looked at when there are frames.
                self.guest.pair(0).send(&[0; 60]).unwrap();
            }
            let stopped = self.guest.ring(index).gave_up(Duration::from_millis(1)).unwrap();
            when(stopped, self.daemon.log()[logged..].to_owned())
        });
        let log = self.daemon.log()[logged..].to_owned();
        assert!(log.contains(why), "{why}: {log}");
        let other = has_given_up(&mut self.guest, &[1 - index]);
        assert!(!other, "{why}: the other ring is given up too: {log}");
        if index == 0 {
            // What was sent to a receiver that is gone is lost, not kept: without another kick.
            expect_all_back(self.guest.pair(0));
        }
        self.expect_others();
        self.guest.check_canaries().unwrap();
        self.expect_recovery();
    }
}

fn has_given_up(guest: &mut Guest, rings: &[u16]) -> bool {
    rings.iter().any(|&index| guest.ring(index).gave_up(Duration::ZERO).unwrap())
}

/// How the daemon is to poll for such a guest: with either ring format it does for one, and sleeps for the
/// other, of those with completion in order and those without.
#[must_use]
pub fn poll_for(options: &GuestOptions) -> &'static str {
    let has = |bit: u32| options.features & 1 << bit != 0;
    if has(34) == has(35) { "never" } else { "adaptive" }
}

/// Waits until `pair` has all its transmit descriptors back.
///
/// # Panics
/// When one is missing after 2 s.
#[track_caller]
pub fn expect_all_back(pair: &mut Pair) {
    eventually(SOON, "every transmit descriptor to come back", || {
        pair.reap().unwrap();
        let driver = pair.transmit_ring().driver();
        let (free, size) = (driver.free(), usize::from(driver.setup().size));
        when(free == size, format!("{free} of {size}"))
    });
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

/// The request `expected` was answered with an error, so the connection lives.
///
/// # Panics
/// If it was accepted, another one was refused, or the connection has ended.
#[track_caller]
pub fn expect_refused(result: Result<(), Error>, expected: &str) {
    match result {
        Err(Error::Refused { message, .. }) if message == expected => {}
        other => panic!("{expected} is to be refused: {other:?}"),
    }
}
