//! Round trips of ICMP echoes in nanoseconds, which `ping` rounds to microseconds. One is in flight at a time.
//!
//!     echo-times ADDRESS COUNT INTERVAL_US
//!
//! Prints a line for each echo that comes back within a second. Needs CAP_NET_RAW.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType, connect, ipproto, recv, send, socket,
};

/// Longest wait for an echo.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of a message, as `ping` sends them.
const LEN: usize = 64;
/// Types of ICMP messages (RFC 792).
const ECHO_REPLY: u8 = 0;
const ECHO: u8 = 8;
/// Largest header of IPv4, bytes.
const HEADER_MAX: usize = 60;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let parsed = match &words[..] {
        [address, count, interval] => {
            address.parse().ok().zip(count.parse().ok()).zip(interval.parse().ok())
        }
        _ => None,
    };
    let Some(((address, count), interval)) = parsed else {
        eprintln!("echo-times: expected an IPv4 address, a count and an interval in us");
        return ExitCode::from(2);
    };
    match run(address, count, Duration::from_micros(interval)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo-times: {address}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(address: Ipv4Addr, count: u16, interval: Duration) -> io::Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))?;
    connect(&socket, &SocketAddrV4::new(address, 0))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    for sequence in 0..count {
        let message = message(sequence);
        let begun = Instant::now();
        send(&socket, &message, SendFlags::empty())?;
        if comes_back(&socket, &message, begun)? {
            println!("{}", begun.elapsed().as_nanos());
        }
        sleep((begun + interval).saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// An echo request with this number.
fn message(sequence: u16) -> [u8; LEN] {
    let mut message = [0; LEN];
    message[0] = ECHO;
    #[expect(clippy::cast_possible_truncation, reason = "any 16 bits of it")]
    let id = std::process::id() as u16;
    message[4..6].copy_from_slice(&id.to_be_bytes());
    message[6..8].copy_from_slice(&sequence.to_be_bytes());
    let words =
        message.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    #[expect(clippy::cast_possible_truncation, reason = "the low half")]
    let checksum = !((folded + (folded >> 16)) as u16);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    message
}

/// Waits for the reply to this message. Others may come to the socket, too.
fn comes_back(socket: &OwnedFd, message: &[u8; LEN], begun: Instant) -> io::Result<bool> {
    let mut buffer = [0; HEADER_MAX + LEN];
    while begun.elapsed() < PATIENCE {
        let len = match recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((len, _)) => len,
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let header = usize::from(buffer[0] & 0xf) * 4;
        let is_reply = buffer[..len].get(header..).is_some_and(|reply| {
            reply.len() >= 8 && reply[0] == ECHO_REPLY && reply[4..8] == message[4..8]
        });
        if is_reply {
            return Ok(true);
        }
    }
    Ok(false)
}
