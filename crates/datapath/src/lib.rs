//! One file a wire: where the guest's frames go to and come from.
//!
//! - [`tap`]: a tap interface, straight from and to guest memory.
//! - [`macvtap`]: the same on another interface directly, without a bridge.
//! - [`af_xdp`]: AF_XDP sockets on the queues of an interface.
//! - [`reflect`]: every frame goes back to the guest that sent it.
//! - [`switch`]: a learning switch between guests.
//! - [`null`]: frames go nowhere, or come from nowhere.
//!
//! Around any of them:
//!
//! - [`fault`]: loses frames and answers errors that were asked for.
//! - [`pcap`]: writes a copy of every frame to a file.
//!
//! - `claim`: one process for each tap and macvtap that the kernel would let several serve.
//!
//! A datapath moves bursts and returns facts. It never reads the clock, and it says of every frame that it
//! did not carry why.

pub mod af_xdp;
mod claim;
pub mod fault;
pub mod macvtap;
pub mod null;
pub mod pcap;
pub mod reflect;
mod refusal;
pub mod switch;
mod sys;
pub mod tap;

use std::io;
use std::os::fd::BorrowedFd;

use burst_trace::{BurstRecord, DropCause, DropCounts, SocketEvent};
use guest_memory::{GuestMemory, GuestSlice};
use virtio_net::{Frames, GuestRoom, Negotiated, Offloads};

pub use af_xdp::{AfXdp, AfXdpError};
pub use fault::{Faulty, Planted};
pub use macvtap::{Macvtap, MacvtapError};
pub use null::Null;
pub use pcap::{CaptureError, CaptureOptions, Pcap};
pub use reflect::Reflect;
pub use refusal::Refusal;
pub use switch::Switch;
pub use tap::{TapError, TapQueue, Uring};

/// What a datapath can do, known before any guest attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The name on the command line: `tap`, `macvtap`, `af-xdp`, `reflect`, `switch`, `null`.
    pub name: &'static str,
    /// What it takes of a guest's unfinished frames.
    pub from_guest: Offloads,
    /// What unfinished frames it may deliver to a guest that takes them.
    pub to_guest: Offloads,
    /// The largest payload of a link frame, bytes.
    pub mtu: u16,
}

/// What became of a burst from the guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Transmitted {
    /// How many of the frames, from the first on, are done with: carried, or refused and counted. The
    /// rest comes again when the datapath is writable.
    pub taken: usize,
    /// Bytes of the frames that were carried.
    pub bytes: u32,
    /// The frames among `taken` that were not carried, by cause.
    pub drops: DropCounts,
}

impl Transmitted {
    /// Adds what became of the next part of the burst.
    pub fn add(&mut self, next: &Self) {
        self.taken += next.taken;
        self.bytes = self.bytes.saturating_add(next.bytes);
        self.drops.add_all(&next.drops);
    }
}

/// What was counted behind the datapath's back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// A frame for the guest was lost.
    Lost(DropCause),
    /// Something else, by which no frame was lost, or that is counted as lost already.
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

/// A way from a guest to a wire: one queue of it, owned by the worker that serves the queue pair.
pub trait Datapath: Send + 'static {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Takes notice of what a guest negotiated, before its first burst.
    ///
    /// # Errors
    /// What the system answers; the queue pair is not started then.
    fn configure(&mut self, _negotiated: Negotiated) -> io::Result<()> {
        Ok(())
    }

    /// Frames of a guest with this memory will come. It is called again when the memory changes.
    ///
    /// # Errors
    /// Why frames cannot be carried from there; the queue pair is not started then.
    fn attach(&mut self, _memory: &GuestMemory) -> io::Result<()> {
        Ok(())
    }

    /// No more frames will come of the guest's memory, and it must not be touched any more.
    fn detach(&mut self) {}

    /// Whether the guest takes frames from now on. An inactive queue should get none from the host.
    ///
    /// # Errors
    /// What the system answers.
    fn set_active(&mut self, active: bool) -> io::Result<()>;

    /// Carries frames from the guest, in order.
    fn transmit(&mut self, frames: Frames<'_, '_>) -> Transmitted;

    /// Whether frames are sent from the guest's memory after [`transmit`](Self::transmit) has returned. Then the guest
    /// must not get the buffers of frames that were taken back, and they are not offered again, until
    /// [`sent`](Self::sent) reports them.
    #[inline]
    fn holds_frames(&self) -> bool {
        false
    }

    /// The outcome of the oldest held frames: those that the kernel is done with.
    fn sent(&mut self) -> Transmitted {
        Transmitted::default()
    }

    /// Whether frames go straight from the buffers of the guest that sends into those of the guest that
    /// receives. Then the worker calls [`forward`](Self::forward) in place of transmitting and receiving.
    const FORWARDS: bool = false;

    /// Carries frames from a guest into the receive buffers of one, in order, with one copy.
    fn forward(&mut self, frames: Frames<'_, '_>, _room: &mut GuestRoom<'_, '_>) -> Transmitted {
        self.transmit(frames)
    }

    /// Places frames into the guest's buffers until there are no more, or the room is used up.
    ///
    /// # Errors
    /// What the system answers, other than that there are no frames now. Then it is looked at again after a
    /// while; `WouldBlock` says that no frame was lost.
    fn receive(&mut self, room: &mut GuestRoom<'_, '_>) -> io::Result<Look>;

    /// Reads one frame into memory of ours, for a switch, which must look at it to know which guest gets it: first its
    /// net header, as long as was negotiated. What does not fit `to` is lost. Returns the length of both, or none when
    /// there are no frames now.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    fn receive_frame(&mut self, _to: GuestSlice<'_>) -> io::Result<Option<usize>> {
        Ok(None)
    }

    /// Whether frames for the guest can be lost in a place that only [`losses`](Self::losses) looks at.
    const COUNTS_LOSSES: bool = false;

    /// Tells of the frames for the guest that were lost on the way here since this was last asked, and what else was
    /// counted there. It takes a system call.
    fn losses(&mut self, _each: &mut dyn FnMut(Counted, u64)) {}

    /// When the first frame of the last look came to the host's kernel, nanoseconds of `CLOCK_MONOTONIC`, if the
    /// kernel says.
    #[inline]
    fn arrived_ns(&self) -> Option<u64> {
        None
    }

    /// Whether frames for the guest wait, without taking one.
    fn has_frames(&self) -> bool;

    /// What becomes readable when frames come, and writable when more are taken (edge triggered).
    fn readiness(&self) -> Option<BorrowedFd<'_>>;

    /// Takes notice of what was recorded of a burst of packets that were carried, once it has crossed its last
    /// boundary. Of a burst of which nothing was carried there is no record. Only wrappers care.
    #[inline]
    fn recorded(&mut self, _record: &BurstRecord) {}
}
