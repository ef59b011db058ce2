//! `tcp-serve`, `tcp-send`, `tcp-receive`: bytes made from a seed, over one connection.
//!
//! The client opens with one line, `ringscope-tcp DIRECTION BYTES SEED hash|compare|plain`. The sender makes the bytes. Both
//! ends hash them; or the receiver makes them, too, and compares. At the end the server sends its half of the result as one
//! JSON line, and the client checks and prints both.

use crate::Error;
use crate::address;
use crate::pattern::{BLOCK_BYTES, Comparison, Pattern};
use crate::progress::Progress;
use crate::watch::{Tally, Watch};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

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
    /// Have the receiver make the same bytes and compare, which is faster than hashing.
    #[arg(long)]
    compare: bool,
    /// Send one block repeatedly and hash nothing, to measure throughput alone.
    #[arg(long, conflicts_with = "compare")]
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
    /// Their SHA-256 in hexadecimal; absent with `--compare` and `--no-hash`.
    pub sha256: Option<String>,
    /// Number of received bytes before the first that is not the sent one; only at the receiver, and with `--compare`.
    pub equal_bytes: Option<u64>,
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
        if let Some(at) = self.received.equal_bytes.filter(|&equal| equal < self.received.bytes) {
            return Err(Error::Differs { at, bytes: self.received.bytes });
        }
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

/// How the received bytes are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    /// Both ends hash them.
    Hash,
    /// The receiver compares them with those of the seed.
    Compare,
    /// Not at all.
    Nothing,
}

impl Check {
    const ALL: [Self; 3] = [Self::Hash, Self::Compare, Self::Nothing];

    fn of(args: &TransferArgs) -> Self {
        match (args.compare, args.no_hash) {
            (true, _) => Self::Compare,
            (_, true) => Self::Nothing,
            _ => Self::Hash,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Hash => "hash",
            Self::Compare => "compare",
            Self::Nothing => "plain",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Order {
    direction: Direction,
    bytes: u64,
    seed: u64,
    check: Check,
}

impl Order {
    fn line(self) -> String {
        let direction = match self.direction {
            Direction::Send => "send",
            Direction::Receive => "receive",
        };
        format!("{OPENING} {direction} {} {} {}\n", self.bytes, self.seed, self.check.word())
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
        let word = words.next()?;
        let check = Check::ALL.into_iter().find(|check| check.word() == word)?;
        words.next().is_none().then_some(Self { direction, bytes, seed, check })
    }
}

/// Makes the bytes and writes them. If they are not checked, one block is written repeatedly, so that making bytes does not
/// limit the throughput.
fn transmit(
    to: &mut impl Write,
    order: Order,
    end: Instant,
    tally: &Tally,
) -> io::Result<TransferHalf> {
    let start = Instant::now();
    let mut pattern = Pattern::new(order.seed);
    let mut digest = (order.check == Check::Hash).then(Sha256::new);
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
        if order.check != Check::Nothing {
            pattern.fill(&mut block);
        }
    }
    Ok(half(order.bytes, digest, None, start))
}

fn take(
    from: &mut impl Read,
    order: Order,
    end: Instant,
    tally: &Tally,
) -> io::Result<TransferHalf> {
    let start = Instant::now();
    let mut digest = (order.check == Check::Hash).then(Sha256::new);
    let mut comparison = (order.check == Check::Compare).then(|| Comparison::new(order.seed));
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
        if let Some(comparison) = &mut comparison {
            comparison.take(&block[..length]);
        }
        tally.answered(length as u64);
        left -= length as u64;
    }
    Ok(half(order.bytes - left, digest, comparison, start))
}

fn in_time(end: Instant) -> io::Result<()> {
    if Instant::now() < end { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
}

fn half(
    bytes: u64,
    digest: Option<Sha256>,
    comparison: Option<Comparison>,
    start: Instant,
) -> TransferHalf {
    TransferHalf {
        bytes,
        sha256: digest.map(|digest| hex(&digest.finalize())),
        equal_bytes: comparison.map(|comparison| comparison.equal_bytes()),
        seconds: start.elapsed().as_secs_f64(),
    }
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
    let order = Order { direction, bytes: args.bytes, seed: args.seed, check: Check::of(args) };
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
mod tests;
