//! The daemon reflects frames: to a guest in software, and to DPDK's driver.

use std::thread::sleep;
use std::time::Duration;

use frontend::{Guest, GuestOptions};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::dpdk::{GuestShape, Testpmd};
use ringscope_tests::frames;

const POLLS: [&str; 3] = ["never", "adaptive", "always"];

#[test]
fn every_frame_comes_back_whatever_was_negotiated_and_however_it_polls() {
    let directory = tempfile::tempdir().unwrap();
    for poll in POLLS {
        let arguments = ["--datapath", "reflect", "--poll", poll];
        let mut daemon = Daemon::start(directory.path(), poll, &arguments).unwrap();
        for options in frames::guests() {
            let mut guest = Guest::connect(daemon.socket(), options.clone()).unwrap();
            assert_eq!(guest.features().0 & !(1 << 5), options.features & !(1 << 5 | 1 << 22));
            frames::come_back(&mut guest).unwrap();
            // Stop by the book: the next guest is not a second one then.
            guest.stop_ring(0).unwrap();
            guest.disconnect();
            sleep(Duration::from_millis(20));
        }
        assert!(daemon.is_alive(), "{}", daemon.log());
    }
}

#[test]
fn guests_stop_reboot_and_come_back_on_two_queue_pairs() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect", "--queue-pairs", "2"];
    let mut daemon = Daemon::start(directory.path(), "two", &arguments).unwrap();
    let options = GuestOptions::default().queue_pairs(2).queue_size(128);
    let mut guest = Guest::connect(daemon.socket(), options).unwrap();
    frames::come_back(&mut guest).unwrap();
    guest.restart().unwrap();
    frames::come_back(&mut guest).unwrap();
    guest.reboot().unwrap();
    frames::come_back(&mut guest).unwrap();
    guest.disconnect();
    guest.reconnect(daemon.socket()).unwrap();
    frames::come_back(&mut guest).unwrap();
    assert!(daemon.is_alive(), "{}", daemon.log());
}

#[test]
fn a_ring_that_its_guest_breaks_is_given_up_alone_and_served_again_after_a_reset() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect", "--queue-pairs", "2"];
    let daemon = Daemon::start(directory.path(), "broken", &arguments).unwrap();
    let options = GuestOptions::default().queue_pairs(2).queue_size(128);
    let mut guest = Guest::connect(daemon.socket(), options).unwrap();
    // The first pair's transmit ring: a head that is no descriptor.
    let ring = guest.ring(1);
    ring.driver().offer_raw(128);
    ring.driver().publish();
    ring.kick_anyway().unwrap();
    assert!(ring.gave_up(Duration::from_secs(2)).unwrap(), "{}", daemon.log());
    assert!(daemon.log().contains("descriptor index 128 in a table of 128"), "{}", daemon.log());
    assert!(!guest.ring(3).gave_up(Duration::from_millis(50)).unwrap());
    guest.check_canaries().unwrap();
    guest.reboot().unwrap();
    frames::come_back(&mut guest).unwrap();
}

#[test]
fn a_guest_goes_on_with_a_daemon_that_was_killed_and_started_again() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect"];
    for event_index in [false, true] {
        let mut daemon = Daemon::start(directory.path(), "again", &arguments).unwrap();
        let options = GuestOptions::default().event_index(event_index);
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        for _ in 0..5 {
            frames::come_back(&mut guest).unwrap();
            drop(daemon);
            daemon = Daemon::start(directory.path(), "again", &arguments).unwrap();
            guest.reconnect(daemon.socket()).unwrap();
        }
        frames::come_back(&mut guest).unwrap();
    }
}

#[test]
fn dpdk_is_served_with_all_its_kinds_of_split_rings() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect", "--queue-pairs", "2"];
    let mut daemon = Daemon::start(directory.path(), "dpdk", &arguments).unwrap();
    for queue_pairs in [1, 2] {
        for (mrg_rxbuf, in_order) in [(false, false), (false, true), (true, false), (true, true)] {
            let shape = GuestShape { queue_pairs, mrg_rxbuf, in_order, ..GuestShape::default() };
            let mut guest = Testpmd::guest(daemon.socket(), &shape).unwrap();
            guest.start_with_bursts(1).unwrap();
            guest.statistics().unwrap();
            sleep(Duration::from_millis(500));
            let statistics = guest.statistics().unwrap();
            assert!(statistics.rx_pps > 10_000, "{shape:?} {statistics:?}");
            let flying = statistics.tx_packets - statistics.rx_packets;
            assert!(flying <= 64 * u64::from(queue_pairs), "{shape:?} {statistics:?}");
        }
    }
    assert!(daemon.is_alive(), "{}", daemon.log());
}
