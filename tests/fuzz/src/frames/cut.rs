//! Software GSO and checksum offload, checked frame by frame.

use arbitrary::Arbitrary;
use guest_memory::{GuestSlice, Spare};
use virtio_net::header::{GSO_NONE, NEEDS_CSUM};
use virtio_net::packet::{Packet, Transport, Version};
use virtio_net::{FRAME_LEN_MAX, NetHeader, SoftwareOffload};

use super::packets::{Header, Source, sum};

/// Bytes around every piece of memory that must not change.
const MARGIN: usize = 8;
const CANARY: u8 = 0xa5;
/// Most pieces: more make a run too slow.
const PIECES_MAX: usize = 64;
/// Most segments: more make a run too slow. The switch takes no more either.
pub const SEGMENTS_MAX: usize = 2048;

/// A guest's frame, and how its buffers are cut.
#[derive(Arbitrary, Debug)]
pub struct Story {
    source: Source,
    header: Header,
    /// Number of bytes before the frame.
    skip: u8,
    /// Offset in the buffers at which each frame is written.
    offset: u8,
    from: Vec<u16>,
    to: Vec<u16>,
    /// Number of frames skipped first.
    left_out: u8,
}

/// Cuts the frame and checks every piece.
pub fn play(story: &Story) {
    let mut frame = story.source.frames(1).swap_remove(0);
    frame.truncate(FRAME_LEN_MAX);
    let frame = &frame;
    let header = story.header.of(&story.source);
    let skip = usize::from(story.skip % 32);
    let from = Run::of(&[&vec![0x11; skip], &frame[..]].concat(), &story.from);
    let slices = from.slices();
    let Ok(mut offload) = SoftwareOffload::plan(&header, &slices, skip, frame.len()) else {
        return;
    };
    let count = offload.count();
    assert!((1..=FRAME_LEN_MAX).contains(&count));
    assert_eq!(offload.is_plain(), header.is_plain());
    if count > SEGMENTS_MAX {
        return;
    }
    let mut late = offload.clone();
    let offset = usize::from(story.offset % 32);
    let mut frames = Vec::new();
    while offload.count() > 0 {
        let len = offload.next_len();
        let to = Run::new(offset + len + MARGIN, &story.to);
        assert_eq!(offload.write_next(&slices, &to.slices(), offset), len);
        assert!(offload.next_len() <= len, "a later frame is longer");
        frames.push(to.between(offset, MARGIN));
    }
    assert_eq!((frames.len(), offload.next_len()), (count, 0));
    check(&header, frame, &frames);
    let left_out = usize::from(story.left_out).min(count);
    late.skip(&slices, left_out);
    assert_eq!(late.count(), count - left_out);
    if late.count() > 0 {
        let to = Run::new(late.next_len() + MARGIN, &story.to);
        late.write_next(&slices, &to.slices(), 0);
        assert_eq!(to.between(0, MARGIN), frames[left_out], "after {left_out} that were left out");
    }
}

/// The frames on a wire if a guest sends `frame` with this net header; `None` if it cannot be sent.
#[must_use]
pub fn on_the_wire(header: &NetHeader, frame: &[u8]) -> Option<Vec<Vec<u8>>> {
    let from = Run::of(frame, &[]);
    let mut offload = SoftwareOffload::plan(header, &from.slices(), 0, frame.len()).ok()?;
    if offload.count() > SEGMENTS_MAX {
        return None;
    }
    let mut frames = Vec::new();
    while offload.count() > 0 {
        let to = Run::new(offload.next_len(), &[]);
        offload.write_next(&from.slices(), &to.slices(), 0);
        frames.push(to.between(0, 0));
    }
    Some(frames)
}

/// Checks the frames made of `frame`. Uses the code under test only to find the headers.
fn check(header: &NetHeader, frame: &[u8], frames: &[Vec<u8>]) {
    if header.is_plain() {
        assert_eq!(frames, [frame]);
    } else if header.gso_type == GSO_NONE {
        let start = usize::from(header.csum_start);
        let field = start + usize::from(header.csum_offset);
        let checksum = match !sum(&[&frame[start..]]) {
            0 => 0xffff,
            checksum => checksum,
        };
        let mut expected = frame.to_vec();
        expected[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(frames, [expected]);
    } else {
        check_segments(header, frame, frames);
    }
}

fn check_segments(header: &NetHeader, frame: &[u8], frames: &[Vec<u8>]) {
    let packet = Packet::find(&frame[..frame.len().min(256)]).expect("a packet");
    let Packet { version, transport, network_at, transport_at, payload_at, .. } = packet;
    if header.flags & NEEDS_CSUM != 0 {
        assert_eq!(usize::from(header.csum_start), transport_at);
    }
    let whole = &frame[payload_at..];
    let pieces: Vec<_> = frames.iter().flat_map(|it| &it[payload_at..]).copied().collect();
    assert_eq!(pieces, whole, "the payload");
    let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let mut done = 0;
    for (n, segment) in frames.iter().enumerate() {
        let payload = segment.len() - payload_at;
        assert!(payload <= usize::from(header.gso_size));
        assert!(n + 1 == frames.len() || payload == usize::from(header.gso_size));
        // The headers expected, derived from those of the whole frame.
        let mut expected = frame[..payload_at].to_vec();
        let len = payload_at - network_at + payload;
        let mut set = |at: usize, value: u16| {
            expected[at..at + 2].copy_from_slice(&value.to_be_bytes());
        };
        match version {
            Version::V4 => {
                set(network_at + 2, u16::try_from(len).unwrap());
                set(network_at + 4, word(frame, network_at + 4).wrapping_add(n as u16));
                set(network_at + 10, word(segment, network_at + 10));
                assert_eq!(sum(&[&segment[network_at..transport_at]]), 0xffff, "IPv4's checksum");
            }
            Version::V6 => set(network_at + 4, u16::try_from(len - 40).unwrap()),
        }
        let transport_len = payload_at - transport_at + payload;
        let field = transport_at + usize::from(transport.checksum_offset());
        set(field, word(segment, field));
        match transport {
            Transport::Udp => {
                set(transport_at + 4, u16::try_from(transport_len).unwrap());
                assert_ne!(word(segment, field), 0, "no checksum");
            }
            Transport::Tcp => {
                let sequence = &frame[transport_at + 4..][..4];
                let sequence = u32::from_be_bytes(sequence.try_into().unwrap());
                let sequence = sequence.wrapping_add(done as u32);
                set(transport_at + 4, (sequence >> 16) as u16);
                set(transport_at + 6, sequence as u16);
                let cwr = if n == 0 { 0 } else { 0x80 };
                let ends = if n + 1 == frames.len() { 0 } else { 0x09 };
                expected[transport_at + 13] &= !(cwr | ends);
            }
        }
        assert_eq!(segment[..payload_at], expected, "the headers of segment {n}");
        assert_eq!(transport_sum(&packet, segment), 0xffff, "the checksum of segment {n}");
        done += payload;
    }
}

/// The sum of the transport header, the payload and the pseudo header.
fn transport_sum(packet: &Packet, frame: &[u8]) -> u16 {
    let addresses = match packet.version {
        Version::V4 => &frame[packet.network_at + 12..][..8],
        Version::V6 => &frame[packet.network_at + 8..][..32],
    };
    let protocol = match packet.transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
    };
    let bytes = &frame[packet.transport_at..];
    sum(&[addresses, &(bytes.len() as u32).to_be_bytes(), &[0, protocol], bytes])
}

/// Memory in pieces, with canaries around each piece.
struct Run {
    spare: Spare,
    lens: Vec<usize>,
}

impl Run {
    /// `len` bytes in pieces of these lengths, repeated.
    fn new(len: usize, cuts: &[u16]) -> Self {
        let mut lens = Vec::new();
        let mut left = len;
        let mut cuts = cuts.iter().take(8).cycle();
        while left > 0 {
            let next = match cuts.next() {
                Some(&next) if lens.len() < PIECES_MAX => usize::from(next).min(left),
                _ => left,
            };
            lens.push(next);
            left -= next;
        }
        let spare = Spare::new(len + MARGIN * (lens.len() + 1));
        spare.slice().write(0, &vec![CANARY; spare.slice().len()]);
        Self { spare, lens }
    }

    fn of(bytes: &[u8], cuts: &[u16]) -> Self {
        let run = Self::new(bytes.len(), cuts);
        let mut left = bytes;
        for slice in run.slices() {
            left = &left[slice.write(0, left)..];
        }
        run
    }

    fn slices(&self) -> Vec<GuestSlice<'_>> {
        let mut at = MARGIN;
        let mut slices = Vec::new();
        for len in &self.lens {
            slices.push(self.spare.slice().part(at, *len));
            at += len + MARGIN;
        }
        slices
    }

    /// The bytes without the first `before` and the last `after`, which must be canaries, as must those around the
    /// pieces.
    fn between(&self, before: usize, after: usize) -> Vec<u8> {
        let mut all = vec![0; self.spare.slice().len()];
        self.spare.slice().read(0, &mut all);
        let mut bytes = Vec::new();
        let mut left = &all[..];
        for len in self.lens.iter().chain([&0]) {
            let (margin, rest) = left.split_at(MARGIN);
            assert_eq!(margin, [CANARY; MARGIN], "beside a buffer");
            let (piece, rest) = rest.split_at(*len);
            bytes.extend(piece);
            left = rest;
        }
        let end = bytes.split_off(bytes.len() - after);
        let middle = bytes.split_off(before);
        assert!(bytes.into_iter().chain(end).all(|byte| byte == CANARY), "beside the frame");
        middle
    }
}
