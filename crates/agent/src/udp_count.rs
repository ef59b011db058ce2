//! `udp-count`: counts the packets of a `udp-send`, and answers it.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, setsockopt, sockopt};

use crate::Error;
use crate::address;
use crate::flow::{Counted, MESSAGE_BYTES, Message};
use crate::progress::Progress;
use crate::stamps::address_of;
use crate::udp_echo::is_passing;

/// Most packets read by one system call.
const BATCH: usize = 64;
/// Bytes of a packet that are read: only its message counts.
const READ_BYTES: usize = 64;
/// Longest time without a look whether the time is over.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Memory for packets that wait for this program, bytes; the kernel doubles it. That is enough for some 900 packets of 1500
/// bytes, while other programs run. With much more, a machine that receives too slowly would seem to lose nothing until
/// the memory is full.
const BUFFER_BYTES: usize = 1 << 20;
/// Packets of a run have numbers below this one; they take a bit each.
const SEQUENCE_MAX: u64 = 1 << 28;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address and port to listen on.
    #[arg(long, value_name = "ADDR:PORT", value_parser = address::flow, default_value = "0.0.0.0:7011")]
    bind: SocketAddr,
    /// Stop after this many seconds; 0: never.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    timeout: u64,
}

pub fn run(args: &Args) -> Result<(), Error> {
    let socket =
        UdpSocket::bind(args.bind).map_err(|source| Error::Bind { address: args.bind, source })?;
    let mut progress = Progress::new();
    progress.show(|| {
        format!("counts the packets of udp-send that come to {}; Ctrl-C ends it", args.bind)
    });
    Ok(count(&socket, (args.timeout > 0).then(|| Duration::from_secs(args.timeout)))?)
}

/// Counts until `limit` is over.
pub fn count(socket: &UdpSocket, limit: Option<Duration>) -> io::Result<()> {
    // Beyond the system's limit only for root. With less memory, packets are lost, and the sender sees that.
    if setsockopt(socket, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &BUFFER_BYTES);
    }
    socket.set_read_timeout(Some(LOOK_EVERY))?;
    let end = limit.map(|limit| Instant::now() + limit);
    let mut packets = vec![[0; READ_BYTES]; BATCH];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let (mut run, mut asked) = (Run::default(), Vec::new());
    while end.is_none_or(|end| Instant::now() < end) {
        let mut slices: Vec<_> = packets.iter_mut().map(|it| [IoSliceMut::new(it)]).collect();
        let flags = MsgFlags::MSG_WAITFORONE;
        match recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None) {
            Ok(messages) => {
                for message in messages {
                    let packet = message.iovs().next().unwrap_or_default();
                    match Message::read(packet) {
                        Some(Message::Packet { run: of, sequence }) => run.add(of, sequence),
                        Some(Message::Ask { run: of, question }) => {
                            let from = message.address.as_ref().and_then(address_of);
                            asked.extend(from.map(|from| (from, of, question)));
                        }
                        _ => {}
                    }
                }
            }
            Err(error) => {
                let error = io::Error::from(error);
                if !is_passing(error.kind()) {
                    return Err(error);
                }
            }
        }
        for (from, of, question) in asked.drain(..) {
            let mut answer = [0; MESSAGE_BYTES];
            Message::Answer { run: of, question, counted: run.of(of) }.write(&mut answer);
            // One that cannot be sent is asked for again.
            let _ = socket.send_to(&answer, from);
        }
    }
    Ok(())
}

/// The run that is counted: the one that was asked about last.
#[derive(Debug, Default)]
struct Run {
    number: u32,
    counted: Counted,
    /// A bit for each packet.
    seen: Vec<u64>,
}

impl Run {
    /// What has come of this run, which may be a new one.
    fn of(&mut self, number: u32) -> Counted {
        if number != self.number {
            *self = Self { number, ..Self::default() };
        }
        self.counted
    }

    fn add(&mut self, number: u32, sequence: u64) {
        // A late packet of an earlier run does not count.
        if number != self.number || sequence >= SEQUENCE_MAX {
            return;
        }
        let (word, bit) = ((sequence / 64) as usize, 1 << (sequence % 64));
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & bit == 0 {
            self.seen[word] |= bit;
            self.counted.received += 1;
        } else {
            self.counted.duplicates += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_packet_of_the_run_counts_once() {
        let mut run = Run::default();
        assert_eq!(run.of(7), Counted::default());
        for sequence in [0, 70, 0, 1, SEQUENCE_MAX] {
            run.add(7, sequence);
        }
        run.add(6, 2);
        assert_eq!(run.of(7), Counted { received: 3, duplicates: 1 });
        assert_eq!(run.of(8), Counted::default(), "a new run");
        run.add(7, 3);
        assert_eq!(run.of(8), Counted::default(), "a late packet");
    }
}
