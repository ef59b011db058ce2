//! A burst of frames from the guest.

use arrayvec::ArrayVec;
use burst_trace::{DropCause, DropCounts};
use guest_memory::{GuestMemory, GuestSlice};
use virtqueue::{Access, Broken, Chain, ChainFault, Slices, SplitQueue, Taken};

use crate::features::Negotiated;
use crate::{BURST_MAX, FRAME_LEN_MAX};

/// A chain of the burst: a frame, or one that cannot be sent.
#[derive(Clone, Copy, Debug)]
struct Entry {
    head: u16,
    fault: Option<DropCause>,
}

/// The chains of one burst, in the order the guest offered them.
#[derive(Debug, Default)]
pub struct TransmitBurst {
    entries: ArrayVec<Entry, BURST_MAX>,
    frames: ArrayVec<Chain, BURST_MAX>,
}

impl TransmitBurst {
    /// Takes up to [`BURST_MAX`] of the chains that are available, checks them and translates them.
    ///
    /// # Errors
    /// When the guest broke the ring. What was taken before must not be completed.
    #[inline]
    pub fn gather<'m>(
        &mut self,
        queue: &mut SplitQueue,
        memory: &'m GuestMemory,
        negotiated: Negotiated,
        slices: &mut Slices<'m>,
    ) -> Result<(), Broken> {
        let header_len = negotiated.header_len();
        while !self.entries.is_full() {
            match queue.take(memory, Access::Read, slices)? {
                None | Some(Taken::Full) => break,
                Some(Taken::Chain(chain)) => {
                    let fault = check_length(chain.len as usize, header_len);
                    if fault.is_none() {
                        self.frames.push(chain);
                    }
                    self.entries.push(Entry { head: chain.head, fault });
                }
                Some(Taken::Refused { head, fault }) => {
                    self.entries.push(Entry { head, fault: Some(cause(fault)) });
                }
            }
        }
        Ok(())
    }

    /// How many chains were taken, frames and faulty ones.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no chain was taken.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The frames, as a datapath takes them.
    #[inline]
    #[must_use]
    pub fn frames<'b>(
        &'b self,
        slices: &'b [GuestSlice<'b>],
        negotiated: Negotiated,
    ) -> Frames<'b> {
        Frames { slices, chains: &self.frames, header_len: negotiated.header_len() }
    }

    /// Gives the chains back to the guest, in order: those of the first `taken` frames and every faulty
    /// one before the next frame. The rest is put back and will be taken again. Faults are counted in
    /// `drops`. Returns how many chains were given back.
    #[inline]
    pub fn complete(&self, queue: &mut SplitQueue, taken: usize, drops: &mut DropCounts) -> u16 {
        #[expect(clippy::cast_possible_truncation, reason = "at most BURST_MAX")]
        let all = self.entries.len() as u16;
        let mut frames = 0;
        for (done, entry) in (0_u16..).zip(&self.entries) {
            match entry.fault {
                Some(cause) => drops.add(cause),
                None if frames < taken => frames += 1,
                None => {
                    queue.put_back(all - done);
                    return done;
                }
            }
            queue.complete(entry.head, 0);
        }
        all
    }
}

fn check_length(len: usize, header_len: usize) -> Option<DropCause> {
    if len <= header_len {
        Some(DropCause::TxTooShort)
    } else if len - header_len > FRAME_LEN_MAX {
        Some(DropCause::TxTooLong)
    } else {
        None
    }
}

const fn cause(fault: ChainFault) -> DropCause {
    match fault {
        ChainFault::Unmapped => DropCause::TxUnmapped,
        ChainFault::WrongDirection => DropCause::TxDirection,
        ChainFault::TooManySlices => DropCause::TxSegments,
    }
}

/// The frames of a burst, each with its net header before it.
#[derive(Clone, Copy, Debug)]
pub struct Frames<'b> {
    slices: &'b [GuestSlice<'b>],
    chains: &'b [Chain],
    header_len: usize,
}

impl<'b> Frames<'b> {
    /// How many frames there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.chains.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// The frames in order.
    pub fn iter(&self) -> impl Iterator<Item = Frame<'b>> + use<'b> {
        let Self { slices, chains, header_len } = *self;
        chains.iter().map(move |chain| Frame {
            slices: chain.of(slices),
            len: chain.len as usize,
            header_len,
        })
    }
}

/// A frame from the guest: net header, then the bytes for the wire. All of it is guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'b> {
    slices: &'b [GuestSlice<'b>],
    len: usize,
    header_len: usize,
}

impl<'b> Frame<'b> {
    /// Header and frame as they lie in guest memory.
    #[inline]
    #[must_use]
    pub const fn slices(&self) -> &'b [GuestSlice<'b>] {
        self.slices
    }

    /// Length in bytes, header not counted.
    #[inline]
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a frame is never empty: checked when taken")]
    pub const fn len(&self) -> usize {
        self.len - self.header_len
    }

    /// Copies the frame, without its header, to the front of `to`, which must hold it. Returns its
    /// length.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let (mut skip, mut copied) = (self.header_len, 0);
        for slice in self.slices {
            if skip >= slice.len() {
                skip -= slice.len();
                continue;
            }
            copied += slice.read(skip, &mut to[copied..]);
            skip = 0;
        }
        copied
    }
}
