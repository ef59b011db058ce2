//! The chains of a burst: copied, checked and translated.

use arrayvec::ArrayVec;
use guest_memory::GuestSlice;

use crate::error::ChainFault;
use crate::layout::DESC_F_WRITE;

/// Most slices in a burst. (Threads under loom have small stacks.)
pub const SLICES_MAX: usize = if cfg!(loom) { 16 } else { 2048 };
/// Most chains in a burst.
pub const CHAINS_MAX: usize = if cfg!(loom) { 8 } else { 1024 };
/// Most slices of one chain: what one `readv` or `writev` takes (`UIO_MAXIOV` is 1024), less one for the spare room that
/// receiving adds.
pub const CHAIN_SLICES_MAX: usize = 1023;
/// Most descriptors walked in a burst, not counting its last chain and chains of one buffer. A descriptor that spans
/// several regions counts once for each.
pub const BURST_DESCRIPTORS_MAX: u32 = 2048;
/// Bytes at the front of most buffers that are accessed apart from the rest: a net header (virtio 1.2, 5.1.6). Only a
/// hint for prefetching.
const HEADER_LEN: usize = 12;

/// How the device accesses the buffers of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The device reads: every descriptor must be without `DESC_F_WRITE`.
    Read,
    /// The device writes: every descriptor must have `DESC_F_WRITE`.
    Write,
    /// The device reads the first buffers and writes the others, as those of a request and its answer (virtio 1.2,
    /// 2.7.4.2). To be used for one chain at a time ([`Chains::request`]).
    ReadThenWrite,
}

impl Access {
    /// The required `DESC_F_WRITE` of every descriptor; of the first one for both accesses.
    #[inline]
    pub(crate) const fn write_flag(self) -> u16 {
        match self {
            Self::Read | Self::ReadThenWrite => 0,
            Self::Write => DESC_F_WRITE,
        }
    }

    /// Prefetches the front of a buffer.
    #[inline]
    pub(crate) fn prefetch(self, slice: &GuestSlice<'_>) {
        match self {
            Self::Read | Self::ReadThenWrite => slice.prefetch_to_read(HEADER_LEN),
            Self::Write => slice.prefetch_to_write(HEADER_LEN),
        }
    }
}

/// A chain taken from a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Goes back to the driver: the head's index (split), or the buffer id (packed).
    pub id: u16,
    /// Entries of the ring that it fills: 1 (split), or the length of its list (packed).
    pub slots: u16,
    /// Its first slice.
    pub(crate) first: u16,
    /// Number of its slices.
    pub(crate) count: u16,
    /// Bytes of its buffers; after [`Chains::set_written`], the bytes written.
    pub len: u32,
    /// Why it cannot be used. Such a chain has no slices, and goes back with length 0.
    pub fault: Option<ChainFault>,
    /// Whether it continues the frame of the chain before it: the driver must see both at once.
    pub(crate) joined: bool,
}

/// The chains of a burst and their checked buffers.
#[derive(Debug, Default)]
pub struct Chains<'m> {
    pub(crate) chains: ArrayVec<Chain, CHAINS_MAX>,
    pub(crate) slices: ArrayVec<GuestSlice<'m>, SLICES_MAX>,
    /// Number of descriptors walked for chains of more than one buffer: see [`BURST_DESCRIPTORS_MAX`].
    pub(crate) walked: u32,
    /// Whether a chain is not exactly one buffer.
    pub(crate) has_lists: bool,
    /// The first slice to be written of the last chain of several buffers, if it has one
    /// ([`Access::ReadThenWrite`]).
    pub(crate) first_written: Option<u16>,
}

impl Chain {
    /// Whether it continues the frame of the chain before it ([`Chains::join`]).
    #[inline]
    pub(crate) const fn is_joined(&self) -> bool {
        self.joined
    }
}

impl<'m> Chains<'m> {
    /// No chains.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One chain that is of no ring: a buffer of the daemon's own memory.
    #[must_use]
    pub fn of_own(buffer: GuestSlice<'m>) -> Self {
        let mut chains = Self::new();
        chains.push_one(0, buffer);
        chains
    }

    /// The chains in the order in which they were taken.
    #[inline]
    #[must_use]
    pub fn all(&self) -> &[Chain] {
        &self.chains
    }

    /// The buffers of a chain, in order.
    #[inline]
    #[must_use]
    pub fn buffers(&self, chain: &Chain) -> &[GuestSlice<'m>] {
        &self.slices[usize::from(chain.first)..][..usize::from(chain.count)]
    }

    /// The buffers of the only chain, taken with [`Access::ReadThenWrite`]: those to be read, those to be written.
    #[must_use]
    pub fn request(&self) -> (&[GuestSlice<'m>], &[GuestSlice<'m>]) {
        self.slices.split_at(self.first_written.map_or(self.slices.len(), usize::from))
    }

    /// The buffer of chain number `n`, if it has exactly one.
    #[inline]
    #[must_use]
    pub fn only_buffer(&self, n: usize) -> Option<GuestSlice<'m>> {
        let chain = self.chains.get(n)?;
        (chain.count == 1).then(|| self.slices[usize::from(chain.first)])
    }

    /// The buffer of each chain; `None` unless every chain is exactly one buffer.
    #[inline]
    #[must_use]
    pub fn plain(&self) -> Option<&[GuestSlice<'m>]> {
        (!self.has_lists).then_some(&self.slices)
    }

    /// The chains from number `first` on, to set what was written ([`Chain::len`]), and the buffer of each; `None` unless
    /// every chain is exactly one buffer.
    #[inline]
    pub fn plain_mut(&mut self, first: usize) -> Option<(&mut [Chain], &[GuestSlice<'m>])> {
        if self.has_lists {
            return None;
        }
        Some((self.chains.get_mut(first..)?, self.slices.get(first..)?))
    }

    /// Sets the number of bytes written to chain number `n`; the driver gets it with the chain.
    #[inline]
    pub fn set_written(&mut self, n: usize, len: u32) {
        self.chains[n].len = len;
    }

    /// Marks chain number `n` as the continuation of the one before: the driver must not see the first buffers of a frame
    /// without the rest.
    #[inline]
    pub fn join(&mut self, n: usize) {
        self.chains[n].joined = true;
    }

    /// The buffers of the chains from number `first` to before number `end`, in order.
    #[inline]
    #[must_use]
    pub fn buffers_between(&self, first: usize, end: usize) -> &[GuestSlice<'m>] {
        let start = |n: usize| self.chains.get(n).map_or(self.slices.len(), |it| it.first.into());
        &self.slices[start(first)..start(end)]
    }

    /// Calls `with` with the buffers of the chains from number `first` on, and `spare` after them; `None` if there is no
    /// room for `spare`.
    #[inline]
    pub fn with_spare<T>(
        &mut self,
        first: usize,
        spare: GuestSlice<'m>,
        with: impl FnOnce(&[GuestSlice<'m>]) -> T,
    ) -> Option<T> {
        let start = self.chains.get(first).map_or(self.slices.len(), |it| it.first.into());
        self.slices.try_push(spare).ok()?;
        let done = with(&self.slices[start..]);
        self.slices.pop();
        Some(done)
    }

    /// Forgets the chains from number `len` on. Returns how many entries of the ring they fill: put them
    /// back ([`Queue::put_back`](crate::Queue::put_back)).
    #[inline]
    pub fn truncate(&mut self, len: usize) -> u16 {
        let Some(first) = self.chains.get(len) else { return 0 };
        self.slices.truncate(first.first.into());
        self.chains.drain(len..).map(|chain| chain.slots).sum()
    }

    /// Adds a chain of one buffer. Returns whether there was room.
    #[inline]
    pub(crate) fn push_one(&mut self, id: u16, slice: GuestSlice<'m>) -> bool {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "SLICES_MAX fits 16 bits; a u32 length"
        )]
        let (first, len) = (self.slices.len() as u16, slice.len() as u32);
        let chain = Chain { id, slots: 1, first, count: 1, len, fault: None, joined: false };
        if self.slices.try_push(slice).is_err() {
            return false;
        }
        let pushed = self.chains.try_push(chain).is_ok();
        if !pushed {
            self.slices.pop();
        }
        pushed
    }

    /// Number of descriptors walked for chains of more than one buffer, including chains that were put back.
    #[inline]
    #[must_use]
    pub const fn walked(&self) -> u32 {
        self.walked
    }

    /// Whether the burst has used up [`BURST_DESCRIPTORS_MAX`]. Further chains wait for the next burst.
    #[inline]
    pub(crate) const fn is_spent(&self) -> bool {
        self.walked >= BURST_DESCRIPTORS_MAX
    }

    /// Number of chains.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.chains.len()
    }

    /// Whether there are no chains.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }
}
