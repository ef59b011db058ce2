//! What a wrapper of a datapath needs of the room: to see the frames that were placed, and to lose one.
//!
//! All of it is off the hot path: without a wrapper, the limit is that of every burst, and nobody looks.

use burst_trace::DropCause;
use guest_memory::GuestSlice;

use super::place::COMPLETED_TOGETHER;
use super::{GuestRoom, Placed};
use crate::BURST_MAX;
use crate::features::{HEADER_LEN, NUM_BUFFERS};
use crate::run::read_front;
use crate::transmit::Frame;

/// A place in a burst: between what was placed before and what will be placed from here on.
#[derive(Clone, Copy, Debug)]
pub struct Mark(usize);

impl<'m> GuestRoom<'_, 'm> {
    /// How many frames the burst has so far, those among them that were dropped.
    #[inline]
    #[must_use]
    pub const fn frames(&self) -> usize {
        self.packets as usize + self.dropped as usize
    }

    /// Keeps all frames from the guest until the room is closed, so that they can be looked at: in a packed
    /// ring it would have the first of them back while the last ones are placed, and could write there.
    pub const fn keep(&mut self) {
        self.together = usize::MAX;
    }

    /// Marks this place of the burst.
    #[must_use]
    pub const fn mark(&self) -> Mark {
        Mark(self.done)
    }

    /// The frames that were placed since `mark`, in order. For a room that is [kept](Self::keep).
    ///
    /// How many buffers a frame has is read where the guest will read it. One that writes to buffers it has
    /// not got back yet can make two frames look like one, and nothing worse.
    pub fn placed_since(&self, mark: Mark) -> impl Iterator<Item = Frame<'_, 'm>> + use<'_, 'm> {
        let mut at = mark.0;
        std::iter::from_fn(move || self.next_placed(&mut at))
    }

    fn next_placed(&self, at: &mut usize) -> Option<Frame<'_, 'm>> {
        let chains = self.chains.all().get(..self.done)?;
        // Without a length are those that went back for a fault of their own.
        while chains.get(*at)?.len == 0 {
            *at += 1;
        }
        let (first, mut len) = (*at, 0);
        let header_len = self.negotiated.header_len();
        let mut left = self.buffers_of(first);
        while left > 0
            && let Some(chain) = chains.get(*at)
        {
            len += chain.len as usize;
            left -= u16::from(chain.len > 0);
            *at += 1;
        }
        (len > header_len)
            .then(|| Frame::new(self.chains.buffers_between(first, *at), len, header_len))
    }

    /// How many buffers the frame has that begins with chain number `first`.
    fn buffers_of(&self, first: usize) -> u16 {
        if !self.negotiated.mergeable() || self.negotiated.header_len() != HEADER_LEN {
            return 1;
        }
        let mut header = [0; HEADER_LEN];
        read_front(self.chains.buffers_between(first, self.done), &mut header);
        u16::from_le_bytes([header[NUM_BUFFERS], header[NUM_BUFFERS + 1]]).max(1)
    }

    /// Has the frame that comes after the next `frames` ones lost, and the burst end with it: for the datapath
    /// it is placed. Where the burst is not long enough for that, nothing is lost.
    pub fn lose_after(&mut self, frames: usize) {
        let limit = self.frames().saturating_add(frames);
        self.is_losing = limit < BURST_MAX;
        self.limit = limit.min(BURST_MAX);
    }

    /// Has no frame lost any more, and says whether one was.
    pub const fn lose_none(&mut self) -> bool {
        let lost = self.limit < BURST_MAX && !self.is_losing;
        self.is_losing = false;
        self.limit = BURST_MAX;
        lost
    }

    /// Loses a frame that was not placed, for this reason.
    pub fn lose(&mut self, cause: DropCause) {
        self.drop_frame(cause);
    }

    /// Whether a wrapper looks on, so that frames have to go one by one.
    #[inline]
    pub(super) const fn is_watched(&self) -> bool {
        self.together != COMPLETED_TOGETHER || self.limit != BURST_MAX
    }

    /// A finished frame comes when the burst is at its limit.
    #[cold]
    pub(super) fn place_at_limit(&mut self) -> Placed {
        if !self.is_losing {
            return Placed::NoRoom;
        }
        self.is_losing = false;
        self.drop_frame(DropCause::RxFault)
    }

    /// The same for one that has to be read.
    #[cold]
    pub(super) fn scatter_at_limit(
        &mut self,
        read: impl FnOnce(&[GuestSlice<'_>]) -> std::io::Result<usize>,
    ) -> std::io::Result<Placed> {
        if !self.is_losing {
            return Ok(Placed::NoRoom);
        }
        read(&[self.spare.slice()])?;
        self.is_losing = false;
        Ok(self.drop_frame(DropCause::RxFault))
    }
}
