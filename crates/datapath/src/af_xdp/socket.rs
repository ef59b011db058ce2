//! One AF_XDP socket (kernel `Documentation/networking/af_xdp.rst`): it is bound to a queue of an interface, and has
//! its own UMEM and four rings.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use guest_memory::GuestMemory;
use memmap2::{MmapOptions, MmapRaw};
use rustix::io::Errno;
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING,
    XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpDesc, XdpOptionsFlags,
    XdpStatistics, XdpUmemReg, XdpUmemRegFlags,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use super::device::Device;
use super::rings::{Consumer, Producer};
use super::shared::SharedSocket;
use super::umem::{HEADROOM, Place, Umem};
use super::{Choice, Options, UmemOwner, XdpMode};
use crate::sys::set_socket_option;

/// Entries of the receive, transmit and completion rings.
const RING: u32 = 2048;
/// Entries of the fill ring: twice as many. The kernel takes chunks in batches, and frames are lost if there is a batch
/// less than the receive ring holds.
const FILL: u32 = 2 * RING;
/// Time limit for retries while the queue is busy, or the interface has another program: the kernel releases both shortly
/// after their last user is gone.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes that a received frame needs beside the MTU: link header, two VLAN tags, and the arrival stamp before it.
const LINK_ROOM: u32 = 14 + 8 + 16;

/// Pinning that takes this long is logged at info: the guest was without its network for so long.
const SLOW_PINNING: Duration = Duration::from_secs(2);

/// Shortest chunk, bytes.
const CHUNK_MIN: u32 = 2048;

/// Largest MTU with which a driver receives each frame in one buffer: a page of 4096 bytes, less the headroom, the link
/// header and the end of the page, which is taken (`struct skb_shared_info`, 320 bytes; `drivers/net/veth.c`).
pub const SINGLE_BUFFER_MTU: u16 = 4096 - 256 - 14 - 320;

/// Most chunks of a frame: the longest IP packet with its link header, in the shortest chunks. The kernel fills a chunk
/// after its headroom.
pub const PARTS_MAX: usize = (0xffff + LINK_ROOM).div_ceil(CHUNK_MIN - HEADROOM) as usize;

/// `XDP_MAX_TX_SKB_BUDGET` (`linux/if_xdp.h`): socket option for the number of frames that one call sends if the driver
/// does not send from UMEM itself. Not in `libc`.
const XDP_MAX_TX_SKB_BUDGET: i32 = 9;
/// Value of that option: more than a burst, unless its frames are segmented.
const FRAMES_A_CALL: i32 = 256;

/// Limit of the kernel's copies of frames that are being sent, bytes: what the transmit ring holds, with the kernel's
/// overhead for each frame.
const UNSENT_BYTES_MAX: i32 = 8 << 20;

/// `SO_PREFER_BUSY_POLL` and `SO_BUSY_POLL_BUDGET` (`asm-generic/socket.h`). Not in `libc`.
const SO_PREFER_BUSY_POLL: i32 = 69;
const SO_BUSY_POLL_BUDGET: i32 = 70;
/// Longest time that one call polls the driver, microseconds.
const BUSY_POLL_US: i32 = 20;
/// Most frames that one poll takes from the driver.
const BUSY_POLL_FRAMES: i32 = 64;

/// The socket of one queue: descriptor, rings and memory. [`Channel`](super::channel::Channel) uses it.
#[derive(Debug)]
pub struct Socket {
    // Field order is drop order: the rings are unmapped before the socket is closed. A mapping would keep the socket
    // alive, and the queue bound.
    pub fill: Producer<u64>,
    pub completion: Consumer<u64>,
    pub receive: Consumer<XdpDesc>,
    pub transmit: Producer<XdpDesc>,
    fd: OwnedFd,
    pub umem: Umem,
    /// The queue that it is bound to.
    pub queue: u32,
    /// Whether the driver accesses UMEM directly, without a copy by the kernel.
    pub zero_copy: bool,
    /// Whether the kernel reports when it must be called. Otherwise it must be called for every burst.
    pub need_wakeup: bool,
    /// Whether each receive call polls the driver.
    pub busy_poll: bool,
    /// Whether a frame may fill several chunks.
    pub multi_buffer: bool,
    /// Number of descriptors that were put into the transmit ring.
    pub submitted: u64,
    /// Number of those that the kernel has completed.
    pub completed: u64,
    /// Whether the kernel has not taken all entries of the transmit ring yet.
    pub unsent: bool,
}

/// What is decided before a socket is bound.
struct Facts {
    queue: u32,
    need_wakeup: bool,
    multi_buffer: bool,
    busy_poll: bool,
}

/// Says how long the kernel took to pin UMEM with the guest's memory in it. Pages that the guest has never touched are
/// made then.
fn say_pinned(name: &str, len: u64, took: Duration) {
    let level = if took >= SLOW_PINNING { log::Level::Info } else { log::Level::Debug };
    log::log!(
        level,
        "{name}: pinning {} MiB with the guest's memory took {:.1} s, in which its queue carried nothing (umem=guest)",
        len >> 20,
        took.as_secs_f64()
    );
}

impl Socket {
    /// Opens a socket on `queue` of `device`, with all its receive chunks in the fill ring. If there is a `guest`, its
    /// memory becomes part of UMEM, and frames can be sent from there.
    ///
    /// # Errors
    /// Those of the system: `EBUSY` when another socket has the queue, `ENOBUFS` or `ENOMEM` when the limit of locked
    /// memory is too low, `EOPNOTSUPP` when zero copy is required and the driver does not support it.
    pub fn open(
        device: &Device,
        queue: u32,
        options: &Options,
        guest: Option<&GuestMemory>,
    ) -> io::Result<Self> {
        let single = CHUNK_MIN - HEADROOM - LINK_ROOM;
        let is_short = u32::from(device.mtu) <= single && guest.is_none();
        let chunk = if is_short { CHUNK_MIN } else { 4096 };
        let place = match (guest, options.umem) {
            (Some(guest), _) => Place::BeforeGuest(guest),
            // It is opened again by a worker, which may make no files.
            (None, UmemOwner::Guest) => Place::Own,
            (None, UmemOwner::Host) => Place::File,
        };
        let umem = Umem::new(chunk, FILL, RING, place)?;
        let fits_one = u32::from(device.mtu) + LINK_ROOM + HEADROOM <= chunk;
        // A frame in guest memory mostly has several buffers.
        let multi_buffer = device.leaves_offloads || !fits_one || guest.is_some();
        let need_wakeup = options.need_wakeup.or(!device.is_virtual);

        let fd = rustix::net::socket_with(
            AddressFamily::XDP,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let (addr, len) = umem.registration();
        let mut flags = XdpUmemRegFlags::empty();
        flags.set(XdpUmemRegFlags::XDP_UMEM_UNALIGNED_CHUNK_FLAG, umem.is_unaligned());
        let registration =
            XdpUmemReg { addr, len, chunk_size: chunk, headroom: 0, flags, tx_metadata_len: 0 };
        let began = Instant::now();
        sockopt::set_xdp_umem_reg(&fd, registration)?;
        if guest.is_some() {
            say_pinned(&device.name, len, began.elapsed());
        }
        sockopt::set_xdp_umem_fill_ring_size(&fd, FILL)?;
        sockopt::set_xdp_umem_completion_ring_size(&fd, RING)?;
        sockopt::set_xdp_rx_ring_size(&fd, RING)?;
        sockopt::set_xdp_tx_ring_size(&fd, RING)?;
        let facts =
            Facts { queue, need_wakeup, multi_buffer, busy_poll: options.busy_poll.or(false) };
        let mut socket = Self::with_rings(fd, umem, facts)?;
        for offset in socket.umem.receive_chunks() {
            socket.fill.push_reserved(offset);
        }
        socket.fill.publish();
        // In generic mode the kernel makes one buffer of a longer frame.
        let is_single = device.mtu <= SINGLE_BUFFER_MTU || options.mode == XdpMode::Generic;
        socket.bind(device, options.zero_copy, fits_one && is_single)?;
        socket.tune()?;
        Ok(socket)
    }

    /// Goes on with the socket of another daemon, which uses it until [`Socket::resume`].
    ///
    /// # Errors
    /// `InvalidData` when it does not fit; what the system answers.
    pub fn go_on(shared: SharedSocket, options: &Options) -> io::Result<Self> {
        let SharedSocket { queue, chunk, need_wakeup, multi_buffer, socket, frames } = shared;
        let umem = Umem::go_on(frames, chunk, FILL, RING)?;
        let facts =
            Facts { queue, need_wakeup, multi_buffer, busy_poll: options.busy_poll.or(false) };
        let mut socket = Self::with_rings(socket, umem, facts)?;
        socket.note_mode()?;
        Ok(socket)
    }

    /// The socket for another daemon; `None` with `umem=guest`.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn share(&self) -> io::Result<Option<SharedSocket>> {
        let Some(frames) = self.umem.file() else { return Ok(None) };
        Ok(Some(SharedSocket {
            queue: self.queue,
            chunk: self.umem.chunk(),
            need_wakeup: self.need_wakeup,
            multi_buffer: self.multi_buffer,
            socket: self.fd.try_clone()?,
            frames: frames.try_clone()?,
        }))
    }

    /// Goes on where the rings stand, which another daemon may have used meanwhile.
    pub fn resume(&mut self) {
        self.fill.resume();
        self.completion.resume();
        self.receive.resume();
        self.transmit.resume();
        self.unsent = self.transmit.left() > 0;
    }

    /// The socket with its rings mapped.
    fn with_rings(fd: OwnedFd, umem: Umem, facts: Facts) -> io::Result<Self> {
        let Facts { queue, need_wakeup, multi_buffer, busy_poll } = facts;
        let at = sockopt::xdp_mmap_offsets(&fd)?;
        let misfit = || io::Error::from(io::ErrorKind::InvalidData);
        let map = |offset, len| map(&fd, offset, len);
        let fill = map(XDP_UMEM_PGOFF_FILL_RING, Producer::<u64>::map_len(&at.fr, FILL))?;
        let completion =
            map(XDP_UMEM_PGOFF_COMPLETION_RING, Consumer::<u64>::map_len(&at.cr, RING))?;
        let receive = map(XDP_PGOFF_RX_RING, Consumer::<XdpDesc>::map_len(&at.rx, RING))?;
        let transmit = map(XDP_PGOFF_TX_RING, Producer::<XdpDesc>::map_len(&at.tx, RING))?;
        Ok(Self {
            fill: Producer::new(fill, &at.fr, FILL).ok_or_else(misfit)?,
            completion: Consumer::new(completion, &at.cr, RING).ok_or_else(misfit)?,
            receive: Consumer::new(receive, &at.rx, RING).ok_or_else(misfit)?,
            transmit: Producer::new(transmit, &at.tx, RING).ok_or_else(misfit)?,
            fd,
            umem,
            queue,
            zero_copy: false,
            need_wakeup,
            busy_poll,
            multi_buffer,
            submitted: 0,
            completed: 0,
            unsent: false,
        })
    }

    /// Sets socket options for throughput and latency.
    fn tune(&self) -> io::Result<()> {
        let set = |level, option, value| set_socket_option(self.fd.as_fd(), level, option, value);
        // If the kernel sends copies of frames, copies not sent yet count against this limit.
        let _ = set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, UNSENT_BYTES_MAX);
        // Linux before 6.17 does not have this option: then a burst takes more calls.
        let _ = set(libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, FRAMES_A_CALL);
        if self.busy_poll {
            set(libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, 1)?;
            set(libc::SOL_SOCKET, libc::SO_BUSY_POLL, BUSY_POLL_US)?;
            set(libc::SOL_SOCKET, SO_BUSY_POLL_BUDGET, BUSY_POLL_FRAMES)?;
        }
        Ok(())
    }

    /// Number of chunks that are free to send from, and number of those in the fill and receive rings. While no frame
    /// is in flight these are all chunks.
    pub fn chunks_at_rest(&mut self) -> (usize, u32) {
        self.reap();
        (self.umem.free(), self.fill.left() + self.receive.refresh())
    }

    /// The kernel's counters (`XDP_STATISTICS`). `None` if the system reports an error, which is not expected of an
    /// AF_XDP socket.
    pub fn statistics(&self) -> Option<XdpStatistics> {
        sockopt::xdp_statistics(&self.fd).ok()
    }

    /// The kernel's counters since the socket was opened, as text.
    pub fn counters(&self) -> String {
        let Some(it) = self.statistics() else { return String::new() };
        let newer = |count: Option<u64>| count.map_or_else(|| "n/a".into(), |it| it.to_string());
        format!(
            "rx_dropped {}, rx_invalid_descs {}, tx_invalid_descs {}, rx_ring_full {}, \
             rx_fill_ring_empty_descs {}, tx_ring_empty_descs {}",
            it.rx_dropped,
            it.rx_invalid_descs,
            it.tx_invalid_descs,
            newer(it.rx_ring_full),
            newer(it.rx_fill_ring_empty_descs),
            newer(it.tx_ring_empty_descs),
        )
    }

    /// Makes the kernel poll the driver for frames now (`recvfrom(2)`).
    #[inline]
    pub fn poll_driver(&self) {
        // An error shows at the next send.
        let _ = rustix::net::recv(&self.fd, &mut [0; 0], RecvFlags::DONTWAIT);
    }

    /// `is_single`: each frame has one buffer of the driver and fits one chunk.
    fn bind(&mut self, device: &Device, zero_copy: Choice, is_single: bool) -> io::Result<()> {
        let ways = match zero_copy {
            Choice::On => &[SocketAddrXdpFlags::XDP_ZEROCOPY][..],
            Choice::Off => &[SocketAddrXdpFlags::XDP_COPY],
            Choice::Auto => &[SocketAddrXdpFlags::XDP_ZEROCOPY, SocketAddrXdpFlags::XDP_COPY],
        };
        let bound = self.bind_one_of(device, ways);
        if self.multi_buffer && is_single && bound == Err(Errno::INVAL) {
            // Linux before 6.6 puts no frame into several chunks: one that does not fit a chunk is lost and counted, and one
            // of several buffers is lost in the driver.
            self.multi_buffer = false;
            self.bind_one_of(device, ways)?;
        } else {
            bound?;
        }
        self.note_mode()
    }

    fn note_mode(&mut self) -> io::Result<()> {
        let options = sockopt::xdp_options(&self.fd)?;
        self.zero_copy = options.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY);
        Ok(())
    }

    /// Binds the socket in the first of these ways that the driver supports.
    fn bind_one_of(&self, device: &Device, ways: &[SocketAddrXdpFlags]) -> Result<(), Errno> {
        let mut flags = SocketAddrXdpFlags::empty();
        flags.set(SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP, self.need_wakeup);
        flags.set(SocketAddrXdpFlags::XDP_USE_SG, self.multi_buffer);
        let mut bound = Err(Errno::OPNOTSUPP);
        for &way in ways {
            bound = self.bind_as(device, flags | way);
            if !matches!(bound, Err(Errno::OPNOTSUPP | Errno::INVAL)) {
                break;
            }
        }
        bound
    }

    fn bind_as(&self, device: &Device, flags: SocketAddrXdpFlags) -> Result<(), Errno> {
        let address = SocketAddrXdp::new(flags, device.index, self.queue);
        let begun = Instant::now();
        loop {
            match rustix::net::bind(&self.fd, &address) {
                Err(Errno::BUSY) if begun.elapsed() < BUSY_TIMEOUT => {
                    sleep(Duration::from_millis(20));
                }
                bound => return bound,
            }
        }
    }

    /// Makes the kernel send what is in the transmit ring (`sendto(2)`, as in `af_xdp.rst`). If the driver does not
    /// send from UMEM itself, the kernel sends within the call, a limited number of frames in each. `EAGAIN` reports
    /// that there are more.
    ///
    /// # Errors
    /// Those of the system.
    #[inline]
    pub fn kick(&self) -> Result<(), Errno> {
        rustix::net::send(&self.fd, &[], SendFlags::DONTWAIT).map(|_| ())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn map(fd: &OwnedFd, offset: u64, len: usize) -> io::Result<MmapRaw> {
    MmapOptions::new().offset(offset).len(len).populate().map_raw(fd)
}
