//! GRO from a guest to the wire: target `joined`. What a receiver that segments gets must be the frames that were sent, in
//! the same order, or in that of each flow; a frame that goes alone must be as it was sent.

use arbitrary::Arbitrary;
use virtio_net::features::BASE;
use virtio_net::{
    BURST_MAX, FRAME_LEN_MAX, GroBurst, GroStep, Negotiated, NetHeader, Offloads, TransmitGro,
};

use super::cut::on_the_wire;
use super::packets::{Header, Source};
use super::receive::is_same;
use super::ring::Ring;

/// Longest frame with its link header that a network card takes, bytes.
const LEN_MAX: usize = 65_535;
/// Most buffers of a packet.
const BUFFERS_MAX: usize = 256;

/// A burst, and the datapath that takes it.
#[derive(Arbitrary, Debug)]
pub struct Story {
    sources: Vec<(Source, Header)>,
    cuts: Vec<u16>,
    position: u16,
    packed: bool,
    is_legacy: bool,
    mtu: u16,
    checksum: bool,
    tso4: bool,
    tso6: bool,
    uso: bool,
    sorts: bool,
}

/// Plays `story`.
pub fn play(story: &Story) {
    let &Story { checksum, tso4, tso6, uso, .. } = story;
    let mut features = BASE & !(1 << 28 | 1 << 29);
    // RING_PACKED; MRG_RXBUF and VERSION_1, without which a net header has 10 bytes (virtio 1.2, 5.1.6 and 6).
    features &= !(if story.packed { 0 } else { 1 << 34 });
    features &= !(if story.is_legacy { 1 << 15 | 1 << 32 } else { 0 });
    let mut sender = Ring::new(Negotiated(features), true, story.position);
    let mut sent = Vec::new();
    'all: for (source, header) in story.sources.iter().take(16) {
        let header = header.of(source);
        // Others are no frames of a burst.
        let is_frame = |frame: &Vec<u8>| (1..=FRAME_LEN_MAX).contains(&frame.len());
        for frame in source.frames(BURST_MAX).into_iter().filter(is_frame) {
            if sent.len() == BURST_MAX || !sender.send(&header, &frame, &story.cuts) {
                break 'all;
            }
            sent.push((header, frame));
        }
    }
    let gro = TransmitGro::new(Offloads { checksum, tso4, tso6, uso, ecn: false, ufo: false });
    let mtu = if story.mtu == 0 { 1500 } else { story.mtu };
    // If the ring is given up, nothing more is expected of it.
    let _ = sender.with_sent(|frames| {
        let mut left = &sent[..];
        let mut burst = gro.burst(frames, mtu, story.sorts);
        while let Some(step) = burst.next_step() {
            let (GroStep::Alone(count) | GroStep::Together(count) | GroStep::Sorted(count)) = step;
            let (these, rest) = left.split_at(count);
            match step {
                GroStep::Alone(_) => {}
                GroStep::Together(_) => check(&burst, frames.header_len(), these),
                GroStep::Sorted(_) => check_group(&mut burst, frames.header_len(), these),
            }
            left = rest;
        }
        assert_eq!(sent.len() - left.len(), frames.len());
    });
}

/// Checks that each of these frames goes once, and passes none of its flow.
fn check_group(burst: &mut GroBurst<'_>, header_len: usize, these: &[(NetHeader, Vec<u8>)]) {
    let mut order: Vec<usize> = Vec::new();
    loop {
        let places = burst.next_of_group();
        let places = places.iter().map(|at| usize::from(*at));
        let packet: Vec<_> = places.clone().map(|at| these[at].clone()).collect();
        match packet.len() {
            0 => break,
            1 => {}
            _ => check(burst, header_len, &packet),
        }
        order.extend(places);
    }
    for (n, &later) in order.iter().enumerate() {
        let passed = order[..n].iter().filter(|earlier| **earlier > later);
        let [own, mut others] = [vec![later], passed.copied().collect()]
            .map(|all| all.into_iter().map(|at| flow_of(&these[at].1)));
        let own = own.last().expect("one");
        assert!(others.all(|other| other != own), "{order:?}");
    }
    order.sort_unstable();
    assert!(order.iter().copied().eq(0..these.len()), "{order:?}");
}

/// Protocol, addresses and ports of a frame that may be passed.
fn flow_of(frame: &[u8]) -> Vec<u8> {
    match frame[12..15] {
        [0x08, 0x00, 0x45] => [&frame[23..24], &frame[26..38]].concat(),
        [0x86, 0xdd, _] => [&frame[20..21], &frame[22..58]].concat(),
        _ => panic!("nothing passes such a frame"),
    }
}

/// Checks a packet made of the frames `these`.
fn check(burst: &GroBurst<'_>, header_len: usize, these: &[(NetHeader, Vec<u8>)]) {
    let mut bytes = Vec::new();
    for slice in burst.packet() {
        let at = bytes.len();
        bytes.resize(at + slice.len(), 0);
        slice.read(0, &mut bytes[at..]);
    }
    let frame = bytes.split_off(header_len);
    bytes.resize(12, 0);
    let header = NetHeader::from_bytes(&bytes.try_into().expect("12 bytes"));
    assert!(these.len() > 1 && burst.packet().len() <= BUFFERS_MAX && frame.len() <= LEN_MAX);
    assert_eq!(burst.bytes(), these.iter().map(|(_, frame)| frame.len()).sum::<usize>());
    let segments = on_the_wire(&header, &frame).expect("a net header that fits its packet");
    assert_eq!(segments.len(), these.len());
    for (n, (segment, (header, frame))) in segments.iter().zip(these).enumerate() {
        let alone = on_the_wire(header, frame).expect("only frames that are right are joined");
        assert!(alone.len() == 1 && is_same(&alone[0], segment), "frame {n} of {}", these.len());
    }
}
