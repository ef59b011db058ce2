//! `udp-echo`: sends every packet back to its sender.

use crate::Error;
use crate::address;
use crate::clock::now_ns;
use crate::guest_stages::{GuestStagesArgs, Reception};
use crate::progress::Progress;
use crate::stamps::{Log, Pending, Received, Row, receive, sent_stamps, stamp_packets};
use burst_trace::Probe;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Stamps are flushed to their file when no packet arrives for this long.
const QUIET: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address and port to listen on.
    #[arg(long, value_name = "ADDR:PORT", value_parser = address::udp, default_value = "0.0.0.0:7007")]
    bind: SocketAddr,
    /// Stop after this many seconds; 0: never.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    timeout: u64,
    /// Write the stamps of each probe, by program and kernel, for ringscope stats --echo.
    #[arg(long, value_name = "FILE")]
    stamps: Option<String>,
    #[command(flatten)]
    guest_stages: GuestStagesArgs,
}

pub fn run(args: &Args) -> Result<(), Error> {
    // Before the socket is there: it may take seconds, in which a packet would wait.
    let reception = Reception::set_up(args.guest_stages);
    let socket =
        UdpSocket::bind(args.bind).map_err(|source| Error::Bind { address: args.bind, source })?;
    let mut progress = Progress::new();
    progress.show(|| format!("sends back each packet that comes to {}; Ctrl-C ends it", args.bind));
    let limit = (args.timeout > 0).then(|| Duration::from_secs(args.timeout));
    match &args.stamps {
        None => echo(&socket, limit),
        Some(path) => {
            let log = Log::create(path, &reception)?;
            stamp_packets(&socket)?;
            echo_stamped(&socket, limit, log, &reception)
        }
    }
}

/// Echoes until `limit` is over.
pub fn echo(socket: &UdpSocket, limit: Option<Duration>) -> Result<(), Error> {
    let end = limit.map(|limit| Instant::now() + limit);
    let mut packet = vec![0; 1 << 16];
    loop {
        if let Some(end) = end {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            socket.set_read_timeout(Some(left))?;
        }
        match socket.recv_from(&mut packet) {
            // A reply that cannot be sent is a lost packet, and the sender counts these.
            Ok((length, from)) => drop(socket.send_to(&packet[..length], from)),
            Err(error) if is_passing(error.kind()) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the socket can be used after this error. ECONNREFUSED reports the ICMP error of an earlier reply: its receiver is gone.
pub(crate) const fn is_passing(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::WouldBlock
            | ErrorKind::TimedOut
            | ErrorKind::Interrupted
            | ErrorKind::ConnectionRefused
    )
}

/// The same, and writes stamps.
pub fn echo_stamped(
    socket: &UdpSocket,
    limit: Option<Duration>,
    mut log: Log,
    reception: &Reception,
) -> Result<(), Error> {
    reception.follow(socket)?;
    let end = limit.map(|limit| Instant::now() + limit);
    let mut packet = vec![0; 1 << 16];
    let (mut pending, mut sent) = (Pending::default(), 0_u32);
    loop {
        let left = end.map_or(QUIET, |end| end.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            pending.write(&mut log, true)?;
            return log.flush();
        }
        socket.set_read_timeout(Some(left.min(QUIET)))?;
        let received = receive(socket, &mut packet);
        let received_ns = now_ns();
        match received {
            Ok(Received { length, from: Some(from), kernel_ns }) => {
                let sent_ns = now_ns();
                if socket.send_to(&packet[..length], from).is_ok() {
                    if let Some(probe) = Probe::read(&packet[..length]) {
                        let row = Row {
                            probe,
                            sent_ns,
                            sent_kernel_ns: None,
                            received_kernel_ns: kernel_ns,
                            received_ns: Some(received_ns),
                            guest: reception.stamps(probe, received_ns),
                        };
                        pending.push(sent, row);
                    }
                    sent = sent.wrapping_add(1);
                }
                sent_stamps(socket, |number, ns| pending.stamp(number, ns))?;
                pending.write(&mut log, false)?;
            }
            Ok(_) => {}
            Err(error) if is_passing(error.kind()) => {
                sent_stamps(socket, |number, ns| pending.stamp(number, ns))?;
                pending.write(&mut log, true)?;
                log.flush()?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
