//! Flows whose frames come in turn.

use virtio_net::features::BASE;
use virtio_net::{NetHeader, Offloads};

use crate::packets::{Checksum, Shape, udp};
use crate::sent::{MTU, Sent, Written, assert_as_sent, complete, counts, joined, written_by};

/// The flow of a frame, as a receiver tells them apart; `None` if it may be of any.
fn flow(frame: &[u8]) -> Option<Vec<u8>> {
    let is_known = |protocol: u8| [6, 17].contains(&protocol);
    match frame.get(12..15)? {
        [0x08, 0x00, 0x45] if frame.len() >= 38 && is_known(frame[23]) => {
            let is_fragment = frame[20] & 0x3f != 0 || frame[21] != 0;
            (!is_fragment).then(|| [&frame[23..24], &frame[26..38]].concat())
        }
        [0x86, 0xdd, _] if frame.len() >= 58 && is_known(frame[20]) => {
            Some([&frame[20..21], &frame[22..58]].concat())
        }
        _ => None,
    }
}

/// Asserts that no frame passed another one of its flow, or one that may be of it.
pub fn assert_in_order(written: &Written, sent: &[Sent]) {
    let order: Vec<usize> = written.iter().flat_map(|(places, ..)| places.clone()).collect();
    let mut all = order.clone();
    all.sort_unstable();
    assert_eq!(all, (0..all.len()).collect::<Vec<_>>(), "each frame once");
    let flows: Vec<_> = sent.iter().map(|(_, frame)| flow(frame)).collect();
    for (n, &later) in order.iter().enumerate() {
        for &earlier in order[..n].iter().filter(|earlier| **earlier > later) {
            let both = (&flows[earlier], &flows[later]);
            assert!(both.0.is_some() && both.1.is_some() && both.0 != both.1, "{order:?}");
        }
    }
}

/// Datagrams of this many flows in turn.
fn in_turn(flows: usize, count: usize, is_v6: bool) -> Vec<Sent> {
    let shapes = (0..flows).map(|n| Shape { addresses: [n as u8; 32], ..udp(is_v6) });
    let mut left: Vec<_> = shapes
        .map(|shape| shape.segments(&vec![7; count.div_ceil(flows) * 100], 100).into_iter())
        .collect();
    complete((0..count).map(|n| left[n % flows].next().unwrap()).collect())
}

#[test]
fn flows_in_turn_are_joined_each_by_itself() {
    for is_v6 in [false, true] {
        for (flows, count, expected) in [
            (2, 64, vec![32; 2]),
            (3, 9, vec![3; 3]),
            (16, 64, vec![4; 16]),
            // More than there are lanes: most of them have one frame each in the first lanes.
            (64, 64, vec![1; 64]),
        ] {
            let sent = in_turn(flows, count, is_v6);
            let written = joined(&sent);
            assert_eq!(counts(&written), expected, "{flows} flows");
            assert_as_sent(&written, &sent);
            let unsorted = written_by(false, Offloads::ALL, MTU, BASE, &[100_000], &sent);
            assert_eq!(counts(&unsorted), vec![1; count], "{flows} flows");
        }
    }
}

#[test]
fn nothing_passes_a_frame_that_may_be_of_any_flow() {
    let sent = in_turn(2, 8, false);
    let shape = udp(false);
    let fragment = {
        let mut frame = shape.with(&[7; 100], Checksum::Complete);
        frame[shape.network_at() + 6] = 0x20;
        frame
    };
    let arp = [&[0xff; 12][..], &[0x08, 0x06], &[0; 46]].concat();
    let with_options = Shape { ip_options: 1, ..shape.clone() }.with(&[7; 100], Checksum::Complete);
    let tagged = Shape { tags: vec![0x8100], ..shape }.with(&[7; 100], Checksum::Complete);
    for odd in [fragment, arp, with_options, tagged, vec![1; 20]] {
        let mut sent = sent.clone();
        sent.insert(4, (NetHeader::PLAIN, odd));
        let written = joined(&sent);
        assert_eq!(counts(&written), [2, 2, 1, 2, 2]);
        assert_as_sent(&written, &sent);
    }
}
