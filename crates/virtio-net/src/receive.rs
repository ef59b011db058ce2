//! Room for a burst of frames to the guest, mergeable or not.
//!
//! A datapath that reads a frame from the kernel does not know its length before. So a scatter list is
//! offered that begins with guest buffers, as many as recent frames needed, and ends with spare room of
//! ours. A frame that fits is in place with one `readv` and no copy of ours. What went to the spare room
//! is copied to further guest buffers (and the next list is longer); when the guest has none, the frame is
//! held until it has, and is never torn or lost.

use burst_trace::{DropCause, DropCounts};
use guest_memory::{GuestMemory, GuestSlice, Spare};
use virtqueue::chain::CHAIN_SLICES_MAX;
use virtqueue::{Access, Broken, Chain, ChainFault, Slices, SplitQueue, Taken};

use crate::features::{FLAGS, HEADER_LEN, NUM_BUFFERS, Negotiated};
use crate::{BURST_MAX, FRAME_LEN_MAX};

/// The most buffers that are taken for one burst.
pub const BUFFERS_MAX: usize = 1024;
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
    /// Room for the chains of one burst, so that a burst allocates nothing.
    entries: Vec<Entry>,
}

impl Default for ReceiveState {
    fn default() -> Self {
        Self {
            spare: Spare::new(HEADER_LEN + FRAME_LEN_MAX),
            held: Vec::new(),
            window_bytes: WINDOW_BYTES_MIN,
            entries: Vec::with_capacity(BUFFERS_MAX),
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

/// A chain of guest buffers in the window; one with a fault is given back when its turn comes.
#[derive(Clone, Copy, Debug)]
struct Entry {
    chain: Chain,
    fault: Option<DropCause>,
}

/// Room for frames in the guest's receive buffers, for the length of one burst.
#[derive(Debug)]
pub struct GuestRoom<'r, 'm> {
    queue: &'r mut SplitQueue,
    memory: &'m GuestMemory,
    slices: &'r mut Slices<'m>,
    spare: &'m Spare,
    held: &'r mut Vec<u8>,
    window_bytes: &'r mut usize,
    negotiated: Negotiated,
    /// Chains taken from the ring; those before `next` are used up.
    entries: &'r mut Vec<Entry>,
    next: usize,
    /// Bytes of the chains from `next` on.
    window: usize,
    packets: u16,
    /// Frames that were not placed: they too make a burst full, or a wire that brings nothing else would
    /// never let go of the worker.
    dropped: u16,
    bytes: u32,
    drops: DropCounts,
    broken: Option<Broken>,
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
    /// How the guest broke the ring, if it did.
    pub broken: Option<Broken>,
}

impl<'r, 'm> GuestRoom<'r, 'm> {
    /// Opens the room. Call [`SplitQueue::available`] before, and [`GuestRoom::close`] after.
    #[inline]
    pub fn open(
        queue: &'r mut SplitQueue,
        memory: &'m GuestMemory,
        slices: &'r mut Slices<'m>,
        state: &'m mut ReceiveState,
        negotiated: Negotiated,
    ) -> Self
    where
        'm: 'r,
    {
        let ReceiveState { spare, held, window_bytes, entries } = state;
        entries.clear();
        Self {
            queue,
            memory,
            slices,
            spare,
            held,
            window_bytes,
            negotiated,
            entries,
            next: 0,
            window: 0,
            packets: 0,
            dropped: 0,
            bytes: 0,
            drops: DropCounts::default(),
            broken: None,
        }
    }

    /// Whether the burst has as many frames as it may.
    #[inline]
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.packets as usize + self.dropped as usize >= BURST_MAX
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
        if !self.held.is_empty() && self.place_held() == Placed::NoRoom {
            return Ok(Placed::NoRoom);
        }
        if self.is_full() || !self.open_window(*self.window_bytes) {
            return Ok(Placed::NoRoom);
        }
        let room = self.window;
        let first = self.window_slices_start();
        if self.slices.try_push(self.spare.slice()).is_err() {
            return Ok(Placed::NoRoom);
        }
        let list = &self.slices[first..];
        debug_assert!(list.len() <= CHAIN_SLICES_MAX + 1);
        let read = read(list);
        self.slices.pop();
        Ok(self.settle(read?, room))
    }

    /// Places one frame of ours: `header` is what the guest gets before it (without `num_buffers`),
    /// `payload` the frame.
    #[inline]
    pub fn place(&mut self, header: &[u8; HEADER_LEN], payload: &[u8]) -> Placed {
        let header = &header[..self.negotiated.header_len()];
        let len = header.len() + payload.len();
        if self.is_full() || !self.open_window(len) {
            return Placed::NoRoom;
        }
        if self.window < len {
            return self.no_room_for(len);
        }
        let first = self.window_slices_start();
        write_at(&self.slices[first..], 0, header);
        write_at(&self.slices[first..], header.len(), payload);
        self.take_frame(len);
        Placed::Done
    }

    /// Puts back what was not needed, and says what the burst came to.
    #[inline]
    pub fn close(self) -> Received {
        #[expect(clippy::cast_possible_truncation, reason = "at most BUFFERS_MAX")]
        self.queue.put_back((self.entries.len() - self.next) as u16);
        Received {
            packets: self.packets,
            bytes: self.bytes,
            drops: self.drops,
            broken: self.broken,
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
            let first = self.window_slices_start();
            let mut at = room;
            while at < len {
                let mut piece = [0; 4096];
                let count = piece.len().min(len - at);
                spare.read(at - room, &mut piece[..count]);
                write_at(&self.slices[first..], at, &piece[..count]);
                at += count;
            }
            self.take_frame(len);
            return Placed::Done;
        }
        // The guest has too few buffers now: all of the frame moves out of guest memory until it has.
        let mut frame = vec![0; len];
        read_front(&self.slices[self.window_slices_start()..], &mut frame[..room]);
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
        let first = self.window_slices_start();
        let frame = std::mem::take(self.held);
        write_at(&self.slices[first..], 0, &frame);
        self.take_frame(len);
        Placed::Done
    }

    /// A frame of `len` bytes does not fit what the guest offers. When it could not fit whatever the guest
    /// added, it is dropped; else it waits.
    #[cold]
    fn no_room_for(&mut self, len: usize) -> Placed {
        let cause = if !self.negotiated.mergeable() && self.window < len {
            DropCause::RxTooBig
        } else if self.entries.len() - self.next >= usize::from(self.queue.size()).min(BUFFERS_MAX)
        {
            DropCause::RxNoBuffers
        } else {
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
        while self.window < bytes && self.entries.len() < BUFFERS_MAX {
            if !self.negotiated.mergeable() && self.window > 0 {
                break;
            }
            let before = self.slices.len();
            match self.queue.take(self.memory, Access::Write, self.slices) {
                Err(broken) => {
                    self.broken = Some(broken);
                    break;
                }
                Ok(None | Some(Taken::Full)) => break,
                Ok(Some(taken)) => self.push(taken),
            }
            if self.slices.len() - self.window_slices_start() > CHAIN_SLICES_MAX {
                // One system call takes no more: the last chain comes again later.
                self.window -= self.entries.pop().map_or(0, |entry| entry.chain.len as usize);
                self.slices.truncate(before);
                self.queue.put_back(1);
                break;
            }
        }
        self.window > 0
    }

    #[inline]
    fn push(&mut self, taken: Taken) {
        let (chain, fault) = match taken {
            Taken::Chain(chain) if chain.len > 0 => (chain, None),
            Taken::Chain(chain) => (chain, Some(DropCause::RxEmptyChain)),
            Taken::Refused { head, fault } => {
                #[expect(clippy::cast_possible_truncation, reason = "SLICES_MAX fits 16 bits")]
                let first = self.slices.len() as u16;
                (Chain { head, first, count: 0, len: 0 }, Some(cause(fault)))
            }
            Taken::Full => return,
        };
        self.entries.push(Entry { chain, fault });
        if self.window == 0 && fault.is_some() {
            // Nothing before it waits for a frame, so its turn is now.
            self.give_back_faulty();
        }
        self.window += chain.len as usize;
    }

    /// Gives the chain whose turn it is back, if it is a faulty one. Returns whether it was.
    fn give_back_faulty(&mut self) -> bool {
        let Entry { chain, fault: Some(cause) } = self.entries[self.next] else { return false };
        self.next += 1;
        self.drops.add(cause);
        self.queue.complete(chain.head, 0);
        true
    }

    /// Hands the front of the window, `len` bytes, to the guest as one frame.
    #[inline]
    fn take_frame(&mut self, len: usize) {
        let start = self.window_slices_start();
        let (mut left, mut buffers) = (len, 0_u16);
        while left > 0 {
            if self.give_back_faulty() {
                continue;
            }
            let chain = self.entries[self.next].chain;
            self.next += 1;
            let used = left.min(chain.len as usize);
            #[expect(clippy::cast_possible_truncation, reason = "at most the chain's own length")]
            self.queue.complete(chain.head, used as u32);
            self.window -= chain.len as usize;
            left -= used;
            buffers += 1;
        }
        let frame = &self.slices[start..];
        if self.negotiated.header_len() == HEADER_LEN {
            write_at(frame, NUM_BUFFERS, &buffers.to_le_bytes());
        }
        if !self.negotiated.guest_offloads().checksum {
            // The kernel may say that it has checked the checksum; this guest must not be told (5.1.6.4).
            write_at(frame, FLAGS, &[0]);
        }
        self.packets += 1;
        #[expect(clippy::cast_possible_truncation, reason = "frames are shorter than 2^17")]
        let frame_len = (len - self.negotiated.header_len()) as u32;
        self.bytes = self.bytes.saturating_add(frame_len);
    }

    /// Where the slices of the window begin.
    #[inline]
    fn window_slices_start(&self) -> usize {
        self.entries.get(self.next).map_or(self.slices.len(), |entry| entry.chain.first.into())
    }
}

const fn cause(fault: ChainFault) -> DropCause {
    match fault {
        ChainFault::Unmapped => DropCause::RxUnmapped,
        ChainFault::WrongDirection => DropCause::RxDirection,
        ChainFault::TooManySlices => DropCause::RxSegments,
    }
}

/// Writes `bytes` at `offset` of the run that `slices` make together.
#[inline]
fn write_at(slices: &[GuestSlice<'_>], mut offset: usize, mut bytes: &[u8]) {
    for slice in slices {
        if bytes.is_empty() {
            return;
        }
        if offset >= slice.len() {
            offset -= slice.len();
            continue;
        }
        bytes = &bytes[slice.write(offset, bytes)..];
        offset = 0;
    }
}

/// Fills `bytes` from the front of the run that `slices` make together.
fn read_front(slices: &[GuestSlice<'_>], bytes: &mut [u8]) {
    let mut read = 0;
    for slice in slices {
        read += slice.read(0, &mut bytes[read..]);
    }
}
