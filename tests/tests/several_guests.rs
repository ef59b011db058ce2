//! Several guests in one daemon: on datapaths of their own, and on a switch with an uplink.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use frontend::{Guest, GuestOptions};
use lab::outside::Outside;
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::eventually::eventually;
use ringscope_tests::frames;
use ringscope_tests::lan::{EVERYONE, Lan, frame, guest_table, station};
use ringscope_tests::packets;

const SOON: Duration = Duration::from_secs(5);

#[test]
fn guests_with_datapaths_of_their_own_share_a_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let keys = [
        "datapath = 'reflect'",
        "datapath = 'null:rx=100'\npoll = 'never'",
        "datapath = 'switch:lan'",
    ];
    let config: Vec<_> =
        (0..).zip(keys).map(|(n, keys)| guest_table(directory.path(), n, keys)).collect();
    let mut daemon = Daemon::start_with_config(directory.path(), "vm0", &config.concat()).unwrap();
    let connect = |n| {
        let path = directory.path().join(format!("vm{n}.sock"));
        Guest::connect(path, GuestOptions::default()).unwrap()
    };
    let [mut reflected, mut fed, _alone] = [0, 1, 2].map(connect);
    frames::come_back(&mut reflected).unwrap();
    assert_eq!(fed.pair(0).receive_within(SOON).unwrap().unwrap().bytes.len(), 100);
    // One guest that goes, or breaks its ring, is its own business.
    fed.disconnect();
    frames::come_back(&mut reflected).unwrap();
    daemon.expect_log("vm1: the front end is gone");
    let log = daemon.log();
    assert!(!log.contains("vm0: the front end is gone"), "{log}");
    assert_eq!(
        daemon.terminate(Duration::from_secs(2)).unwrap().code(),
        Some(0),
        "{}",
        daemon.log()
    );
    for n in 0..3 {
        assert!(!directory.path().join(format!("vm{n}.sock")).exists());
    }
}

#[test]
fn a_guest_that_cannot_be_set_up_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let start = |last: &str| {
        let keys = ["datapath = 'reflect'", "datapath = 'switch:lan'", last];
        let tables =
            keys.iter().enumerate().map(|(n, keys)| guest_table(directory.path(), n, keys));
        let path = directory.path().join("guests.toml");
        std::fs::write(&path, tables.collect::<String>()).unwrap();
        let mut command = Command::new(program("ringscoped").unwrap());
        command.arg("--config").arg(&path).arg("--run-dir").arg(directory.path());
        let output = command.output().unwrap();
        let left: Vec<_> =
            directory.path().read_dir().unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, ["guests.toml"]);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, error) = start("datapath = 'tap:ifname=rs-none'");
    let last = error.lines().last().unwrap();
    assert!(
        code == Some(1) && last.contains("guest 'vm2': no network interface 'rs-none'"),
        "{error}"
    );
    let (code, error) = start("datapath = 'switch:lan'\npoll = 'never'");
    let expected =
        "guests.toml: one worker serves all guests of switch 'lan': expected the same poll";
    assert!(code == Some(2) && error.contains(expected), "{error}");
    let (code, error) = start("datapath = 'mirror'");
    let expected = "guests.toml: guest 3: invalid value 'mirror' for '--datapath <SPEC>'";
    assert!(code == Some(2) && error.contains(expected), "{error}");
}

#[test]
fn the_example_of_the_guide_runs() {
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("example").unwrap();
    let mut example = include_str!("../../backend/examples/two-guests.toml")
        .replace("/run/ringscope", directory.path().to_str().unwrap());
    for name in ["tap0", "tap1"] {
        example = example.replace(name, &outside.add_tap(1).unwrap());
    }
    let mut daemon = Daemon::start_with_config(directory.path(), "vm0", &example).unwrap();
    let join = |n| {
        let path = directory.path().join(format!("vm{n}.sock"));
        Guest::connect(path, GuestOptions::default()).unwrap()
    };
    let mut guests = [0, 1, 2].map(join);
    // The address that the example gives it.
    let sent = frame(EVERYONE, [0x52, 0x54, 0, 0, 0, 0x10], 1, 100);
    assert!(guests[0].pair(0).send(&sent).unwrap());
    // The third one is on the same bridge, though not on the switch.
    for guest in &mut guests[1..] {
        assert_eq!(guest.pair(0).receive_within(SOON).unwrap().unwrap().bytes, sent);
    }
    assert!(directory.path().join("apart.trace").exists());
    assert_eq!(daemon.terminate(SOON).unwrap().code(), Some(0), "{}", daemon.log());
}

#[test]
fn the_uplink_joins_the_guests_to_the_world_outside() {
    let modern = GuestOptions::default();
    let legacy = modern.clone().version_1(false).mergeable(false);
    let kinds = [modern.clone().packed(true), legacy, modern.offloads()];
    for poll in ["never", "adaptive"] {
        let mut bridged = Outside::new("uplink").unwrap();
        let tap = bridged.add_tap(1).unwrap();
        reach_outside(&format!("tap:ifname={tap}"), &kinds, poll);
        reach_outside(&format!("tap:ifname={tap},engine=uring"), &kinds, poll);
        let wired = Outside::on_wire("uplink", 2).unwrap();
        let wire = wired.wire();
        reach_outside(&format!("af-xdp:ifname={wire}"), &kinds, poll);
        let name = format!("rcu{}", std::process::id());
        let macvtap = format!("macvtap:ifname={name},over={wire},mode=passthru");
        reach_outside(&macvtap, &kinds, poll);
    }
}

/// Each guest finds the outside host through the uplink, and the other guests without it.
fn reach_outside(uplink: &str, guests: &[GuestOptions], poll: &str) {
    let datapath = format!("switch:lan,uplink={uplink}");
    let mut lan = Lan::with_datapath(&datapath, guests, &format!("poll = '{poll}'"));
    lan.introduce();
    let outside: Ipv4Addr = Outside::ADDRESS.parse().unwrap();
    for n in 0..guests.len() {
        let own = Ipv4Addr::new(10, 77, 0, 10 + u8::try_from(n).unwrap());
        lan.send(n, &packets::arp_request(station(n), own, outside));
        let host = await_one(&mut lan, n, packets::arp_reply);
        for sequence in 0..50 {
            let payload = frames::frame(sequence.into(), 10 + 25 * usize::from(sequence));
            let question =
                packets::echo_request((station(n), host), (own, outside), sequence, &payload);
            lan.send(n, &question);
            await_one(&mut lan, n, |frame| {
                packets::echo_reply(frame).filter(|it| *it == (sequence, &payload)).map(|_| ())
            });
        }
    }
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let sent = frame(station(to), station(from), 7, 300);
        lan.send(from, &sent);
        await_one(&mut lan, to, |came| (came == sent).then_some(()));
    }
}

/// What `wanted` makes of the first frame that it wants, of those that guest `n` receives.
fn await_one<T>(lan: &mut Lan, n: usize, wanted: impl Fn(&[u8]) -> Option<T>) -> T {
    eventually(SOON, &format!("a frame for guest {n}"), || {
        let came = lan.pair(n).receive_within(Duration::from_millis(100)).unwrap();
        came.and_then(|came| wanted(&came.bytes)).ok_or_else(|| lan.daemon.log())
    })
}

#[test]
fn an_uplink_that_is_gone_costs_no_cpu_and_no_guest() {
    let mut outside = Outside::new("upgone").unwrap();
    let tap = outside.add_tap(1).unwrap();
    let datapath = format!("switch:lan,uplink=tap:ifname={tap}");
    let mut lan =
        Lan::with_datapath(&datapath, &vec![GuestOptions::default(); 2], "poll = 'never'");
    lan.introduce();
    assert!(Command::new("ip").args(["link", "del", &tap]).status().unwrap().success());
    lan.introduce();
    std::thread::sleep(Duration::from_millis(100));
    let before = lan.daemon.cpu_time();
    std::thread::sleep(Duration::from_secs(1));
    assert!(lan.daemon.cpu_time() - before <= Duration::from_millis(20), "it spins");
    lan.introduce();
    assert_eq!(lan.daemon.terminate(Duration::from_secs(1)).unwrap().code(), Some(0));
}
