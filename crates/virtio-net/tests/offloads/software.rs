//! Frames of a guest become finished ones.

use proptest::prelude::*;
use virtio_net::{NetHeader, SoftwareOffload};

use crate::packets::{Checksum, payload, shape, slow_sum, udp};
use crate::runs::{Run, cuts};

/// So many bytes stand before a frame, and after what is written.
const SKIP: usize = 12;
const AFTER: usize = 5;

/// Everything that the plan makes of `frame`, from and to pieces of the given lengths, to `offset` of its run.
pub fn offloaded(
    header: &NetHeader,
    frame: &[u8],
    [from_cuts, to_cuts]: [&[usize]; 2],
    offset: usize,
) -> Vec<Vec<u8>> {
    let from = Run::of(&[&[0x11; SKIP], frame].concat(), from_cuts);
    let from = from.slices();
    let mut offload = SoftwareOffload::plan(header, &from, SKIP, frame.len()).unwrap();
    let mut frames = Vec::new();
    while offload.count() > 0 {
        let (count, len) = (offload.count(), offload.next_len());
        let to = Run::new(offset + len + AFTER, to_cuts);
        assert_eq!(offload.write_next(&from, &to.slices(), offset), len);
        assert_eq!(offload.count(), count - 1);
        assert!(offload.next_len() <= len, "none that follows is longer");
        frames.push(to.between(offset, AFTER));
    }
    assert_eq!((offload.next_len(), offload.write_next(&from, &[], 0)), (0, 0));
    frames
}

#[test]
fn a_checksum_of_zero_is_written_as_its_complement() {
    for is_v6 in [false, true] {
        let shape = udp(is_v6);
        let mut payload = vec![0; 60];
        // What the checksum lacks to all ones.
        let at = shape.transport_at() + shape.checksum_offset();
        let complete = shape.with(&payload, Checksum::Complete);
        payload[..2].copy_from_slice(&complete[at..at + 2]);
        let expected = shape.with(&payload, Checksum::Complete);
        assert_eq!(expected[at..at + 2], [0xff, 0xff]);
        let frame = shape.with(&payload, Checksum::Partial);
        for header in [shape.needs_checksum(), shape.needs_segments(60)] {
            assert_eq!(offloaded(&header, &frame, [&[1000], &[1000]], 0), [&expected[..]]);
        }
    }
}

proptest! {
    #[test]
    fn a_plain_frame_is_copied(
        frame in payload(1..5000), from in cuts(), to in cuts(), offset in 0..40_usize,
    ) {
        for flags in [0, 2, 4] {
            let header = NetHeader { flags, csum_start: 9999, ..NetHeader::PLAIN };
            prop_assert_eq!(offloaded(&header, &frame, [&from, &to], offset), [&frame[..]]);
        }
    }

    #[test]
    fn a_checksum_goes_where_the_net_header_says(
        frame in payload(2..3000),
        (start, field) in any::<(prop::sample::Index, prop::sample::Index)>(),
        from in cuts(), to in cuts(), offset in 0..40_usize,
    ) {
        let start = start.index(frame.len() - 1);
        let field = start + field.index(frame.len() - 1 - start);
        let header = NetHeader {
            flags: 1,
            csum_start: start as u16,
            csum_offset: (field - start) as u16,
            ..NetHeader::PLAIN
        };
        let checksum = match !slow_sum(&frame[start..]) {
            0 => 0xffff,
            checksum => checksum,
        };
        let mut expected = frame.clone();
        expected[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
        prop_assert_eq!(offloaded(&header, &frame, [&from, &to], offset), [expected]);
    }

    #[test]
    fn a_partial_checksum_is_completed(shape in shape(), payload in payload(0..3000), from in cuts()) {
        let mut expected = shape.with(&payload, Checksum::Complete);
        let at = shape.transport_at() + shape.checksum_offset();
        if expected[at..at + 2] == [0, 0] {
            expected[at..at + 2].fill(0xff);
        }
        let frame = shape.with(&payload, Checksum::Partial);
        prop_assert_eq!(offloaded(&shape.needs_checksum(), &frame, [&from, &from], 0), [expected]);
    }

    #[test]
    fn segments_are_what_they_would_be_if_they_were_built_one_by_one(
        shape in shape(),
        payload in payload(0..20_000),
        gso_size in prop_oneof![100..3000_u16, 1000..1500_u16, Just(u16::MAX)],
        from in cuts(), to in cuts(), offset in 0..40_usize,
        needs_checksum in any::<bool>(),
    ) {
        let mut header = shape.needs_segments(gso_size);
        if !needs_checksum {
            (header.flags, header.csum_start, header.csum_offset) = (0, 0, 0);
        }
        let frame = shape.with(&payload, Checksum::Partial);
        let expected = shape.segments(&payload, gso_size);
        prop_assert_eq!(offloaded(&header, &frame, [&from, &to], offset), expected);
    }

    #[test]
    fn segments_of_few_bytes_are_segments_too(
        shape in shape(), payload in payload(0..200), gso_size in 1..9_u16, from in cuts(),
    ) {
        let frame = shape.with(&payload, Checksum::Partial);
        let expected = shape.segments(&payload, gso_size);
        let frames = offloaded(&shape.needs_segments(gso_size), &frame, [&from, &from], 0);
        prop_assert_eq!(frames, expected);
    }

    #[test]
    fn a_plan_made_anew_goes_on_where_another_ended(
        shape in shape(), payload in payload(0..9000), from in cuts(), skip in 0..12_usize, then in 0..4_usize,
    ) {
        let frame = shape.with(&payload, Checksum::Partial);
        let from = Run::of(&frame, &from);
        let from = from.slices();
        let mut offload = SoftwareOffload::plan(&shape.needs_segments(1000), &from, 0, frame.len()).unwrap();
        offload.skip(&from, skip);
        let mut expected = shape.segments(&payload, 1000).into_iter().skip(skip);
        for round in 0.. {
            if round == then {
                offload.skip(&from, 2);
                expected.by_ref().take(2).for_each(drop);
            }
            let to = Run::new(offload.next_len(), &[4000]);
            let written = offload.write_next(&from, &to.slices(), 0);
            let Some(expected) = expected.next() else {
                prop_assert_eq!(written, 0);
                break;
            };
            prop_assert_eq!(to.bytes(), expected);
        }
    }
}
