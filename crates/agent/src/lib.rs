//! The end point of measurements, as `ringscope agent`: in guests and on the far host.
//!
//! It sends, answers and measures, and prints each result as one JSON object on standard output. Every subcommand ends
//! by itself: when its work is done, or after `--timeout`.
//!
//! - [`console`]: a shell over a port of virtio-serial or a serial line: the host's end, and in `console::server` the guest's end; `shell` runs one
//!   command over it.
//! - `udp_ping`, `udp_echo`: round trips; `stamps`: when each packet was sent and received, by program and kernel.
//! - `guest_stages`: how a guest's kernel received each probe.
//! - `launch`: packets that the kernel sends at launch times; `gate`: the gate of a cyclic schedule; `scheduling`: the CPU
//!   and the class of a program that sends; `sys`: what of it has no safe form.
//! - `udp_send`, `udp_count`: packets at a rate, and how many of them come; `flow`: what both send to each other.
//! - `tcp`: bulk transfers that are hashed or compared; `pattern`: the bytes they send.
//! - `cyclic`: layer-2 frames with a counter, one in each period.
//! - `watch`: looks after an exchange: progress, silence, patience; `progress`: a line that shows how far a job is;
//!   `address`: addresses on the command line.
//! - `channels`: how many queue pairs an interface uses; `busy`: takes a CPU, and its caches.
//! - `figures`: percentiles; `clock`: the clock of all stamps; `counter`: that clock beside the CPU's counter.
//! - [`clock_page`]: a page that a guest and its host share, by which the offset between their clocks is bounded; and a KVM guest's
//!   clock device, which does the same.

mod address;
mod busy;
mod channels;
mod clock;
pub mod clock_page;
pub mod console;
mod counter;
mod cyclic;
mod figures;
mod flow;
mod gate;
mod guest_stages;
mod launch;
mod pattern;
mod progress;
mod scheduling;
mod shell;
mod stamps;
mod sys;
mod tcp;
mod udp_count;
mod udp_echo;
mod udp_ping;
mod udp_send;
mod watch;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

pub use clock::RealtimeAhead;
pub use counter::{ClockPair, ClockPairs, READINGS, TaiClock};
pub use figures::Figures;
pub use launch::LaunchReport;
pub use progress::Progress;
pub use tcp::{TcpReport, TransferHalf};
pub use udp_ping::PingReport;
pub use udp_send::SendReport;

const PROBES: &str = "\
Probes: `udp-ping --stamps FILE` at one end and `udp-echo --stamps FILE` at the other write when program and kernel \
had each packet; `ringscope stats --probes` joins them. In a guest, add --guest-stages: its kernel's interrupt, softirq, \
driver, stack and scheduling, apart.";

/// `ringscope agent`: the end point of measurements, in guests and on the far host.
#[derive(Debug, clap::Args)]
#[command(after_long_help = PROBES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Serve a shell on a port of virtio-serial or a serial line, for programs.
    Console(console::server::Args),
    /// Run a command in a guest of qemu-scripts/launch.
    Shell(shell::Args),
    /// Send every UDP packet back to its sender.
    UdpEcho(udp_echo::Args),
    /// Measure round trips against a udp-echo.
    UdpPing(udp_ping::Args),
    /// Send UDP packets at a rate, and say how many a udp-count received.
    UdpSend(udp_send::Args),
    /// Count the packets of a udp-send.
    UdpCount(udp_count::Args),
    /// Serve tcp-send and tcp-receive.
    TcpServe(tcp::ServeArgs),
    /// Send bytes made from a seed to a tcp-serve; both ends hash them, or the receiver compares.
    TcpSend(tcp::TransferArgs),
    /// Have a tcp-serve send bytes made from a seed; both ends hash them, or the receiver compares.
    TcpReceive(tcp::TransferArgs),
    /// Measure how fast this machine makes and hashes bytes.
    HashSpeed(tcp::HashSpeedArgs),
    /// Send layer-2 frames with a counter, one in each period.
    Cyclic(cyclic::Args),
    /// Show or set how many queue pairs a network interface uses.
    Channels(channels::Args),
    /// Compare clocks: read the CPU's counter and CLOCK_MONOTONIC at the same moments, or bound a guest's offset.
    Clock(counter::Args),
    /// Keep one CPU busy, and its caches.
    Busy(busy::Args),
}

/// Why a subcommand of the agent stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or device could not be used.
    #[error("cannot use {path}: {source}; check that it exists and that you may open it")]
    File {
        /// Which one.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A local address could not be bound.
    #[error(
        "cannot bind {address}: {source}; choose an address of this machine and a port not in use"
    )]
    Bind {
        /// Which one.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The peer could not be reached or went away.
    #[error("expected to {doing} {peer}, found: {source}; is the other end's agent running there?")]
    Peer {
        /// What was being done, such as "connect to".
        doing: &'static str,
        /// The other end.
        peer: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The time given by a flag is over.
    #[error("{what} not finished after {limit:?}: {found}; raise {flag} if this machine is slow")]
    Timeout {
        /// What should have been done.
        what: &'static str,
        /// How long it had.
        limit: Duration,
        /// The flag that gave it.
        flag: &'static str,
        /// How far it came.
        found: String,
    },
    /// Nothing at all came back.
    #[error(
        "expected replies from {target}, found none to {sent} packets in {seconds:.1} s; is `ringscope agent \
         udp-echo` running there, and does `ping` reach it?"
    )]
    NoReply {
        /// Where the packets went.
        target: SocketAddr,
        /// How many were sent, warm-up included.
        sent: u64,
        /// Time from the first packet to the end of waiting, seconds.
        seconds: f64,
    },
    /// The other end did not say how many packets came.
    #[error(
        "expected {target} to say how many of {sent} packets came, found no answer within {limit:?}; is `ringscope \
         agent udp-count` running there, and does `ping` reach it? --wait-ms waits longer"
    )]
    NoCount {
        /// Where the packets went.
        target: SocketAddr,
        /// How many were sent.
        sent: u64,
        /// How long it was asked.
        limit: Duration,
    },
    /// Nobody accepted the connection.
    #[error(
        "expected {peer} to accept a connection, found no answer in {seconds:.1} s; is `ringscope agent tcp-serve` \
         running there, and does `ping` reach it? --patience SECONDS waits longer"
    )]
    NoConnection {
        /// The other end.
        peer: SocketAddr,
        /// How long it was tried, seconds.
        seconds: f64,
    },
    /// The other end does not speak our protocol.
    #[error("expected {expected} from {peer}, found {found:?}; run the same version on both ends")]
    Protocol {
        /// The other end.
        peer: SocketAddr,
        /// What should have come.
        expected: &'static str,
        /// What came.
        found: String,
    },
    /// The two ends hashed different bytes.
    #[error("SHA-256 sent {sent}, received {received}: the bytes were changed on their way")]
    Corrupted {
        /// The sender's digest.
        sent: String,
        /// The receiver's digest.
        received: String,
    },
    /// The receiver got other bytes than the seed's.
    #[error(
        "expected {bytes} bytes of the seed, found that byte {at} differs: the bytes were changed on their way"
    )]
    Differs {
        /// Position of the first byte that differs, from 0.
        at: u64,
        /// Number of received bytes.
        bytes: u64,
    },
    /// A value on the command line cannot be used.
    #[error("{flag}: expected {expected}, found {found}")]
    Usage {
        /// Which flag.
        flag: &'static str,
        /// What it takes.
        expected: String,
        /// What it was given.
        found: String,
    },
    /// The interface's queues could not be read or set.
    #[error("cannot {doing} the queues of {interface}: {source}; does its driver have channels?")]
    Channels {
        /// "read" or "set".
        doing: &'static str,
        /// The interface.
        interface: String,
        /// What the system said.
        source: io::Error,
    },
    /// Frames could not be sent on an interface.
    #[error(
        "cannot {doing} {interface}: {source}; check its name, that it is up, and that this is root"
    )]
    Interface {
        /// What was being done, such as "send on".
        doing: &'static str,
        /// The interface.
        interface: String,
        /// What the system said.
        source: io::Error,
    },
    /// The CPU has no counter to compare with.
    #[error(
        "expected a counter that programs can read (the TSC of x86-64, CNTVCT of aarch64), found none that advances; \
         the clocks of two ends cannot be compared here"
    )]
    NoCounter,
    /// The clocks of a guest and its host could not be compared by their page.
    #[error(transparent)]
    ClockPage(#[from] clock_page::Error),
    /// A guest's console did not answer.
    #[error(transparent)]
    Console(#[from] console::Error),
    /// A command in a guest failed.
    #[error("`{command}` ended with status {status} in the guest")]
    Command {
        /// The command.
        command: String,
        /// Its exit status.
        status: i32,
    },
    /// Standard output is gone, or a thread could not be started.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Runs what the command line asks for; results go to standard output.
pub fn run(args: Args) -> Result<(), Error> {
    match args.command {
        Command::Console(args) => console::server::run(&args),
        Command::Shell(args) => shell::run(&args),
        Command::UdpEcho(args) => udp_echo::run(&args),
        Command::UdpPing(args) => print_json(&udp_ping::run(&args)?),
        Command::UdpSend(args) => print_json(&udp_send::run(&args)?),
        Command::UdpCount(args) => udp_count::run(&args),
        Command::TcpServe(args) => tcp::serve(&args),
        Command::TcpSend(args) => finish_transfer(&tcp::send(&args)?),
        Command::TcpReceive(args) => finish_transfer(&tcp::receive(&args)?),
        Command::HashSpeed(args) => print_json(&tcp::hash_speed(&args)),
        Command::Cyclic(args) => cyclic::run(&args),
        Command::Channels(args) => channels::run(&args),
        Command::Clock(args) => counter::run(&args),
        Command::Busy(args) => busy::run(&args),
    }
}

/// Prints the report even if the digests differ: it shows what was received.
fn finish_transfer(report: &TcpReport) -> Result<(), Error> {
    print_json(report)?;
    report.check()
}

fn print_json<T: serde::Serialize>(report: &T) -> Result<(), Error> {
    use std::io::Write;
    let mut line = serde_json::to_string(report).map_err(io::Error::from)?;
    line.push('\n');
    Ok(io::stdout().lock().write_all(line.as_bytes())?)
}
