//! What a guest or its front end has the daemon log: some lines at once, then one a second.

use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use frontend::{Guest, GuestOptions};
use lab::outside::Outside;
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::frames;
use ringscope_tests::lan::guest_table;

const SOON: Duration = Duration::from_secs(5);
const REFLECT: [&str; 2] = ["--datapath", "reflect"];
/// How often each abuse is repeated. Each time causes a line, or several.
const TIMES: usize = 300;
/// Lines that may come at once (`LINES_AT_ONCE` of `log-limit`).
const AT_ONCE: usize = 10;

/// `abuse` has the daemon log little, the number of lines left out included.
fn expect_few_lines(daemon: &Daemon, abuse: impl FnOnce()) {
    let (before, begun) = (daemon.log().lines().count(), Instant::now());
    abuse();
    let log = daemon.log();
    let lines = log.lines().count() - before;
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap() + 1;
    assert!(lines <= AT_ONCE + seconds, "{lines} lines in {seconds} s");
    assert!(lines >= 5, "{lines} lines");
    eventually(SOON, "the number of lines left out", || {
        // A further line, once a second has passed.
        drop(UnixStream::connect(daemon.socket()));
        let log = daemon.log();
        when(log.contains(" lines left out)"), log)
    });
}

/// Stops a split ring and makes more chains available in it than it has descriptors: it breaks when it is started.
fn stop_and_spoil(guest: &mut Guest, ring: u16) {
    let base = guest.stop_ring(ring).unwrap();
    let setup = guest.ring(ring).driver().setup();
    let index = base.wrapping_add(setup.size + 1);
    // Virtio 1.2, 2.7.6: `idx` follows the flags.
    guest.memory().guest().write(setup.driver_area + 2, &index.to_le_bytes()).unwrap();
}

#[test]
fn a_ring_that_breaks_again_and_again_fills_no_log() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_limited(directory.path(), "vm", &REFLECT).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    stop_and_spoil(&mut guest, 1);
    expect_few_lines(&daemon, || {
        for _ in 0..TIMES {
            guest.start_ring(1).unwrap();
            assert!(guest.ring(1).gave_up(Duration::from_secs(2)).unwrap());
            guest.stop_ring(1).unwrap();
        }
        // Of further front ends of a socket that is in use, only the first one is logged.
        guest.disconnect();
    });
}

#[test]
fn each_queue_pair_of_a_worker_has_its_own_line() {
    let options = GuestOptions::default().queue_pairs(2);
    let directory = tempfile::tempdir().unwrap();
    let pairs = ["--queue-pairs", "2"];
    let daemon =
        Daemon::start_limited(directory.path(), "vm", &[&REFLECT[..], &pairs].concat()).unwrap();
    let mut guest = Guest::connect(daemon.socket(), options.clone()).unwrap();
    for ring in [1, 3] {
        stop_and_spoil(&mut guest, ring);
        guest.start_ring(ring).unwrap();
        assert!(guest.ring(ring).gave_up(SOON).unwrap());
        daemon.expect_log(&format!("queue {ring} stops, because the guest broke it"));
    }
    // A wire that fails is logged for each pair, too, although both fail in the same turn.
    let directory = tempfile::tempdir().unwrap();
    let failing = ["--datapath", "null:rx=60", "--fault", "error:rx.EIO"];
    let daemon =
        Daemon::start_limited(directory.path(), "vm", &[&failing[..], &pairs].concat()).unwrap();
    let _guest = Guest::connect(daemon.socket(), options).unwrap();
    for pair in [0, 1] {
        daemon.expect_log(&format!("queue pair {pair}: cannot read its datapath"));
    }
}

#[test]
fn connections_in_a_row_fill_no_log() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_limited(directory.path(), "vm", &REFLECT).unwrap();
    expect_few_lines(&daemon, || {
        for _ in 0..TIMES {
            drop(UnixStream::connect(daemon.socket()).unwrap());
        }
        // They are taken one after the other.
        Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    });
}

#[test]
fn refused_messages_fill_no_log() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_limited(directory.path(), "vm", &REFLECT).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    expect_few_lines(&daemon, || {
        for _ in 0..TIMES {
            guest.link().unwrap().set_size(1, 0).unwrap_err();
        }
        guest.disconnect();
    });
}

#[test]
fn enabling_and_disabling_a_ring_on_af_xdp_fills_no_log() {
    let outside = Outside::on_wire("lines", 1).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let datapath = format!("af-xdp:ifname={}", outside.wire());
    let daemon = Daemon::start_limited(directory.path(), "vm", &["--datapath", &datapath]).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    expect_few_lines(&daemon, || {
        let link = guest.link().unwrap();
        for _ in 0..TIMES {
            link.enable(0, false).unwrap();
            link.enable(0, true).unwrap();
        }
        sleep(Duration::from_secs(1));
        link.enable(0, false).unwrap();
        guest.disconnect();
    });
}

#[test]
fn one_guests_noise_hides_no_line_of_another() {
    let directory = tempfile::tempdir().unwrap();
    let config: String =
        (0..2).map(|n| guest_table(directory.path(), n, "datapath = 'reflect'")).collect();
    let daemon = Daemon::start_limited_with_config(directory.path(), "vm0", &config).unwrap();
    for _ in 0..TIMES {
        drop(UnixStream::connect(daemon.socket()).unwrap());
    }
    let mut quiet =
        Guest::connect(directory.path().join("vm1.sock"), GuestOptions::default()).unwrap();
    frames::come_back(&mut quiet).unwrap();
    assert!(daemon.log().contains("vm1: a front end is connected"), "{}", daemon.log());
    quiet.disconnect();
    daemon.expect_log("vm1: the front end is gone");
}
