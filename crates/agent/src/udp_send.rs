//! `udp-send`: sends packets at a rate, whether anything comes back or not, and asks the `udp-count` at the other end how
//! many of them came.
//!
//! After a pause, as when the program did not run, at most [`BURST`] packets are made up for: a burst of all that is due would
//! show how long queues are, not what the way can carry. The others are not sent, and the report says that the rate was
//! not reached. A send that blocks has the same effect.

use std::io::{self, ErrorKind, IoSlice};
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::address;
use crate::clock::{now_ns, sharpen_timers, sleep_until};
use crate::flow::{Counted, MESSAGE_BYTES, Message};
use crate::udp_ping::{blank_packet, is_passing, run_number};

/// Most packets that are sent at once.
const BURST: u64 = 64;
/// Time for an answer until the question is asked again.
const ANSWER_WAIT: Duration = Duration::from_millis(200);
/// Time between two questions.
const ASK_EVERY: Duration = Duration::from_millis(10);
/// Packets that did not come within this time after the last one are lost.
const QUIET: Duration = Duration::from_millis(100);
/// Time between two looks for the file that ends it, nanoseconds.
const LOOK_EVERY_NS: u64 = 20_000_000;
/// Time after which a send that blocks is looked at.
const SEND_WAIT: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address and port of the udp-count, such as 10.0.0.1:7011 or fe80::1%eth0.
    #[arg(value_parser = address::flow)]
    target: SocketAddr,
    /// Packets a second.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate: u64,
    /// Time of sending.
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    duration_ms: u64,
    /// Stop earlier, as soon as this file exists.
    #[arg(long, value_name = "FILE")]
    until: Option<PathBuf>,
    /// UDP payload, bytes. 1472 bytes make an IPv4 packet of 1500.
    #[arg(long, value_name = "BYTES", default_value_t = 1472, value_parser = clap::value_parser!(u64).range(40..=65507))]
    size: u64,
    /// Longest wait for the count, before the first packet and after the last one.
    #[arg(long, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..))]
    wait_ms: u64,
}

/// What `udp-send` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SendReport {
    /// `udp-send`.
    pub kind: String,
    /// Where the packets went.
    pub target: SocketAddr,
    /// UDP payload, bytes.
    pub size: u64,
    /// Rate that was asked for, packets a second.
    pub rate: u64,
    /// Packets sent.
    pub sent: u64,
    /// Packets of these that came, each counted once.
    pub received: u64,
    /// Packets that came again.
    pub duplicates: u64,
    /// Time of sending, seconds.
    pub seconds: f64,
    /// Whether the sender reached the rate, within 2 %.
    pub is_rate_reached: bool,
}

pub fn run(args: &Args) -> Result<SendReport, Error> {
    let local: SocketAddr =
        if args.target.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).map_err(|source| Error::Bind { address: local, source })?;
    let peer = |doing| move |source| Error::Peer { doing, peer: args.target, source };
    socket.connect(args.target).map_err(peer("send to"))?;
    socket.set_write_timeout(Some(SEND_WAIT))?;
    let mut asker = Asker {
        socket: &socket,
        run: run_number(),
        question: 0,
        limit: Duration::from_millis(args.wait_ms),
    };
    let silent = |sent| Error::NoCount {
        target: args.target,
        sent,
        limit: Duration::from_millis(args.wait_ms),
    };
    // It starts the run at the other end.
    let began = asker.count(0).map_err(peer("ask"))?;
    began.ok_or_else(|| silent(0))?;
    let Sent { sent, seconds } = send(args, &socket, asker.run).map_err(peer("send to"))?;
    let counted = asker.count(sent).map_err(peer("ask"))?.ok_or_else(|| silent(sent))?;
    Ok(SendReport {
        kind: "udp-send".into(),
        target: args.target,
        size: args.size,
        rate: args.rate,
        sent,
        received: counted.received,
        duplicates: counted.duplicates,
        seconds,
        is_rate_reached: sent as f64 / seconds >= args.rate as f64 * 0.98,
    })
}

struct Sent {
    sent: u64,
    seconds: f64,
}

/// Sends all packets of the run that become due until it ends.
fn send(args: &Args, socket: &UdpSocket, run: u32) -> io::Result<Sent> {
    sharpen_timers();
    let mut packets = vec![blank_packet(args.size as usize); BURST as usize];
    let start = now_ns();
    let end = start + args.duration_ms * 1_000_000;
    let mut schedule = Schedule { rate: args.rate, next_ns: start as f64 };
    let (mut sent, mut look_at) = (0, start);
    loop {
        let now = now_ns();
        let is_stopped = now >= look_at && args.until.as_ref().is_some_and(|file| file.exists());
        if now >= look_at {
            look_at = now + LOOK_EVERY_NS;
        }
        if now >= end || is_stopped {
            return Ok(Sent { sent, seconds: (now - start) as f64 / 1e9 });
        }
        let due = schedule.due(now);
        if due == 0 {
            sleep_until((schedule.next_ns.ceil() as u64).min(end).min(look_at));
            continue;
        }
        let burst = &mut packets[..due as usize];
        for (packet, sequence) in burst.iter_mut().zip(sent..) {
            Message::Packet { run, sequence }.write(packet);
        }
        let took = send_burst(socket, burst)?;
        schedule.sent(took);
        sent += took;
    }
}

/// Sends these packets, and returns how many the local stack took.
fn send_burst(socket: &UdpSocket, packets: &[Vec<u8>]) -> io::Result<u64> {
    let slices: Vec<_> = packets.iter().map(|it| [IoSlice::new(it)]).collect();
    let mut control: Vec<_> = slices.iter().map(|_| SendAncillaryBuffer::default()).collect();
    let mut headers: Vec<_> =
        slices.iter().zip(&mut control).map(|(it, control)| MMsgHdr::new(it, control)).collect();
    match sendmmsg(socket, &mut headers, SendFlags::empty()) {
        Ok(sent) => Ok(sent as u64),
        Err(error) => {
            let error = io::Error::from(error);
            if is_passing(&error) { Ok(0) } else { Err(error) }
        }
    }
}

/// When packets are due.
#[derive(Debug)]
struct Schedule {
    /// Packets a second.
    rate: u64,
    /// When the next packet is due, nanoseconds.
    next_ns: f64,
}

impl Schedule {
    /// Number of packets to be sent now, at most [`BURST`]; what was due before these is given up.
    fn due(&mut self, now: u64) -> u64 {
        let interval_ns = 1e9 / self.rate as f64;
        let now = now as f64;
        self.next_ns = self.next_ns.max(now - (BURST - 1) as f64 * interval_ns);
        let late_ns = now - self.next_ns;
        if late_ns < 0.0 { 0 } else { ((late_ns / interval_ns) as u64 + 1).min(BURST) }
    }

    /// This many packets were sent.
    fn sent(&mut self, packets: u64) {
        self.next_ns += packets as f64 * 1e9 / self.rate as f64;
    }
}

/// Asks the other end.
struct Asker<'a> {
    socket: &'a UdpSocket,
    run: u32,
    question: u64,
    limit: Duration,
}

impl Asker<'_> {
    /// The count of the run, when `sent` packets have come or no more come. `None` without an answer.
    fn count(&mut self, sent: u64) -> io::Result<Option<Counted>> {
        let end = Instant::now() + self.limit;
        let mut last: Option<Counted> = None;
        let mut since = Instant::now();
        loop {
            let answer = self.ask()?;
            if let Some(counted) = answer {
                if last.is_none_or(|it| it.received != counted.received) {
                    since = Instant::now();
                }
                last = Some(counted);
                if counted.received >= sent || since.elapsed() >= QUIET {
                    return Ok(last);
                }
            }
            if Instant::now() >= end {
                return Ok(last);
            }
            sleep(ASK_EVERY);
        }
    }

    /// Asks once; `None` if the answer does not come in time.
    fn ask(&mut self) -> io::Result<Option<Counted>> {
        self.question += 1;
        let mut packet = [0; MESSAGE_BYTES];
        Message::Ask { run: self.run, question: self.question }.write(&mut packet);
        let passing = |result: io::Result<usize>| match result {
            Err(error) if is_passing(&error) => Ok(0),
            other => other,
        };
        passing(self.socket.send(&packet))?;
        let end = Instant::now() + ANSWER_WAIT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            let length = match self.socket.recv(&mut packet) {
                // Nobody listens there yet.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(None),
                other => passing(other)?,
            };
            match Message::read(&packet[..length]) {
                Some(Message::Answer { run, question, counted })
                    if (run, question) == (self.run, self.question) =>
                {
                    return Ok(Some(counted));
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::udp_count::count;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn sent(line: &str) -> Result<SendReport, Error> {
        run(&Line::parse_from(line.split_whitespace()).args)
    }

    fn counter() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || count(&socket, Some(Duration::from_secs(10))));
        address
    }

    #[test]
    fn both_ends_count_every_packet() {
        let target = counter();
        for _ in 0..2 {
            let report = sent(&format!("send {target} --rate 2000 --duration-ms 200")).unwrap();
            assert_eq!((report.received, report.duplicates), (report.sent, 0), "{report:?}");
            assert!((1..=401).contains(&report.sent), "{report:?}");
            assert!((0.2..5.0).contains(&report.seconds), "{report:?}");
        }
    }

    #[test]
    fn a_file_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("end");
        let line = format!("send {} --duration-ms 60000 --until {}", counter(), file.display());
        let ends = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            std::fs::write(file, "").unwrap();
        });
        let report = sent(&line).unwrap();
        assert!((0.05..30.0).contains(&report.seconds) && report.sent > 0, "{report:?}");
        ends.join().unwrap();
    }

    #[test]
    fn a_rate_that_no_sender_reaches_is_said() {
        let line = format!("send {} --rate 100000000 --duration-ms 50 --size 9000", counter());
        let report = sent(&line).unwrap();
        assert!(!report.is_rate_reached && report.sent > 0, "{report:?}");
        assert!(report.received <= report.sent, "{report:?}");
    }

    #[test]
    fn a_silent_peer_is_told_in_bounded_time() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let line = format!("send {} --wait-ms 50", silent.local_addr().unwrap());
        let error = sent(&line).unwrap_err();
        assert!(matches!(error, Error::NoCount { sent: 0, .. }), "{error}");
    }

    #[test]
    fn packets_are_due_at_the_rate_and_a_pause_is_not_made_up_for() {
        let mut schedule = Schedule { rate: 1_000_000, next_ns: 5000.0 };
        assert_eq!(schedule.due(4999), 0);
        assert_eq!(schedule.due(5000), 1);
        assert_eq!(schedule.due(7500), 3);
        schedule.sent(3);
        assert_eq!(schedule.due(7500), 0);
        assert_eq!(schedule.due(8000), 1);
        // A second later.
        assert_eq!(schedule.due(1_000_008_000), BURST);
        schedule.sent(BURST);
        assert_eq!(schedule.due(1_000_008_999), 0);
        assert_eq!(schedule.due(1_000_009_000), 1);
    }
}
