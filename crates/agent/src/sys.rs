//! The one system call that no safe crate offers: `ioctl(SIOCETHTOOL)`.
#![allow(unsafe_code, reason = "ETHTOOL_GCHANNELS and ETHTOOL_SCHANNELS are reached by ioctl only")]

use std::ffi::c_char;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// `include/uapi/linux/ethtool.h`, `ETHTOOL_GCHANNELS`.
const ETHTOOL_GCHANNELS: u32 = 0x0000_003c;
/// `include/uapi/linux/ethtool.h`, `ETHTOOL_SCHANNELS`.
const ETHTOOL_SCHANNELS: u32 = 0x0000_003d;
/// `include/uapi/linux/sockios.h`, `SIOCETHTOOL`.
const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// `struct ethtool_channels` of `include/uapi/linux/ethtool.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Channels {
    cmd: u32,
    pub max_rx: u32,
    pub max_tx: u32,
    pub max_other: u32,
    pub max_combined: u32,
    pub rx_count: u32,
    pub tx_count: u32,
    pub other_count: u32,
    pub combined_count: u32,
}

/// How many queues the interface has and could have.
pub fn channels(interface: &str) -> io::Result<Channels> {
    ethtool(interface, Channels { cmd: ETHTOOL_GCHANNELS, ..Channels::default() })
}

/// Sets the number of combined queues, and leaves the other kinds as `current` has them.
pub fn set_combined(interface: &str, current: Channels, combined: u32) -> io::Result<()> {
    let wanted = Channels { cmd: ETHTOOL_SCHANNELS, combined_count: combined, ..current };
    ethtool(interface, wanted).map(|_| ())
}

fn ethtool(interface: &str, mut channels: Channels) -> io::Result<Channels> {
    if interface.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "interface name over 15 bytes"));
    }
    // SAFETY: ifreq is plain integers, arrays and unions of these; all zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut channels).cast();
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"))?;
    // SAFETY: the descriptor is open for the call's length; `request` carries a terminated name and
    // a pointer to `channels`, which lives past the call and has the layout that both commands
    // read and write.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(channels) }
}
