//! A driver resets one ring (`VIRTIO_F_RING_RESET`) while the others work.

use std::time::Duration;

use frontend::{Guest, GuestOptions};
use lab::outside::Outside;
use ringscope_tests::daemon::Daemon;
use ringscope_tests::frames;
use ringscope_tests::pings::{self, Pinger};

const RING_RESET: u64 = 1 << 40;
const SOON: Duration = Duration::from_secs(5);
/// Frames in flight in each queue pair at a reset.
const FRAMES: usize = 30;
const RESETS: u16 = 20;

fn guests(queue_pairs: u16) -> impl Iterator<Item = GuestOptions> {
    let options = GuestOptions::default().queue_pairs(queue_pairs).queue_size(64);
    frames::formats(&options)
        .into_iter()
        .map(|options| GuestOptions { features: options.features | RING_RESET, ..options })
}

#[test]
fn the_other_queue_pair_loses_no_frame() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect", "--queue-pairs", "2"];
    let daemon = Daemon::start(directory.path(), "reset", &arguments).unwrap();
    for options in guests(2) {
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        assert!(guest.features().has(RING_RESET));
        for round in 0..RESETS {
            for pair in 0..2 {
                for n in 0..FRAMES {
                    let frame = frames::frame(n + pair, 60 + n);
                    assert!(guest.pair(pair).queue(&frame).unwrap(), "no room");
                }
                guest.pair(pair).flush().unwrap();
            }
            guest.reset_ring(round % 2).unwrap();
            for n in 0..FRAMES {
                let came = guest.pair(1).receive_within(SOON).unwrap();
                let came = came.unwrap_or_else(|| panic!("frame {n} of round {round} is lost"));
                assert_eq!(came.bytes, frames::frame(n + 1, 60 + n), "round {round}");
            }
            come_back_again(&mut guest);
        }
        frames::come_back(&mut guest).unwrap();
        guest.stop_ring(0).unwrap();
    }
    assert!(!daemon.log().contains("WARN"), "{}", daemon.log());
}

/// A frame comes back on the first queue pair. Others that were in flight at the reset may come before it.
fn come_back_again(guest: &mut Guest) {
    let frame = frames::frame(1000, 999);
    assert!(guest.pair(0).send(&frame).unwrap(), "no room after a reset");
    while guest.pair(0).receive_within(SOON).unwrap().expect("the frame comes back").bytes != frame
    {
    }
}

#[test]
fn a_tap_goes_on_after_each_reset() {
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("reset").unwrap();
    let datapath = format!("tap:ifname={}", outside.add_tap(1).unwrap());
    for options in guests(1) {
        let mut daemon =
            Daemon::start(directory.path(), "tap", &["--datapath", &datapath]).unwrap();
        let mut guest = Guest::connect(daemon.socket(), options.clone()).unwrap();
        let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
        for round in 0..RESETS {
            // The first one was an ARP request, which the host answers.
            for _ in 0..FRAMES {
                assert!(guest.pair(0).queue(&pinger.sent[0]).unwrap(), "no room");
            }
            guest.pair(0).flush().unwrap();
            guest.reset_ring(round % 2).unwrap();
            pinger.ping_all(guest.pair(0), 3);
        }
        guest.check_canaries().unwrap();
        guest.disconnect();
        // The recorder of another daemon: its records are those of the exchange only.
        assert!(daemon.terminate(SOON).unwrap().success(), "{}", daemon.log());
        let daemon = Daemon::start(directory.path(), "after", &["--datapath", &datapath]).unwrap();
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        guest.reset_ring(0).unwrap();
        guest.reset_ring(1).unwrap();
        pings::exchange(&mut guest, Pinger::MAC, directory.path(), "after");
    }
}
