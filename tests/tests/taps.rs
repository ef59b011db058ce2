//! The tap in its variants: what goes in comes out, in order, and an interface that is down costs what it must.

use std::fs;
use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::Duration;

use burst_trace::DropCause;
use frontend::{Guest, GuestOptions};
use lab::outside::Outside;
use ringscope_tests::cable::ip;
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::frames;
use ringscope_tests::pings::{self, Pinger};
use ringscope_tests::trace::Trace;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

const SOON: Duration = Duration::from_secs(1);
const VARIANTS: [&str; 4] = ["", ",napi=on", ",engine=uring", ",napi=on,engine=uring"];

#[test]
fn every_variant_carries_every_frame_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("variants").unwrap();
    for variant in VARIANTS {
        let tap = outside.add_tap(1).unwrap();
        let datapath = format!("tap:ifname={tap}{variant}");
        for (poll, options) in [
            ("never", GuestOptions::default()),
            ("adaptive", GuestOptions::default().packed(true).in_order(true)),
            // A frame needs up to six buffers; a ring runs out of them.
            ("always", GuestOptions { buffer_len: 300, ..GuestOptions::default().queue_size(64) }),
            ("adaptive", GuestOptions::default().mergeable(false).version_1(false)),
        ] {
            let arguments = ["--datapath", &datapath, "--poll", poll];
            let mut daemon = Daemon::start(directory.path(), "tap", &arguments).unwrap();
            let mut guest = Guest::connect(daemon.socket(), options).unwrap();
            pings::exchange(&mut guest, Pinger::MAC, directory.path(), "tap");
            assert!(daemon.terminate(SOON).unwrap().success(), "{}", daemon.log());
        }
    }
}

#[test]
fn two_queues_of_a_tap_go_through_rings_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("queues").unwrap();
    let datapath = format!("tap:ifname={},engine=uring", outside.add_tap(2).unwrap());
    let arguments = ["--datapath", &datapath, "--queue-pairs", "2", "--cpus", "0,1"];
    let mut daemon = Daemon::start(directory.path(), "two", &arguments).unwrap();
    // The second pair is never started: the kernel must send it nothing.
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    pings::exchange(&mut guest, Pinger::MAC, directory.path(), "two");
    assert!(daemon.terminate(SOON).unwrap().success(), "{}", daemon.log());
}

#[test]
fn another_process_with_a_queue_of_the_tap_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("shared").unwrap();
    let datapath = format!("tap:ifname={}", outside.add_tap(2).unwrap());
    let first = Daemon::start(directory.path(), "first", &["--datapath", &datapath]).unwrap();
    // This process holds the queue now, and is no ringscoped.
    let _queue = opened_by(&first, "/dev/net/tun");
    drop(first);
    let second = Daemon::start(directory.path(), "second", &["--datapath", &datapath]).unwrap();
    second.expect_log(&format!("process {} (", std::process::id()));
}

#[test]
fn frames_from_before_a_guest_came_are_discarded_and_counted() {
    const OLD: u64 = 30;
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("old").unwrap();
    for variant in ["", ",engine=uring"] {
        let datapath = format!("tap:ifname={}{variant}", outside.add_tap(1).unwrap());
        let daemon = Daemon::start(directory.path(), "old", &["--datapath", &datapath]).unwrap();
        outside.exec("ip neigh replace 10.77.0.2 lladdr 52:54:00:00:00:02 dev eth0").unwrap();
        let send = |count, text| {
            let line =
                format!("for n in $(seq {count}); do echo {text} >/dev/udp/10.77.0.2/9; done");
            outside.exec(&format!("bash -c '{line}'")).unwrap();
        };
        // The second guest finds what came after the first had gone.
        for round in 1..=2 {
            send(OLD, "old");
            let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
            eventually(SOON, "old frames to be discarded", || {
                let discarded = daemon.reader().unwrap().drops(0, DropCause::RxStopped);
                when(discarded >= OLD * round, discarded)
            });
            send(1, "new");
            let frame =
                eventually(SOON, "a new frame", || guest.pair(0).receive().unwrap().ok_or("none"));
            assert!(frame.bytes.ends_with(b"new\n"), "{variant} {round}: {frame:?}");
            guest.stop_ring(1).unwrap();
            guest.stop_ring(0).unwrap();
        }
    }
}

/// What the daemon opened as the device `path`.
fn opened_by(daemon: &Daemon, path: &str) -> OwnedFd {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    let of_path = |entry: &fs::DirEntry| {
        fs::read_link(entry.path()).is_ok_and(|target| target.to_str() == Some(path))
    };
    let entry = descriptors.map(Result::unwrap).find(of_path).expect("a descriptor of it");
    let number = entry.file_name().to_str().unwrap().parse().unwrap();
    let pid = Pid::from_raw(daemon.pid().try_into().unwrap()).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    pidfd_getfd(process, number, PidfdGetfdFlags::empty()).unwrap()
}

#[test]
fn a_tap_that_somebody_else_opened_is_used_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("handed").unwrap();
    for queues in [1, 2] {
        let datapath = format!("tap:ifname={}", outside.add_tap(queues).unwrap());
        let opener = Daemon::start(directory.path(), "opener", &["--datapath", &datapath]).unwrap();
        let tap = opened_by(&opener, "/dev/net/tun");
        drop(opener);
        for datapath in ["tap:fd=9", "tap:fd=9,engine=uring"] {
            let tap = tap.try_clone().unwrap();
            let arguments = ["--datapath", datapath];
            let mut daemon =
                Daemon::start_with(directory.path(), "handed", &arguments, tap).unwrap();
            let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
            pings::exchange(&mut guest, Pinger::MAC, directory.path(), "handed");
            assert!(daemon.terminate(SOON).unwrap().success(), "{}", daemon.log());
        }
    }
}

#[test]
fn a_handed_over_descriptor_that_is_no_tap_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |datapath: &str, path: &str| {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let started =
            Daemon::start_with(directory.path(), "no", &["--datapath", datapath], file.into());
        started.unwrap_err().to_string()
    };
    for (datapath, path, said) in [
        ("tap:fd=9", "/dev/null", "descriptor 9 is no tap's; expected an open tap"),
        ("tap:fd=9", "/dev/net/tun", "descriptor 9 is attached to no interface"),
        ("macvtap:fd=9", "/dev/net/tun", "descriptor 9 is no macvtap's"),
        ("tap:fd=19", "/dev/null", "descriptor 19 is Bad file descriptor"),
    ] {
        let text = refused(datapath, path);
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn a_tap_that_is_down_costs_frames_with_a_cause_and_carries_again_when_it_is_up() {
    const LOST: usize = 20;
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("down").unwrap();
    for variant in VARIANTS {
        let tap = outside.add_tap(1).unwrap();
        let datapath = format!("tap:ifname={tap}{variant}");
        let arguments = ["--datapath", &datapath, "--poll", "never"];
        let mut daemon = Daemon::start(directory.path(), "down", &arguments).unwrap();
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
        for round in 1..=2 {
            ip(&format!("link set {tap} down"));
            for n in 0..LOST {
                assert!(guest.pair(0).queue(&frames::frame(n, 100)).unwrap());
            }
            guest.pair(0).flush().unwrap();
            sleep(Duration::from_millis(50));
            let trace = Trace::open(directory.path(), "down");
            assert_eq!(trace.drops(1, DropCause::TxLinkDown), (round * LOST) as u64, "{variant}");
            ip(&format!("link set {tap} up"));
            pinger.ping_all(guest.pair(0), 20);
        }
        assert!(daemon.terminate(SOON).unwrap().success(), "{}", daemon.log());
    }
}

#[test]
fn a_tap_that_is_removed_and_made_again_is_served_by_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("again").unwrap();
    for (variant, queues) in [("", 1), (",engine=uring", 1), (",napi=on", 2)] {
        let tap = outside.add_tap(queues).unwrap();
        let datapath = format!("tap:ifname={tap}{variant}");
        let (pairs, poll) = (queues.to_string(), if queues == 1 { "never" } else { "adaptive" });
        let arguments = ["--datapath", &datapath, "--queue-pairs", &pairs, "--poll", poll];
        let mut daemon = Daemon::start(directory.path(), "again", &arguments).unwrap();
        // With two queues, the second one is served by nobody at first.
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        for round in 1..=2 {
            Pinger::new(guest.pair(0), Pinger::MAC).ping_all(guest.pair(0), 20);
            ip(&format!("link del {tap}"));
            let mut expect = |text: &str| {
                eventually(5 * SOON, text, || {
                    // The kernel may wake up nobody when the tap goes; the daemon then hears of it from the guest's frames.
                    let _ = guest.pair(0).send(&frames::frame(1, 60)).unwrap();
                    let _ = guest.pair(0).reap().unwrap();
                    let log = daemon.log();
                    when(log.matches(text).count() == round, log)
                });
            };
            expect("is gone; it is served again when");
            outside.make_tap(&tap, queues).unwrap();
            expect("is there again, and is served");
        }
        Pinger::new(guest.pair(0), Pinger::MAC).ping_all(guest.pair(0), 20);
        // A guest that comes while it is gone finds it when it is there, on each of its queues.
        guest.disconnect();
        ip(&format!("link del {tap}"));
        let options = GuestOptions::default().queue_pairs(queues);
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        outside.make_tap(&tap, queues).unwrap();
        eventually(5 * SOON, "each queue to be served", || {
            let log = daemon.log();
            when(
                log.matches("is there again, and is served").count() == 2 + usize::from(queues),
                log,
            )
        });
        guest.disconnect();
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        Pinger::new(guest.pair(0), Pinger::MAC).ping_all(guest.pair(0), 20);
        assert!(daemon.terminate(SOON).unwrap().success(), "{}", daemon.log());
    }
}

#[test]
fn a_tap_with_another_name_or_that_came_back_from_another_namespace_is_served_on() {
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("other").unwrap();
    for queues in [1, 2] {
        let tap = outside.add_tap(queues).unwrap();
        let arguments = ["--datapath", &format!("tap:ifname={tap}")];
        let mut daemon = Daemon::start(directory.path(), "other", &arguments).unwrap();
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        Pinger::new(guest.pair(0), Pinger::MAC).ping_all(guest.pair(0), 20);
        let other = format!("{tap}b");
        ip(&format!("link set {tap} name {other}"));
        Pinger::new(guest.pair(0), Pinger::MAC).ping_all(guest.pair(0), 20);
        let namespace = outside.namespace();
        ip(&format!("link set {other} netns {namespace}"));
        ip(&format!("-n {namespace} link set {other} netns 1 name {tap}"));
        outside.join(&tap).unwrap();
        Pinger::new(guest.pair(0), Pinger::MAC).ping_all(guest.pair(0), 20);
        // The queue of a guest that is gone, and of one that comes.
        guest.disconnect();
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        Pinger::new(guest.pair(0), Pinger::MAC).ping_all(guest.pair(0), 20);
        assert!(!daemon.log().contains("is gone; it is served"), "{}", daemon.log());
        assert!(daemon.terminate(SOON).unwrap().success(), "{}", daemon.log());
    }
}

#[test]
fn a_tap_that_is_removed_under_traffic_leaves_a_worker_that_idles() {
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("gone").unwrap();
    for variant in VARIANTS {
        let tap = outside.add_tap(1).unwrap();
        let datapath = format!("tap:ifname={tap}{variant}");
        let mut daemon =
            Daemon::start(directory.path(), "gone", &["--datapath", &datapath]).unwrap();
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
        pinger.ping_burst(guest.pair(0), 20);
        ip(&format!("link del {tap}"));
        let mut sent = pinger.sent.len() as u64;
        for n in 0..100 {
            sent += u64::from(guest.pair(0).send(&frames::frame(n, 200)).unwrap());
        }
        sleep(Duration::from_millis(100));
        let before = daemon.cpu_time();
        sleep(Duration::from_secs(1));
        assert!(daemon.cpu_time() - before <= Duration::from_millis(20), "{variant}: it spins");
        daemon.expect_log("is gone; it is served again when there is one of this name");
        let trace = Trace::open(directory.path(), "gone");
        assert_eq!(trace.packets(1) + trace.drops(1, DropCause::TxLinkDown), sent, "{variant}");
        assert!(trace.drops(1, DropCause::TxLinkDown) >= 100, "{variant}");
        assert!(daemon.is_alive(), "{}", daemon.log());
        guest.stop_ring(0).unwrap();
        assert!(daemon.terminate(SOON).unwrap().success(), "{}", daemon.log());
    }
}
