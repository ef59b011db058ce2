//! What a hostile guest does to a packed ring (the numbers are those of the list of hostile cases), and that
//! the engine writes nothing but the descriptors that it gives back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::{
    DATA, END, Outcome, RING, Ring, SEAM, Shape, assert_unchanged_but, packed, packed_bytes_of,
    read, readable, snapshot, writable, write,
};
use virtqueue::layout::{
    DESC_F_AVAIL, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_USED, DESC_F_WRITE, PackedDescriptor,
};
use virtqueue::{Access, ChainFault, Chains, RingError};

/// The outcome of a chain of these descriptors, in a ring of 8, also where it ends in between. Checks
/// that all of guest memory but its used descriptor is as before.
fn outcome_of(descriptors: &[PackedDescriptor]) -> Result<Outcome, RingError> {
    let [first, second] = [Shape::packed(8), Shape::packed(8).ending_in(1)]
        .map(|shape| outcome_in(Ring::new(shape), descriptors, Access::Read));
    assert_eq!(first, second);
    first
}

fn outcome_in(
    mut ring: Ring,
    descriptors: &[PackedDescriptor],
    access: Access,
) -> Result<Outcome, RingError> {
    descriptors.iter().for_each(|descriptor| ring.packed().offer_raw(*descriptor));
    ring.hostile_outcome(access)
}

const fn goes_on(address: u64, len: u32) -> PackedDescriptor {
    packed(address, len, DESC_F_NEXT)
}

const fn last(address: u64, len: u32) -> PackedDescriptor {
    packed(address, len, 0)
}

const fn indirect(address: u64, len: u32) -> PackedDescriptor {
    packed(address, len, DESC_F_INDIRECT)
}

#[test]
fn a_list_round_the_whole_ring_breaks_it() {
    let looped = Err(RingError::Loop { size: 8 });
    assert_eq!(outcome_of(&[goes_on(DATA, 16); 8]), looped);
    // Also where it has a fault besides: a chain that is never given back.
    assert_eq!(outcome_of(&[goes_on(END, 16); 8]), looped);
    let write_only = packed(DATA, 16, DESC_F_NEXT | DESC_F_WRITE);
    assert_eq!(outcome_of(&[write_only; 8]), looped);
    // As long as the ring is allowed.
    let mut all = [goes_on(DATA, 1); 8];
    all[7] = last(DATA, 1);
    assert_eq!(outcome_of(&all), Ok(Outcome::Bytes(vec![0; 8])));
}

#[test]
fn a_list_into_what_the_device_holds_breaks_the_ring() {
    for held in 1..8 {
        let mut ring = Ring::new(Shape::packed(8).ending_in(3));
        let memory = Arc::clone(&ring.memory);
        (0..held).for_each(|_| ring.packed().offer_raw(last(DATA, 1)));
        (held..8).for_each(|_| ring.packed().offer_raw(goes_on(DATA, 1)));
        ring.driver.publish();
        assert_ne!(ring.queue.available_descriptors(), Ok(0));
        let mut chains = Chains::new();
        ring.queue.take(&memory, Access::Read, held, &mut chains).unwrap();
        assert_eq!(chains.len(), held);
        let before = snapshot(&memory);
        let broken = ring.queue.take(&memory, Access::Read, 1, &mut chains);
        assert_eq!(broken, Err(RingError::Loop { size: 8 }));
        assert_unchanged_but(&memory, &before, &[]);
    }
}

#[test]
fn a_loop_of_no_bytes_breaks_the_ring_in_bounded_time() {
    assert_eq!(outcome_of(&[goes_on(DATA, 0); 8]), Err(RingError::Loop { size: 8 }));
    for size in [1, 3, 1000, 32768] {
        let mut ring = Ring::new(Shape::packed(size));
        (0..size).for_each(|_| ring.packed().offer_raw(goes_on(DATA, 0)));
        let start = Instant::now();
        let broken = Err(RingError::Loop { size: size.into() });
        assert_eq!(ring.hostile_outcome(Access::Read), broken);
        assert!(start.elapsed() < Duration::from_secs(1));
    }
}

/// A buffer id is the driver's own: whatever it is, it comes back.
#[test]
fn a_buffer_id_outside_the_ring_comes_back_as_it_is() {
    for id in [0, 7, 8, 9, 0x7fff, 0x8000, 0xffff] {
        for shape in [Shape::packed(8), Shape::packed(8).in_order()] {
            let mut ring = Ring::new(shape);
            // Of a list, the last descriptor's id counts.
            ring.packed().offer_raw(PackedDescriptor { id: !id, ..goes_on(DATA, 2) });
            ring.packed().offer_raw(PackedDescriptor { id, ..last(DATA, 3) });
            let (outcome, chain) = ring.outcome_and_chain(Access::Read).unwrap();
            assert_eq!((outcome, chain.id), (Outcome::Bytes(vec![0; 5]), id));
            let before = snapshot(&ring.memory);
            ring.queue.complete_read(&[chain]);
            ring.queue.publish();
            assert_unchanged_but(&ring.memory, &before, &[ring.used_words(0)]);
            let used = PackedDescriptor { id, ..packed(DATA, 0, DESC_F_AVAIL | DESC_F_USED) };
            assert_eq!(read(&ring.memory, RING, 16), packed_bytes_of(used));
        }
    }
}

/// Makes all descriptors look available in the lap with this wrap counter.
fn flag_all_available(ring: &mut Ring, wrap: bool) {
    let owner = if wrap { DESC_F_AVAIL } else { DESC_F_USED };
    for slot in 0..ring.queue.size() {
        ring.packed().write_raw(slot, packed(DATA, 1, owner));
    }
}

#[test]
fn never_more_is_held_than_the_ring_has() {
    for size in [1, 2, 7, 8, 40, 100] {
        let mut ring = Ring::new(Shape::packed(size));
        let memory = Arc::clone(&ring.memory);
        flag_all_available(&mut ring, true);
        let chains = ring.take_all(&memory, Access::Read).unwrap();
        assert_eq!(chains.len(), usize::from(size));
        flag_all_available(&mut ring, false);
        assert_eq!(ring.queue.available_descriptors(), Ok(0));
        assert!(ring.take_all(&memory, Access::Read).unwrap().is_empty());
        let mut again = Chains::new();
        ring.queue.take(&memory, Access::Read, 8, &mut again).unwrap();
        assert!(again.is_empty());
        // What is given back may come again: that much, and no more.
        let (mut done, mut wrap) = (0, false);
        for count in (1..=usize::from(size)).cycle().take(50) {
            ring.queue.complete_read(&chains.all()[..count]);
            ring.queue.publish();
            done += count;
            if done >= usize::from(size) {
                done -= usize::from(size);
                wrap = !wrap;
            }
            let mut taken = 0;
            for lap in [wrap, !wrap, wrap, !wrap] {
                flag_all_available(&mut ring, lap);
                taken += ring.take_all(&memory, Access::Read).unwrap().len();
            }
            assert_eq!(taken, count);
        }
    }
}

#[test]
fn a_chain_longer_than_32_bits_breaks_the_ring() {
    let half = 1 << 31;
    let two = [goes_on(DATA, half), last(DATA, half)];
    assert_eq!(outcome_of(&two), Err(RingError::TooLong { len: 1 << 32 }));
    let two = [goes_on(DATA, u32::MAX), last(DATA, u32::MAX)];
    assert_eq!(outcome_of(&two), Err(RingError::TooLong { len: 2 * u64::from(u32::MAX) }));
    let outcome = table_outcome(&[last(DATA, half), last(DATA, half)], 32);
    assert_eq!(outcome, Err(RingError::TooLong { len: 1 << 32 }));
    // One byte less is only more than the guest has.
    let two = [goes_on(DATA, half), last(DATA, half - 1)];
    assert_eq!(outcome_of(&two), Ok(Outcome::Refused(ChainFault::Unmapped)));
}

#[test]
fn an_address_that_wraps_costs_the_chain() {
    let refused = Ok(Outcome::Refused(ChainFault::Unmapped));
    for (address, len) in
        [(u64::MAX, 1), (u64::MAX, 2), (u64::MAX - 15, 16), (u64::MAX - 15, 17), (0, u32::MAX)]
    {
        assert_eq!(outcome_of(&[last(address, len)]), refused, "{address:#x} {len}");
        assert_eq!(table_outcome(&[last(address, len)], 16), refused, "{address:#x} {len}");
    }
}

#[test]
fn what_is_not_mapped_costs_the_chain_even_at_length_0() {
    let refused = Ok(Outcome::Refused(ChainFault::Unmapped));
    for len in [0, 1, 1500] {
        assert_eq!(outcome_of(&[last(END, len)]), refused);
        assert_eq!(outcome_of(&[goes_on(DATA, 4), last(1 << 40, len)]), refused);
        assert_eq!(outcome_of(&[goes_on(1 << 40, len), last(DATA, 4)]), refused);
        assert_eq!(table_outcome(&[last(DATA, 1), last(1 << 40, len)], 32), refused);
    }
    assert_eq!(outcome_of(&[last(END - 1, 2)]), refused, "the end of memory");
    assert_eq!(outcome_of(&[last(END - 1, 1)]), Ok(Outcome::Bytes(vec![0])));
}

const TABLE: u64 = DATA + 0x1000;

/// The outcome of an indirect table of these descriptors, said to be `len` bytes long.
fn table_outcome(table: &[PackedDescriptor], len: u32) -> Result<Outcome, RingError> {
    let ring = Ring::new(Shape::packed(8));
    for (n, descriptor) in (0..).zip(table) {
        write(&ring.memory, TABLE + 16 * n, &packed_bytes_of(*descriptor));
    }
    outcome_in(ring, &[indirect(TABLE, len)], Access::Read)
}

#[test]
fn wrong_indirect_tables_break_the_ring() {
    let good = last(DATA, 4);
    assert_eq!(table_outcome(&[good], 16), Ok(Outcome::Bytes(vec![0; 4])));
    // Nested.
    let nested = [last(DATA, 1), indirect(DATA + 0x2000, 16)];
    assert_eq!(table_outcome(&nested, 32), Err(RingError::IndirectNested));
    // Length 0 or no multiple of 16.
    for len in [0, 1, 15, 17, 0xffff_ffff] {
        assert_eq!(table_outcome(&[good], len), Err(RingError::IndirectLength { len }));
    }
    // Unmapped, or in two regions.
    for (address, len) in [(END, 16), (1 << 40, 16), (u64::MAX - 15, 16), (SEAM - 16, 32)] {
        let broken = RingError::IndirectUnmapped { address, len };
        assert_eq!(outcome_of(&[indirect(address, len)]), Err(broken));
    }
    // Together with NEXT, and at the end of a list.
    let both = packed(DATA, 16, DESC_F_INDIRECT | DESC_F_NEXT);
    assert_eq!(outcome_of(&[both, good]), Err(RingError::IndirectNested));
    let list = [goes_on(DATA, 4), indirect(DATA, 16)];
    assert_eq!(outcome_of(&list), Err(RingError::IndirectNested));
    // Not negotiated.
    let ring = Ring::new(Shape::packed(8).without_indirect());
    let outcome = outcome_in(ring, &[indirect(DATA, 16)], Access::Read);
    assert_eq!(outcome, Err(RingError::IndirectNotNegotiated));
}

/// The descriptors of a table stand one after the other: NEXT, and all but WRITE, means nothing there.
#[test]
fn a_table_is_read_in_order_whatever_its_flags_say() {
    let flags = DESC_F_NEXT | DESC_F_AVAIL | DESC_F_USED | 0x7f78;
    let table = [packed(DATA, 1, flags), packed(DATA, 2, 0), packed(DATA, 4, flags)];
    assert_eq!(table_outcome(&table, 48), Ok(Outcome::Bytes(vec![0; 7])));
}

#[test]
fn a_table_longer_than_a_chain_may_be_is_not_walked() {
    let zero = packed_bytes_of(last(DATA, 0)).repeat(32769);
    let too_many = RingError::TooManyDescriptors { limit: 1024 };
    for (count, expected) in [
        (1024, Ok(Outcome::Bytes(Vec::new()))),
        (1025, Err(too_many)),
        (32768, Err(too_many)),
        (32769, Err(too_many)),
    ] {
        let ring = Ring::new(Shape::packed(8));
        write(&ring.memory, TABLE, &zero);
        assert_eq!(outcome_in(ring, &[indirect(TABLE, count * 16)], Access::Read), expected);
    }
    let full = packed_bytes_of(last(DATA, 1)).repeat(1024);
    let ring = Ring::new(Shape::packed(8));
    write(&ring.memory, TABLE, &full);
    let outcome = outcome_in(ring, &[indirect(TABLE, 1024 * 16)], Access::Read);
    assert_eq!(outcome, Ok(Outcome::Refused(ChainFault::TooManySlices)));
}

#[test]
fn an_indirect_table_need_not_be_aligned() {
    let mut ring = Ring::new(Shape::packed(8));
    let at = DATA + 0x1003;
    write(&ring.memory, at, &packed_bytes_of(last(DATA, 5)));
    ring.packed().offer_raw(indirect(at, 16));
    assert_eq!(ring.outcome(Access::Read), Ok(Outcome::Bytes(vec![0; 5])));
}

#[test]
fn a_buffer_of_the_wrong_direction_costs_the_chain() {
    let refused = Ok(Outcome::Refused(ChainFault::WrongDirection));
    let [first, second] = [goes_on(DATA, 12), last(DATA + 64, 60)];
    let write_only = |descriptor: PackedDescriptor| PackedDescriptor {
        flags: descriptor.flags | DESC_F_WRITE,
        ..descriptor
    };
    assert_eq!(outcome_of(&[write_only(first), second]), refused);
    assert_eq!(outcome_of(&[first, write_only(second)]), refused);
    assert_eq!(table_outcome(&[write_only(last(DATA, 1))], 16), refused);
    assert_eq!(outcome_of(&[last(DATA, 1)]), Ok(Outcome::Bytes(vec![0])));
    let mut ring = Ring::new(Shape::packed(8));
    ring.driver.add(&[writable(DATA, 12), readable(DATA, 60)]).unwrap();
    assert_eq!(ring.hostile_outcome(Access::Write), refused);
}
