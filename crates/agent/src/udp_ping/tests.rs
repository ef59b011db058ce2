//! Round trips against an echo of this machine.

use super::*;
use crate::udp_echo::echo;
use clap::Parser;
use rustix::process::geteuid;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn ping(line: &str) -> Result<PingReport, Error> {
    run(&Line::parse_from(line.split_whitespace()).args)
}

fn echo_server() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || echo(&socket, Some(Duration::from_secs(10))));
    address
}

#[test]
fn both_loops_count_every_packet() {
    for mode in ["open", "closed"] {
        let line = format!("ping {} --count 50 --warmup 5 --mode {mode}", echo_server());
        let report = ping(&line).unwrap();
        assert_eq!((report.sent, report.received, report.lost), (50, 50, 0), "{mode}");
        assert_eq!((report.duplicates, report.changed), (0, 0));
        assert!(report.figures.unwrap().min_ns > 0);
    }
}

#[test]
fn a_changed_payload_is_no_reply() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut packet = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let sequence = Probe::read(&packet[..length]).unwrap().sequence;
            packet[length - 1] ^= u8::from(sequence % 2 == 1);
            socket.send_to(&packet[..length], from).unwrap();
        }
    });
    for mode in ["open", "closed"] {
        let line = format!("ping {target} --count 4 --warmup 0 --wait-ms 50 --mode {mode}");
        let report = ping(&line).unwrap();
        assert_eq!((report.received, report.lost, report.changed), (2, 2, 2), "{mode}");
    }
}

#[test]
fn a_silent_peer_is_told_in_bounded_time() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = silent.local_addr().unwrap();
    for mode in ["open", "closed"] {
        let line = format!("ping {target} --count 3 --warmup 0 --wait-ms 30 --mode {mode}");
        assert!(matches!(ping(&line), Err(Error::NoReply { sent: 3, .. })), "{mode}");
    }
}

#[test]
fn a_silent_peer_is_given_up_after_our_patience() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = silent.local_addr().unwrap();
    // One with packets far apart, one with a long wait for each.
    for how in ["--mode open --interval-us 60000000", "--mode closed --wait-ms 60000"] {
        let line = format!("ping {target} --count 1000000 --patience 1 {how}");
        match ping(&line) {
            Err(Error::NoReply { sent: 1, seconds, .. }) => assert!((0.9..20.0).contains(&seconds)),
            other => panic!("{how}: {other:?}"),
        }
    }
}

#[test]
fn samples_hold_one_line_a_packet() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("samples.csv");
    let target = echo_server();
    ping(&format!("ping {target} --count 4 --warmup 1 --samples {}", path.display())).unwrap();
    assert_eq!(std::fs::read_to_string(path).unwrap().lines().count(), 6);
}

#[test]
fn wrong_values_are_refused() {
    for flag in [
        "--size 31",
        "--count 0",
        "--wait-ms 0",
        "--txtime 1 --mode closed",
        "--txtime 1 --delta-us 900 --gate 1000:0-900",
        "--cpu 1023",
    ] {
        let error = ping(&format!("ping 127.0.0.1:9 {flag}")).unwrap_err();
        assert!(error.to_string().contains("expected"), "{error}");
    }
}

/// `None` for a user who may not give packets launch times.
fn ping_with_launch_times(line: &str) -> Option<PingReport> {
    match ping(line) {
        Err(error @ Error::Usage { flag: "--txtime", .. }) if !geteuid().is_root() => {
            assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
            None
        }
        other => Some(other.unwrap()),
    }
}

/// The loopback interface has no qdisc that would hold a packet.
#[test]
fn launch_times_that_nobody_keeps_are_early_and_nothing_is_lost() {
    let line = format!("ping {} --count 20 --warmup 2 --txtime 5000", echo_server());
    let Some(report) = ping_with_launch_times(&line) else { return };
    assert_eq!((report.sent, report.received, report.lost), (20, 20, 0));
    let launch = report.launch.as_ref().unwrap();
    assert_eq!((launch.unsent(), launch.gated), (0, 0));
    // But for those that a busy machine sent after their time.
    assert!(launch.early + report.late >= 20 && launch.early > 0, "{report:?}");
    // They are back before they are due.
    assert_eq!(report.figures.unwrap().min_ns, 0);
}

#[test]
fn waits_for_the_gate_are_apart() {
    // Open in the second half of each ms, sent every 200 us.
    let line = format!(
        "ping {} --count 50 --warmup 0 --interval-us 200 --txtime 5000 --gate 1000:500-1000",
        echo_server()
    );
    let Some(report) = ping_with_launch_times(&line) else { return };
    let launch = report.launch.unwrap();
    assert!((20..50).contains(&launch.gated), "{launch:?}");
    assert!((50_000.0..500_000.0).contains(&launch.gate_mean_ns), "{launch:?}");
}

#[test]
fn a_report_without_launch_times_has_none() {
    let report = ping(&format!("ping {} --count 2", echo_server())).unwrap();
    assert!(!serde_json::to_string(&report).unwrap().contains("launch"));
}
