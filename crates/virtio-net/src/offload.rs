//! Software GSO and checksum offload: a guest leaves checksums and segmentation to the device (virtio 1.2, 5.1.6.2). Both
//! are done while the frame is copied.
//!
//! [`SoftwareOffload::plan`] looks at copies of the net header and of the packet's headers, once, and refuses what makes no
//! sense. From then on the number of frames for the wire and the length of each are known, so that the caller can find
//! room for them; [`SoftwareOffload::write_next`] writes one after the other. A plan holds nothing of guest memory: it can be kept
//! for a later burst, as long as the frame's buffers stay what they are.
//!
//! `segments`: what TCP and UDP segmentation do to the headers.

mod segments;

use burst_trace::DropCause;
use guest_memory::{GuestSlice, Sum};

use crate::header::{GSO_NONE, NEEDS_CSUM, NetHeader};
use crate::run::{Copying, Place, copy_run, write_at};
use crate::transmit::Frame;
use segments::Segments;

/// The plan for one frame whose offloads are pending: the frames for the wire that it becomes. The default has no frames
/// to write.
///
/// It is large, because it holds all headers of a packet. Callers keep one and plan with [`replan`](Self::replan),
/// which does not move it.
#[derive(Clone, Debug, Default)]
pub struct SoftwareOffload {
    /// Bytes before the frame: the net header.
    skip: usize,
    /// Bytes of the frame.
    len: usize,
    /// How many frames for the wire are still to be written.
    left: usize,
    work: Work,
}

#[derive(Clone, Debug, Default)]
#[expect(
    clippy::large_enum_variant,
    reason = "no allocation a frame; a plain one leaves the bytes untouched"
)]
enum Work {
    /// Only a copy.
    #[default]
    Plain,
    /// What lies from `start` on is summed; the result goes to `field`. Both in bytes from the frame's start.
    Checksum { start: usize, field: usize },
    /// Several frames, or one.
    Segments(Segments),
}

impl SoftwareOffload {
    /// Plans for a frame of a guest.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    #[inline]
    pub fn plan_frame(header: &NetHeader, frame: &Frame<'_, '_>) -> Result<Self, DropCause> {
        Self::plan(header, frame.slices(), frame.header_len(), frame.len())
    }

    /// Plans for a frame of `len` bytes that begins at byte `skip` of the run `from`, which must hold it. `header` is a
    /// copy of its net header: the guest cannot change it any more.
    ///
    /// # Errors
    /// [`DropCause::TxBadNetHeader`] when the net header contradicts itself or points out of the frame;
    /// [`DropCause::TxUnsegmentable`] when the frame has not the headers that its net header names.
    #[inline]
    pub fn plan(
        header: &NetHeader,
        from: &[GuestSlice<'_>],
        skip: usize,
        len: usize,
    ) -> Result<Self, DropCause> {
        let mut offload = Self::default();
        offload.replan(header, from, skip, len)?;
        Ok(offload)
    }

    /// As [`plan`](Self::plan), in place of what was planned here before.
    ///
    /// # Errors
    /// As [`plan`](Self::plan); nothing is left to write then.
    #[inline]
    pub fn replan(
        &mut self,
        header: &NetHeader,
        from: &[GuestSlice<'_>],
        skip: usize,
        len: usize,
    ) -> Result<(), DropCause> {
        (self.skip, self.len, self.left) = (skip, len, 1);
        self.work = Work::Plain;
        if header.is_plain() { Ok(()) } else { self.plan_work(header, from) }
    }

    #[inline(never)]
    fn plan_work(&mut self, header: &NetHeader, from: &[GuestSlice<'_>]) -> Result<(), DropCause> {
        self.left = 0;
        let start = usize::from(header.csum_start);
        let field = start + usize::from(header.csum_offset);
        if header.flags & NEEDS_CSUM != 0 && field + size_of::<u16>() > self.len {
            return Err(DropCause::TxBadNetHeader);
        }
        if header.gso_type == GSO_NONE {
            (self.left, self.work) = (1, Work::Checksum { start, field });
        } else {
            let segments = Segments::plan(header, from, self.skip, self.len)?;
            (self.left, self.work) = (segments.count(), Work::Segments(segments));
        }
        Ok(())
    }

    /// Whether there is nothing to do but to copy the frame.
    #[inline]
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        matches!(self.work, Work::Plain)
    }

    /// How many frames for the wire are still to be written: 1 before the first one, unless there are segments. A guest
    /// that wants segments of a byte makes it 65 536.
    #[inline]
    #[must_use]
    pub const fn count(&self) -> usize {
        self.left
    }

    /// Length of the next of them in bytes, or 0 when there are no more. None that follows is longer.
    #[inline]
    #[must_use]
    pub const fn next_len(&self) -> usize {
        match &self.work {
            _ if self.left == 0 => 0,
            Work::Segments(segments) => segments.next_len(),
            _ => self.len,
        }
    }

    /// Writes the next frame for the wire at `offset` of the run `to`, which should have room for it: what does not fit
    /// is left out. `from` is the run that was planned for. Returns the frame's length.
    #[inline]
    pub fn write_next(
        &mut self,
        from: &[GuestSlice<'_>],
        to: &[GuestSlice<'_>],
        offset: usize,
    ) -> usize {
        let len = self.next_len();
        if self.left == 0 {
            return 0;
        }
        self.left -= 1;
        match &mut self.work {
            Work::Plain => copy_run(to, offset, from, self.skip),
            Work::Checksum { start, field } => {
                write_summed(from, self.skip, to, offset, [*start, *field, len]);
            }
            Work::Segments(segments) => segments.write_next(from, to, offset),
        }
        len
    }

    /// Leaves out the next `count` frames, because they were written before, or have no room anywhere.
    pub fn skip(&mut self, from: &[GuestSlice<'_>], count: usize) {
        let count = count.min(self.left);
        self.left -= count;
        if let Work::Segments(segments) = &mut self.work {
            segments.skip(from, count);
        }
    }
}

/// Progress through a frame that becomes several frames for the wire, when there was room for only some of them. The frame
/// comes again later, is planned again, and continues where it stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentProgress {
    /// Number of frames that were written before.
    written: usize,
}

impl SegmentProgress {
    /// After this number of frames.
    #[must_use]
    pub const fn after(written: usize) -> Self {
        Self { written }
    }

    /// Number of frames that were written before.
    #[must_use]
    pub const fn written(&self) -> usize {
        self.written
    }

    /// Skips the frames that were written before; `write` then writes as many of the rest as there is room for. `offload`
    /// was planned for the run `from` just now.
    #[inline]
    pub fn resume<T>(
        &mut self,
        offload: &mut SoftwareOffload,
        from: &[GuestSlice<'_>],
        write: impl FnOnce(&mut SoftwareOffload) -> T,
    ) -> T {
        let all = offload.count();
        offload.skip(from, self.written);
        let result = write(offload);
        let left = offload.count();
        self.written = if left > 0 { all - left } else { 0 };
        result
    }

    /// Starts again: the next frame is another one.
    pub const fn reset(&mut self) {
        self.written = 0;
    }
}

/// Copies a frame of `len` bytes, sums the bytes from `start` on, and stores the checksum at `field`.
#[inline(never)]
fn write_summed(
    from: &[GuestSlice<'_>],
    skip: usize,
    to: &[GuestSlice<'_>],
    offset: usize,
    [start, field, len]: [usize; 3],
) {
    let mut sum = Sum::new();
    if let ([to], [from]) = (to, from) {
        to.copy_from(offset, &from.part(skip, start), 0);
        to.copy_from_summing(offset + start, &from.part(skip + start, len - start), 0, &mut sum);
        to.write(offset + field, &never_zero(sum.complement()).to_be_bytes());
        return;
    }
    let mut copying =
        Copying { to, at: Place::of(to, offset), from, from_at: Place::of(from, skip) };
    copying.copy(start);
    copying.copy_summing(len - start, &mut sum);
    write_at(to, offset + field, &never_zero(sum.complement()).to_be_bytes());
}

/// A checksum that is not 0, which to UDP says that there is none (RFC 768); to the sum it is the same.
#[inline]
const fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}
