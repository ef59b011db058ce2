//! The daemon reflects frames: to a guest in software, and to DPDK's driver.

use std::thread::sleep;
use std::time::Duration;

use frontend::{Guest, GuestOptions};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::dpdk::{GuestShape, Testpmd};
use ringscope_tests::eventually::{SOON, eventually, when};
use ringscope_tests::frames;

const POLLS: [&str; 3] = ["never", "adaptive", "always"];

#[test]
fn every_frame_comes_back_whatever_was_negotiated_and_however_it_polls() {
    let directory = tempfile::tempdir().unwrap();
    for poll in POLLS {
        let arguments = ["--datapath", "reflect", "--poll", poll];
        let mut daemon = Daemon::start(directory.path(), poll, &arguments).unwrap();
        for options in frames::guests().flat_map(|options| frames::formats(&options)) {
            let mut guest = Guest::connect(daemon.socket(), options.clone()).unwrap();
            assert_eq!(guest.features().0 & !(1 << 5), options.features & !(1 << 5 | 1 << 22));
            frames::come_back(&mut guest).unwrap();
            leave(&mut guest);
        }
        assert!(daemon.is_alive(), "{}", daemon.log());
    }
}

#[test]
fn guests_stop_reboot_and_come_back_on_two_queue_pairs() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect", "--queue-pairs", "2"];
    let mut daemon = Daemon::start(directory.path(), "two", &arguments).unwrap();
    for options in frames::formats(&GuestOptions::default().queue_pairs(2).queue_size(128)) {
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        frames::come_back(&mut guest).unwrap();
        guest.restart().unwrap();
        frames::come_back(&mut guest).unwrap();
        guest.reboot().unwrap();
        frames::come_back(&mut guest).unwrap();
        guest.disconnect();
        guest.reconnect(daemon.socket()).unwrap();
        frames::come_back(&mut guest).unwrap();
        leave(&mut guest);
    }
    assert!(daemon.is_alive(), "{}", daemon.log());
}

/// Leaves in order. A guest that comes while the daemon still lets go of this one tries again.
fn leave(guest: &mut Guest) {
    guest.stop_ring(0).unwrap();
    guest.disconnect();
}

#[test]
fn a_packed_ring_may_have_any_size() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "any", &["--datapath", "reflect"]).unwrap();
    for (size, in_order) in [(7, false), (7, true), (33, true), (1000, false), (1000, true)] {
        // From before the end of a lap whose wrap counter is 0.
        let start_index = 2 * size - 5;
        let options = GuestOptions { start_index, ..GuestOptions::default() };
        let options = options.queue_size(size).packed(true).in_order(in_order);
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        for _ in 0..5 {
            frames::come_back(&mut guest).unwrap();
            guest.restart().unwrap();
        }
        frames::come_back(&mut guest).unwrap();
        // Nothing is under way: what is used ends where what is available begins.
        let base = guest.link().unwrap().stop(1).unwrap();
        assert_eq!(base >> 16, base & 0xffff, "{base:#x}");
        leave(&mut guest);
    }
}

#[test]
fn rings_stop_and_start_in_the_middle_of_traffic_and_nothing_is_lost() {
    const FRAMES: usize = 48;
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "middle", &["--datapath", "reflect"]).unwrap();
    for options in frames::formats(&GuestOptions::default()) {
        let size = if options.features & 1 << 34 == 0 { 64 } else { 50 };
        let options = GuestOptions { start_index: u16::MAX - 20, ..options.queue_size(size) };
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        for round in 0..40 {
            let pair = guest.pair(0);
            for n in 0..FRAMES {
                assert!(pair.queue(&frames::frame(round + n, 60 + n)).unwrap(), "no room");
            }
            pair.flush().unwrap();
            guest.restart().unwrap();
            for n in 0..FRAMES {
                let came = guest.pair(0).receive_within(Duration::from_secs(5)).unwrap();
                let came = came.unwrap_or_else(|| panic!("frame {n} of round {round} is lost"));
                assert_eq!(came.bytes, frames::frame(round + n, 60 + n), "round {round}");
            }
            assert_eq!(guest.pair(0).receive().unwrap(), None, "a frame too many");
        }
        guest.check_canaries().unwrap();
        leave(&mut guest);
    }
}

#[test]
fn a_new_call_descriptor_is_signalled_what_the_one_before_missed() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "call", &["--datapath", "reflect"]).unwrap();
    for options in frames::formats(&GuestOptions::default()) {
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        frames::come_back(&mut guest).unwrap();
        guest.set_deaf(0, true).unwrap();
        let ring = guest.pair(0).receive_ring();
        let before = ring.drain_calls();
        ring.driver().enable_notification();
        assert!(guest.pair(0).send(&frames::frame(1, 60)).unwrap());
        let ring = guest.pair(0).receive_ring();
        eventually(SOON, "the frame to come back", || when(ring.driver().has_used(), "none"));
        // The burst is done with when its signal is, to nobody.
        sleep(Duration::from_millis(20));
        assert_eq!(ring.drain_calls(), before);
        guest.set_deaf(0, false).unwrap();
        let ring = guest.pair(0).receive_ring();
        eventually(SOON, "a signal", || when(ring.drain_calls() > before, "none"));
        assert_eq!(guest.pair(0).receive().unwrap().unwrap().bytes, frames::frame(1, 60));
        leave(&mut guest);
    }
}

#[test]
fn a_guest_goes_on_with_a_daemon_that_was_killed_and_started_again() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect"];
    let guests = [false, true].map(|has| GuestOptions::default().event_index(has));
    for options in guests.iter().flat_map(frames::formats) {
        let mut daemon = Daemon::start(directory.path(), "again", &arguments).unwrap();
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        for _ in 0..3 {
            frames::come_back(&mut guest).unwrap();
            drop(daemon);
            daemon = Daemon::start(directory.path(), "again", &arguments).unwrap();
            guest.reconnect(daemon.socket()).unwrap();
        }
        frames::come_back(&mut guest).unwrap();
    }
}

#[test]
fn dpdk_is_served_with_all_its_kinds_of_rings() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect", "--queue-pairs", "2"];
    let mut daemon = Daemon::start(directory.path(), "dpdk", &arguments).unwrap();
    for kind in 0..8_u32 {
        let has = |bit: u32| kind & 1 << bit != 0;
        let (mrg_rxbuf, in_order, packed) = (has(0), has(1), has(2));
        // One and two queue pairs, each with every two of the others.
        let queue_pairs = if (kind.count_ones() & 1) == 0 { 1 } else { 2 };
        let shape =
            GuestShape { queue_pairs, mrg_rxbuf, in_order, packed, ..GuestShape::default() };
        forwards(&daemon, &shape);
    }
    let base = GuestShape::default();
    forwards(&daemon, &GuestShape { queue_size: 1000, packed: true, ..base });
    forwards(&daemon, &GuestShape { vectorized: true, mrg_rxbuf: false, ..base });
    assert!(daemon.is_alive(), "{}", daemon.log());
}

fn forwards(daemon: &Daemon, shape: &GuestShape) {
    let mut guest = Testpmd::guest(daemon.socket(), shape).unwrap();
    guest.start_with_bursts(1).unwrap();
    guest.statistics().unwrap();
    sleep(Duration::from_millis(500));
    let statistics = guest.statistics().unwrap();
    // One burst of 32 a time slice where both have to share a CPU.
    assert!(statistics.rx_pps > 1000, "{shape:?} {statistics:?}");
    let flying = statistics.tx_packets - statistics.rx_packets;
    assert!(flying <= 64 * u64::from(shape.queue_pairs), "{shape:?} {statistics:?}");
}
