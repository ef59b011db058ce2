//! `udp-echo`: sends every packet back to where it came from.

use super::Error;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Address and port to listen on.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:7007")]
    bind: SocketAddr,
    /// End after this many seconds; 0 means when killed.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    timeout: u64,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let socket =
        UdpSocket::bind(args.bind).map_err(|source| Error::Bind { address: args.bind, source })?;
    let limit = (args.timeout > 0).then(|| Duration::from_secs(args.timeout));
    echo(&socket, limit)
}

/// Echoes until `limit` is over.
pub(super) fn echo(socket: &UdpSocket, limit: Option<Duration>) -> Result<(), Error> {
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
            // ECONNREFUSED reports an earlier reply's ICMP error: that sender has gone.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock
                        | ErrorKind::TimedOut
                        | ErrorKind::Interrupted
                        | ErrorKind::ConnectionRefused
                ) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
