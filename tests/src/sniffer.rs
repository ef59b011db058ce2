//! When frames passed an interface: the announcements of a guest, and its answers to probes.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::sys;

/// Ethertypes of RARP and IPv4.
const RARP: u32 = 0x8035;
const IPV4: u32 = 0x0800;
/// The protocol number of UDP.
const UDP: u32 = 17;
/// The port of the guest's echo.
const ECHO: u32 = 7007;
/// Most bytes of a frame that the kernel passes on.
const SNAP: u32 = 64;
/// Time between two looks whether the sniffer is to end.
const LOOK: Duration = Duration::from_millis(50);

/// A frame of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// It says where the guest's address is now (RARP).
    Announcement,
    /// An answer to a probe.
    Answer,
}

/// Frames in order, and when the kernel saw each.
pub type Seen = Vec<(Duration, Sight)>;

/// Notes frames on a thread of its own until it is dropped.
#[derive(Debug)]
pub struct Sniffer {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<Seen>>>,
}

impl Sniffer {
    /// Notes from now on which frames from `address` pass `interface`, either way.
    ///
    /// # Errors
    /// Without root, or without such an interface.
    pub fn start(interface: &str, address: [u8; 6]) -> io::Result<Self> {
        let index = fs::read_to_string(format!("/sys/class/net/{interface}/ifindex"))?;
        let index = index.trim().parse().map_err(io::Error::other)?;
        let socket = sys::packet_socket(index, &filter(address))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(LOOK))?;
        // From the first call on, the kernel notes when it saw a frame.
        let _ = sys::last_stamp(&socket);
        let over = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&over);
        let thread = std::thread::spawn(move || note(&socket, &flag));
        Ok(Self { over, thread: Some(thread) })
    }

    /// Ends it. Returns the frames in order, and when the kernel saw each.
    ///
    /// # Errors
    /// When they could not be read.
    pub fn end(mut self) -> io::Result<Seen> {
        self.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or(io::ErrorKind::Other)?;
        thread.join().map_err(|_| io::ErrorKind::Other)?
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn note(socket: &OwnedFd, over: &AtomicBool) -> io::Result<Seen> {
    let (mut seen, mut frame) = (Vec::new(), [0; SNAP as usize]);
    while !over.load(Ordering::Relaxed) {
        match rustix::io::read(socket, &mut frame) {
            Ok(_) => {
                let is_answer = frame[12..14] == [8, 0];
                let sight = if is_answer { Sight::Answer } else { Sight::Announcement };
                seen.push((sys::last_stamp(socket)?, sight));
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(seen)
}

/// Accepts RARP, and UDP from the echo's port, from `address` (classic BPF, Documentation/networking/filter.rst).
fn filter(address: [u8; 6]) -> [libc::sock_filter; 13] {
    let [a, b, c, d, e, f] = address;
    let (high, low) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([0, 0, e, f]));
    let load = |size, at| op(libc::BPF_LD | size | libc::BPF_ABS, at, 0, 0);
    // Otherwise skips to the last instruction.
    let expect = |value, left| op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, 0, left);
    [
        load(libc::BPF_W, 6),
        expect(high, 10),
        load(libc::BPF_H, 10),
        expect(low, 8),
        load(libc::BPF_H, 12),
        // To the last but one.
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, RARP, 5, 0),
        expect(IPV4, 5),
        load(libc::BPF_B, 23),
        expect(UDP, 3),
        load(libc::BPF_H, 34),
        expect(ECHO, 1),
        op(libc::BPF_RET | libc::BPF_K, SNAP, 0, 0),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ]
}

#[expect(clippy::cast_possible_truncation, reason = "operations have 16 bits")]
const fn op(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}
