//! A descriptor chain, copied, checked and translated; and how a guest can get it wrong.

use arrayvec::ArrayVec;
use guest_memory::{Cursor, GuestMemory, GuestSlice};

use crate::layout::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESCRIPTOR_LEN, Descriptor};

/// The most slices that the chains of one burst may have together.
pub const SLICES_MAX: usize = 2048;
/// The most slices of one chain: what one `readv` or `writev` takes (`UIO_MAXIOV` is 1024), less one for
/// the spare room that receiving adds.
pub const CHAIN_SLICES_MAX: usize = 1023;

/// The checked buffers of a burst's chains, one after the other.
pub type Slices<'m> = ArrayVec<GuestSlice<'m>, SLICES_MAX>;

/// What the device wants to do with a chain's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The device reads: every descriptor must be without `DESC_F_WRITE`.
    Read,
    /// The device writes: every descriptor must have `DESC_F_WRITE`.
    Write,
}

/// A chain that may be used: `slices[first..first + count]` are its buffers, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The descriptor index that goes back to the driver in the used ring.
    pub head: u16,
    /// Where its slices begin.
    pub first: u16,
    /// How many slices it has.
    pub count: u16,
    /// Their bytes in total.
    pub len: u32,
}

impl Chain {
    /// The chain's part of `slices`.
    #[inline]
    #[must_use]
    pub fn of<'s, 'm>(&self, slices: &'s [GuestSlice<'m>]) -> &'s [GuestSlice<'m>] {
        &slices[usize::from(self.first)..usize::from(self.first) + usize::from(self.count)]
    }
}

/// What taking the next available chain gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// A chain that may be used.
    Chain(Chain),
    /// A chain that may not: give `head` back with length 0 and count the fault.
    Refused {
        /// The chain's head.
        head: u16,
        /// What is wrong with it.
        fault: ChainFault,
    },
    /// No room for its slices in this burst. It was not taken.
    Full,
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
pub enum Broken {
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

/// Follows one chain and collects its buffers.
pub(crate) struct Walk<'w, 'm> {
    pub(crate) memory: &'m GuestMemory,
    pub(crate) cursor: &'w mut Cursor,
    pub(crate) slices: &'w mut Slices<'m>,
    pub(crate) access: Access,
    pub(crate) indirect_negotiated: bool,
}

impl<'m> Walk<'_, 'm> {
    /// Follows the chain that begins at `head` of a direct table of `size`, of which `read` copies a
    /// descriptor.
    #[inline]
    pub(crate) fn follow(
        mut self,
        head: u16,
        size: u16,
        read: impl Fn(u16) -> Descriptor,
    ) -> Result<Taken, Broken> {
        let first = self.slices.len();
        let mut state = State { len: 0, fault: None };
        let mut index = head;
        let mut left = size;
        loop {
            if index >= size {
                return Err(Broken::Index { index: index.into(), size: size.into() });
            }
            if left == 0 {
                return Err(Broken::Loop { size: size.into() });
            }
            left -= 1;
            let descriptor = read(index);
            if descriptor.flags & DESC_F_INDIRECT != 0 {
                self.follow_indirect(descriptor, &mut state)?;
                break;
            }
            self.buffer(descriptor, &mut state)?;
            if descriptor.flags & DESC_F_NEXT == 0 {
                break;
            }
            index = descriptor.next;
        }
        Ok(self.finish(head, first, &state))
    }

    /// Follows an indirect table (2.7.5.3). The table is read where it lies: each descriptor is copied
    /// once, checked and used.
    fn follow_indirect(&mut self, table: Descriptor, state: &mut State) -> Result<(), Broken> {
        if !self.indirect_negotiated {
            return Err(Broken::IndirectNotNegotiated);
        }
        if table.flags & DESC_F_NEXT != 0 {
            return Err(Broken::IndirectNested);
        }
        if table.len == 0 || !(table.len as usize).is_multiple_of(DESCRIPTOR_LEN) {
            return Err(Broken::IndirectLength { len: table.len });
        }
        let unmapped = Broken::IndirectUnmapped { address: table.address, len: table.len };
        let bytes =
            self.memory.contiguous(table.address, table.len.into()).map_err(|_| unmapped)?;
        #[expect(clippy::cast_possible_truncation, reason = "a u32 length divided by 16")]
        let size = (bytes.len() / DESCRIPTOR_LEN) as u32;
        let mut index = 0_u32;
        // `next` has 16 bits: a longer walk goes in circles, however large the guest made the table.
        let mut left = size.min(1 << 16);
        loop {
            if index >= size {
                return Err(Broken::Index { index, size });
            }
            if left == 0 {
                return Err(Broken::Loop { size });
            }
            left -= 1;
            let mut copy = [0; DESCRIPTOR_LEN];
            bytes.read(index as usize * DESCRIPTOR_LEN, &mut copy);
            let descriptor = descriptor_of(copy);
            if descriptor.flags & DESC_F_INDIRECT != 0 {
                return Err(Broken::IndirectNested);
            }
            self.buffer(descriptor, state)?;
            if descriptor.flags & DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next.into();
        }
    }

    /// Takes one buffer into account. A chain with a fault is followed to its end all the same, because
    /// it may turn out to loop.
    #[inline]
    fn buffer(&mut self, descriptor: Descriptor, state: &mut State) -> Result<(), Broken> {
        state.len += u64::from(descriptor.len);
        if state.len > u64::from(u32::MAX) {
            return Err(Broken::TooLong { len: state.len });
        }
        if state.fault.is_some() {
            return Ok(());
        }
        if (descriptor.flags & DESC_F_WRITE != 0) != (self.access == Access::Write) {
            state.fault = Some(ChainFault::WrongDirection);
            return Ok(());
        }
        let slices = &mut *self.slices;
        let mut overflow = false;
        let translated = self.memory.translate(
            descriptor.address,
            descriptor.len.into(),
            self.cursor,
            |slice| {
                if !slice.is_empty() {
                    overflow |= slices.try_push(slice).is_err();
                }
            },
        );
        if translated.is_err() {
            state.fault = Some(ChainFault::Unmapped);
        } else if overflow {
            state.fault = Some(ChainFault::TooManySlices);
        }
        Ok(())
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "SLICES_MAX fits 16 bits, len was checked")]
    fn finish(self, head: u16, first: usize, state: &State) -> Taken {
        let count = self.slices.len() - first;
        let fault = match state.fault {
            None if count <= CHAIN_SLICES_MAX => {
                let (first, count) = (first as u16, count as u16);
                return Taken::Chain(Chain { head, first, count, len: state.len as u32 });
            }
            None => ChainFault::TooManySlices,
            Some(fault) => fault,
        };
        self.slices.truncate(first);
        // The burst's earlier chains may be what filled the list: then this one comes again, alone.
        if fault == ChainFault::TooManySlices && first > 0 && count <= CHAIN_SLICES_MAX {
            return Taken::Full;
        }
        Taken::Refused { head, fault }
    }
}

struct State {
    len: u64,
    fault: Option<ChainFault>,
}

fn descriptor_of(bytes: [u8; DESCRIPTOR_LEN]) -> Descriptor {
    let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
    let words = [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes(rest)];
    Descriptor::from_words(words)
}
