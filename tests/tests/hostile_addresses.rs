//! Guests of a switch that send from each other's addresses, or disturb each other through their rings.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use burst_trace::DropCause;
use frontend::{Guest, GuestOptions};
use lab::outside::Outside;
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::frames::{self, formats};
use ringscope_tests::lan::{EVERYONE, Lan, frame, guest_table, station};
use ringscope_tests::packets;

const SOON: Duration = Duration::from_secs(5);
/// A guest's address that was silent for a second may move, a second by the daemon's clock, which may have read its last frame late.
const SILENCE: Duration = Duration::from_millis(1500);

fn guests(count: usize) -> Vec<GuestOptions> {
    vec![GuestOptions::default(); count]
}

/// The address of each guest, for its table.
fn with_mac(n: usize) -> String {
    let mac = station(n).map(|byte| format!("{byte:02x}")).join(":");
    format!("datapath = 'switch:lan'\nmac = '{mac}'")
}

/// How many frames of guest 2 for guest 0 arrive, of 40, each after a frame from guest 0. Guest 1 sends from the address
/// of guest 0 all the time, and first when guest 0 has been silent for a while.
fn arrive_in_spite_of_a_thief(lan: &mut Lan) -> usize {
    lan.introduce();
    sleep(SILENCE);
    let theft = |lan: &mut Lan, n| lan.send(1, &frame(EVERYONE, station(0), n, 60));
    theft(lan, 0);
    sleep(Duration::from_millis(10));
    let mut arrived = 0;
    for n in 0..40 {
        if n % 10 == 5 {
            theft(lan, n);
        }
        let said = frame(station(2), station(0), n, 60);
        lan.send(0, &said);
        await_frame(&mut lan.guests[2], &said, SOON)
            .expect("a frame from the owner of the address");
        let answer = frame(station(0), station(2), n, 70);
        lan.send(2, &answer);
        arrived += usize::from(
            await_frame(&mut lan.guests[0], &answer, Duration::from_millis(50)).is_some(),
        );
    }
    arrived
}

/// Receives until this frame comes.
fn await_frame(guest: &mut Guest, wanted: &[u8], patience: Duration) -> Option<()> {
    let until = Instant::now() + patience;
    while Instant::now() < until {
        let came = guest.pair(0).receive_within(patience).unwrap();
        if came.is_some_and(|came| came.bytes == wanted) {
            return Some(());
        }
    }
    None
}

#[test]
fn a_neighbour_that_sends_has_its_address_back_at_once() {
    for options in formats(&GuestOptions::default()) {
        let mut lan = Lan::new(&vec![options; 3], "");
        assert_eq!(arrive_in_spite_of_a_thief(&mut lan), 40, "{}", lan.daemon.log());
        // To the thief and back again; the next attempts were refused.
        assert_eq!((lan.trace(0).moves(), lan.trace(1).moves()), (1, 1));
        lan.expect_drops(1, 1, DropCause::TxSpoofedSource, 4);
        let log = lan.daemon.log();
        let moved = "the address 52:54:00:00:00:00 moved from vm0 to vm1";
        assert!(log.contains(moved) && log.contains("moved from vm1 to vm0"), "{log}");
    }
}

#[test]
fn a_guest_with_mac_sends_from_that_address_only() {
    let mut lan = Lan::with_keys(&guests(3), with_mac);
    assert_eq!(arrive_in_spite_of_a_thief(&mut lan), 40);
    lan.expect_drops(1, 1, DropCause::TxSpoofedSource, 5);
    for (n, source) in [(0, station(7)), (1, [0; 6]), (2, EVERYONE)] {
        let before = lan.trace(n).drops(1, DropCause::TxSpoofedSource);
        lan.send(n, &frame(EVERYONE, source, n, 60));
        lan.expect_drops(n, 1, DropCause::TxSpoofedSource, before + 1);
    }
    (0..3).for_each(|n| lan.expect_nothing(n));
    assert!((0..3).all(|n| lan.trace(n).moves() == 0));
    // In one burst, what it may send passes and what it may not does not.
    let burst: Vec<_> = (0..60).map(|n| frame(station(1), station(n % 3 * 7), n, 60)).collect();
    for sent in &burst {
        assert!(lan.pair(0).queue(sent).unwrap());
    }
    lan.pair(0).flush().unwrap();
    (0..60).step_by(3).for_each(|n| drop(lan.expect(1, &burst[n])));
    lan.expect_nothing(1);
    let log = lan.daemon.log();
    assert!(log.contains("vm1: sends from 52:54:00:00:00:00, which it may not have"), "{log}");
}

#[test]
fn unlocked_a_guest_with_mac_keeps_that_address_and_may_have_others() {
    let keys = |n| format!("{}\nmac-locked = 'off'", with_mac(n));
    let mut lan = Lan::with_keys(&guests(3), keys);
    assert_eq!(arrive_in_spite_of_a_thief(&mut lan), 40);
    lan.expect_drops(1, 1, DropCause::TxSpoofedSource, 5);
    let other = frame(station(2), station(9), 1, 60);
    lan.send(1, &other);
    lan.expect(2, &other);
    let answer = frame(station(9), station(2), 2, 60);
    lan.send(2, &answer);
    lan.expect(1, &answer);
    assert!((0..3).all(|n| lan.trace(n).moves() == 0));
}

#[test]
fn spoofing_without_end_fills_no_log() {
    let directory = tempfile::tempdir().unwrap();
    let table = |n| guest_table(directory.path(), n, &with_mac(n));
    let config = [0, 1].map(table).concat();
    let daemon = Daemon::start_limited_with_config(directory.path(), "vm0", &config).unwrap();
    let mut guest =
        Guest::connect(directory.path().join("vm0.sock"), GuestOptions::default()).unwrap();
    let spoofed = frame(EVERYONE, station(1), 1, 60);
    let until = Instant::now() + Duration::from_millis(500);
    let mut sent = 0;
    while Instant::now() < until {
        sent += usize::from(guest.pair(0).send(&spoofed).unwrap());
    }
    assert!(sent > 100, "{sent} frames");
    let log = daemon.log();
    let lines = log.lines().filter(|line| line.contains("vm0: sends from")).count();
    assert!((1..=12).contains(&lines), "{lines} lines");
}

/// Guest 1 sends from the address of the gateway, which guest 0 talks to.
#[test]
fn no_guest_takes_the_address_of_the_gateway() {
    let mut outside = Outside::new("gateway").unwrap();
    let tap = outside.add_tap(1).unwrap();
    let datapath = format!("switch:lan,uplink=tap:ifname={tap}");
    for keys in ["", "locked"] {
        let table = |n| match keys {
            "" => format!("datapath = '{datapath}'"),
            _ => with_mac(n).replace("switch:lan", &datapath),
        };
        let mut lan = Lan::with_keys(&guests(2), table);
        lan.introduce();
        let gateway: Ipv4Addr = Outside::ADDRESS.parse().unwrap();
        let own = Ipv4Addr::new(10, 77, 0, 10);
        lan.send(0, &packets::arp_request(station(0), own, gateway));
        let mac = await_one(&mut lan.guests[0], SOON, packets::arp_reply).expect("an answer");
        sleep(SILENCE);
        let mut answered = 0;
        for sequence in 0..60 {
            if sequence % 10 == 0 {
                lan.send(1, &frame(EVERYONE, mac, sequence.into(), 60));
                sleep(Duration::from_millis(5));
            }
            let payload = frames::frame(sequence.into(), 100);
            let addresses = ((station(0), mac), (own, gateway));
            lan.send(0, &packets::echo_request(addresses.0, addresses.1, sequence, &payload));
            let patience = Duration::from_millis(if answered == 0 { 200 } else { 1000 });
            let answer = await_one(&mut lan.guests[0], patience, |frame| {
                packets::echo_reply(frame).filter(|it| *it == (sequence, &payload)).map(|_| ())
            });
            answered += usize::from(answer.is_some());
        }
        assert_eq!(answered, 60, "{}", lan.daemon.log());
        lan.expect_drops(1, 1, DropCause::TxSpoofedSource, 6);
        assert_eq!(lan.trace(1).moves(), 0);
    }
}

/// What `wanted` makes of the first frame that it wants.
fn await_one<T>(
    guest: &mut Guest,
    patience: Duration,
    wanted: impl Fn(&[u8]) -> Option<T>,
) -> Option<T> {
    let until = Instant::now() + patience;
    while Instant::now() < until {
        let came = guest.pair(0).receive_within(Duration::from_millis(20)).unwrap();
        if let Some(found) = came.and_then(|came| wanted(&came.bytes)) {
            return Some(found);
        }
    }
    None
}

/// Enables a ring that is enabled already, over and over, while `meanwhile` runs.
fn enable_over_and_over<T>(guest: &mut Guest, meanwhile: impl FnOnce() -> T) -> T {
    let (times, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                guest.link().unwrap().enable(0, true).unwrap();
                times.fetch_add(1, Ordering::Relaxed);
            }
        });
        eventually(SOON, "1000 changes of the ring", || {
            let count = times.load(Ordering::Relaxed);
            when(count >= 1000, count)
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
        done.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The segments of a large frame wait one by one for room at guest 1. What guest 2 does to its own rings must not have
/// those sent again that are there already.
#[test]
fn a_guest_that_changes_its_rings_does_not_repeat_others_frames() {
    let cut = GuestOptions::default().queue_size(16);
    let options = [GuestOptions::default().offloads(), cut, GuestOptions::default()];
    let mut lan = Lan::new(&options, "");
    lan.introduce();
    let payload = frames::frame(1, 60_000);
    let [sends, receives, changes] = &mut lan.guests[..] else { panic!("three guests") };
    let came = enable_over_and_over(changes, || {
        let mut came = Vec::new();
        for _ in 0..10 {
            let sent = packets::tcp_unsummed((station(0), station(1)), &payload);
            let header = packets::gso_header(600);
            assert!(sends.pair(0).send_chain(&header, &[&sent]).unwrap());
            while let Some(segment) =
                receives.pair(0).receive_within(Duration::from_millis(100)).unwrap()
            {
                came.push(packets::tcp_checked(&segment.bytes).expect("a segment").0);
            }
        }
        came
    });
    let all: Vec<_> = (0..10).flat_map(|_| (0..100).map(|n| 1 + 600 * n)).collect();
    assert_eq!(came, all);
}
