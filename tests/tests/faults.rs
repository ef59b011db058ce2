//! Planted losses and errors: what is lost is counted by its cause, what is not comes, and the worker lives.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use burst_trace::DropCause;
use frontend::{Guest, GuestOptions, Pair};
use lab::Signal;
use lab::outside::Outside;
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::frames;
use ringscope_tests::pings::Pinger;
use ringscope_tests::trace::Trace;

const SOON: Duration = Duration::from_secs(5);
const RX: u16 = 0;
const TX: u16 = 1;
/// The daemon on a wire of the kernel.
const NAME: &str = "wire";

/// Sends so many numbered frames in bursts to a daemon that reflects them; which ones came back, in order.
fn reflected(pair: &mut Pair, count: usize) -> Vec<usize> {
    let number = |bytes: &[u8]| usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    let mut came = Vec::new();
    let mut take = |pair: &mut Pair| {
        while let Some(frame) = pair.receive().unwrap() {
            let n = number(&frame.bytes);
            assert_eq!(frame.bytes[2..], frames::frame(n, 60 + n)[2..]);
            came.push(n);
        }
    };
    for n in 0..count {
        let mut frame = frames::frame(n, 60 + n);
        frame[..2].copy_from_slice(&u16::try_from(n).unwrap().to_be_bytes());
        eventually(SOON, "room in the ring", || {
            if pair.queue(&frame).unwrap() {
                return Ok(());
            }
            pair.flush().unwrap();
            take(pair);
            Err("none")
        });
        if n % 23 == 0 {
            pair.flush().unwrap();
        }
    }
    pair.flush().unwrap();
    eventually(SOON, "every frame to be sent", || {
        pair.reap().unwrap();
        take(pair);
        let driver = pair.transmit_ring().driver();
        let (free, size) = (driver.free(), usize::from(driver.setup().size));
        when(free == size, format!("{free} of {size} descriptors"))
    });
    sleep(Duration::from_millis(20));
    take(pair);
    came
}

fn lost_of(faults: &[&str], directory: &Path, options: GuestOptions, poll: &str) -> Vec<usize> {
    const FRAMES: usize = 1000;
    let mut arguments = vec!["--datapath", "reflect", "--poll", poll];
    faults.iter().for_each(|fault| arguments.extend(["--fault", fault]));
    let daemon = Daemon::start(directory, "lossy", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), options).unwrap();
    let came = reflected(guest.pair(0), FRAMES);
    assert!(came.is_sorted(), "in order");
    guest.check_canaries().unwrap();
    guest.stop_ring(RX).unwrap();
    guest.stop_ring(TX).unwrap();
    let trace = Trace::open(directory, "lossy");
    let (tx, rx) = (trace.drops(TX, DropCause::TxFault), trace.drops(RX, DropCause::RxFault));
    assert_eq!(came.len() as u64 + tx + rx, FRAMES as u64, "{faults:?}: none without a counter");
    assert_eq!(trace.check(TX).packets, FRAMES as u64 - tx, "{faults:?}");
    assert_eq!(trace.check(RX).packets, came.len() as u64, "{faults:?}");
    let came: BTreeSet<_> = came.into_iter().collect();
    (0..FRAMES).filter(|n| !came.contains(n)).collect()
}

#[test]
fn the_same_frames_are_lost_again_whatever_the_rings_are_like() {
    let directory = tempfile::tempdir().unwrap();
    for faults in
        [&["drop:tx=0.1,seed=7"][..], &["drop:rx=0.1,seed=7"], &["drop=0.05", "drop:tx,every=100"]]
    {
        let mut first = None;
        for (options, poll) in frames::formats(&GuestOptions::default().queue_size(128))
            .into_iter()
            .zip(["never", "adaptive", "never", "always"])
        {
            let lost = lost_of(faults, directory.path(), options, poll);
            assert!((60..150).contains(&lost.len()), "{faults:?}: {}", lost.len());
            assert_eq!(*first.get_or_insert(lost.clone()), lost, "{faults:?}");
        }
    }
}

/// The daemon's wire, and each polling mode on it.
fn wires() -> impl Iterator<Item = (&'static str, &'static str)> {
    ["tap", "af-xdp"].into_iter().flat_map(|wire| ["never", "adaptive"].map(|poll| (wire, poll)))
}

/// The outside host on such a wire, a daemon with these faults, and a guest.
fn on_wire(wire: &str, directory: &Path, poll: &str, fault: &str) -> (Outside, Daemon, Guest) {
    let (outside, ifname) = if wire == "tap" {
        let mut outside = Outside::new("faults").unwrap();
        let tap = outside.add_tap(1).unwrap();
        (outside, tap)
    } else {
        let outside = Outside::on_wire("faults", 1).unwrap();
        let veth = outside.wire().to_owned();
        (outside, veth)
    };
    let datapath = format!("{wire}:ifname={ifname}");
    let arguments = ["--datapath", &datapath, "--poll", poll, "--fault", fault];
    let daemon = Daemon::start(directory, NAME, &arguments).unwrap();
    let guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    (outside, daemon, guest)
}

#[test]
fn on_a_wire_the_same_frames_are_lost_again_and_counted() {
    const PINGS: usize = 60;
    let directory = tempfile::tempdir().unwrap();
    for (fault, ring, cause) in [
        ("drop:tx=0.1,seed=5", TX, DropCause::TxFault),
        ("drop:rx=0.1,seed=5", RX, DropCause::RxFault),
    ] {
        let mut runs = Vec::new();
        for (wire, poll) in wires() {
            let (_outside, _daemon, mut guest) = on_wire(wire, directory.path(), poll, fault);
            let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
            let mut ping = |_| pinger.ping(guest.pair(0), 100, Duration::from_millis(60));
            let answered: Vec<bool> = (0..PINGS).map(&mut ping).collect();
            guest.stop_ring(RX).unwrap();
            guest.stop_ring(TX).unwrap();
            let lost = answered.iter().filter(|&&answered| !answered).count();
            assert!((1..PINGS / 3).contains(&lost), "{fault} {wire}: {lost}");
            let trace = Trace::open(directory.path(), NAME);
            let counted = trace.drops(ring, cause);
            assert!(counted >= lost as u64, "{fault} {wire}: {counted} counted, {lost} lost");
            assert_eq!(trace.check(TX).packets + trace.drops(TX, cause), pinger.sent.len() as u64);
            assert_eq!(trace.check(RX).packets, pinger.came.len() as u64);
            runs.push(answered);
        }
        // Each wire, polled in one way and the other.
        for pair in runs.chunks(2) {
            assert_eq!(pair[0], pair[1], "{fault}");
        }
    }
}

/// Each error and what becomes of the frame that it meets: `None` if it is sent later.
const ERRORS: [(&str, Option<DropCause>); 5] = [
    ("EINVAL", Some(DropCause::TxRefused)),
    ("EIO", Some(DropCause::TxLinkDown)),
    ("EAGAIN", None),
    ("ENOBUFS", Some(DropCause::TxNoMemory)),
    ("ENETDOWN", Some(DropCause::TxLinkDown)),
];

#[test]
fn an_error_costs_the_frame_that_it_meets_or_none_at_all() {
    const FRAMES: usize = 500;
    const EVERY: usize = 10;
    let directory = tempfile::tempdir().unwrap();
    for (error, cause) in ERRORS {
        for (options, poll) in frames::formats(&GuestOptions::default().queue_size(128))
            .into_iter()
            .zip(["never", "adaptive", "always", "never"])
        {
            let fault = format!("error:tx.{error},every={EVERY}");
            let arguments =
                ["--datapath", "reflect", "--queue-pairs", "2", "--poll", poll, "--fault", &fault];
            let mut daemon = Daemon::start(directory.path(), "errors", &arguments).unwrap();
            let mut guest = Guest::connect(daemon.socket(), options.queue_pairs(2)).unwrap();
            for pair in 0..2_u16 {
                let came = reflected(guest.pair(pair.into()), FRAMES);
                let expected: Vec<_> =
                    (0..FRAMES).filter(|n| cause.is_none() || n % EVERY != EVERY - 1).collect();
                assert_eq!(came, expected, "{error} --poll {poll}");
                guest.stop_ring(2 * pair + TX).unwrap();
                let trace = Trace::open(directory.path(), "errors");
                for (_, one) in ERRORS {
                    let Some(one) = one else { continue };
                    let counted = if cause == Some(one) { FRAMES / EVERY } else { 0 };
                    assert_eq!(trace.drops(2 * pair + TX, one), counted as u64, "{error}");
                }
            }
            assert!(daemon.is_alive(), "{}", daemon.log());
        }
    }
}

#[test]
fn on_a_wire_what_an_error_meets_is_counted_or_sent_later() {
    const PINGS: u64 = 50;
    let directory = tempfile::tempdir().unwrap();
    for (error, cause) in ERRORS {
        for (wire, poll) in wires() {
            let fault = format!("error:tx.{error},every=10");
            let (_outside, mut daemon, mut guest) = on_wire(wire, directory.path(), poll, &fault);
            let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
            let mut lost = 0;
            for _ in 0..PINGS {
                let patience = Duration::from_millis(if cause.is_some() { 100 } else { 5000 });
                lost += u64::from(!pinger.ping(guest.pair(0), 100, patience));
            }
            // The question for the address was one frame more.
            assert_eq!(lost, if cause.is_some() { PINGS / 10 } else { 0 }, "{error} {wire} {poll}");
            guest.stop_ring(TX).unwrap();
            let trace = Trace::open(directory.path(), NAME);
            let counted = cause.map_or(0, |cause| trace.drops(TX, cause));
            assert_eq!(counted, lost, "{error} {wire} --poll {poll}");
            assert!(daemon.is_alive(), "{}", daemon.log());
        }
    }
}

#[test]
fn a_wire_that_cannot_be_read_now_is_read_later_and_loses_nothing() {
    const PINGS: usize = 40;
    let directory = tempfile::tempdir().unwrap();
    for (error, _) in ERRORS {
        for (wire, poll) in wires() {
            let fault = format!("error:rx.{error},every=8");
            let (_outside, mut daemon, mut guest) = on_wire(wire, directory.path(), poll, &fault);
            let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
            pinger.ping_all(guest.pair(0), PINGS);
            guest.stop_ring(RX).unwrap();
            let trace = Trace::open(directory.path(), NAME);
            let counted = trace.drops(RX, DropCause::RxError);
            // That there is nothing to be read now is no loss.
            let expected = if error == "EAGAIN" { 0..1 } else { 4..PINGS as u64 };
            assert!(expected.contains(&counted), "{error} {wire} --poll {poll}: {counted}");
            assert_eq!(trace.check(RX).packets, pinger.came.len() as u64);
            assert!(daemon.is_alive(), "{}", daemon.log());
        }
    }
}

#[test]
fn a_datapath_that_never_takes_a_frame_holds_up_its_guest_and_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    for (wire, poll) in wires() {
        let (_outside, mut daemon, mut guest) =
            on_wire(wire, directory.path(), poll, "error:tx.EAGAIN");
        for n in 0..10 {
            assert!(guest.pair(0).send(&frames::frame(n, 100)).unwrap());
        }
        sleep(Duration::from_millis(50));
        let before = daemon.cpu_time();
        sleep(Duration::from_secs(1));
        assert!(
            daemon.cpu_time() - before <= Duration::from_millis(100),
            "{wire} --poll {poll}: it spins"
        );
        assert_eq!(guest.pair(0).reap().unwrap(), 0, "{wire} --poll {poll}");
        // They are the guest's own again once the ring stops.
        assert_eq!(guest.stop_ring(TX).unwrap(), 0, "{wire} --poll {poll}");
        daemon.signal(Signal::TERM).unwrap();
        let ended = daemon.wait(Duration::from_secs(1)).unwrap();
        assert!(ended.success(), "{}", daemon.log());
    }
}
