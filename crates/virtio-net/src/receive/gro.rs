//! GRO: frames of one TCP flow are placed as one packet, which costs the guest as much as a single frame.

use guest_memory::GuestSlice;

use super::GuestRoom;
use crate::features::HEADER_LEN;
use crate::gro::{GroPacket, Link, Segment, may_be_tcp};
use crate::packet::Version;
use crate::run::write_at;

impl GuestRoom<'_, '_> {
    /// Whether the guest takes packets made of several frames, and [`disable_gro`](Self::disable_gro) was not called.
    #[inline]
    #[must_use]
    pub const fn takes_gro(&self) -> bool {
        let offloads = self.negotiated.guest_offloads();
        let takes_segments = offloads.checksum && (offloads.tso4 || offloads.tso6);
        !self.no_gro && takes_segments && self.negotiated.mergeable()
    }

    /// Places every frame of this burst by itself.
    pub const fn disable_gro(&mut self) {
        self.no_gro = true;
    }

    /// Places the first of `frames`, and the following ones that continue it, as one packet. Returns the number of
    /// frames in the packet. 0 if it would be fewer than two: then nothing was placed.
    ///
    /// `frames` are whole frames in host memory, in the order in which they arrived over `link`.
    #[inline]
    pub fn place_gro<'f>(
        &mut self,
        link: Link,
        mut frames: impl Iterator<Item = GuestSlice<'f>>,
    ) -> usize {
        let Some(first) = frames.next().filter(may_be_tcp) else { return 0 };
        if self.is_at_limit() || !self.takes_gro() {
            0
        } else {
            self.place_gro_of(link, &first, frames)
        }
    }

    #[inline(never)]
    fn place_gro_of<'f>(
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
        let mut packet = GroPacket::begin(first);
        for frame in frames {
            let Some(next) = Segment::find(&frame, link) else { break };
            let Some(len) = packet.len_with(&next) else { break };
            // Frames that the guest has no buffers for wait for a later burst: a packet is never held or split.
            if !self.open_window(HEADER_LEN + len) || self.window < HEADER_LEN + len {
                break;
            }
            packet.push(&next);
        }
        if packet.count() < 2 {
            return 0;
        }
        let whole = packet.len();
        if !packet.copy_payloads(self.window_slices(), HEADER_LEN) {
            self.mark_unused(HEADER_LEN + whole);
            // No more GRO in this burst: a flood of frames with wrong checksums must not cost a copy for each of them.
            self.no_gro = true;
            if packet.count() < 2 {
                return 0;
            }
        }
        let slices = self.window_slices();
        let header = packet.write_headers(slices, HEADER_LEN);
        write_at(slices, 0, &header.to_bytes());
        self.take_chains(HEADER_LEN + packet.len());
        self.count_frame(packet.len());
        packet.count()
    }
}
