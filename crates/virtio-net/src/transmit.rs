//! A burst of frames from the guest.
//!
//! `gro`: frames of one flow as one packet.

mod flows;
mod gro;

use burst_trace::{DropCause, DropCounts};
use guest_memory::{GuestMemory, GuestSlice};
use virtqueue::{Access, Chain, ChainFault, Chains, Queue, RingError};

use crate::features::Negotiated;
use crate::header::NetHeader;
use crate::run::{copy_run, read_at};
use crate::{BURST_MAX, FRAME_LEN_MAX};

pub use gro::{GroBurst, GroStep, TransmitGro};

/// The chains of one burst, in the order the guest offered them.
#[derive(Debug)]
pub struct TransmitBurst<'b, 'm> {
    chains: &'b Chains<'m>,
    header_len: usize,
    /// Number of chains that are frames.
    frames: usize,
}

impl<'b, 'm> TransmitBurst<'b, 'm> {
    /// Takes up to [`BURST_MAX`] available chains, checks and translates them. `chains` is empty before.
    ///
    /// # Errors
    /// When the guest broke the ring. Chains taken before must not be completed.
    #[inline]
    pub fn gather(
        queue: &mut Queue,
        memory: &'m GuestMemory,
        negotiated: Negotiated,
        chains: &'b mut Chains<'m>,
    ) -> Result<Self, RingError> {
        queue.take(memory, Access::Read, BURST_MAX, chains)?;
        let header_len = negotiated.header_len();
        let frames = match chains.plain() {
            Some(buffers) if buffers.iter().all(|it| is_frame(it.len(), header_len)) => {
                chains.len()
            }
            _ => chains.all().iter().filter(|it| fault(it, header_len).is_none()).count(),
        };
        Ok(Self { chains, header_len, frames })
    }

    /// Chains of no ring, which are frames. They are not to be completed.
    pub(crate) const fn of_own(chains: &'b Chains<'m>, header_len: usize) -> Self {
        Self { chains, header_len, frames: 1 }
    }

    /// The frames, for a datapath.
    #[inline]
    #[must_use]
    pub fn frames(&self) -> Frames<'b, 'm> {
        let Self { chains, header_len, frames } = *self;
        Frames { chains, header_len, first: 0, end: chains.len(), count: frames }
    }

    /// Gives the chains back to the guest, in order: those of the first `taken` frames and every faulty
    /// one before the next frame. The rest is put back and will be taken again. Faults are counted in
    /// `drops`. Returns how many entries of the ring went back to the guest.
    #[inline]
    pub fn complete(&self, queue: &mut Queue, taken: usize, drops: &mut DropCounts) -> u16 {
        let chains = self.chains.all();
        let done =
            if self.frames == chains.len() { taken } else { self.count_faults(taken, drops) };
        let (done, rest) = chains.split_at(done);
        if !rest.is_empty() {
            queue.put_back(rest.iter().map(|chain| chain.slots).sum());
        }
        queue.complete_read(done)
    }

    /// The chains of the first `taken` frames with every faulty one before the next frame, and the rest.
    pub(crate) fn split(&self, taken: usize) -> (&'b [Chain], &'b [Chain]) {
        let chains = self.chains.all();
        let is_all = self.frames == chains.len();
        let done =
            if is_all { taken } else { self.count_faults(taken, &mut DropCounts::default()) };
        chains.split_at(done)
    }

    /// Length of the net header before each frame, in bytes.
    pub(crate) const fn header_len(&self) -> usize {
        self.header_len
    }

    /// How many chains there are before the frame that comes after the first `taken` ones.
    #[cold]
    fn count_faults(&self, taken: usize, drops: &mut DropCounts) -> usize {
        let mut frames = 0;
        for (before, chain) in self.chains.all().iter().enumerate() {
            match fault(chain, self.header_len) {
                Some(cause) => drops.add(cause),
                None if frames < taken => frames += 1,
                None => return before,
            }
        }
        self.chains.len()
    }
}

/// Whether `len` bytes hold a net header and a frame that can be sent.
#[inline]
const fn is_frame(len: usize, header_len: usize) -> bool {
    len > header_len && len - header_len <= FRAME_LEN_MAX
}

/// Why a chain is not a frame that can be sent.
#[inline]
pub(crate) const fn fault(chain: &Chain, header_len: usize) -> Option<DropCause> {
    let len = chain.len as usize;
    match chain.fault {
        Some(ChainFault::Unmapped) => Some(DropCause::TxUnmapped),
        Some(ChainFault::WrongDirection) => Some(DropCause::TxDirection),
        Some(ChainFault::TooManySlices) => Some(DropCause::TxSegments),
        None if len <= header_len => Some(DropCause::TxTooShort),
        None if len - header_len > FRAME_LEN_MAX => Some(DropCause::TxTooLong),
        None => None,
    }
}

/// Consecutive frames of a burst, each with its net header.
#[derive(Clone, Copy, Debug)]
pub struct Frames<'b, 'm> {
    chains: &'b Chains<'m>,
    header_len: usize,
    /// The first chain of theirs.
    first: usize,
    /// The chain after the last of theirs.
    end: usize,
    /// Number of chains that are frames.
    count: usize,
}

impl<'b, 'm> Frames<'b, 'm> {
    /// Number of frames.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there are no frames.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Length of the net header before each frame, in bytes.
    #[inline]
    #[must_use]
    pub const fn header_len(&self) -> usize {
        self.header_len
    }

    /// The frames after the first `count`.
    #[inline]
    #[must_use]
    pub fn skip(self, count: usize) -> Self {
        let count = count.min(self.count);
        Self { first: self.chain_of(count), count: self.count - count, ..self }
    }

    /// The first `count` frames, or all if there are fewer.
    #[inline]
    #[must_use]
    pub fn take(self, count: usize) -> Self {
        let count = count.min(self.count);
        Self { end: self.chain_of(count), count, ..self }
    }

    /// Frame number `n`.
    #[inline]
    #[must_use]
    pub fn get(&self, n: usize) -> Option<Frame<'b, 'm>> {
        let chain = (n < self.count).then(|| self.chains.all().get(self.chain_of(n)))??;
        let slices = self.chains.buffers(chain);
        Some(Frame { slices, len: chain.len as usize, header_len: self.header_len })
    }

    /// The chain of frame number `n`; after the last frame, the end.
    #[inline]
    fn chain_of(&self, n: usize) -> usize {
        let Self { chains, header_len, first, end, count } = *self;
        if n == count {
            return end;
        }
        if count == end - first {
            return first + n;
        }
        let mut frames = (first..end).filter(|&at| fault(&chains.all()[at], header_len).is_none());
        frames.nth(n).unwrap_or(end)
    }

    /// One buffer for each frame, with its net header; `None` unless every frame is one buffer and has a header of
    /// `header_len` bytes.
    #[inline]
    #[must_use]
    pub fn plain(&self, header_len: usize) -> Option<&'b [GuestSlice<'m>]> {
        let Self { chains, first, end, count, .. } = *self;
        if self.header_len != header_len || count != end - first {
            return None;
        }
        // Without lists a chain is a buffer.
        chains.plain()?.get(first..end)
    }

    /// The frames in order.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = Frame<'b, 'm>> + use<'b, 'm> {
        let Self { chains, header_len, first, end, count } = *self;
        let all = &chains.all()[first..end];
        let has_faults = count < all.len();
        all.iter().filter(move |chain| !has_faults || fault(chain, header_len).is_none()).map(
            move |chain| Frame {
                slices: chains.buffers(chain),
                len: chain.len as usize,
                header_len,
            },
        )
    }
}

/// A frame from the guest, in guest memory: its net header, then the bytes for the wire.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'b, 'm> {
    slices: &'b [GuestSlice<'m>],
    len: usize,
    header_len: usize,
}

impl<'b, 'm> Frame<'b, 'm> {
    /// `len` bytes at the front of `slices`, more than `header_len`.
    #[must_use]
    pub const fn new(slices: &'b [GuestSlice<'m>], len: usize, header_len: usize) -> Self {
        Self { slices, len, header_len }
    }

    /// Header and frame in guest memory.
    #[inline]
    #[must_use]
    pub const fn slices(&self) -> &'b [GuestSlice<'m>] {
        self.slices
    }

    /// Length in bytes, header not counted.
    #[inline]
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a frame is never empty: checked when taken")]
    pub const fn len(&self) -> usize {
        self.len - self.header_len
    }

    /// Length of the net header in bytes.
    #[inline]
    #[must_use]
    pub const fn header_len(&self) -> usize {
        self.header_len
    }

    /// A copy of the net header, because the guest may change its own at any time.
    #[inline]
    #[must_use]
    pub fn header(&self) -> NetHeader {
        NetHeader::read(self.slices, self.header_len)
    }

    /// Copies the frame, without its header, to the front of the run that `to` makes, as much as fits.
    #[inline]
    pub fn copy_to_run(&self, to: &[GuestSlice<'_>]) {
        copy_run(to, 0, self.slices, self.header_len);
    }

    /// Copies the first `N` bytes of the frame, without its header; `None` if it is shorter.
    #[inline]
    #[must_use]
    pub fn front<const N: usize>(&self) -> Option<[u8; N]> {
        let mut front = [0; N];
        (read_at(self.slices, self.header_len, &mut front) == N).then_some(front)
    }

    /// Copies the frame, without its header, to the front of `to`, as much as fits. Returns the number of bytes.
    #[inline]
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        read_at(self.slices, self.header_len, to)
    }

    /// Copies the frame from byte `at` on, without its header, to the front of `to`, as much as fits. Returns the number of
    /// bytes: 0 if the frame ends before. A received frame may end before its buffers do; nothing after it is copied.
    #[inline]
    pub fn copy_from(&self, at: usize, to: &mut [u8]) -> usize {
        let count = self.len().saturating_sub(at).min(to.len());
        read_at(self.slices, self.header_len + at, &mut to[..count])
    }
}
