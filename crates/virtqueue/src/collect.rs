//! Chains of several buffers, off the fast path: followed, checked and translated.

use guest_memory::{GuestSlice, Translator};

use crate::chain::{Access, CHAIN_SLICES_MAX, Chain, Chains};
use crate::error::{ChainFault, RingError};
use crate::layout::DESC_F_WRITE;

/// Most descriptors of a chain in a ring that is smaller than this. A driver must not make a chain longer than the ring
/// (virtio 1.2, 2.7.5.3.1 and 2.8.19), but some do, because QEMU's own devices accept this many
/// (`VIRTQUEUE_MAX_SIZE` in include/hw/virtio/virtio.h).
const CHAIN_DESCRIPTORS: u32 = 1024;

/// Most descriptors of a chain in a ring of `size`, direct and indirect ones together.
pub(crate) fn chain_limit(size: u16) -> u32 {
    CHAIN_DESCRIPTORS.max(size.into())
}

/// A chain that was followed to its end.
#[derive(Clone, Copy)]
pub(crate) struct Followed {
    /// Goes back to the driver: the head's index (split), or the buffer id (packed).
    pub(crate) id: u16,
    /// Entries of the ring that it fills.
    pub(crate) slots: u16,
    /// Descriptors with buffers.
    pub(crate) walked: u32,
}

/// Adds one chain to `chains`: `follow` hands its buffers to the collector one by one. Returns the number of ring
/// entries taken; 0 if this burst has no room for the chain.
///
/// # Errors
/// When the guest broke the ring. No buffer of the chain is left in `chains` then.
#[inline]
pub(crate) fn collect<'m>(
    translator: &mut Translator<'m>,
    access: Access,
    chains: &mut Chains<'m>,
    follow: impl FnOnce(&mut Collect<'_, 'm>) -> Result<Followed, RingError>,
) -> Result<u16, RingError> {
    if chains.is_spent() {
        return Ok(0);
    }
    let first = chains.slices.len();
    chains.first_written = None;
    let mut collect = Collect { translator, chains, access, first, len: 0, fault: None };
    match follow(&mut collect) {
        Ok(chain) => Ok(if collect.add(chain) { chain.slots } else { 0 }),
        Err(error) => {
            collect.chains.slices.truncate(first);
            Err(error)
        }
    }
}

/// Collects the buffers of one chain, in either format.
///
/// A descriptor of 0 bytes is accepted and has no slice: the specification does not forbid it, and the vhost of Linux
/// and DPDK accept it (QEMU's own devices break the queue). It counts towards the limits of the chain and of the burst.
/// A chain of only such descriptors has length 0; the device gives it back and counts it.
pub(crate) struct Collect<'w, 'm> {
    translator: &'w mut Translator<'m>,
    chains: &'w mut Chains<'m>,
    access: Access,
    first: usize,
    len: u64,
    fault: Option<ChainFault>,
}

impl<'m> Collect<'_, 'm> {
    /// The bytes of an indirect table, and the number of its descriptors of 16 bytes.
    pub(crate) fn table(&self, address: u64, len: u32) -> Result<(GuestSlice<'m>, u32), RingError> {
        if len == 0 || !len.is_multiple_of(16) {
            return Err(RingError::IndirectLength { len });
        }
        let unmapped = RingError::IndirectUnmapped { address, len };
        let bytes =
            self.translator.memory().contiguous(address, len.into()).map_err(|_| unmapped)?;
        Ok((bytes, len / 16))
    }

    /// Adds one buffer. A chain with a fault is followed to its end nevertheless: it may loop, which breaks the ring.
    pub(crate) fn buffer(&mut self, address: u64, len: u32, flags: u16) -> Result<(), RingError> {
        self.len += u64::from(len);
        if self.len > u64::from(u32::MAX) {
            return Err(RingError::TooLong { len: self.len });
        }
        if self.fault.is_some() {
            return Ok(());
        }
        if !self.is_right_direction(flags) {
            self.fault = Some(ChainFault::WrongDirection);
            return Ok(());
        }
        let slices = &mut self.chains.slices;
        let mut overflow = false;
        let translated = self.translator.translate(address, len.into(), |slice| {
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

    /// Whether a buffer with these flags may come next.
    fn is_right_direction(&mut self, flags: u16) -> bool {
        let flag = flags & DESC_F_WRITE;
        if self.access != Access::ReadThenWrite {
            return flag == self.access.write_flag();
        }
        if flag == 0 {
            return self.chains.first_written.is_none();
        }
        #[expect(clippy::cast_possible_truncation, reason = "SLICES_MAX fits 16 bits")]
        let next = self.chains.slices.len() as u16;
        self.chains.first_written.get_or_insert(next);
        true
    }

    /// Adds the chain. Returns whether this burst had room for it.
    #[expect(clippy::cast_possible_truncation, reason = "SLICES_MAX fits 16 bits, len was checked")]
    fn add(self, chain: Followed) -> bool {
        let Followed { id, slots, walked } = chain;
        let Self { chains, first, len, mut fault, .. } = self;
        let mut count = chains.slices.len() - first;
        // A descriptor that spans several regions counts once for each.
        chains.walked += walked.max(count as u32);
        if fault.is_none() && count > CHAIN_SLICES_MAX {
            fault = Some(ChainFault::TooManySlices);
        }
        if chains.chains.is_full()
            // Earlier chains of the burst may have filled the list: then this one comes again, first in its burst.
            || (fault == Some(ChainFault::TooManySlices) && first > 0 && count <= CHAIN_SLICES_MAX)
        {
            chains.slices.truncate(first);
            return false;
        }
        if fault.is_some() {
            chains.slices.truncate(first);
            chains.first_written = None;
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
