//! Sums and summing copies against RFC 1071, word by word.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use guest_memory::memory::Mapping;
use guest_memory::{GuestMemory, GuestSlice, Spare, Sum};
use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::GuestAddress;

/// As the RFC says it.
fn slow(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// Random bytes, or all ones, which carry with every word.
fn bytes(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), len.clone()), len.prop_map(|len| vec![0xff; len])]
}

fn read(slice: &GuestSlice<'_>) -> Vec<u8> {
    let mut bytes = vec![0; slice.len()];
    slice.read(0, &mut bytes);
    bytes
}

#[test]
fn what_was_stored_is_what_was_summed_whatever_the_guest_writes_meanwhile() {
    const LEN: usize = 1501;
    let map = Mapping::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let memory = Arc::new(GuestMemory::new(Arc::new(map)));
    let done = Arc::new(AtomicBool::new(false));
    let guest = std::thread::spawn({
        let (memory, done) = (Arc::clone(&memory), Arc::clone(&done));
        move || {
            for (at, byte) in (0..LEN as u64).cycle().zip((0..=255).cycle()) {
                memory.write(at, &[byte]).unwrap();
                if done.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    });
    let from = memory.contiguous(0, LEN as u64).unwrap();
    let to = Spare::new(LEN);
    let mut wrong = 0;
    for _ in 0..2000 {
        let mut sum = Sum::new();
        to.slice().copy_from_summing(0, &from, 0, &mut sum);
        wrong += usize::from(sum.fold() != slow(&read(&to.slice())));
    }
    done.store(true, Ordering::Relaxed);
    guest.join().unwrap();
    assert_eq!(wrong, 0);
}

proptest! {
    #[test]
    fn a_sum_of_parts_is_the_sum_of_the_whole(parts in vec(bytes(0..70), 0..8)) {
        let (mut by_bytes, mut by_sums) = (Sum::new(), Sum::new());
        for part in &parts {
            by_bytes.add_bytes(part);
            let mut alone = Sum::new();
            alone.add_bytes(part);
            by_sums.add_sum(alone);
        }
        let expected = slow(&parts.concat());
        prop_assert_eq!((by_bytes.fold(), by_sums.fold()), (expected, expected));
        prop_assert_eq!(by_bytes.complement(), !expected);
    }

    #[test]
    fn a_number_is_two_bytes(before in bytes(0..5), number: u16) {
        let (mut by_number, mut by_bytes) = (Sum::new(), Sum::new());
        by_number.add_bytes(&before);
        by_number.add_u16(number);
        by_bytes.add_bytes(&[&before[..], &number.to_be_bytes()].concat());
        prop_assert_eq!(by_number.fold(), by_bytes.fold());
    }

    #[test]
    fn a_summing_copy_copies_and_sums_from_any_place_to_any_place(
        before in bytes(0..3),
        source in bytes(0..2000),
        (from_offset, offset, room) in (0..100_usize, 0..100_usize, 0..2000_usize),
    ) {
        let (from, to) = (Spare::new(source.len()), Spare::new(room));
        from.slice().write(0, &source);
        let mut sum = Sum::new();
        sum.add_bytes(&before);
        let count = to.slice().copy_from_summing(offset, &from.slice(), from_offset, &mut sum);

        let copied = source.get(from_offset..).unwrap_or_default();
        let copied = &copied[..copied.len().min(room.saturating_sub(offset))];
        prop_assert_eq!(count, copied.len());
        prop_assert_eq!(sum.fold(), slow(&[&before, copied].concat()));
        let mut expected = vec![0; room];
        if count > 0 {
            expected[offset..offset + count].copy_from_slice(copied);
        }
        prop_assert_eq!(read(&to.slice()), expected);
    }

    #[test]
    fn a_part_is_what_lies_there(len in 0..50_usize, offset in 0..60_usize, part in 0..60_usize) {
        let spare = Spare::new(len);
        let all: Vec<u8> = (1..=50).take(len).collect();
        spare.slice().write(0, &all);
        let from = offset.min(len);
        let expected = &all[from..(from + part).min(len)];
        prop_assert_eq!(read(&spare.slice().part(offset, part)), expected);
    }
}
