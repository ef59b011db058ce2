//! GRO from the guest to the wire: consecutive frames of one flow become one packet, so that one system call carries them.
//!
//! Payloads stay in guest memory. The headers are copied from the guest once, checked, completed, and handed over in our own
//! memory. A full checksum is verified against the payload as it is then; if the guest changes the payload later, the
//! receiver gets the changed one with a right checksum, as from any sender that changes its mind before it sends.
//!
//! Where frames of several flows come in turn, those of each flow are taken together, out of their order ([`flows`]). Nothing waits
//! for a frame, and no frame passes another one of its flow.

use arrayvec::ArrayVec;
use guest_memory::{GuestSlice, Spare};

use super::flows::{self, Lanes};
use super::{Frame, Frames};
use crate::BURST_MAX;
use crate::arrival::FRONT;
use crate::features::{HEADER_LEN, Offloads};
use crate::gro::{GroPacket, RIGHT, Segment};
use crate::header::{GSO_NONE, NEEDS_CSUM, NetHeader};
use crate::run::Place;

/// Most buffers of a packet. The kernel takes 1024 (`UIO_MAXIOV`); 64 frames of a guest have one or two each.
const BUFFERS_MAX: usize = 256;
/// Longest packet, bytes with its link header: network cards take up to this (`GSO_LEGACY_MAX_SIZE` of
/// `linux/netdevice.h`), and a longer one would be segmented in software.
const LEN_MAX: usize = 65_535;

/// The packets that a datapath takes.
#[derive(Debug)]
pub struct TransmitGro {
    offloads: Offloads,
    /// Room for the headers of one packet.
    headers: Spare,
}

impl TransmitGro {
    /// For a datapath that takes packets with these offloads.
    #[must_use]
    pub fn new(offloads: Offloads) -> Self {
        Self { offloads, headers: Spare::new(HEADER_LEN + FRONT) }
    }

    /// A burst in steps. `mtu`: largest payload of a link frame, bytes. Longer frames go alone, because a segment's length is
    /// not checked on the way. `sorts`: whether flows may pass each other.
    #[inline]
    #[must_use]
    pub fn burst<'b>(&'b self, frames: Frames<'b, 'b>, mtu: u16, sorts: bool) -> GroBurst<'b> {
        let is_off = !self.offloads.checksum;
        GroBurst {
            gro: self,
            mtu,
            rest: frames,
            found: 0,
            len: 0,
            buffers: ArrayVec::new(),
            lanes: Lanes::new(),
            sorts,
            has_group: false,
            group: frames.take(0),
            is_off,
        }
    }
}

/// The next frames of a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroStep {
    /// Each of this number of frames goes alone.
    Alone(usize),
    /// This number of frames goes as one packet, which [`GroBurst::packet`] returns.
    Together(usize),
    /// This number of frames goes by their flows, as [`GroBurst::next_of_group`] says.
    Sorted(usize),
}

/// A burst whose frames are joined where they can be.
#[derive(Debug)]
pub struct GroBurst<'b> {
    gro: &'b TransmitGro,
    mtu: u16,
    /// Frames that no step had yet.
    rest: Frames<'b, 'b>,
    /// Number of frames, first of the rest, for which `buffers` was filled; 0 for none.
    found: usize,
    /// Bytes of their frames.
    len: usize,
    /// The packet: its headers, and the payloads of its frames.
    buffers: ArrayVec<GuestSlice<'b>, BUFFERS_MAX>,
    /// The frames of a group by their flows.
    lanes: Lanes,
    /// Whether groups are made.
    sorts: bool,
    /// Whether the first of the rest are a group.
    has_group: bool,
    /// The group of the last step.
    group: Frames<'b, 'b>,
    /// No frames are joined any more. A flood of frames with wrong checksums must not cost a sum for each of them.
    is_off: bool,
}

impl<'b> GroBurst<'b> {
    /// The next step; `None` after the last frame.
    #[inline]
    pub fn next_step(&mut self) -> Option<GroStep> {
        if self.found == 0 && !self.has_group {
            let alone = self.find();
            if alone > 0 {
                self.rest = self.rest.skip(alone);
                return Some(GroStep::Alone(alone));
            }
        }
        if self.found > 0 {
            return Some(self.together());
        }
        if !std::mem::take(&mut self.has_group) {
            return None;
        }
        let count = self.lanes.len();
        self.group = self.rest.take(count);
        self.rest = self.rest.skip(count);
        Some(GroStep::Sorted(count))
    }

    /// The next frames of a group, by their numbers in it: several that go as one packet, which [`packet`](Self::packet) returns, or
    /// one that goes alone; none after the last.
    pub fn next_of_group(&mut self) -> ArrayVec<u8, BURST_MAX> {
        let mut places = self.lanes.first();
        if places.len() > 1 && !self.is_off {
            let group = self.group;
            self.join(places.iter().filter_map(|at| group.get((*at).into())));
        }
        places.truncate(std::mem::take(&mut self.found).max(1));
        self.lanes.advance(places.len());
        places
    }

    fn together(&mut self) -> GroStep {
        let count = std::mem::take(&mut self.found);
        self.rest = self.rest.skip(count);
        GroStep::Together(count)
    }

    /// The packet of the last step, with its net header.
    #[inline]
    #[must_use]
    pub fn packet(&self) -> &[GuestSlice<'b>] {
        &self.buffers
    }

    /// Bytes of the frames in the packet of the last step, without net headers.
    #[inline]
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.len
    }

    /// Looks for frames that go together. Returns the number of frames before them.
    #[inline]
    fn find(&mut self) -> usize {
        let count = self.rest.len();
        if self.is_off || count < 2 {
            return count;
        }
        let mut front: Option<Front> = None;
        self.lanes.clear();
        for (n, frame) in self.rest.iter().enumerate() {
            let next = Front::of(&frame);
            if let (Some(front), Some(next)) = (&front, &next)
                && !self.lanes.is_mixed()
                && front.is_flow_of(next)
            {
                self.join(self.rest.skip(n - 1).iter());
                if self.found > 0 {
                    return n - 1;
                }
                if self.is_off {
                    return count;
                }
            }
            if self.sorts {
                let flow = next.and_then(|next| flows::flow_of(&next.bytes(), &frame));
                if flow.is_none_or(|flow| !self.lanes.take(flow)) {
                    if self.lanes.is_mixed() {
                        self.has_group = true;
                        return n - self.lanes.len();
                    }
                    self.lanes.clear();
                    flow.map(|flow| self.lanes.take(flow));
                }
            }
            front = next;
        }
        self.has_group = self.lanes.is_mixed();
        if self.has_group { count - self.lanes.len() } else { count }
    }

    /// Joins the first of `frames` with those that continue it. `found` is then their number, or stays 0.
    #[inline(never)]
    fn join(&mut self, mut frames: impl Iterator<Item = Frame<'b, 'b>>) {
        self.buffers.clear();
        self.buffers.push(self.gro.headers.slice());
        let Some(first) = frames.next() else { return };
        let Some((segment, is_verified)) = self.segment(&first) else { return };
        if !self.push_payload(&first, &segment) {
            return;
        }
        let mut packet = GroPacket::begin(segment);
        for frame in frames {
            let Some((next, is_partial)) = self.segment(&frame) else { break };
            if packet.len_with(&next).is_none_or(|len| len > LEN_MAX) {
                break;
            }
            // The first one's payload is summed only when another one continues it.
            if packet.count() == 1 && !is_verified && !self.is_right(packet.first(), 1) {
                return;
            }
            let before = self.buffers.len();
            if !self.push_payload(&frame, &next) {
                break;
            }
            if !is_partial && !self.is_right(&next, before) {
                self.buffers.truncate(before);
                break;
            }
            packet.push(&next);
        }
        if packet.count() > 1 {
            self.complete(&packet, first.header_len());
        }
    }

    /// The segment in a frame, if it may go with others, and whether its checksum is partial.
    #[inline]
    fn segment(&self, frame: &Frame<'b, 'b>) -> Option<(Segment, bool)> {
        let header = frame.header();
        // The kernel refuses a frame that is shorter than its headers are said to be.
        if header.gso_type != GSO_NONE || usize::from(header.hdr_len) > frame.len() {
            return None;
        }
        let mut headers = [0; FRONT];
        let copied = frame.copy_to(&mut headers);
        let segment = Segment::find(headers, copied, frame.len(), self.mtu)?;
        if !segment.is_for(self.gro.offloads) {
            return None;
        }
        let is_partial = header.flags == NEEDS_CSUM;
        let is_fit = if is_partial {
            is_for_checksum(&header, &segment) && segment.has_partial_checksum()
        } else {
            header.flags == 0
        };
        is_fit.then_some((segment, is_partial))
    }

    /// Appends the buffers with the payload of a frame. Returns whether there was room; if not, none was appended.
    #[inline]
    fn push_payload(&mut self, frame: &Frame<'b, 'b>, segment: &Segment) -> bool {
        let before = self.buffers.len();
        let slices = frame.slices();
        let at = Place::of(slices, frame.header_len() + segment.packet().payload_at);
        for slice in at.run(slices, segment.payload()) {
            if self.buffers.try_push(slice).is_err() {
                self.buffers.truncate(before);
                return false;
            }
        }
        true
    }

    /// Whether the full checksum of a segment is right, whose payload is in the buffers from number `at` on. If not, no
    /// frames are joined any more.
    #[inline]
    fn is_right(&mut self, segment: &Segment, at: usize) -> bool {
        let mut sum = segment.sum_before_payload();
        for buffer in &self.buffers[at..] {
            buffer.add_to(&mut sum);
        }
        let is_right = sum.fold() == RIGHT;
        self.is_off |= !is_right;
        is_right
    }

    /// Puts the packet's headers in front of the payloads.
    fn complete(&mut self, packet: &GroPacket, header_len: usize) {
        let (headers, header) = packet.headers();
        let len = packet.headers_len();
        let room = self.gro.headers.slice();
        room.write(0, &header.to_bytes()[..header_len]);
        room.write(header_len, &headers[..len]);
        self.buffers[0] = room.part(0, header_len + len);
        self.found = packet.count();
        self.len = packet.len() + (packet.count() - 1) * len;
    }
}

/// Whether a partial checksum is where the segment's is.
#[inline]
fn is_for_checksum(header: &NetHeader, segment: &Segment) -> bool {
    let packet = segment.packet();
    usize::from(header.csum_start) == packet.transport_at
        && header.csum_offset == packet.transport.checksum_offset()
}

/// The first bytes of a frame, to tell quickly whether the next one may be of the same flow.
#[derive(Clone, Copy, Debug)]
struct Front([u64; Self::WORDS]);

impl Front {
    const WORDS: usize = 5;
    const LEN: usize = Self::WORDS * 8;
    /// Bytes that are equal in all frames of a flow, as far as the ports of IPv4 reach: not length, identification and
    /// checksum of IPv4, and what follows its ports; not the length of IPv6; nothing after a VLAN tag.
    const SAME_V4: [u64; Self::WORDS] = same(&[16, 17, 18, 19, 24, 25, 38, 39], Self::LEN);
    const SAME_V6: [u64; Self::WORDS] = same(&[18, 19], Self::LEN);
    const SAME_TAGGED: [u64; Self::WORDS] = same(&[], 18);

    /// `None` if the frame is shorter.
    #[inline]
    fn of(frame: &Frame<'_, '_>) -> Option<Self> {
        let bytes = frame.front::<{ Self::LEN }>()?;
        let (words, _) = bytes.as_chunks::<8>();
        Some(Self(std::array::from_fn(|n| u64::from_ne_bytes(words[n]))))
    }

    #[inline]
    fn bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let (words, _) = bytes.as_chunks_mut::<8>();
        words.iter_mut().zip(self.0).for_each(|(bytes, word)| *bytes = word.to_ne_bytes());
        bytes
    }

    /// Byte number `at`.
    #[inline]
    const fn byte(&self, at: usize) -> u8 {
        self.0[at / 8].to_ne_bytes()[at % 8]
    }

    /// Whether `next` may be of the same TCP or UDP flow.
    #[inline]
    fn is_flow_of(&self, next: &Self) -> bool {
        let (same, protocol) = match [self.byte(12), self.byte(13)] {
            [0x08, 0x00] => (&Self::SAME_V4, self.byte(23)),
            [0x86, 0xdd] => (&Self::SAME_V6, self.byte(20)),
            [0x81, 0x00] | [0x88, 0xa8] => (&Self::SAME_TAGGED, 6),
            _ => return false,
        };
        let words = self.0.iter().zip(&next.0).zip(same);
        matches!(protocol, 6 | 17)
            && words.fold(0, |differs, ((one, other), same)| differs | (one ^ other) & same) == 0
    }
}

/// A mask of the first `len` bytes but these.
const fn same(differ: &[usize], len: usize) -> [u64; Front::WORDS] {
    let mut bytes = [[0_u8; 8]; Front::WORDS];
    let mut at = 0;
    while at < len {
        bytes[at / 8][at % 8] = 0xff;
        at += 1;
    }
    let mut n = 0;
    while n < differ.len() {
        bytes[differ[n] / 8][differ[n] % 8] = 0;
        n += 1;
    }
    let mut words = [0; Front::WORDS];
    let mut word = 0;
    while word < Front::WORDS {
        words[word] = u64::from_ne_bytes(bytes[word]);
        word += 1;
    }
    words
}
