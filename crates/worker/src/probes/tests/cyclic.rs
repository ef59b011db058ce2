//! Frames with a counter, in buffers that are split anywhere, against a finder that has the whole frame at hand.

use guest_memory::{GuestSlice, Spare};
use proptest::collection::vec;
use proptest::prelude::*;

use super::super::*;

/// Length of a net header, bytes.
const HEADER_LEN: usize = 12;
/// Bytes after each frame in its buffers. They are not part of it.
const STALE: usize = 300;

/// A description, with what the reference needs to know of it.
struct Description {
    text: &'static str,
    ethertype: [u8; 2],
    counter: std::ops::Range<usize>,
    /// Offset and length of each field.
    streams: &'static [(usize, usize)],
    vlan: Option<u16>,
    little: bool,
}

const DESCRIPTIONS: [Description; 4] = [
    Description {
        text: "ethertype:0x8892,counter@6/4,vlan=5,stream@0/2,stream@4/2",
        ethertype: [0x88, 0x92],
        counter: 6..10,
        streams: &[(0, 2), (4, 2)],
        vlan: Some(5),
        little: false,
    },
    Description {
        text: "ethertype:0x8892,counter@2/2,stream@0/1,le",
        ethertype: [0x88, 0x92],
        counter: 2..4,
        streams: &[(0, 1)],
        vlan: None,
        little: true,
    },
    Description {
        text: "ethertype:0x22f0,counter@2/1",
        ethertype: [0x22, 0xf0],
        counter: 2..3,
        streams: &[],
        vlan: None,
        little: false,
    },
    Description {
        text: "ethertype:0x88b5,counter@200/8",
        ethertype: [0x88, 0xb5],
        counter: 200..208,
        streams: &[],
        vlan: None,
        little: false,
    },
];

fn number(bytes: &[u8], little: bool) -> u64 {
    let digits: Vec<u8> =
        if little { bytes.iter().rev().copied().collect() } else { bytes.to_vec() };
    digits.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// What a finder finds that has the whole frame in one piece.
fn reference(frame: &[u8]) -> Option<CyclicFrame> {
    let (mut at, mut vlan) = (12, None);
    for _ in 0..2 {
        if matches!(frame.get(at..at + 2), Some([0x81, 0x00] | [0x88, 0xa8])) {
            let control = frame.get(at + 2..at + 4)?;
            vlan = Some(u16::from(control[0] & 0xf) << 8 | u16::from(control[1]));
            at += 4;
        }
    }
    let ethertype = frame.get(at..at + 2)?;
    let payload = &frame[at + 2..];
    DESCRIPTIONS.iter().enumerate().find_map(|(n, it)| {
        if ethertype != it.ethertype || (it.vlan.is_some() && it.vlan != vlan) {
            return None;
        }
        let mut stream = 0;
        for (offset, len) in it.streams {
            let bytes = payload.get(*offset..offset + len)?;
            stream = stream << (8 * bytes.len()) | number(bytes, it.little);
        }
        Some(CyclicFrame {
            description: u8::try_from(n).unwrap(),
            counter_len: u8::try_from(it.counter.len()).unwrap(),
            stream: u32::try_from(stream).unwrap(),
            counter: number(payload.get(it.counter.clone())?, it.little),
        })
    })
}

/// What the finder finds in a frame whose buffers end after each of these numbers of bytes.
fn found(frame: &[u8], cuts: &[usize]) -> Option<CyclicFrame> {
    let cyclic: Vec<_> = DESCRIPTIONS.iter().map(|it| it.text.parse().unwrap()).collect();
    let len = HEADER_LEN + frame.len();
    let memory = Spare::new(len + STALE);
    let whole = memory.slice();
    // The bytes after the frame look like a counter as well.
    whole.write(0, &vec![0x55; len + STALE]);
    whole.write(HEADER_LEN, frame);
    let mut slices: Vec<GuestSlice<'_>> = Vec::new();
    let mut from = 0;
    for cut in cuts.iter().copied().chain([len + STALE]) {
        let to = (from + cut).min(len + STALE);
        slices.push(whole.part(from, to - from));
        from = to;
    }
    let frame = Frame::new(&slices, len, HEADER_LEN);
    cyclic_frame(&cyclic, &frame)
}

fn with_tags(tags: usize, vlan: u16, ethertype: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    for tag in 0..tags {
        let outermost: [u8; 2] = if tag == 0 && tags > 1 { [0x88, 0xa8] } else { [0x81, 0] };
        frame.extend(outermost);
        // Priority 6; only the innermost tag has this identifier.
        let id = if tag + 1 == tags { vlan } else { 77 };
        frame.extend((6 << 13 | id).to_be_bytes());
    }
    frame.extend(ethertype);
    frame.extend(payload);
    frame
}

#[test]
fn counters_are_found_behind_up_to_two_tags() {
    let payload = [0x80, 0, 1, 2, 0, 3, 0, 0, 0, 9];
    for tags in 0..=3 {
        let frame = with_tags(tags, 5, [0x88, 0x92], &payload);
        let (stream, counter) = match tags {
            // Without a tag, the second description fits.
            0 => (0x80, 0x0201),
            _ => (0x8000_0003, 9),
        };
        let expected = (tags < 3).then_some((stream, counter));
        let found = found(&frame, &[]).map(|found| (found.stream, found.counter));
        assert_eq!(found, expected, "{tags} tags");
    }
}

#[test]
fn a_frame_that_ends_anywhere_has_no_counter_of_the_bytes_after_it() {
    let frame = with_tags(1, 4, [0x88, 0xb5], &[7; 208]);
    assert!(found(&frame, &[]).is_some());
    for len in 1..frame.len() {
        assert_eq!(found(&frame[..len], &[]), None, "{len}");
    }
}

proptest! {
    #[test]
    fn a_counter_is_found_wherever_buffers_end(
        tags in 0..4_usize,
        vlan in 4..7_u16,
        ethertype in prop_oneof![Just([0x88, 0x92]), Just([0x22, 0xf0]), Just([0x88, 0xb5]), any::<[u8; 2]>()],
        payload in vec(any::<u8>(), 0..220),
        keep in 1..300_usize,
        cuts in vec(0..40_usize, 0..12),
    ) {
        let mut frame = with_tags(tags, vlan, ethertype, &payload);
        frame.truncate(keep);
        prop_assert_eq!(found(&frame, &cuts), reference(&frame));
    }
}
