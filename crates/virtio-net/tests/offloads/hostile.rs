//! Net headers and frames that make no sense.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burst_trace::DropCause;
use guest_memory::GuestMemory;
use guest_memory::memory::Mapping;
use proptest::collection::vec;
use proptest::prelude::*;
use virtio_net::header::{GSO_ECN, GSO_TCPV4, GSO_UDP, GSO_UDP_L4, NEEDS_CSUM};
use virtio_net::{NetHeader, SoftwareOffload, arrival};
use vm_memory::GuestAddress;

use crate::packets::{Checksum, Shape, payload, shape, slow_sum, tcp4};
use crate::runs::{Run, cuts};

fn refused(header: &NetHeader, frame: &[u8]) -> Option<DropCause> {
    let from = Run::of(frame, &[700]);
    SoftwareOffload::plan(header, &from.slices(), 0, frame.len()).err()
}

const BAD_HEADER: Option<DropCause> = Some(DropCause::TxBadNetHeader);
const UNSEGMENTABLE: Option<DropCause> = Some(DropCause::TxUnsegmentable);

#[test]
fn a_checksum_past_the_frame_is_refused() {
    let of = |csum_start, csum_offset| NetHeader {
        flags: NEEDS_CSUM,
        csum_start,
        csum_offset,
        ..NetHeader::PLAIN
    };
    let frame = [0; 100];
    assert_eq!(refused(&of(0, 98), &frame), None);
    assert_eq!(refused(&of(98, 0), &frame), None);
    for (start, offset) in [(0, 99), (99, 0), (98, 1), (100, 0), (0xffff, 0xffff), (0, 0xffff)] {
        assert_eq!(refused(&of(start, offset), &frame), BAD_HEADER, "{start} {offset}");
    }
}

#[test]
fn segments_that_the_net_header_lies_about_are_refused() {
    let shape = tcp4();
    let frame = shape.with(&[7; 3000], Checksum::Partial);
    let good = shape.needs_segments(1000);
    assert_eq!(refused(&good, &frame), None);
    let len = u16::try_from(frame.len()).unwrap();
    for bad in [
        NetHeader { gso_size: 0, ..good },
        NetHeader { gso_type: 2, ..good },
        NetHeader { gso_type: 0x7f, ..good },
        NetHeader { gso_type: GSO_UDP, ..good },
        NetHeader { gso_type: GSO_ECN, ..good },
        NetHeader { gso_type: GSO_UDP_L4 | GSO_ECN, ..good },
        NetHeader { hdr_len: len + 1, ..good },
        NetHeader { csum_start: len, ..good },
    ] {
        assert_eq!(refused(&bad, &frame), BAD_HEADER, "{bad:?}");
    }
    // A hint: any value within the frame will do.
    for hdr_len in [0, 1, len] {
        assert_eq!(refused(&NetHeader { hdr_len, ..good }, &frame), None);
    }
    for bad in [
        NetHeader { gso_type: GSO_UDP_L4, ..good },
        NetHeader { gso_type: GSO_TCPV4 + 3, ..good },
        NetHeader { csum_start: good.csum_start + 2, ..good },
        NetHeader { csum_offset: 6, ..good },
    ] {
        assert_eq!(refused(&bad, &frame), UNSEGMENTABLE, "{bad:?}");
    }
}

#[test]
fn what_is_no_tcp_or_udp_packet_is_not_cut() {
    let shape = tcp4();
    let good = shape.with(&[7; 3000], Checksum::Partial);
    let header = shape.needs_segments(1000);
    // Ethernet type, version, header length, more fragments, offset, protocol, TCP's header length.
    for (at, value) in
        [(12, 0x09), (14, 0x65), (14, 0x44), (20, 0x20), (21, 1), (23, 1), (46, 0x40), (46, 0x00)]
    {
        let mut frame = good.clone();
        frame[at] = value;
        assert_eq!(refused(&header, &frame), UNSEGMENTABLE, "{value:#x} at {at}");
    }
    let mut cut_off = good.clone();
    cut_off.truncate(shape.payload_at() - 1);
    let header = NetHeader { hdr_len: 0, ..header };
    assert_eq!(refused(&header, &cut_off), UNSEGMENTABLE);
    cut_off.push(1);
    assert_eq!(refused(&header, &cut_off), None, "without payload");
}

#[test]
fn headers_longer_than_what_is_copied_of_them_are_not_cut() {
    let extensions = vec![(60, 20), (60, 8)];
    let shape = Shape { is_v6: true, extensions, ..tcp4() };
    let frame = shape.with(&[7; 3000], Checksum::Partial);
    assert!(shape.payload_at() > 256);
    assert_eq!(refused(&shape.needs_segments(1000), &frame), UNSEGMENTABLE);
    assert_eq!(refused(&shape.needs_checksum(), &frame), None);
}

#[test]
fn a_segment_that_no_ip_header_can_describe_is_refused() {
    let shape = tcp4();
    let mut frame = shape.with(&[7; 60_000], Checksum::Partial);
    frame.resize(65_600, 7);
    assert_eq!(refused(&shape.needs_segments(u16::MAX), &frame), UNSEGMENTABLE);
    assert_eq!(refused(&shape.needs_segments(60_000), &frame), None);
    // The longest, and a byte more; IPv6 counts from behind its first header.
    for (is_v6, len) in [(false, 0xffff), (true, 40 + 0xffff)] {
        let shape = Shape { is_v6, ..tcp4() };
        let mut frame = shape.with(&[7; 60_000], Checksum::Partial);
        frame.resize(65_700, 7);
        let headers = shape.payload_at() - shape.network_at();
        for (longer, cause) in [(0, None), (1, UNSEGMENTABLE)] {
            let gso_size = u16::try_from(len + longer - headers).unwrap();
            assert_eq!(refused(&shape.needs_segments(gso_size), &frame), cause, "{is_v6} {longer}");
        }
    }
}

#[test]
fn a_route_that_is_not_at_its_end_has_another_pseudo_header_and_is_not_cut() {
    let shape = Shape { is_v6: true, extensions: vec![(43, 2)], ..tcp4() };
    let mut frame = shape.with(&[7; 3000], Checksum::Partial);
    assert_eq!(refused(&shape.needs_segments(1000), &frame), None);
    frame[shape.network_at() + 40 + 3] = 1;
    assert_eq!(refused(&shape.needs_segments(1000), &frame), UNSEGMENTABLE);
}

/// A net header of which each field may be anything.
fn any_header() -> impl Strategy<Value = NetHeader> {
    any::<[u8; 12]>().prop_map(|bytes| NetHeader::from_bytes(&bytes))
}

/// A good net header with some fields of a bad one.
fn mixed(good: NetHeader, bad: NetHeader, which: u8) -> NetHeader {
    let pick = |bit: u8| which & 1 << bit != 0;
    NetHeader {
        flags: if pick(0) { bad.flags } else { good.flags },
        gso_type: if pick(1) { bad.gso_type } else { good.gso_type },
        hdr_len: if pick(2) { bad.hdr_len } else { good.hdr_len },
        gso_size: if pick(3) { bad.gso_size } else { good.gso_size },
        csum_start: if pick(4) { bad.csum_start } else { good.csum_start },
        csum_offset: if pick(5) { bad.csum_offset } else { good.csum_offset },
        num_buffers: bad.num_buffers,
    }
}

/// Does with a frame all that its headers ask for.
fn does_no_harm(header: &NetHeader, frame: &[u8], cuts: &[usize]) {
    let from = Run::of(frame, cuts);
    let from = from.slices();
    let Ok(mut offload) = SoftwareOffload::plan(header, &from, 0, frame.len()) else { return };
    while offload.count() > 0 {
        let to = Run::new(offload.next_len(), &[200]);
        offload.write_next(&from, &to.slices(), 0);
        assert!(to.is_sound());
        // Of very many segments a few show it all.
        offload.skip(&from, offload.count().saturating_sub(20));
    }
    // As from a virtual device.
    let header = arrival::header_of(&from, 0, frame.len(), 1500);
    if !header.is_plain() {
        assert_eq!(SoftwareOffload::plan(&header, &from, 0, frame.len()).err(), None, "{header:?}");
    }
}

#[test]
fn whatever_the_guest_writes_meanwhile_every_checksum_is_right() {
    let map = Mapping::from_ranges(&[(GuestAddress(0), 0x2_0000)]).unwrap();
    let memory = Arc::new(GuestMemory::new(Arc::new(map)));
    let shape = tcp4();
    let (transport_at, payload_at) = (shape.transport_at(), shape.payload_at());
    let frame = shape.with(&[7; 20_000], Checksum::Partial);
    memory.write(0, &frame).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let guest = std::thread::spawn({
        let (memory, done) = (Arc::clone(&memory), Arc::clone(&done));
        // From the sequence number on all may change but for the length of the header.
        let places =
            (transport_at as u64 + 4..transport_at as u64 + 12).chain(payload_at as u64..20_000);
        move || {
            for (at, byte) in places.cycle().step_by(7).zip((0..=255).cycle()) {
                memory.write(at, &[byte]).unwrap();
                if done.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    });
    let from = [memory.contiguous(0, frame.len() as u64).unwrap()];
    let mut sums = Vec::new();
    for _ in 0..50 {
        let mut offload =
            SoftwareOffload::plan(&shape.needs_segments(1400), &from, 0, frame.len()).unwrap();
        while offload.count() > 0 {
            let to = Run::new(offload.next_len(), &[5000]);
            let len = offload.write_next(&from, &to.slices(), 0);
            let transport_len = u16::try_from(len - transport_at).unwrap().to_be_bytes();
            let pseudo = [&shape.addresses[..8], &[0, 6], &transport_len].concat();
            sums.push(slow_sum(&[&pseudo, &to.bytes()[transport_at..]].concat()));
        }
    }
    done.store(true, Ordering::Relaxed);
    guest.join().unwrap();
    assert!(sums.iter().all(|sum| *sum == 0xffff), "{sums:x?}");
}

proptest! {
    #[test]
    fn any_bytes_do_no_harm(header in any_header(), frame in vec(any::<u8>(), 1..300), cuts in cuts()) {
        does_no_harm(&header, &frame, &cuts);
    }

    #[test]
    fn good_frames_with_bad_bytes_do_no_harm(
        shape in shape(),
        payload in payload(0..3000),
        bad in any_header(),
        which in any::<u8>(),
        changes in vec((0..120_usize, any::<u8>()), 0..4),
        len in 1..4000_usize,
        cuts in cuts(),
    ) {
        let mut frame = shape.with(&payload, Checksum::Partial);
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(len);
        does_no_harm(&mixed(shape.needs_segments(1000), bad, which), &frame, &cuts);
    }
}
