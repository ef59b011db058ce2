//! Room for a burst of frames to the guest, mergeable or not.
//!
//! A datapath that reads a frame from the kernel does not know its length before. So a scatter list is
//! offered that begins with guest buffers, as many as recent frames needed, and ends with spare room of
//! ours. A frame that fits is in place with one `readv` and no copy of ours. What went to the spare room
//! is copied to further guest buffers (and the next list is longer); when the guest has none, the frame is
//! held until it has, and is never torn or lost.
//!
//! `place`: frames whose length is known, because they are in memory already. `gro`: several of those as one
//! packet. `watched`: what wrappers of a datapath see of the room, and lose of it.

mod gro;
mod place;
mod watched;

use burst_trace::{DropCause, DropCounts};
use guest_memory::{GuestMemory, GuestSlice, Spare};
use virtqueue::chain::{CHAIN_SLICES_MAX, CHAINS_MAX};
use virtqueue::{Access, Chain, ChainFault, Chains, Queue, RingError};

use self::place::COMPLETED_TOGETHER;
pub use self::watched::Mark;
use crate::features::{FLAGS, HEADER_LEN, NUM_BUFFERS, Negotiated, Offloads};
use crate::run::{read_front, write_at};
use crate::{BURST_MAX, FRAME_LEN_MAX};

/// The most buffers that are taken for one burst.
pub const BUFFERS_MAX: usize = CHAINS_MAX;
/// The scatter list begins with guest buffers of at least this many bytes: a full Ethernet frame.
const WINDOW_BYTES_MIN: usize = 2048;

/// What stays of a receive queue from burst to burst.
#[derive(Debug)]
pub struct ReceiveState {
    spare: Spare,
    /// A frame, with its header, that waits for guest buffers.
    held: Vec<u8>,
    /// How many bytes of guest buffers the next scatter list begins with.
    window_bytes: usize,
}

impl Default for ReceiveState {
    fn default() -> Self {
        Self {
            spare: Spare::new(HEADER_LEN + FRAME_LEN_MAX),
            held: Vec::new(),
            window_bytes: WINDOW_BYTES_MIN,
        }
    }
}

impl ReceiveState {
    /// Whether a frame waits for guest buffers.
    #[must_use]
    pub const fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Gives up the frame that waits, if there is one. Returns whether there was.
    pub fn drop_held(&mut self) -> bool {
        let held = self.is_holding();
        self.held = Vec::new();
        held
    }
}

/// How a frame fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It is in guest memory, or dropped and counted: go on with the next one.
    Done,
    /// The guest has no buffers for it, or the burst is full. A scattered frame was not read, or is held;
    /// a frame handed in was not taken.
    NoRoom,
}

/// Room for frames in the guest's receive buffers, for the length of one burst.
#[derive(Debug)]
pub struct GuestRoom<'r, 'm> {
    queue: &'r mut Queue,
    memory: &'m GuestMemory,
    chains: &'r mut Chains<'m>,
    spare: &'m Spare,
    held: &'r mut Vec<u8>,
    window_bytes: &'r mut usize,
    negotiated: Negotiated,
    /// How many of the chains, from the first on, go back to the guest.
    done: usize,
    /// How many of them were completed already.
    completed: usize,
    /// Where the window ends: the chains before were opened for the next frame, those from here on were
    /// taken for the ones after it.
    end: usize,
    /// Bytes of the chains in the window.
    window: usize,
    /// How many chains to take from the ring at a time.
    ahead: usize,
    packets: u16,
    /// Frames that were not placed: they too make a burst full, or a wire that brings nothing else would
    /// never let go of the worker.
    dropped: u16,
    /// How many frames the burst may have: [`BURST_MAX`], or fewer where one is to be lost.
    limit: usize,
    /// The frame behind the limit is to be lost.
    is_losing: bool,
    /// No frame is merged with another.
    no_gro: bool,
    /// How many chains of finished frames are completed together.
    together: usize,
    /// See [`Received::starved`].
    starved: bool,
    bytes: u32,
    drops: DropCounts,
    broken: Option<RingError>,
}

/// What a burst of received frames came to.
#[derive(Debug)]
pub struct Received {
    /// Frames placed.
    pub packets: u16,
    /// Their bytes, headers not counted.
    pub bytes: u32,
    /// Frames and buffers that went no further.
    pub drops: DropCounts,
    /// Cost in ring work: chains given back, plus descriptors walked for chains of more than one buffer. At most
    /// [`BUFFERS_MAX`] plus [`BURST_DESCRIPTORS_MAX`], plus the last chain's descriptors.
    ///
    /// [`BURST_DESCRIPTORS_MAX`]: virtqueue::chain::BURST_DESCRIPTORS_MAX
    pub work: u32,
    /// How the guest broke the ring, if it did.
    pub broken: Option<RingError>,
    /// A frame was not placed because the guest has too few buffers now.
    pub starved: bool,
}

impl<'r, 'm> GuestRoom<'r, 'm> {
    /// Opens the room, with no chains yet. Call [`Queue::available_descriptors`] before, and [`GuestRoom::close`] after.
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

    /// Says that so many frames will be placed: their buffers are taken from the ring together.
    #[inline]
    pub fn expect(&mut self, frames: usize) {
        self.ahead = frames.clamp(1, BURST_MAX);
    }

    /// What the guest takes.
    #[inline]
    #[must_use]
    pub const fn guest_offloads(&self) -> Offloads {
        self.negotiated.guest_offloads()
    }

    /// Drops a frame that this guest can never be given.
    pub fn refuse(&mut self, cause: DropCause) -> Placed {
        self.drop_frame(cause)
    }

    /// Whether the burst has as many frames as it may.
    #[inline]
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.is_at_limit() && !self.is_losing
    }

    #[inline]
    const fn is_at_limit(&self) -> bool {
        self.frames() >= self.limit
    }

    /// Places the frame that waits for buffers since an earlier burst, if there is one. [`scatter`](Self::scatter) does
    /// this itself. A datapath that scatters only frames that it has read already must do it first, even if it has none.
    #[inline]
    pub fn place_waiting(&mut self) -> Placed {
        if self.held.is_empty() { Placed::Done } else { self.place_held() }
    }

    /// Reads one frame, net header first, straight into guest buffers: `read` is handed the scatter list
    /// and returns how many bytes it read.
    ///
    /// # Errors
    /// What `read` answers.
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
        // The list must end where the window does.
        let ahead = self.chains.truncate(self.end);
        self.queue.put_back(ahead);
        let room = self.window;
        match self.chains.with_spare(self.done, self.spare.slice(), read) {
            Some(read) => Ok(self.settle(read?, room)),
            None => Ok(Placed::NoRoom),
        }
    }

    /// Gives back what was used. A packed ring shows it to the guest by and by, which goes on with the
    /// first frames while the last ones are still copied.
    #[inline]
    fn complete(&mut self) {
        self.queue.complete_written(&self.chains.all()[self.completed..self.done]);
        self.completed = self.done;
    }

    /// Gives back what was used and puts back what was not, and says what the burst came to. The guest
    /// sees all of it after [`Queue::publish`].
    #[inline]
    pub fn close(mut self) -> Received {
        self.complete();
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

    /// Accounts for a frame of `len` bytes, of which all behind the first `room` are in the spare room.
    #[inline]
    fn settle(&mut self, len: usize, room: usize) -> Placed {
        if len < self.negotiated.header_len() {
            return self.drop_frame(DropCause::RxError);
        }
        if len > room {
            return self.settle_spilled(len, room);
        }
        // Slowly back to what frames need now.
        *self.window_bytes -=
            (*self.window_bytes - len.clamp(WINDOW_BYTES_MIN, *self.window_bytes)) / 64;
        self.take_frame(len);
        Placed::Done
    }

    #[cold]
    fn settle_spilled(&mut self, len: usize, room: usize) -> Placed {
        let spare = self.spare.slice();
        if !self.negotiated.mergeable() || len >= room + spare.len() {
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
        // The guest has too few buffers now: all of the frame moves out of guest memory until it has.
        let mut frame = vec![0; len];
        read_front(self.window_slices(), &mut frame[..room]);
        spare.read(0, &mut frame[room..]);
        *self.held = frame;
        self.no_room_for(len)
    }

    /// Places the frame that waited.
    #[cold]
    fn place_held(&mut self) -> Placed {
        let len = self.held.len();
        if !self.open_window(len) || self.window < len {
            return self.no_room_for(len);
        }
        let frame = std::mem::take(self.held);
        write_at(self.window_slices(), 0, &frame);
        self.take_frame(len);
        Placed::Done
    }

    /// A frame of `len` bytes does not fit what the guest offers. When it could not fit whatever the guest
    /// added, it is dropped; else it waits.
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
        *self.held = Vec::new();
        self.drop_frame(cause)
    }

    #[cold]
    fn drop_frame(&mut self, cause: DropCause) -> Placed {
        self.drops.add(cause);
        self.dropped += 1;
        Placed::Done
    }

    /// Takes chains until the window has `bytes` (one chain only, without mergeable buffers). Returns
    /// whether it has any.
    #[inline]
    fn open_window(&mut self, bytes: usize) -> bool {
        while self.window < bytes && (self.window == 0 || self.negotiated.mergeable()) {
            if self.end == self.chains.len() && !self.take_more() {
                break;
            }
            let first = self.done;
            if self.chains.buffers_between(first, self.end + 1).len() > CHAIN_SLICES_MAX {
                // One system call takes no more: the last chain's turn is later.
                break;
            }
            let chain = self.chains.all()[self.end];
            self.end += 1;
            self.window += chain.len as usize;
            if self.window == 0 {
                // Nothing before it waits for a frame, so its turn is now.
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
            // Of a ring that is given up nothing more is used.
            return false;
        }
        self.chains.len() > before
    }

    /// Gives the chain whose turn it is back, because it has no room, or a fault.
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

    /// Hands the front of the window, `len` bytes, to the guest as one frame that was read with its
    /// header.
    #[inline]
    fn take_frame(&mut self, len: usize) {
        let first = self.done;
        self.take_chains(len);
        let frame = self.chains.buffers_between(first, self.done);
        if !self.negotiated.guest_offloads().checksum {
            // The kernel may say that it has checked the checksum; this guest must not be told (5.1.6.4).
            write_at(frame, FLAGS, &[0]);
        }
        self.count_frame(len - self.negotiated.header_len());
    }

    /// Uses up chains of the window for a frame of `len` bytes with its header, and says there how many
    /// they are.
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
                // Before the driver sees the first one it must see them all (5.1.6.4).
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

    /// Uses up the first chain of the window, of which `len` bytes were written.
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
