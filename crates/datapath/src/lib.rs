//! Where a guest's frames go to and come from: one file for each kind of wire.
//!
//! - [`tap`]: a tap interface, straight from and to guest memory.
//! - [`macvtap`]: the same on another interface directly, without a bridge.
//! - [`af_xdp`]: AF_XDP sockets on the queues of an interface.
//! - [`null`]: frames go nowhere, or come from nowhere.
//! - [`reflect`]: no wire: every frame goes back to the guest that sent it.
//!
//! Around any of them:
//!
//! - [`fault`]: loses frames, and returns errors, as planted.
//! - [`pcap`]: writes a copy of every frame to a file.
//! - `wrapper`: what such a datapath leaves to the one inside.
//!
//! - `claim`: one process for each tap and macvtap that the kernel would let several serve.
//!
//! A datapath moves bursts and returns facts. It never reads the clock, and it returns a cause for every frame that it
//! did not carry. The trait is in two parts: [`Interface`] is what the host has, [`Datapath`] moves frames. What only
//! some can do is a trait of its own: [`InPlace`], [`KernelFacts`], [`Observer`], [`FrameReader`].

pub mod af_xdp;
mod claim;
pub mod fault;
pub mod macvtap;
pub mod null;
pub mod pcap;
pub mod reflect;
mod refusal;
mod sys;
pub mod tap;
mod wrapper;

use std::io;
use std::os::fd::BorrowedFd;

use burst_trace::{BurstRecord, DropCause, DropCounts, SocketEvent};
use guest_memory::{GuestMemory, GuestSlice};
use virtio_net::{Frames, GuestRoom, Negotiated, Offloads, SegmentProgress};

pub use af_xdp::{AfXdp, AfXdpError};
pub use fault::{Faulty, Planted};
pub use macvtap::{Macvtap, MacvtapError};
pub use null::Null;
pub use pcap::{CaptureError, CaptureOptions, CaptureThread, Captured, Lane, Pcap};
pub use reflect::Reflect;
pub use refusal::Refusal;
pub use tap::{TapError, TapQueue, Uring};
pub use wrapper::Wrapper;

/// What a datapath can do, known before any guest attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The name on the command line: `tap`, `macvtap`, `af-xdp`, `reflect`, `switch`, `null`.
    pub name: &'static str,
    /// The offloads that may be pending in a guest's frames.
    pub from_guest: Offloads,
    /// The offloads that may be pending in frames to a guest that takes them.
    pub to_guest: Offloads,
    /// The largest payload of a link frame, bytes.
    pub mtu: u16,
}

/// What became of a burst from the guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Transmitted {
    /// Number of frames, from the first on, that are done with: carried, or refused and counted. The rest is offered again
    /// when the datapath is writable.
    pub taken: usize,
    /// Bytes of the frames that were carried.
    pub bytes: u32,
    /// The frames among `taken` that were not carried, by cause.
    pub drops: DropCounts,
    /// Number of packets that were each made of several of the frames that were carried (GRO).
    pub gro_frames: u32,
    /// Number of frames in them.
    pub gro_segments: u32,
}

impl Transmitted {
    /// The outcome of a burst of `frames` frames that were all refused for `cause`.
    #[cold]
    #[must_use]
    pub fn refused(frames: usize, cause: DropCause) -> Self {
        Self { taken: frames, drops: DropCounts::only(cause, frames), ..Self::default() }
    }

    /// Adds what became of the next part of the burst.
    pub fn add(&mut self, next: &Self) {
        self.taken += next.taken;
        self.bytes = self.bytes.saturating_add(next.bytes);
        self.drops.add_all(&next.drops);
        self.gro_frames = self.gro_frames.saturating_add(next.gro_frames);
        self.gro_segments = self.gro_segments.saturating_add(next.gro_segments);
    }
}

/// What the kernel counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// A frame for the guest was lost.
    Lost(DropCause),
    /// Another event, which lost no frame, or whose loss is counted already.
    Event(SocketEvent),
}

/// What a look for frames to the guest found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// No more frames wait.
    Drained,
    /// More may wait: the burst is full, or the guest has no buffers.
    More,
}

/// One queue of the interface that a datapath moves frames through, as the host has it.
pub trait Interface: Send + 'static {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// A guest has negotiated this. Called before its first burst.
    ///
    /// # Errors
    /// What the system answers; the queue pair does not start then.
    fn configure(&mut self, _negotiated: Negotiated) -> io::Result<()> {
        Ok(())
    }

    /// Whether the guest takes frames from now on. An inactive queue should get none from the host.
    ///
    /// # Errors
    /// What the system answers.
    fn set_active(&mut self, active: bool) -> io::Result<()>;

    /// Whether frames for the guest wait, without taking one.
    fn has_frames(&self) -> bool;

    /// Another daemon goes on with it. Returns the frames that were read and are not placed yet, with their net headers. If the
    /// other daemon fails, it is used again.
    fn part(&mut self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    /// A descriptor that becomes readable when frames come, and writable when more are taken (edge triggered).
    fn readiness(&self) -> Option<BorrowedFd<'_>>;

    /// What only the kernel knows of its frames, if the kernel reports it.
    #[inline]
    fn kernel_facts(&mut self) -> Option<&mut impl KernelFacts> {
        None::<&mut Never>
    }
}

/// A path from a guest to a wire and back: one queue of the interface, owned by the worker that serves the queue pair.
pub trait Datapath: Interface {
    /// Carries frames from the guest, in order.
    fn transmit(&mut self, frames: Frames<'_, '_>) -> Transmitted;

    /// Places frames into the guest's buffers until there are no more, or the room is used up.
    ///
    /// # Errors
    /// What the system answers, other than that there are no frames now. Then it is read again after a while;
    /// `WouldBlock` means that no frame was lost.
    fn receive(&mut self, room: &mut GuestRoom<'_, '_>) -> io::Result<Look>;

    /// The part of it that sends frames from the guest's own memory, if it has one.
    #[inline]
    fn in_place(&mut self) -> Option<&mut impl InPlace> {
        None::<&mut Never>
    }

    /// What gets the records of bursts, if anything wants them.
    #[inline]
    fn observer(&mut self) -> Option<&mut impl Observer> {
        None::<&mut Never>
    }
}

/// A path from a guest to a guest: frames go from the buffers of one into those of the other, without a wire.
pub trait Forward: Send + 'static {
    /// Carries frames from a guest into the receive buffers of one, in order, with one copy.
    fn forward(&mut self, frames: Frames<'_, '_>, room: &mut GuestRoom<'_, '_>) -> Transmitted;

    /// What gets the records of bursts, if anything wants them.
    #[inline]
    fn observer(&mut self) -> Option<&mut impl Observer> {
        None::<&mut Never>
    }
}

/// Frames that are sent from the guest's memory after [`Datapath::transmit`] has returned. The guest must not get the
/// buffers of frames that were taken back, and they are not offered again, until [`sent`](Self::sent) reports them.
pub trait InPlace {
    /// Frames of a guest with this memory will come. Called again when the memory changes.
    ///
    /// # Errors
    /// Why frames cannot be carried from there; the queue pair does not start then.
    fn attach(&mut self, memory: &GuestMemory) -> io::Result<()>;

    /// No more frames of the guest's memory come, and the memory must not be touched any more.
    fn detach(&mut self);

    /// The outcome of the oldest frames that the kernel is done with.
    fn sent(&mut self) -> Transmitted;

    /// Carries frames that are not in the guest's memory, as [`Datapath::transmit`] of a datapath that copies: those that are
    /// taken are done with, and [`sent`](Self::sent) does not report them.
    fn transmit_copies(&mut self, frames: Frames<'_, '_>) -> Transmitted;
}

/// What the kernel knows of frames for the guest, and the datapath does not see.
pub trait KernelFacts {
    /// Reports the frames that were lost on the way here since the last call, and the other events counted there. It
    /// takes a system call.
    fn losses(&mut self, each: &mut dyn FnMut(Counted, u64));

    /// When the first frame of the last [`Datapath::receive`] came to the host's kernel, nanoseconds of
    /// `CLOCK_MONOTONIC`, if the kernel says.
    fn arrived_ns(&self) -> Option<u64>;
}

/// Gets the records of bursts.
pub trait Observer {
    /// A burst of carried packets has crossed its last boundary. A burst of which nothing was carried has no record.
    fn recorded(&mut self, record: &BurstRecord);
}

/// A datapath that can be the uplink of a switch, which must look at a frame to know which guest gets it.
pub trait FrameReader: Datapath {
    /// Reads one frame into the daemon's memory: first its net header, as long as was negotiated. Bytes that do not fit
    /// `to` are lost. Returns the length of both, or none when there are no frames now.
    ///
    /// # Errors
    /// As [`Datapath::receive`].
    fn receive_frame(&mut self, to: GuestSlice<'_>) -> io::Result<Option<usize>>;

    /// The progress through the packet that comes first in the next [`Datapath::transmit`], if packets are cut into segments
    /// here. It belongs to one packet: who carries those of several senders sets it before each call, and keeps what it is after.
    fn transmit_progress(&mut self) -> Option<&mut SegmentProgress> {
        None
    }
}

/// A datapath, or what carries frames between guests, with what an operator can put around it while frames flow: faults, and a
/// capture. Frames that a fault drops are not in the capture.
pub type Wrapped<D> = Faulty<Pcap<D>>;

/// The absence of an [`InPlace`], [`KernelFacts`] or [`Observer`].
enum Never {}

impl InPlace for Never {
    fn attach(&mut self, _memory: &GuestMemory) -> io::Result<()> {
        match *self {}
    }

    fn detach(&mut self) {
        match *self {}
    }

    fn sent(&mut self) -> Transmitted {
        match *self {}
    }

    fn transmit_copies(&mut self, _frames: Frames<'_, '_>) -> Transmitted {
        match *self {}
    }
}

impl KernelFacts for Never {
    fn losses(&mut self, _each: &mut dyn FnMut(Counted, u64)) {
        match *self {}
    }

    fn arrived_ns(&self) -> Option<u64> {
        match *self {}
    }
}

impl Observer for Never {
    fn recorded(&mut self, _record: &BurstRecord) {
        match *self {}
    }
}
