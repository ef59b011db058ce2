//! A guest that breaks the rules on its control queue: it costs that queue at most. Frames flow all the while, and messages
//! of the front end are answered.

use std::time::{Duration, Instant};

use frontend::{Guest, GuestOptions};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::SOON;
use ringscope_tests::frames;
use ringscope_tests::hostile::{SCRATCH, UNMAPPED, offer_one, readable, writable};

/// `VIRTIO_NET_CTRL_ANNOUNCE`, `_ACK`: a command without a value.
const ANNOUNCED: [u8; 2] = [3, 0];
const OK: u8 = 0;

/// Guests of each format.
fn guests() -> [GuestOptions; 4] {
    frames::formats(&GuestOptions::default().control())
}

#[test]
fn wrong_chains_come_back_empty_and_the_next_command_is_answered() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "vm0", &["--datapath", "reflect"]).unwrap();
    for options in guests() {
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        for chain in [
            &[readable(UNMAPPED, 4), writable(SCRATCH, 1)][..],
            &[readable(SCRATCH, 4), writable(UNMAPPED, 1)],
            &[writable(SCRATCH, 1), readable(SCRATCH, 4)],
            &[readable(SCRATCH, 0)],
            &[writable(SCRATCH, 0)],
        ] {
            assert!(guest.control().unwrap().offer_foreign(chain));
            assert_eq!(guest.command(&ANNOUNCED).unwrap(), OK);
            let back = guest.control().unwrap().foreign_used();
            assert_eq!(back.len(), 1, "{chain:?}");
            assert_eq!(back[0].len, 0, "{chain:?}");
        }
    }
}

#[test]
fn a_flood_of_commands_delays_neither_frames_nor_messages() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "vm0", &["--datapath", "reflect"]).unwrap();
    for options in guests() {
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        // As many commands as fit, over and over: frames flow, and messages are answered.
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(300) {
            let ring = guest.control().unwrap();
            while ring.offer_foreign(&[readable(SCRATCH, 2), writable(SCRATCH + 64, 1)]) {}
            ring.publish();
            ring.kick_anyway().unwrap();
            assert!(guest.pair(0).send(&frames::frame(7, 200)).unwrap());
            assert!(guest.pair(0).receive_within(SOON).unwrap().is_some());
            guest.stop_ring(0).unwrap();
            guest.start_ring(0).unwrap();
        }
        frames::come_back(&mut guest).unwrap();
    }
}

#[test]
fn a_chain_that_loops_breaks_the_control_queue_alone() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "vm0", &["--datapath", "reflect"]).unwrap();
    for options in guests() {
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        // A chain that loops breaks the queue until it is started again.
        guest.reboot().unwrap();
        offer_one(guest.control().unwrap(), SCRATCH, 0xffff_fff0, 1, 0);
        if guest.features().packed() {
            for _ in 0..255 {
                offer_one(guest.control().unwrap(), SCRATCH, 0xffff_fff0, 1, 0);
            }
        }
        guest.control().unwrap().kick_anyway().unwrap();
        assert!(guest.control().unwrap().gave_up(SOON).unwrap(), "its error descriptor");
        frames::come_back(&mut guest).unwrap();
        guest.reboot().unwrap();
        assert_eq!(guest.command(&ANNOUNCED).unwrap(), OK);
    }
    daemon.expect_log("queue 2 stops, because the guest broke it");
}
