//! The kernel's software stamps of packets (`SO_TIMESTAMPING`, Documentation/networking/timestamping.rst): sent is when
//! the stack passes the packet to the driver, received is when the driver passes it to the stack.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut, Write};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;

use burst_trace::Probe;
use burst_trace::file::MAGIC;
use host_files::Guard;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, TimestampingFlag, recvmsg, setsockopt, sockopt,
};

use kernel_stages::GuestStamps;

use crate::Error;
use crate::clock::RealtimeAhead;
use crate::guest_stages::{self, Reception};
use crate::launch::{Fate, unsent};

/// Most packets that wait for the driver's stamp. A packet that is still not stamped when this many follow never is.
const PENDING_MAX: usize = 4096;

/// A packet that was received.
pub struct Received {
    pub length: usize,
    pub from: Option<SocketAddr>,
    /// When the kernel received it, nanoseconds of `CLOCK_MONOTONIC`.
    pub kernel_ns: Option<u64>,
}

/// Makes the kernel stamp the socket's packets, and number the sent ones from 0.
pub fn stamp_packets(socket: &UdpSocket) -> io::Result<()> {
    let wanted = TimestampingFlag::SOF_TIMESTAMPING_TX_SOFTWARE
        | TimestampingFlag::SOF_TIMESTAMPING_RX_SOFTWARE
        | TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE
        | TimestampingFlag::SOF_TIMESTAMPING_OPT_ID
        | TimestampingFlag::SOF_TIMESTAMPING_OPT_TSONLY;
    Ok(setsockopt(socket, sockopt::Timestamping, &wanted)?)
}

/// Receives a packet, with the kernel's stamp.
pub fn receive(socket: &UdpSocket, packet: &mut [u8]) -> io::Result<Received> {
    let mut control = nix::cmsg_space!([libc::timespec; 3]);
    let mut into = [IoSliceMut::new(packet)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut into,
        Some(&mut control),
        MsgFlags::empty(),
    )?;
    let kernel_ns = message.cmsgs().ok().and_then(|mut all| all.find_map(|it| stamp(&it)));
    Ok(Received {
        length: message.bytes,
        from: message.address.as_ref().and_then(address_of),
        kernel_ns,
    })
}

/// What the kernel reports of a packet that was passed to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Passed to the driver.
    Sent {
        /// The packet's number.
        number: u32,
        /// When, nanoseconds of `CLOCK_MONOTONIC`.
        ns: u64,
    },
    /// Not sent at its launch time.
    Unsent {
        /// The launch time.
        txtime_ns: u64,
        /// Why.
        fate: Fate,
    },
}

/// Calls `each` with number and time of every packet stamped since the last call.
pub fn sent_stamps(socket: &UdpSocket, mut each: impl FnMut(u32, u64)) -> io::Result<()> {
    outcomes(socket, |outcome| {
        if let Outcome::Sent { number, ns } = outcome {
            each(number, ns);
        }
    })
}

/// Calls `each` with everything that the kernel has reported since the last call.
pub fn outcomes(socket: &UdpSocket, mut each: impl FnMut(Outcome)) -> io::Result<()> {
    loop {
        let mut control =
            nix::cmsg_space!([libc::timespec; 3], libc::sock_extended_err, libc::sockaddr_in6);
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut [], Some(&mut control), flags);
        let message = match message.map_err(io::Error::from) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            other => other?,
        };
        let (mut number, mut time) = (None, None);
        for part in message.cmsgs()? {
            match part {
                ControlMessageOwned::Ipv4RecvErr(error, _)
                | ControlMessageOwned::Ipv6RecvErr(error, _) => {
                    if error.ee_origin == libc::SO_EE_ORIGIN_TIMESTAMPING {
                        number = Some(error.ee_data);
                    } else if let Some((txtime_ns, fate)) = unsent(&error) {
                        each(Outcome::Unsent { txtime_ns, fate });
                    }
                }
                other => time = time.or(stamp(&other)),
            }
        }
        if let Some((number, ns)) = number.zip(time) {
            each(Outcome::Sent { number, ns });
        }
    }
}

/// The software stamp of a packet, nanoseconds of `CLOCK_MONOTONIC`.
fn stamp(part: &ControlMessageOwned) -> Option<u64> {
    let ControlMessageOwned::ScmTimestampsns(stamps) = part else { return None };
    let stamp = stamps.system;
    let ns = stamp.tv_sec() as u64 * 1_000_000_000 + stamp.tv_nsec() as u64;
    if ns == 0 {
        return None;
    }
    // One reading: it takes microseconds in some guests, and the application waits for it.
    Some((ns as i64 - RealtimeAhead::read(1).ns()) as u64)
}

/// The address of a packet's sender.
pub fn address_of(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|it| SocketAddr::V4(SocketAddrV4::from(*it)));
    v4.or_else(|| address.as_sockaddr_in6().map(|it| SocketAddr::V6(SocketAddrV6::from(*it))))
}

/// The stamps of a probe packet on this machine.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub probe: Probe,
    pub sent_ns: u64,
    pub sent_kernel_ns: Option<u64>,
    pub received_kernel_ns: Option<u64>,
    pub received_ns: Option<u64>,
    pub guest: GuestStamps,
}

/// Opens an output of the agent. It can be read while it is written, and a flight recorder is never overwritten.
pub fn create(path: &str) -> io::Result<File> {
    host_files::rewrite(path.as_ref(), Guard { inputs: &[], mark: MAGIC.to_le_bytes() })
}

/// The file of stamps, for `ringscope stats --probes` and `--echo`.
pub struct Log {
    file: File,
    /// Whole lines that wait for a write, so that the file never ends within a line.
    pending: Vec<u8>,
    path: String,
    /// By how much a kernel's stamp may be wrong, nanoseconds.
    error_ns: u64,
    /// Whether it has the columns of `--guest-stages`.
    has_guest_stages: bool,
}

/// Columns of the file.
const COLUMNS: &str =
    "run,sequence,sent_ns,sent_kernel_ns,received_kernel_ns,received_ns,kernel_error_ns";
/// Readings of the clocks before the first packet.
const READINGS: u32 = 64;
/// Size of a write, bytes.
const WRITE_BYTES: usize = 8192;

impl Log {
    pub fn create(path: &str, reception: &Reception) -> Result<Self, Error> {
        let file = create(path).map_err(|source| Error::File { path: path.into(), source })?;
        let columns = format!("{COLUMNS}{}\n", reception.columns());
        let error_ns = RealtimeAhead::read(READINGS).error_ns();
        let has_guest_stages = matches!(reception, Reception::Stamped(_));
        let pending = columns.into_bytes();
        let mut log = Self { file, pending, path: path.into(), error_ns, has_guest_stages };
        log.flush()?;
        Ok(log)
    }

    pub fn write(&mut self, row: &Row) -> Result<(), Error> {
        let text = |ns: Option<u64>| ns.map_or_else(String::new, |ns| ns.to_string());
        let Row { probe: Probe { run, sequence, .. }, sent_ns, .. } = row;
        let sent_kernel = text(row.sent_kernel_ns);
        let (received_kernel, received) = (text(row.received_kernel_ns), text(row.received_ns));
        let error_ns = self.error_ns;
        let guest =
            if self.has_guest_stages { guest_stages::fields(row.guest) } else { String::new() };
        let line = format!(
            "{run},{sequence},{sent_ns},{sent_kernel},{received_kernel},{received},{error_ns}{guest}\n"
        );
        self.pending.extend(line.as_bytes());
        if self.pending.len() < WRITE_BYTES { Ok(()) } else { self.flush() }
    }

    pub fn flush(&mut self) -> Result<(), Error> {
        let pending = std::mem::take(&mut self.pending);
        let written = self.file.write_all(&pending);
        written.map_err(|source| Error::File { path: self.path.clone(), source })
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // After an error, what came before it.
        let _ = self.flush();
    }
}

/// Rows whose packets are not stamped as sent yet, by the kernel's number.
#[derive(Debug, Default)]
pub struct Pending(VecDeque<(u32, Row)>);

impl Pending {
    pub fn push(&mut self, number: u32, row: Row) {
        self.0.push_back((number, row));
    }

    /// Packet `number` was stamped as sent.
    pub fn stamp(&mut self, number: u32, kernel_ns: u64) {
        if let Some((_, row)) = self.0.iter_mut().find(|(it, _)| *it == number) {
            row.sent_kernel_ns = Some(kernel_ns);
        }
    }

    /// Writes the rows that are complete, or all.
    pub fn write(&mut self, log: &mut Log, all: bool) -> Result<(), Error> {
        while let Some((_, row)) = self.0.front()
            && (all || row.sent_kernel_ns.is_some() || self.0.len() > PENDING_MAX)
        {
            log.write(row)?;
            self.0.pop_front();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_read_while_it_is_written_ends_with_a_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("echo.csv");
        let mut log = Log::create(path.to_str().unwrap(), &Reception::NotWanted).unwrap();
        for sequence in 0..2000 {
            let probe = Probe { run: 7, sequence, intended_ns: 0, sent_ns: 0 };
            let (sent_kernel_ns, received_kernel_ns, received_ns) = (None, None, Some(1));
            let guest = GuestStamps::default();
            let row =
                Row { probe, sent_ns: 2, sent_kernel_ns, received_kernel_ns, received_ns, guest };
            log.write(&row).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.ends_with('\n'), "{sequence}");
        }
        log.flush().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2001);
    }
}
