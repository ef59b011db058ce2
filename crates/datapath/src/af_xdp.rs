//! AF_XDP sockets on the queues of an interface (kernel `net/xdp/`): frames pass between driver and daemon without the
//! host's network stack.
//!
//! An XDP program redirects each received frame to the socket of its queue. Frames are in the socket's UMEM, and four
//! rings track which parts of it belong to the kernel. A frame is copied once between UMEM and guest memory. While no
//! guest takes frames, they go to the host's network stack, as without the program.
//!
//! - `device`: the interface as the kernel describes it.
//! - `program`: the XDP program.
//! - `umem`, `rings`, `socket`: the kernel's objects of these names.
//! - `open`: all of these for an interface.
//! - [`estate`]: an interface that another daemon goes on with; [`shared`]: what both have of it; `ledger`: the free chunks, which
//!   both have, too.
//! - `follow`: what changes on it while it is served.
//! - `surroundings`: what a sender leaves to a device that is not there.
//! - `channel`: a queue in use.
//! - `transmit`, `receive`: the two directions of a channel; `in_place`: frames that are sent from the guest's own memory.
//! - `napi`: the interface's settings for busy polling.
//! - `segmentation`: the other end's settings in generic mode.
//! - `options`, `error`: the user's options, and errors.

mod channel;
mod device;
mod error;
pub mod estate;
mod follow;
mod in_place;
mod ledger;
mod napi;
mod open;
mod options;
pub mod program;
mod receive;
mod rings;
mod segmentation;
pub mod shared;
mod socket;
mod surroundings;
mod transmit;
mod umem;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use burst_trace::DropCause;
use guest_memory::GuestSlice;
use log_limit::LogLimit;
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use virtio_net::features::HEADER_LEN;
use virtio_net::{BURST_MAX, Frames, GuestRoom, Negotiated, NetHeader, Offloads, SegmentProgress};

use crate::{
    Capabilities, Counted, Datapath, FrameReader, InPlace, Interface, KernelFacts, Look,
    Transmitted,
};
use channel::Channel;
use device::Device;
use error::explain;
use estate::Estate;
use follow::{Change, Follower, Inbox, News};
use in_place::InFlight;
use open::Opened;
use program::Program;
use shared::SharedInterface;
use transmit::Queued;

pub use error::AfXdpError;
pub use options::{Choice, Gro, Options, UmemOwner, XdpMode};

/// The queues of an interface that one queue pair owns.
#[derive(Debug)]
pub struct AfXdp {
    /// One for each queue. Frames are sent through the first.
    channels: Vec<Channel>,
    /// The numbers of its queues.
    queues: Vec<u32>,
    /// Becomes readable when one of the sockets does, or when there is something to take over.
    any: OwnedFd,
    program: Arc<Program>,
    inbox: Arc<Inbox>,
    _follower: Arc<Follower>,
    estate: Arc<Estate>,
    /// What sockets that were replaced had counted, not reported yet.
    retired: Vec<(Counted, u64)>,
    device: Device,
    options: Options,
    /// Limits the lines with socket counters: the guest causes one each time it disables a ring.
    log: LogLimit,
    /// Index of the channel to be read first at the next receive.
    turn: usize,
    /// Whether the guest may leave checksums and segmentation to the device.
    offloads: bool,
    /// Length of the guest's net headers, bytes.
    header_len: usize,
    /// The interface was down at the last attempt to send.
    down: bool,
    /// Whether frames are directed to the sockets.
    active: bool,
    /// Frames in the guest's own memory that the kernel has not sent yet, oldest first.
    in_flight: VecDeque<InFlight>,
}

impl AfXdp {
    /// Opens the interface `name` for `pairs` queue pairs. A pair gets one or more queues. All queues are bound: frames
    /// of an unbound one would go to the host's network stack.
    ///
    /// # Errors
    /// See [`AfXdpError`].
    pub fn open(name: &str, pairs: usize, options: &Options) -> Result<Vec<Self>, AfXdpError> {
        let device = Device::find(name).ok_or_else(|| AfXdpError::Missing(name.to_owned()))?;
        let opened = Opened::new(device, pairs, options)?;
        Self::all(opened, options)
    }

    /// Goes on with an interface of another daemon, which uses its sockets until frames are directed to this one.
    ///
    /// # Errors
    /// See [`AfXdpError`].
    pub fn go_on(shared: SharedInterface, options: &Options) -> Result<Vec<Self>, AfXdpError> {
        let active = shared.active.clone();
        let mut all = Self::all(Opened::go_on(shared, options)?, options)?;
        for (one, active) in all.iter_mut().zip(active) {
            one.active = active;
            one.inbox.put(News::Resume);
        }
        Ok(all)
    }

    /// What another daemon gets of the interface.
    #[must_use]
    pub const fn estate(&self) -> &Arc<Estate> {
        &self.estate
    }

    /// One for each queue pair.
    fn all(opened: Opened, options: &Options) -> Result<Vec<Self>, AfXdpError> {
        let Opened { device, program, settings, channels } = opened;
        let estate = Arc::new(Estate::new());
        estate.keep(settings);
        let fail = |error| explain(&device, options, "following its changes", error);
        let inboxes = channels.iter().map(|_| Inbox::new().map(Arc::new)).collect::<Result<_, _>>();
        let inboxes: Vec<_> = inboxes.map_err(fail)?;
        let shared = estate.serve((&device.name, device.index), &program, &channels);
        shared.map_err(|error| explain(&device, options, "sharing its sockets", error))?;
        let follower = Follower::start(
            device.clone(),
            Arc::clone(&program),
            Arc::clone(&estate),
            *options,
            inboxes.clone(),
        );
        let follower = Arc::new(follower.map_err(fail)?);
        let new = |(channels, inbox): (Vec<Channel>, Arc<Inbox>)| {
            Ok(Self {
                queues: channels.iter().map(|channel| channel.socket.queue).collect(),
                any: poll_all(&channels, &inbox)?,
                channels,
                program: Arc::clone(&program),
                inbox,
                _follower: Arc::clone(&follower),
                estate: Arc::clone(&estate),
                retired: Vec::new(),
                device: device.clone(),
                options: *options,
                log: LogLimit::new(""),
                turn: 0,
                offloads: false,
                header_len: HEADER_LEN,
                down: false,
                active: false,
                in_flight: VecDeque::with_capacity(BURST_MAX),
            })
        };
        let opened = channels.into_iter().zip(inboxes).map(new).collect::<io::Result<_>>();
        opened.map_err(|error| explain(&device, options, "polling its sockets", error))
    }

    /// Takes over what has changed on the interface.
    #[cold]
    fn take_over(&mut self) {
        for news in self.inbox.take() {
            let News::Change(Change { device, program, channels, replaces }) = news else {
                self.channels.iter_mut().for_each(Channel::resume);
                self.down = false;
                self.direct_all();
                continue;
            };
            if replaces {
                let Self { channels, retired, .. } = self;
                for mut channel in channels.drain(..) {
                    channel.losses(&mut |what, times| retired.push((what, times)));
                }
                self.queues.clear();
                (self.program, self.down, self.turn) = (program, false, 0);
            }
            for channel in channels {
                self.add(channel);
            }
            for channel in &mut self.channels {
                channel.mtu = device.mtu;
            }
            self.device = device;
        }
    }

    /// Directs frames to the sockets, if the guest takes them: the daemon before may not have had all of them in the map.
    fn direct_all(&self) {
        for channel in self.channels.iter().filter(|_| self.active) {
            if let Err(error) = self.program.direct(channel.socket.queue, Some(channel.as_fd())) {
                let (name, queue) = (&self.device.name, channel.socket.queue);
                log_limit::warn!(self.log, "{name}: frames of queue {queue} may be lost: {error}");
            }
        }
    }

    /// Takes over the socket of one more queue.
    fn add(&mut self, channel: Channel) {
        let queue = channel.socket.queue;
        self.queues.push(queue);
        // Without a guest there are no sockets that send from its memory; all are opened when one attaches.
        if self.options.umem == UmemOwner::Guest && self.channels.is_empty() {
            return;
        }
        let mut taken = epoll_add(&self.any, &channel);
        if self.active {
            taken = taken.and(self.program.direct(queue, Some(channel.as_fd())));
        }
        if let Err(error) = taken {
            let name = &self.device.name;
            log_limit::warn!(
                self.log,
                "{name}: frames of queue {queue} may be late or lost: {error}"
            );
        }
        self.channels.push(channel);
    }

    /// Whether the interface is still down. Checked before more frames go into a ring that the kernel does not empty.
    #[cold]
    fn is_still_down(&mut self) -> bool {
        let channel = &mut self.channels[0];
        self.down = channel.socket.flush().is_err();
        if self.down {
            // The frames that come are dropped. The next one begins with its first segment.
            channel.transmit_progress.reset();
        }
        self.down
    }
}

/// Number of free chunks below which the chunks of sent frames are taken back first.
const CHUNKS_LOW: usize = 2 * BURST_MAX;

/// Most refills of the transmit ring in a burst. The rest waits for the next turn: a guest may ask for 65 536 segments.
const REFILLS_MAX: usize = 4;

impl Interface for AfXdp {
    fn capabilities(&self) -> Capabilities {
        // All offloads except UDP fragmentation, which no current guest uses.
        let offloads = Offloads { ufo: false, ..Offloads::ALL };
        // A network card leaves no offloads pending; packets that GRO makes do.
        let gro = Offloads { checksum: true, tso4: true, tso6: true, ..Offloads::default() };
        let to_guest = match (self.device.leaves_offloads, self.options.gro) {
            (true, _) => offloads,
            (false, Gro::On) => gro,
            (false, Gro::Off) => Offloads::default(),
        };
        Capabilities { name: "af-xdp", from_guest: offloads, to_guest, mtu: self.device.mtu }
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        if self.inbox.is_full() {
            self.take_over();
        }
        if active == self.active {
            return Ok(());
        }
        for channel in &mut self.channels {
            if active {
                channel.discard_received();
            } else {
                let ((transmit, receive), queue) =
                    (channel.socket.chunks_at_rest(), channel.socket.queue);
                let name = &self.device.name;
                // The recorder counts the same, for every queue pair.
                log_limit::debug!(
                    self.log,
                    "{name}: queue {queue} until now: {}",
                    channel.socket.counters()
                );
                log_limit::debug!(
                    self.log,
                    "{name}: queue {queue} at rest with {transmit} and {receive} chunks"
                );
            }
            self.program.direct(channel.socket.queue, active.then(|| channel.as_fd()))?;
        }
        self.active = active;
        Ok(())
    }

    fn configure(&mut self, negotiated: Negotiated) -> io::Result<()> {
        // Without the checksum feature a guest leaves no offloads pending, and its net headers are not read.
        self.header_len = negotiated.header_len();
        self.offloads =
            negotiated.has(Offloads { checksum: true, ..Offloads::default() }.from_guest());
        // A frame of which segments were delivered may be one that the guest now takes whole.
        self.channels.iter_mut().for_each(|channel| channel.receive_progress.reset());
        Ok(())
    }

    fn has_frames(&self) -> bool {
        self.channels.iter().any(|channel| channel.socket.receive.has_entries())
    }

    fn part(&mut self) -> Vec<Vec<u8>> {
        self.channels.iter_mut().for_each(Channel::part);
        self.inbox.put(News::Resume);
        Vec::new()
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.any.as_fd())
    }

    #[inline]
    fn kernel_facts(&mut self) -> Option<&mut impl KernelFacts> {
        Some(self)
    }
}

impl Datapath for AfXdp {
    #[inline]
    fn transmit(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        if self.inbox.is_full() {
            self.take_over();
        }
        if self.options.umem == UmemOwner::Guest {
            return self.transmit_in_place(frames);
        }
        if self.down && self.is_still_down() {
            return Transmitted::refused(frames.len(), DropCause::TxLinkDown);
        }
        let mut done = Transmitted::default();
        let channel = &mut self.channels[0];
        if channel.socket.umem.free() < CHUNKS_LOW {
            channel.socket.reap();
        }
        let mut refills = 0;
        for frame in frames.iter() {
            let header = if self.offloads { frame.header() } else { NetHeader::PLAIN };
            while channel.queue(&header, &frame, &mut done) == Queued::Full {
                refills += 1;
                match channel.socket.make_room() {
                    Ok(true) if refills <= REFILLS_MAX => {}
                    Ok(_) => return done,
                    Err(_) => {
                        self.down = true;
                        return done;
                    }
                }
            }
            done.taken += 1;
        }
        channel.socket.transmit.publish();
        self.down = channel.socket.flush().is_err();
        done
    }

    #[inline]
    fn receive(&mut self, room: &mut GuestRoom<'_, '_>) -> io::Result<Look> {
        if self.inbox.is_full() {
            self.take_over();
        }
        let count = self.channels.len();
        let mut look = Look::Drained;
        let Some(first) = self.channels.first_mut() else { return Ok(look) };
        if first.socket.unsent && !self.down {
            // An error shows at the next frame.
            let _ = first.socket.flush();
        }
        for n in 0..count {
            let at = (self.turn + n) % count;
            if self.channels[at].receive_into(room) == Look::More {
                look = Look::More;
            }
        }
        self.turn = (self.turn + 1) % count;
        Ok(look)
    }

    #[inline]
    fn in_place(&mut self) -> Option<&mut impl InPlace> {
        (self.options.umem == UmemOwner::Guest).then_some(self)
    }
}

impl FrameReader for AfXdp {
    fn receive_frame(&mut self, to: GuestSlice<'_>) -> io::Result<Option<usize>> {
        if self.inbox.is_full() {
            self.take_over();
        }
        if self.channels[0].socket.unsent && !self.down {
            // An error shows at the next frame.
            let _ = self.channels[0].socket.flush();
        }
        let (count, header_len) = (self.channels.len(), self.header_len);
        for n in 0..count {
            let at = (self.turn + n) % count;
            if let Some(len) = self.channels[at].receive_frame(header_len, to) {
                self.turn = (at + 1) % count;
                return Ok(Some(len));
            }
        }
        Ok(None)
    }

    fn transmit_progress(&mut self) -> Option<&mut SegmentProgress> {
        self.channels.first_mut().map(|channel| &mut channel.transmit_progress)
    }
}

impl KernelFacts for AfXdp {
    fn losses(&mut self, each: &mut dyn FnMut(Counted, u64)) {
        self.retired.drain(..).for_each(|(what, times)| each(what, times));
        self.channels.iter_mut().for_each(|channel| channel.losses(each));
        let unserved = self.program.unserved();
        if unserved > 0 {
            each(Counted::Lost(DropCause::RxUnservedQueue), unserved);
        }
    }

    #[inline]
    fn arrived_ns(&self) -> Option<u64> {
        self.channels.iter().filter_map(|channel| channel.arrived_ns).min()
    }
}

/// A descriptor that becomes readable when one of the sockets or the inbox does.
fn poll_all(sockets: &[Channel], inbox: &Inbox) -> io::Result<OwnedFd> {
    let any = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll_add(&any, inbox.wake())?;
    sockets.iter().try_for_each(|channel| epoll_add(&any, channel))?;
    Ok(any)
}

fn epoll_add(any: &OwnedFd, fd: &impl AsFd) -> io::Result<()> {
    Ok(epoll::add(any, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?)
}
