//! `tcp-serve`, `tcp-send`, `tcp-receive`: bytes made from a seed, over one connection.
//!
//! The client opens with one line, `ringscope-tcp DIRECTION BYTES SEED hash|plain`. The sender makes the bytes, and both
//! ends hash them. At the end the server sends its half of the result as one JSON line, and the client compares and
//! prints both.

use crate::Error;
use crate::address;
use crate::pattern::Pattern;
use crate::progress::Progress;
use crate::watch::{Tally, Watch};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const BLOCK_BYTES: usize = 256 << 10;
/// The longest opening line we accept.
const OPENING_BYTES_MAX: u64 = 128;
const OPENING: &str = "ringscope-tcp";
/// The server closes a connection that is idle for this long.
const IDLE_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// Address and port to listen on.
    #[arg(long, value_name = "ADDR:PORT", value_parser = address::tcp, default_value = "0.0.0.0:7008")]
    bind: SocketAddr,
    /// Stop after this many seconds; 0: never.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    timeout: u64,
}

#[derive(Debug, clap::Args)]
pub struct TransferArgs {
    /// Address and port of the tcp-serve, such as 10.0.0.1:7008 or fe80::1%eth0.
    #[arg(value_parser = address::tcp)]
    target: SocketAddr,
    /// Number of bytes to transfer.
    #[arg(long, value_name = "N", default_value_t = 256 << 20)]
    bytes: u64,
    /// Seed of the bytes.
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Send one block repeatedly and hash nothing, to measure throughput alone.
    #[arg(long)]
    no_hash: bool,
    /// Give up after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
    /// End with an error if nobody answers for this many seconds; 0: wait until --timeout.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    patience: u64,
}

#[derive(Debug, clap::Args)]
pub struct HashSpeedArgs {
    /// Number of bytes to make and hash.
    #[arg(long, value_name = "N", default_value_t = 64 << 20)]
    bytes: u64,
}

/// One end's view of a transfer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TransferHalf {
    /// Number of bytes that this end sent or received.
    pub bytes: u64,
    /// Their SHA-256 in hexadecimal; absent with `--no-hash`.
    pub sha256: Option<String>,
    /// Time from the first byte to the last, seconds.
    pub seconds: f64,
}

/// What `tcp-send` and `tcp-receive` print.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TcpReport {
    /// `tcp-send` or `tcp-receive`.
    pub kind: String,
    /// The end that made the bytes.
    pub sent: TransferHalf,
    /// The end that received them.
    pub received: TransferHalf,
    /// Time until the receiver had the last byte, by the client's clock, seconds.
    pub seconds: f64,
    /// Payload in bits, divided by these seconds.
    pub bits_per_second: f64,
}

impl TcpReport {
    /// Checks that the received bytes are the sent ones.
    pub fn check(&self) -> Result<(), Error> {
        if self.sent.bytes == self.received.bytes && self.sent.sha256 == self.received.sha256 {
            return Ok(());
        }
        let digest = |half: &TransferHalf| {
            format!("{} of {} bytes", half.sha256.as_deref().unwrap_or("(not hashed)"), half.bytes)
        };
        Err(Error::Corrupted { sent: digest(&self.sent), received: digest(&self.received) })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// Client to server.
    Send,
    /// Server to client.
    Receive,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Order {
    direction: Direction,
    bytes: u64,
    seed: u64,
    hash: bool,
}

impl Order {
    fn line(self) -> String {
        let direction = match self.direction {
            Direction::Send => "send",
            Direction::Receive => "receive",
        };
        let hash = if self.hash { "hash" } else { "plain" };
        format!("{OPENING} {direction} {} {} {hash}\n", self.bytes, self.seed)
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        if words.next()? != OPENING {
            return None;
        }
        let direction = match words.next()? {
            "send" => Direction::Send,
            "receive" => Direction::Receive,
            _ => return None,
        };
        let bytes = words.next()?.parse().ok()?;
        let seed = words.next()?.parse().ok()?;
        let hash = match words.next()? {
            "hash" => true,
            "plain" => false,
            _ => return None,
        };
        words.next().is_none().then_some(Self { direction, bytes, seed, hash })
    }
}

/// Makes the bytes and writes them. Without hashing, one block is written repeatedly, so that making bytes does not limit
/// the throughput.
fn transmit(
    to: &mut impl Write,
    order: Order,
    end: Instant,
    tally: &Tally,
) -> io::Result<TransferHalf> {
    let start = Instant::now();
    let mut pattern = Pattern::new(order.seed);
    let mut digest = order.hash.then(Sha256::new);
    let mut block = vec![0; BLOCK_BYTES];
    pattern.fill(&mut block);
    let mut left = order.bytes;
    while left > 0 {
        in_time(end)?;
        let part = &block[..left.min(BLOCK_BYTES as u64) as usize];
        if let Some(digest) = &mut digest {
            digest.update(part);
        }
        to.write_all(part)?;
        tally.answered(part.len() as u64);
        left -= part.len() as u64;
        if order.hash {
            pattern.fill(&mut block);
        }
    }
    Ok(half(order.bytes, digest, start))
}

fn take(
    from: &mut impl Read,
    order: Order,
    end: Instant,
    tally: &Tally,
) -> io::Result<TransferHalf> {
    let start = Instant::now();
    let mut digest = order.hash.then(Sha256::new);
    let mut block = vec![0; BLOCK_BYTES];
    let mut left = order.bytes;
    while left > 0 {
        in_time(end)?;
        let room = left.min(BLOCK_BYTES as u64) as usize;
        let length = match from.read(&mut block[..room]) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if let Some(digest) = &mut digest {
            digest.update(&block[..length]);
        }
        tally.answered(length as u64);
        left -= length as u64;
    }
    Ok(half(order.bytes - left, digest, start))
}

fn in_time(end: Instant) -> io::Result<()> {
    if Instant::now() < end { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
}

fn half(bytes: u64, digest: Option<Sha256>, start: Instant) -> TransferHalf {
    let seconds = start.elapsed().as_secs_f64();
    TransferHalf { bytes, sha256: digest.map(|digest| hex(&digest.finalize())), seconds }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn serve(args: &ServeArgs) -> Result<(), Error> {
    let listener = TcpListener::bind(args.bind)
        .map_err(|source| Error::Bind { address: args.bind, source })?;
    let mut progress = Progress::new();
    progress.show(|| format!("serves TCP transfers on {}; Ctrl-C ends it", args.bind));
    if args.timeout == 0 {
        return accept_all(&listener);
    }
    std::thread::spawn(move || accept_all(&listener));
    std::thread::sleep(Duration::from_secs(args.timeout));
    Ok(())
}

fn accept_all(listener: &TcpListener) -> Result<(), Error> {
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                std::thread::spawn(move || {
                    if let Err(error) = answer(&stream) {
                        eprintln!("tcp-serve: {peer}: {error}");
                    }
                });
            }
            // The connection was gone before it was taken.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn answer(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE_MAX))?;
    stream.set_write_timeout(Some(IDLE_MAX))?;
    let mut from = BufReader::with_capacity(BLOCK_BYTES, stream);
    let mut to = stream;
    let mut line = String::new();
    (&mut from).take(OPENING_BYTES_MAX).read_line(&mut line)?;
    let Some(order) = Order::parse(&line) else {
        let text = format!("expected `{OPENING} ...`, found {line:?}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    };
    // The client has a limit of its own; this one only keeps a server's threads from piling up.
    let (end, unwatched) = (Instant::now() + Duration::from_secs(3600), Tally::default());
    let half = match order.direction {
        Direction::Send => take(&mut from, order, end, &unwatched)?,
        Direction::Receive => transmit(&mut to, order, end, &unwatched)?,
    };
    let mut reply = serde_json::to_string(&half)?;
    reply.push('\n');
    to.write_all(reply.as_bytes())
}

pub fn send(args: &TransferArgs) -> Result<TcpReport, Error> {
    transfer(args, Direction::Send)
}

pub fn receive(args: &TransferArgs) -> Result<TcpReport, Error> {
    transfer(args, Direction::Receive)
}

fn transfer(args: &TransferArgs, direction: Direction) -> Result<TcpReport, Error> {
    let order = Order { direction, bytes: args.bytes, seed: args.seed, hash: !args.no_hash };
    let (limit, patience) =
        (Duration::from_secs(args.timeout.max(1)), Duration::from_secs(args.patience));
    let end = Instant::now() + limit;
    let (tally, stream) = (Tally::default(), OnceLock::new());
    let watch = Watch {
        peer: args.target,
        server: "tcp-serve",
        of: args.bytes,
        unit: "bytes",
        is_always_due: true,
        patience,
        end: Some(end),
    };
    let hang_up = || {
        if let Some(stream) = stream.get() {
            // Fails only if the connection is gone, which ends the transfer as well.
            let _ = TcpStream::shutdown(stream, Shutdown::Both);
        }
    };
    let done = watch.run(&tally, hang_up, || {
        connect(args, limit).and_then(|connected| {
            exchange(args.target, stream.get_or_init(|| connected), order, end, &tally)
        })
    });
    match done {
        Err(Error::Peer { .. } | Error::Protocol { .. }) if tally.is_given_up() => {
            let is_over = Instant::now() >= end;
            let (limit, flag) =
                if is_over { (limit, "--timeout") } else { (patience, "--patience") };
            let found = format!("{} of {} bytes were transferred", tally.so_far(), args.bytes);
            Err(Error::Timeout { what: "the TCP transfer", limit, flag, found })
        }
        done => done,
    }
}

/// Connects, within the limit and our patience.
fn connect(args: &TransferArgs, limit: Duration) -> Result<TcpStream, Error> {
    let patience = match args.patience {
        0 => limit,
        patience => limit.min(Duration::from_secs(patience)),
    };
    let (peer, start) = (args.target, Instant::now());
    let connected = TcpStream::connect_timeout(&peer, patience).and_then(|stream| {
        // The watcher ends calls that wait. This is for one that begins when it has done so.
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        Ok(stream)
    });
    connected.map_err(|source| match source.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            Error::NoConnection { peer, seconds: start.elapsed().as_secs_f64() }
        }
        _ => Error::Peer { doing: "connect to", peer, source },
    })
}

fn exchange(
    peer: SocketAddr,
    stream: &TcpStream,
    order: Order,
    end: Instant,
    tally: &Tally,
) -> Result<TcpReport, Error> {
    let failed = |doing| move |source: io::Error| Error::Peer { doing, peer, source };
    let mut to = stream;
    let mut from = BufReader::with_capacity(BLOCK_BYTES, stream);
    to.write_all(order.line().as_bytes()).map_err(failed("send to"))?;
    let begin = Instant::now();
    let ours = match order.direction {
        Direction::Send => transmit(&mut to, order, end, tally).map_err(failed("send to"))?,
        Direction::Receive => take(&mut from, order, end, tally).map_err(failed("receive from"))?,
    };
    let received_after = begin.elapsed();
    let mut line = String::new();
    from.read_line(&mut line).map_err(failed("receive the result from"))?;
    let theirs: TransferHalf = serde_json::from_str(&line).map_err(|_| Error::Protocol {
        peer,
        expected: "its half of the result",
        found: line.chars().take(80).collect(),
    })?;
    let (kind, sent, received, seconds) = match order.direction {
        Direction::Send => ("tcp-send", ours, theirs, begin.elapsed()),
        Direction::Receive => ("tcp-receive", theirs, ours, received_after),
    };
    let seconds = seconds.as_secs_f64();
    let bits_per_second = received.bytes as f64 * 8.0 / seconds;
    Ok(TcpReport { kind: kind.into(), sent, received, seconds, bits_per_second })
}

/// What `hash-speed` prints.
#[derive(Debug, Serialize)]
pub struct HashSpeed {
    kind: &'static str,
    bytes: u64,
    make_bytes_per_second: f64,
    sha256_bytes_per_second: f64,
}

pub fn hash_speed(args: &HashSpeedArgs) -> HashSpeed {
    let rounds = args.bytes.div_ceil(BLOCK_BYTES as u64).max(1);
    let bytes = rounds * BLOCK_BYTES as u64;
    let mut block = vec![0; BLOCK_BYTES];
    let mut pattern = Pattern::new(1);
    let mut progress = Progress::new();
    progress.show(|| format!("makes {bytes} bytes"));
    let start = Instant::now();
    for _ in 0..rounds {
        pattern.fill(std::hint::black_box(&mut block));
    }
    let make_bytes_per_second = bytes as f64 / start.elapsed().as_secs_f64();
    progress.show(|| format!("hashes {bytes} bytes"));
    let start = Instant::now();
    let mut digest = Sha256::new();
    for _ in 0..rounds {
        digest.update(std::hint::black_box(&block));
    }
    std::hint::black_box(digest.finalize());
    let sha256_bytes_per_second = bytes as f64 / start.elapsed().as_secs_f64();
    HashSpeed { kind: "hash-speed", bytes, make_bytes_per_second, sha256_bytes_per_second }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || accept_all(&listener));
        address
    }

    fn args(target: SocketAddr, bytes: u64, no_hash: bool) -> TransferArgs {
        TransferArgs { target, bytes, seed: 5, no_hash, timeout: 20, patience: 10 }
    }

    #[test]
    fn both_directions_carry_the_same_bytes() {
        let target = server();
        // Not a multiple of the block, so the last part is short.
        let bytes = 3 * BLOCK_BYTES as u64 + 1001;
        let sent = send(&args(target, bytes, false)).unwrap();
        let received = receive(&args(target, bytes, false)).unwrap();
        sent.check().unwrap();
        received.check().unwrap();
        assert_eq!(sent.received.bytes, bytes);
        assert_eq!(sent.received.sha256, received.received.sha256);
        assert_eq!(sent.received.sha256.unwrap().len(), 64);
    }

    #[test]
    fn without_hash_there_is_no_digest() {
        let report = send(&args(server(), 1 << 20, true)).unwrap();
        report.check().unwrap();
        assert_eq!((report.sent.sha256, report.received.bytes), (None, 1 << 20));
    }

    #[test]
    fn a_changed_byte_is_told() {
        let mut report = receive(&args(server(), 1000, false)).unwrap();
        report.received.sha256 = Some("00".into());
        assert!(matches!(report.check(), Err(Error::Corrupted { .. })));
    }

    #[test]
    fn orders_survive_the_wire_and_garbage_is_refused() {
        let order = Order { direction: Direction::Receive, bytes: 7, seed: 8, hash: false };
        assert_eq!(Order::parse(&order.line()), Some(order));
        for line in ["", "GET / HTTP/1.1", "ringscope-tcp send x 1 hash", "ringscope-tcp send 1 1"]
        {
            assert_eq!(Order::parse(line), None, "{line}");
        }
    }

    /// The limit and its flag of a transfer that is given up.
    fn given_up(result: Result<TcpReport, Error>) -> (Duration, &'static str) {
        match result {
            Err(Error::Timeout { limit, flag, .. }) => (limit, flag),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_peer_that_says_nothing_is_given_up_for_the_reason_that_is_said() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (target, second) = (listener.local_addr().unwrap(), Duration::from_secs(1));
        let limited = TransferArgs { timeout: 1, ..args(target, 10, false) };
        assert_eq!(given_up(receive(&limited)), (second, "--timeout"));
        let impatient = TransferArgs { patience: 1, ..args(target, 10, false) };
        assert_eq!(given_up(receive(&impatient)), (second, "--patience"));
        // It sends until the buffers are full.
        let sending = TransferArgs { timeout: 1, ..args(target, 1 << 30, true) };
        assert_eq!(given_up(send(&sending)), (second, "--timeout"));
    }

    /// TEST-NET-1 (RFC 5737): nobody answers there; a sandbox may refuse at once instead.
    #[test]
    fn a_host_that_does_not_answer_is_reported_with_the_time_it_had() {
        let target = "192.0.2.1:7008".parse().unwrap();
        let args = TransferArgs { timeout: 120, patience: 1, ..args(target, 10, false) };
        match send(&args) {
            Err(Error::NoConnection { seconds, .. }) => assert!((0.9..10.0).contains(&seconds)),
            Err(Error::Peer { doing: "connect to", .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}
