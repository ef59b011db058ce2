//! Mixed traffic for a while, with guests that come and go: nothing of the daemon's grows.
//!
//! Ten seconds a datapath, or as long as `RINGSCOPE_SOAK_SECONDS` says.

use std::env;
use std::time::{Duration, Instant};

use frontend::{Guest, GuestOptions, Pair};
use lab::outside::Outside;
use lab::process::Process;
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::eventually;
use ringscope_tests::frames;
use ringscope_tests::pings::Pinger;

/// Most memory that a guest may leave behind while the heap still grows into its final shape, KiB. It grows by up to 12.
const GROWTH_PER_GUEST: u64 = 16;
/// The same of all guests together, KiB.
const GROWTH: u64 = 1024;
/// Time that a guest stays.
const STAY: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(5);

#[test]
fn over_af_xdp_memory_descriptors_and_chunks_stay_as_they_are() {
    let outside = Outside::on_wire("soak", 1).unwrap();
    let datapath = format!("af-xdp:ifname={}", outside.wire());
    let log = soak(&outside, &datapath);
    let rests: Vec<_> = log.lines().filter(|line| line.contains("at rest with")).collect();
    assert!(rests.len() >= 5, "{log}");
    let all_there = |line: &&&str| line.ends_with("at rest with 2048 and 4096 chunks");
    assert_eq!(rests.iter().filter(all_there).count(), rests.len(), "{rests:#?}");
}

#[test]
fn over_a_tap_memory_and_descriptors_stay_as_they_are() {
    let mut outside = Outside::new("soak").unwrap();
    let datapath = format!("tap:ifname={}", outside.add_tap(1).unwrap());
    soak(&outside, &datapath);
}

/// Many short visits show what a few long ones hide in the growth of the heap.
#[test]
fn guests_that_come_and_go_leave_no_memory_behind() {
    const GUESTS: usize = 150;
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "soak", &["--datapath", "reflect"]).unwrap();
    let visits = || {
        for n in 0..GUESTS {
            let options = GuestOptions::default().packed(n % 2 == 1);
            frames::come_back(&mut come(&daemon, &options)).unwrap();
        }
        at_rest(&daemon)
    };
    let (before, after) = (visits(), visits());
    // 230 bytes a guest would be seen.
    assert!(after.0 <= before.0 && after.1 <= before.1 + 32, "{before:?}, then {after:?}");
}

/// Traffic of all kinds over `datapath`. Returns what the daemon logged.
fn soak(outside: &Outside, datapath: &str) -> String {
    let seconds = env::var("RINGSCOPE_SOAK_SECONDS").map_or(10, |text| text.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "soak", &["--datapath", datapath]).unwrap();
    let until = Instant::now() + Duration::from_secs(seconds);
    // UDP of all lengths without end from outside, to a port that nobody has.
    let flood = "while :; do for len in 1 100 700 1400; do for n in $(seq 200); do \
                 printf %0${len}d 0; done >/dev/udp/10.77.0.2/9; sleep 0.02; done; done";
    let mut command = outside.command("bash");
    let _flood =
        Process::spawn(command.args(["-c", flood]), &directory.path().join("flood.log")).unwrap();
    let mut before = None;
    let mut guests = 0_u64;
    while Instant::now() < until {
        let options = GuestOptions::default().packed(guests % 2 == 1);
        let mut guest = come(&daemon, &options);
        mix(outside, guest.pair(0));
        guest.check_canaries().unwrap();
        drop(guest);
        guests += 1;
        // What the first ones needed stays.
        if guests == 3 {
            before = Some(at_rest(&daemon));
        }
    }
    let after = at_rest(&daemon);
    let before = before.expect("three guests");
    let found = format!("{guests} guests; descriptors and KiB {before:?}, then {after:?}");
    eprintln!("{datapath}: {found}");
    let growth = GROWTH.min(GROWTH_PER_GUEST * (guests - 3));
    assert!(after.0 <= before.0 && after.1 <= before.1 + growth, "{found}");
    daemon.log()
}

/// Its descriptors, and its memory in KiB, once it has let go of the last guest.
fn at_rest(daemon: &Daemon) -> (usize, u64) {
    let looks = (0..20).map(|_| {
        std::thread::sleep(Duration::from_millis(25));
        daemon.descriptors()
    });
    (looks.min().expect("many looks"), daemon.memory_kib())
}

/// A guest comes. One that comes while the daemon still lets go of the last one is sent away, and comes again.
fn come(daemon: &Daemon, options: &GuestOptions) -> Guest {
    eventually(SOON, "to be served", || Guest::connect(daemon.socket(), options.clone()))
}

/// A guest's life: pings, bursts, and times in which it takes nothing.
fn mix(outside: &Outside, pair: &mut Pair) {
    let until = Instant::now() + STAY;
    outside.exec("ip neigh replace 10.77.0.2 lladdr 52:54:00:00:00:02 dev eth0").unwrap();
    let mut pinger = Pinger::new(pair, Pinger::MAC);
    let mut answered = 0;
    for round in 0_usize.. {
        if Instant::now() >= until {
            break;
        }
        answered += usize::from(pinger.ping(pair, round * 131 % 1472, SOON));
        for n in 0..64 {
            if !pair.queue(&frames::frame(n, 60 + (round * 64 + n) % 1400)).unwrap() {
                break;
            }
        }
        pair.flush().unwrap();
        if round % 16 == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        while pair.receive().unwrap().is_some() {}
        pair.reap().unwrap();
        pinger.sent.clear();
        pinger.came.clear();
    }
    assert!(answered > 5, "{answered} pings were answered");
}
