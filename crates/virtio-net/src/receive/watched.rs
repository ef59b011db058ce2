//! The room as wrappers of a datapath use it: they read placed frames, or lose one on purpose.
//!
//! Nothing here is on the hot path. Without a wrapper the limit is [`BURST_MAX`], and placed frames are not read.

use burst_trace::DropCause;
use guest_memory::GuestSlice;

use super::place::COMPLETED_TOGETHER;
use super::{GuestRoom, Placed};
use crate::BURST_MAX;
use crate::features::{HEADER_LEN, NUM_BUFFERS};
use crate::run::read_front;
use crate::transmit::Frame;

/// A position in a burst: between the frames placed before it and those placed after it.
#[derive(Clone, Copy, Debug)]
pub struct Mark(usize);

impl<'m> GuestRoom<'_, 'm> {
    /// Number of frames in the burst so far, dropped ones included.
    #[inline]
    #[must_use]
    pub const fn frames(&self) -> usize {
        self.packets as usize + self.dropped as usize
    }

    /// Withholds all frames from the guest until the room is closed, so that they can be read. Otherwise, in a packed
    /// ring, the guest would get the first frames back while the last ones are placed, and could write to them.
    pub const fn keep(&mut self) {
        self.together = usize::MAX;
    }

    /// Returns the current position in the burst.
    #[must_use]
    pub const fn mark(&self) -> Mark {
        Mark(self.done)
    }

    /// The frames placed since `mark`, in order. Call [`keep`](Self::keep) first.
    ///
    /// The number of buffers of a frame is read from its header in guest memory. A guest that writes to buffers before
    /// it gets them back can make two frames look like one, and nothing worse.
    pub fn placed_since(&self, mark: Mark) -> impl Iterator<Item = Frame<'_, 'm>> + use<'_, 'm> {
        let mut at = mark.0;
        std::iter::from_fn(move || self.next_placed(&mut at))
    }

    fn next_placed(&self, at: &mut usize) -> Option<Frame<'_, 'm>> {
        let chains = self.chains.all().get(..self.done)?;
        // Chains of length 0 went back unused, because they were empty or faulty.
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

    /// Number of buffers of the frame that begins with chain number `first`.
    fn buffers_of(&self, first: usize) -> u16 {
        if !self.negotiated.mergeable() || self.negotiated.header_len() != HEADER_LEN {
            return 1;
        }
        let mut header = [0; HEADER_LEN];
        read_front(self.chains.buffers_between(first, self.done), &mut header);
        u16::from_le_bytes([header[NUM_BUFFERS], header[NUM_BUFFERS + 1]]).max(1)
    }

    /// Requests that the frame after the next `frames` ones be lost, and that the burst end with it. To the datapath it
    /// looks placed. If the burst is too short for that, no frame is lost.
    pub fn lose_after(&mut self, frames: usize) {
        let limit = self.frames().saturating_add(frames);
        self.is_losing = limit < BURST_MAX;
        self.limit = limit.min(BURST_MAX);
    }

    /// Ends the request of [`lose_after`](Self::lose_after). Returns whether a frame was lost.
    pub const fn lose_none(&mut self) -> bool {
        let lost = self.limit < BURST_MAX && !self.is_losing;
        self.is_losing = false;
        self.limit = BURST_MAX;
        lost
    }

    /// Counts a frame that was not placed as dropped for `cause`.
    pub fn lose(&mut self, cause: DropCause) {
        self.drop_frame(cause);
    }

    /// Whether a wrapper reads frames or loses one: then frames are placed one by one.
    #[inline]
    pub(super) const fn is_watched(&self) -> bool {
        self.together != COMPLETED_TOGETHER || self.limit != BURST_MAX
    }

    /// Handles a frame of known length when the burst is at its limit: it finds no room, or it is the one to be lost.
    #[cold]
    pub(super) fn place_at_limit(&mut self) -> Placed {
        if !self.is_losing {
            return Placed::NoRoom;
        }
        self.is_losing = false;
        self.drop_frame(DropCause::RxFault)
    }

    /// As [`place_at_limit`](Self::place_at_limit), for a frame that has to be read from the kernel first.
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
