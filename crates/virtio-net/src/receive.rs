//! Room for a burst of frames in the guest's receive buffers, mergeable or not.
//!
//! A datapath that reads a frame from the kernel does not know its length in advance. So it gets a scatter list. The
//! list begins with guest buffers, as many as recent frames needed, and ends with our spare buffer. A frame that fits
//! the guest buffers is in place after one `readv`, without a copy by us. Bytes that went to the spare buffer are
//! copied to further guest buffers, and the next list is longer. When the guest has too few buffers, the frame is held
//! until there are enough. A frame is never torn or lost.
//!
//! `place`: frames of known length, because they are in memory already. `gro`: several such frames as one packet.
//! `watched`: the methods by which a wrapper of a datapath sees placed frames, or loses one. `dirty`: what was written is
//! marked, while the front end logs.

mod dirty;
mod gro;
mod place;
mod watched;

use std::collections::VecDeque;
use std::io::ErrorKind;

use burst_trace::{DropCause, DropCounts};
use guest_memory::{GuestMemory, GuestSlice, Spare};
use virtqueue::chain::{CHAIN_SLICES_MAX, CHAINS_MAX};
use virtqueue::{Access, Chain, ChainFault, Chains, Queue, RingError};

use self::place::COMPLETED_TOGETHER;
pub use self::watched::Mark;
use crate::features::{FLAGS, HEADER_LEN, NUM_BUFFERS, Negotiated, Offloads};
use crate::run::{read_front, write_at};
use crate::{BURST_MAX, FRAME_LEN_MAX};

/// Most buffers taken for one burst.
pub const BUFFERS_MAX: usize = CHAINS_MAX;
/// Least bytes of guest buffers in a scatter list: a full Ethernet frame fits.
const WINDOW_BYTES_MIN: usize = 2048;

/// The state of a receive queue that is kept between bursts.
#[derive(Debug)]
pub struct ReceiveState {
    spare: Spare,
    /// The frames that wait for guest buffers, with their headers: one at most, or those that another daemon had read.
    held: VecDeque<Vec<u8>>,
    /// Bytes of guest buffers that the next scatter list begins with.
    window_bytes: usize,
}

impl Default for ReceiveState {
    fn default() -> Self {
        Self {
            spare: Spare::new(HEADER_LEN + FRAME_LEN_MAX),
            held: VecDeque::new(),
            window_bytes: WINDOW_BYTES_MIN,
        }
    }
}

impl ReceiveState {
    /// Whether a frame waits for guest buffers.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Takes the frames that wait, with their headers, for another daemon.
    pub fn take_held(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.held).into()
    }

    /// Frames that waited in another daemon. What cannot be a frame is discarded.
    pub fn hold(&mut self, frames: Vec<Vec<u8>>) {
        let lens = HEADER_LEN - 2..=HEADER_LEN + FRAME_LEN_MAX;
        self.held.extend(frames.into_iter().filter(|frame| lens.contains(&frame.len())));
    }

    /// Discards the frames that wait. Returns how many.
    pub fn drop_held(&mut self) -> usize {
        std::mem::take(&mut self.held).len()
    }
}

/// The outcome for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It is in guest memory, or dropped and counted. Continue with the next frame.
    Done,
    /// The guest has too few buffers for it, or the burst is full. A frame to scatter was not read, or it is held. A
    /// frame passed in was not taken.
    NoRoom,
}

/// Room for frames in the guest's receive buffers, for one burst.
#[derive(Debug)]
pub struct GuestRoom<'r, 'm> {
    queue: &'r mut Queue,
    memory: &'m GuestMemory,
    chains: &'r mut Chains<'m>,
    spare: &'m Spare,
    held: &'r mut VecDeque<Vec<u8>>,
    window_bytes: &'r mut usize,
    negotiated: Negotiated,
    /// Number of chains, from the first on, that go back to the guest.
    done: usize,
    /// Number of those that were completed already.
    completed: usize,
    /// End of the window. The chains from `done` to here are for the next frame; later ones were taken for the frames
    /// after it.
    end: usize,
    /// Bytes of the chains in the window.
    window: usize,
    /// Number of chains to take from the ring at a time.
    ahead: usize,
    packets: u16,
    /// Dropped frames. They count towards the burst's limit: otherwise a wire that brings nothing else would hold the
    /// worker forever.
    dropped: u16,
    /// Most frames in the burst: [`BURST_MAX`], or fewer if a frame is to be lost.
    limit: usize,
    /// The next frame after the limit is to be lost.
    is_losing: bool,
    /// GRO is off for the rest of this burst.
    no_gro: bool,
    /// Number of chains that are completed together.
    together: usize,
    /// See [`Received::starved`].
    starved: bool,
    bytes: u32,
    drops: DropCounts,
    broken: Option<RingError>,
}

/// The outcome of a burst of received frames.
#[derive(Debug)]
pub struct Received {
    /// Frames placed.
    pub packets: u16,
    /// Their bytes, without net headers.
    pub bytes: u32,
    /// Dropped frames and unusable chains, by cause.
    pub drops: DropCounts,
    /// Cost in ring work: chains given back, plus descriptors walked for chains of more than one buffer. At most
    /// [`BUFFERS_MAX`] plus [`BURST_DESCRIPTORS_MAX`], plus the last chain's descriptors.
    ///
    /// [`BURST_DESCRIPTORS_MAX`]: virtqueue::chain::BURST_DESCRIPTORS_MAX
    pub work: u32,
    /// How the guest broke the ring, if it did.
    pub broken: Option<RingError>,
    /// A frame was not placed because the guest had too few buffers.
    pub starved: bool,
}

impl<'r, 'm> GuestRoom<'r, 'm> {
    /// Opens the room, with no chains yet. Call [`Queue::available_descriptors`] before, and [`GuestRoom::close`]
    /// after.
    #[inline]
    pub fn open(
        queue: &'r mut Queue,
        memory: &'m GuestMemory,
        chains: &'r mut Chains<'m>,
        state: &'m mut ReceiveState,
        negotiated: Negotiated,
    ) -> Self
    where
        'm: 'r,
    {
        let ReceiveState { spare, held, window_bytes } = state;
        Self {
            queue,
            memory,
            chains,
            spare,
            held,
            window_bytes,
            negotiated,
            done: 0,
            completed: 0,
            end: 0,
            window: 0,
            ahead: 1,
            packets: 0,
            dropped: 0,
            limit: BURST_MAX,
            is_losing: false,
            no_gro: false,
            together: COMPLETED_TOGETHER,
            starved: false,
            bytes: 0,
            drops: DropCounts::default(),
            broken: None,
        }
    }

    /// Announces the number of frames that will be placed, so that their buffers are taken from the ring together.
    #[inline]
    pub fn expect(&mut self, frames: usize) {
        self.ahead = frames.clamp(1, BURST_MAX);
    }

    /// The offloads that the guest takes.
    #[inline]
    #[must_use]
    pub const fn guest_offloads(&self) -> Offloads {
        self.negotiated.guest_offloads()
    }

    /// Drops a frame that this guest can never take.
    pub fn refuse(&mut self, cause: DropCause) -> Placed {
        self.drop_frame(cause)
    }

    /// Whether the burst has reached its limit of frames.
    #[inline]
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.is_at_limit() && !self.is_losing
    }

    #[inline]
    const fn is_at_limit(&self) -> bool {
        self.frames() >= self.limit
    }

    /// Places the frames that have waited for buffers since an earlier burst, if there are any. [`scatter`](Self::scatter)
    /// does this itself. A datapath that scatters only frames that it has read already must do it first, even if it has
    /// none.
    #[inline]
    pub fn place_waiting(&mut self) -> Placed {
        if self.held.is_empty() { Placed::Done } else { self.place_all_held() }
    }

    /// Reads one frame, net header first, directly into guest buffers. `read` gets the scatter list and returns the
    /// number of bytes read.
    ///
    /// # Errors
    /// Those of `read`.
    #[inline]
    pub fn scatter(
        &mut self,
        read: impl FnOnce(&[GuestSlice<'_>]) -> std::io::Result<usize>,
    ) -> std::io::Result<Placed> {
        if self.place_waiting() == Placed::NoRoom {
            return Ok(Placed::NoRoom);
        }
        if self.is_at_limit() {
            return self.scatter_at_limit(read);
        }
        if !self.open_window(*self.window_bytes) {
            return Ok(Placed::NoRoom);
        }
        // The list must end with the window: chains taken for later frames go back to the ring.
        let ahead = self.chains.truncate(self.end);
        self.queue.put_back(ahead);
        let room = self.window;
        match self.chains.with_spare(self.done, self.spare.slice(), read) {
            Some(Ok(len)) => Ok(self.settle(len, room)),
            Some(Err(error)) => {
                if error.kind() != ErrorKind::WouldBlock {
                    self.mark_unused(room);
                }
                Err(error)
            }
            None => Ok(Placed::NoRoom),
        }
    }

    /// Gives used chains back. A packed ring shows them to the guest step by step, so that the guest works on the first
    /// frames while the last ones are still copied.
    #[inline]
    fn complete(&mut self) {
        self.queue.complete_written(&self.chains.all()[self.completed..self.done]);
        self.completed = self.done;
    }

    /// Gives used chains back to the guest and puts unused ones back in the ring. Returns the outcome of the burst. The
    /// guest sees all of it after [`Queue::publish`].
    #[inline]
    pub fn close(mut self) -> Received {
        self.complete();
        self.mark_used();
        #[expect(clippy::cast_possible_truncation, reason = "at most CHAINS_MAX")]
        let work = self.done as u32 + self.chains.walked();
        let unused = self.chains.truncate(self.done);
        self.queue.put_back(unused);
        Received {
            packets: self.packets,
            bytes: self.bytes,
            drops: self.drops,
            work,
            broken: self.broken,
            starved: self.starved,
        }
    }

    /// Settles a frame of `len` bytes: all after the first `room` are in the spare buffer.
    #[inline]
    fn settle(&mut self, len: usize, room: usize) -> Placed {
        if len < self.negotiated.header_len() {
            self.mark_unused(len);
            return self.drop_frame(DropCause::RxError);
        }
        if len > room {
            return self.settle_spilled(len, room);
        }
        // The window shrinks slowly to what frames need now.
        *self.window_bytes -=
            (*self.window_bytes - len.clamp(WINDOW_BYTES_MIN, *self.window_bytes)) / 64;
        self.take_frame(len);
        Placed::Done
    }

    #[cold]
    fn settle_spilled(&mut self, len: usize, room: usize) -> Placed {
        let spare = self.spare.slice();
        if !self.negotiated.mergeable() || len >= room + spare.len() {
            self.mark_unused(room);
            return self.drop_frame(DropCause::RxTooBig);
        }
        *self.window_bytes = len.max(WINDOW_BYTES_MIN);
        if self.open_window(len) && self.window >= len {
            let slices = self.window_slices();
            let mut at = room;
            while at < len {
                let mut piece = [0; 4096];
                let count = piece.len().min(len - at);
                spare.read(at - room, &mut piece[..count]);
                write_at(slices, at, &piece[..count]);
                at += count;
            }
            self.take_frame(len);
            return Placed::Done;
        }
        // The guest has too few buffers: all of the frame is held outside guest memory until it has enough.
        self.mark_unused(room);
        let mut frame = vec![0; len];
        read_front(self.window_slices(), &mut frame[..room]);
        spare.read(0, &mut frame[room..]);
        self.held.push_back(frame);
        self.no_room_for(len)
    }

    /// Places the frames that waited, as far as there is room.
    #[cold]
    fn place_all_held(&mut self) -> Placed {
        while let Some(len) = self.held.front().map(Vec::len) {
            if len < self.negotiated.header_len() {
                self.held.pop_front();
                self.drop_frame(DropCause::RxError);
            } else if self.is_at_limit() || self.place_held(len) == Placed::NoRoom {
                return Placed::NoRoom;
            }
        }
        Placed::Done
    }

    /// Places the first frame that waited, of `len` bytes.
    fn place_held(&mut self, len: usize) -> Placed {
        if !self.open_window(len) || self.window < len {
            return self.no_room_for(len);
        }
        if let Some(frame) = self.held.pop_front() {
            write_at(self.window_slices(), 0, &frame);
            self.take_frame(len);
        }
        Placed::Done
    }

    /// Handles a frame of `len` bytes that does not fit the guest's buffers. It waits if buffers that the guest adds
    /// could make it fit; otherwise it is dropped.
    #[cold]
    fn no_room_for(&mut self, len: usize) -> Placed {
        let cause = if !self.negotiated.mergeable() && self.window < len {
            DropCause::RxTooBig
        } else if self.end - self.done >= usize::from(self.queue.size()).min(BUFFERS_MAX) {
            DropCause::RxNoBuffers
        } else {
            self.starved = true;
            return Placed::NoRoom;
        };
        self.held.pop_front();
        self.drop_frame(cause)
    }

    #[cold]
    fn drop_frame(&mut self, cause: DropCause) -> Placed {
        self.drops.add(cause);
        self.dropped += 1;
        Placed::Done
    }

    /// Extends the window until it has `bytes`; without mergeable buffers, to one chain only. Returns whether it has
    /// any bytes.
    #[inline]
    fn open_window(&mut self, bytes: usize) -> bool {
        while self.window < bytes && (self.window == 0 || self.negotiated.mergeable()) {
            if self.end == self.chains.len() && !self.take_more() {
                break;
            }
            let first = self.done;
            if self.chains.buffers_between(first, self.end + 1).len() > CHAIN_SLICES_MAX {
                // One system call takes no more slices. This chain waits for a later frame.
                break;
            }
            let chain = self.chains.all()[self.end];
            self.end += 1;
            self.window += chain.len as usize;
            if self.window == 0 {
                // No usable chain is before it in the window, so it goes back now, in order.
                self.give_back_faulty(chain);
            }
        }
        self.window > 0
    }

    /// Takes chains from the ring. Returns whether there were any.
    #[inline]
    fn take_more(&mut self) -> bool {
        let before = self.chains.len();
        if let Err(broken) = self.queue.take(self.memory, Access::Write, self.ahead, self.chains) {
            self.broken = Some(broken);
            // The ring is broken: nothing more of it is used.
            return false;
        }
        self.chains.len() > before
    }

    /// Gives the chain at `done` back unused, because it is empty or faulty.
    #[cold]
    fn give_back_faulty(&mut self, chain: Chain) {
        self.drops.add(match chain.fault {
            None => DropCause::RxEmptyChain,
            Some(ChainFault::Unmapped) => DropCause::RxUnmapped,
            Some(ChainFault::WrongDirection) => DropCause::RxDirection,
            Some(ChainFault::TooManySlices) => DropCause::RxSegments,
        });
        self.chains.set_written(self.done, 0);
        self.done += 1;
    }

    /// Gives the first `len` bytes of the window to the guest as one frame. The frame was read with its header.
    #[inline]
    fn take_frame(&mut self, len: usize) {
        let first = self.done;
        self.take_chains(len);
        let frame = self.chains.buffers_between(first, self.done);
        if !self.negotiated.guest_offloads().checksum {
            // The kernel may have set the flag that the checksum was checked. This guest must not see it (5.1.6.4).
            write_at(frame, FLAGS, &[0]);
        }
        self.count_frame(len - self.negotiated.header_len());
    }

    /// Uses chains of the window for a frame of `len` bytes, header included, and writes their number into the header.
    fn take_chains(&mut self, len: usize) {
        let first = self.done;
        let (mut left, mut buffers) = (len, 0_u16);
        while left > 0 {
            let chain = self.chains.all()[self.done];
            if chain.len == 0 {
                self.give_back_faulty(chain);
                continue;
            }
            let used = left.min(chain.len as usize);
            if buffers > 0 {
                // The driver must not see the first chain of a frame before all of them (5.1.6.4).
                self.chains.join(self.done);
            }
            self.take_chain(used);
            left -= used;
            buffers += 1;
        }
        if self.negotiated.header_len() == HEADER_LEN {
            let frame = self.chains.buffers_between(first, self.done);
            write_at(frame, NUM_BUFFERS, &buffers.to_le_bytes());
        }
    }

    /// Uses the first chain of the window; `len` bytes were written to it.
    #[inline]
    fn take_chain(&mut self, len: usize) {
        let chain = self.chains.all()[self.done];
        #[expect(clippy::cast_possible_truncation, reason = "at most the chain's own length")]
        self.chains.set_written(self.done, len as u32);
        self.window -= chain.len as usize;
        self.done += 1;
    }

    #[inline]
    fn count_frame(&mut self, payload_len: usize) {
        self.packets += 1;
        #[expect(clippy::cast_possible_truncation, reason = "frames are shorter than 2^17")]
        {
            self.bytes = self.bytes.saturating_add(payload_len as u32);
        }
    }

    /// The buffers in the window.
    #[inline]
    fn window_slices(&self) -> &[GuestSlice<'m>] {
        self.chains.buffers_between(self.done, self.end)
    }
}
