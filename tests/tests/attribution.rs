//! What the recorder says of a burst is exact, and time shows in the stage where it was spent.

use std::net::Ipv4Addr;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use burst_trace::{BurstRecord, Direction, Stage};
use frontend::{Guest, GuestOptions, Pair};
use lab::Signal;
use lab::outside::Outside;
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::frames;
use ringscope_tests::packets::{arp_reply, arp_request, echo_reply, echo_request};
use ringscope_tests::trace::{Trace, position};

const SOON: Duration = Duration::from_secs(5);
const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const RX: u16 = 0;
const TX: u16 = 1;

/// What is planted in one of ten bursts.
const DELAY_US: f64 = 200.0;
const EVERY: usize = 10;
const EXCHANGES: usize = 300;
/// Other programs of the machine take its CPUs away from what is measured: such a run is repeated.
const ATTEMPTS: usize = 4;

#[test]
fn on_reflect_records_cover_every_packet_once_and_stages_add_up() {
    let directory = tempfile::tempdir().unwrap();
    for poll in ["never", "adaptive", "always"] {
        let arguments =
            ["--datapath", "reflect", "--poll", poll, "--queue-pairs", "2", "--cpus", "0,1"];
        let mut daemon = Daemon::start(directory.path(), poll, &arguments).unwrap();
        let options = GuestOptions { start_index: 65500, ..GuestOptions::default() };
        let mut guest = Guest::connect(daemon.socket(), options.queue_pairs(2)).unwrap();
        for _ in 0..5 {
            frames::come_back(&mut guest).unwrap();
            guest.restart().unwrap();
        }
        for ring in 0..4 {
            guest.stop_ring(ring).unwrap();
        }
        let trace = Trace::open(directory.path(), poll);
        for pair in [0, 2] {
            let (rx, tx) = (trace.check(pair), trace.check(pair + 1));
            guest.pair(usize::from(pair / 2)).reap().unwrap();
            let sent = guest.ring(pair + 1).counters();
            assert_eq!(tx.packets, sent.offered, "{poll}");
            assert_eq!(tx.packets, sent.used, "{poll}");
            assert_eq!((rx.packets, rx.bytes), (tx.packets, tx.bytes), "{poll}");
        }
        assert!(daemon.is_alive(), "{}", daemon.log());
    }
}

#[test]
fn on_null_records_agree_with_the_guest_and_more_than_a_burst_is_queued() {
    let directory = tempfile::tempdir().unwrap();
    for poll in ["never", "always"] {
        let arguments = ["--datapath", "null", "--poll", poll];
        let daemon = Daemon::start(directory.path(), poll, &arguments).unwrap();
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        let pair = guest.pair(0);
        for round in 0..20 {
            for n in 0..200 {
                assert!(pair.queue(&frames::frame(n, 60 + round)).unwrap());
            }
            pair.flush().unwrap();
            reap(pair, 200);
        }
        guest.stop_ring(TX).unwrap();
        let trace = Trace::open(directory.path(), poll);
        let totals = trace.check(TX);
        assert_eq!(totals.packets, 20 * 200);
        assert_eq!(totals.bytes, (0..20).map(|round| 200 * (60 + round)).sum::<u64>());
        let bursts = trace.bursts(TX);
        let queued = |burst: &&BurstRecord| trace.stage_us(burst, Stage::Queued) > 0.0;
        assert!(bursts.iter().filter(queued).count() >= 20, "200 frames are more than a burst");
        assert!(bursts.iter().all(|burst| burst.packets <= 64));
    }
}

#[test]
fn frames_from_nowhere_are_counted_as_the_guest_counts_them() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "rx", &["--datapath", "null:rx=900"]).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let mut came = 0;
    while came < 5000 {
        assert_eq!(guest.pair(0).receive_within(SOON).unwrap().expect("a frame").bytes.len(), 900);
        came += 1;
    }
    guest.stop_ring(RX).unwrap();
    while guest.pair(0).receive().unwrap().is_some() {
        came += 1;
    }
    let totals = Trace::open(directory.path(), "rx").check(RX);
    assert_eq!((totals.packets, totals.bytes), (came, came * 900));
}

#[test]
fn on_a_tap_records_agree_with_the_guest_and_the_kernel() {
    let directory = tempfile::tempdir().unwrap();
    let mut outside = outside("exact");
    for poll in ["never", "adaptive", "always"] {
        let tap = outside.add_tap(1).unwrap();
        let datapath = format!("tap:ifname={tap}");
        let arguments = ["--datapath", &datapath, "--poll", poll];
        let daemon = Daemon::start(directory.path(), poll, &arguments).unwrap();
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        let mut pings = Pings::new(guest.pair(0));
        for n in 0..300 {
            pings.ping(guest.pair(0), 1 + n * 4);
        }
        guest.stop_ring(TX).unwrap();
        guest.stop_ring(RX).unwrap();
        while let Some(frame) = guest.pair(0).receive().unwrap() {
            pings.count(&frame.bytes);
        }
        let trace = Trace::open(directory.path(), poll);
        let (tx, rx) = (trace.check(TX), trace.check(RX));
        assert_eq!((tx.packets, tx.bytes), pings.sent, "{poll}");
        assert_eq!((rx.packets, rx.bytes), pings.came, "{poll}");
    }
}

#[test]
fn a_planted_delay_shows_in_its_stage_and_in_no_other() {
    let directory = tempfile::tempdir().unwrap();
    for poll in ["never", "adaptive", "always"] {
        for direction in [Direction::Tx, Direction::Rx] {
            for &stage in direction.stages() {
                let run = || delayed_on_reflect(directory.path(), poll, direction, stage);
                first_good(run).unwrap_or_else(|why| panic!("--poll {poll}: {why}"));
            }
        }
    }
}

#[test]
fn a_planted_delay_shows_in_its_stage_on_a_tap_too() {
    let directory = tempfile::tempdir().unwrap();
    let mut outside = outside("delay");
    let tap = outside.add_tap(1).unwrap();
    for direction in [Direction::Tx, Direction::Rx] {
        for &stage in direction.stages() {
            let run = || delayed_on_tap(directory.path(), &tap, direction, stage);
            first_good(run).unwrap_or_else(|why| panic!("{why}"));
        }
    }
}

#[test]
fn a_guest_that_posts_no_buffers_shows_as_starved() {
    let directory = tempfile::tempdir().unwrap();
    for poll in ["never", "adaptive", "always"] {
        let arguments = ["--datapath", "reflect", "--poll", poll];
        let daemon = Daemon::start(directory.path(), poll, &arguments).unwrap();
        let options = GuestOptions::default().queue_size(64);
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        let pair = guest.pair(0);
        // 64 frames fill all buffers; the one after that waits until the guest takes some.
        for n in 0..64 {
            assert!(pair.queue(&frames::frame(n, 100)).unwrap());
        }
        pair.flush().unwrap();
        reap(pair, 64);
        sleep(Duration::from_millis(20));
        assert!(pair.send(&frames::frame(64, 100)).unwrap());
        sleep(Duration::from_millis(50));
        for n in 0..65 {
            let came = pair.receive_within(SOON).unwrap().expect("the frame comes back");
            assert!(came.bytes == frames::frame(n, 100), "{poll}: frame {n}");
        }
        guest.stop_ring(RX).unwrap();
        let trace = Trace::open(directory.path(), poll);
        assert_eq!(trace.check(RX).packets, 65);
        let bursts = trace.bursts(RX);
        let longest = bursts.iter().max_by_key(|burst| burst.total()).unwrap();
        let starved = trace.stage_us(longest, Stage::Starved);
        // A worker that polls may be off its CPU when the frame comes: that is `notice`, and not the guest.
        let total = trace.us(longest.total()) - trace.stage_us(longest, Stage::Notice);
        assert!(starved > 30_000.0 && starved >= 0.95 * total, "{poll}: {starved} of {total} us");
        let others = bursts.iter().filter(|burst| burst.sequence != longest.sequence);
        let most = others.map(|burst| trace.stage_us(burst, Stage::Starved)).fold(0.0, f64::max);
        assert!(most < 20_000.0, "{poll}: only one burst waited, another one {most} us");
    }
}

/// Under `always` the worker looks when it goes on, and finds what came since its last look: `notice`.
/// Under `never` it was asleep, and the time lies before it woke up: `wakeup`, which is the kernel's.
#[test]
fn a_stopped_daemon_shows_as_notice_when_it_polls_and_before_its_stages_when_it_slept() {
    let directory = tempfile::tempdir().unwrap();
    for poll in ["never", "always"] {
        let arguments = ["--datapath", "reflect", "--poll", poll];
        let daemon = Daemon::start(directory.path(), poll, &arguments).unwrap();
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        let pair = guest.pair(0);
        exchange(pair, &frames::frame(0, 100));
        sleep(Duration::from_millis(20));
        daemon.hold().unwrap();
        assert!(pair.send(&frames::frame(1, 100)).unwrap());
        sleep(Duration::from_millis(50));
        assert!(pair.receive().unwrap().is_none(), "{poll}: it is stopped");
        daemon.signal(Signal::CONT).unwrap();
        assert!(pair.receive_within(SOON).unwrap().is_some());
        guest.stop_ring(TX).unwrap();
        let trace = Trace::open(directory.path(), poll);
        assert_eq!(trace.check(TX).packets, 2);
        let burst = trace.bursts(TX)[1];
        let (notice, total) = (trace.stage_us(&burst, Stage::Notice), trace.us(burst.total()));
        if poll == "always" {
            assert!(notice > 45_000.0 && notice > 0.95 * total, "{notice} of {total} us");
            assert!(burst.is_polled);
        } else {
            assert!(total < 25_000.0, "{total} us, of 50 ms that were not the daemon's");
            assert!(!burst.is_polled);
        }
    }
}

/// Noise only ever adds to what was not delayed; a wrong stage is wrong every time.
fn first_good(mut run: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    let mut said = Vec::new();
    for _ in 0..ATTEMPTS {
        match run() {
            Ok(()) => return Ok(()),
            Err(why) => said.push(why),
        }
    }
    Err(said.join("\n"))
}

/// A host that knows the guest: it never asks for its address, which this guest would not answer.
fn outside(name: &str) -> Outside {
    let outside = Outside::new(name).unwrap();
    let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
    outside.exec(&format!("ip neighbour replace {OWN} lladdr {mac} dev eth0")).unwrap();
    outside
}

fn fault(direction: Direction, stage: Stage) -> String {
    format!("delay:{}.{}={DELAY_US},every={EVERY}", direction.name(), stage.name())
}

fn delayed_on_reflect(
    directory: &Path,
    poll: &str,
    direction: Direction,
    stage: Stage,
) -> Result<(), String> {
    let fault = fault(direction, stage);
    let arguments = ["--datapath", "reflect", "--poll", poll, "--fault", &fault];
    let daemon = Daemon::start(directory, "delayed", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    for n in 0..EXCHANGES {
        exchange(guest.pair(0), &frames::frame(n, 64));
        pause();
    }
    guest.stop_ring(TX).unwrap();
    guest.stop_ring(RX).unwrap();
    judge(&Trace::open(directory, "delayed"), direction, stage)
}

fn delayed_on_tap(
    directory: &Path,
    tap: &str,
    direction: Direction,
    stage: Stage,
) -> Result<(), String> {
    let (fault, datapath) = (fault(direction, stage), format!("tap:ifname={tap}"));
    let arguments = ["--datapath", &datapath, "--fault", &fault];
    let daemon = Daemon::start(directory, "delayed", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let mut pings = Pings::new(guest.pair(0));
    for _ in 0..EXCHANGES {
        pings.ping(guest.pair(0), 64);
        pause();
    }
    guest.stop_ring(TX).unwrap();
    guest.stop_ring(RX).unwrap();
    judge(&Trace::open(directory, "delayed"), direction, stage)
}

/// Compares, within one run, the bursts that were delayed with the others: by their number, not by what
/// they say of themselves. Medians, because other programs take the CPU away from single bursts.
fn judge(trace: &Trace, direction: Direction, stage: Stage) -> Result<(), String> {
    let ring = if direction == Direction::Tx { TX } else { RX };
    let _ = trace.check(ring);
    let bursts = trace.bursts(ring);
    assert!(bursts.len() >= EXCHANGES, "{} bursts", bursts.len());
    let is_delayed = |n: &usize| n % EVERY == EVERY - 1;
    let added = |of: &dyn Fn(&BurstRecord) -> u64| {
        let (mut delayed, mut others) = (Vec::new(), Vec::new());
        for (n, burst) in bursts.iter().enumerate() {
            (if is_delayed(&n) { &mut delayed } else { &mut others }).push(of(burst));
        }
        trace.us(median(&mut delayed)) - trace.us(median(&mut others))
    };
    let total = added(&|burst| burst.total());
    let by_stage: Vec<f64> =
        (0..direction.stages().len()).map(|at| added(&|burst| burst.stages[at])).collect();
    let at = position(direction, stage);
    let elsewhere = by_stage.iter().enumerate().filter(|(n, _)| *n != at);
    let moved = elsewhere.map(|(_, us)| us.abs()).fold(0.0, f64::max);
    let holds = by_stage[at] >= 0.95 * total && total >= 0.95 * DELAY_US && moved <= 5.0;
    let what = format!("{}.{}", direction.name(), stage.name());
    if holds { Ok(()) } else { Err(format!("{what}: total {total:.1} us, {by_stage:.1?}")) }
}

fn median(of: &mut [u64]) -> u64 {
    of.sort_unstable();
    of[of.len() / 2]
}

/// Sends a frame and takes what comes back, without sleeping: no signal is wanted then.
fn exchange(pair: &mut Pair, frame: &[u8]) -> Vec<u8> {
    assert!(pair.send(frame).unwrap());
    eventually(SOON, "the frame to come back", || pair.receive().unwrap().ok_or("none")).bytes
}

/// Long enough for the daemon to be done with a burst before the next one comes: else that one would
/// wait, and rightly show it.
fn pause() {
    sleep(Duration::from_micros(300));
}

fn reap(pair: &mut Pair, mut count: usize) {
    eventually(SOON, "every buffer to come back", || {
        count -= pair.reap().unwrap();
        when(count == 0, format!("{count} missing"))
    });
}

/// Pings from the guest to the outside host's kernel, with packets and bytes as the guest counts them.
struct Pings {
    gateway: [u8; 6],
    sequence: u16,
    sent: (u64, u64),
    came: (u64, u64),
}

impl Pings {
    fn new(pair: &mut Pair) -> Self {
        let mut pings = Self { gateway: [0; 6], sequence: 0, sent: (0, 0), came: (0, 0) };
        let request = arp_request(MAC, OWN, address());
        // On a busy host an interface that has just come up takes its time to let frames through: they are lost until then.
        pings.gateway = eventually(SOON, "an answer to ARP requests", || {
            pings.ask(pair, &request, SOON / 20, arp_reply).ok_or("none")
        });
        pings
    }

    fn ping(&mut self, pair: &mut Pair, len: usize) {
        self.sequence += 1;
        let (sequence, payload) = (self.sequence, frames::frame(self.sequence.into(), len));
        let request = echo_request((MAC, self.gateway), (OWN, address()), sequence, &payload);
        let replied =
            |frame: &[u8]| echo_reply(frame).filter(|reply| reply.0 == sequence)?.1.to_vec().into();
        let came: Option<Vec<u8>> = self.ask(pair, &request, SOON, replied);
        assert_eq!(came, Some(payload));
    }

    fn ask<T>(
        &mut self,
        pair: &mut Pair,
        request: &[u8],
        patience: Duration,
        answer: impl Fn(&[u8]) -> Option<T>,
    ) -> Option<T> {
        self.sent = (self.sent.0 + 1, self.sent.1 + request.len() as u64);
        assert!(pair.send(request).unwrap());
        let until = Instant::now() + patience;
        while Instant::now() < until {
            let Some(frame) = pair.receive().unwrap() else {
                std::hint::spin_loop();
                continue;
            };
            self.count(&frame.bytes);
            if let Some(answer) = answer(&frame.bytes) {
                return Some(answer);
            }
        }
        None
    }

    fn count(&mut self, frame: &[u8]) {
        self.came = (self.came.0 + 1, self.came.1 + frame.len() as u64);
    }
}

fn address() -> Ipv4Addr {
    Outside::ADDRESS.parse().unwrap()
}
