//! How long honest frames take beside a hostile guest: at most twice as long as beside a guest that keeps to the rules and
//! sends and takes all it can; and at most 1.5 ms on a switch, where one worker serves them all.
//!
//! Those are bounds of the 99th percentile. Where one worker serves both, worker and guests run in a real-time class: a time
//! slice of the ordinary one is longer than the bounds. And the worker's CPU is kept awake, which a hypervisor might not give
//! back at once.

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use frontend::{Guest, GuestOptions, Pair};
use ringscope_tests::beside::{Beside, Wire, flood, percentile, take};
use ringscope_tests::dirty::{announce, log_for};
use ringscope_tests::hostile_rings::Pattern;
use ringscope_tests::lan::{EVERYONE, frame, station};
use ringscope_tests::mirror::{Kind, Mirror};

/// Longest where one worker serves several guests.
const TIME_MAX: Duration = Duration::from_micros(1500);
/// How often more than beside a lawful flood.
const RATIO_MAX: f64 = 2.0;
/// Least time that a lawful flood counts as on a switch: below it, only clock and scheduler are measured.
const FLOOR: Duration = Duration::from_micros(250);
/// The same where the hostile guest runs on a thread of its own, which shares a CPU with the honest ones.
const FLOOR_OF_THREADS: Duration = Duration::from_micros(750);
/// The same where each guest has a worker of its own: two of them and the guests share the machine's CPUs, in time
/// slices of some milliseconds.
const FLOOR_OF_WORKERS: Duration = Duration::from_millis(4);
/// Round trips for each figure, at least.
const TRIPS: usize = 200;
/// Time for each figure, at least.
const TIME: Duration = Duration::from_millis(100);
/// Most tries of a measurement. Noise comes from outside, such as a hypervisor that takes the CPUs away for some
/// milliseconds; a slow worker is slow every time.
const TRIES: usize = 3;

/// What a hostile guest does over and over.
#[derive(Clone, Copy, Debug)]
enum Misdeed {
    /// Keeps a ring busy with chains that are cheap to make and costly to serve.
    Ring(Pattern),
    /// Kicks without having anything to say.
    KickForNothing,
    /// Sends to everyone, and takes nothing.
    TakeNothing,
    /// Sends from a neighbour's address.
    Spoof,
    /// Stops, resets and starts its rings.
    Reboot,
    /// Disables and enables its rings.
    Enable,
    /// Says that the guest has moved here.
    Announce,
    /// Gives the guest's memory again.
    SetMemory,
    /// Gives another dirty log, and begins and ends logging.
    Log,
}

impl Misdeed {
    fn all() -> impl Iterator<Item = Self> {
        let others = [
            Self::KickForNothing,
            Self::TakeNothing,
            Self::Spoof,
            Self::Reboot,
            Self::Enable,
            Self::Announce,
            Self::SetMemory,
            Self::Log,
        ];
        Pattern::ALL.into_iter().map(Self::Ring).chain(others)
    }

    /// Whether it takes waiting, for answers of the daemon.
    const fn waits(self) -> bool {
        match self {
            Self::Ring(pattern) => pattern.breaks(),
            Self::Reboot | Self::Enable | Self::Announce | Self::SetMemory | Self::Log => true,
            Self::KickForNothing | Self::TakeNothing | Self::Spoof => false,
        }
    }

    fn options(self, packed: bool) -> GuestOptions {
        let options = match self {
            Self::Ring(pattern) => pattern.options(packed),
            _ => GuestOptions {
                regions: Pattern::SendBytes.options(packed).regions,
                ..GuestOptions::default()
            },
        };
        // The lawful flood has its segments cut.
        options.packed(packed).offloads()
    }

    /// Does it until `done` is set.
    fn run(self, guest: &mut Guest, done: &AtomicBool) {
        if let Self::Ring(pattern) = self {
            let busy = pattern.begin(guest, [station(3), station(0)]);
            while !done.load(Ordering::Relaxed) {
                busy.step(guest);
                if busy.has_broken(guest) {
                    guest.reboot().unwrap();
                    busy.fill(guest);
                }
                std::thread::yield_now();
            }
            return;
        }
        while !done.load(Ordering::Relaxed) {
            match self {
                Self::Reboot => guest.reboot().unwrap(),
                Self::Announce => drop(announce(guest, station(0))),
                Self::SetMemory => guest.give_memory().unwrap(),
                Self::Log => {
                    let _log = log_for(guest);
                    let link = guest.link().unwrap();
                    [true, false].into_iter().for_each(|on| link.set_logging(on).unwrap());
                }
                _ => {
                    let link = guest.link().unwrap();
                    for (ring, on) in [(0, false), (1, false), (0, true), (1, true)] {
                        link.enable(ring, on).unwrap();
                    }
                }
            }
        }
    }

    /// Prepares it. The answer does it once, and does not wait.
    fn prepare(self, scene: &mut Beside) -> Box<dyn FnMut(&mut Guest)> {
        match self {
            Self::Ring(pattern) => {
                scene.feeds = pattern.receives();
                let busy = pattern.begin(scene.hostile(), [station(3), station(0)]);
                Box::new(move |guest| {
                    busy.step(guest);
                    if !pattern.receives() {
                        take(guest.pair(0));
                    }
                })
            }
            Self::KickForNothing => Box::new(|guest| {
                for ring in 0..2 {
                    (0..8).for_each(|_| guest.ring(ring).kick_anyway().unwrap());
                }
            }),
            Self::TakeNothing => Box::new(|guest| {
                send_all(guest.pair(0), &frame(EVERYONE, station(0), 0, 60));
            }),
            Self::Spoof => Box::new(|guest| {
                send_all(guest.pair(0), &frame(station(3), station(1), 0, 60));
                take(guest.pair(0));
            }),
            _ => unreachable!("it waits"),
        }
    }
}

/// Sends a frame as often as there is room, but no more than a burst: sending is not what is measured.
fn send_all(pair: &mut Pair, frame: &[u8]) {
    let _ = (0..64).all(|_| pair.queue(frame).unwrap());
    pair.flush().unwrap();
}

/// A figure of one cell of the table.
struct Figure {
    p50: Duration,
    p99: Duration,
}

impl Figure {
    fn of(times: &[Duration]) -> Self {
        Self { p50: percentile(times, 50), p99: percentile(times, 99) }
    }
}

#[test]
fn on_a_switch() {
    compare(Wire::Switch);
}

#[test]
fn where_the_daemon_reflects() {
    compare(Wire::Mirror(Kind::Reflect));
}

#[test]
fn on_a_tap() {
    compare(Wire::Mirror(Kind::Tap));
}

#[test]
fn on_a_tap_with_io_uring() {
    compare(Wire::Mirror(Kind::TapUring));
}

#[test]
fn on_af_xdp() {
    compare(Wire::Mirror(Kind::AfXdp));
}

#[test]
fn on_af_xdp_in_generic_mode() {
    compare(Wire::Mirror(Kind::AfXdpGeneric));
}

#[test]
fn on_af_xdp_from_guest_memory() {
    compare(Wire::Mirror(Kind::AfXdpFromGuest));
}

/// Each misdeed beside honest frames on this wire: no figure is above its bound.
fn compare(wire: Wire) {
    let mirrors: Rc<[Mirror]> = match wire {
        Wire::Switch => Rc::new([]),
        Wire::Mirror(Kind::Reflect) => Rc::new([Mirror::new(Kind::Reflect)]),
        Wire::Mirror(kind) => Rc::new([Mirror::new(kind), Mirror::new(kind)]),
    };
    println!(
        "row: {:40} {:20} {:7} {:7} {:>8} {:>8} {:>9} {:>6}",
        "honest frames beside a guest that",
        "wire",
        "ring",
        "poll",
        "p50 us",
        "p99 us",
        "lawful",
        "ratio"
    );
    let (mut slow, place) = (Vec::new(), wire.to_string());
    // On a switch all of them; elsewhere each once.
    let all = [(false, "always"), (true, "never"), (false, "never"), (true, "always")];
    for (packed, poll) in all.into_iter().take(if wire == Wire::Switch { 4 } else { 2 }) {
        let format = if packed { "packed" } else { "split" };
        println!("scene: {wire} {format} {poll}");
        // Where the hostile guest has the honest rings, too, it cannot be at two things at once.
        let can_wait = wire != Wire::Mirror(Kind::Reflect);
        for misdeed in Misdeed::all().filter(|misdeed| can_wait || !misdeed.waits()) {
            let name = match misdeed {
                Misdeed::Ring(pattern) => format!("{pattern:?}"),
                _ => format!("{misdeed:?}"),
            };
            let mut tries = 0;
            let (cells, holds) = loop {
                tries += 1;
                let mut scene = Beside::new(wire, &mirrors, misdeed.options(packed), poll);
                let beside = measure(misdeed, &mut scene);
                // Below the least time that a lawful flood counts as, the flood itself makes no difference.
                let (cells, holds) = judge(wire, misdeed, None, &beside);
                if holds {
                    break (cells, holds);
                }
                scene.reboot();
                scene.feeds = false;
                let mut lawful = flood(scene.hostile());
                let lawful = Figure::of(&scene.round_trips(TRIPS, TIME, &mut lawful));
                let (cells, holds) = judge(wire, misdeed, Some(&lawful), &beside);
                if holds || tries == TRIES {
                    break (cells, holds);
                }
            };
            let row = format!("{name:40} {place:20} {format:7} {poll:7} {cells}");
            println!("row: {row}");
            slow.extend((!holds).then_some(row));
        }
    }
    assert!(slow.is_empty(), "honest frames were held up:\n{}", slow.join("\n"));
}

/// Round trips of honest frames while the hostile guest does its misdeed.
fn measure(misdeed: Misdeed, scene: &mut Beside) -> Figure {
    Figure::of(&if misdeed.waits() {
        scene.feeds = matches!(misdeed, Misdeed::Ring(pattern) if pattern.receives());
        scene.round_trips_while(TRIPS, TIME, |guest, done| misdeed.run(guest, done))
    } else {
        let mut act = misdeed.prepare(scene);
        scene.round_trips(TRIPS, TIME, &mut *act)
    })
}

/// The cells of a row, and whether the bounds hold. Where no lawful flood was measured, it counts as its least time.
fn judge(wire: Wire, misdeed: Misdeed, lawful: Option<&Figure>, beside: &Figure) -> (String, bool) {
    let floor = match wire.has_one_worker() {
        false => FLOOR_OF_WORKERS,
        true if misdeed.waits() => FLOOR_OF_THREADS,
        true => FLOOR,
    };
    let lawful_p99 = lawful.map_or(floor, |lawful| lawful.p99.max(floor));
    let ratio = beside.p99.as_secs_f64() / lawful_p99.as_secs_f64();
    let holds = ratio <= RATIO_MAX && (beside.p99 <= TIME_MAX || wire != Wire::Switch);
    let verdict = if holds { "ok" } else { "SLOW" };
    let [p50, p99] = [beside.p50, beside.p99].map(us);
    let lawful = lawful.map_or("-".into(), |lawful| format!("{:.1}", us(lawful.p99)));
    (format!("{p50:>8.1} {p99:>8.1} {lawful:>9} {ratio:>6.2}  {verdict}"), holds)
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
