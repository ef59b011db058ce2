//! A new daemon takes over guests on taps, macvtaps and interfaces with AF_XDP sockets under load: the interface stays as it is,
//! and no frame is lost.
//!
//! `RINGSCOPE_TAKE_OVERS` is the number of take-overs of each.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use frontend::{Guest, GuestOptions};
use lab::outside::Outside;
use ringscope_tests::cable::{Cable, address};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::frames;
use ringscope_tests::packets::Mac;
use ringscope_tests::pings::Pinger;
use ringscope_tests::take_over::{expect_short, gap, message, read, take_overs};

const SOON: Duration = Duration::from_secs(5);

/// Pings all the time while daemons take over, three times if not more. Each ping must be answered, in order. Returns the last
/// daemon.
fn take_over_again(mut daemon: Daemon, guest: &mut Guest, mac: Mac, arguments: &[&str]) -> Daemon {
    let mut pinger = Pinger::new(guest.pair(0), mac);
    let mut gaps = Vec::new();
    for _ in 0..take_overs(3) {
        let next = std::thread::scope(|scope| {
            let next = scope.spawn(|| daemon.successor(arguments).unwrap());
            while !next.is_finished() {
                pinger.ping_burst(guest.pair(0), 20);
            }
            next.join().unwrap()
        });
        (0..10).for_each(|_| pinger.ping_burst(guest.pair(0), 20));
        assert_eq!(daemon.wait(SOON).unwrap().code(), Some(0), "{}", daemon.log());
        gaps.push(gap(&next.log()));
        daemon = next;
    }
    expect_short(&arguments.join(" "), gaps);
    daemon
}

/// What would change if an interface went down, or were created again.
fn state(interface: &str) -> String {
    let read = |name: &str| fs::read_to_string(format!("/sys/class/net/{interface}/{name}"));
    ["ifindex", "carrier_changes", "carrier"].map(|name| read(name).unwrap()).concat()
}

#[test]
fn a_tap_stays_up() {
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("takeover").unwrap();
    for (queues, engine) in [(1, ""), (2, ""), (1, ",engine=uring"), (2, ",engine=uring")] {
        let tap = outside.add_tap(queues).unwrap();
        let datapath = format!("tap:ifname={tap}{engine}");
        let pairs = queues.to_string();
        let arguments = ["--datapath", &datapath, "--queue-pairs", &pairs];
        let daemon = Daemon::start(directory.path(), "tap", &arguments).unwrap();
        let options = GuestOptions::default().packed(queues == 2);
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        let before = state(&tap);
        let mut daemon = take_over_again(daemon, &mut guest, Pinger::MAC, &arguments);
        assert_eq!(state(&tap), before);
        assert!(daemon.terminate(SOON).unwrap().success(), "{}", daemon.log());
    }
}

#[test]
fn a_macvtap_that_a_daemon_made_goes_with_the_last_one() {
    const MAC: Mac = [0x52, 0x54, 0, 0, 0, 9];
    let directory = tempfile::tempdir().unwrap();
    let cable = Cable::new();
    let name = cable.free_name();
    let datapath = format!("macvtap:ifname={name},over={}", cable.interface());
    let arguments = ["--datapath", &datapath, "--mac", "52:54:00:00:00:09"];
    let daemon = Daemon::start(directory.path(), "mv", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let before = state(&name);
    let mut daemon = take_over_again(daemon, &mut guest, MAC, &arguments);
    assert_eq!(state(&name), before);
    // A new daemon that fails removes nothing.
    let other =
        [&arguments[..2], &["--mac", "52:54:00:00:00:09", "--features=-event_idx"]].concat();
    daemon.successor(&other).unwrap_err();
    assert_eq!(state(&name), before);
    assert!(daemon.terminate(SOON).unwrap().success(), "{}", daemon.log());
    assert_eq!(address(&name), None, "it is removed");
}

#[test]
fn a_macvtap_that_was_there_stays() {
    let directory = tempfile::tempdir().unwrap();
    let cable = Cable::new();
    let (name, mac) = cable.add_macvtap();
    let datapath = format!("macvtap:ifname={name}");
    let arguments = ["--datapath", &datapath];
    let daemon = Daemon::start(directory.path(), "mv", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default().packed(true)).unwrap();
    let mut daemon = take_over_again(daemon, &mut guest, mac, &arguments);
    // Nobody else may serve it meanwhile.
    let error = Daemon::start(directory.path(), "other", &arguments).unwrap_err().to_string();
    assert!(error.contains(&format!("is served by process {}", daemon.pid())), "{error}");
    assert!(daemon.terminate(SOON).unwrap().success(), "{}", daemon.log());
    assert_eq!(address(&name), Some(mac));
}

/// Segmentation at the far end, and the frames that came there.
fn far_end(outside: &Outside) -> (String, u64) {
    let segmentation = outside.exec("ethtool -k eth0 | grep ^tcp-segmentation-offload").unwrap();
    let frames = outside.exec("cat /sys/class/net/eth0/statistics/rx_packets").unwrap();
    (segmentation.trim().to_owned(), frames.trim().parse().unwrap())
}

/// Sends all the time while a daemon takes over. Returns the daemon, and the number of frames.
fn take_over_flood(mut old: Daemon, guest: &mut Guest, arguments: &[&str]) -> (Daemon, u64) {
    let mut sent = 0;
    let mut send = |guest: &mut Guest| {
        while guest.pair(0).queue(&frames::frame(1, 64 + sent % 1400)).unwrap() {
            sent += 1;
        }
        guest.pair(0).flush().unwrap();
    };
    let daemon = std::thread::scope(|scope| {
        let next = scope.spawn(|| old.successor(arguments).unwrap());
        while !next.is_finished() {
            send(guest);
        }
        next.join().unwrap()
    });
    (0..100).for_each(|_| send(guest));
    assert_eq!(old.wait(SOON).unwrap().code(), Some(0), "{}", old.log());
    (daemon, sent as u64)
}

#[test]
fn an_interface_keeps_its_program_and_its_sockets() {
    let directory = tempfile::tempdir().unwrap();
    // The guest has one queue pair, and all queues of the interface.
    for (keys, queues) in [("", 1), (",mode=generic", 1), ("", 2), (",busy-poll=on", 1)] {
        let outside = Outside::on_wire("takeover", queues).unwrap();
        let datapath = format!("af-xdp:ifname={}{keys}", outside.wire());
        let arguments = ["--datapath", &datapath];
        let (off, _) = far_end(&outside);
        let daemon = Daemon::start(directory.path(), "xdp", &arguments).unwrap();
        let options = GuestOptions::default().packed(queues == 2);
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        let before = (state(outside.wire()), far_end(&outside).0);
        let daemon = take_over_again(daemon, &mut guest, Pinger::MAC, &arguments);
        assert_eq!((state(outside.wire()), far_end(&outside).0), before, "{keys}");
        // What is in the rings and in the kernel goes on, too.
        let (_, came) = far_end(&outside);
        let (mut daemon, sent) = take_over_flood(daemon, &mut guest, &arguments);
        eventually(SOON, "all frames at the far end", || {
            let now = far_end(&outside).1 - came;
            when(now == sent, format!("{now} of {sent}"))
        });
        assert!(sent > 1000, "{sent} frames");
        let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
        pinger.ping_all(guest.pair(0), 20);
        assert!(daemon.terminate(SOON).unwrap().success(), "{}", daemon.log());
        assert_eq!(far_end(&outside).0, off, "{keys}");
    }
}

/// Whether the program stamps frames is the new daemon's choice, when it has the interface.
#[test]
fn the_program_stamps_frames_if_the_new_daemon_traces() {
    let directory = tempfile::tempdir().unwrap();
    let outside = Outside::on_wire("takeover", 1).unwrap();
    let datapath = format!("af-xdp:ifname={}", outside.wire());
    let mut daemon = Daemon::start(directory.path(), "xdp", &["--datapath", &datapath]).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    for trace in ["off", "on", "off"] {
        let arguments = ["--datapath", &datapath, "--trace", trace];
        daemon = take_over_again(daemon, &mut guest, Pinger::MAC, &arguments);
        assert!(!daemon.log().contains("the XDP program stays"), "{}", daemon.log());
    }
}

#[test]
fn a_take_over_that_fails_leaves_the_sockets_as_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let outside = Outside::on_wire("takeover", 1).unwrap();
    let datapath = format!("af-xdp:ifname={}", outside.wire());
    let arguments = ["--datapath", &datapath];
    let daemon = Daemon::start(directory.path(), "xdp", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
    let socket = daemon.socket().display().to_string();
    let hello = format!(
        "{{\"hello\":{{\"program\":\"test\",\"guests\":[{{\"name\":\"xdp\",\"datapath\":\"{datapath}\",\"queue_pairs\":1,\
         \"endpoint\":\"--socket-path {socket}\"}}]}}}}"
    );
    for _ in 0..3 {
        let door = directory.path().join("xdp.take-over");
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let mut other = UnixStream::connect(&door).unwrap();
                other.write_all(&message(2, &hello)).unwrap();
                assert!(read(&mut other).contains("estate"));
                other.write_all(&message(2, "\"ready\"")).unwrap();
                assert!(read(&mut other).contains("start"));
            });
            while !other.is_finished() {
                pinger.ping_burst(guest.pair(0), 20);
            }
            other.join().unwrap();
        });
        (0..10).for_each(|_| pinger.ping_burst(guest.pair(0), 20));
        // The daemon pauses after such an attempt.
        std::thread::sleep(Duration::from_millis(150));
    }
    assert_eq!(daemon.log().matches("it ended before it served the guests").count(), 3);
}

#[test]
fn sockets_that_send_from_guest_memory_are_refused_before_anything_changes() {
    let directory = tempfile::tempdir().unwrap();
    let outside = Outside::on_wire("takeover", 1).unwrap();
    let datapath = format!("af-xdp:ifname={},umem=guest", outside.wire());
    let arguments = ["--datapath", &datapath];
    let daemon = Daemon::start(directory.path(), "xdp", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
    let error = daemon.successor(&arguments).unwrap_err().to_string();
    assert!(error.contains("umem=guest"), "{error}");
    pinger.ping_all(guest.pair(0), 20);
}
