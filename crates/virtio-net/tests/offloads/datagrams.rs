//! UDP datagrams that are merged on their way to the guest.

use proptest::collection::vec;
use proptest::prelude::*;
use virtio_net::NetHeader;
use virtio_net::header::GSO_NONE;

use crate::gro::{CARD, VETH, all, came, cut, plain};
use crate::packets::{Checksum, Shape, payload, right_again, udp};

proptest! {
    #[test]
    fn datagrams_that_were_merged_can_be_cut_into_the_same_frames(
        (is_v6, tags, id) in any::<(bool, bool, u16)>(),
        payload in payload(1..64 * 400),
        gso_size in 400..1360_u16,
        partial in any::<u64>(),
        buffers in prop_oneof![Just(vec![70_000]), Just(vec![1536]), vec(300..4000_u32, 1..5)],
    ) {
        let tags = if tags { vec![0x8100] } else { Vec::new() };
        let shape = Shape { tags, id, ..udp(is_v6) };
        let whole = shape.segments(&payload, gso_size);
        let mut next = shape.clone();
        let frames: Vec<_> = payload.chunks(gso_size.into()).enumerate().map(|(n, payload)| {
            let is_partial = partial >> n & 1 == 1;
            let frame = next.with(payload, if is_partial { Checksum::Partial } else { Checksum::Complete });
            next.id = next.id.wrapping_add(1);
            frame
        }).collect();
        let link = if partial == 0 { CARD } else { VETH };
        let buffers: Vec<_> = buffers.iter().copied().cycle().take(250).collect();
        let came = came(all(), &buffers, &frames, link, false);
        prop_assert_eq!(cut(&came), whole);
        let room = 0xffff - (shape.payload_at() - shape.network_at());
        prop_assert_eq!(came.len(), frames.len().div_ceil(room / usize::from(gso_size)));
        for (header, _) in came.iter().filter(|(header, _)| header.gso_type != GSO_NONE) {
            prop_assert_eq!(NetHeader { num_buffers: 1, ..*header }, shape.needs_segments(gso_size));
        }
    }
}

#[test]
fn datagrams_that_segmentation_would_change_are_not_merged() {
    let shape = udp(false);
    let (network_at, transport_at) = (shape.network_at(), shape.transport_at());
    let good = shape.segments(&[7; 3000], 1000);
    assert_eq!(came(all(), &[2048; 9], &good, CARD, false).len(), 1);
    let without_uso = all() & !(1 << 54 | 1 << 55);
    assert_eq!(came(without_uso, &[2048; 9], &good, CARD, false), plain(good.clone()));
    for (at, change, what) in [
        (network_at + 1, 2, "type of service"),
        (network_at + 4, 1, "identification"),
        (network_at + 6, 0x40, "may be fragmented"),
        (network_at + 8, 1, "time to live"),
        (transport_at + 1, 1, "port"),
        (transport_at + 5, 1, "length"),
    ] {
        let mut frames = good.clone();
        frames[1][at] ^= change;
        right_again(&shape, &mut frames[1]);
        assert_eq!(came(all(), &[2048; 9], &frames, CARD, false), plain(frames), "{what}");
    }
    // Segmentation would give them a checksum.
    let mut unsummed = good;
    unsummed.iter_mut().for_each(|frame| frame[transport_at + 6..transport_at + 8].fill(0));
    assert_eq!(came(all(), &[2048; 9], &unsummed, VETH, false), plain(unsummed));
}
