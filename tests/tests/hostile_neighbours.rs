//! How long honest frames take beside a hostile guest: at most twice as long, in the 99th percentile, as beside a
//! guest that keeps to the rules and sends and takes all it can; and at most 1.5 ms on a switch, where one worker
//! serves them all.

use std::rc::Rc;
use std::time::Duration;

use frontend::{Guest, GuestOptions};
use ringscope_tests::beside::{Beside, Wire, flood, percentile, take};
use ringscope_tests::hostile_rings::Pattern;
use ringscope_tests::lan::station;
use ringscope_tests::mirror::{Kind, Mirror};

/// Longest 99th percentile where one worker serves several guests.
const P99_MAX: Duration = Duration::from_micros(1500);
/// How often more than beside a lawful flood.
const RATIO_MAX: f64 = 2.0;
/// The least that counts as slow: below it, clock and scheduler are what is measured.
const P99_FLOOR: Duration = Duration::from_micros(250);
/// Round trips for each figure, at least.
const TRIPS: usize = 300;
/// Time for each figure, at least.
const TIME: Duration = Duration::from_millis(150);
/// A measurement is repeated so often before it counts: noise comes from outside, a slow worker is slow every time.
const TRIES: usize = 3;

/// What a hostile guest does over and over.
#[derive(Clone, Copy, Debug)]
enum Misdeed {
    /// Keeps a ring busy with chains that are cheap to make and dear to serve.
    Ring(Pattern),
    /// Kicks without having anything to say.
    KickForNothing,
    /// Sends to everyone, and takes nothing.
    TakeNothing,
    /// Stops, resets and starts its rings.
    Reboot,
}

impl Misdeed {
    fn all() -> impl Iterator<Item = Self> {
        let others = [Self::KickForNothing, Self::TakeNothing, Self::Reboot];
        // Those that break their ring need a reset for every chain: as often as `Reboot` does it.
        let rings = Pattern::ALL.into_iter().filter(|pattern| !pattern.breaks());
        rings.map(Self::Ring).chain(others)
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
                let pair = guest.pair(0);
                while pair.queue(&[0xff; 60]).unwrap() {}
                pair.flush().unwrap();
            }),
            Self::Reboot => Box::new(|guest| guest.reboot().unwrap()),
        }
    }
}

/// A figure of one cell of the table.
struct Figure {
    p50: Duration,
    p99: Duration,
}

fn measure(scene: &mut Beside, act: &mut dyn FnMut(&mut Guest)) -> Figure {
    let times = scene.round_trips(TRIPS, TIME, act);
    Figure { p50: percentile(&times, 50), p99: percentile(&times, 99) }
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
    for (packed, poll) in [(false, "always"), (false, "never"), (true, "always"), (true, "never")] {
        let format = if packed { "packed" } else { "split" };
        println!("scene: {wire} {format} {poll}");
        for misdeed in Misdeed::all() {
            let name = format!("{misdeed:?}");
            let mut tries = 0;
            let (cells, holds) = loop {
                tries += 1;
                let mut scene = Beside::new(wire, &mirrors, misdeed.options(packed), poll);
                let mut lawful = flood(scene.hostile());
                let lawful = measure(&mut scene, &mut lawful);
                scene.reboot();
                let mut act = misdeed.prepare(&mut scene);
                let beside = measure(&mut scene, &mut *act);
                let (cells, holds) = judge(wire, &lawful, &beside);
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

/// The cells of a row, and whether the bounds hold.
fn judge(wire: Wire, lawful: &Figure, beside: &Figure) -> (String, bool) {
    let ratio = beside.p99.as_secs_f64() / lawful.p99.max(P99_FLOOR).as_secs_f64();
    let holds = ratio <= RATIO_MAX && (beside.p99 <= P99_MAX || wire != Wire::Switch);
    let verdict = if holds { "ok" } else { "SLOW" };
    let [p50, p99, lawful] = [beside.p50, beside.p99, lawful.p99].map(us);
    (format!("{p50:>8.1} {p99:>8.1} {lawful:>9.1} {ratio:>6.2}  {verdict}"), holds)
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
