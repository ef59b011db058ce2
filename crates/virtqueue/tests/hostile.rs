//! What a hostile guest or front end does to a split ring (the numbers are those of the list of hostile
//! cases), and that the engine touches nothing but its own device area meanwhile.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{
    DATA, END, Outcome, RING, Ring, SEAM, Shape, goes_on, indirect, memory, read, readable,
    writable, write,
};
use guest_memory::AreaError;
use virtqueue::driver::SplitDriver;
use virtqueue::layout::{DESC_F_NEXT, DESC_F_WRITE, Descriptor, device_area_len};
use virtqueue::{Access, Broken, ChainFault, ConfigError, QueueSetup, Slices, SplitQueue, Taken};

const fn last(address: u64, len: u32) -> Descriptor {
    Descriptor { address, len, flags: 0, next: 0 }
}

/// The outcome of the chain at head 0 of a ring of 8 with these descriptors. Checks that all of guest
/// memory but the device area is as before.
fn outcome_of(descriptors: &[Descriptor]) -> Result<Outcome, Broken> {
    outcome_in(Ring::new(Shape::of(8)), descriptors, Access::Read)
}

fn outcome_in(
    mut ring: Ring,
    descriptors: &[Descriptor],
    access: Access,
) -> Result<Outcome, Broken> {
    for (index, descriptor) in (0..).zip(descriptors) {
        ring.driver.write_descriptor(index, *descriptor);
    }
    ring.driver.offer_raw(0);
    ring.driver.publish();
    let before = read(&ring.memory, 0, END as usize);
    let outcome = ring.outcome(access);
    if let Ok(Outcome::Refused(_)) = outcome {
        goes_on_after(&mut ring);
    }
    let mut after = read(&ring.memory, 0, END as usize);
    let setup = ring.driver.setup();
    for (at, len) in [
        (setup.device_area, device_area_len(setup.size)),
        // `goes_on_after` offers a good chain here.
        (setup.driver_area, 64),
        (setup.descriptor_table + 7 * 16, 16),
    ] {
        let range = at as usize..at as usize + len;
        after[range.clone()].copy_from_slice(&before[range]);
    }
    assert!(before == after, "bytes outside the device area were written");
    outcome
}

/// A refused chain is given back with length 0, and the next, good one is served.
fn goes_on_after(ring: &mut Ring) {
    ring.give_back(0, 0);
    ring.driver.write_descriptor(7, last(DATA, 3));
    ring.driver.offer_raw(7);
    assert_eq!(ring.outcome(Access::Read), Ok(Outcome::Bytes(vec![0; 3])));
    ring.give_back(7, 0);
}

#[test]
fn case_1_a_chain_that_loops_breaks_the_ring() {
    let looped = Err(Broken::Loop { size: 8 });
    assert_eq!(outcome_of(&[goes_on(DATA, 16, 0)]), looped);
    let three = [goes_on(DATA, 1, 1), goes_on(DATA, 1, 2), goes_on(DATA, 1, 1)];
    assert_eq!(outcome_of(&three), looped);
    // Also where it has a fault besides: a chain that is never given back.
    assert_eq!(outcome_of(&[goes_on(END, 16, 0)]), looped);
}

#[test]
fn case_2_a_loop_of_no_bytes_breaks_the_ring_in_bounded_time() {
    assert_eq!(outcome_of(&[goes_on(DATA, 0, 0)]), Err(Broken::Loop { size: 8 }));
    // The largest ring, and an indirect table as large as guest memory.
    let mut ring = Ring::new(Shape::of(32768));
    ring.driver.write_descriptor(0, goes_on(DATA, 0, 0));
    ring.driver.offer_raw(0);
    let start = Instant::now();
    assert_eq!(ring.outcome(Access::Read), Err(Broken::Loop { size: 32768 }));
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn case_2_a_huge_indirect_table_is_not_walked_for_longer_than_its_indices_reach() {
    let ranges = [(vm_memory::GuestAddress(0), 1 << 31)];
    let map = guest_memory::memory::Mapping::from_ranges(&ranges).unwrap();
    let memory = Arc::new(guest_memory::GuestMemory::new(Arc::new(map)));
    let mut ring = Ring::over(memory, Shape::of(8));
    let words = goes_on(DATA, 0, 0).to_words();
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    write(&ring.memory, 0x10_0000, &bytes);
    let len = (1 << 31) - 0x10_0000;
    ring.driver.write_descriptor(0, indirect(0x10_0000, len));
    ring.driver.offer_raw(0);
    let start = Instant::now();
    assert_eq!(ring.outcome(Access::Read), Err(Broken::Loop { size: len / 16 }));
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
}

#[test]
fn case_3_indices_outside_the_table_break_the_ring() {
    for head in [8, 9, 0x7fff, 0xffff] {
        let mut ring = Ring::new(Shape::of(8));
        ring.driver.offer_raw(head);
        let broken = Broken::Index { index: head.into(), size: 8 };
        assert_eq!(ring.outcome(Access::Read), Err(broken));
        assert_eq!(outcome_of(&[goes_on(DATA, 1, head)]), Err(broken));
        assert_eq!(table_outcome(&[goes_on(DATA, 1, head), last(DATA, 1)], 32), {
            Err(Broken::Index { index: head.into(), size: 2 })
        });
    }
}

#[test]
fn case_4_an_available_index_too_far_ahead_breaks_the_ring() {
    for start in [0_u16, 65532] {
        for ahead in [9_u16, 10, 0x7fff, 0x8000, 0xffff] {
            let mut ring = Ring::new(Shape::of(8).starting_at(start));
            let index = start.wrapping_add(ahead);
            ring.driver.write_available_index(index);
            let broken = Broken::AvailableJump { index, ahead, size: 8 };
            assert_eq!(ring.queue.available(), Err(broken));
            // Nothing is taken on the way.
            let memory = Arc::clone(&ring.memory);
            let mut slices = Slices::new();
            assert_eq!(ring.queue.take(&memory, Access::Read, &mut slices), Ok(None));
        }
        let mut ring = Ring::new(Shape::of(8).starting_at(start));
        ring.driver.write_available_index(start.wrapping_add(8));
        assert_eq!(ring.queue.available(), Ok(8));
    }
}

#[test]
fn case_5_a_chain_longer_than_32_bits_breaks_the_ring() {
    let half = 1 << 31;
    let two = [goes_on(DATA, half, 1), last(DATA, half)];
    assert_eq!(outcome_of(&two), Err(Broken::TooLong { len: 1 << 32 }));
    let two = [goes_on(DATA, u32::MAX, 1), last(DATA, u32::MAX)];
    assert_eq!(outcome_of(&two), Err(Broken::TooLong { len: 2 * u64::from(u32::MAX) }));
    // One byte less is only more than the guest has.
    let two = [goes_on(DATA, half, 1), last(DATA, half - 1)];
    assert_eq!(outcome_of(&two), Ok(Outcome::Refused(ChainFault::Unmapped)));
}

#[test]
fn case_6_an_address_that_wraps_costs_the_chain() {
    for (address, len) in
        [(u64::MAX, 1), (u64::MAX, 2), (u64::MAX - 15, 16), (u64::MAX - 15, 17), (0, u32::MAX)]
    {
        let refused = Ok(Outcome::Refused(ChainFault::Unmapped));
        assert_eq!(outcome_of(&[last(address, len)]), refused, "{address:#x} {len}");
    }
}

#[test]
fn case_7_a_buffer_over_two_regions_is_delivered() {
    let mut ring = Ring::new(Shape::of(8));
    write(&ring.memory, SEAM - 3, b"crossing");
    ring.driver.add(&[readable(SEAM - 3, 8)]).unwrap();
    assert_eq!(ring.outcome(Access::Read), Ok(Outcome::Bytes(b"crossing".into())));
}

#[test]
fn case_8_what_is_not_mapped_costs_the_chain_even_at_length_0() {
    let refused = Ok(Outcome::Refused(ChainFault::Unmapped));
    for len in [0, 1, 1500] {
        assert_eq!(outcome_of(&[last(END, len)]), refused);
        assert_eq!(outcome_of(&[goes_on(DATA, 4, 1), last(1 << 40, len)]), refused);
        assert_eq!(outcome_of(&[goes_on(1 << 40, len, 1), last(DATA, 4)]), refused);
    }
    assert_eq!(outcome_of(&[last(END - 1, 2)]), refused, "the end of memory");
    assert_eq!(outcome_of(&[last(END - 1, 1)]), Ok(Outcome::Bytes(vec![0])));
}

/// The outcome of an indirect table of these descriptors, said to be `len` bytes long.
fn table_outcome(table: &[Descriptor], len: u32) -> Result<Outcome, Broken> {
    let ring = Ring::new(Shape::of(8));
    let at = DATA + 0x1000;
    for (n, descriptor) in (0..).zip(table) {
        let bytes: Vec<u8> =
            descriptor.to_words().iter().flat_map(|word| word.to_ne_bytes()).collect();
        write(&ring.memory, at + 16 * n, &bytes);
    }
    outcome_in(ring, &[indirect(at, len)], Access::Read)
}

#[test]
fn case_9_wrong_indirect_tables_break_the_ring() {
    let good = last(DATA, 4);
    assert_eq!(table_outcome(&[good], 16), Ok(Outcome::Bytes(vec![0; 4])));
    // Nested.
    let nested = [goes_on(DATA, 1, 1), indirect(DATA + 0x2000, 16)];
    assert_eq!(table_outcome(&nested, 32), Err(Broken::IndirectNested));
    // Length 0 or no multiple of 16.
    for len in [0, 1, 15, 17, 0xffff_ffff] {
        assert_eq!(table_outcome(&[good], len), Err(Broken::IndirectLength { len }));
    }
    // Looping.
    assert_eq!(table_outcome(&[goes_on(DATA, 1, 0)], 16), Err(Broken::Loop { size: 1 }));
    // Unmapped, or in two regions.
    for (address, len) in [(END, 16), (1 << 40, 16), (u64::MAX - 15, 16), (SEAM - 16, 32)] {
        let broken = Broken::IndirectUnmapped { address, len };
        assert_eq!(outcome_of(&[indirect(address, len)]), Err(broken));
    }
    // Together with NEXT.
    let both = Descriptor { next: 1, ..indirect(DATA, 16) };
    let both = Descriptor { flags: both.flags | DESC_F_NEXT, ..both };
    assert_eq!(outcome_of(&[both, good]), Err(Broken::IndirectNested));
    // Not negotiated.
    let ring = Ring::new(Shape::of(8).without_indirect());
    let outcome = outcome_in(ring, &[indirect(DATA, 16)], Access::Read);
    assert_eq!(outcome, Err(Broken::IndirectNotNegotiated));
}

#[test]
fn case_9_an_indirect_table_need_not_be_aligned() {
    let mut ring = Ring::new(Shape::of(8));
    let at = DATA + 0x1003;
    let bytes: Vec<u8> =
        last(DATA, 5).to_words().iter().flat_map(|word| word.to_ne_bytes()).collect();
    write(&ring.memory, at, &bytes);
    ring.driver.write_descriptor(0, indirect(at, 16));
    ring.driver.offer_raw(0);
    assert_eq!(ring.outcome(Access::Read), Ok(Outcome::Bytes(vec![0; 5])));
}

#[test]
fn case_12_a_buffer_of_the_wrong_direction_costs_the_chain() {
    let refused = Ok(Outcome::Refused(ChainFault::WrongDirection));
    let write_only = |descriptor: Descriptor| Descriptor {
        flags: descriptor.flags | DESC_F_WRITE,
        ..descriptor
    };
    let chain = [goes_on(DATA, 12, 1), last(DATA + 64, 60)];
    let [first, second] = chain;
    assert_eq!(outcome_of(&[write_only(first), second]), refused);
    assert_eq!(outcome_of(&[first, write_only(second)]), refused);
    assert_eq!(outcome_in(Ring::new(Shape::of(8)), &[last(DATA, 1)], Access::Read), {
        Ok(Outcome::Bytes(vec![0]))
    });
    let mut ring = Ring::new(Shape::of(8));
    ring.driver.add(&[writable(DATA, 12), readable(DATA, 60)]).unwrap();
    assert_eq!(ring.outcome(Access::Write), refused);
}

/// HOSTILE 10. Whatever a second thread writes meanwhile, what was checked is what is used: the slices
/// of a chain add up to its length, and none leads out of guest memory.
#[test]
fn case_10_descriptors_that_change_meanwhile_are_used_as_they_were_checked() {
    let memory = memory();
    let mut driver = SplitDriver::new(&memory, RING, 8, false, true);
    let mut queue = SplitQueue::new(&driver.setup(), &memory).unwrap();
    let table = DATA + 0x1000;
    let good = [DATA, 64];
    let evil = [END - 8, 0xffff_fff0 | u64::from(DESC_F_NEXT) << 32 | 9 << 48];
    let words: Vec<u8> = good.iter().flat_map(|word: &u64| word.to_ne_bytes()).collect();
    write(&memory, RING + 16, &words);
    write(&memory, table, &words);
    let stop = Arc::new(AtomicBool::new(false));
    let flipper = std::thread::spawn({
        let (memory, stop) = (Arc::clone(&memory), Arc::clone(&stop));
        move || {
            let area = guest_memory::Area::new(&memory, RING + 16, 16, 16).unwrap();
            let inner = guest_memory::Area::new(&memory, table, 16, 16).unwrap();
            while !stop.load(Ordering::Relaxed) {
                for words in [[good[0], good[1]], [good[0], evil[1]], [evil[0], good[1]], evil] {
                    area.write(0, words);
                    inner.write(0, words);
                }
            }
        }
    });
    driver.write_descriptor(0, goes_on(DATA, 12, 1));
    driver.write_descriptor(2, indirect(table, 16));
    let mut outcomes = [0_u32; 3];
    for n in 0..60_000_u16 {
        driver.offer_raw(if n & 1 == 0 { 0 } else { 2 });
        driver.publish();
        queue.available().unwrap();
        let mut slices = Slices::new();
        match queue.take(&memory, Access::Read, &mut slices) {
            Ok(Some(Taken::Chain(chain))) => {
                let len: usize = chain.of(&slices).iter().map(guest_memory::GuestSlice::len).sum();
                assert_eq!(len, chain.len as usize);
                assert!(len == 64 || len == 76, "{len}");
                outcomes[0] += 1;
                queue.complete(chain.head, 0);
            }
            Ok(Some(Taken::Refused { head, .. })) => {
                outcomes[1] += 1;
                queue.complete(head, 0);
            }
            Err(_) => {
                // The ring is broken: reset it.
                outcomes[2] += 1;
                let setup = QueueSetup { next_available: n.wrapping_add(1), ..driver.setup() };
                queue = SplitQueue::new(&setup, &memory).unwrap();
            }
            other => panic!("{other:?}"),
        }
        queue.publish();
    }
    stop.store(true, Ordering::Relaxed);
    flipper.join().unwrap();
    assert!(outcomes[0] > 0 && outcomes[1] + outcomes[2] > 0, "{outcomes:?}");
}

#[test]
fn case_30_a_size_that_is_no_power_of_two_is_refused() {
    let memory = memory();
    let setup = SplitDriver::new(&memory, RING, 8, false, false).setup();
    for size in [0, 3, 6, 7, 9, 100, 1000, 0x7fff, 0x8001, 0xffff] {
        let refused = SplitQueue::new(&QueueSetup { size, ..setup }, &memory).unwrap_err();
        assert_eq!(refused, ConfigError::Size(size));
    }
    for size in [1, 2, 8, 1024] {
        let setup = SplitDriver::new(&memory, RING, size, false, false).setup();
        assert_eq!(SplitQueue::new(&setup, &memory).unwrap().size(), size);
    }
}

#[test]
fn case_34_rings_that_are_unaligned_unmapped_or_in_two_regions_are_refused() {
    let memory = memory();
    let setup = SplitDriver::new(&memory, RING, 8, false, false).setup();
    let at = |part: usize, address| {
        let mut setup = setup;
        *[&mut setup.descriptor_table, &mut setup.driver_area, &mut setup.device_area][part] =
            address;
        SplitQueue::new(&setup, &memory).map(drop)
    };
    let parts = [("descriptor table", 16, 128), ("driver area", 2, 22), ("device area", 4, 70)];
    for (n, (part, align, len)) in parts.into_iter().enumerate() {
        let refused = |source| Err(ConfigError::Area { part, source });
        for off in 1..align {
            let address = DATA + off as u64;
            assert_eq!(at(n, address), refused(AreaError::Misaligned { address, align }));
        }
        let step = align as u64;
        // Unmapped, wrapping 64 bits, out at the end of memory, and from one region into the next.
        for address in [END, 1 << 40, u64::MAX - step + 1, END - step, SEAM - step] {
            assert_eq!(
                at(n, address),
                refused(AreaError::Unmapped { address, len }),
                "{address:#x}"
            );
        }
        assert_eq!(at(n, (END - len as u64) / step * step), Ok(()));
        assert_eq!(at(n, SEAM), Ok(()));
    }
}

#[test]
fn messages_say_what_was_found_and_what_was_expected() {
    let memory = memory();
    let setup = SplitDriver::new(&memory, RING, 8, false, false).setup();
    let refused = SplitQueue::new(&QueueSetup { size: 7, ..setup }, &memory).unwrap_err();
    assert_eq!(refused.to_string(), "queue size 7; expected a power of two from 1 to 32768");
    let refused = SplitQueue::new(&QueueSetup { driver_area: END, ..setup }, &memory).unwrap_err();
    let text = "the driver area: 22 bytes at 0x300000 are not in one region of guest memory";
    assert_eq!(refused.to_string(), text);
}
