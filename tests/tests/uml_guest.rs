//! User Mode Linux as the guest: a real Linux driver and a front end that is not QEMU's, without an emulator. It is for
//! function, not for latency: its user space is slow to wake.

use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use agent::{ClockPairs, READINGS};
use lab::clock_offset::ClockOffset;
use lab::guest::Output;
use report::journey::stamps::Stamps;
use ringscope_tests::af_xdp::passing_program;
use ringscope_tests::daemon::program;
use ringscope_tests::qemu::{Failure, GUEST, Place, said};
use ringscope_tests::traffic::{self, Check, From, Transfer};
use serde_json::Value;

/// Bytes of each TCP transfer.
const BULK: u64 = 16 << 20;
const PROBES: usize = 1000;
/// Probes whose one-way times are computed.
const FOLLOWED: usize = 200;
/// Largest error of the guest's clock: it takes 14 us to read it, because the call is caught, and more on a busy machine.
const BOUND_NS: u64 = 100_000;
/// Packets in each direction and run.
const PACKETS: u64 = 5000;
/// Most bytes of TCP in a frame, with time stamps.
const SEGMENT: u64 = 1448;
/// The echo is there, and its stamps are in their file, after this time.
const WRITTEN: Duration = Duration::from_millis(500);

#[test]
fn ping_udp_and_tcp_both_ways_and_nothing_is_dropped() -> Result<(), Failure> {
    carry_everything(&[], &["event_idx", "packed"])
}

#[test]
fn a_split_ring_carries_the_same() -> Result<(), Failure> {
    carry_everything(&["--features=-packed"], &["event_idx"])
}

/// The guest's features include `expected`, and no `packed` besides.
fn carry_everything(arguments: &[&str], expected: &[&str]) -> Result<(), Failure> {
    let mut place = Place::new(1)?;
    place.spawn(arguments)?;
    place.attach(place.uml_options()?)?;
    let stats = place.stats(None)?;
    let negotiated: Vec<_> =
        stats["features"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert_eq!(negotiated.contains(&"packed"), expected.contains(&"packed"), "{negotiated:?}");
    assert!(expected.iter().all(|name| negotiated.contains(name)), "{negotiated:?}");
    place.daemon().expect_log(&format!("the guest negotiated: {}\n", negotiated.join(" ")));
    assert_eq!(place.guest().accelerator(), "uml");
    traffic::ping(&mut place)?;
    traffic::udp(&mut place, From::Outside)?;
    traffic::udp(&mut place, From::Guest)?;
    for from in [From::Outside, From::Guest] {
        traffic::tcp(&place, from, BULK)?;
    }
    traffic::tcp_both_ways(&place, BULK, Check::Hash)?;
    let [rx, tx] = place.packets()?[..] else { return Err("expected two rings".into()) };
    assert!(rx > 1000 && tx > 1000, "{rx} packets to the guest, {tx} from it");
    assert_eq!(place.drops()?, []);
    // A guest that is killed leaves no process, and the next one is served.
    let guest = place.guest().pid();
    place.guest().kill()?;
    place.attach(place.uml_options()?)?;
    assert_ne!(place.guest().pid(), guest);
    traffic::everything_a_little(&mut place)
}

#[test]
fn the_guest_gets_the_mtu_of_the_flag_or_of_the_interface() -> Result<(), Failure> {
    let mut place = Place::new(1)?;
    for (arguments, expected) in [
        (&["--mtu", "1400"][..], "1400"),
        (&[], "1500"),
        (&["--mtu=1400", "--features=-mtu"], "1500"),
    ] {
        place.spawn(arguments)?;
        place.attach(place.uml_options()?)?;
        assert_eq!(place.guest().check("cat /sys/class/net/eth0/mtu")?.trim(), expected);
        place.daemon().terminate(WRITTEN)?;
    }
    Ok(())
}

/// The configuration space and the control queue are the daemon's. The driver switches segmentation off and on by the
/// command that it also sends when an XDP program is attached in the guest.
#[test]
fn its_driver_sends_commands_and_they_have_effect() -> Result<(), Failure> {
    let mut place = Place::new(1)?;
    place.spawn(&[])?;
    place.attach(place.uml_options()?)?;
    assert_eq!(place.guest().check("cat /sys/class/net/eth0/carrier")?.trim(), "1");
    place.guest().check("ip link set eth0 address 02:00:00:00:00:77")?;
    traffic::everything_a_little(&mut place)?;
    for (switch, segmentation) in [("off", "off"), ("on", "on")] {
        place.guest().check(&format!("ethtool -K eth0 rx-gro-hw {switch}"))?;
        let features = said(Command::new("ethtool").args(["-k", place.tap()]))?;
        let expected = format!("tcp-segmentation-offload: {segmentation}");
        assert!(features.contains(&expected), "expected {expected} of the tap; found {features}");
        traffic::tcp(&place, From::Outside, BULK)?;
    }
    assert_eq!(place.drops()?, []);
    let log = place.daemon().log();
    assert!(!log.contains("refused") && !log.contains("failed"), "{log}");
    Ok(())
}

/// The guest's driver switches its receive offloads off for the program, and the daemon follows. (QEMU does not pass this on:
/// `qemu_xdp.rs`.)
#[test]
fn tcp_passes_an_xdp_program_in_the_guest() -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let object = passing_program(directory.path(), 0);
    let mut place = Place::new(1)?;
    place.spawn(&[])?;
    place.attach(place.uml_options()?)?;
    place.daemon().expect_log("guest_csum");
    traffic::ping(&mut place)?;
    let load = format!("/sbin/ip link set eth0 xdp object {object} section xdp");
    place.guest().check(&load)?;
    traffic::tcp_both_ways(&place, BULK, Check::Hash)?;
    assert_eq!(place.drops()?, []);
    Ok(())
}

/// Its driver resizes a ring by resetting it alone (`ring_reset`), which Linux's front end for User Mode Linux cannot
/// (`virtio_uml_config_ops`, arch/um/drivers/virtio_uml.c). So it refuses another size. (`ring_reset.rs` shows what such a
/// reset does.)
#[test]
fn another_ring_size_is_refused_by_the_guest_and_frames_go_on() -> Result<(), Failure> {
    let mut place = Place::new(1)?;
    place.spawn(&[])?;
    place.attach(place.uml_options()?)?;
    let before = place.guest().check("ethtool -g eth0")?;
    let mut transfer = Transfer::start(&place, From::Outside, 4 * BULK, Check::Hash)?;
    for _ in 0..10 {
        let Output { status, text } = place.guest().run("ethtool -G eth0 rx 64 tx 64")?;
        assert!(status != 0 && text.contains("No such file or directory"), "{status}: {text}");
    }
    transfer.finish()?;
    assert_eq!(place.guest().check("ethtool -g eth0")?, before);
    traffic::everything_a_little(&mut place)?;
    assert_eq!(place.drops()?, []);
    Ok(())
}

/// Without offloads each packet is a frame of its own. `RINGSCOPE_UML_PACKETS` is their number in each direction.
#[test]
fn every_byte_of_many_packets_arrives_on_split_and_packed_rings() -> Result<(), Failure> {
    let packets = match std::env::var("RINGSCOPE_UML_PACKETS") {
        Ok(number) => number.parse()?,
        Err(_) => PACKETS,
    };
    for make in [|| Place::new(1), || Place::on_wire(1, "")] {
        let mut place = make()?;
        for features in ["--features=-csum,-guest_csum", "--features=-csum,-guest_csum,-packed"] {
            place.spawn(&[features])?;
            place.attach(place.uml_options()?)?;
            // The agents in the guest are there after that.
            traffic::ping(&mut place)?;
            for from in [From::Outside, From::Guest] {
                traffic::tcp(&place, from, packets * SEGMENT)?;
            }
            let [rx, tx] = place.packets()?[..] else { return Err("expected two rings".into()) };
            assert!(rx >= packets && tx >= packets, "{features}: {rx} packets in, {tx} out");
            place.guest().kill()?;
            place.daemon().terminate(WRITTEN)?;
        }
    }
    Ok(())
}

/// What the sender, the daemon and the echo in the guest stamped of each probe adds up to its round trip. The offset between
/// the clocks of guest and host is known by the counter that both read: it is within the bounds that the probes give.
/// `RINGSCOPE_UML_PROBES` is the number of probes.
#[test]
fn a_thousand_probes_are_followed_from_application_to_application() -> Result<(), Failure> {
    let count = match std::env::var("RINGSCOPE_UML_PROBES") {
        Ok(number) => number.parse()?,
        Err(_) => PROBES,
    };
    let mut place = Place::new(1)?;
    place.spawn(&["--trace-probe", "7010"])?;
    place.attach(place.uml_options()?)?;
    let (host, guest) =
        ClockPairs::around(READINGS, || place.guest().check("ringscope agent clock"));
    let truth = ClockOffset::between(&host.ok_or("no counter")?, &serde_json::from_str(&guest?)?)?;
    let files = probe(&mut place, count)?;
    for relation in ["drifting", "constant"] {
        let mut stats = Command::new(program("ringscope")?);
        stats.args(["stats", "--json", "--name", "vm0", "--initiator", "host", "--run-dir"]);
        stats.arg(place.directory()).arg("--probes").arg(&files[0]).arg("--echo").arg(&files[1]);
        let found = said(stats.args(["--clock-relation", relation]))?;
        let found: Value = serde_json::from_str(&found)?;
        // User Mode Linux has none of the kernel's own types, so its stages are not stamped, and all else is.
        let reason = "n/a: this kernel has no BTF (/sys/kernel/btf/vmlinux)";
        assert_eq!(found["guest_stages"], reason);
        let clock = &found["clock"];
        eprintln!("{clock} {}; {truth:?}", found["one_way"]);
        assert_eq!(
            (&clock["relation"], &found["clock_note"]),
            (&Value::from(relation), &Value::Null)
        );
        let end = |name: &str| clock[name].as_i64().expect("an offset");
        let known = truth.bound_ns.cast_signed();
        let (low, high) = (end("offset_low_ns") - known, end("offset_high_ns") + known);
        assert!((low..=high).contains(&truth.ahead_ns), "{clock}: {truth:?}");
        let journeys = found["journeys"].as_array().ok_or("no journeys")?;
        assert!(journeys.len() >= count, "{} journeys of {count} probes", journeys.len());
        for journey in journeys {
            let parts = journey["parts_ns"].as_array().ok_or("no parts")?;
            let parts: Vec<_> = parts.iter().filter_map(Value::as_i64).collect();
            assert!(parts.iter().all(|ns| *ns >= 0), "{journey}");
            let sum: i64 = parts.iter().sum();
            assert_eq!(Some(sum), journey["round_trip_ns"].as_i64(), "{journey}");
        }
    }
    Ok(())
}

/// The clock of the guest is not the host's, but both read the same counter.
#[test]
fn one_way_times_of_probes_add_up_to_the_round_trip_without_the_turn() -> Result<(), Failure> {
    let mut place = Place::new(1)?;
    place.spawn(&["--trace-probe", "7010"])?;
    place.attach(place.uml_options()?)?;
    let (host, guest) =
        ClockPairs::around(READINGS, || place.guest().check("ringscope agent clock"));
    let (host, guest) = (host.ok_or("no counter")?, serde_json::from_str(&guest?)?);
    let offset = ClockOffset::between(&host, &guest)?;
    assert!(offset.bound_ns < BOUND_NS, "{offset:?}");
    let [ping, echo] = probe(&mut place, FOLLOWED)?.map(|file| Stamps::read(&file));
    let (ping, echo) = (ping?, echo?);
    let on_host = |time| offset.on_host(time).expect("a time of this test");
    let mut followed = 0;
    for (id, sent) in &ping.probes {
        let (Some(turned), Some(received)) = (echo.probes.get(id), sent.received) else { continue };
        let arrived = turned.received.expect("an echo has received what it sends back");
        let stack = turned.received_kernel.expect("the guest's kernel stamps it");
        // In the order of time, on both clocks.
        let times = [sent.sent, on_host(stack), on_host(arrived), on_host(turned.sent), received];
        assert!(times.is_sorted(), "{times:?}, {offset:?}");
        let (there, back) = (times[2] - times[0], times[4] - times[3]);
        assert!(there > 0 && back > 0, "{times:?}, {offset:?}");
        assert_eq!(there + back, (received - sent.sent) - (turned.sent - arrived));
        followed += 1;
    }
    assert!(followed >= FOLLOWED, "{followed} of {FOLLOWED} probes were stamped by both ends");
    // The clock of another boot, or of another machine, is refused.
    let mut other: ClockPairs = guest;
    for pair in &mut other.pairs {
        pair.before += host.pairs[1].after;
        pair.after += host.pairs[1].after;
    }
    let refused = ClockOffset::between(&host, &other).map_err(|error| error.to_string());
    assert!(refused.is_err_and(|error| error.contains("it is not the host's counter")));
    Ok(())
}

/// Sends probes to an echo in the guest. Returns the files of stamps: the sender's and the echo's.
fn probe(place: &mut Place, count: usize) -> Result<[PathBuf; 2], Failure> {
    // Long enough for this number of probes on a busy machine.
    let timeout = 60 + count / 50;
    let echo = format!("udp-echo --bind 0.0.0.0:7010 --timeout {timeout} --stamps /run/echo.csv");
    place.guest().check(&format!("ringscope agent {echo} --guest-stages >/dev/null 2>&1 &"))?;
    sleep(WRITTEN);
    let files = ["ping.csv", "echo.csv"].map(|name| place.directory().join(name));
    let mut ping = place.outside.command(&program("ringscope")?.to_string_lossy());
    ping.args(["agent", "udp-ping", &format!("{GUEST}:7010"), "--mode", "closed", "--count"]);
    said(ping.arg(count.to_string()).arg("--stamps").arg(&files[0]))?;
    sleep(WRITTEN);
    let stamps = place.guest().check("cat /run/echo.csv")?;
    std::fs::write(&files[1], stamps.replace('\r', ""))?;
    Ok(files)
}
