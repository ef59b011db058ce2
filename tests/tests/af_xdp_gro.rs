//! TCP segments that come together over AF_XDP are one packet for a guest that takes it.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::Duration;

use burst_trace::{DropCause, Reader};
use frontend::{Frame, Guest, GuestOptions};
use lab::Signal;
use ringscope_tests::cable::{ip, quieten};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::pcapng::Capture;
use ringscope_tests::{frames, lan, packets};

const SOON: Duration = Duration::from_secs(5);
const SEGMENT: u16 = 1400;
/// Bytes of each packet that is sent: a burst holds the segments of all three.
const LEN: usize = 21 * SEGMENT as usize - 100;
const PACKETS: usize = 3;
const SEGMENTS: usize = 21 * PACKETS;

/// A veth whose ends are two daemons' on AF_XDP, each with a guest.
struct Wire {
    near: Daemon,
    far: Daemon,
    sender: Guest,
    receiver: Guest,
    link: Link,
    _directories: [tempfile::TempDir; 2],
}

impl Wire {
    /// With `keys` after the far interface's name, and these arguments for its daemon.
    fn new(keys: &str, arguments: &[&str], receiver: GuestOptions) -> Self {
        let link = Link::new();
        let directories = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let start = |at: &Path, datapath: &str, arguments: &[&str]| {
            Daemon::start(at, "xdp", &[&["--datapath", datapath], arguments].concat()).unwrap()
        };
        let near = start(directories[0].path(), &format!("af-xdp:ifname={}", link.0[0]), &[]);
        let datapath = format!("af-xdp:ifname={}{keys}", link.0[1]);
        let far = start(directories[1].path(), &datapath, arguments);
        let options = GuestOptions { buffer_len: 40_000, ..GuestOptions::default().offloads() };
        let sender = Guest::connect(near.socket(), options).unwrap();
        let receiver = Guest::connect(far.socket(), receiver).unwrap();
        Self { near, far, sender, receiver, link, _directories: directories }
    }

    /// Sends packets in segments while nobody looks at the far end, so that all of them are in one burst there.
    fn send(&mut self) -> Vec<Vec<u8>> {
        self.far.hold().unwrap();
        let mut sent = Vec::new();
        for seed in 0..PACKETS {
            let payload = frames::frame(seed, LEN);
            let packet = packets::tcp_unsummed((lan::station(1), lan::station(2)), &payload);
            let header = packets::gso_header(SEGMENT);
            assert!(self.sender.pair(0).send_chain(&header, &[&packet]).unwrap());
            sent.push(packet);
        }
        eventually(SOON, &format!("{SEGMENTS} segments on the wire"), || {
            let seen = self.link.seen();
            when(seen >= SEGMENTS, format!("{seen}: {}", self.near.log()))
        });
        // The last of them were counted; in the socket's ring they are only when all are.
        sleep(Duration::from_millis(10));
        self.far.signal(Signal::CONT).unwrap();
        sent
    }

    fn await_frames(&mut self, count: usize) -> Vec<Frame> {
        let next = |_| self.receiver.pair(0).receive_within(SOON).unwrap().expect("a frame");
        let came = (0..count).map(next).collect();
        assert_eq!(self.receiver.pair(0).receive().unwrap(), None, "more than {count}");
        came
    }

    /// What the far daemon counts becomes this: the guest may see its frames a moment before.
    fn await_count(&self, expected: usize, count: impl Fn(&Reader) -> u64) {
        eventually(SOON, &format!("a count of {expected}"), || {
            let found = count(&self.far.reader().unwrap());
            when(found == expected as u64, found)
        });
    }
}

/// The ends of a veth, which is removed with this.
struct Link([String; 2]);

impl Link {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let names = ["a", "b"].map(|end| format!("rvm{}n{number}{end}", std::process::id()));
        ip(&format!("link add {} type veth peer name {}", names[0], names[1]));
        let link = Self(names);
        for name in &link.0 {
            quieten(name);
            ip(&format!("link set {name} up"));
        }
        link
    }

    /// How many frames the program at the far end has seen.
    fn seen(&self) -> usize {
        let output = Command::new("ethtool").args(["-S", &self.0[1]]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let counts = text.lines().filter_map(|line| line.trim().split_once("_xdp_packets: "));
        counts.map(|(_, count)| count.parse::<usize>().unwrap()).sum()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", &self.0[0]]).status();
    }
}

fn guests() -> Vec<GuestOptions> {
    let whole = GuestOptions::default().offloads();
    let short = GuestOptions { buffer_len: 700, ..whole.clone() };
    vec![whole.clone(), whole.packed(true), short]
}

#[test]
fn segments_that_came_together_are_the_packets_that_were_cut() {
    for options in guests() {
        let buffer_len = options.buffer_len as usize;
        let mut wire = Wire::new("", &[], options);
        let sent = wire.send();
        for (came, packet) in wire.await_frames(PACKETS).iter().zip(&sent) {
            assert_eq!(&came.bytes, packet);
            let [low, high] = SEGMENT.to_le_bytes();
            assert_eq!(came.header[..10], [1, 1, 54, 0, low, high, 34, 0, 16, 0]);
            assert_eq!(came.num_buffers(), Some(came.buffers));
            assert_eq!(usize::from(came.buffers), (12 + packet.len()).div_ceil(buffer_len));
        }
        wire.receiver.check_canaries().unwrap();
        // Counted as what the guest was given, as of a tap.
        let bytes: usize = sent.iter().map(Vec::len).sum();
        wire.await_count(PACKETS, |reader| reader.totals(0).packets);
        wire.await_count(bytes, |reader| reader.totals(0).bytes);
    }
}

#[test]
fn without_gro_every_segment_comes_by_itself() {
    let whole = GuestOptions::default().offloads();
    for (keys, options) in
        [(",gro=off", whole.clone()), ("", GuestOptions::default()), ("", one_buffer(whole))]
    {
        let mut wire = Wire::new(keys, &[], options);
        wire.send();
        check_segments(&wire.await_frames(SEGMENTS));
        wire.await_count(SEGMENTS, |reader| reader.totals(0).packets);
    }
}

/// Without mergeable buffers each of them has to hold the largest packet.
fn one_buffer(options: GuestOptions) -> GuestOptions {
    GuestOptions { buffer_len: 70_000, ..options.mergeable(false) }
}

fn check_segments(came: &[Frame]) {
    let payloads: Vec<_> = (0..PACKETS).map(|seed| frames::frame(seed, LEN)).collect();
    let expected = payloads.iter().flat_map(|payload| payload.chunks(SEGMENT.into()));
    for (came, expected) in came.iter().zip(expected) {
        assert_eq!(came.header[..10], [0; 10]);
        assert_eq!(packets::tcp_checked(&came.bytes).unwrap().1, expected);
    }
}

#[test]
fn of_a_wire_with_planted_losses_each_frame_is_lost_by_itself() {
    let options = GuestOptions::default().offloads();
    let mut wire = Wire::new("", &["--fault", "drop:rx,every=9"], options);
    wire.send();
    let came = wire.await_frames(SEGMENTS - SEGMENTS / 9);
    assert!(came.iter().all(|frame| frame.bytes.len() <= 54 + usize::from(SEGMENT)));
    wire.await_count(SEGMENTS / 9, |reader| reader.drops(0, DropCause::RxFault));
}

#[test]
fn a_capture_has_the_packets_that_the_guest_got() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("capture.pcapng");
    let options = GuestOptions::default().offloads();
    let mut wire = Wire::new("", &["--pcap", file.to_str().unwrap()], options);
    let sent = wire.send();
    wire.await_frames(PACKETS);
    wire.far.terminate(SOON).unwrap();
    let capture = Capture::read(&file);
    let captured: Vec<_> = capture.way(false).iter().map(|packet| packet.bytes.clone()).collect();
    assert_eq!(captured, sent);
}
