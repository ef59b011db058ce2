//! `udp-ping`: round trips against a udp-echo.
//!
//! An open loop sends at fixed times, whether replies come or not, and measures latency from the intended time. A stall
//! therefore shows in every packet that it delays, not only in the packet in flight. A closed loop keeps one packet in
//! flight and measures from its sending.
//!
//! With launch times, the kernel sends a packet, some time after the program has passed it on. Then a packet's time of
//! sending is when the kernel should send it.

mod report;
mod samples;

use crate::Error;
use crate::address;
use crate::clock::{now_ns, sharpen_timers, sleep_until};
use crate::guest_stages::{GuestStagesArgs, Reception};
use crate::launch::{Fate, LaunchArgs, Launcher};
use crate::pattern::Pattern;
use crate::scheduling::Scheduling;
use crate::stamps::{Log, Received, create, receive, stamp_packets};
use crate::watch::{Tally, Watch};
use burst_trace::probe::{PROBE_BYTES, Probe};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
pub use report::PingReport;
use report::summarise;
use samples::{Numbered, Reply, Sample, write_samples, write_stamps};
use serde::Serialize;
use std::io::{self, ErrorKind, IoSlice};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest time without a look whether the exchange is given up.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Samples are kept in memory, 88 bytes each, and at first their replies, 48 bytes each.
const COUNT_MAX: u64 = 10_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Send at fixed times; latency is from the intended time.
    Open,
    /// Keep one packet in flight; latency is from its sending.
    Closed,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address and port of the udp-echo, such as 10.0.0.1:7007 or fe80::1%eth0.
    #[arg(value_parser = address::udp)]
    target: SocketAddr,
    /// Number of packets, without warm-up.
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// Number of packets sent first, to warm up, and not counted.
    #[arg(long, default_value_t = 20)]
    warmup: u64,
    /// Time between sends; the default is prime to the kernel's timer tick.
    #[arg(long, value_name = "US", default_value_t = 1006)]
    interval_us: u64,
    /// UDP payload in bytes, 32 to 65507.
    #[arg(long, default_value_t = 64)]
    size: usize,
    #[arg(long, value_enum, default_value_t = Mode::Open)]
    mode: Mode,
    /// Count a packet as late if it is sent this much after its time.
    #[arg(long, value_name = "US", default_value_t = 100)]
    late_us: u64,
    /// Count a packet as lost if it is not back after this time.
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    wait_ms: u64,
    /// Stop after this many seconds and report; 0: only after COUNT.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    timeout: u64,
    /// End with an error if nothing at all comes back for this many seconds; 0: never.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    patience: u64,
    /// Write a line for each packet: `sequence,intended_ns,sent_ns,received_ns`; empty where lost.
    #[arg(long, value_name = "FILE")]
    samples: Option<String>,
    /// Write the stamps of each packet, by program and kernel, for ringscope stats --probes.
    #[arg(long, value_name = "FILE")]
    stamps: Option<String>,
    #[command(flatten)]
    guest_stages: GuestStagesArgs,
    #[command(flatten)]
    launch: LaunchArgs,
    #[command(flatten)]
    scheduling: Scheduling,
}

/// Packets that came back and are no reply.
#[derive(Debug, Clone, Copy, Default)]
struct Strays {
    duplicates: u64,
    changed: u64,
}

/// A packet without its probe. Each byte differs from its neighbours, so that a byte that is lost, doubled or moved is
/// found.
pub fn blank_packet(size: usize) -> Vec<u8> {
    let mut packet = vec![0; size.next_multiple_of(8)];
    Pattern::new(size as u64).fill(&mut packet);
    packet.truncate(size);
    packet
}

pub fn run(args: &Args) -> Result<PingReport, Error> {
    validate(args)?;
    sharpen_timers();
    let local: SocketAddr =
        if args.target.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).map_err(|source| Error::Bind { address: local, source })?;
    let run = run_number();
    let reception = Reception::set_up(args.guest_stages);
    let log = args.stamps.as_deref().map(|path| Log::create(path, &reception)).transpose()?;
    let file =
        |path: &String| create(path).map_err(|source| Error::File { path: path.clone(), source });
    let samples_to = args.samples.as_ref().map(file).transpose()?;
    let launcher = args.launch.set_up(&socket)?;
    if log.is_some() || launcher.is_some() {
        stamp_packets(&socket)?;
    }
    args.scheduling.apply()?;
    let peer = |doing| move |source| Error::Peer { doing, peer: args.target, source };
    socket.connect(args.target).map_err(peer("send to"))?;
    let (began, tally) = (Instant::now(), Tally::default());
    let exchange = watch(args).run(
        &tally,
        || {},
        || match args.mode {
            Mode::Open => open_loop(args, &socket, run, launcher, &tally, &reception),
            Mode::Closed => closed_loop(args, &socket, run, &tally, &reception),
        },
    );
    let (samples, strays) = exchange.map_err(peer("exchange packets with"))?;
    let took = began.elapsed();
    if let Some((path, file)) = args.samples.as_ref().zip(samples_to) {
        write_samples(file, &samples)
            .map_err(|source| Error::File { path: path.clone(), source })?;
    }
    if let Some(log) = log {
        write_stamps(log, run, &samples, args.warmup)?;
    }
    let report = summarise(args, &samples, strays);
    if report.is_without_reply() {
        let (target, sent) = (args.target, samples.len() as u64);
        return Err(Error::NoReply { target, sent, seconds: took.as_secs_f64() });
    }
    Ok(report)
}

fn watch(args: &Args) -> Watch {
    Watch {
        peer: args.target,
        server: "udp-echo",
        of: total(args),
        unit: "packets",
        is_always_due: false,
        patience: Duration::from_secs(args.patience),
        end: None,
    }
}

fn validate(args: &Args) -> Result<(), Error> {
    let usage = |flag, expected: &str, found: String| {
        Err(Error::Usage { flag, expected: expected.into(), found })
    };
    if !(PROBE_BYTES..=65507).contains(&args.size) {
        return usage("--size", "32 to 65507 bytes", args.size.to_string());
    }
    if args.count == 0 || args.count.saturating_add(args.warmup) > COUNT_MAX {
        return usage("--count", "1 to 10000000 packets, with --warmup", args.count.to_string());
    }
    if args.launch.is_wanted() && args.mode != Mode::Open {
        return usage(
            "--txtime",
            "--mode open, which sends at fixed times",
            "--mode closed".into(),
        );
    }
    if args.wait_ms == 0 {
        return usage("--wait-ms", "at least 1", args.wait_ms.to_string());
    }
    Ok(())
}

fn total(args: &Args) -> u64 {
    args.count + args.warmup
}

/// When to stop sending, even if packets are left.
fn deadline(args: &Args, start: u64) -> u64 {
    if args.timeout == 0 {
        u64::MAX
    } else {
        start.saturating_add(args.timeout.saturating_mul(1_000_000_000))
    }
}

/// A number that no earlier run's packets have.
pub fn run_number() -> u32 {
    (now_ns() as u32) ^ std::process::id().rotate_left(16)
}

fn open_loop(
    args: &Args,
    socket: &UdpSocket,
    run: u32,
    launcher: Option<Launcher>,
    tally: &Tally,
    reception: &Reception,
) -> io::Result<(Vec<Sample>, Strays)> {
    let replies = socket.try_clone()?;
    let finished = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| collect(args, &replies, run, &finished, tally, reception));
        let sent = send_timetable(args, socket, run, launcher, tally);
        finished.store(true, Ordering::Release);
        let (received, strays) = receiver.join().expect("the receiver does not panic")?;
        let (mut samples, numbered) = sent?;
        // Launch times may be long after the last packet was passed on.
        numbered.stamp(socket, &mut samples)?;
        for (sample, reply) in samples.iter_mut().zip(received) {
            sample.reply = reply;
        }
        Ok((samples, strays))
    })
}

fn send_timetable(
    args: &Args,
    socket: &UdpSocket,
    run: u32,
    mut launcher: Option<Launcher>,
    tally: &Tally,
) -> io::Result<(Vec<Sample>, Numbered)> {
    sharpen_timers();
    let mut packet = blank_packet(args.size);
    let mut samples = Vec::with_capacity(total(args) as usize);
    // The first send is a little off, so that the receiver is waiting by then.
    let start = now_ns() + 1_000_000;
    let end = deadline(args, start);
    let mut numbered = Numbered::new(args.stamps.is_some() || launcher.is_some());
    for sequence in 0..total(args) {
        let intended_ns =
            start.saturating_add(sequence.saturating_mul(args.interval_us.saturating_mul(1000)));
        if !wait_until(intended_ns, tally) {
            break;
        }
        let sent_ns = now_ns();
        if sent_ns > end {
            break;
        }
        let mut sample = Sample { intended_ns, sent_ns, ..Sample::default() };
        if let Some(launch) = launcher.as_mut().map(|it| it.launch(intended_ns)) {
            (sample.intended_ns, sample.sent_ns) = (launch.due_ns, launch.release_ns);
            sample.txtime_ns = launch.txtime_ns;
        }
        let Sample { intended_ns, sent_ns, .. } = sample;
        Probe { run, sequence, intended_ns, sent_ns }.write(&mut packet);
        let passed = send(socket, &packet, launcher.is_some().then_some(sample.txtime_ns))?;
        if passed != Passed::Refused {
            numbered.sent(samples.len());
        }
        if passed == Passed::Dropped {
            sample.fate = Fate::NoBuffer;
        }
        tally.sent(1);
        samples.push(sample);
        numbered.stamp(socket, &mut samples)?;
    }
    // The last ones may still be on their way to the driver.
    if let Some(last) = samples.last() {
        wait_until(last.sent_ns, tally);
    }
    std::thread::sleep(Duration::from_millis(1));
    numbered.stamp(socket, &mut samples)?;
    Ok((samples, numbered))
}

/// Sleeps until the given time. Returns false as soon as the exchange is given up.
fn wait_until(at_ns: u64, tally: &Tally) -> bool {
    let look_every = LOOK_EVERY.as_nanos() as u64;
    while !tally.is_given_up() {
        let now = now_ns();
        if at_ns.saturating_sub(now) <= look_every {
            sleep_until(at_ns);
            return true;
        }
        sleep_until(now + look_every);
    }
    false
}

/// What became of a packet that was passed to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passed {
    /// The stack took and numbered it.
    Taken,
    /// The stack numbered it, and a qdisc dropped it. The kernel hides this from sockets without launch times.
    Dropped,
    /// The stack refused it for now. It counts as lost.
    Refused,
}

/// Sends a packet, with a launch time or without.
fn send(socket: &UdpSocket, packet: &[u8], txtime_ns: Option<u64>) -> io::Result<Passed> {
    let sent = match &txtime_ns {
        None => socket.send(packet),
        Some(txtime_ns) => {
            let (content, times) = ([IoSlice::new(packet)], [ControlMessage::TxTime(txtime_ns)]);
            sendmsg::<()>(socket.as_raw_fd(), &content, &times, MsgFlags::empty(), None)
                .map_err(io::Error::from)
        }
    };
    match sent {
        Ok(_) => Ok(Passed::Taken),
        Err(error) if txtime_ns.is_some() && error.raw_os_error() == Some(libc::ENOBUFS) => {
            Ok(Passed::Dropped)
        }
        Err(error) if is_passing(&error) => Ok(Passed::Refused),
        Err(error) => Err(error),
    }
}

pub fn is_passing(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionRefused, HostUnreachable, Interrupted, TimedOut, WouldBlock};
    matches!(
        error.kind(),
        ConnectionRefused | HostUnreachable | Interrupted | TimedOut | WouldBlock
    ) || error.raw_os_error() == Some(libc::ENOBUFS)
}

/// The receiver of the open loop: replies by sequence number, and strays.
fn collect(
    args: &Args,
    socket: &UdpSocket,
    run: u32,
    finished: &AtomicBool,
    tally: &Tally,
    reception: &Reception,
) -> io::Result<(Vec<Reply>, Strays)> {
    reception.follow(socket)?;
    let mut received = vec![Reply::default(); total(args) as usize];
    let mut missing = received.len();
    let mut strays = Strays::default();
    let blank = blank_packet(args.size);
    let mut packet = vec![0; 1 << 16];
    // Short, because it is also how soon the end of sending is noticed.
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    let mut end = u64::MAX;
    while missing > 0 {
        let result = receive(socket, &mut packet);
        let now = now_ns();
        match result {
            Ok(Received { length, kernel_ns, .. }) => {
                let probe = Probe::read(&packet[..length]).filter(|probe| probe.run == run);
                match probe
                    .and_then(|probe| Some((probe, received.get_mut(probe.sequence as usize)?)))
                {
                    Some(_) if packet[PROBE_BYTES..length] != blank[PROBE_BYTES..] => {
                        strays.changed += 1;
                    }
                    Some((probe, slot)) if slot.received_ns == 0 => {
                        let guest = reception.stamps(probe, now);
                        let kernel_ns = kernel_ns.unwrap_or(0);
                        *slot = Reply { received_ns: now, kernel_ns, guest };
                        missing -= 1;
                        tally.answered(1);
                    }
                    Some(_) => strays.duplicates += 1,
                    None => {}
                }
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
        if end == u64::MAX && finished.load(Ordering::Acquire) {
            end = now.saturating_add(args.wait_ms.saturating_mul(1_000_000));
        }
        if now > end || tally.is_given_up() {
            break;
        }
    }
    Ok((received, strays))
}

fn closed_loop(
    args: &Args,
    socket: &UdpSocket,
    run: u32,
    tally: &Tally,
    reception: &Reception,
) -> io::Result<(Vec<Sample>, Strays)> {
    reception.follow(socket)?;
    let mut packet = blank_packet(args.size);
    let mut samples: Vec<Sample> = Vec::with_capacity(total(args) as usize);
    let mut strays = Strays::default();
    let mut intended_ns = now_ns();
    let end = deadline(args, intended_ns);
    let mut numbered = Numbered::new(args.stamps.is_some());
    for sequence in 0..total(args) {
        if !wait_until(intended_ns, tally) {
            break;
        }
        let sent_ns = now_ns();
        if sent_ns > end {
            break;
        }
        Probe { run, sequence, intended_ns: sent_ns, sent_ns }.write(&mut packet);
        if send(socket, &packet, None)? == Passed::Taken {
            numbered.sent(samples.len());
        }
        let mut sample = Sample { intended_ns: sent_ns, sent_ns, ..Sample::default() };
        tally.sent(1);
        let limit = sent_ns.saturating_add(args.wait_ms.saturating_mul(1_000_000));
        sample.reply = await_reply(socket, &packet, limit, &mut strays, tally, reception)?;
        samples.push(sample);
        numbered.stamp(socket, &mut samples)?;
        intended_ns = sent_ns.saturating_add(args.interval_us.saturating_mul(1000));
    }
    Ok((samples, strays))
}

/// The reply to `sent`; its times are 0 if it does not come by `limit`.
fn await_reply(
    socket: &UdpSocket,
    sent: &[u8],
    limit: u64,
    strays: &mut Strays,
    tally: &Tally,
    reception: &Reception,
) -> io::Result<Reply> {
    let mut packet = vec![0; 1 << 16];
    loop {
        let left = limit.saturating_sub(now_ns());
        if left == 0 || tally.is_given_up() {
            return Ok(Reply::default());
        }
        socket.set_read_timeout(Some(Duration::from_nanos(left).min(LOOK_EVERY)))?;
        let result = receive(socket, &mut packet);
        let now = now_ns();
        match result {
            Ok(Received { length, kernel_ns, .. }) if packet[..length] == *sent => {
                tally.answered(1);
                let probe = Probe::read(sent).expect("a probe was sent");
                let (guest, kernel_ns) = (reception.stamps(probe, now), kernel_ns.unwrap_or(0));
                return Ok(Reply { received_ns: now, kernel_ns, guest });
            }
            Ok(Received { length, .. }) => {
                match Probe::read(&packet[..length]).zip(Probe::read(sent)) {
                    Some((came, ours)) if came.run != ours.run => {}
                    Some((came, ours)) if came.sequence != ours.sequence => strays.duplicates += 1,
                    _ => strays.changed += 1,
                }
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
