//! Frames of a guest that are joined on their way to the wire.

use proptest::collection::vec;
use proptest::prelude::*;
use virtio_net::features::BASE;
use virtio_net::header::{GSO_TCPV4, NEEDS_CSUM};
use virtio_net::{GroBurst, GroStep, NetHeader, Offloads, TransmitGro};

use crate::packets::{Checksum, FIN, PSH, Shape, payload, right_again, tcp4, udp};
use crate::place::with_frames;
use crate::software::offloaded;
use crate::turns::assert_in_order;

const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
pub const MTU: u16 = 1500;
/// `VIRTIO_F_VERSION_1`, `VIRTIO_NET_F_MRG_RXBUF`: without both, a net header has 10 bytes.
const LONG_HEADER: u64 = 1 << 32 | 1 << 15;

pub type Sent = (NetHeader, Vec<u8>);

/// What is written: the numbers of the guest's frames in it, its net header and its bytes.
pub type Written = Vec<(Vec<usize>, NetHeader, Vec<u8>)>;

fn written(offloads: Offloads, mtu: u16, features: u64, cuts: &[usize], sent: &[Sent]) -> Written {
    written_by(true, offloads, mtu, features, cuts, sent)
}

/// `sorts`: flows may pass each other.
pub fn written_by(
    sorts: bool,
    offloads: Offloads,
    mtu: u16,
    features: u64,
    cuts: &[usize],
    sent: &[Sent],
) -> Written {
    let gro = TransmitGro::new(offloads);
    with_frames(features, sent, cuts, |frames| {
        let mut written: Written = Vec::new();
        let mut done = 0;
        let mut burst = gro.burst(frames, mtu, sorts);
        let alone = |written: &mut Written, at: usize| {
            let frame = frames.get(at).unwrap();
            let mut bytes = vec![0; frame.len()];
            frame.copy_to(&mut bytes);
            written.push((vec![at], NetHeader { num_buffers: 1, ..frame.header() }, bytes));
        };
        let together = |written: &mut Written, burst: &GroBurst<'_>, places: Vec<usize>| {
            assert!(places.len() > 1 && burst.packet().len() <= 256);
            let mut bytes = Vec::new();
            for slice in burst.packet() {
                let at = bytes.len();
                bytes.resize(at + slice.len(), 0);
                slice.read(0, &mut bytes[at..]);
            }
            let frame = bytes.split_off(frames.header_len());
            bytes.resize(12, 0);
            let header = NetHeader::from_bytes(&bytes.try_into().unwrap());
            let sum: usize = places.iter().map(|at| frames.get(*at).unwrap().len()).sum();
            assert_eq!(burst.bytes(), sum);
            written.push((places, NetHeader { num_buffers: 1, ..header }, frame));
        };
        while let Some(step) = burst.next_step() {
            let (GroStep::Alone(count) | GroStep::Together(count) | GroStep::Sorted(count)) = step;
            match step {
                GroStep::Alone(_) => (done..done + count).for_each(|at| alone(&mut written, at)),
                GroStep::Together(_) => {
                    together(&mut written, &burst, (done..done + count).collect());
                }
                GroStep::Sorted(_) => {
                    assert!(sorts);
                    let before: usize = written.iter().map(|(places, ..)| places.len()).sum();
                    loop {
                        let places = burst.next_of_group();
                        let places: Vec<_> =
                            places.iter().map(|at| done + usize::from(*at)).collect();
                        match places[..] {
                            [] => break,
                            [at] => alone(&mut written, at),
                            _ => together(&mut written, &burst, places),
                        }
                    }
                    let now: usize = written.iter().map(|(places, ..)| places.len()).sum();
                    assert_eq!(now - before, count, "each frame of the group once");
                }
            }
            done += count;
        }
        assert_eq!(done, frames.len());
        written
    })
}

/// Written for a datapath that takes everything.
pub fn joined(sent: &[Sent]) -> Written {
    written(Offloads::ALL, MTU, BASE, &[100_000], sent)
}

pub fn counts(written: &Written) -> Vec<usize> {
    written.iter().map(|(places, ..)| places.len()).collect()
}

/// What a receiver that segments gets.
fn received(header: &NetHeader, bytes: &[u8]) -> Vec<Vec<u8>> {
    offloaded(header, bytes, [&[100_000], &[100_000]], 0)
}

/// Asserts that a receiver gets what was sent, in order, byte for byte. Two things may differ: the identification of IPv4
/// packets that must not be fragmented, and a TCP checksum of zero: 0 and 0xffff mean the same.
pub fn assert_as_sent(written: &Written, sent: &[Sent]) {
    assert_in_order(written, sent);
    for (places, header, bytes) in written {
        let these: Vec<&Sent> = places.iter().map(|at| &sent[*at]).collect();
        if these.len() == 1 {
            assert!((header, bytes) == (&these[0].0, &these[0].1), "alone, it goes as it is");
            continue;
        }
        assert!(bytes.len() <= 0xffff && header.flags == NEEDS_CSUM);
        let segments = received(header, bytes);
        assert_eq!(segments.len(), places.len());
        for (segment, (header, frame)) in segments.iter().zip(these) {
            let alone = received(header, frame);
            let [expected] = &alone[..] else { panic!("one frame") };
            assert!(
                comparable(segment, header) == comparable(expected, header),
                "{:02x?} instead of {:02x?}",
                &segment[..110.min(segment.len())],
                &expected[..110.min(expected.len())]
            );
        }
    }
    // A burst ends early if its frames have very many buffers.
    assert!(!written.is_empty());
}

fn comparable(frame: &[u8], header: &NetHeader) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let mut at = 12;
    while matches!(frame[at..at + 2], [0x81, 0x00] | [0x88, 0xa8]) {
        at += 4;
    }
    let (network_at, is_v4) = (at + 2, frame[at..at + 2] == [0x08, 0x00]);
    if is_v4 && frame[network_at + 6] & 0x40 != 0 {
        frame[network_at + 4..network_at + 6].fill(0);
        frame[network_at + 10..network_at + 12].fill(0);
    }
    let field = usize::from(header.csum_start) + 16;
    if header.flags == NEEDS_CSUM && header.csum_offset == 16 && frame[field..field + 2] == [0; 2] {
        frame[field..field + 2].fill(0xff);
    }
    frame
}

/// Sent by a driver that leaves no checksum to the device.
pub fn complete(frames: Vec<Vec<u8>>) -> Vec<Sent> {
    frames.into_iter().map(|frame| (NetHeader::PLAIN, frame)).collect()
}

/// How one frame of a burst differs from the next one of its flow.
#[derive(Clone, Debug)]
enum Oddity {
    None,
    /// This byte has this value, and the checksums are right or not.
    Byte(usize, u8, bool),
    /// The net header has this byte.
    NetHeader(usize, u8),
    /// Bytes follow the packet.
    Padded(usize),
    /// It has lost its end.
    Short(usize),
    /// The identification does not grow.
    SameId,
    Fragmentable,
    Pushed,
}

fn oddity() -> impl Strategy<Value = Oddity> {
    prop_oneof![
        12 => Just(Oddity::None),
        1 => (0..130_usize, any::<u8>(), any::<bool>()).prop_map(|(at, value, is_right)| Oddity::Byte(at, value, is_right)),
        1 => (0..10_usize, any::<u8>()).prop_map(|(at, value)| Oddity::NetHeader(at, value)),
        1 => (1..20_usize).prop_map(Oddity::Padded),
        1 => (1..120_usize).prop_map(Oddity::Short),
        1 => Just(Oddity::SameId),
        1 => Just(Oddity::Fragmentable),
        1 => Just(Oddity::Pushed),
    ]
}

/// A frame: its flow, its length (of four), whether its checksum is partial, and its oddity.
type Piece = (usize, usize, bool, Oddity);

fn piece() -> impl Strategy<Value = Piece> {
    let len = prop_oneof![8 => Just(0), 1 => Just(1), 1 => Just(2), 1 => Just(3)];
    (
        prop_oneof![6 => Just(0), 1 => Just(1), 1 => Just(2), 1 => Just(3)],
        len,
        any::<bool>(),
        oddity(),
    )
}

fn burst(pieces: &[Piece], payload: &[u8], flows: &mut [Shape; 4]) -> Vec<Sent> {
    pieces
        .iter()
        .map(|(flow, len, is_partial, oddity)| {
            let shape = &mut flows[*flow];
            let payload = &payload[..[1000, 700, 1001, 1][*len]];
            let checksum = if *is_partial { Checksum::Partial } else { Checksum::Complete };
            let flags = shape.flags;
            if let Oddity::Pushed = oddity {
                shape.flags |= PSH;
            }
            let mut frame = shape.with(payload, checksum);
            shape.flags = flags;
            let mut header = if *is_partial { shape.needs_checksum() } else { NetHeader::PLAIN };
            match *oddity {
                Oddity::Byte(at, value, is_right) if at < frame.len() => {
                    frame[at] = value;
                    if is_right && !is_partial {
                        right_again(shape, &mut frame);
                    }
                }
                Oddity::NetHeader(at, value) => {
                    let mut bytes = header.to_bytes();
                    bytes[at] = value;
                    header = NetHeader::from_bytes(&bytes);
                }
                Oddity::Padded(len) => frame.extend(vec![0; len]),
                Oddity::Short(len) => frame.truncate(len),
                Oddity::Fragmentable if !shape.is_v6 && !is_partial => {
                    let at = shape.network_at() + 6;
                    frame[at] = 0;
                    right_again(shape, &mut frame);
                }
                _ => {}
            }
            if !matches!(oddity, Oddity::SameId) {
                shape.id = shape.id.wrapping_add(1);
            }
            shape.sequence = shape.sequence.wrapping_add(payload.len() as u32);
            (header, frame)
        })
        .collect()
}

/// Two flows of UDP and two of TCP, one of each over IPv6, some with VLAN tags.
fn flows() -> impl Strategy<Value = [Shape; 4]> {
    (any::<[(bool, u16, u32); 4]>(), prop_oneof![Just(ACK), Just(ACK | ECE)]).prop_map(
        |(numbers, flags)| {
            std::array::from_fn(|n| {
                let (is_tagged, id, sequence) = numbers[n];
                let tags = if is_tagged { vec![0x8100] } else { Vec::new() };
                let of = if n < 2 { udp(n == 1) } else { Shape { is_v6: n == 3, ..tcp4() } };
                Shape { tags, id, sequence, flags, addresses: [n as u8; 32], ..of }
            })
        },
    )
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        2 => Just(vec![100_000]),
        2 => Just(vec![12, 100_000]),
        1 => Just(vec![10, 54, 400, 100_000]),
        1 => vec(10..300_usize, 1..6),
    ]
}

proptest! {
    #[test]
    fn a_receiver_that_segments_gets_what_was_sent(
        mut flows in flows(),
        pieces in vec(piece(), 1..64),
        payload in payload(1001..1002),
        cuts in cuts(),
        is_packed in any::<bool>(),
        has_long_header in any::<bool>(),
    ) {
        let sent = burst(&pieces, &payload, &mut flows);
        let mut features = if is_packed { BASE } else { BASE & !(1 << 34) };
        if !has_long_header {
            features = BASE & !(1 << 34 | LONG_HEADER);
        }
        for sorts in [false, true] {
            let written = written_by(sorts, Offloads::ALL, MTU, features, &cuts, &sent);
            assert_as_sent(&written, &sent);
            let order: Vec<usize> = written.iter().flat_map(|(places, ..)| places.clone()).collect();
            prop_assert!(sorts || order.is_sorted());
        }
    }

    #[test]
    fn frames_of_one_flow_are_as_few_packets_as_there_can_be(
        flows in flows(), which in 0..4_usize, payload in payload(2..64 * 500), gso_size in 500..1400_u16,
        is_partial in any::<bool>(), is_fixed in any::<bool>(), cuts in prop_oneof![Just(vec![100_000]), Just(vec![12, 700, 1])],
    ) {
        let mut shape = flows[which].clone();
        let sent: Vec<Sent> = payload.chunks(gso_size.into()).map(|part| {
            let checksum = if is_partial { Checksum::Partial } else { Checksum::Complete };
            let frame = shape.with(part, checksum);
            shape.id = shape.id.wrapping_add(u16::from(!is_fixed));
            shape.sequence = shape.sequence.wrapping_add(part.len() as u32);
            (if is_partial { shape.needs_checksum() } else { NetHeader::PLAIN }, frame)
        }).collect();
        let cuts = if cuts.len() == 1 { cuts } else { vec![12, 100_000] };
        let written = written(Offloads::ALL, MTU, BASE, &cuts, &sent);
        assert_as_sent(&written, &sent);
        let room = 0xffff - shape.payload_at();
        prop_assert_eq!(written.len(), sent.len().div_ceil(room / usize::from(gso_size)));
    }
}

#[test]
fn an_identification_goes_on_as_segmentation_has_it() {
    let shape = udp(false);
    let frames = shape.segments(&[7; 5000], 1000);
    let at = shape.network_at() + 4;
    let with_ids = |ids: [u16; 5], may_fragment: bool| {
        let mut frames = frames.clone();
        for (frame, id) in frames.iter_mut().zip(ids) {
            frame[at..at + 2].copy_from_slice(&id.to_be_bytes());
            if may_fragment {
                frame[at + 2] = 0;
            }
            right_again(&shape, frame);
        }
        counts(&joined(&complete(frames)))
    };
    assert_eq!(with_ids([0xfffe, 0xffff, 0, 1, 2], true), [5]);
    assert_eq!(with_ids([7, 8, 9, 11, 12], true), [3, 2]);
    assert_eq!(with_ids([0; 5], true), [1; 5]);
    // Nobody asks for the identification of a packet that must not be fragmented (RFC 6864).
    assert_eq!(with_ids([0; 5], false), [5]);
    assert_eq!(with_ids([0, 0, 1, 2, 3], false), [2, 3]);
}

#[test]
fn a_wrong_checksum_goes_on_as_it_is_and_ends_the_joining() {
    for shape in [udp(false), udp(true), Shape { flags: ACK, ..tcp4() }] {
        let good = shape.segments(&[7; 6000], 1000);
        for which in 0..6 {
            let mut frames = good.clone();
            frames[which][shape.payload_at() + 500] ^= 1;
            let sent = complete(frames);
            let written = joined(&sent);
            assert_as_sent(&written, &sent);
            let before: &[usize] = match which {
                0 | 1 => &[],
                _ => &[which],
            };
            let rest = vec![1; 6 - before.iter().sum::<usize>()];
            assert_eq!(counts(&written), [before, &rest].concat(), "frame {which}");
        }
    }
}

#[test]
fn a_partial_checksum_must_be_the_sum_of_the_pseudo_header() {
    for shape in [udp(false), udp(true), Shape { flags: ACK, ..tcp4() }] {
        let header = shape.needs_checksum();
        let mut next = shape.clone();
        let frames: Vec<_> = (0..3)
            .map(|_| {
                let frame = next.with(&[7; 1000], Checksum::Partial);
                (next.id, next.sequence) = (next.id + 1, next.sequence.wrapping_add(1000));
                frame
            })
            .collect();
        let with = |header: NetHeader| -> Vec<Sent> {
            frames.iter().map(|frame| (header, frame.clone())).collect()
        };
        assert_eq!(counts(&joined(&with(header))), [3]);
        let len = u16::try_from(frames[0].len()).unwrap();
        for odd in [
            NetHeader { csum_start: header.csum_start + 2, ..header },
            NetHeader { csum_offset: header.csum_offset + 2, ..header },
            NetHeader { flags: 3, ..header },
            NetHeader { gso_type: GSO_TCPV4, gso_size: 100, ..header },
            NetHeader { hdr_len: len + 1, ..header },
            NetHeader::PLAIN,
        ] {
            let sent = with(odd);
            let written = joined(&sent);
            assert_eq!(counts(&written), [1; 3], "{odd:?}");
            assert_as_sent(&written, &sent);
        }
        let mut wrong = with(header);
        wrong[1].1[shape.transport_at() + shape.checksum_offset()] ^= 1;
        assert_eq!(counts(&joined(&wrong)), [1; 3]);
    }
}

#[test]
fn what_the_datapath_does_not_take_goes_alone() {
    let all = Offloads::ALL;
    let tcp = Shape { flags: ACK, ..tcp4() };
    let tcp6 = Shape { is_v6: true, ..tcp.clone() };
    for (shape, without) in [
        (udp(false), Offloads { uso: false, ..all }),
        (udp(true), Offloads { uso: false, ..all }),
        (tcp.clone(), Offloads { tso4: false, ..all }),
        (tcp6, Offloads { tso6: false, ..all }),
        (udp(false), Offloads { checksum: false, ..all }),
    ] {
        let sent = complete(shape.segments(&[7; 3000], 1000));
        let counts = |offloads| counts(&written(offloads, MTU, BASE, &[100_000], &sent));
        assert_eq!((counts(all), counts(without)), (vec![3], vec![1; 3]));
    }
    // Longer than the link takes: the kernel looks at the length of frames, not of segments.
    let sent = complete(udp(false).segments(&[7; 3000], 1000));
    assert_eq!(counts(&written(all, 1028, BASE, &[100_000], &sent)), [3]);
    assert_eq!(counts(&written(all, 1027, BASE, &[100_000], &sent)), [1; 3]);
}

#[test]
fn frames_that_segmentation_would_change_go_alone() {
    let tcp = Shape { flags: ACK, ..tcp4() };
    for (odd, what) in [
        (Shape { ip_options: 1, ..udp(false) }, "options of IPv4"),
        (Shape { extensions: vec![(60, 0)], ..udp(true) }, "extension headers"),
        (Shape { flags: ACK | 0x02, ..tcp.clone() }, "SYN"),
        (Shape { flags: ACK | 0x20, ..tcp.clone() }, "URG"),
    ] {
        let sent = complete(odd.segments(&[7; 3000], 1000));
        assert_eq!(counts(&joined(&sent)), [1; 3], "{what}");
    }
    let mut closing = tcp.segments(&[7; 3000], 1000);
    closing[1][tcp.transport_at() + 13] |= FIN;
    right_again(&tcp, &mut closing[1]);
    assert_eq!(counts(&joined(&complete(closing))), [1; 3]);
    let shape = udp(false);
    let (network_at, transport_at) = (shape.network_at(), shape.transport_at());
    let good = shape.segments(&[7; 3000], 1000);
    for (at, change, what) in [
        (0, 1, "address of the station"),
        (network_at + 1, 3, "congestion"),
        (network_at + 6, 0x20, "a fragment"),
        (network_at + 7, 1, "a later fragment"),
        (network_at + 8, 1, "time to live"),
        (network_at + 13, 1, "address"),
        (transport_at + 1, 1, "port"),
        (transport_at + 5, 1, "length of UDP"),
    ] {
        let mut frames = good.clone();
        frames[1][at] ^= change;
        right_again(&shape, &mut frames[1]);
        let sent = complete(frames);
        let written = joined(&sent);
        assert_eq!(counts(&written), [1; 3], "{what}");
        assert_in_order(&written, &sent);
    }
    // Segmentation would give them a checksum, or one written in another way.
    for (field, value) in [(transport_at + 6, [0, 0]), (network_at + 10, [0xff, 0xff])] {
        let mut frames = good.clone();
        frames.iter_mut().for_each(|frame| frame[field..field + 2].copy_from_slice(&value));
        assert_eq!(counts(&joined(&complete(frames))), [1; 3]);
    }
    let empty = vec![shape.with(&[], Checksum::Complete); 3];
    assert_eq!(counts(&joined(&complete(empty))), [1; 3]);
}

#[test]
fn a_shorter_datagram_is_the_last_and_a_longer_one_begins_again() {
    let shape = udp(true);
    let lens = [900, 900, 500, 900, 900, 901, 901, 3];
    let frames = lens.map(|len| shape.with(&vec![7; len], Checksum::Complete));
    let sent = complete(frames.to_vec());
    let written = joined(&sent);
    assert_eq!(counts(&written), [3, 2, 3]);
    assert_as_sent(&written, &sent);
}

#[test]
fn buffers_in_small_pieces_end_a_packet() {
    let shape = udp(false);
    let sent = complete(shape.segments(&[7; 40 * 1000], 1000));
    // 12 bytes of net header and 42 of headers, then 20 pieces of 50 bytes.
    let written = written(
        Offloads::ALL,
        MTU,
        BASE,
        &[54, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50],
        &sent,
    );
    assert_as_sent(&written, &sent);
    assert!(counts(&written).iter().all(|count| *count <= 13), "{:?}", counts(&written));
    assert!(counts(&written).iter().any(|count| *count > 10), "{:?}", counts(&written));
}
