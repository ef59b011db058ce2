//! AF_XDP sockets on the queues of an interface (kernel `net/xdp/`): frames go from and to the driver past
//! the host's network stack.
//!
//! An XDP program hands what arrives to the socket of its queue; the socket's UMEM is the memory that frames
//! are in, and four rings say which of it belongs to the kernel. One copy is between UMEM and guest memory.
//! While no guest takes frames they go to the host's own stack, as without the program.
//!
//! - `device`: what the kernel says of the interface.
//! - `program`: the XDP program.
//! - `umem`, `rings`, `socket`: the kernel's objects of these names.

mod device;
mod program;
mod rings;
mod socket;
mod umem;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;
use burst_trace::{DropCause, DropCounts};
use guest_memory::GuestSlice;
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::xdp::{XdpDesc, XdpDescOptions};
use virtio_net::{BURST_MAX, Frame, Frames, GuestRoom, Offloads, Placed};

use crate::{Capabilities, Datapath, Look, Transmitted};
use device::Device;
use program::Program;
use socket::Socket;

/// How the XDP program runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver where that can, else in the stack.
    #[default]
    Auto,
    /// In the driver, before there is a packet buffer.
    Native,
    /// In the network stack: works with every driver.
    Generic,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// Something to have, not to have, or as it fits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// As it fits.
    #[default]
    Auto,
    /// Have it, or fail.
    On,
    /// Do without.
    Off,
}

impl Choice {
    const fn or(self, fits: bool) -> bool {
        match self {
            Self::Auto => fits,
            Self::On => true,
            Self::Off => false,
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

/// How the sockets are set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How the XDP program runs.
    pub mode: XdpMode,
    /// Whether the driver works on UMEM itself.
    pub zero_copy: Choice,
    /// Whether the kernel says when it must be called. It pays on network cards; on virtual devices, which
    /// send within the call, it costs.
    pub need_wakeup: Choice,
    /// Whether the XDP program notes when each frame came.
    pub stamps: bool,
}

/// Why an interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AfXdpError {
    /// There is no such interface.
    #[error("no network interface '{0}'; ip -br link shows those that there are")]
    Missing(String),
    /// More queue pairs than queues.
    #[error(
        "'{name}' has {queues} receive queue(s), but {pairs} queue pairs were asked for; give it more with: ethtool -L \
         {name} combined {pairs}, or use --queue-pairs {queues}"
    )]
    TooFewQueues {
        /// The interface's name.
        name: String,
        /// How many queues it has.
        queues: u32,
        /// How many queue pairs were asked for.
        pairs: usize,
    },
    /// Another program has it.
    #[error(
        "'{name}' is in use: {what}; end that program, or take it off with: ip link set dev {name} xdp off"
    )]
    Busy {
        /// The interface's name.
        name: String,
        /// What is there.
        what: &'static str,
    },
    /// No permission.
    #[error(
        "no permission for {step} on '{name}': AF_XDP needs root, or CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF"
    )]
    Permission {
        /// The interface's name.
        name: String,
        /// What was tried.
        step: &'static str,
    },
    /// Too little locked memory.
    #[error(
        "the memory of '{name}' could not be locked: expected a limit of at least 16 MiB for each queue, or CAP_IPC_LOCK; raise it \
         with: ulimit -l unlimited"
    )]
    LockedMemory {
        /// The interface's name.
        name: String,
    },
    /// The driver cannot do what was asked for.
    #[error(
        "the driver of '{name}' has no {what}; leave the choice to auto, or see: ringscope doctor --iface {name}"
    )]
    Unsupported {
        /// The interface's name.
        name: String,
        /// What it does not have.
        what: String,
    },
    /// Anything else that the system answered.
    #[error("AF_XDP on '{name}': {step} failed: {source}")]
    System {
        /// The interface's name.
        name: String,
        /// What was tried.
        step: &'static str,
        /// What the system answered.
        source: io::Error,
    },
}

/// The queues of an interface that one queue pair has.
#[derive(Debug)]
pub struct AfXdp {
    /// The first is the one that frames are sent from.
    sockets: Vec<Socket>,
    /// Becomes readable when one of several sockets does.
    any: Option<OwnedFd>,
    program: Arc<Program>,
    device: Device,
    /// Which socket is looked at first.
    turn: usize,
    /// The kernel has not taken everything from the transmit ring.
    unsent: bool,
    /// The interface was down at the last try.
    down: bool,
}

impl AfXdp {
    /// Opens the interface `name` for `pairs` queue pairs. All of its queues are bound, for frames on any other
    /// would go to the host's stack: a pair has one or more of them.
    ///
    /// # Errors
    /// See [`AfXdpError`].
    pub fn open(name: &str, pairs: usize, options: &Options) -> Result<Vec<Self>, AfXdpError> {
        let device = Device::find(name).ok_or_else(|| AfXdpError::Missing(name.to_owned()))?;
        if pairs > device.queues as usize {
            let (name, queues) = (name.to_owned(), device.queues);
            return Err(AfXdpError::TooFewQueues { name, queues, pairs });
        }
        let fail = |step, error| explain(&device, options, step, error);
        let index = i32::try_from(device.index).unwrap_or(i32::MAX);
        let program = Program::attach(index, device.queues, options.mode, options.stamps)
            .map_err(|error| fail("attaching the XDP program", error))?;
        let program = Arc::new(program);
        let mut hands: Vec<Vec<Socket>> = (0..pairs).map(|_| Vec::new()).collect();
        for (queue, pair) in (0..device.queues).zip((0..pairs).cycle()) {
            let socket = Socket::open(&device, queue, options)
                .map_err(|error| fail("opening a socket", error))?;
            hands[pair].push(socket);
        }
        let first = &hands[0][0];
        log::info!(
            "{name}: XDP in {} mode, {}, {} queue(s), {} byte chunks{}{}",
            program.mode(),
            if first.zero_copy { "zero copy" } else { "copied by the kernel" },
            device.queues,
            first.umem.chunk(),
            if first.need_wakeup { ", need_wakeup" } else { "" },
            if first.multi_buffer { ", multi-buffer" } else { "" },
        );
        hands
            .into_iter()
            .map(|sockets| {
                let any = poll_all(&sockets).map_err(|error| fail("polling its sockets", error))?;
                let (program, device) = (Arc::clone(&program), device.clone());
                Ok(Self { sockets, any, program, device, turn: 0, unsent: false, down: false })
            })
            .collect()
    }

    /// Has the kernel send what is in the transmit ring. Returns why it did not take all of it, if so.
    #[inline]
    fn flush(&mut self) -> Result<(), Errno> {
        let socket = &mut self.sockets[0];
        if socket.need_wakeup && !socket.transmit.needs_wakeup() {
            self.unsent = false;
            return Ok(());
        }
        let mut left = socket.transmit.left();
        let result = loop {
            let kicked = socket.kick();
            let now = socket.transmit.left();
            let progress = now < left;
            left = now;
            match kicked {
                // A call takes so many frames at a time.
                Ok(()) | Err(Errno::AGAIN | Errno::INTR) if progress && now > 0 => {}
                Ok(()) | Err(Errno::AGAIN | Errno::BUSY | Errno::NOBUFS | Errno::INTR) => {
                    break Ok(());
                }
                Err(error) => break Err(error),
            }
        };
        self.unsent = left > 0;
        result
    }

    /// Whether the interface is still down. Asked before more frames are put into a ring that nobody empties.
    #[cold]
    fn is_still_down(&mut self) -> bool {
        self.down = self.flush().is_err();
        self.down
    }

    /// Puts a frame into the transmit ring. Returns whether there was room.
    #[inline]
    fn enqueue(&mut self, frame: &Frame<'_, '_>, done: &mut Transmitted) -> bool {
        let len = frame.len();
        let socket = &mut self.sockets[0];
        if len > usize::from(self.device.mtu) + LINK_HEADER_MAX {
            done.drops.add(DropCause::TxTooLong);
            return true;
        }
        let chunk = socket.umem.chunk() as usize;
        if len > chunk {
            return self.enqueue_parts(frame, done);
        }
        if socket.transmit.room(1) == 0 {
            return false;
        }
        let Some(offset) = socket.umem.take() else { return false };
        #[expect(clippy::cast_possible_truncation, reason = "at most a chunk")]
        let len = len as u32;
        if let Some(to) = socket.umem.slice(offset, len) {
            frame.copy_to_slices(&[to]);
        }
        socket.transmit.push(Socket::descriptor(offset, len, false));
        done.bytes += len;
        true
    }

    /// As [`enqueue`](Self::enqueue), for a frame that takes several chunks.
    #[cold]
    fn enqueue_parts(&mut self, frame: &Frame<'_, '_>, done: &mut Transmitted) -> bool {
        let socket = &mut self.sockets[0];
        if !socket.multi_buffer {
            done.drops.add(DropCause::TxTooLong);
            return true;
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most MTU and link header")]
        let len = frame.len() as u32;
        let chunk = socket.umem.chunk();
        let count = len.div_ceil(chunk);
        if socket.transmit.room(count) < count || socket.umem.free() < count as usize {
            return false;
        }
        let mut parts = ArrayVec::<_, PARTS_MAX>::new();
        for n in 0..count {
            let Some(offset) = socket.umem.take() else { break };
            parts.push((offset, chunk.min(len - n * chunk)));
        }
        let slices: ArrayVec<_, PARTS_MAX> =
            parts.iter().filter_map(|&(offset, len)| socket.umem.slice(offset, len)).collect();
        frame.copy_to_slices(&slices);
        for (n, &(offset, len)) in parts.iter().enumerate() {
            let goes_on = n + 1 < parts.len();
            socket.transmit.push(Socket::descriptor(offset, len, goes_on));
        }
        done.bytes += len;
        true
    }
}

/// The most chunks that a frame may lie in: 64 KiB in the shortest, and the link header.
const PARTS_MAX: usize = 17 * 2;

/// The longest link header: with two tags.
const LINK_HEADER_MAX: usize = 14 + 8;

/// With fewer free chunks than this, those that were sent from are taken back first.
const CHUNKS_LOW: usize = 2 * BURST_MAX;

impl Datapath for AfXdp {
    fn capabilities(&self) -> Capabilities {
        let none = Offloads::default();
        Capabilities { name: "af-xdp", from_guest: none, to_guest: none, mtu: self.device.mtu }
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        for socket in &mut self.sockets {
            if active {
                socket.discard_received();
            }
            self.program.direct(socket.queue, active.then(|| socket.as_fd()))?;
        }
        Ok(())
    }

    #[inline]
    fn transmit(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        let mut done = Transmitted::default();
        if self.down && self.is_still_down() {
            (0..frames.len()).for_each(|_| done.drops.add(DropCause::TxLinkDown));
            done.taken = frames.len();
            return done;
        }
        if self.sockets[0].umem.free() < CHUNKS_LOW {
            self.sockets[0].reap();
        }
        for frame in frames.iter() {
            if !self.enqueue(&frame, &mut done) {
                break;
            }
            done.taken += 1;
        }
        self.sockets[0].transmit.publish();
        if let Err(error) = self.flush() {
            self.down = true;
            log::debug!("{}: {error}", self.device.name);
        }
        done
    }

    #[inline]
    fn receive(&mut self, room: &mut GuestRoom<'_, '_>) -> io::Result<Look> {
        if self.unsent && !self.down {
            // An error shows at the next frame.
            let _ = self.flush();
        }
        let count = self.sockets.len();
        let mut look = Look::Drained;
        for n in 0..count {
            let at = (self.turn + n) % count;
            if self.sockets[at].receive_into(room) == Look::More {
                look = Look::More;
            }
        }
        self.turn = (self.turn + 1) % count;
        Ok(look)
    }

    fn losses(&mut self) -> DropCounts {
        let mut drops = DropCounts::default();
        self.sockets.iter_mut().for_each(|socket| socket.add_losses(&mut drops));
        drops
    }

    fn has_frames(&self) -> bool {
        self.sockets.iter().any(|socket| socket.receive.has_entries())
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        self.any.as_ref().map(AsFd::as_fd).or_else(|| self.sockets.first().map(AsFd::as_fd))
    }
}

impl Socket {
    /// Places received frames into guest buffers, until there are no more or the room is used up.
    #[inline]
    fn receive_into(&mut self, room: &mut GuestRoom<'_, '_>) -> Look {
        #[expect(clippy::cast_possible_truncation, reason = "64")]
        let available = self.receive.available().min(BURST_MAX as u32);
        if available == 0 {
            return Look::Drained;
        }
        room.expect(available as usize);
        let mut done = 0;
        while done < available {
            let parts = {
                let mut frame = ArrayVec::<_, PARTS_MAX>::new();
                let Some(parts) = self.frame_at(done, available, &mut frame) else { break };
                if room.place_run(&frame, 0) == Placed::NoRoom {
                    break;
                }
                parts
            };
            for part in done..done + parts {
                self.fill.push(self.umem.chunk_of(self.receive.peek(part).addr));
            }
            done += parts;
        }
        self.receive.skip(done);
        self.receive.release();
        self.fill.publish();
        if done == available && self.receive.available() == 0 { Look::Drained } else { Look::More }
    }

    /// Collects the parts of the frame that begins at the entry `at`, of `available` ones. Returns how many
    /// entries it has; none when the last ones are still to come.
    #[inline]
    fn frame_at<'u>(
        &'u self,
        at: u32,
        available: u32,
        frame: &mut ArrayVec<GuestSlice<'u>, PARTS_MAX>,
    ) -> Option<u32> {
        for entry in at..available {
            let XdpDesc { addr, len, options } = self.receive.peek(entry);
            if let Some(part) = self.umem.slice(addr, len) {
                // The kernel makes no frame of more parts (`MAX_SKB_FRAGS`).
                let _ = frame.try_push(part);
            }
            if !options.contains(XdpDescOptions::XDP_PKT_CONTD) {
                return Some(entry + 1 - at);
            }
        }
        None
    }

    /// Gives back frames that came for a guest that is gone.
    fn discard_received(&mut self) {
        let available = self.receive.look();
        for ahead in 0..available {
            self.fill.push(self.umem.chunk_of(self.receive.peek(ahead).addr));
        }
        self.receive.skip(available);
        self.receive.release();
        self.fill.publish();
    }
}

/// A descriptor that becomes readable when one of several sockets does; none for one socket, which is asked
/// itself.
fn poll_all(sockets: &[Socket]) -> io::Result<Option<OwnedFd>> {
    if sockets.len() < 2 {
        return Ok(None);
    }
    let any = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (n, socket) in (0..).zip(sockets) {
        epoll::add(&any, socket, epoll::EventData::new_u64(n), epoll::EventFlags::IN)?;
    }
    Ok(Some(any))
}

fn explain(
    device: &Device,
    options: &Options,
    step: &'static str,
    source: io::Error,
) -> AfXdpError {
    let name = device.name.clone();
    match source.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => {
            let what = "another XDP program or AF_XDP socket is on it";
            AfXdpError::Busy { name, what }
        }
        Some(libc::EPERM | libc::EACCES) => AfXdpError::Permission { name, step },
        Some(libc::ENOBUFS | libc::ENOMEM) => AfXdpError::LockedMemory { name },
        Some(libc::EOPNOTSUPP) => {
            let what = if options.zero_copy == Choice::On {
                "zero copy for AF_XDP".to_owned()
            } else {
                format!("{} XDP", options.mode)
            };
            AfXdpError::Unsupported { name, what }
        }
        _ if source.kind() == io::ErrorKind::PermissionDenied => {
            AfXdpError::Permission { name, step }
        }
        _ => AfXdpError::System { name, step, source },
    }
}
