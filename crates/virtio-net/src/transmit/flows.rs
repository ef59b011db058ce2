//! The frames of a burst by their flows: those of one flow may pass those of others, and never each other.
//!
//! Each frame of TCP or UDP has a lane. All frames of a flow have the same lane; two flows may share one, which costs nothing but calls. A
//! fragment, or another frame whose flow is not known, has no lane: no other frame passes it.

use arrayvec::ArrayVec;

use super::Frame;
use crate::BURST_MAX;

/// Most lanes.
const LANES_MAX: usize = 16;
/// TCP and UDP.
const PROTOCOLS: [u8; 2] = [6, 17];
/// Multiplied with it, bits come to the top (the golden ratio).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The lane of a frame, as a number that frames of other flows hardly ever have; `None` if it has none. `front`: the frame's first bytes.
#[inline]
pub(super) fn flow_of<const N: usize>(front: &[u8; N], frame: &Frame<'_, '_>) -> Option<u64> {
    const {
        assert!(N >= 38, "as far as the ports of IPv4");
    }
    let word = |bytes: &[u8]| bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    match front[12..15] {
        // Without options, and no fragment.
        [0x08, 0x00, 0x45] if front[20] & 0x3f == 0 && front[21] == 0 => {
            let is_known = PROTOCOLS.contains(&front[23]);
            let ports = word(&front[34..38]) << 8 | u64::from(front[23]);
            is_known.then(|| word(&front[26..34]).wrapping_mul(SPREAD) ^ ports)
        }
        [0x86, 0xdd, _] if PROTOCOLS.contains(&front[20]) => {
            let front = frame.front::<58>()?;
            let ports = word(&front[54..58]) << 8 | u64::from(front[20]);
            let (words, _) = front[22..54].as_chunks::<8>();
            Some(words.iter().fold(ports, |flow, part| {
                (flow ^ u64::from_be_bytes(*part)).wrapping_mul(SPREAD).rotate_left(29)
            }))
        }
        _ => None,
    }
}

/// Frames in lanes.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: ArrayVec<Lane, LANES_MAX>,
    /// For each frame the next one of its lane.
    next: [u8; BURST_MAX],
    /// Number of frames.
    len: usize,
    /// The lane of the last one.
    latest: usize,
    is_mixed: bool,
}

/// Frames of one lane, in order.
#[derive(Clone, Copy, Debug)]
struct Lane {
    flow: u64,
    first: u8,
    last: u8,
    left: u8,
}

impl Lanes {
    pub(super) const fn new() -> Self {
        let lanes = ArrayVec::new_const();
        Self { lanes, next: [0; BURST_MAX], len: 0, latest: 0, is_mixed: false }
    }

    pub(super) fn clear(&mut self) {
        self.lanes.clear();
        (self.len, self.latest, self.is_mixed) = (0, 0, false);
    }

    /// Number of frames.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Whether the frames of a lane are not all neighbours.
    pub(super) const fn is_mixed(&self) -> bool {
        self.is_mixed
    }

    /// Takes the next frame. Returns whether there was room.
    #[inline]
    pub(super) fn take(&mut self, flow: u64) -> bool {
        let Some(at) = u8::try_from(self.len).ok().filter(|at| usize::from(*at) < BURST_MAX) else {
            return false;
        };
        if let Some(n) = self.lanes.iter().position(|lane| lane.flow == flow) {
            let lane = &mut self.lanes[n];
            self.next[usize::from(lane.last)] = at;
            (lane.last, lane.left) = (at, lane.left + 1);
            self.is_mixed |= n != self.latest;
            self.latest = n;
        } else {
            if self.lanes.try_push(Lane { flow, first: at, last: at, left: 1 }).is_err() {
                return false;
            }
            self.latest = self.lanes.len() - 1;
        }
        self.len += 1;
        true
    }

    /// The frames that are left of the first lane that has some; none at the end.
    pub(super) fn first(&self) -> ArrayVec<u8, BURST_MAX> {
        let mut places = ArrayVec::new();
        if let Some(lane) = self.lanes.iter().find(|lane| lane.left > 0) {
            let mut at = lane.first;
            for _ in 0..lane.left {
                places.push(at);
                at = self.next[usize::from(at)];
            }
        }
        places
    }

    /// Takes the first `count` of these out.
    pub(super) fn advance(&mut self, count: usize) {
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.left > 0) else { return };
        for _ in 0..count.min(usize::from(lane.left)) {
            lane.first = self.next[usize::from(lane.first)];
            lane.left -= 1;
        }
    }
}
