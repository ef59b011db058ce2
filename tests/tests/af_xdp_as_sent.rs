//! Frames reach a guest on AF_XDP as they were sent, although the sender's host leaves work to a device that a veth does not
//! have: checksums inside a tunnel, VLAN tags.

use std::process::Command;
use std::time::Duration;

use frontend::{Guest, GuestOptions};
use lab::outside::Outside;
use ringscope_tests::cable::{ip, quieten};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::eventually;
use ringscope_tests::{lan, packets};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(5);
/// Length of what is around the frame in VXLAN: Ethernet, IPv4, UDP and VXLAN headers.
const AROUND: usize = 14 + 20 + 8 + 8;

/// `frame` in VXLAN over IPv4 (RFC 7348), without an outer UDP checksum.
fn in_vxlan(frame: &[u8]) -> Vec<u8> {
    let len = |bytes: usize| u16::try_from(bytes + frame.len()).unwrap().to_be_bytes();
    let macs = [lan::station(2), lan::station(1)].concat();
    let [[a, b], [c, d]] = [len(20 + 8 + 8), len(8 + 8)];
    let mut ip = [0x45, 0, a, b, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2];
    let sum = packets::checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    let udp = [0x80, 0, 0x12, 0xb5, c, d, 0, 0];
    let vxlan = [8, 0, 0, 0, 0, 0, 5, 0];
    [&macs[..], &[8, 0], &ip, &udp, &vxlan, frame].concat()
}

/// A guest on a tap, whose bridge leads to a veth for AF_XDP.
struct Way {
    sender: Guest,
    /// The near end of the veth, in the bridge, and the far one.
    veth: [String; 2],
    _near: Daemon,
    _outside: Outside,
    _directory: TempDir,
}

impl Way {
    fn new(name: &str) -> Self {
        let mut outside = Outside::new(name).unwrap();
        let tap = format!("tap:ifname={}", outside.add_tap(1).unwrap());
        let veth = ["a", "b"].map(|end| format!("{}{end}", outside.bridge()));
        ip(&format!("link add {} type veth peer name {}", veth[0], veth[1]));
        veth.iter().for_each(|name| quieten(name));
        ip(&format!("link set {} master {} up", veth[0], outside.bridge()));
        ip(&format!("link set {} up", veth[1]));
        let directory = tempfile::tempdir().unwrap();
        let near = Daemon::start(directory.path(), "tap", &["--datapath", &tap]).unwrap();
        let options = GuestOptions::default().offloads();
        let sender = Guest::connect(near.socket(), options).unwrap();
        Self { sender, veth, _near: near, _outside: outside, _directory: directory }
    }

    /// Serves the far end, with `keys` after its name.
    fn start(&self, keys: &str) -> (TempDir, Daemon) {
        let directory = tempfile::tempdir().unwrap();
        let datapath = format!("af-xdp:ifname={}{keys}", self.veth[1]);
        let daemon = Daemon::start(directory.path(), "xdp", &["--datapath", &datapath]).unwrap();
        (directory, daemon)
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        ip(&format!("link delete {}", self.veth[0]));
    }
}

/// What is in a tunnelled packet.
const PAYLOAD: [u8; 333] = [7; 333];

/// Sends a packet whose checksum is pending, in a tunnel. Returns whether it is pending still where it arrives; otherwise it
/// is complete.
fn is_pending_at(receiver: &mut Guest, way: &mut Way) -> bool {
    let inner = packets::tcp_unsummed((lan::station(1), lan::station(2)), &PAYLOAD);
    let mut header = packets::gso_header(0);
    header[2] = 0;
    header[6] += u8::try_from(AROUND).unwrap();
    assert!(packets::tcp_checked(&inner).is_none());
    // A bridge takes no frames before it knows that its port is up.
    let frame = eventually(SOON, "the frame", || {
        way.sender.pair(0).send_chain(&header, &[&in_vxlan(&inner)]).unwrap();
        let frame = receiver.pair(0).receive().unwrap();
        frame.filter(|it| it.bytes.len() == AROUND + inner.len()).ok_or("others")
    });
    if frame.header[0] == 0 {
        let checked = packets::tcp_checked(&frame.bytes[AROUND..]);
        assert_eq!(checked, Some((1, &PAYLOAD[..])));
        return false;
    }
    assert_eq!(frame.header[0], 1, "NEEDS_CSUM");
    assert_eq!(frame.header[6..10], header[6..10]);
    assert_eq!(frame.bytes[AROUND..], inner);
    true
}

#[test]
fn a_checksum_in_a_tunnel_is_left_to_the_guest_or_completed() {
    let mut way = Way::new("tunnel");
    for keys in ["", ",mode=generic"] {
        let (_directory, far) = way.start(keys);
        for takes_offloads in [false, true] {
            let options = GuestOptions::default();
            let options = if takes_offloads { options.offloads() } else { options };
            let mut receiver = Guest::connect(far.socket(), options).unwrap();
            assert_eq!(is_pending_at(&mut receiver, &mut way), takes_offloads, "{keys}");
        }
    }
}

#[test]
fn a_checksum_is_completed_after_the_guest_has_switched_its_offloads_off() {
    let mut way = Way::new("switch");
    let (_directory, far) = way.start("");
    let options = GuestOptions::default().offloads().control();
    let mut receiver = Guest::connect(far.socket(), options).unwrap();
    let all = receiver.features().guest_offloads().to_guest();
    for on in [all, 0, all] {
        // `VIRTIO_NET_CTRL_GUEST_OFFLOADS`, `_SET`.
        let command = [&[5, 0][..], &on.to_le_bytes()].concat();
        assert_eq!(receiver.command(&command).unwrap(), 0, "VIRTIO_NET_OK");
        // Those that were sent before the command are gone.
        while receiver.pair(0).receive_within(Duration::from_millis(20)).unwrap().is_some() {}
        assert_eq!(is_pending_at(&mut receiver, &mut way), on != 0);
    }
}

#[test]
fn a_vlan_tag_stays_in_its_frame() {
    let mut way = Way::new("vlan");
    let sent = {
        let frame = lan::frame(lan::station(2), lan::station(1), 0, 200);
        [&frame[..12], &[0x81, 0, 0x60, 5], &frame[12..]].concat()
    };
    let (_directory, far) = way.start("");
    let mut receiver = Guest::connect(far.socket(), GuestOptions::default()).unwrap();
    let frame = eventually(SOON, "the frame", || {
        way.sender.pair(0).send(&sent).unwrap();
        receiver.pair(0).receive().unwrap().filter(|it| it.bytes.len() >= 200).ok_or("others")
    });
    assert_eq!(frame.bytes, sent);
    drop(far);
    // The generic mode does not see the tag: it says so, with the command.
    let (_directory, far) = way.start(",mode=generic");
    far.expect_log(&format!("ethtool -K {} tx-vlan-hw-insert off", way.veth[0]));
}

#[test]
fn in_generic_mode_the_other_end_cuts_its_packets_itself() {
    let way = Way::new("cut");
    let is_on = || {
        let output = Command::new("ethtool").args(["-k", &way.veth[0]]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        ["tx-tcp-segmentation: on", "tx-udp-segmentation: on"].map(|line| text.contains(line))
    };
    assert_eq!(is_on(), [true; 2]);
    let (_directory, mut far) = way.start(",mode=generic");
    assert_eq!(is_on(), [false; 2]);
    assert!(far.terminate(SOON).unwrap().success(), "{}", far.log());
    assert_eq!(is_on(), [true; 2]);
}
