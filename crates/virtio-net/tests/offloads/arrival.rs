//! Frames that came from a virtual device.

use proptest::prelude::*;
use virtio_net::arrival::header_of;
use virtio_net::header::NEEDS_CSUM;
use virtio_net::{NetHeader, Offloads};

use crate::packets::{Checksum, payload, shape, tcp4};
use crate::runs::{Run, cuts};
use crate::software::offloaded;

const SKIP: usize = 3;

/// CRC32c, bit by bit (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (0x82f6_3b78 * (crc & 1)))
    })
}

fn told(frame: &[u8], cuts: &[usize], mtu: u16) -> NetHeader {
    let run = Run::of(&[&[0x11; SKIP], frame].concat(), cuts);
    header_of(&run.slices(), SKIP, frame.len(), mtu)
}

proptest! {
    #[test]
    fn a_partial_checksum_is_told_from_a_complete_one(
        shape in shape(), payload in payload(0..1200), cuts in cuts(), padding in 0..20_usize,
    ) {
        let at = shape.transport_at() + shape.checksum_offset();
        for checksum in [Checksum::Partial, Checksum::Complete] {
            let mut frame = shape.with(&payload, checksum);
            // With all options the two may be the same by chance, as the RFC's zeroes are.
            let both = [Checksum::Partial, Checksum::Complete].map(|it| shape.with(&payload, it));
            prop_assume!(both[0][at..at + 2] != both[1][at..at + 2]);
            frame.resize(frame.len() + padding, 0);
            let header = match checksum {
                Checksum::Partial => shape.needs_checksum(),
                Checksum::Complete => NetHeader::PLAIN,
            };
            prop_assert_eq!(told(&frame, &cuts, 1500), header);
        }
    }

    #[test]
    fn what_is_longer_than_the_link_takes_has_to_be_cut(
        shape in shape(), payload in payload(1300..20_000), cuts in cuts(), mtu in 1280..3000_u16,
    ) {
        let frame = shape.with(&payload, Checksum::Partial);
        let header = told(&frame, &cuts, mtu);
        prop_assert_eq!(header.flags, NEEDS_CSUM);
        prop_assert!(header.is_for(Offloads::ALL));
        // A datagram is one, however long it is.
        if !shape.is_tcp || frame.len() - shape.network_at() <= usize::from(mtu) {
            prop_assert_eq!(header, shape.needs_checksum());
            return Ok(());
        }
        let gso_size = usize::from(mtu) + shape.network_at() - shape.payload_at();
        prop_assert_eq!(header, shape.needs_segments(gso_size as u16));
        let frames = offloaded(&header, &frame, [&cuts, &cuts], 0);
        prop_assert!(frames.iter().all(|it| it.len() - shape.network_at() <= usize::from(mtu)));
        prop_assert_eq!(frames, shape.segments(&payload, gso_size as u16));
    }

    #[test]
    fn segments_with_a_complete_checksum_are_for_no_guest_but_can_be_cut(
        shape in shape(), payload in payload(3000..6000),
    ) {
        let frame = shape.with(&payload, Checksum::Complete);
        let header = told(&frame, &[9000], 1500);
        prop_assume!(header.flags == 0 && shape.is_tcp);
        prop_assert!(!header.is_for(Offloads::ALL));
        let frames = offloaded(&header, &frame, [&[9000], &[9000]], 0);
        prop_assert_eq!(frames, shape.segments(&payload, header.gso_size));
    }
}

proptest! {
    #[test]
    fn the_crc_of_sctp_is_written_and_nothing_else(
        data in payload(0..2000), cuts in cuts(), padding in 0..20_usize,
    ) {
        let len = u16::try_from(20 + 12 + data.len()).unwrap().to_be_bytes();
        let ip = [&[0x45, 0], &len[..], &[0, 0, 0, 0, 64, 132, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]].concat();
        let packet = [&[7; 8][..], &[0; 4], &data].concat();
        let before = [&[0x11; SKIP], &[2; 12][..], &[8, 0], &ip, &packet, &vec![0; padding]].concat();
        let run = Run::of(&before, &cuts);
        prop_assert_eq!(header_of(&run.slices(), SKIP, before.len() - SKIP, 9000), NetHeader::PLAIN);
        let mut expected = before;
        expected[SKIP + 34 + 8..][..4].copy_from_slice(&crc32c(&packet).to_le_bytes());
        prop_assert_eq!(run.bytes(), expected);
    }
}

#[test]
fn the_crc_of_this_test_is_the_one_of_others() {
    // RFC 3720, B.4.
    assert_eq!(crc32c(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
}

#[test]
fn of_other_frames_nothing_is_told() {
    let arp = [&[0xff; 12][..], &[0x08, 0x06], &[1; 46]].concat();
    for frame in [&arp[..], &arp[..13], &[0; 60], &[0; 2000], &[0x45; 9000]] {
        assert_eq!(told(frame, &[50], 1500), NetHeader::PLAIN);
    }
    let mut cut_off = tcp4().with(&[7; 3000], Checksum::Partial);
    assert!(!told(&cut_off, &[5000], 1500).is_plain());
    cut_off.pop();
    assert_eq!(told(&cut_off, &[5000], 1500), NetHeader::PLAIN);
}
