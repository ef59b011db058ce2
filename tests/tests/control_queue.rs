//! Commands on a control queue that the front end leaves to the daemon (virtio 1.2, 5.1.6.5): each valid one has its effect,
//! and any other is answered with the error status.

use std::time::Duration;

use frontend::{Frame, Guest, GuestOptions};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::SOON;
use ringscope_tests::frames;
use ringscope_tests::lan::{self, Lan};
use ringscope_tests::mirror::{Kind, Mirror};
use virtio_net::features;

const OK: u8 = 0;
const ERR: u8 = 1;
/// `VIRTIO_NET_CTRL_ANNOUNCE`, `_ACK`: a command without a value.
const ANNOUNCED: [u8; 2] = [3, 0];

fn set_pairs(count: u16) -> Vec<u8> {
    [&[4, 0][..], &count.to_le_bytes()].concat()
}

fn set_offloads(features: u64) -> Vec<u8> {
    [&[5, 0][..], &features.to_le_bytes()].concat()
}

fn set_address(address: [u8; 6]) -> Vec<u8> {
    [&[1, 1][..], &address].concat()
}

/// Guests of each format, with and without the event index.
fn guests(options: &GuestOptions) -> impl Iterator<Item = GuestOptions> {
    let with = |event_index| frames::formats(&options.clone().control().event_index(event_index));
    [true, false].into_iter().flat_map(with)
}

/// Whether a frame that the guest sends on `pair` comes back.
fn is_reflected(guest: &mut Guest, pair: usize, patience: Duration) -> bool {
    assert!(guest.pair(pair).send(&frames::frame(7, 200)).unwrap());
    guest.pair(pair).receive_within(patience).unwrap().is_some()
}

#[test]
fn each_command_is_answered_and_those_that_are_not_allowed_with_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect", "--queue-pairs", "2"];
    let daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    for options in guests(&GuestOptions::default().queue_pairs(2).offloads()) {
        let mut guest = Guest::connect(daemon.socket(), options.clone()).unwrap();
        assert!(guest.features().has(features::CTRL_VQ | features::GUEST_ANNOUNCE));
        let offloads = guest.features().guest_offloads().to_guest();
        let huge = vec![0; 2048];
        for (command, expected) in [
            (&ANNOUNCED[..], OK),
            (&set_pairs(2), OK),
            (&set_pairs(1), OK),
            (&set_pairs(0), ERR),
            (&set_pairs(3), ERR),
            (&set_offloads(0), OK),
            (&set_offloads(offloads), OK),
            (&set_offloads(1 << 15), ERR),
            (&set_address([2, 0, 0, 0, 0, 9]), OK),
            (&set_address([3, 0, 0, 0, 0, 9]), ERR),
            // Filters of addresses and VLANs, which are not offered.
            (&[0, 0, 1], ERR),
            (&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0], ERR),
            (&[2, 0, 1, 0], ERR),
            (&[200, 200], ERR),
            (&[4], ERR),
            (&[4, 0, 1], ERR),
            (&huge, ERR),
        ] {
            assert_eq!(guest.command(command).unwrap(), expected, "{command:02x?} {options:?}");
        }
        assert_eq!(guest.command_in(&[&[4], &[0, 2], &[0]], 16).unwrap(), [OK], "in pieces");
        assert!(
            guest.command_in(&[&set_pairs(1)], 0).unwrap().is_empty(),
            "no room for the answer"
        );
        assert_eq!(guest.command_in(&[], 1).unwrap(), [ERR], "nothing to read");
        // More than the ring has entries.
        for _ in 0..300 {
            assert_eq!(guest.command(&ANNOUNCED).unwrap(), OK);
        }
        assert_eq!(guest.control().unwrap().counters().calls_missed, 0, "signals were due");
        assert_eq!(guest.command(&set_pairs(2)).unwrap(), OK);
        frames::come_back(&mut guest).unwrap();
    }
}

#[test]
fn a_guest_uses_one_queue_pair_until_it_asks_for_more() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect", "--queue-pairs", "2"];
    let daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    let shortly = Duration::from_millis(100);
    for options in frames::formats(&GuestOptions::default().queue_pairs(2).control()) {
        let mut guest = Guest::connect(daemon.socket(), options.clone()).unwrap();
        // It was asked last, so what the daemon does at the start is done.
        assert_eq!(guest.command(&set_pairs(1)).unwrap(), OK);
        frames::come_back_on(&mut guest, 0).unwrap();
        assert!(!is_reflected(&mut guest, 1, shortly), "the second pair is in use");
        assert_eq!(guest.command(&set_pairs(2)).unwrap(), OK);
        frames::come_back(&mut guest).unwrap();
        // A queue that is stopped and goes on keeps what was set.
        guest.stop_ring(4).unwrap();
        guest.start_ring(4).unwrap();
        assert_eq!(guest.command(&ANNOUNCED).unwrap(), OK);
        frames::come_back(&mut guest).unwrap();
        assert_eq!(guest.command(&set_pairs(1)).unwrap(), OK);
        assert!(!is_reflected(&mut guest, 1, shortly));
        // Another one without a control queue has both.
        drop(guest);
        let options = GuestOptions { control: false, ..options };
        let options = GuestOptions { features: options.features & !features::CTRL_VQ, ..options };
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        frames::come_back(&mut guest).unwrap();
    }
}

/// A UDP datagram with the sum of its pseudo header only, and the net header that says so.
fn unfinished() -> ([u8; 12], Vec<u8>) {
    let mut frame = lan::frame(lan::EVERYONE, lan::station(0), 0, 14);
    frame[12..].copy_from_slice(&[8, 0]);
    frame.extend([0x45, 0, 0, 128, 0, 0, 0, 0, 64, 17, 0x76, 0xdb, 10, 0, 0, 1, 10, 0, 0, 2]);
    // Ports, length, and the pseudo header's sum: addresses, protocol, length.
    let sum = 2 * 0x0a00_u16 + 1 + 2 + 17 + 108;
    frame.extend([0, 7, 0, 7, 0, 108]);
    frame.extend(sum.to_be_bytes());
    frame.extend(frames::frame(1, 100));
    // NEEDS_CSUM; the sum starts at 34, and its place is 6 bytes after that.
    ([1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0], frame)
}

/// Whether the checksum of `came`, which was sent as [`unfinished`], is pending still.
fn is_pending(came: &Frame) -> bool {
    let (pending, sent) = (came.header[0] & 1 == 1, unfinished().1);
    assert_eq!(came.bytes[..40], sent[..40]);
    assert_eq!(came.bytes[42..], sent[42..]);
    assert_eq!(came.bytes[40..42] == sent[40..42], pending, "the checksum of {came:?}");
    pending
}

/// The kernel completes checksums in frames for a tap whose guest does not take pending ones.
#[test]
fn offloads_of_a_tap_are_switched_off_and_on_while_frames_flow() {
    for kind in [Kind::Tap, Kind::TapUring] {
        let (mirror, directory) = (Mirror::new(kind), tempfile::tempdir().unwrap());
        let arguments = ["--datapath", mirror.datapath()];
        let daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
        let options = GuestOptions::default().offloads().control();
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        let offloads = guest.features().guest_offloads().to_guest();
        let (header, frame) = unfinished();
        for on in [offloads, 0, offloads, 1 << 1, 1 << 7, offloads] {
            assert_eq!(guest.command(&set_offloads(on)).unwrap(), OK, "{on:#x}");
            assert!(guest.pair(0).send_chain(&header, &[&frame]).unwrap());
            let came = guest.pair(0).receive_within(SOON).unwrap().expect("the frame");
            // Segmentation alone is none (5.1.3.1).
            assert_eq!(is_pending(&came), on & 1 << 1 != 0, "{kind} {on:#x}");
        }
    }
}

#[test]
fn offloads_of_a_guest_on_a_switch_are_switched_off_and_on_while_frames_flow() {
    for options in guests(&GuestOptions::default().offloads()) {
        let mut lan = Lan::new(&[options.clone(), options], "");
        let offloads = lan.guests[1].features().guest_offloads().to_guest();
        let (header, frame) = unfinished();
        for on in [offloads, 0, offloads, 0] {
            assert_eq!(lan.guests[1].command(&set_offloads(on)).unwrap(), OK);
            assert!(lan.pair(0).send_chain(&header, &[&frame]).unwrap());
            let came = lan.pair(1).receive_within(SOON).unwrap().expect("the frame");
            assert_eq!(is_pending(&came), on != 0);
        }
    }
}

#[test]
fn a_guest_sets_its_address_unless_the_device_gives_it_one() {
    let directory = tempfile::tempdir().unwrap();
    let (own, other) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    for (name, arguments, after) in [
        ("free", &["--datapath", "null"][..], other),
        ("fixed", &["--datapath", "null", "--mac", "02:00:00:00:00:01"], own),
    ] {
        let daemon = Daemon::start(directory.path(), name, arguments).unwrap();
        let options = GuestOptions::default().control();
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        assert_eq!(guest.command(&set_address(own)).unwrap(), OK);
        let status = if after == other { OK } else { ERR };
        assert_eq!(guest.command(&set_address(other)).unwrap(), status);
        let config = guest.link().unwrap().read_config(0, 6).unwrap();
        assert_eq!(config, after, "{name}");
    }
}

#[test]
fn a_control_queue_without_a_kick_is_looked_at_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "vm0", &["--datapath", "null"]).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default().control()).unwrap();
    // Bit 8: there is no descriptor.
    let payload = (2_u64 | 1 << 8).to_ne_bytes();
    let request = frontend::raw::request::SET_VRING_KICK;
    frontend::raw::send(guest.link().unwrap().stream(), request, &payload, &[]).unwrap();
    let mut answer = [0; 20];
    std::io::Read::read_exact(&mut guest.link().unwrap().stream(), &mut answer).unwrap();
    assert_eq!(answer[12..], [0; 8]);
    for _ in 0..3 {
        assert_eq!(guest.command(&ANNOUNCED).unwrap(), OK);
    }
}
