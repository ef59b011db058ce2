//! Frames of one TCP flow, placed as one packet: it costs the guest as much as one frame does.

use guest_memory::GuestSlice;

use super::GuestRoom;
use crate::features::HEADER_LEN;
use crate::merge::{Link, Merge, Segment, may_be_tcp};
use crate::packet::Version;
use crate::run::write_at;

impl GuestRoom<'_, '_> {
    /// Whether the guest takes merged frames, and nobody has them [kept apart](Self::keep_apart).
    #[inline]
    #[must_use]
    pub const fn merges(&self) -> bool {
        let offloads = self.negotiated.guest_offloads();
        let takes_segments = offloads.checksum && (offloads.tso4 || offloads.tso6);
        !self.apart && takes_segments && self.negotiated.mergeable()
    }

    /// Has every frame of this burst placed by itself.
    pub const fn keep_apart(&mut self) {
        self.apart = true;
    }

    /// Places the first of `frames`, and those after it that go on where it ends, as one packet. Returns how many of them:
    /// 0 where there are not two at least, and nothing was placed then.
    ///
    /// `frames` are whole ones, in the order in which they came over `link`, and in memory of ours.
    #[inline]
    pub fn place_merged<'f>(
        &mut self,
        link: Link,
        mut frames: impl Iterator<Item = GuestSlice<'f>>,
    ) -> usize {
        let Some(first) = frames.next().filter(may_be_tcp) else { return 0 };
        if self.is_at_limit() || !self.merges() { 0 } else { self.merge(link, &first, frames) }
    }

    #[inline(never)]
    fn merge<'f>(
        &mut self,
        link: Link,
        first: &GuestSlice<'f>,
        frames: impl Iterator<Item = GuestSlice<'f>>,
    ) -> usize {
        let Some(first) = Segment::find(first, link) else { return 0 };
        let offloads = self.guest_offloads();
        let is_taken = match first.version() {
            Version::V4 => offloads.tso4,
            Version::V6 => offloads.tso6,
        };
        if !is_taken {
            return 0;
        }
        let mut merge = Merge::begin(first);
        for frame in frames {
            let Some(next) = Segment::find(&frame, link) else { break };
            let Some(len) = merge.len_with(&next) else { break };
            // What the guest has no buffers for is left to a burst that has: a packet is never held, nor torn.
            if !self.open_window(HEADER_LEN + len) || self.window < HEADER_LEN + len {
                break;
            }
            merge.push(&next);
        }
        if merge.count() < 2 {
            return 0;
        }
        if !merge.copy_payloads(self.window_slices(), HEADER_LEN) {
            // Whoever sends such frames, and many of them, must not have all the others looked at time and again.
            self.apart = true;
            if merge.count() < 2 {
                return 0;
            }
        }
        let slices = self.window_slices();
        let header = merge.write_headers(slices, HEADER_LEN);
        write_at(slices, 0, &header.to_bytes());
        self.take_chains(HEADER_LEN + merge.len());
        self.count_frame(merge.len());
        merge.count()
    }
}
