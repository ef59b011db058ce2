//! Layer-2 frames with a counter: each is followed through the daemon, and the report says which are missing.

use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use frontend::{Guest, GuestOptions};
use lab::outside::Outside;
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::frames;
use ringscope_tests::mirror::{Kind, Mirror};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);
/// A stream of 2 bytes, then a counter of 2 bytes.
const FRAMES: &str = "ethertype:0x8892,counter@2/2,stream@0/2";

/// A frame with `tags` VLAN tags.
fn frame(tags: usize, stream: u16, counter: u16, padding: usize) -> Vec<u8> {
    let mut frame = [[0x52, 0x54, 0, 0, 0, 9], [0x52, 0x54, 0, 0, 0, 8]].concat();
    for tag in 0..tags {
        frame.extend(if tag + 1 < tags { [0x88, 0xa8, 0, 7] } else { [0x81, 0, 0xc0, 5] });
    }
    frame.extend([0x88, 0x92]);
    frame.extend(stream.to_be_bytes());
    frame.extend(counter.to_be_bytes());
    frame.extend(frames::frame(counter.into(), padding));
    frame
}

/// The group of `direction` in the report of a recorder, once it has this many frames.
fn group(recorder: &Path, direction: &str, frames: u64) -> Value {
    eventually(SOON, &format!("{frames} cyclic frames {direction}"), || {
        let report = report(recorder, "json");
        let report: Value = serde_json::from_str(&report).unwrap();
        let groups = report["cyclic"]["groups"].as_array().unwrap();
        let group = groups.iter().find(|group| group["direction"] == direction);
        let group = group.filter(|group| group["frames"] == frames).cloned();
        group.ok_or(report["cyclic"].to_string())
    })
}

fn report(recorder: &Path, format: &str) -> String {
    let mut command = Command::new(program("ringscope").unwrap());
    command.arg("report").arg(recorder).args(["--format", format]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn gaps_wraps_duplicates_and_late_frames_are_named_on_every_wire() {
    const COUNTERS: [u16; 10] = [65533, 65534, 65535, 0, 1, 4, 4, 3, 5, 6];
    for kind in Kind::ALL {
        let (mirror, directory) = (Mirror::new(kind), tempfile::tempdir().unwrap());
        let arguments =
            ["--datapath", mirror.datapath(), "--trace-probe", FRAMES, "--trace-probe", "7010"];
        let daemon = Daemon::start(directory.path(), "cyclic", &arguments).unwrap();
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        // The generic mode does not see tags that the other end leaves to its device.
        let tags_max = if kind == Kind::AfXdpGeneric { 0 } else { 2 };
        for (n, counter) in COUNTERS.into_iter().enumerate() {
            for stream in [0x8000, 0x8001] {
                let sent = frame(n % (tags_max + 1), stream, counter, 60);
                assert!(guest.pair(0).send(&sent).unwrap());
                let came = guest.pair(0).receive_within(SOON).unwrap();
                assert_eq!(came.expect("the frame comes back").bytes, sent, "{kind}");
            }
        }
        let recorder = directory.path().join("cyclic.trace");
        for direction in ["tx", "rx"] {
            let group = group(&recorder, direction, 20);
            assert_eq!(group["description"], FRAMES);
            for (stream, name) in
                group["streams"].as_array().unwrap().iter().zip(["0x8000", "0x8001"])
            {
                assert_eq!(stream["stream"], name, "{kind} {direction}: {stream}");
                let count = |key: &str| stream[key].as_u64().unwrap();
                assert_eq!(count("frames"), 10, "{kind} {direction}: {stream}");
                assert_eq!((count("lost"), count("duplicates")), (1, 1), "{kind}: {stream}");
                assert_eq!((count("late"), count("jumps")), (1, 0), "{kind}: {stream}");
                assert_eq!(stream["events"][0]["kind"], "gap", "{kind}: {stream}");
                assert_eq!(stream["events"][0]["counter"], 4, "{kind}: {stream}");
                assert_eq!(stream["period"]["count"], 6, "{kind}: {stream}");
            }
            let total = group["total"]["count"].as_u64().unwrap();
            assert_eq!(total, 20, "{kind} {direction}");
        }
        let text = report(&recorder, "table");
        for part in ["cyclic frames to the guest (rx)", "2 lost before counter 4 of stream 0x8000"]
        {
            assert!(text.contains(part), "{kind}: {part}\n{text}");
        }
        let csv = report(&recorder, "csv");
        let lines = csv.lines().filter(|line| line.starts_with("cyclic,tx,1,"));
        assert_eq!(lines.filter(|line| line.contains(",0/0x8001,")).count(), 10, "{kind}\n{csv}");
    }
}

#[test]
fn frames_are_followed_whatever_buffers_they_come_in() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect", "--trace-probe", FRAMES];
    let daemon = Daemon::start(directory.path(), "split", &arguments).unwrap();
    let recorder = directory.path().join("split.trace");
    let mut followed = 0;
    for options in frames::formats(&GuestOptions::default()) {
        // The smallest buffers: several for a frame.
        let mut guest =
            Guest::connect(daemon.socket(), GuestOptions { buffer_len: 64, ..options }).unwrap();
        let pair = guest.pair(0);
        let header = vec![0; pair.header_len()];
        for cut in 1..30 {
            let sent = frame(1, 1, cut, 30 + 300 * usize::from(cut % 2));
            let (head, tail) = sent.split_at(cut.into());
            let (byte, tail) = tail.split_at(1);
            assert!(pair.send_chain(&header, &[head, byte, tail]).unwrap());
            let came = pair.receive_within(SOON).unwrap().expect("the frame comes back");
            assert_eq!(came.bytes, sent, "cut at {cut}");
            followed += 1;
        }
        // Too short for the counter, or for a header.
        let whole = frame(2, 2, 9, 0);
        for len in (1..whole.len()).chain([whole.len() - 1]) {
            assert!(pair.send(&whole[..len]).unwrap());
            let came = pair.receive_within(SOON).unwrap().expect("the frame comes back");
            assert_eq!(came.bytes, whole[..len]);
        }
        guest.check_canaries().unwrap();
    }
    for direction in ["tx", "rx"] {
        let group = group(&recorder, direction, followed);
        let streams = group["streams"].as_array().unwrap();
        assert_eq!(streams.len(), 1, "{group}");
        // Each guest begins again at 1: few frames look like duplicates.
        assert_eq!(streams[0]["lost"], 0, "{group}");
    }
}

#[test]
fn the_period_and_the_slowest_frames_are_those_that_were_planted() {
    const FRAMES_SENT: u16 = 120;
    let period = Duration::from_millis(2);
    let directory = tempfile::tempdir().unwrap();
    let delay = "delay:tx.egress=20000,every=50";
    let arguments = ["--datapath", "reflect", "--trace-probe", FRAMES, "--fault", delay];
    let daemon = Daemon::start(directory.path(), "period", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    for counter in 0..FRAMES_SENT {
        assert!(guest.pair(0).send(&frame(0, 0, counter, 40)).unwrap());
        assert!(guest.pair(0).receive_within(SOON).unwrap().is_some());
        sleep(period);
    }
    let group = group(&directory.path().join("period.trace"), "tx", FRAMES_SENT.into());
    let found = &group["streams"][0]["period"];
    assert_eq!(found["count"], FRAMES_SENT - 1);
    let at_least = |key: &str, time: Duration| {
        let ns = found[key].as_f64().unwrap();
        assert!(ns >= 0.99 * time.as_nanos() as f64, "{key}: {found}");
    };
    at_least("mean_ns", period);
    at_least("min_ns", period / 2);
    at_least("max_ns", period + Duration::from_millis(20));
    // The slowest two are those that were delayed, and they were slow in that stage.
    for slow in &group["slowest"].as_array().unwrap()[..2] {
        assert_eq!((slow["counter"].as_u64().unwrap() + 1) % 50, 0, "{slow}");
        assert!(slow["stages_ns"]["egress"].as_u64().unwrap() >= 20_000_000, "{slow}");
    }
}

#[test]
fn a_talker_in_a_namespace_is_followed_without_a_change_to_it() {
    const SENT: u64 = 60;
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("cyclic").unwrap();
    let datapath = format!("tap:ifname={}", outside.add_tap(1).unwrap());
    let arguments =
        ["--datapath", &datapath, "--trace-probe", "ethertype:0x8892,counter@0/4,vlan=257"];
    let daemon = Daemon::start(directory.path(), "talker", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    // Three counters are missing between the two runs.
    for first in ["4294967280", "47"] {
        let mut talker = outside.command(program("ringscope").unwrap().to_str().unwrap());
        talker.args(["agent", "cyclic", "eth0", "--ethertype", "0x8892", "--vlan", "257"]);
        talker.args(["--count", "60", "--interval-us", "2000", "--first", first]);
        let output = talker.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("ethertype:0x8892,counter@0/4"), "{said}");
        for _ in 0..SENT {
            let is_cyclic = |frame: &[u8]| frame.get(12..18) == Some(&[0x81, 0, 1, 1, 0x88, 0x92]);
            while !is_cyclic(&guest.pair(0).receive_within(SOON).unwrap().expect("a frame").bytes) {
            }
        }
    }
    let group = group(&directory.path().join("talker.trace"), "rx", 2 * SENT);
    let stream = &group["streams"][0];
    assert_eq!((&stream["lost"], &stream["jumps"]), (&3.into(), &0.into()), "{group}");
    assert_eq!(stream["first"], 4_294_967_280_u64, "{group}");
    assert_eq!(stream["newest"], 4_294_967_296 + 106_u64, "{group}");
    assert_eq!(
        (&stream["events"][0]["kind"], &stream["events"][0]["counter"]),
        (&"gap".into(), &47.into())
    );
    let period = stream["period"]["p50_ns"].as_f64().unwrap();
    assert!((1e6..4e6).contains(&period), "{group}");
}

#[test]
fn a_description_that_fits_no_frame_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect", "--trace-probe", "rtc-testbench"];
    let daemon = Daemon::start(directory.path(), "unseen", &arguments).unwrap();
    let recorder = directory.path().join("unseen.trace");
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    assert!(guest.pair(0).send(&frame(0, 1, 1, 0)).unwrap());
    assert!(guest.pair(0).receive_within(SOON).unwrap().is_some());
    eventually(SOON, "the frame to be recorded", || {
        let packets = daemon.reader().unwrap().totals(1).packets;
        when(packets == 1, packets)
    });
    let text = report(&recorder, "table");
    assert!(text.contains("stream@4/2: none; check EtherType"), "{text}");
}
