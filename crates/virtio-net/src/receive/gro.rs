//! GRO: frames of one TCP or UDP flow are placed as one packet, which costs the guest as much as a single frame.

use arrayvec::ArrayVec;
use guest_memory::{GuestSlice, Sum};

use super::GuestRoom;
use crate::BURST_MAX;
use crate::arrival::FRONT;
use crate::features::HEADER_LEN;
use crate::gro::{GroPacket, Link, RIGHT, Segment};
use crate::run::{Copying, Place, write_at};

/// Whether a frame may be TCP or UDP. A cheap check, because every frame passes it.
#[inline]
fn may_be_segment(frame: &GuestSlice<'_>) -> bool {
    let Some(front) = frame.read_front::<24>() else { return false };
    match [front[12], front[13]] {
        [0x08, 0x00] => matches!(front[23], 6 | 17),
        [0x86, 0xdd] => matches!(front[20], 6 | 17),
        // Behind a VLAN tag it can be anything.
        [0x81, 0x00] | [0x88, 0xa8] => true,
        _ => false,
    }
}

/// The payload of a segment.
#[derive(Clone, Copy, Debug)]
struct Part<'f> {
    bytes: GuestSlice<'f>,
    /// Sum of the other bytes that the checksum of TCP or UDP covers; `None` if the checksum is partial.
    sum: Option<Sum>,
}

/// The segment in a frame that arrived over `link`, if its headers allow GRO, and its payload.
#[inline]
fn segment<'f>(frame: &GuestSlice<'f>, link: Link) -> Option<(Segment, Part<'f>)> {
    let mut headers = [0; FRONT];
    let copied = frame.read(0, &mut headers);
    let segment = Segment::find(headers, copied, frame.len(), link.mtu)?;
    let is_partial = link.leaves_offloads && segment.has_partial_checksum();
    let bytes = frame.part(segment.packet().payload_at, segment.payload());
    let part = Part { bytes, sum: (!is_partial).then(|| segment.sum_before_payload()) };
    Some((segment, part))
}

/// Copies the payloads of `packet` into it. It begins at `offset` of the run `to`. At a segment with a wrong checksum the
/// packet ends before that segment. Returns whether all checksums were right.
fn copy_payloads(
    packet: &mut GroPacket,
    parts: &[Part<'_>],
    to: &[GuestSlice<'_>],
    offset: usize,
) -> bool {
    let mut at = Place::of(to, offset + packet.headers_len());
    for (n, Part { bytes, sum }) in parts.iter().enumerate() {
        let from = [*bytes];
        let mut copying = Copying { to, at, from: &from, from_at: Place::default() };
        if let Some(mut sum) = *sum {
            copying.copy_summing(bytes.len(), &mut sum);
            if sum.fold() != RIGHT {
                packet.end_before(n);
                return false;
            }
        } else {
            copying.copy(bytes.len());
        }
        at = copying.at;
    }
    true
}

impl GuestRoom<'_, '_> {
    /// Whether the guest takes packets made of several frames, and [`disable_gro`](Self::disable_gro) was not called.
    #[inline]
    #[must_use]
    pub const fn takes_gro(&self) -> bool {
        let offloads = self.negotiated.guest_offloads();
        let takes_segments = offloads.checksum && (offloads.tso4 || offloads.tso6 || offloads.uso);
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
        let Some(first) = frames.next().filter(may_be_segment) else { return 0 };
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
        let Some((first, part)) = segment(first, link) else { return 0 };
        if !first.is_for(self.guest_offloads()) {
            return 0;
        }
        let mut parts: ArrayVec<_, BURST_MAX> = ArrayVec::from_iter([part]);
        let mut packet = GroPacket::begin(first);
        for frame in frames {
            let Some((next, part)) = segment(&frame, link) else { break };
            let Some(len) = packet.len_with(&next) else { break };
            // Frames that the guest has no buffers for wait for a later burst: a packet is never held or split.
            if !self.open_window(HEADER_LEN + len) || self.window < HEADER_LEN + len {
                break;
            }
            packet.push(&next);
            parts.push(part);
        }
        if packet.count() < 2 {
            return 0;
        }
        let whole = packet.len();
        if !copy_payloads(&mut packet, &parts, self.window_slices(), HEADER_LEN) {
            self.mark_unused(HEADER_LEN + whole);
            // No more GRO in this burst: a flood of frames with wrong checksums must not cost a copy for each of them.
            self.no_gro = true;
            if packet.count() < 2 {
                return 0;
            }
        }
        let slices = self.window_slices();
        let (headers, header) = packet.headers();
        write_at(slices, HEADER_LEN, &headers[..packet.headers_len()]);
        write_at(slices, 0, &header.to_bytes());
        self.take_chains(HEADER_LEN + packet.len());
        self.count_frame(packet.len());
        packet.count()
    }
}
