//! `ringscope ctl NAME capture`: a capture begins and ends while frames flow, in a file that the client hands over.

use std::fs::{self, File};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use burst_trace::DropCause;
use frontend::{Guest, GuestOptions};
use ringscope_tests::control::Controlled;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::flows::Flow;
use ringscope_tests::frames;
use ringscope_tests::hostile::expect_all_back;
use ringscope_tests::pcapng::Capture;
use ringscope_tests::slow_wire::slow_wire;
use ringscope_tests::trace::Trace;
use serde_json::json;

const SOON: Duration = Duration::from_secs(5);

/// What is in the file, when everything that it will get is there.
fn complete(rig: &Controlled, name: &str) -> Capture {
    eventually(SOON, "the end of the capture", || {
        let capture = Capture::read(&rig.file(name));
        let seen = capture.totals.map_or(u64::MAX, |(seen, _)| seen);
        // The statistics come last.
        when(seen == capture.packets.len() as u64, format!("{seen}"))
    });
    Capture::read(&rig.file(name))
}

/// Sends frames of these numbers on a pair, which come back.
fn pass(guest: &mut Guest, pair: usize, numbers: std::ops::Range<usize>) -> Vec<Vec<u8>> {
    let sent: Vec<_> = numbers.map(|n| frames::frame(n, 60 + n)).collect();
    for frame in &sent {
        assert!(guest.pair(pair).send(frame).unwrap());
        let came = guest.pair(pair).receive_within(SOON).unwrap().expect("a frame");
        assert!(came.bytes == *frame);
    }
    sent
}

fn bytes_of(capture: &Capture, outbound: bool, queue: u32) -> Vec<Vec<u8>> {
    let its = capture.way(outbound).into_iter().filter(|packet| packet.queue == queue);
    its.map(|packet| packet.bytes.clone()).collect()
}

#[test]
fn what_passes_between_on_and_off_is_in_the_file() {
    for options in frames::formats(&GuestOptions::default().queue_pairs(2)) {
        let rig = Controlled::new("reflect", &["--queue-pairs", "2", "--cpus", "0,1"]);
        let mut guest = Guest::connect(rig.daemon.socket(), options).unwrap();
        for (round, name) in [(0, "first.pcapng"), (1, "second.pcapng")] {
            (0..2).for_each(|pair| drop(pass(&mut guest, pair, 0..10)));
            let on = rig.asked(&["capture", "on", name]);
            assert_eq!(on["capture"]["file"], json!(rig.file(name)));
            assert_eq!(on["capture"]["size"], 1_000_000_000);
            let sent = [pass(&mut guest, 0, round..20), pass(&mut guest, 1, 30..33)];
            let status = rig.asked(&["status"]);
            let capture = &status["guests"][0]["settings"]["capture"];
            assert!(capture["bytes"].as_u64().unwrap() > 100, "{capture}");
            assert_eq!(rig.asked(&["capture", "off"]), json!({ "capture": "off" }));
            (0..2).for_each(|pair| drop(pass(&mut guest, pair, 40..50)));
            let capture = complete(&rig, name);
            assert_eq!(capture.interface, "vm0");
            for (queue, sent) in (0..).zip(&sent) {
                assert!(bytes_of(&capture, true, queue) == *sent, "{name}, from the guest");
                assert!(bytes_of(&capture, false, queue) == *sent, "{name}, to the guest");
            }
            let comment = &capture.way(true)[0].comment;
            assert!(comment.starts_with("tx ring=") && comment.contains(" gather="), "{comment}");
            let mode = rig.file(name).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        guest.check_canaries().unwrap();
    }
}

#[test]
fn a_file_that_has_its_size_is_complete() {
    let rig = Controlled::new("reflect", &[]);
    let mut guest = Guest::connect(rig.daemon.socket(), GuestOptions::default()).unwrap();
    for (n, kilobytes) in (0..).zip([1, 4, 50]) {
        let (name, size) = (format!("{n}.pcapng"), format!("size={kilobytes}kB"));
        rig.asked(&["capture", "on", &name, &size]);
        eventually(SOON, "a file that has its size", || {
            pass(&mut guest, 0, 0..10);
            when(rig.asked(&["status"])["guests"][0]["settings"]["capture"] == "off", "a capture")
        });
        rig.daemon.expect_log(&format!("{name} is complete"));
        let len = rig.file(&name).metadata().unwrap().len();
        // A frame has 400 bytes at most, with what is said of it.
        assert!((kilobytes * 1000 - 700..=kilobytes * 1000).contains(&len), "{len}: {size}");
        let capture = complete(&rig, &name);
        assert!(capture.packets.len() as u64 >= 2 * kilobytes - 2, "{}", capture.packets.len());
    }
}

/// What `tcpdump` finds in a file.
fn found(file: &Path, expression: &str) -> usize {
    let mut tcpdump = Command::new("tcpdump");
    tcpdump.args(["-n", "--count", "-r"]).arg(file).arg(expression);
    let output = tcpdump.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let count = text.split_whitespace().next().and_then(|count| count.parse().ok());
    count.unwrap_or_else(|| panic!("{expression}: {text}"))
}

#[test]
fn a_filter_chooses_what_tcpdump_would() {
    let rig = Controlled::new("reflect", &[]);
    let mut guest = Guest::connect(rig.daemon.socket(), GuestOptions::default()).unwrap();
    let both = [Flow::udp(1), Flow::tcp(2)];
    let versions = both.into_iter().flat_map(|flow| [flow.clone(), Flow { is_v6: true, ..flow }]);
    let tags = versions.flat_map(|flow| [flow.clone(), Flow { is_tagged: true, ..flow }]);
    let mut flows: Vec<_> = tags.collect();
    let mut pass_all = || {
        for n in 0..40 {
            let at = n % flows.len();
            let frame = flows[at].next(&vec![7; 10 * n], false);
            assert!(guest.pair(0).send(&frame.bytes).unwrap());
            guest.pair(0).receive_within(SOON).unwrap().expect("a frame");
        }
        pass(&mut guest, 0, 0..5);
    };
    rig.asked(&["capture", "on", "all.pcapng"]);
    pass_all();
    rig.asked(&["capture", "off"]);
    assert_eq!(complete(&rig, "all.pcapng").packets.len(), 90);
    for (n, expression) in [
        "udp",
        "tcp dst port 8194",
        "ip6 and udp",
        "vlan",
        "vlan 5 and ip and tcp[13] & 16 != 0",
        "ether src 52:54:00:00:00:01",
        "greater 300",
        "ip[2:2] > 200 or ip6[4:2] < 100",
        "net 10.77.1.0/24 and not tcp",
        "ether proto 0x88f7",
    ]
    .into_iter()
    .enumerate()
    {
        let (name, filter) = (format!("{n}.pcapng"), format!("filter={expression}"));
        rig.asked(&["capture", "on", &name, &filter]);
        pass_all();
        rig.asked(&["capture", "off"]);
        let expected = found(&rig.file("all.pcapng"), expression);
        eventually(SOON, expression, || {
            let capture = Capture::read(&rig.file(&name));
            let found = (capture.packets.len(), capture.totals);
            when(found == (expected, Some((90, 0))), format!("{found:?} of {expected}"))
        });
        assert!(n == 9 || expected > 0, "{expression}");
    }
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    let rig = Controlled::new("reflect", &[]);
    let mut guest = Guest::connect(rig.daemon.socket(), GuestOptions::default()).unwrap();
    fs::write(rig.file("full"), "precious").unwrap();
    fs::create_dir(rig.file("directory")).unwrap();
    let before = fs::read_dir(rig.directory.path()).unwrap().count();
    for (arguments, part) in [
        (&["capture"][..], "expected capture on FILE"),
        (&["capture", "on"], "expected capture on FILE"),
        (&["capture", "on", "x", "size=5"], "expected size=BYTES of at least 1000"),
        (&["capture", "on", "x", "filter=udp prt 9"], "expected filter= with an expression"),
        (&["capture", "on", "/nowhere/x"], "cannot write /nowhere/x"),
        (&["capture", "on", "directory"], "it is a directory"),
        (&["capture", "on", "/dev/null"], "it is standard output, or no regular file"),
        (&["capture", "on", "-"], "it is standard output, or no regular file"),
    ] {
        let said = rig.refused(arguments);
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
    assert_eq!(fs::read_dir(rig.directory.path()).unwrap().count(), before);

    // Clients that speak without the tool.
    let on = r#"{"command":"capture","value":"on"}"#;
    let mut client = rig.client();
    // It is accepted when its answer comes.
    client.ask_with(r#"{"command":"status"}"#, &[]);
    let mut refused = |request: &str, files: &[BorrowedFd<'_>], part: &str| {
        let answer = client.ask_with(request, files);
        assert!(answer["error"].as_str().is_some_and(|why| why.contains(part)), "{answer}");
    };
    let new = |name: &str| {
        File::options().read(true).write(true).create_new(true).open(rig.file(name)).unwrap()
    };
    let (reader, writer) = std::io::pipe().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(new);
    let full = File::options().append(true).open(rig.file("full")).unwrap();
    let descriptors = rig.daemon.descriptors();
    for (file, part) in [
        (writer.as_fd(), "found another kind of file"),
        (reader.as_fd(), "found another kind of file"),
        (full.as_fd(), "found 8 bytes in it"),
        (File::open(rig.file("a")).unwrap().as_fd(), "open to be read"),
        (File::open(rig.file("directory")).unwrap().as_fd(), "found another kind of file"),
    ] {
        refused(on, &[file], part);
    }
    let wrong = r#"{"command":"capture","value":"on","filter":[[5,0,0,99]]}"#;
    refused(wrong, &[a.as_fd()], "instruction 0 is not understood");
    let long = vec![[6, 0, 0, 1]; 600];
    let long = json!({"command": "capture", "value": "on", "filter": long}).to_string();
    refused(&long, &[a.as_fd()], "found 600 instructions");
    refused(r#"{"command":"capture","value":"up"}"#, &[a.as_fd()], "expected capture on");
    let forged = json!({"command": "capture", "value": "on", "file": "a\nb"}).to_string();
    refused(&forged, &[a.as_fd()], "without control characters");
    for _ in 0..100 {
        let answer = client.ask_with(r#"{"command":"status"}"#, &[a.as_fd(), b.as_fd(), c.as_fd()]);
        assert!(answer["ok"].is_object(), "{answer}");
    }
    eventually(SOON, "descriptors that are closed", || {
        let now = rig.daemon.descriptors();
        when(now <= descriptors, format!("{now} of {descriptors}"))
    });
    assert_eq!(fs::read(rig.file("full")).unwrap(), b"precious");

    // One capture at a time; the one before is not touched.
    rig.asked(&["capture", "on", "vm0.pcapng"]);
    pass(&mut guest, 0, 0..5);
    assert!(
        rig.refused(&["capture", "on", "vm0.pcapng"]).contains("expected no capture, found one")
    );
    assert!(rig.refused(&["trace", "off"]).contains("the capture needs the time stamps"));
    pass(&mut guest, 0, 5..10);
    rig.asked(&["capture", "off"]);
    assert_eq!(complete(&rig, "vm0.pcapng").packets.len(), 20);
    rig.asked(&["trace", "off"]);
    assert!(rig.refused(&["capture", "on", "x"]).contains("expected trace on, found off"));
}

#[test]
fn a_capture_of_the_start_can_be_ended_and_one_that_is_left_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let from_start = directory.path().join("start.pcapng");
    let mut rig = Controlled::new("reflect", &["--pcap", from_start.to_str().unwrap()]);
    let mut guest = Guest::connect(rig.daemon.socket(), GuestOptions::default()).unwrap();
    pass(&mut guest, 0, 0..5);
    assert!(rig.refused(&["capture", "on", "x"]).contains("start.pcapng"));
    rig.asked(&["capture", "off"]);
    eventually(SOON, "the end of the first", || {
        let totals = Capture::read(&from_start).totals;
        when(totals == Some((10, 0)), format!("{totals:?}"))
    });
    rig.asked(&["capture", "on", "x"]);
    pass(&mut guest, 0, 5..10);
    drop(guest);
    assert!(rig.daemon.terminate(SOON).unwrap().success());
    let capture = Capture::read(&rig.file("x"));
    assert_eq!((capture.packets.len(), capture.totals), (10, Some((10, 0))));
}

/// Frames that the kernel sends from the guest's memory are done with later than they are taken.
#[test]
fn what_begins_while_frames_are_on_their_way_is_about_later_ones() {
    // The last of 32 frames are on their way for some 250 ms.
    let outside = slow_wire("late", 200);
    let datapath = format!("af-xdp:ifname={},umem=guest", outside.wire());
    let rig = Controlled::new(&datapath, &[]);
    let options = GuestOptions::default().queue_size(64);
    let mut guest = Guest::connect(rig.daemon.socket(), options).unwrap();
    let trace = Trace::open(rig.directory.path(), "vm0");
    let mut passed = 0;
    let mut send = |guest: &mut Guest, numbers: std::ops::Range<usize>| {
        passed += numbers.len() as u64;
        for n in numbers {
            assert!(guest.pair(0).queue(&frames::frame(n, 200)).unwrap());
        }
        guest.pair(0).flush().unwrap();
        passed
    };
    send(&mut guest, 0..32);
    std::thread::sleep(Duration::from_millis(10));
    let begun = trace.packets(1);
    rig.asked(&["capture", "on", "x"]);
    rig.asked(&["fault", "drop:tx,every=2"]);
    send(&mut guest, 32..42);
    eventually(SOON, "5 losses", || {
        let lost = trace.drops(1, DropCause::TxFault);
        when(lost == 5, format!("{lost}"))
    });
    rig.asked(&["fault", "off"]);
    let passed = send(&mut guest, 42..50);
    eventually(SOON, "all frames to be sent", || {
        guest.pair(0).reap().unwrap();
        let found = trace.packets(1);
        when(found == passed - 5, format!("{found}, at the beginning {begun}"))
    });
    assert!(begun < 32, "{begun} were sent before");
    rig.asked(&["capture", "off"]);
    let capture = complete(&rig, "x");
    let expected = (32..42).filter(|n| n % 2 == 0).chain(42..50);
    let expected: Vec<_> = expected.map(|n| frames::frame(n, 200)).collect();
    let found = bytes_of(&capture, true, 0);
    // Of a burst that had begun before, nothing is there.
    let numbers: Vec<_> =
        found.iter().map(|it| (0..50).find(|&n| frames::frame(n, 200) == *it)).collect();
    assert!(expected.ends_with(&found) && found.len() >= 8, "{numbers:?}");
    expect_all_back(guest.pair(0));
}
