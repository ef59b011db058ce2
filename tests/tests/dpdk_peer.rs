//! The peers of the other tests, against each other: DPDK as the guest of DPDK. When these fail, what the
//! other tests find means nothing. And DPDK's guest as the server of a daemon that is started again.

use std::thread::sleep;
use std::time::Duration;

use ringscope_tests::daemon::Daemon;
use ringscope_tests::dpdk::{GuestShape, Testpmd};
use ringscope_tests::eventually::{SOON, eventually, when};

#[test]
fn dpdk_reflects_the_frames_of_dpdk_on_one_and_two_queue_pairs() {
    let directory = tempfile::tempdir().unwrap();
    let base = GuestShape::default();
    let shapes = [
        base,
        GuestShape { queue_pairs: 2, mrg_rxbuf: false, ..base },
        GuestShape { queue_size: 1024, in_order: true, ..base },
        GuestShape { packed: true, ..base },
    ];
    for (n, shape) in shapes.into_iter().enumerate() {
        let queue_pairs = shape.queue_pairs;
        let socket = directory.path().join(format!("reflect{n}"));
        let reflector = Testpmd::reflector(&socket, queue_pairs, 1).unwrap();
        let mut guest = Testpmd::guest(&socket, &shape).unwrap();
        guest.start_with_bursts(1).unwrap();
        guest.statistics().unwrap();
        sleep(Duration::from_millis(500));
        let statistics = guest.statistics().unwrap();
        assert!(statistics.rx_pps > 10_000, "{statistics:?}");
        // What is in flight is what was sent first, on every queue.
        let flying = statistics.tx_packets - statistics.rx_packets;
        assert!(flying <= 64 * u64::from(queue_pairs), "{statistics:?}");
        let by_queue = guest.stop().unwrap();
        for queue in 0..queue_pairs {
            let line = format!("RX Port= 0/Queue= {queue} ");
            let forwarded = queue_pairs == 1 || by_queue.contains(&line);
            assert!(forwarded, "nothing came on queue {queue}:\n{by_queue}");
        }
        drop(guest);
        drop(reflector);
    }
}

/// DPDK's virtio-user says position 0 to every back end that connects, and its rings have gone on.
#[test]
fn a_daemon_that_is_killed_under_traffic_is_served_again_by_dpdk() {
    let directory = tempfile::tempdir().unwrap();
    let start = || {
        let datapath = ["--datapath", "reflect", "--poll", "never"];
        Daemon::start_as_client(directory.path(), "vm0", &datapath).unwrap()
    };
    let mut daemon = start();
    let mut guest = Testpmd::serving_guest(daemon.socket(), &GuestShape::default()).unwrap();
    guest.start_with_bursts(2).unwrap();
    let flows = |guest: &mut Testpmd, daemon: &Daemon| {
        let before = guest.statistics().unwrap().rx_packets;
        eventually(SOON, "100 000 packets more", || {
            let found = guest.statistics().unwrap().rx_packets;
            when(found > before + 100_000, format!("{found}, {}", daemon.log()))
        });
    };
    flows(&mut guest, &daemon);
    for _ in 0..3 {
        drop(daemon);
        daemon = start();
        daemon.expect_log("its used index, not at 0 as the front end says");
        // What was in flight is lost or comes back.
        guest.stop().unwrap();
        guest.start_with_bursts(1).unwrap();
        flows(&mut guest, &daemon);
    }
}
