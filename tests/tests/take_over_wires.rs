//! A new daemon takes over guests on taps and macvtaps under load: the interface stays as it is, and no frame is lost.

use std::fs;
use std::time::Duration;

use frontend::{Guest, GuestOptions};
use lab::outside::Outside;
use ringscope_tests::cable::{Cable, address};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::packets::Mac;
use ringscope_tests::pings::Pinger;

const SOON: Duration = Duration::from_secs(5);

/// Pings all the time while daemons take over. Each ping must be answered, in order. Returns the last daemon.
fn take_over_thrice(mut daemon: Daemon, guest: &mut Guest, mac: Mac, arguments: &[&str]) -> Daemon {
    let mut pinger = Pinger::new(guest.pair(0), mac);
    for _ in 0..3 {
        let next = std::thread::scope(|scope| {
            let next = scope.spawn(|| daemon.successor(arguments).unwrap());
            while !next.is_finished() {
                pinger.ping_burst(guest.pair(0), 20);
            }
            next.join().unwrap()
        });
        (0..10).for_each(|_| pinger.ping_burst(guest.pair(0), 20));
        assert_eq!(daemon.wait(SOON).unwrap().code(), Some(0), "{}", daemon.log());
        daemon = next;
    }
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
        let mut daemon = take_over_thrice(daemon, &mut guest, Pinger::MAC, &arguments);
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
    let mut daemon = take_over_thrice(daemon, &mut guest, MAC, &arguments);
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
    let mut daemon = take_over_thrice(daemon, &mut guest, mac, &arguments);
    // Nobody else may serve it meanwhile.
    let error = Daemon::start(directory.path(), "other", &arguments).unwrap_err().to_string();
    assert!(error.contains(&format!("is served by process {}", daemon.pid())), "{error}");
    assert!(daemon.terminate(SOON).unwrap().success(), "{}", daemon.log());
    assert_eq!(address(&name), Some(mac));
}
