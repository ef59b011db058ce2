//! How many frames a second one thread writes to a tap, by a bare loop or as a guest of ringscoped; how many a guest receives from a
//! tap; and a guest that answers beside what it sends.
//!
//!     tap-calls write TAP BYTES SEGMENTS SECONDS [filtered]
//!                                                    writes packets of this many datagrams, one `writev` each
//!     tap-calls send SOCKET BYTES FLOWS SECONDS [tcp] [whole]
//!                                                    is a guest that sends frames of this many flows in turn
//!     tap-calls receive SOCKET TAP BYTES FLOWS SECONDS [tcp]
//!                                                    is a guest that receives frames of this many flows in turn, and the host
//!                                                    that sends them into the tap
//!     tap-calls answer SOCKET BYTES WAITING SECONDS  is a guest that answers pings, and always has this many frames of one
//!                                                    flow waiting to be sent
//!
//! BYTES: payload of a frame. `filtered`: below a filter of system calls that allows all of them. `tcp`: TCP segments in place of
//! UDP datagrams. `whole`: the guest computes checksums. Prints frames a second, and frames for each second of CPU time of this
//! process.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{IoSlice, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use frontend::{Frame, Guest, GuestOptions};
use ringscope_tests::flows::{Flow, Sent};
use ringscope_tests::{open_tap, packet_socket};
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::time::{ClockId, clock_gettime};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Frames that the guest publishes together.
const TOGETHER: usize = 64;
/// Length of the headers: Ethernet, IPv4, UDP.
const HEADERS: usize = 42;
/// A tap's net header, until somebody asks for a longer one (`drivers/net/tun.c`).
const NET_HEADER: usize = 10;
/// Where an ICMP message begins, and its types (RFC 792).
const ICMP: usize = 34;
const ECHO: u8 = 8;
const USAGE: &str = "tap-calls: expected `write TAP BYTES SEGMENTS SECONDS [filtered]`, `send SOCKET BYTES FLOWS SECONDS [tcp] [whole]`, \
                     `receive SOCKET TAP BYTES FLOWS SECONDS [tcp]` or `answer SOCKET BYTES WAITING SECONDS`";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let counted = match words[..] {
        ["write", tap, bytes, segments, seconds, ref kind @ ..] => {
            numbers([bytes, segments, seconds])
                .and_then(|numbers| write(tap, numbers, kind.contains(&"filtered")))
        }
        ["send", socket, bytes, flows, seconds, ref kind @ ..] => {
            let is_tcp = kind.contains(&"tcp");
            let is_whole = kind.contains(&"whole");
            numbers([bytes, flows, seconds])
                .and_then(|numbers| send(socket, numbers, is_tcp, is_whole))
        }
        ["receive", socket, tap, bytes, flows, seconds, ref kind @ ..] => {
            let is_tcp = kind.contains(&"tcp");
            numbers([bytes, flows, seconds])
                .and_then(|numbers| receive(socket, tap, numbers, is_tcp))
        }
        ["answer", socket, bytes, waiting, seconds] => {
            numbers([bytes, waiting, seconds]).and_then(|numbers| answer(socket, numbers))
        }
        _ => Err(USAGE.into()),
    };
    match counted {
        Ok([frames, wall, cpu]) => println!("{:.0} {:.0}", frames / wall, frames / cpu),
        Err(error) => {
            eprintln!("tap-calls: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn numbers<const N: usize>(words: [&str; N]) -> Result<[usize; N]> {
    let numbers: Vec<usize> =
        words.iter().map(|word| word.parse()).collect::<std::result::Result<_, _>>()?;
    Ok(numbers.try_into().map_err(|_| USAGE)?)
}

/// Calls `round` for `seconds`, and sums what it returns. Returns the sum, the seconds that passed, and the CPU seconds used.
fn count(seconds: usize, mut round: impl FnMut() -> Result<usize>) -> Result<[f64; 3]> {
    let cpu = || Duration::try_from(clock_gettime(ClockId::ProcessCPUTime));
    let (begin, cpu_before, mut frames) = (Instant::now(), cpu()?, 0);
    let limit = Duration::from_secs(seconds as u64);
    while begin.elapsed() < limit {
        for _ in 0..64 {
            frames += round()?;
        }
    }
    Ok([frames as f64, begin.elapsed().as_secs_f64(), (cpu()? - cpu_before).as_secs_f64()])
}

/// The least that the kernel asks for a filter: it looks at each call and allows it.
fn allow_all() -> Result<()> {
    let (otherwise, never) = (SeccompAction::Allow, SeccompAction::Trap);
    let arch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(BTreeMap::new(), otherwise, never, arch)?;
    Ok(apply_filter(&BpfProgram::try_from(filter)?)?)
}

fn write(tap: &str, [bytes, segments, seconds]: [usize; 3], is_filtered: bool) -> Result<[f64; 3]> {
    let mut tap = open_tap(tap)?;
    if is_filtered {
        allow_all()?;
    }
    let mut flow = Flow { is_atomic: true, ..Flow::udp(1) };
    let Sent { mut header, bytes: packet, .. } =
        flow.next(&vec![7; bytes * segments], segments > 1);
    if segments > 1 {
        // UDP_L4; headers' length and segment's (virtio 1.2, 5.1.6).
        header[1] = 5;
        header[2] = HEADERS as u8;
        header[4..6].copy_from_slice(&u16::try_from(bytes)?.to_le_bytes());
    }
    let front = [&header[..NET_HEADER], &packet[..HEADERS]].concat();
    let mut slices = vec![IoSlice::new(&front)];
    slices.extend(packet[HEADERS..].chunks(bytes).map(IoSlice::new));
    count(seconds, || {
        // A tap takes a packet whole, or not at all.
        let written = tap.write_vectored(&slices)?;
        if written > 0 { Ok(segments) } else { Err("the tap took nothing".into()) }
    })
}

fn send(
    socket: &str,
    [bytes, flows, seconds]: [usize; 3],
    is_tcp: bool,
    is_whole: bool,
) -> Result<[f64; 3]> {
    let options = GuestOptions::default().queue_size(1024).packed(true).in_order(true).offloads();
    let mut guest = Guest::connect(socket, options)?;
    let pair = guest.pair(0);
    let frames: Vec<_> = frames(bytes, flows, is_tcp, !is_whole)?
        .into_iter()
        .map(|Sent { header, bytes, .. }| [&header[..], &bytes].concat())
        .collect();
    count(seconds, || {
        let mut sent = 0;
        for frame in &frames {
            while !pair.queue_chain(&[frame])? {
                pair.flush()?;
                std::thread::yield_now();
            }
            sent += 1;
        }
        pair.flush()?;
        Ok(sent)
    })
}

/// Frames of as many flows in turn. `is_partial`: the checksum is left to the device.
fn frames(bytes: usize, flows: usize, is_tcp: bool, is_partial: bool) -> Result<Vec<Sent>> {
    let kind = if is_tcp { Flow::tcp } else { Flow::udp };
    let flow = |n: usize| Ok(Flow { is_atomic: true, ..kind(u8::try_from(n)?) });
    let mut flows = (0..flows).map(flow).collect::<Result<Vec<_>>>()?;
    let (payload, count) = (vec![7; bytes], flows.len());
    Ok((0..TOGETHER).map(|n| flows[n % count].next(&payload, is_partial)).collect())
}

/// One thread is the host and the guest: it sends some frames, then takes what has come.
fn receive(
    socket: &str,
    tap: &str,
    [bytes, flows, seconds]: [usize; 3],
    is_tcp: bool,
) -> Result<[f64; 3]> {
    let options = GuestOptions::default().queue_size(1024).packed(true).offloads();
    let mut guest = Guest::connect(socket, options)?;
    let index = std::fs::read_to_string(format!("/sys/class/net/{tap}/ifindex"))?;
    // It sends only: this filter takes nothing (`BPF_RET | BPF_K` of 0).
    let nothing = libc::sock_filter { code: 6, jt: 0, jf: 0, k: 0 };
    let host = packet_socket(index.trim().parse()?, &[nothing])?;
    let frames = frames(bytes, flows, is_tcp, false)?;
    let headers = frames[0].bytes.len() - bytes;
    let (pair, mut came) = (guest.pair(0), Frame::default());
    count(seconds, || {
        for frame in &frames {
            match rustix::net::send(&host, &frame.bytes, SendFlags::empty()) {
                Ok(_) | Err(Errno::NOBUFS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut received = 0;
        while pair.receive_into(&mut came)? {
            received += came.bytes.len().saturating_sub(headers) / bytes;
        }
        Ok(received)
    })
}

fn answer(socket: &str, [bytes, waiting, seconds]: [usize; 3]) -> Result<[f64; 3]> {
    let mut guest = Guest::connect(socket, GuestOptions::default().queue_size(1024).offloads())?;
    let pair = guest.pair(0);
    let mut flow = Flow { is_atomic: true, ..Flow::udp(1) };
    let Sent { header, bytes, .. } = flow.next(&vec![7; bytes], true);
    let frame = [&header[..], &bytes].concat();
    let mut left = waiting;
    count(seconds, || {
        let mut sent = 0;
        while left > 0 && pair.queue_chain(&[&frame])? {
            (left, sent) = (left - 1, sent + 1);
        }
        let answered = match pair.receive()?.and_then(|came| pong(came.bytes)) {
            Some(pong) => pair.queue(&pong)?,
            None => false,
        };
        if answered || sent > 0 {
            pair.flush()?;
        } else {
            std::thread::yield_now();
        }
        // One of them may be an answer: then one frame more waits.
        left = waiting.min(left + pair.reap()?);
        Ok(sent)
    })
}

/// The answer to a frame, if that is a ping.
fn pong(mut frame: Vec<u8>) -> Option<Vec<u8>> {
    let is_ping = frame.get(12..14)? == [8, 0] && *frame.get(23)? == 1 && *frame.get(ICMP)? == ECHO;
    if !is_ping {
        return None;
    }
    for (one, other, len) in [(0, 6, 6), (26, 30, 4)] {
        for n in 0..len {
            frame.swap(one + n, other + n);
        }
    }
    frame[ICMP] = 0;
    let sum = u16::from_be_bytes([frame[ICMP + 2], frame[ICMP + 3]]);
    let (sum, carry) = sum.overflowing_add(u16::from(ECHO) << 8);
    frame[ICMP + 2..ICMP + 4].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
    Some(frame)
}
