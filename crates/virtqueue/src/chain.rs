//! Descriptor chains, copied, checked and translated; and how a guest can get them wrong.

use arrayvec::ArrayVec;
use guest_memory::{Cursor, GuestMemory, GuestSlice};

use crate::layout::DESC_F_WRITE;

/// The most slices that the chains of one burst may have together. (Loom's threads have small stacks.)
pub const SLICES_MAX: usize = if cfg!(loom) { 16 } else { 2048 };
/// The most chains of one burst.
pub const CHAINS_MAX: usize = if cfg!(loom) { 8 } else { 1024 };
/// The most slices of one chain: what one `readv` or `writev` takes (`UIO_MAXIOV` is 1024), less one for
/// the spare room that receiving adds.
pub const CHAIN_SLICES_MAX: usize = 1023;
/// Most descriptors walked for one burst, without those of its last chain and of chains of one buffer. A descriptor that
/// spans several regions counts once for each.
pub const BURST_DESCRIPTORS_MAX: u32 = 2048;
/// Most descriptors of a chain in a ring that is smaller than this. A driver must not make a chain longer than the ring
/// (virtio 1.2, 2.7.5.3.1 and 2.8.19), but some do, because QEMU's own devices take this many
/// (`VIRTQUEUE_MAX_SIZE` in include/hw/virtio/virtio.h).
const CHAIN_DESCRIPTORS: u32 = 1024;

/// The most descriptors of a chain in a ring of `size`, direct and indirect ones together.
pub(crate) fn chain_limit(size: u16) -> u32 {
    CHAIN_DESCRIPTORS.max(size.into())
}

/// What a buffer begins with, mostly, and is touched apart from the rest: a net header (virtio 1.2, 5.1.6).
/// Only a hint for what to fetch.
const HEADER_LEN: usize = 12;

/// What the device wants to do with a chain's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The device reads: every descriptor must be without `DESC_F_WRITE`.
    Read,
    /// The device writes: every descriptor must have `DESC_F_WRITE`.
    Write,
}

impl Access {
    /// What `DESC_F_WRITE` of every descriptor must be.
    #[inline]
    pub(crate) const fn write_flag(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => DESC_F_WRITE,
        }
    }

    /// Has the CPU fetch what the device will touch of a buffer.
    #[inline]
    pub(crate) fn prefetch(self, slice: &GuestSlice<'_>) {
        match self {
            Self::Read => slice.prefetch_to_read(HEADER_LEN),
            Self::Write => slice.prefetch_to_write(HEADER_LEN),
        }
    }
}

/// A chain that was taken from a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// What goes back to the driver with it: the head's index (split), or the buffer id (packed).
    pub id: u16,
    /// How many entries of the ring it fills: 1 (split), or the length of its list (packed).
    pub slots: u16,
    /// Where its slices begin.
    first: u16,
    /// How many slices it has.
    count: u16,
    /// The bytes of its buffers in total; after [`Chains::set_written`], how many of them were written.
    pub len: u32,
    /// Why it cannot be used. It goes back with length 0; it has no slices then.
    pub fault: Option<ChainFault>,
    /// Whether it continues what begins in the chain before it: the driver sees both at once.
    joined: bool,
}

/// A burst's chains and their checked buffers, one after the other.
#[derive(Debug, Default)]
pub struct Chains<'m> {
    chains: ArrayVec<Chain, CHAINS_MAX>,
    slices: ArrayVec<GuestSlice<'m>, SLICES_MAX>,
    /// Number of descriptors walked for chains of more than one buffer: see [`BURST_DESCRIPTORS_MAX`].
    walked: u32,
    /// Whether there was a chain that is not just one buffer.
    has_lists: bool,
}

impl Chain {
    /// Whether it continues what begins in the chain before it ([`Chains::join`]).
    #[inline]
    pub(crate) const fn is_joined(&self) -> bool {
        self.joined
    }
}

impl<'m> Chains<'m> {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
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

    /// The only buffer of chain number `n`, if it has but one.
    #[inline]
    #[must_use]
    pub fn only_buffer(&self, n: usize) -> Option<GuestSlice<'m>> {
        let chain = self.chains.get(n)?;
        (chain.count == 1).then(|| self.slices[usize::from(chain.first)])
    }

    /// The one buffer of each chain; `None` if there is a chain that is not just one buffer.
    #[inline]
    #[must_use]
    pub fn plain(&self) -> Option<&[GuestSlice<'m>]> {
        (!self.has_lists).then_some(&self.slices)
    }

    /// The chains from number `first` on, to note what was written ([`Chain::len`]), and the one buffer of
    /// each; `None` if there is a chain that is not just one buffer.
    #[inline]
    pub fn plain_mut(&mut self, first: usize) -> Option<(&mut [Chain], &[GuestSlice<'m>])> {
        if self.has_lists {
            return None;
        }
        Some((self.chains.get_mut(first..)?, self.slices.get(first..)?))
    }

    /// Notes how many bytes were written to the buffers of chain number `n`, for when it is completed.
    #[inline]
    pub fn set_written(&mut self, n: usize, len: u32) {
        self.chains[n].len = len;
    }

    /// Notes that chain number `n` continues what begins in the chain before it, as the further buffers of a frame do:
    /// the driver must not see the first without the rest.
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

    /// The buffers of the chains from number `first` on with `spare` behind them, handed to `with`;
    /// `None` if there is no room for the spare one.
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

    /// Number of descriptors walked for chains of more than one buffer, those that were put back included.
    #[inline]
    #[must_use]
    pub const fn walked(&self) -> u32 {
        self.walked
    }

    /// Whether the burst has used up [`BURST_DESCRIPTORS_MAX`]. Further chains come with the next burst.
    #[inline]
    pub(crate) const fn is_spent(&self) -> bool {
        self.walked >= BURST_DESCRIPTORS_MAX
    }

    /// How many chains there are.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.chains.len()
    }

    /// Whether there are none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }
}

/// The guest is at fault with one chain: it is given back with length 0, and the ring goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainFault {
    /// A buffer is not, or not wholly, guest memory, or its address and length wrap 64 bits.
    Unmapped,
    /// A buffer of the wrong direction.
    WrongDirection,
    /// More than [`CHAIN_SLICES_MAX`] pieces.
    TooManySlices,
}

/// The guest broke the ring: it stops until the driver resets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The available index is further ahead than the ring is long.
    #[error("the available index moved to {index}, {ahead} entries ahead in a ring of {size}")]
    AvailableJump {
        /// The index that the driver wrote.
        index: u16,
        /// How far ahead of ours it is.
        ahead: u16,
        /// The ring's size.
        size: u16,
    },
    /// A head or next index that is no descriptor of this table.
    #[error("descriptor index {index} in a table of {size}")]
    Index {
        /// The index.
        index: u32,
        /// How many descriptors the table has.
        size: u32,
    },
    /// The chain has more descriptors than its table: it loops.
    #[error("a descriptor chain longer than its table of {size}: it loops")]
    Loop {
        /// How many descriptors the table has.
        size: u32,
    },
    /// The chain has more descriptors than a chain may have, direct and indirect ones together.
    #[error(
        "a descriptor chain of more than {limit} descriptors; expected no more than the ring has, or 1024 in a smaller \
         ring"
    )]
    TooManyDescriptors {
        /// The most that it may have.
        limit: u32,
    },
    /// The chain's buffers add up to 2^32 bytes or more (2.7.5: forbidden).
    #[error("a descriptor chain of {len} bytes; the limit is 2^32")]
    TooLong {
        /// The sum of lengths.
        len: u64,
    },
    /// An indirect descriptor although the feature was not negotiated.
    #[error("an indirect descriptor without VIRTIO_F_INDIRECT_DESC negotiated")]
    IndirectNotNegotiated,
    /// An indirect descriptor together with NEXT, or inside an indirect table (2.7.5.3.1: forbidden).
    #[error("an indirect descriptor inside a table, or together with NEXT")]
    IndirectNested,
    /// An indirect table whose length is 0 or no multiple of 16.
    #[error("an indirect table of {len} bytes; expected a multiple of 16, not 0")]
    IndirectLength {
        /// The table's length in bytes.
        len: u32,
    },
    /// An indirect table that is not in one region of guest memory.
    #[error("an indirect table at {address:#x} with {len} bytes, which is not guest memory")]
    IndirectUnmapped {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        len: u32,
    },
}

/// Collects the buffers of one chain, whatever its format, off the fast path.
///
/// A descriptor of no bytes is taken and has no slice: the specification does not forbid it, and Linux's vhost and
/// DPDK's take it (QEMU's own devices break the queue). It counts towards the limits of the chain and of the
/// burst like any other. A chain of such descriptors only has length 0; the device gives it back and counts it.
pub(crate) struct Collect<'w, 'm> {
    memory: &'m GuestMemory,
    cursor: &'w mut Cursor,
    chains: &'w mut Chains<'m>,
    access: Access,
    first: usize,
    len: u64,
    fault: Option<ChainFault>,
}

impl<'w, 'm> Collect<'w, 'm> {
    pub(crate) const fn new(
        memory: &'m GuestMemory,
        cursor: &'w mut Cursor,
        chains: &'w mut Chains<'m>,
        access: Access,
    ) -> Self {
        let first = chains.slices.len();
        Self { memory, cursor, chains, access, first, len: 0, fault: None }
    }

    /// The bytes of an indirect table of descriptors of 16 bytes, and how many they are.
    pub(crate) fn table(&self, address: u64, len: u32) -> Result<(GuestSlice<'m>, u32), RingError> {
        if len == 0 || !len.is_multiple_of(16) {
            return Err(RingError::IndirectLength { len });
        }
        let unmapped = RingError::IndirectUnmapped { address, len };
        let bytes = self.memory.contiguous(address, len.into()).map_err(|_| unmapped)?;
        Ok((bytes, len / 16))
    }

    /// Takes one buffer into account. A chain with a fault is followed to its end all the same, because
    /// it may turn out to loop.
    pub(crate) fn buffer(&mut self, address: u64, len: u32, flags: u16) -> Result<(), RingError> {
        self.len += u64::from(len);
        if self.len > u64::from(u32::MAX) {
            return Err(RingError::TooLong { len: self.len });
        }
        if self.fault.is_some() {
            return Ok(());
        }
        if flags & DESC_F_WRITE != self.access.write_flag() {
            self.fault = Some(ChainFault::WrongDirection);
            return Ok(());
        }
        let slices = &mut self.chains.slices;
        let mut overflow = false;
        let translated = self.memory.translate(address, len.into(), self.cursor, |slice| {
            if !slice.is_empty() {
                overflow |= slices.try_push(slice).is_err();
            }
        });
        if translated.is_err() {
            self.fault = Some(ChainFault::Unmapped);
        } else if overflow {
            self.fault = Some(ChainFault::TooManySlices);
        }
        Ok(())
    }

    /// Forgets the buffers of a chain that broke the ring: nobody may take them for another chain's.
    pub(crate) fn forget(self) {
        self.chains.slices.truncate(self.first);
    }

    /// Adds the chain, for which `walked` descriptors were walked. Returns whether it was taken; if not, this burst has no
    /// room for it.
    #[expect(clippy::cast_possible_truncation, reason = "SLICES_MAX fits 16 bits, len was checked")]
    pub(crate) fn finish(self, id: u16, slots: u16, walked: u32) -> bool {
        let Self { chains, first, len, mut fault, .. } = self;
        let mut count = chains.slices.len() - first;
        // A descriptor that spans several regions costs as much as one for each region.
        chains.walked += walked.max(count as u32);
        if fault.is_none() && count > CHAIN_SLICES_MAX {
            fault = Some(ChainFault::TooManySlices);
        }
        if chains.chains.is_full()
            // The burst's earlier chains may be what filled the list: then this one comes again, alone.
            || (fault == Some(ChainFault::TooManySlices) && first > 0 && count <= CHAIN_SLICES_MAX)
        {
            chains.slices.truncate(first);
            return false;
        }
        if fault.is_some() {
            chains.slices.truncate(first);
            count = 0;
        }
        let (first, count, len) = (first as u16, count as u16, len as u32);
        let len = if fault.is_some() { 0 } else { len };
        chains.has_lists = true;
        chains.chains.push(Chain { id, slots, first, count, len, fault, joined: false });
        true
    }
}

/// Copies descriptor `index` of an indirect table out of guest memory, as two words.
pub(crate) fn table_entry(table: &GuestSlice<'_>, index: u32) -> [u64; 2] {
    let mut copy = [[0; 8]; 2];
    table.read(index as usize * 16, copy.as_flattened_mut());
    copy.map(u64::from_ne_bytes)
}
