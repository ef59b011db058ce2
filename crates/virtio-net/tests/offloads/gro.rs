//! TCP segments that are merged on their way to the guest.

use burst_trace::DropCause;
use guest_memory::GuestSlice;
use proptest::collection::vec;
use proptest::prelude::*;
use virtio_net::features::BASE;
use virtio_net::header::GSO_NONE;
use virtio_net::{Link, NetHeader, Offloads, Placed, SoftwareOffload, arrival};

use crate::packets::{CWR, Checksum, FIN, PSH, Shape, payload, right_again, shape, tcp4};
use crate::place::Ring;
use crate::runs::Run;
use crate::software::offloaded;

const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
/// A network card's, and a veth's.
pub const CARD: Link = Link { mtu: 1500, leaves_offloads: false };
pub const VETH: Link = Link { mtu: 1500, leaves_offloads: true };
/// A guest that takes all there is.
pub fn all() -> u64 {
    BASE | Offloads::ALL.to_guest()
}

/// Places frames as a datapath does, in one burst. Returns how many.
fn place(ring: &mut Ring, frames: &[GuestSlice<'_>], link: Link, apart: bool) -> usize {
    let (placed, received) = ring.with_room(|room| {
        if apart {
            room.disable_gro();
        }
        let mut done = 0;
        while done < frames.len() {
            let mut count = 0;
            if room.takes_gro() && frames.len() - done > 1 {
                count = room.place_gro(link, frames[done..].iter().copied());
                assert_ne!(count, 1);
            }
            if count == 0 {
                let header =
                    if link.leaves_offloads { told(&frames[done], link) } else { NetHeader::PLAIN };
                let whole = &[frames[done]];
                let placed = if header.is_for(room.guest_offloads()) {
                    room.place_run(&header, whole, 0)
                } else {
                    let mut offload =
                        SoftwareOffload::plan(&header, whole, 0, whole[0].len()).unwrap();
                    room.place_offloaded(&mut offload, whole)
                };
                if placed == Placed::NoRoom {
                    break;
                }
                count = 1;
            }
            done += count;
        }
        done
    });
    assert!(received.drops.is_empty() && received.broken.is_none());
    assert!(usize::from(received.packets) <= placed);
    placed
}

fn told(frame: &GuestSlice<'_>, link: Link) -> NetHeader {
    arrival::header_of(&[*frame], 0, frame.len(), link.mtu)
}

pub type Came = Vec<(NetHeader, Vec<u8>)>;

/// What a guest with these buffers is given of `frames` that came in one burst.
pub fn came(features: u64, buffers: &[u32], frames: &[Vec<u8>], link: Link, apart: bool) -> Came {
    let mut ring = Ring::new(features);
    buffers.iter().for_each(|len| ring.offer(&[&[*len]]));
    let runs: Vec<_> = frames.iter().map(|frame| Run::of(frame, &[100_000])).collect();
    let slices: Vec<_> = runs.iter().map(|run| run.slices()[0]).collect();
    assert_eq!(place(&mut ring, &slices, link, apart), frames.len());
    std::iter::from_fn(|| ring.came()).collect()
}

/// The frames that a wire would have had, had it been the guest that sent these packets.
pub fn cut(came: &[(NetHeader, Vec<u8>)]) -> Vec<Vec<u8>> {
    let cut =
        came.iter().flat_map(|(header, bytes)| offloaded(header, bytes, [&[9000], &[9000]], 0));
    cut.collect()
}

fn sizes(came: &[(NetHeader, Vec<u8>)]) -> Vec<usize> {
    came.iter().map(|(_, bytes)| bytes.len()).collect()
}

/// A shape whose segments can be merged.
fn mergeable() -> impl Strategy<Value = Shape> {
    (shape(), prop_oneof![Just(ACK), Just(ACK | PSH), Just(ACK | ECE)]).prop_map(
        |(shape, flags)| Shape {
            is_tcp: true,
            ip_options: 0,
            extensions: Vec::new(),
            flags,
            ..shape
        },
    )
}

/// The same frames, some of them with a partial checksum, as within a host.
fn partly(shape: &Shape, frames: &[Vec<u8>], partial: u64) -> Vec<Vec<u8>> {
    let mut next = shape.clone();
    let with_checksum = |(n, frame): (usize, &Vec<u8>)| {
        let payload = &frame[shape.payload_at()..];
        let is_partial = partial >> n & 1 == 1;
        next.flags = frame[shape.transport_at() + 13];
        let checksum = if is_partial { Checksum::Partial } else { Checksum::Complete };
        let frame = next.with(payload, checksum);
        next.id = next.id.wrapping_add(1);
        next.sequence = next.sequence.wrapping_add(payload.len() as u32);
        frame
    };
    frames.iter().enumerate().map(with_checksum).collect()
}

proptest! {
    #[test]
    fn what_was_merged_can_be_cut_into_the_same_frames(
        shape in mergeable(),
        payload in payload(1..64 * 400),
        gso_size in 400..1360_u16,
        partial in any::<u64>(),
        buffers in prop_oneof![Just(vec![70_000]), Just(vec![1536]), vec(300..4000_u32, 1..5)],
        packed in any::<bool>(),
    ) {
        let whole = shape.segments(&payload, gso_size);
        let frames = partly(&shape, &whole, partial);
        let link = if partial == 0 { CARD } else { VETH };
        let features = if packed { all() } else { all() & !(1 << 34) };
        let buffers: Vec<_> = buffers.iter().copied().cycle().take(250).collect();
        let came = came(features, &buffers, &frames, link, false);
        prop_assert_eq!(cut(&came), whole);
        // As few as there can be.
        let room = 0xffff - (shape.payload_at() - shape.network_at());
        prop_assert_eq!(came.len(), frames.len().div_ceil(room / usize::from(gso_size)));
        for (header, bytes) in &came {
            if header.gso_type != GSO_NONE {
                let expected = Shape { flags: ACK, ..shape.clone() }.needs_segments(gso_size);
                prop_assert_eq!(NetHeader { num_buffers: 1, ..*header }, expected);
                prop_assert!(header.is_for(Offloads::ALL));
                prop_assert!(bytes.len() > shape.payload_at() + usize::from(gso_size));
            }
        }
    }

    #[test]
    fn a_byte_that_differs_costs_no_frame_and_changes_none(
        shape in mergeable(), at in 0..110_usize, value in any::<u8>(), is_right in any::<bool>(),
        which in 0..4_usize, virtual_link in any::<bool>(),
    ) {
        let mut frames = shape.segments(&[7; 4000], 1000);
        let at = at % shape.payload_at();
        prop_assume!(frames[which][at] != value);
        frames[which][at] = value;
        if is_right {
            right_again(&shape, &mut frames[which]);
        }
        // What is said of the length or of where the headers end is not to be mended here.
        let link = if virtual_link { VETH } else { CARD };
        let came = came(all(), &[2048; 60], &frames, link, false);
        let differs = frames[which].clone();
        let mut left = frames.into_iter();
        for (header, bytes) in came {
            let expected: Vec<_> = left.by_ref().take(segments_of(&header, &bytes, &shape)).collect();
            if expected.len() == 1 {
                prop_assert_eq!(&bytes, &expected[0]);
                continue;
            }
            prop_assert!(!is_wrong(&differs, &shape) || !expected.contains(&differs));
            let cut = offloaded(&header, &bytes, [&[9000], &[9000]], 0);
            // The identification may stand still, where nobody asks for it.
            prop_assert_eq!(without_id(cut, &shape), without_id(expected, &shape));
        }
        prop_assert!(left.next().is_none());
    }

    #[test]
    fn any_bytes_do_no_harm(
        shape in shape(),
        payload in payload(0..3000),
        changes in vec((0..6_usize, 0..130_usize, any::<u8>()), 0..6),
        lens in vec(1..1600_usize, 6),
        link in prop_oneof![Just(CARD), Just(VETH), Just(Link { mtu: 0, ..VETH })],
        buffers in vec(12..900_u32, 1..20),
    ) {
        let mut frames = shape.segments(&payload, 520);
        frames.truncate(6);
        for (frame, at, value) in changes {
            if let Some(byte) = frames.get_mut(frame).and_then(|frame| frame.get_mut(at)) {
                *byte = value;
            }
        }
        frames.iter_mut().zip(lens).for_each(|(frame, len)| frame.truncate(len));
        let mut ring = Ring::new(all());
        buffers.iter().for_each(|len| ring.offer(&[&[*len]]));
        let runs: Vec<_> = frames.iter().map(|frame| Run::of(frame, &[100_000])).collect();
        let slices: Vec<_> = runs.iter().map(|run| run.slices()[0]).collect();
        let placed = place(&mut ring, &slices, link, false);
        let mut bytes = 0;
        while let Some((_, frame)) = ring.came() {
            bytes += frame.len();
        }
        prop_assert!(bytes <= frames[..placed].iter().map(Vec::len).sum());
        prop_assert!(runs.iter().all(Run::is_sound));
    }
}

fn segments_of(header: &NetHeader, bytes: &[u8], shape: &Shape) -> usize {
    let payload = bytes.len() - shape.payload_at();
    if header.gso_type == GSO_NONE { 1 } else { payload.div_ceil(header.gso_size.into()) }
}

fn is_wrong(frame: &[u8], shape: &Shape) -> bool {
    let mut right = frame.to_vec();
    right_again(shape, &mut right);
    right != frame
}

fn without_id(mut frames: Vec<Vec<u8>>, shape: &Shape) -> Vec<Vec<u8>> {
    if !shape.is_v6 {
        for frame in &mut frames {
            frame[shape.network_at() + 4..shape.network_at() + 6].fill(0);
            right_again(shape, frame);
        }
    }
    frames
}

#[test]
fn a_wrong_checksum_reaches_the_guest_as_it_came() {
    for is_v6 in [false, true] {
        let shape = Shape { is_v6, flags: ACK, ..tcp4() };
        let good = shape.segments(&[7; 6000], 1000);
        let at = [Some(shape.payload_at() + 500), (!is_v6).then_some(shape.network_at() + 11)];
        for (which, at) in (0..6).flat_map(|n| at.iter().flatten().map(move |at| (n, *at))) {
            for link in [CARD, VETH] {
                let mut frames = good.clone();
                frames[which][at] ^= 1;
                let came = came(all(), &[2048; 60], &frames, link, false);
                let wrong = came.iter().find(|(_, bytes)| *bytes == frames[which]);
                assert_eq!(wrong.unwrap().0, NetHeader::PLAIN, "frame {which}, byte {at}");
                assert_eq!(cut(&came), frames);
                assert!(which < 2 || came.len() < 6, "what came before it is merged");
            }
        }
    }
}

#[test]
fn a_card_finishes_what_it_sends_so_a_sum_of_the_pseudo_header_is_wrong() {
    let first = Shape { flags: ACK, ..tcp4() };
    let next = Shape { sequence: first.sequence.wrapping_add(1000), id: 8, ..tcp4() };
    let frames = [first, next].map(|shape| shape.with(&[7; 1000], Checksum::Partial));
    assert_eq!(came(all(), &[2048; 9], &frames, VETH, false).len(), 1);
    let came = came(all(), &[2048; 9], &frames, CARD, false);
    assert_eq!(came, plain(frames));
}

#[test]
fn segments_that_do_not_belong_together_go_apart() {
    let shape = Shape { flags: ACK, ..tcp4() };
    let good = shape.segments(&[7; 3000], 1000);
    let (network_at, transport_at) = (shape.network_at(), shape.transport_at());
    assert_eq!(came(all(), &[2048; 9], &good, CARD, false).len(), 1);
    for (at, change, what) in [
        (0, 1, "address of the station"),
        (network_at + 1, 2, "type of service"),
        (network_at + 4, 1, "identification"),
        (network_at + 6, 0x40, "may be fragmented"),
        (network_at + 8, 1, "time to live"),
        (network_at + 15, 1, "address"),
        (transport_at + 1, 1, "port"),
        (transport_at + 5, 1, "sequence"),
        (transport_at + 11, 1, "acknowledgement"),
        (transport_at + 13, FIN, "end"),
        (transport_at + 13, CWR, "congestion"),
        (transport_at + 13, 0x24, "reset, urgent"),
        (transport_at + 13, ACK, "acknowledges nothing"),
        (transport_at + 15, 1, "window"),
        (transport_at + 19, 1, "urgent pointer"),
        (transport_at + 23, 1, "options"),
    ] {
        let mut frames = good.clone();
        frames[1][at] ^= change;
        right_again(&shape, &mut frames[1]);
        let came = came(all(), &[2048; 9], &frames, CARD, false);
        assert_eq!(came, plain(frames), "{what}");
    }
}

/// Frames as they come by themselves.
pub fn plain(frames: impl IntoIterator<Item = Vec<u8>>) -> Came {
    frames.into_iter().map(|frame| (NetHeader::PLAIN, frame)).collect()
}

#[test]
fn what_linux_does_not_merge_is_not_merged() {
    let shape = Shape { flags: ACK, ..tcp4() };
    let flags = |flags| Shape { flags: flags | ACK, ..shape.clone() };
    for (odd, what) in [
        (Shape { ip_options: 1, ..shape.clone() }, "options of IPv4"),
        (Shape { is_v6: true, extensions: vec![(60, 0)], ..shape.clone() }, "extension headers"),
        (Shape { flags: 0, ..shape.clone() }, "without ACK"),
        (flags(0x02), "SYN"),
        (flags(0x04), "RST"),
        (flags(0x20), "URG"),
    ] {
        let frames = odd.segments(&[7; 3000], 1000);
        assert_eq!(came(all(), &[2048; 9], &frames, CARD, false), plain(frames), "{what}");
    }
    // Those that segmentation takes from all segments but one.
    for odd in [FIN, CWR] {
        let mut frames = shape.segments(&[7; 3000], 1000);
        for frame in &mut frames {
            frame[shape.transport_at() + 13] |= odd;
            right_again(&shape, frame);
        }
        assert_eq!(came(all(), &[2048; 9], &frames, CARD, false), plain(frames), "{odd:#x}");
    }
    let nothing = vec![shape.with(&[], Checksum::Complete); 3];
    assert_eq!(came(all(), &[2048; 9], &nothing, CARD, false), plain(nothing));
    // Filled up behind the packet.
    let mut filled = shape.segments(&[7; 3000], 1000);
    filled.iter_mut().for_each(|frame| frame.extend([0; 2]));
    assert_eq!(came(all(), &[2048; 9], &filled, CARD, false), plain(filled));
    // A longer one behind a shorter one.
    let longer =
        Shape { sequence: shape.sequence.wrapping_add(500), id: shape.id + 1, ..shape.clone() };
    let growing = [&shape, &longer]
        .map(|it| it.with(&vec![7; if it.id == 7 { 500 } else { 501 }], Checksum::Complete));
    assert_eq!(came(all(), &[2048; 9], &growing, CARD, false), plain(growing));
    // What is longer than the link takes was merged already.
    let merged = shape.segments(&[7; 3000], 1000);
    for (mtu, packets) in [(1052, 1), (1051, 3)] {
        let came = came(all(), &[2048; 9], &merged, Link { mtu, ..CARD }, false);
        assert_eq!(came.len(), packets);
    }
}

#[test]
fn a_push_and_a_short_segment_end_a_packet_and_order_is_kept() {
    let shape = Shape { flags: ACK, ..tcp4() };
    let head = shape.payload_at();
    let good = shape.segments(&[7; 6000], 1000);
    let mut pushed = good.clone();
    pushed[2][shape.transport_at() + 13] |= PSH;
    right_again(&shape, &mut pushed[2]);
    let came_pushed = came(all(), &[2048; 9], &pushed, CARD, false);
    assert_eq!(sizes(&came_pushed), [head + 3000; 2]);
    assert_eq!(cut(&came_pushed), pushed);

    let later =
        Shape { sequence: shape.sequence.wrapping_add(2500), id: shape.id + 3, ..shape.clone() };
    let short = [shape.segments(&[7; 2500], 1000), later.segments(&[8; 3000], 1000)].concat();
    let came_short = came(all(), &[2048; 9], &short, CARD, false);
    assert_eq!(sizes(&came_short), [head + 2500, head + 3000]);
    assert_eq!(cut(&came_short), short);

    let mut swapped = good;
    swapped.swap(2, 3);
    let came = came(all(), &[2048; 9], &swapped, CARD, false);
    assert_eq!(sizes(&came), [2000, 1000, 1000, 2000].map(|len| head + len));
    assert_eq!(cut(&came), swapped);
}

#[test]
fn an_identification_that_stands_still_is_one_too_if_nobody_fragments() {
    let shape = Shape { flags: ACK, ..tcp4() };
    for (fragments, packets) in [(0x40, 1), (0, 3)] {
        let mut frames = shape.segments(&[7; 3000], 1000);
        for frame in &mut frames {
            let at = shape.network_at() + 4;
            frame[at..at + 4].copy_from_slice(&[0, 0, fragments, 0]);
            right_again(&shape, frame);
        }
        assert_eq!(came(all(), &[2048; 9], &frames, CARD, false).len(), packets);
        // Once it grows, it has to go on with that.
        frames[2][shape.network_at() + 5] = 1;
        right_again(&shape, &mut frames[2]);
        assert_eq!(came(all(), &[2048; 9], &frames, CARD, false).len(), 2);
    }
}

#[test]
fn no_packet_is_longer_than_ip_can_say() {
    for is_v6 in [false, true] {
        let shape = Shape { is_v6, flags: ACK, ..tcp4() };
        let mut frames = shape.segments(&[7; 0xf000], 1400);
        let later = Shape {
            sequence: shape.sequence.wrapping_add(0xf000 / 1400 * 1400),
            id: shape.id + 0xf000 / 1400,
            ..shape.clone()
        };
        frames.pop();
        frames.extend(later.segments(&[8; 1400 * 20], 1400));
        let came = came(all(), &[4096; 60], &frames, CARD, false);
        assert_eq!((cut(&came), came.len()), (frames, 2));
        assert!(came.iter().all(|(_, bytes)| bytes.len() - shape.network_at() <= 0xffff));
    }
}

#[test]
fn what_the_guest_has_no_buffers_for_comes_when_it_has() {
    let shape = Shape { flags: ACK, ..tcp4() };
    let frames = shape.segments(&[7; 30_000], 1000);
    for (link, partial) in [(CARD, 0), (VETH, u64::MAX)] {
        let sent = partly(&shape, &frames, partial);
        let runs: Vec<_> = sent.iter().map(|frame| Run::of(frame, &[100_000])).collect();
        let slices: Vec<_> = runs.iter().map(|run| run.slices()[0]).collect();
        for (buffer, count) in [(1536, 1), (1536, 3), (400, 7), (100, 30), (5000, 1)] {
            let mut ring = Ring::new(all());
            let (mut done, mut all_came) = (0, Vec::new());
            for _ in 0..frames.len() {
                if done == frames.len() {
                    break;
                }
                (0..count).for_each(|_| ring.offer(&[&[buffer]]));
                done += place(&mut ring, &slices[done..], link, false);
                all_came.extend(std::iter::from_fn(|| ring.came()));
                assert_eq!(cut(&all_came), frames[..done], "{buffer} {count}");
            }
            assert_eq!(done, frames.len(), "{buffer} {count}");
        }
    }
}

#[test]
fn who_does_not_take_it_or_is_kept_from_it_gets_every_frame() {
    const MERGEABLE: u64 = 1 << 15;
    const GUEST_CSUM: u64 = 1 << 1;
    const GUEST_TSO4: u64 = 1 << 7;
    const GUEST_TSO6: u64 = 1 << 8;
    for (is_v6, tso) in [(false, GUEST_TSO4), (true, GUEST_TSO6)] {
        let shape = Shape { is_v6, flags: ACK, ..tcp4() };
        let frames = shape.segments(&[7; 3000], 1000);
        let count = |features, apart| came(features, &[2048; 9], &frames, CARD, apart).len();
        assert_eq!(count(BASE | GUEST_CSUM | tso, false), 1);
        for without in [tso, GUEST_CSUM, MERGEABLE] {
            assert_eq!(count(all() & !without, false), 3);
        }
        assert_eq!(count(all(), true), 3);
    }
}

#[test]
fn a_frame_that_fits_no_buffer_is_dropped_as_ever() {
    let shape = Shape { flags: ACK, ..tcp4() };
    let frames = shape.segments(&[7; 2000], 1000);
    let runs: Vec<_> = frames.iter().map(|frame| Run::of(frame, &[100_000])).collect();
    let slices: Vec<_> = runs.iter().map(|run| run.slices()[0]).collect();
    let mut ring = Ring::new(all());
    (0..256).for_each(|_| ring.offer(&[&[4]]));
    let (placed, received) = ring.with_room(|room| {
        assert_eq!(room.place_gro(CARD, slices.iter().copied()), 0);
        room.place_run(&NetHeader::PLAIN, &slices[..1], 0)
    });
    assert_eq!((placed, received.drops.of(DropCause::RxNoBuffers)), (Placed::Done, 1));
}
