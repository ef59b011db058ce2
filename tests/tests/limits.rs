//! Limits of a guest: the rate is met, nobody else pays for it, and the wait shows where it belongs.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use burst_trace::{Reader, Stage};
use frontend::{Guest, GuestOptions, Pair};
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::eventually::{SetOnDrop, eventually, when};
use ringscope_tests::frames;
use ringscope_tests::lan::{Lan, frame, station};
use ringscope_tests::trace::Trace;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);
const RX: usize = 0;
const TX: usize = 1;
/// Largest error of a rate over a second.
const ERROR: f64 = 0.02;
/// Other programs of the machine take its CPUs away from what is measured: such a run is repeated.
const ATTEMPTS: usize = 5;

/// Most frames that a guest takes before it looks after what it sends: a back end may bring them as fast as they are taken.
const TAKEN_MAX: usize = 64;

/// Keeps the ring of a guest full of this frame, and gives back what it receives, until `is_over`.
fn flood(pair: &mut Pair, sent: &[u8], is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        pair.reap().unwrap();
        let mut is_new = false;
        while pair.queue(sent).unwrap() {
            is_new = true;
        }
        for _ in 0..TAKEN_MAX {
            if pair.receive().unwrap().is_none() {
                break;
            }
            is_new = true;
        }
        if is_new {
            pair.flush().unwrap();
        } else {
            sleep(Duration::from_micros(200));
        }
    }
}

/// Packets and bytes a second of a ring, over a second, when what was saved up is gone.
fn rates(reader: &Reader, ring: usize) -> (f64, f64) {
    sleep(Duration::from_millis(150));
    let (before, begun) = (reader.totals(ring), Instant::now());
    sleep(Duration::from_secs(1));
    let (after, seconds) = (reader.totals(ring), begun.elapsed().as_secs_f64());
    let per_second = |before: u64, after: u64| (after - before) as f64 / seconds;
    (per_second(before.packets, after.packets), per_second(before.bytes, after.bytes))
}

/// The same of a daemon with these arguments, whose guest sends and receives all the time.
fn rates_of(arguments: &[&str], len: usize, ring: usize) -> (f64, f64) {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "vm", arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let (is_over, reader) = (AtomicBool::new(false), daemon.reader().unwrap());
    let sent = frames::frame(1, len);
    scope(|scope| {
        scope.spawn(|| flood(guest.pair(0), &sent, &is_over));
        let _ended = SetOnDrop(&is_over);
        rates(&reader, ring)
    })
}

#[test]
fn a_rate_is_met_within_two_percent() {
    for (len, limit, poll) in [
        (64, "2MB,burst=50", "never"),
        (64, "30kpps,burst=50", "adaptive"),
        (1500, "20MB,burst=50", "always"),
        (1500, "160Mbit,5kpps,burst=50", "never"),
    ] {
        let received = format!("null:rx={len}");
        for (ring, flag) in [(TX, "--limit-tx"), (RX, "--limit-rx")] {
            let datapath = if ring == RX { received.as_str() } else { "null" };
            let arguments = ["--datapath", datapath, "--poll", poll, flag, limit];
            let mut found = (0.0, 0.0);
            let is_met = (0..ATTEMPTS).any(|_| {
                found = rates_of(&arguments, len, ring);
                let (rate, expected) = match limit {
                    "2MB,burst=50" => (found.1, 2e6),
                    "30kpps,burst=50" => (found.0, 30e3),
                    "20MB,burst=50" => (found.1, 20e6),
                    _ => (found.0, 5e3),
                };
                (rate / expected - 1.0).abs() <= ERROR
            });
            assert!(is_met, "{arguments:?}: {found:?}");
        }
    }
}

#[test]
fn the_wait_is_a_stage_of_its_own() {
    for (datapath, flag, ring) in [("null", "--limit-tx", 1), ("null:rx=1000", "--limit-rx", 0)] {
        for poll in ["never", "adaptive", "always"] {
            let directory = tempfile::tempdir().unwrap();
            let arguments = ["--datapath", datapath, "--poll", poll, flag, "500kB,burst=1"];
            let daemon = Daemon::start(directory.path(), "vm", &arguments).unwrap();
            let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
            let is_over = AtomicBool::new(false);
            scope(|scope| {
                scope.spawn(|| flood(guest.pair(0), &frames::frame(1, 1000), &is_over));
                let _ended = SetOnDrop(&is_over);
                sleep(Duration::from_secs(1));
            });
            let trace = Trace::open(directory.path(), "vm");
            let bursts = trace.bursts(ring);
            assert!(bursts.len() > 5, "{} bursts", bursts.len());
            let (mut limited, mut total) = (0.0, 0.0);
            for burst in &bursts {
                let of_burst = trace.stage_us(burst, Stage::Limited);
                let stages: u64 = burst.stages.iter().sum();
                assert_eq!(stages, burst.total(), "{burst:?}");
                limited += of_burst;
                total += trace.us(burst.total());
            }
            // The first burst passes at once. Frames of a tx burst may have waited in the ring behind others, too.
            assert!(limited >= 0.9 * total, "{datapath} {poll}: {limited} of {total} us");
            let stats = Command::new(program("ringscope").unwrap())
                .args(["stats", "--json", "--run-dir"])
                .arg(directory.path())
                .output()
                .unwrap();
            let stats: Value = serde_json::from_slice(&stats.stdout).unwrap();
            let way = if ring == 1 { "tx" } else { "rx" };
            let rows = stats[way]["stages"].as_array().unwrap();
            let row = rows.iter().find(|row| row["stage"] == "limited").unwrap();
            assert!(row["mean_ns"].as_f64().unwrap() > 1e6, "{row}");
        }
    }
}

#[test]
fn nothing_is_lost_and_nothing_is_out_of_order() {
    let directory = tempfile::tempdir().unwrap();
    for poll in ["never", "adaptive", "always"] {
        let arguments = ["--datapath", "reflect", "--poll", poll, "--limit-tx", "1MB,burst=1"];
        let daemon = Daemon::start(directory.path(), poll, &arguments).unwrap();
        for options in frames::formats(&GuestOptions::default()) {
            let mut guest = Guest::connect(daemon.socket(), options).unwrap();
            frames::come_back(&mut guest).unwrap();
        }
    }
}

#[test]
fn a_guest_that_waits_for_its_limit_costs_no_time() {
    let directory = tempfile::tempdir().unwrap();
    for datapath in ["null", "null:rx=64"] {
        let limits = ["--limit-tx", "100kB,burst=1", "--limit-rx", "100kB,burst=1"];
        let arguments = [&["--datapath", datapath, "--poll", "never"][..], &limits].concat();
        let daemon = Daemon::start(directory.path(), "vm", &arguments).unwrap();
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        let is_over = AtomicBool::new(false);
        scope(|scope| {
            scope.spawn(|| flood(guest.pair(0), &frames::frame(1, 64), &is_over));
            let _ended = SetOnDrop(&is_over);
            sleep(Duration::from_millis(200));
            let before = daemon.cpu_time();
            sleep(Duration::from_secs(1));
            let took = daemon.cpu_time() - before;
            assert!(took <= Duration::from_millis(200), "{datapath}: {took:?} of a second");
        });
    }
}

#[test]
fn on_a_switch_only_the_guest_with_a_limit_waits() {
    let keys = |n: usize| {
        format!("datapath = 'switch:lan'\n{}", ["limit-tx = '1MB,burst=50'", ""][n.min(1)])
    };
    let mut lan = Lan::with_keys(&vec![GuestOptions::default(); 4], keys);
    lan.introduce();
    let reader = lan.daemon.reader().unwrap();
    let [busy, one, other, receiver] = &mut lan.guests[..] else { panic!("four guests") };
    let is_over = AtomicBool::new(false);
    let sent = frame(station(3), station(0), 1, 500);
    let hear = frame(station(0), station(3), 2, 60);
    let (mut waits, mut rate) = (Vec::new(), 0.0);
    scope(|scope| {
        scope.spawn(|| flood(busy.pair(0), &sent, &is_over));
        scope.spawn(|| flood_slowly(receiver.pair(0), &hear, &is_over));
        let _ended = SetOnDrop(&is_over);
        sleep(Duration::from_millis(100));
        let ask = frame(station(2), station(1), 3, 100);
        for _ in 0..500 {
            let asked = Instant::now();
            assert!(one.pair(0).send(&ask).unwrap());
            let came = other.pair(0).receive_within(SOON).unwrap().expect("the frame");
            assert!(came.bytes == ask);
            waits.push(asked.elapsed());
        }
        rate = (0..ATTEMPTS)
            .map(|_| rates(&reader, TX).1)
            .find(|rate| (rate / 1e6 - 1.0).abs() <= ERROR)
            .unwrap_or_default();
    });
    assert!(rate > 0.0, "the limit was not met");
    waits.sort_unstable();
    // The other waits 500 µs for each of its frames, and much longer for a burst.
    assert!(waits[250] < Duration::from_millis(2), "median {:?}", waits[250]);
    assert!(lan.trace(1).bursts(1).iter().all(|burst| burst.stages[2] == 0), "it has no limit");
}

/// Receives all, and sends a frame now and then.
fn flood_slowly(pair: &mut Pair, sent: &[u8], is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        while pair.receive().unwrap().is_some() {}
        pair.flush().unwrap();
        pair.reap().unwrap();
        pair.send(sent).unwrap();
        sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_limit_changes_while_frames_flow() {
    let directory = tempfile::tempdir().unwrap();
    let control = directory.path().join("control");
    let arguments = ["--datapath", "null:rx=500", "--control", control.to_str().unwrap()];
    let daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let (is_over, reader) = (AtomicBool::new(false), daemon.reader().unwrap());
    let sent = frames::frame(1, 500);
    scope(|scope| {
        scope.spawn(|| flood(guest.pair(0), &sent, &is_over));
        let _ended = SetOnDrop(&is_over);
        for (way, ring) in [("tx", TX), ("rx", RX)] {
            let free = rates(&reader, ring).0;
            let (is_done, said) = ctl(directory.path(), &["vm0", "limit", way, "2kpps,burst=50"]);
            assert!(is_done && said.contains("2kpps,burst=50"), "{said}");
            let mut found = Vec::new();
            let is_met = (0..ATTEMPTS).any(|_| {
                found.push(rates(&reader, ring).0);
                found.last().is_some_and(|rate| (rate / 2e3 - 1.0).abs() <= ERROR)
            });
            assert!(is_met, "{way}: {found:?} packets a second");
            let (is_done, said) = ctl(directory.path(), &["vm0", "limit", way, "off"]);
            assert!(is_done && said.contains(&format!("{way}: -")), "{said}");
            let again = rates(&reader, ring).0;
            assert!(again > free / 10.0 && again > 4e3, "{way}: {free} before, {again} after");
        }
    });
    for (arguments, part) in [
        (&["limit", "tx"][..], "expected limit tx RATE"),
        (&["limit", "up", "5MB"], "expected limit tx RATE"),
        (&["limit", "tx", "5"], "expected a rate such as 100Mbit"),
    ] {
        let (is_done, said) = ctl(directory.path(), &[&["vm0"], arguments].concat());
        assert!(!is_done && said.contains(part), "{said}");
    }
}

#[test]
fn what_a_guest_on_a_switch_receives_has_no_limit_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let control = directory.path().join("control");
    let arguments = ["--datapath", "reflect", "--control", control.to_str().unwrap()];
    for refused in [true, false] {
        let limit = if refused { ["--limit-rx", "1MB"] } else { ["--limit-tx", "1MB"] };
        match Daemon::start(directory.path(), "vm0", &[&arguments[..], &limit].concat()) {
            Err(error) => {
                assert!(refused && error.to_string().contains("limit who sends"), "{error}")
            }
            Ok(_daemon) => {
                assert!(!refused);
                let is_there = || when(UnixStream::connect(&control).is_ok(), "none");
                eventually(SOON, "the control socket", is_there);
                let (is_done, said) = ctl(directory.path(), &["vm0", "limit", "rx", "1MB"]);
                assert!(!is_done && said.contains("limit who sends"), "{said}");
            }
        }
    }
}

/// Runs `ringscope ctl`.
fn ctl(run_dir: &Path, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(program("ringscope").unwrap());
    let output = command.args(["ctl", "--run-dir"]).arg(run_dir).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}
