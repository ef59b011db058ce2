//! What changes on an interface while AF_XDP serves it: queues, MTU, and the interface itself.

use std::process::Command;
use std::time::Duration;

use burst_trace::DropCause;
use frontend::{Guest, GuestOptions};
use lab::outside::Outside;
use ringscope_tests::af_xdp::{NEIGHBOUR, start};
use ringscope_tests::cable::{ip, quieten};
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::frames::frame;
use ringscope_tests::pings::Pinger;

const SOON: Duration = Duration::from_secs(5);
/// UDP flows of the outside host, each of one frame.
const FLOWS: usize = 200;

fn ethtool(line: &str) {
    let status = Command::new("ethtool").args(line.split_whitespace()).status().unwrap();
    assert!(status.success(), "ethtool {line}");
}

/// The outside host sends a frame of each flow to the guest.
fn send_flows(outside: &Outside) {
    outside.exec(NEIGHBOUR).unwrap();
    let send =
        format!("for p in $(seq {FLOWS}); do echo x >/dev/udp/10.77.0.2/$((5000 + p)); done");
    outside.exec(&format!("bash -c '{send}'")).unwrap();
}

/// Number of the UDP frames that the guest has now.
fn udp_frames(guest: &mut Guest) -> usize {
    let mut count = 0;
    for pair in guest.pairs() {
        while let Some(frame) = pair.receive().unwrap() {
            count += usize::from(frame.bytes.len() > 42 && frame.bytes[23] == 17);
        }
    }
    count
}

#[test]
fn frames_of_a_queue_that_the_guest_does_not_use_are_counted() {
    for keys in ["", ",umem=guest"] {
        let outside = Outside::on_wire("unused", 2).unwrap();
        let (_directory, daemon) = start(&outside, keys, &["--queue-pairs", "2"]);
        // Without a guest all frames are the host's.
        send_flows(&outside);
        // The second queue pair is never started.
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        send_flows(&outside);
        let mut came = udp_frames(&mut guest);
        eventually(SOON, &format!("frames of {FLOWS} flows"), || {
            came += udp_frames(&mut guest);
            // They are counted with the next frames that are served.
            assert!(guest.pair(0).send(&frame(1, 60)).unwrap());
            // Whichever queue pair asks the program first counts them.
            let reader = daemon.reader().unwrap();
            let unserved: u64 =
                [0, 2].into_iter().map(|ring| reader.drops(ring, DropCause::RxUnservedQueue)).sum();
            when(came as u64 + unserved == FLOWS as u64, format!("{came} and {unserved}, {keys}"))
        });
        assert!((1..FLOWS).contains(&came), "{came}");
    }
}

#[test]
fn queues_that_are_added_are_served() {
    for (keys, poll) in [("", "never"), ("", "always"), (",umem=guest", "never")] {
        let outside = Outside::on_wire("grow", 4).unwrap();
        outside.exec("ethtool -L eth0 rx 1 tx 1").unwrap();
        ethtool(&format!("-L {} rx 1 tx 1", outside.wire()));
        let (_directory, daemon) = start(&outside, keys, &["--poll", poll]);
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        Pinger::new(guest.pair(0), Pinger::MAC).ping_all(guest.pair(0), 1);
        ethtool(&format!("-L {} rx 4", outside.wire()));
        daemon.expect_log("4 receive queues now");
        outside.exec("ethtool -L eth0 tx 4 rx 4").unwrap();
        send_flows(&outside);
        let mut came = 0;
        eventually(SOON, &format!("frames of {FLOWS} flows, {keys}, --poll {poll}"), || {
            came += udp_frames(&mut guest);
            when(came == FLOWS, came)
        });
        Pinger::new(guest.pair(0), Pinger::MAC).ping_all(guest.pair(0), 10);
    }
}

#[test]
fn a_datagram_comes_whole_when_the_mtu_was_raised() {
    for keys in ["", ",mode=generic", ",umem=guest"] {
        let outside = Outside::on_wire("raised", 1).unwrap();
        let (_directory, daemon) = start(&outside, keys, &[]);
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        Pinger::new(guest.pair(0), Pinger::MAC).ping_all(guest.pair(0), 1);
        ip(&format!("link set {} mtu 9000", outside.wire()));
        daemon.expect_log("the MTU is 9000 now");
        outside.exec("ip link set eth0 mtu 9000").unwrap();
        outside.exec(NEIGHBOUR).unwrap();
        let send = "head -c 8000 /dev/zero | dd bs=8000 iflag=fullblock >/dev/udp/10.77.0.2/9";
        outside.exec(&format!("bash -c '{send}'")).unwrap();
        let frame =
            eventually(SOON, "a datagram", || guest.pair(0).receive().unwrap().ok_or("none"));
        assert_eq!(frame.bytes.len(), 14 + 20 + 8 + 8000, "{keys}");
    }
}

/// Makes the wire of `outside` again, after it was removed.
fn make_again(outside: &Outside) {
    let (wire, namespace) = (outside.wire(), outside.namespace());
    ip(&format!("link add {wire} type veth peer name eth0 netns {namespace}"));
    quieten(wire);
    outside.exec("echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6 || true").unwrap();
    ip(&format!("link set {wire} up"));
    outside.exec("ip address add 10.77.0.1/24 dev eth0 && ip link set eth0 up").unwrap();
}

/// The guest's pings are answered, and frames that it did not ask for come.
fn expect_traffic(outside: &Outside, guest: &mut Guest) {
    outside.exec(NEIGHBOUR).unwrap();
    eventually(SOON, "a frame", || {
        outside.exec("bash -c 'echo x >/dev/udp/10.77.0.2/9'").unwrap();
        when(udp_frames(guest) > 0, "none")
    });
    Pinger::new(guest.pair(0), Pinger::MAC).ping_all(guest.pair(0), 20);
}

#[test]
fn an_interface_that_was_removed_and_made_again_is_served_by_its_name() {
    for (keys, poll) in [("", "never"), ("", "always"), (",mode=generic", "never")] {
        let outside = Outside::on_wire("again", 1).unwrap();
        let (_directory, daemon) = start(&outside, keys, &["--poll", poll]);
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        for round in 1..=2 {
            let expect = |text: &str| {
                eventually(SOON, text, || {
                    let log = daemon.log();
                    when(log.matches(text).count() == round, log)
                });
            };
            expect_traffic(&outside, &mut guest);
            ip(&format!("link delete {}", outside.wire()));
            expect("is gone; it is served again when");
            make_again(&outside);
            expect("is there again, and is served");
        }
        expect_traffic(&outside, &mut guest);
    }
}

#[test]
fn an_interface_that_came_back_from_another_namespace_is_served() {
    for keys in ["", ",mode=generic"] {
        let outside = Outside::on_wire("moved", 1).unwrap();
        let (_directory, daemon) = start(&outside, keys, &[]);
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        expect_traffic(&outside, &mut guest);
        let (wire, namespace) = (outside.wire(), outside.namespace());
        ip(&format!("link set {wire} netns {namespace}"));
        daemon.expect_log("is gone; it is served again when");
        ip(&format!("-n {namespace} link set {wire} netns 1"));
        ip(&format!("link set {wire} up"));
        daemon.expect_log("is there again, and is served");
        let is_up = "[ $(cat /sys/class/net/eth0/operstate) = up ]";
        outside.exec(&format!("until {is_up}; do sleep 0.1; done")).unwrap();
        expect_traffic(&outside, &mut guest);
    }
}

/// The kernel has the guest's memory for the sockets of one interface.
#[test]
fn with_frames_sent_from_guest_memory_what_to_do_is_said_once_when_the_interface_is_gone() {
    for moved in [false, true] {
        let outside = Outside::on_wire("pinned", 1).unwrap();
        let (_directory, mut daemon) = start(&outside, ",umem=guest", &[]);
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        expect_traffic(&outside, &mut guest);
        let (wire, namespace) = (outside.wire(), outside.namespace());
        if moved {
            ip(&format!("link set {wire} netns {namespace}"));
        } else {
            ip(&format!("link delete {wire}"));
        }
        let said = "is served only after a restart of ringscoped";
        daemon.expect_log(said);
        for n in 0..10 {
            assert!(guest.pair(0).send(&frame(n, 60)).unwrap());
            guest.pair(0).reap().unwrap();
        }
        assert_eq!(daemon.log().matches(said).count(), 1, "{}", daemon.log());
        assert!(daemon.is_alive(), "{}", daemon.log());
    }
}

#[test]
fn an_interface_with_another_name_is_served_on() {
    for keys in ["", ",mode=generic", ",umem=guest"] {
        let outside = Outside::on_wire("named", 1).unwrap();
        let (_directory, daemon) = start(&outside, keys, &[]);
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        let other = format!("{}b", outside.wire());
        ip(&format!("link set {} name {other}", outside.wire()));
        daemon.expect_log(&format!("is called {other} now, and is served on"));
        expect_traffic(&outside, &mut guest);
    }
}
