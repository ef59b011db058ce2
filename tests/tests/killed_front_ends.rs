//! Daemons that are killed under QEMU and under DPDK's virtio-user as the server, while datagrams go both ways.
//!
//! `RINGSCOPE_FRONT_END_KILLS` is the number of kills of each guest.

use std::thread::sleep;
use std::time::{Duration, Instant};

use agent::SendReport;
use lab::process::Process;
use ringscope_tests::af_xdp::NEIGHBOUR;
use ringscope_tests::daemon::program;
use ringscope_tests::dpdk::{GuestShape, Testpmd};
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::monitor::Monitor;
use ringscope_tests::qemu::{Failure, GUEST, Place, SOON, despite_qemu};
use ringscope_tests::traffic::{self, outside_agent, report_in};
use serde_json::{Value, json};

/// Keeps QEMU from taking the link down, and from dropping what is in the guest's ring as soon as a daemon is gone
/// (backend/README.md, "After a kill").
const KEPT: &str = "status=off,ioeventfd=off";
/// Without it the kernel counts frames that went to it with one call as one.
const GRO_OFF: &str = ",gro=off";

/// Most frames that may come twice after each kill: a burst, or two where a burst of the datapath's own is under way.
const BURST_MAX: u64 = 64;
/// Datagrams a second to the guest, and from it: as many as an emulated guest carries.
const RATE: u64 = 1000;
/// Time of one run of datagrams.
const RUN: Duration = Duration::from_secs(10);
/// No daemon is killed in the last part of a run, so that what is under way comes.
const LAST: Duration = Duration::from_secs(2);
/// Least number of frames of the guest that a daemon carries before it is killed.
const CARRIED: u64 = 20;

/// Where the frames go.
#[derive(Clone, Copy, Debug)]
enum Way {
    Tap,
    TapUring,
    AfXdp,
}

impl Way {
    fn place(self) -> Result<Place, Failure> {
        match self {
            Self::Tap => Place::on_tap(1, GRO_OFF),
            Self::TapUring => Place::on_tap(1, &format!(",engine=uring{GRO_OFF}")),
            Self::AfXdp => Place::on_wire(1, ""),
        }
    }

    const fn twice_max(self) -> u64 {
        match self {
            Self::Tap | Self::AfXdp => BURST_MAX,
            Self::TapUring => 2 * BURST_MAX,
        }
    }
}

fn kills() -> usize {
    let given = std::env::var("RINGSCOPE_FRONT_END_KILLS");
    given.map_or(5, |kills| kills.parse().expect("a number"))
}

/// Times from the new daemon's socket, or its start, to the first frame of the guest that it carried.
#[derive(Debug, Default)]
struct Gaps(Vec<Duration>);

impl Gaps {
    /// Kills the daemon at some moment, and starts the next one by `start`.
    fn kill(
        &mut self,
        place: &mut Place,
        start: impl Fn(&mut Place) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        // Another moment of a burst each time.
        sleep(Duration::from_micros(self.0.len() as u64 * 7919 % 20_000));
        place.daemon = None;
        start(place)?;
        let begun = Instant::now();
        let carried = |place: &Place| {
            let daemon = place.daemon.as_ref().expect("a daemon");
            // Until it has its recorder, that of the daemon before is there.
            let reader = daemon.reader().ok();
            let own = reader.filter(|reader| reader.pid() == u64::from(daemon.pid()));
            own.map_or(0, |reader| reader.totals(1).packets)
        };
        eventually(SOON, "a frame of the guest", || when(carried(place) > 0, place.log()));
        self.0.push(begun.elapsed());
        eventually(SOON, "frames of the guest", || when(carried(place) >= CARRIED, place.log()));
        Ok(())
    }

    /// The median, and the time that 99 of 100 do not exceed.
    fn percentiles(&self) -> (Duration, Duration) {
        let mut all = self.0.clone();
        all.sort();
        (all[all.len() / 2], all[all.len() * 99 / 100])
    }
}

/// Datagrams from outside that the guest sends back: sent, came back, and came twice.
fn ping(place: &Place) -> Result<Process, Failure> {
    let mut command = place.outside.command(&program("ringscope")?.to_string_lossy());
    let count = (RUN.as_secs() * RATE).to_string();
    let interval = (1_000_000 / RATE).to_string();
    command.args(["agent", "udp-ping", &format!("{GUEST}:7007"), "--count", &count]);
    command.args([
        "--interval-us",
        &interval,
        "--size",
        "256",
        "--patience",
        "0",
        "--wait-ms",
        "3000",
    ]);
    Ok(Process::spawn(&mut command, &place.directory().join("ping.log"))?)
}

fn ping_report(mut ping: Process) -> Result<[u64; 3], Failure> {
    ping.wait(RUN + SOON)?;
    let report: Value = report_in(&ping.log_tail(1 << 16))?;
    assert_eq!(report["changed"], 0, "{report}");
    let count = |name: &str| report[name].as_u64().ok_or_else(|| format!("no {name}: {report}"));
    Ok([count("sent")?, count("received")?, count("duplicates")?])
}

/// What went through in all runs.
#[derive(Debug, Default)]
struct Sums {
    /// Frames that the guest's driver put into its ring.
    in_ring: u64,
    /// Frames that the kernel got from the daemons.
    in_kernel: u64,
    /// Frames that QEMU dropped while no daemon ran.
    dropped: u64,
    /// The guest's datagrams that its own kernel took, came, and came twice.
    sent: [u64; 3],
    pinged: [u64; 3],
}

/// Frames that the guest's driver has put into its ring and has back.
fn driven(place: &mut Place) -> Result<u64, Failure> {
    let text = place.guest().check("cat /sys/class/net/eth0/statistics/tx_packets")?;
    Ok(text.trim().parse()?)
}

/// Frames of the guest that QEMU gave back itself (`virtio_net_drop_tx_queue_data`, hw/net/virtio-net.c).
fn dropped(place: &Place) -> Result<u64, Failure> {
    let log = std::fs::read_to_string(place.directory().join("guest/qemu.log"))?;
    Ok(log.matches("virtqueue_fill ").count() as u64)
}

/// Frames that the host's kernel got from the daemons.
fn got(place: &Place) -> Result<u64, Failure> {
    let text = match place.tap() {
        "" => place.outside.exec("cat /sys/class/net/eth0/statistics/rx_packets")?,
        tap => std::fs::read_to_string(format!("/sys/class/net/{tap}/statistics/rx_packets"))?,
    };
    Ok(text.trim().parse()?)
}

/// One run of datagrams both ways, in which daemons are killed.
fn run(place: &mut Place, gaps: &mut Gaps, sums: &mut Sums) -> Result<(), Failure> {
    let (ring, kernel, before) = (driven(place)?, got(place)?, dropped(place)?);
    let send = format!(
        "ringscope agent udp-send 10.77.0.1:7011 --rate {RATE} --duration-ms {} --size 256 --wait-ms 10000",
        RUN.as_millis()
    );
    place.guest().check(&format!("({send} >/tmp/send.json 2>&1; touch /tmp/sent) &"))?;
    let pings = ping(place)?;
    let begun = Instant::now();
    sleep(Duration::from_millis(500));
    while begun.elapsed() < RUN - LAST && gaps.0.len() < kills() {
        gaps.kill(place, |place| place.spawn(&[]))?;
    }
    let pinged = ping_report(pings)?;
    place.guest().check("while ! [ -e /tmp/sent ]; do sleep 0.1; done; rm /tmp/sent")?;
    let report: SendReport = report_in(&place.guest().check("cat /tmp/send.json")?)?;
    let sent = [report.sent, report.received, report.duplicates];
    // Frames are counted by the driver when it has their buffers back.
    sleep(Duration::from_millis(100));
    sums.in_ring += driven(place)? - ring;
    sums.in_kernel += got(place)? - kernel;
    sums.dropped += dropped(place)? - before;
    for (sum, more) in sums.sent.iter_mut().zip(sent).chain(sums.pinged.iter_mut().zip(pinged)) {
        *sum += more;
    }
    Ok(())
}

fn qemu_goes_on(way: Way, packed: bool, properties: &str) -> Result<(), Failure> {
    let mut place = way.place()?;
    place.spawn(&[])?;
    let mut options = place.options()?;
    (options.packed, options.properties) = (packed, properties.into());
    options.reconnect_ms = Some(10);
    place.attach(options)?;
    traffic::everything_a_little(&mut place)?;
    let trace = json!({"name": "virtqueue_fill", "enable": true});
    Monitor::connect(&place)?.execute("trace-event-set-state", &trace)?;
    let _count = outside_agent(&place, &["udp-count"])?;
    let (mut gaps, mut sums) = (Gaps::default(), Sums::default());
    while gaps.0.len() < kills() {
        run(&mut place, &mut gaps, &mut sums)?;
    }
    let (p50, p99) = gaps.percentiles();
    let Sums { in_ring, in_kernel, dropped, sent, pinged } = sums;
    println!(
        "QEMU{}, {way:?}, packed {packed}: {} kills; {in_ring} frames in the ring, {in_kernel} in the kernel, {dropped} dropped by QEMU; datagrams \
         (sent, came, twice) from the guest {sent:?}, to the guest and back {pinged:?}; from the new socket to the first \
         frame: p50 {p50:?}, p99 {p99:?}",
        if properties.is_empty() { String::new() } else { format!(" with {properties}") },
        kills(),
    );
    let twice_max = kills() as u64 * way.twice_max();
    let gone = in_kernel + dropped;
    assert!((in_ring..=in_ring + twice_max).contains(&gone), "{in_ring}, and {gone} went away");
    assert!(sent[2] <= twice_max && pinged[2] <= 2 * twice_max, "too many came twice");
    traffic::everything_a_little(&mut place)
}

/// With packed rings virtio-user resets them itself, and drops what is in them.
#[test]
fn a_virtio_user_server_whose_daemons_are_killed_goes_on() -> Result<(), Failure> {
    [false, true].into_iter().try_for_each(virtio_user_goes_on)
}

fn virtio_user_goes_on(packed: bool) -> Result<(), Failure> {
    let mut place = Place::new(1)?;
    place.outside.exec(NEIGHBOUR)?;
    place.spawn_client(&[])?;
    let shape = GuestShape { packed, ..GuestShape::default() };
    let mut guest = Testpmd::serving_guest(&place.socket(), &shape)?;
    guest.command("set fwd 5tswap")?;
    guest.start()?;
    let (mut gaps, mut pinged) = (Gaps::default(), [0; 3]);
    while gaps.0.len() < kills() {
        let pings = ping(&place)?;
        let begun = Instant::now();
        sleep(Duration::from_millis(500));
        while begun.elapsed() < RUN - LAST && gaps.0.len() < kills() {
            gaps.kill(&mut place, |place| place.spawn_client(&[]))?;
        }
        for (sum, more) in pinged.iter_mut().zip(ping_report(pings)?) {
            *sum += more;
        }
    }
    let (p50, p99) = gaps.percentiles();
    println!(
        "virtio-user, packed {packed}: {} kills; datagrams to the guest and back (sent, came, twice) {pinged:?}; from the \
         new daemon's start to the first frame: p50 {p50:?}, p99 {p99:?}",
        kills(),
    );
    assert!(pinged[2] <= kills() as u64 * BURST_MAX, "too many came twice");
    Ok(())
}

#[test]
fn a_qemu_whose_daemons_are_killed_goes_on() -> Result<(), Failure> {
    for (way, packed) in [(Way::Tap, true), (Way::TapUring, false), (Way::AfXdp, true)] {
        despite_qemu(|| qemu_goes_on(way, packed, KEPT))?;
    }
    Ok(())
}

#[test]
#[ignore = "takes minutes"]
fn a_qemu_on_the_other_rings_goes_on() -> Result<(), Failure> {
    for (way, packed) in [(Way::Tap, false), (Way::TapUring, true), (Way::AfXdp, false)] {
        despite_qemu(|| qemu_goes_on(way, packed, KEPT))?;
    }
    // What QEMU adds.
    for properties in ["", "status=off", "ioeventfd=off"] {
        despite_qemu(|| qemu_goes_on(Way::Tap, false, properties))?;
    }
    Ok(())
}
