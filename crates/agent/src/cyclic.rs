//! `cyclic`: sends layer-2 frames with a counter, one in each period, as talkers of time-sensitive networks do. The daemon
//! follows them by their counter (`ringscoped --trace-probe`).

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::str::FromStr;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, bind, send, socket};
use serde::Serialize;

use crate::clock::{now_ns, sharpen_timers, sleep_until};
use crate::{Error, print_json};

/// Local experimental EtherType (IEEE 802).
const EXPERIMENTAL: &str = "0x88b5";
/// EtherType of a VLAN tag (IEEE 802.1Q).
const TAG: [u8; 2] = [0x81, 0x00];
/// Length of the counter, which is at the start of the payload, bytes.
const COUNTER_LEN: usize = 4;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The network interface.
    interface: String,
    /// Ethernet address of the receiver.
    #[arg(long, value_name = "MAC", default_value = "ff:ff:ff:ff:ff:ff")]
    to: Address,
    /// EtherType of the frames.
    #[arg(long, value_name = "N", default_value = EXPERIMENTAL, value_parser = ethertype)]
    ethertype: u16,
    /// Identifier of their VLAN [default: no tag].
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u16).range(..4095))]
    vlan: Option<u16>,
    /// Time from frame to frame.
    #[arg(long, value_name = "US", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=60_000_000))]
    interval_us: u64,
    /// Number of frames.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Counter of the first frame; the next ones count up from there.
    #[arg(long, value_name = "N", default_value_t = 0)]
    first: u32,
    /// Payload, bytes: the counter (4 bytes, big endian), then zeroes.
    #[arg(long, value_name = "BYTES", default_value_t = 46, value_parser = clap::value_parser!(u16).range(4..=9000))]
    size: u16,
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Address([u8; 6]);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("expected six bytes such as 52:54:00:00:00:01, found '{text}'");
        let byte = |digits: &str| {
            let is_byte = digits.len() == 2 && digits.bytes().all(|it| it.is_ascii_hexdigit());
            is_byte.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(wrong)
    }
}

fn ethertype(text: &str) -> Result<u16, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    // Smaller numbers are lengths (IEEE 802.3, 3.2.6).
    let number = number.filter(|number| *number >= 0x600);
    number.ok_or_else(|| format!("expected 0x0600 to 0xffff, found '{text}'"))
}

/// What `cyclic` prints.
#[derive(Debug, Serialize)]
struct Report {
    kind: &'static str,
    interface: String,
    /// What `ringscoped --trace-probe` has to be given to follow the frames.
    trace_probe: String,
    sent: u64,
    /// Frames that the interface's queue had no room for.
    refused: u64,
    /// Frames sent later than one interval after they were due.
    late: u64,
    seconds: f64,
}

pub fn run(args: &Args) -> Result<(), Error> {
    let failed = |doing| {
        let interface = args.interface.clone();
        move |source| Error::Interface { doing, interface, source }
    };
    let link = link_of(&args.interface).map_err(failed("find"))?;
    let socket = open(&link).map_err(failed("open a packet socket on"))?;
    let mut frame = frame(args, link.addr().unwrap_or_default());
    let counter_at = frame.len() - usize::from(args.size);
    sharpen_timers();
    let (interval_ns, begun) = (args.interval_us * 1000, now_ns());
    let (mut sent, mut refused, mut late) = (0, 0, 0);
    for n in 0..args.count {
        let due = begun + u64::from(n) * interval_ns;
        sleep_until(due);
        late += u64::from(now_ns() > due + interval_ns);
        let counter = args.first.wrapping_add(n);
        frame[counter_at..counter_at + COUNTER_LEN].copy_from_slice(&counter.to_be_bytes());
        match send(socket.as_raw_fd(), &frame, MsgFlags::empty()) {
            Ok(_) => sent += 1,
            Err(Errno::ENOBUFS) => refused += 1,
            Err(error) => return Err(failed("send on")(error.into())),
        }
    }
    print_json(&Report {
        kind: "cyclic",
        interface: args.interface.clone(),
        trace_probe: format!("ethertype:0x{:04x},counter@0/{COUNTER_LEN}", args.ethertype),
        sent,
        refused,
        late,
        seconds: (now_ns() - begun) as f64 / 1e9,
    })
}

/// The interface's packet address, as the kernel lists it: its number and its Ethernet address.
fn link_of(name: &str) -> io::Result<LinkAddr> {
    let mut all = getifaddrs()?.filter(|it| it.interface_name == name);
    let link = all.find_map(|it| it.address?.as_link_addr().copied());
    link.ok_or_else(|| Errno::ENODEV.into())
}

/// A socket that sends whole frames on the interface and receives none (`packet(7)`: protocol 0).
fn open(link: &LinkAddr) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    bind(socket.as_raw_fd(), link)?;
    Ok(socket)
}

/// A frame with counter 0.
fn frame(args: &Args, from: [u8; 6]) -> Vec<u8> {
    let mut frame = [args.to.0, from].concat();
    if let Some(vlan) = args.vlan {
        frame.extend(TAG);
        frame.extend(vlan.to_be_bytes());
    }
    frame.extend(args.ethertype.to_be_bytes());
    frame.resize(frame.len() + usize::from(args.size), 0);
    frame
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Line::try_parse_from(line.split_whitespace()).map(|line| line.args)
    }

    #[test]
    fn a_frame_has_its_addresses_tag_and_counter() {
        let from = [2, 0, 0, 0, 0, 1];
        let plain = frame(&parse("cyclic eth0").unwrap(), from);
        assert_eq!(plain[..14], [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
        assert_eq!(plain.len(), 60);
        let line = "cyclic eth0 --to 52:54:00:00:00:09 --ethertype 0x8892 --vlan 257 --size 4";
        let tagged = frame(&parse(line).unwrap(), from);
        assert_eq!(tagged[..6], [0x52, 0x54, 0, 0, 0, 9]);
        assert_eq!(tagged[12..], [0x81, 0, 1, 1, 0x88, 0x92, 0, 0, 0, 0]);
    }

    #[test]
    fn wrong_values_are_refused() {
        for wrong in [
            "--to 52:54:00:00:00",
            "--to 52:54:00:00:00:+9",
            "--ethertype 0x5ff",
            "--ethertype x",
            "--vlan 4095",
            "--size 3",
            "--count 0",
        ] {
            assert!(parse(&format!("cyclic eth0 {wrong}")).is_err(), "{wrong}");
        }
        let missing = run(&parse("cyclic no-such-link").unwrap()).unwrap_err().to_string();
        assert!(missing.starts_with("cannot find no-such-link: "), "{missing}");
    }
}
