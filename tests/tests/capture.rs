//! `--pcap`: what passes is in the file, as it passed, and what is said of it is so.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use burst_trace::{BurstRecord, Direction};
use frontend::{Guest, GuestOptions};
use lab::outside::Outside;
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::frames;
use ringscope_tests::pcapng::{Capture, Packet};
use ringscope_tests::pings::Pinger;
use ringscope_tests::trace::Trace;

/// Time until a frame is in the capture's file: it is written once a second.
const FLUSHED: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(5);

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos().try_into().unwrap()
}

/// A daemon that captures, and its file.
fn start(directory: &Path, arguments: &[&str]) -> (Daemon, PathBuf) {
    let file = directory.join("capture.pcapng");
    let pcap = ["--pcap", file.to_str().unwrap()];
    let daemon = Daemon::start(directory, "vm7", &[arguments, &pcap].concat()).unwrap();
    (daemon, file)
}

/// The packets of one ring are exactly `expected`; their stamps are in order and within `span`, and their comments
/// say what the recorder says of their bursts.
fn check(
    packets: &[&Packet],
    expected: &[Vec<u8>],
    span: (u64, u64),
    bursts: &[BurstRecord],
    ring: u16,
) {
    assert_eq!(packets.len(), expected.len());
    for (n, (packet, frame)) in packets.iter().zip(expected).enumerate() {
        assert!(packet.bytes == *frame, "frame {n} of ring {ring}");
        assert_eq!(packet.queue, u32::from(ring / 2));
    }
    assert!(packets.windows(2).all(|pair| pair[0].time_ns <= pair[1].time_ns), "stamps in order");
    let within = |packet: &&Packet| (span.0..=span.1).contains(&packet.time_ns);
    assert!(packets.iter().all(within), "stamps of the test's own time");
    let direction = Direction::of_ring(ring);
    let mut packets = packets.iter();
    for burst in bursts {
        for number in 1..=burst.packets {
            let packet = packets.next().expect("a packet of this burst");
            assert!(packet.comment.starts_with(direction.name()), "{packet:?}");
            assert_eq!(packet.number("ring"), u64::from(ring));
            assert_eq!(packet.number("burst"), burst.sequence);
            assert!(packet.comment.contains(&format!(" frame={number}/{} ", burst.packets)));
            let stages = direction.stages().iter().map(|stage| packet.number(stage.name()));
            assert!(stages.sum::<u64>() > 0, "{packet:?}");
        }
    }
    assert!(packets.next().is_none(), "every packet belongs to a burst");
}

#[test]
fn reflected_frames_are_captured_in_both_directions_of_both_pairs() {
    let directory = tempfile::tempdir().unwrap();
    for options in frames::formats(&GuestOptions::default().queue_pairs(2)) {
        let begun = now_ns();
        let (mut daemon, file) =
            start(directory.path(), &["--datapath", "reflect", "--queue-pairs", "2"]);
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        let mut sent = [Vec::new(), Vec::new()];
        for (n, sent) in sent.iter_mut().enumerate() {
            for round in 0..20 {
                let burst: Vec<_> =
                    (0..30).map(|n| frames::frame(round * 30 + n, 60 + 50 * n)).collect();
                burst.iter().for_each(|frame| assert!(guest.pair(n).queue(frame).unwrap()));
                guest.pair(n).flush().unwrap();
                for frame in &burst {
                    let came = guest.pair(n).receive_within(SOON).unwrap().expect("a frame");
                    assert!(came.bytes == *frame);
                }
                sent.extend(burst);
            }
        }
        guest.check_canaries().unwrap();
        for ring in 0..4 {
            guest.stop_ring(ring).unwrap();
        }
        assert!(daemon.terminate(Duration::from_secs(1)).unwrap().success(), "{}", daemon.log());
        let (capture, trace) = (Capture::read(&file), Trace::open(directory.path(), "vm7"));
        assert_eq!(capture.interface, "vm7");
        assert_eq!(capture.totals, Some((4 * 600, 0)));
        for ring in 0..4 {
            let of_ring = capture.way(ring % 2 == 1);
            let packets: Vec<_> =
                of_ring.into_iter().filter(|packet| packet.queue == u32::from(ring / 2)).collect();
            let sent = &sent[usize::from(ring / 2)];
            check(&packets, sent, (begun, now_ns()), &trace.bursts(ring), ring);
        }
    }
}

#[test]
fn frames_on_a_tap_are_captured_and_can_be_read_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("capture").unwrap();
    for poll in ["never", "adaptive"] {
        let begun = now_ns();
        let datapath = format!("tap:ifname={}", outside.add_tap(1).unwrap());
        let (mut daemon, file) =
            start(directory.path(), &["--datapath", &datapath, "--poll", poll]);
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
        pinger.ping_all(guest.pair(0), 100);
        let passed = pinger.sent.len() + pinger.came.len();
        eventually(FLUSHED, &format!("{passed} frames in the capture, --poll {poll}"), || {
            let found = Capture::read(&file).packets.len();
            when(found >= passed, found)
        });
        pinger.ping_all(guest.pair(0), 100);
        guest.stop_ring(0).unwrap();
        guest.stop_ring(1).unwrap();
        assert!(daemon.terminate(Duration::from_secs(1)).unwrap().success(), "{}", daemon.log());
        let (capture, trace) = (Capture::read(&file), Trace::open(directory.path(), "vm7"));
        let span = (begun, now_ns());
        check(&capture.way(true), &pinger.sent, span, &trace.bursts(1), 1);
        check(&capture.way(false), &pinger.came, span, &trace.bursts(0), 0);
        // An answer was seen after its question was gathered.
        let question = capture.packets.iter().rfind(|packet| packet.outbound).unwrap();
        let answer = capture.packets.iter().rfind(|packet| !packet.outbound).unwrap();
        assert!(answer.time_ns > question.time_ns, "{question:?} {answer:?}");
        let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600, "for its owner alone");
    }
}

#[test]
fn frames_that_a_fault_drops_are_not_captured() {
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("taken").unwrap();
    let datapath = format!("tap:ifname={}", outside.add_tap(1).unwrap());
    let faults = ["--fault", "drop=0.2,seed=1"];
    let (mut daemon, file) =
        start(directory.path(), &[&["--datapath", &datapath], &faults[..]].concat());
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
    for _ in 0..50 {
        pinger.ping(guest.pair(0), 200, Duration::from_millis(50));
    }
    guest.stop_ring(0).unwrap();
    guest.stop_ring(1).unwrap();
    assert!(daemon.terminate(Duration::from_secs(1)).unwrap().success(), "{}", daemon.log());
    let (capture, trace) = (Capture::read(&file), Trace::open(directory.path(), "vm7"));
    let sent = capture.way(true);
    assert_eq!(sent.len() as u64, trace.check(1).packets);
    assert!(sent.len() < pinger.sent.len(), "some were lost");
    let came: Vec<_> = capture.way(false).iter().map(|packet| packet.bytes.clone()).collect();
    assert!(came == pinger.came);
}

#[test]
fn a_flood_is_not_held_up_and_what_is_left_out_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let (mut daemon, file) = start(directory.path(), &["--datapath", "null:rx=1500"]);
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let until = Instant::now() + Duration::from_secs(2);
    let mut frame = frontend::Frame::default();
    while Instant::now() < until {
        guest.pair(0).receive_into(&mut frame).unwrap();
    }
    guest.stop_ring(0).unwrap();
    let ended = daemon.terminate(Duration::from_secs(5)).unwrap();
    assert!(ended.success(), "{}", daemon.log());
    let packets = Trace::open(directory.path(), "vm7").packets(0);
    let capture = Capture::read(&file);
    let (seen, left_out) = capture.totals.expect("statistics");
    assert_eq!((seen, capture.packets.len() as u64), (packets, packets - left_out));
    assert_eq!(daemon.log().contains("are left out"), left_out > 0, "{}", daemon.log());
}
