//! What a hostile guest does to a split ring (the numbers are those of the list of hostile cases), and that
//! the engine touches nothing but its own device area meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::{
    DATA, END, Outcome, Ring, SEAM, Shape, bytes_of, goes_on, indirect, last, readable, writable,
    write,
};
use virtqueue::layout::{DESC_F_NEXT, DESC_F_WRITE, Descriptor};
use virtqueue::{Access, ChainFault, Chains, RingError};

/// The outcome of the chain at head 0 of a ring of 8 with these descriptors. Checks that all of guest
/// memory but the device area is as before.
fn outcome_of(descriptors: &[Descriptor]) -> Result<Outcome, RingError> {
    outcome_in(Ring::new(Shape::split(8)), descriptors, Access::Read)
}

fn outcome_in(
    mut ring: Ring,
    descriptors: &[Descriptor],
    access: Access,
) -> Result<Outcome, RingError> {
    for (index, descriptor) in (0..).zip(descriptors) {
        ring.split().write_descriptor(index, *descriptor);
    }
    ring.split().offer_raw(0);
    ring.hostile_outcome(access)
}

#[test]
fn a_chain_that_loops_breaks_the_ring() {
    let looped = Err(RingError::Loop { size: 8 });
    assert_eq!(outcome_of(&[goes_on(DATA, 16, 0)]), looped);
    let three = [goes_on(DATA, 1, 1), goes_on(DATA, 1, 2), goes_on(DATA, 1, 1)];
    assert_eq!(outcome_of(&three), looped);
    // Also where it has a fault besides: a chain that is never given back.
    assert_eq!(outcome_of(&[goes_on(END, 16, 0)]), looped);
}

#[test]
fn a_loop_of_no_bytes_breaks_the_ring_in_bounded_time() {
    assert_eq!(outcome_of(&[goes_on(DATA, 0, 0)]), Err(RingError::Loop { size: 8 }));
    // The largest ring, and an indirect table as large as guest memory.
    let mut ring = Ring::new(Shape::split(32768));
    ring.split().write_descriptor(0, goes_on(DATA, 0, 0));
    ring.split().offer_raw(0);
    let start = Instant::now();
    assert_eq!(ring.outcome(Access::Read), Err(RingError::Loop { size: 32768 }));
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_huge_indirect_table_is_walked_no_further_than_a_chain_may_reach() {
    let ranges = [(vm_memory::GuestAddress(0), 1 << 31)];
    let map = guest_memory::memory::Mapping::from_ranges(&ranges).unwrap();
    let memory = Arc::new(guest_memory::GuestMemory::new(Arc::new(map)));
    let mut ring = Ring::over(memory, Shape::split(8));
    write(&ring.memory, 0x10_0000, &bytes_of(goes_on(DATA, 0, 0)));
    let len = (1 << 31) - 0x10_0000;
    ring.split().write_descriptor(0, indirect(0x10_0000, len));
    ring.split().offer_raw(0);
    let start = Instant::now();
    assert_eq!(ring.outcome(Access::Read), Err(RingError::TooManyDescriptors { limit: 1024 }));
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
}

#[test]
fn indices_outside_the_table_break_the_ring() {
    for head in [8, 9, 0x7fff, 0xffff] {
        let mut ring = Ring::new(Shape::split(8));
        ring.split().offer_raw(head);
        let broken = RingError::Index { index: head.into(), size: 8 };
        assert_eq!(ring.outcome(Access::Read), Err(broken));
        assert_eq!(outcome_of(&[goes_on(DATA, 1, head)]), Err(broken));
        assert_eq!(table_outcome(&[goes_on(DATA, 1, head), last(DATA, 1)], 32), {
            Err(RingError::Index { index: head.into(), size: 2 })
        });
    }
}

#[test]
fn an_available_index_too_far_ahead_breaks_the_ring() {
    for start in [0_u16, 65532] {
        for ahead in [9_u16, 10, 0x7fff, 0x8000, 0xffff] {
            let mut ring = Ring::new(Shape::split(8).starting_at(start));
            let index = start.wrapping_add(ahead);
            ring.split().write_available_index(index);
            let broken = RingError::AvailableJump { index, ahead, size: 8 };
            assert_eq!(ring.queue.available_descriptors(), Err(broken));
            // Nothing is taken on the way.
            let memory = Arc::clone(&ring.memory);
            let mut chains = Chains::new();
            assert_eq!(ring.queue.take(&memory, Access::Read, 8, &mut chains), Ok(()));
            assert!(chains.is_empty());
        }
        let mut ring = Ring::new(Shape::split(8).starting_at(start));
        ring.split().write_available_index(start.wrapping_add(8));
        assert_eq!(ring.queue.available_descriptors(), Ok(8));
    }
}

#[test]
fn a_chain_longer_than_32_bits_breaks_the_ring() {
    let half = 1 << 31;
    let two = [goes_on(DATA, half, 1), last(DATA, half)];
    assert_eq!(outcome_of(&two), Err(RingError::TooLong { len: 1 << 32 }));
    let two = [goes_on(DATA, u32::MAX, 1), last(DATA, u32::MAX)];
    assert_eq!(outcome_of(&two), Err(RingError::TooLong { len: 2 * u64::from(u32::MAX) }));
    // One byte less is only more than the guest has.
    let two = [goes_on(DATA, half, 1), last(DATA, half - 1)];
    assert_eq!(outcome_of(&two), Ok(Outcome::Refused(ChainFault::Unmapped)));
}

#[test]
fn an_address_that_wraps_costs_the_chain() {
    for (address, len) in
        [(u64::MAX, 1), (u64::MAX, 2), (u64::MAX - 15, 16), (u64::MAX - 15, 17), (0, u32::MAX)]
    {
        let refused = Ok(Outcome::Refused(ChainFault::Unmapped));
        assert_eq!(outcome_of(&[last(address, len)]), refused, "{address:#x} {len}");
    }
}

#[test]
fn a_buffer_over_two_regions_is_delivered() {
    let mut ring = Ring::new(Shape::split(8));
    write(&ring.memory, SEAM - 3, b"crossing");
    ring.driver.add(&[readable(SEAM - 3, 8)]).unwrap();
    assert_eq!(ring.outcome(Access::Read), Ok(Outcome::Bytes(b"crossing".into())));
}

#[test]
fn what_is_not_mapped_costs_the_chain_even_at_length_0() {
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
fn table_outcome(table: &[Descriptor], len: u32) -> Result<Outcome, RingError> {
    let ring = Ring::new(Shape::split(8));
    let at = DATA + 0x1000;
    for (n, descriptor) in (0..).zip(table) {
        write(&ring.memory, at + 16 * n, &bytes_of(*descriptor));
    }
    outcome_in(ring, &[indirect(at, len)], Access::Read)
}

#[test]
fn wrong_indirect_tables_break_the_ring() {
    let good = last(DATA, 4);
    assert_eq!(table_outcome(&[good], 16), Ok(Outcome::Bytes(vec![0; 4])));
    // Nested.
    let nested = [goes_on(DATA, 1, 1), indirect(DATA + 0x2000, 16)];
    assert_eq!(table_outcome(&nested, 32), Err(RingError::IndirectNested));
    // Length 0 or no multiple of 16.
    for len in [0, 1, 15, 17, 0xffff_ffff] {
        assert_eq!(table_outcome(&[good], len), Err(RingError::IndirectLength { len }));
    }
    // Looping.
    assert_eq!(table_outcome(&[goes_on(DATA, 1, 0)], 16), Err(RingError::Loop { size: 1 }));
    // Unmapped, or in two regions.
    for (address, len) in [(END, 16), (1 << 40, 16), (u64::MAX - 15, 16), (SEAM - 16, 32)] {
        let broken = RingError::IndirectUnmapped { address, len };
        assert_eq!(outcome_of(&[indirect(address, len)]), Err(broken));
    }
    // Together with NEXT.
    let both = Descriptor { next: 1, ..indirect(DATA, 16) };
    let both = Descriptor { flags: both.flags | DESC_F_NEXT, ..both };
    assert_eq!(outcome_of(&[both, good]), Err(RingError::IndirectNested));
    // Not negotiated.
    let ring = Ring::new(Shape::split(8).without_indirect());
    let outcome = outcome_in(ring, &[indirect(DATA, 16)], Access::Read);
    assert_eq!(outcome, Err(RingError::IndirectNotNegotiated));
}

/// A chain in the ring's own table may go on in an indirect one (2.7.5.3.1): together they are one chain.
#[test]
fn direct_and_indirect_descriptors_are_counted_together() {
    let too_many = Err(RingError::TooManyDescriptors { limit: 1024 });
    for (count, expected) in [(1020, Ok(Outcome::Bytes(Vec::new()))), (1021, too_many)] {
        let mut ring = Ring::new(Shape::split(8));
        let table = DATA + 0x1000;
        for n in 0..count {
            let is_last = n + 1 == count;
            let entry = if is_last { last(DATA, 0) } else { goes_on(DATA, 0, n + 1) };
            write(&ring.memory, table + 16 * u64::from(n), &bytes_of(entry));
        }
        for n in 0..4 {
            ring.split().write_descriptor(n, goes_on(DATA, 0, n + 1));
        }
        // It may be larger than what is used of it.
        ring.split().write_descriptor(4, indirect(table, 16 * 4096));
        ring.split().offer_raw(0);
        assert_eq!(ring.outcome(Access::Read), expected, "{count}");
    }
}

#[test]
fn an_indirect_table_need_not_be_aligned() {
    let mut ring = Ring::new(Shape::split(8));
    let at = DATA + 0x1003;
    write(&ring.memory, at, &bytes_of(last(DATA, 5)));
    ring.split().write_descriptor(0, indirect(at, 16));
    ring.split().offer_raw(0);
    assert_eq!(ring.outcome(Access::Read), Ok(Outcome::Bytes(vec![0; 5])));
}

#[test]
fn a_buffer_of_the_wrong_direction_costs_the_chain() {
    let refused = Ok(Outcome::Refused(ChainFault::WrongDirection));
    let write_only = |descriptor: Descriptor| Descriptor {
        flags: descriptor.flags | DESC_F_WRITE,
        ..descriptor
    };
    let chain = [goes_on(DATA, 12, 1), last(DATA + 64, 60)];
    let [first, second] = chain;
    assert_eq!(outcome_of(&[write_only(first), second]), refused);
    assert_eq!(outcome_of(&[first, write_only(second)]), refused);
    assert_eq!(outcome_in(Ring::new(Shape::split(8)), &[last(DATA, 1)], Access::Read), {
        Ok(Outcome::Bytes(vec![0]))
    });
    let mut ring = Ring::new(Shape::split(8));
    ring.driver.add(&[writable(DATA, 12), readable(DATA, 60)]).unwrap();
    assert_eq!(ring.hostile_outcome(Access::Write), refused);
}
