//! Daemons that are killed under load: each ring goes on where it stood, and no frame in it is lost.
//!
//! `RINGSCOPE_KILLS` is the number of kills of each guest.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use frontend::{Guest, GuestOptions};
use lab::outside::Outside;
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::eventually;
use ringscope_tests::frames;
use ringscope_tests::trace::Trace;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open};
use rustix::time::{ClockId, clock_gettime};

const REFLECT: [&str; 2] = ["--datapath", "reflect"];
const SOON: Duration = Duration::from_secs(5);
/// Most frames of a burst: as many may come twice after each kill.
const BURST_MAX: usize = 64;
/// Most of the time a burst is on its way: to the receiver, or sent and not given back.
const SLOW: [&str; 4] = ["--fault", "delay:egress=200", "--fault", "delay:place=200"];
/// Least time between the start of traffic and a kill.
const KILLED_AFTER: Duration = Duration::from_millis(2);

fn kills() -> usize {
    std::env::var("RINGSCOPE_KILLS").map_or(25, |kills| kills.parse().expect("a number"))
}

/// Whether the daemon that is started after this kill is slowed down in the middle of its bursts.
fn is_slow(kill: usize) -> bool {
    kill >= kills() / 2
}

/// Numbered frames of a guest whose back end sends them back, and how often each came.
struct Count {
    guest: Guest,
    came: Vec<usize>,
    /// How many came in all. Adding them up takes milliseconds when there are a million.
    total: usize,
    random: u32,
}

impl Count {
    fn new(guest: Guest) -> Self {
        Self { guest, came: Vec::new(), total: 0, random: 1 }
    }

    fn below(&mut self, limit: u32) -> u32 {
        // Numerical Recipes' generator: the same kills in each run.
        self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.random >> 8) % limit
    }

    /// Puts some frames in the ring, as long as there is room.
    fn send(&mut self, frames: usize) {
        for _ in 0..frames {
            let number = self.came.len();
            let mut frame = frames::frame(number, 64 + number % 200);
            frame[14..18].copy_from_slice(&u32::try_from(number).unwrap().to_le_bytes());
            if !self.guest.pair(0).queue(&frame).unwrap() {
                break;
            }
            self.came.push(0);
        }
        self.guest.pair(0).flush().unwrap();
    }

    /// Takes the frames that came.
    fn receive(&mut self) {
        while let Some(frame) = self.guest.pair(0).receive().unwrap() {
            let number: [u8; 4] = frame.bytes[14..18].try_into().unwrap();
            let number = u32::from_le_bytes(number) as usize;
            let mut expected = frames::frame(number, 64 + number % 200);
            expected[14..18].copy_from_slice(&frame.bytes[14..18]);
            assert!(frame.bytes == expected, "frame {number} is damaged");
            self.came[number] += 1;
            self.total += 1;
        }
    }

    /// Sends and receives all the time, until the daemon is killed at some moment.
    fn run_until_killed(&mut self, daemon: &Daemon) {
        let after = KILLED_AFTER + Duration::from_micros(self.below(10_000).into());
        thread::scope(|scope| {
            let killer = scope.spawn(move || {
                thread::sleep(after);
                daemon.signal(Signal::KILL).unwrap();
            });
            while !killer.is_finished() {
                let some = 1 + self.below(100) as usize;
                self.send(some);
                self.receive();
            }
        });
    }

    /// Waits for the first frame that comes.
    fn wait_for_a_frame(&mut self) {
        let patience = Instant::now() + SOON;
        let before = self.total;
        while self.total == before {
            assert!(Instant::now() < patience, "no frame comes");
            self.receive();
        }
    }

    fn all_came(&self) -> bool {
        self.came.iter().all(|&times| times > 0)
    }

    /// Waits for all frames, and for those that come a second time. Returns how many came more than once.
    fn settle(&mut self) -> usize {
        let patience = Instant::now() + SOON;
        while !self.all_came() {
            let lost = self.came.iter().filter(|&&times| times == 0).count();
            assert!(Instant::now() < patience, "{lost} of {} frames are lost", self.came.len());
            self.receive();
        }
        self.came.iter().map(|&times| times - 1).sum()
    }
}

fn options(n: usize) -> GuestOptions {
    let options = GuestOptions { forgetful: true, ..GuestOptions::default() };
    frames::formats(&options)[n].clone()
}

fn thread_cpu_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().expect("a time since the thread's start")
}

/// From the new daemon's socket to its first burst, as its recorder has it. (A file's age is known to a tick of the kernel.)
fn gap(directory: &Path, name: &str) -> Duration {
    eventually(SOON, "the restart's record", || {
        Trace::open(directory, name).last_gap().ok_or("none")
    })
}

fn percentiles(mut all: Vec<Duration>) -> String {
    all.sort();
    let at = |percent| all[all.len() * percent / 100];
    format!("p50 {:?}, p99 {:?}", at(50), at(99))
}

#[test]
fn no_frame_is_lost_however_often_the_daemon_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    for (n, format) in ["split", "split, in order", "packed", "packed, in order"].iter().enumerate()
    {
        let name = format!("vm{n}");
        let start = |arguments: &[&str]| {
            Daemon::start(directory.path(), &name, &[&REFLECT, arguments].concat()).unwrap()
        };
        let mut daemon = start(&[]);
        let mut count = Count::new(Guest::connect(daemon.socket(), options(n)).unwrap());
        let (mut gaps, mut own) = (Vec::new(), Vec::new());
        for kill in 0..kills() {
            count.run_until_killed(&daemon);
            drop(daemon);
            count.send(50);
            daemon = start(if is_slow(kill) { &SLOW } else { &[] });
            let before = thread_cpu_time();
            count.guest.reconnect(daemon.socket()).unwrap();
            let front_end = thread_cpu_time() - before;
            count.wait_for_a_frame();
            // The records of a daemon with other flags are not continued.
            if kill > 0 && is_slow(kill) == is_slow(kill - 1) {
                let gap = gap(directory.path(), &name);
                own.push(gap.saturating_sub(front_end));
                gaps.push(gap);
            }
        }
        let twice = count.settle();
        let (kills, sent) = (kills(), count.came.len());
        println!(
            "{format}: {kills} kills, {sent} frames, 0 lost, {twice} twice; from the new socket to the first frame: {}; \
             without the front end's own CPU time: {}",
            percentiles(gaps),
            percentiles(own),
        );
        assert!(twice <= kills * BURST_MAX, "{format}: {twice} frames came twice");
        frames::come_back(&mut count.guest).unwrap();
    }
}

/// A packed ring in use, whose daemon was killed.
fn left_behind(directory: &Path) -> Guest {
    let daemon = Daemon::start(directory, "vm", &REFLECT).unwrap();
    let mut guest = Guest::connect(daemon.socket(), options(2)).unwrap();
    frames::come_back(&mut guest).unwrap();
    guest
}

fn goes_on(daemon: &Daemon, guest: &mut Guest) -> bool {
    guest.reconnect(daemon.socket()).unwrap();
    assert!(guest.pair(0).send(&frames::frame(1, 100)).unwrap());
    guest.pair(0).receive_within(Duration::from_millis(300)).unwrap().is_some()
}

/// Writes this word of the journal.
fn write(journal: &Path, at: usize, word: u64) {
    let mut bytes = fs::read(journal).unwrap();
    bytes[at * 8..at * 8 + 8].copy_from_slice(&word.to_le_bytes());
    fs::write(journal, bytes).unwrap();
}

/// Spoils a journal.
type Spoil = fn(&Path);

#[test]
fn a_journal_that_does_not_fit_is_refused_in_one_sentence() {
    let spoilt: [(Option<&str>, Spoil); 8] = [
        (Some("there is no journal"), |journal| {
            fs::rename(journal, journal.with_extension("moved")).unwrap();
            symlink(journal.with_extension("moved"), journal).unwrap();
        }),
        (Some("found 100"), |journal| fs::write(journal, [7; 100]).unwrap()),
        (Some("does not begin as a journal"), |journal| write(journal, 0, 0)),
        (Some("found version 9"), |journal| write(journal, 1, 9)),
        (Some("the host was booted since"), |journal| write(journal, 2, 0)),
        (Some("expected 2 rings, found 3"), |journal| write(journal, 4, 3)),
        // The transmit ring: the table of another one, as after another guest, of which nothing is said; and its last
        // group.
        (None, |journal| write(journal, 512 + 16 + 1, 0x1000)),
        (Some("queue 1 does not go on"), |journal| {
            write(journal, 512 + 16 + 9, 1 << 49 | 0x7fff_7fff);
        }),
    ];
    for (sentence, spoil) in spoilt {
        let directory = tempfile::tempdir().unwrap();
        let mut guest = left_behind(directory.path());
        spoil(&directory.path().join("vm.rings"));
        let daemon = Daemon::start(directory.path(), "vm", &REFLECT).unwrap();
        // Without it, a packed ring whose front end has forgotten where it was stands still.
        assert!(!goes_on(&daemon, &mut guest), "{sentence:?}: it went on all the same");
        let log = daemon.log();
        let said = sentence.is_none_or(|sentence| log.matches(sentence).count() == 1);
        assert!(said, "{sentence:?}: {log}");
        // The guest is served again when its driver resets the device.
        guest.reboot().unwrap();
        frames::come_back(&mut guest).unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let mut guest = left_behind(directory.path());
    let daemon = Daemon::start(directory.path(), "vm", &REFLECT).unwrap();
    assert!(goes_on(&daemon, &mut guest), "with the journal: {}", daemon.log());
}

#[test]
fn a_ring_that_its_guest_stopped_or_reset_is_not_in_the_journal() {
    let directory = tempfile::tempdir().unwrap();
    let mut guest = left_behind(directory.path());
    let daemon = Daemon::start(directory.path(), "vm", &REFLECT).unwrap();
    assert!(goes_on(&daemon, &mut guest));
    guest.reboot().unwrap();
    drop(daemon);
    // It begins again where it began, with the rings empty: nothing says otherwise.
    let daemon = Daemon::start(directory.path(), "vm", &REFLECT).unwrap();
    assert!(goes_on(&daemon, &mut guest), "{}", daemon.log());
    assert!(!daemon.log().contains("does not go on"), "{}", daemon.log());
    frames::come_back(&mut guest).unwrap();
}

#[test]
fn a_journal_that_is_shortened_meanwhile_stops_no_traffic() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "vm", &REFLECT).unwrap();
    let mut guest = Guest::connect(daemon.socket(), options(2)).unwrap();
    frames::come_back(&mut guest).unwrap();
    let journal = directory.path().join("vm.rings");
    fs::File::options().write(true).open(journal).unwrap().set_len(0).unwrap();
    frames::come_back(&mut guest).unwrap();
}

/// The descriptor of a daemon's XDP program on its interface.
fn xdp_link(daemon: &Daemon) -> OwnedFd {
    let directory = format!("/proc/{}/fdinfo", daemon.pid());
    let is_link =
        |path: &Path| fs::read_to_string(path).is_ok_and(|it| it.contains("link_type:\txdp"));
    let mut all = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let path = all.find(|path| is_link(path)).expect("a link");
    let number = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let pid = Pid::from_raw(daemon.pid().try_into().unwrap()).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    pidfd_getfd(process, number, PidfdGetfdFlags::empty()).unwrap()
}

/// The kernel takes the program of a daemon that was killed off its interface when the process is gone already.
#[test]
fn a_daemon_waits_until_the_program_of_one_that_was_killed_is_gone() {
    let outside = Outside::on_wire("late", 1).unwrap();
    let datapath = ["--datapath", &format!("af-xdp:ifname={}", outside.wire())];
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "vm", &datapath).unwrap();
    let link = xdp_link(&daemon);
    drop(daemon);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(300));
            drop(link);
        });
        Daemon::start(directory.path(), "vm", &datapath).unwrap();
    });
}
