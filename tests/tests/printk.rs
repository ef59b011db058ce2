//! A debug message left in an XDP program shows in the stage that it is in the way of, and in no other of the guest's
//! sending: a veth's far end runs its program within the sender's own call.

use std::time::Duration;

use burst_trace::{Direction, Stage};
use frontend::{Guest, GuestOptions};
use lab::outside::Outside;
use ringscope_tests::af_xdp::passing_program;
use ringscope_tests::daemon::Daemon;
use ringscope_tests::pings::Pinger;
use ringscope_tests::trace::Trace;

const SOON: Duration = Duration::from_secs(5);
const PINGS: usize = 200;

/// The median time of each stage of sending, with so many messages a frame at the far end.
fn medians_us(messages: u32) -> Vec<(Stage, f64)> {
    let directory = tempfile::tempdir().unwrap();
    let outside = Outside::on_wire("printk", 1).unwrap();
    let object = passing_program(directory.path(), messages);
    outside.exec(&format!("ip link set dev eth0 xdpdrv object {object} section xdp")).unwrap();
    let datapath = format!("af-xdp:ifname={}", outside.wire());
    let daemon = Daemon::start(directory.path(), "xdp", &["--datapath", &datapath]).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
    for _ in 0..PINGS {
        assert!(pinger.ping(guest.pair(0), 56, SOON));
    }
    guest.stop_ring(1).unwrap();
    let trace = Trace::open(directory.path(), "xdp");
    let bursts = trace.bursts(1);
    assert!(bursts.len() >= PINGS);
    let median = |stage| {
        let mut times: Vec<_> = bursts.iter().map(|it| trace.stage_us(it, stage)).collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    Direction::Tx.stages().iter().map(|stage| (*stage, median(*stage))).collect()
}

#[test]
fn a_debug_message_in_an_xdp_program_shows_as_egress() {
    let (quiet, chatty) = (medians_us(0), medians_us(200));
    let more: Vec<_> = quiet
        .iter()
        .zip(&chatty)
        .map(|(&(stage, before), &(_, after))| (stage, after - before))
        .collect();
    let egress = more.iter().find(|(stage, _)| *stage == Stage::Egress).unwrap().1;
    assert!(egress > 20.0, "200 messages cost {egress} us: {quiet:?}, {chatty:?}");
    // The guest is told of what it sent after the answer was received, which came through that program, too: its
    // notice and signal may hold that, and are left out.
    for (stage, more) in more {
        if matches!(stage, Stage::Queued | Stage::Gather | Stage::Complete) {
            assert!(more < egress / 40.0, "{stage:?} {more} us more: {quiet:?}, {chatty:?}");
        }
    }
}
