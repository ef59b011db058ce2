//! The peers of the other tests, against each other: DPDK as the guest of DPDK. When these fail, what the
//! other tests find means nothing.

use std::thread::sleep;
use std::time::Duration;

use ringscope_tests::dpdk::{GuestShape, Testpmd};

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
