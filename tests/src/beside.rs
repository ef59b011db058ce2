//! Honest traffic beside a hostile guest, and the time that a frame of it takes.
//!
//! One thread plays all guests in turn, unless one of them has to wait. With a thread for each guest, they would
//! compete for one CPU, and the scheduler's time slices would be longer than the times measured. The daemon has the
//! other CPU.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use frontend::driver::Buffer;
use frontend::{Guest, GuestOptions, Pair};
use rustix::thread::{CpuSet, gettid, sched_setaffinity};
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::frames;
use crate::lan::{EVERYONE, frame, guest_table, station};
use crate::mirror::{Kind, Mirror};
use crate::packets::{gso_header, tcp_unsummed};

/// Longest wait for one frame. A lost frame counts as this long.
const LOST: Duration = Duration::from_secs(1);
/// Descriptors of each ring.
pub const SIZE: u16 = 256;
/// Guest-physical address of a frame that is sent repeatedly: after rings and honest buffers.
const FRAME: u64 = 20 << 20;

/// The wire between the guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// A switch: one worker serves the hostile guest and two honest ones, which send to each other.
    Switch,
    /// A wire that returns every frame. If the daemon reflects, the honest rings are a second queue pair of the same
    /// worker, otherwise those of a second guest.
    Mirror(Kind),
}

impl Wire {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Switch).chain(Kind::ALL.into_iter().map(Self::Mirror))
    }

    /// Whether one worker serves both the hostile and the honest rings.
    #[must_use]
    pub const fn has_one_worker(self) -> bool {
        matches!(self, Self::Switch | Self::Mirror(Kind::Reflect))
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch => f.write_str("switch"),
            Self::Mirror(kind) => write!(f, "{kind}"),
        }
    }
}

/// A daemon, a hostile guest and honest traffic.
#[derive(Debug)]
pub struct Beside {
    /// The hostile guest is first. On a switch, two honest guests follow and one that takes what is sent to it. On a
    /// wire of the kernel, one honest guest follows.
    guests: Vec<Guest>,
    /// The daemon.
    pub daemon: Daemon,
    wire: Wire,
    /// Whether frames are sent to the hostile guest.
    pub feeds: bool,
    _mirrors: Rc<[Mirror]>,
    _awake: Option<Awake>,
    _directory: TempDir,
}

impl Beside {
    /// Starts everything on `wire` and these `mirrors` of it. `hostile` are the hostile guest's options; the others
    /// have rings of the same format.
    ///
    /// # Panics
    /// If a guest cannot connect to the daemon.
    #[must_use]
    pub fn new(wire: Wire, mirrors: &Rc<[Mirror]>, hostile: GuestOptions, poll: &str) -> Self {
        // The guests' thread must not use the daemon's CPU.
        run_on(1);
        let awake = wire.has_one_worker().then(|| {
            run_in_real_time();
            Awake::keep(0)
        });
        let directory = tempfile::tempdir().unwrap();
        let pairs = if wire == Wire::Mirror(Kind::Reflect) { 2 } else { 1 };
        let datapath = |n: usize| match wire {
            Wire::Switch => "switch:lan".to_owned(),
            Wire::Mirror(_) => mirrors[n].datapath().to_owned(),
        };
        let count = if wire == Wire::Switch { 4 } else { mirrors.len() };
        let table = |n| {
            // With two workers on one CPU, the scheduler's time slices would be measured.
            let cpus = if wire.has_one_worker() { "cpus = '0'" } else { "" };
            let keys = format!(
                "datapath = '{}'\nqueue-pairs = {pairs}\npoll = '{poll}'\n{cpus}",
                datapath(n)
            );
            guest_table(directory.path(), n, &keys)
        };
        let config: String = (0..count).map(table).collect();
        let daemon = Daemon::start_with_config(directory.path(), "vm0", &config).unwrap();
        let hostile = hostile.queue_pairs(pairs).queue_size(SIZE);
        let packed = hostile.features & 1 << 34 != 0;
        let honest = GuestOptions::default().queue_size(SIZE).packed(packed);
        let connect = |n: usize| {
            let options = if n == 0 { hostile.clone() } else { honest.clone() };
            Guest::connect(directory.path().join(format!("vm{n}.sock")), options).unwrap()
        };
        let guests = (0..count).map(connect).collect();
        let mut scene = Self {
            guests,
            daemon,
            wire,
            feeds: false,
            _mirrors: Rc::clone(mirrors),
            _awake: awake,
            _directory: directory,
        };
        scene.introduce();
        scene
    }

    /// On a switch, every guest sends a frame, so that the switch learns its address.
    fn introduce(&mut self) {
        if self.wire != Wire::Switch {
            return;
        }
        for from in 0..self.guests.len() {
            assert!(
                self.guests[from].pair(0).send(&frame(EVERYONE, station(from), 0, 60)).unwrap()
            );
            for to in (0..self.guests.len()).filter(|to| *to != from) {
                let came = self.guests[to].pair(0).receive_within(LOST).unwrap();
                assert!(came.is_some(), "guest {to} does not hear guest {from}");
            }
        }
    }

    /// The hostile guest.
    pub fn hostile(&mut self) -> &mut Guest {
        &mut self.guests[0]
    }

    /// Reboots the hostile guest: its rings start again, empty and valid.
    ///
    /// # Panics
    /// If it is not served again.
    pub fn reboot(&mut self) {
        self.guests[0].reboot().unwrap();
    }

    /// Measures round trips of honest frames while the hostile guest acts in between, and returns them shortest first.
    /// `act` is called repeatedly and must not wait. Measures at least `least` round trips, and continues until `time`
    /// is over, but for no longer than ten times that.
    ///
    /// # Panics
    /// If an honest ring misbehaves.
    pub fn round_trips(
        &mut self,
        least: usize,
        time: Duration,
        act: &mut dyn FnMut(&mut Guest),
    ) -> Vec<Duration> {
        let (wire, feeds) = (self.wire, self.feeds);
        let (hostile, honest) = self.guests.split_at_mut(1);
        Play { wire, feeds, hostile: hostile.first_mut(), honest, act }.round_trips(least, time)
    }

    /// The same for a hostile guest that has to wait: it runs on its own thread until the flag is set.
    ///
    /// # Panics
    /// If a ring misbehaves, or if the hostile guest also has the honest rings.
    pub fn round_trips_while(
        &mut self,
        least: usize,
        time: Duration,
        run: impl FnOnce(&mut Guest, &AtomicBool) + Send,
    ) -> Vec<Duration> {
        let (wire, feeds) = (self.wire, self.feeds);
        let [hostile, honest @ ..] = &mut self.guests[..] else { panic!("a hostile guest") };
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| run(hostile, &done));
            let act = &mut |_: &mut Guest| {};
            let play = Play { wire, feeds, hostile: None, honest, act };
            let times = catch_unwind(AssertUnwindSafe(|| play.round_trips(least, time)));
            done.store(true, Ordering::Relaxed);
            thread.join().expect("the hostile guest");
            times.unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}

/// The guests that one thread plays. `hostile` is `None` if another thread plays it.
struct Play<'g> {
    wire: Wire,
    feeds: bool,
    hostile: Option<&'g mut Guest>,
    honest: &'g mut [Guest],
    act: &'g mut dyn FnMut(&mut Guest),
}

impl Play<'_> {
    fn round_trips(mut self, least: usize, time: Duration) -> Vec<Duration> {
        let begun = Instant::now();
        let mut times = Vec::new();
        while (times.len() < least || begun.elapsed() < time) && begun.elapsed() < 10 * time {
            times.push(self.round_trip(times.len()));
        }
        times.sort();
        times
    }

    fn round_trip(&mut self, n: usize) -> Duration {
        let begun = Instant::now();
        let sent = match self.wire {
            Wire::Switch => frame(station(2), station(1), n, 60),
            Wire::Mirror(_) => frames::frame(n, 60),
        };
        self.asks().send(&sent).unwrap();
        while begun.elapsed() < LOST {
            match &mut self.hostile {
                Some(hostile) => (self.act)(hostile),
                None => std::thread::yield_now(),
            }
            if self.feeds {
                self.feed();
            }
            if self.wire == Wire::Switch {
                self.answer();
            }
            while let Some(came) = self.asks().receive().unwrap() {
                let is_answer = match self.wire {
                    Wire::Switch => {
                        came.bytes[14..] == sent[14..] && came.bytes[6..12] == station(2)
                    }
                    Wire::Mirror(_) => came.bytes == sent,
                };
                if is_answer {
                    return begun.elapsed();
                }
            }
        }
        LOST
    }

    /// Sends short frames to the hostile guest. On a switch another guest sends them, otherwise it sends them itself
    /// and they come back.
    fn feed(&mut self) {
        let (pair, to) = match (self.wire, &mut self.hostile) {
            (Wire::Mirror(_), Some(hostile)) => (hostile.pair(0), frames::frame(0, 200)),
            (Wire::Mirror(_), None) => return,
            (Wire::Switch, _) => (self.honest[2].pair(0), frame(station(0), station(3), 0, 200)),
        };
        pair.reap().unwrap();
        // One burst at a time: sending is not what is measured.
        let _ = (0..64).all(|_| pair.queue(&to).unwrap());
        pair.flush().unwrap();
    }

    /// The queue pair that sends requests: if the daemon reflects, the second one of the hostile guest.
    fn asks(&mut self) -> &mut Pair {
        match &mut self.hostile {
            Some(hostile) if self.wire == Wire::Mirror(Kind::Reflect) => hostile.pair(1),
            _ => self.honest[0].pair(0),
        }
    }

    /// On a switch, the second honest guest answers, and the third takes what it is sent.
    fn answer(&mut self) {
        let pair = self.honest[1].pair(0);
        while let Some(came) = pair.receive().unwrap() {
            if came.bytes[6..12] == station(1) {
                let back = [&station(1)[..], &station(2), &came.bytes[12..]].concat();
                pair.send(&back).unwrap();
            }
        }
        take(self.honest[2].pair(0));
    }
}

/// Pins the calling thread to this CPU, and also the daemon and threads that it starts from now on.
///
/// # Panics
/// If the system refuses.
pub fn run_on(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).unwrap();
}

/// Puts the calling thread in a real-time class, and also the daemon and threads that it starts from now on, so that
/// other programs of this machine do not delay them.
///
/// # Panics
/// If the system refuses.
pub fn run_in_real_time() {
    set_policy(&["--fifo", "--pid", "20"]);
}

/// Gives the calling thread a scheduling policy (`sched(7)`) in words of `chrt(1)`, and also the daemon and threads
/// that it starts from now on.
///
/// # Panics
/// If the system refuses.
pub fn set_policy(words: &[&str]) {
    let thread = gettid().as_raw_nonzero().to_string();
    let status = Command::new("chrt").args(words).arg(&thread).status();
    assert!(status.expect("chrt of util-linux").success(), "expected {words:?} to be allowed");
}

/// A thread that keeps a CPU busy whenever nothing else runs there (`SCHED_IDLE`). A hypervisor takes an idle virtual
/// CPU away, and on a busy host some milliseconds pass before a worker that wakes up gets its CPU back.
#[derive(Debug)]
pub struct Awake {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Awake {
    /// Keeps the CPU of this number busy until the value is dropped.
    ///
    /// # Panics
    /// If the system refuses the CPU or the policy.
    #[must_use]
    pub fn keep(cpu: usize) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            set_policy(&["--idle", "--pid", "0"]);
            run_on(cpu);
            while !flag.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Takes the frames that came, but no more than a burst: taking is not what is measured.
///
/// # Panics
/// If the ring misbehaves.
pub fn take(pair: &mut Pair) {
    for _ in 0..64 {
        if pair.receive().unwrap().is_none() {
            return;
        }
    }
}

/// Prepares a lawful flood: a guest that keeps to the rules sends TCP segments of 60,000 bytes, to be cut into packets
/// of 1448 bytes, as fast as it can, and takes all frames that come. Any neighbour must cope with that.
///
/// # Panics
/// If its rings misbehave.
pub fn flood(guest: &mut Guest) -> impl FnMut(&mut Guest) + use<> {
    let mut send = resend(guest, &segments(1448));
    move |guest| {
        take(guest.pair(0));
        send(guest);
    }
}

/// A TCP segment of 60,000 bytes from guest 0 to guest 3, with a net header that asks to cut it into packets of
/// `gso_size`.
#[must_use]
pub fn segments(gso_size: u16) -> Vec<u8> {
    [&gso_header(gso_size)[..], &tcp_unsummed((station(0), station(3)), &[1; 60_000])].concat()
}

/// Prepares to send one frame, with its net header, repeatedly. It is written once, and then offered as often as the
/// ring has room.
///
/// # Panics
/// If the ring misbehaves.
pub fn resend(guest: &mut Guest, frame: &[u8]) -> impl FnMut(&mut Guest) + use<> {
    guest.memory().guest().write(FRAME, frame).expect("guest memory");
    #[expect(clippy::cast_possible_truncation, reason = "one frame")]
    let chain = [Buffer { address: FRAME, len: frame.len() as u32, writable: false }];
    move |guest| {
        guest.pair(0).reap().unwrap();
        let ring = guest.ring(1);
        ring.foreign_used();
        while ring.offer_foreign(&chain) {}
        ring.publish();
        ring.kick().unwrap();
    }
}

/// The smallest value that `percent` of `sorted` do not exceed.
#[must_use]
pub fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted
        .get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(LOST)
}
