//! What a hostile guest or front end does to a ring of either format (the numbers are those of the list of
//! hostile cases).

use std::sync::Arc;

use crate::common::{
    DATA, END, Outcome, RING, Ring, SEAM, Shape, assert_unchanged_but, buffer, goes_on, memory,
    packed, readable, shapes, snapshot,
};
use guest_memory::{AreaError, GuestMemory};
use virtqueue::chain::BURST_DESCRIPTORS_MAX;
use virtqueue::driver::{Buffer, Driver};
use virtqueue::layout::DESC_F_NEXT;
use virtqueue::{Access, Chains, ConfigError, Queue, QueueSetup, RingError};

/// Whether a ring of this setup can be served.
fn check(setup: &QueueSetup, memory: &Arc<GuestMemory>) -> Result<(), ConfigError> {
    Queue::new(setup, memory).map(|_| ())
}

/// Of a chain that breaks the ring nothing is left among what was taken before.
#[test]
fn a_chain_that_breaks_the_ring_leaves_no_buffers() {
    for shape in [Shape::split(8), Shape::packed(8)] {
        let mut ring = Ring::new(shape);
        let memory = Arc::clone(&ring.memory);
        ring.driver.add(&[readable(DATA, 1), readable(DATA, 2)]).unwrap();
        match &mut ring.driver {
            Driver::Split(driver) => {
                driver.write_descriptor(2, goes_on(DATA, 16, 2));
                driver.offer_raw(2);
            }
            Driver::Packed(driver) => {
                (0..6).for_each(|_| driver.offer_raw(packed(DATA, 16, DESC_F_NEXT)));
            }
        }
        ring.driver.publish();
        assert_ne!(ring.queue.available_descriptors(), Ok(0));
        let mut chains = Chains::new();
        let broken = ring.queue.take(&memory, Access::Read, 8, &mut chains);
        assert_eq!(broken, Err(RingError::Loop { size: 8 }));
        assert_eq!((chains.len(), chains.buffers_between(0, 1).len()), (1, 2));
    }
}

#[test]
fn sizes_that_the_format_does_not_allow_are_refused() {
    let memory = memory();
    let split = Driver::new(&memory, RING, Shape::split(8).options, 0).setup();
    for size in [0, 3, 6, 7, 9, 100, 1000, 0x7fff, 0x8001, 0xffff] {
        let refused = check(&QueueSetup { size, ..split }, &memory);
        assert_eq!(refused, Err(ConfigError::SplitSize(size)));
    }
    for size in [1, 2, 8, 1024, 32768] {
        let setup = Driver::new(&memory, RING, Shape::split(size).options, 0).setup();
        assert_eq!(Queue::new(&setup, &memory).unwrap().size(), size);
    }
    let packed = Driver::new(&memory, RING, Shape::packed(8).options, 0).setup();
    for size in [0, 0x8001, 0x9000, 0xffff] {
        let refused = check(&QueueSetup { size, ..packed }, &memory);
        assert_eq!(refused, Err(ConfigError::PackedSize(size)));
    }
    for size in [1, 2, 3, 7, 1000, 0x7fff, 32768] {
        let setup = Driver::new(&memory, RING, Shape::packed(size).options, 0).setup();
        assert_eq!(Queue::new(&setup, &memory).unwrap().size(), size);
        // It goes on at a descriptor that it has, or not at all.
        for index in [size - 1, size, size.saturating_add(1), 0x7fff] {
            for wrap in [0, 0x8000] {
                let next_available = index & 0x7fff | wrap;
                let checked = check(&QueueSetup { next_available, ..setup }, &memory);
                let index = index & 0x7fff;
                let refused = Err(ConfigError::Position { index, size });
                assert_eq!(checked, if index < size { Ok(()) } else { refused });
            }
        }
    }
}

/// Such chains are valid and have no bytes. The device only marks them as used.
#[test]
fn chains_of_no_bytes_come_back_with_length_0() {
    for shape in shapes(8) {
        for access in [Access::Read, Access::Write] {
            for is_indirect in [false, true] {
                let mut ring = Ring::new(shape);
                let buffers = [buffer(access, DATA, 0), buffer(access, END - 1, 0)];
                let id = match is_indirect {
                    false => ring.driver.add(&buffers).unwrap(),
                    true => ring.driver.add_indirect(&buffers, DATA + 0x1000).unwrap(),
                };
                ring.driver.publish();
                let memory = Arc::clone(&ring.memory);
                let before = snapshot(&memory);
                let (chain, chains) = ring.take_one(&memory, access).unwrap();
                assert_eq!((chain.id, chain.len, chain.fault), (id, 0, None));
                assert!(chains.buffers(&chain).is_empty());
                ring.give_back(chain, 0);
                assert_unchanged_but(&memory, &before, &[ring.used_words(0)]);
            }
        }
    }
}

/// A chain has at most as many descriptors as its ring, or 1024 if the ring is smaller.
#[test]
fn a_chain_longer_than_its_ring_breaks_it() {
    for (size, limit) in [(8, 1024), (1024, 1024), (2048, 2048)] {
        for shape in shapes(size) {
            let outcome = |count: usize| {
                let mut ring = Ring::new(shape);
                let buffers = vec![readable(DATA, 0); count];
                ring.driver.add_indirect(&buffers, DATA + 0x1000).unwrap();
                ring.hostile_outcome(Access::Read)
            };
            assert_eq!(outcome(limit), Ok(Outcome::Bytes(Vec::new())));
            let broken = RingError::TooManyDescriptors { limit: u32::try_from(limit).unwrap() };
            assert_eq!(outcome(limit + 1), Err(broken));
            assert_eq!(outcome(4 * limit), Err(broken));
        }
    }
}

/// How many descriptors are walked to take all the chains of `buffers` that fill a ring of 64, burst by burst.
fn walked_by_burst(shape: Shape, memory: &Arc<GuestMemory>, buffers: &[Buffer]) -> Vec<u32> {
    let mut ring = Ring::over(Arc::clone(memory), shape);
    for _ in 0..64 {
        ring.driver.add_indirect(buffers, DATA).unwrap();
    }
    ring.driver.publish();
    let (mut walked, mut taken) = (Vec::new(), 0);
    while taken < 64 {
        assert_ne!(ring.queue.available_descriptors(), Ok(0));
        let mut chains = Chains::new();
        // A receiver takes chains several times for one burst.
        for _ in 0..3 {
            ring.queue.take(memory, Access::Read, 64, &mut chains).unwrap();
        }
        assert!(!chains.is_empty(), "a burst that takes nothing");
        taken += chains.len();
        walked.push(chains.walked());
        ring.queue.complete_read(chains.all());
        ring.queue.publish();
    }
    assert_eq!((taken, ring.reap().len()), (64, 64));
    walked
}

/// A burst ends after a limited number of descriptors, whatever the chains, and the next burst continues.
#[test]
fn a_burst_ends_when_too_much_was_walked_and_the_next_goes_on() {
    for shape in shapes(64) {
        let unmapped = readable(1 << 40, 1);
        let wrong = Buffer { writable: true, ..readable(DATA, 1) };
        for (buffer, count) in
            [(readable(DATA, 0), 1024), (readable(DATA, 0), 600), (unmapped, 1000), (wrong, 1)]
        {
            let walked = walked_by_burst(shape, &memory(), &vec![buffer; count]);
            assert_eq!(walked.iter().sum::<u32>(), 64 * u32::try_from(count).unwrap());
            let most = walked.iter().max().unwrap();
            assert!(*most < BURST_DESCRIPTORS_MAX + 1024, "{most} descriptors of {count}");
        }
    }
}

/// One descriptor over many small regions costs as much as many descriptors.
#[test]
fn pieces_of_memory_count_like_descriptors() {
    let ranges: Vec<_> = std::iter::once((0, 4 << 20))
        .chain((0..500).map(|n| ((4 << 20) + n * 0x1000, 0x1000)))
        .map(|(at, len): (u64, usize)| (vm_memory::GuestAddress(at), len))
        .collect();
    let map = guest_memory::memory::Mapping::from_ranges(&ranges).unwrap();
    let memory = Arc::new(GuestMemory::new(Arc::new(map)));
    for shape in shapes(64) {
        let across = readable(4 << 20, 500 * 0x1000);
        let walked = walked_by_burst(shape, &memory, &[across; 5]);
        let most = walked.iter().max().unwrap();
        assert!(*most < BURST_DESCRIPTORS_MAX + 5 * 500, "{most} pieces");
        assert!(walked.len() > 20, "{walked:?}");
    }
}

#[test]
fn rings_that_are_unaligned_unmapped_or_in_two_regions_are_refused() {
    let split = [("descriptor table", 16, 128), ("driver area", 2, 22), ("device area", 4, 70)];
    let packed = [("descriptor table", 16, 128), ("driver area", 4, 4), ("device area", 4, 4)];
    for (shape, parts) in [(Shape::split(8), split), (Shape::packed(8), packed)] {
        let memory = memory();
        let setup = Driver::new(&memory, RING, shape.options, shape.start).setup();
        let at = |part: usize, address| {
            let mut setup = setup;
            *[&mut setup.descriptor_table, &mut setup.driver_area, &mut setup.device_area][part] =
                address;
            check(&setup, &memory)
        };
        for (n, (part, align, len)) in parts.into_iter().enumerate() {
            let refused = |source| Err(ConfigError::Area { part, source });
            for off in 1..align {
                let address = DATA + off as u64;
                assert_eq!(at(n, address), refused(AreaError::Misaligned { address, align }));
            }
            let step = align as u64;
            // Unmapped, wrapping 64 bits, out at the end of memory, and from one region into the next.
            let mut wrong = vec![END, 1 << 40, u64::MAX - step + 1];
            if len > align {
                wrong.extend([END - step, SEAM - step]);
            }
            for address in wrong {
                let unmapped = refused(AreaError::Unmapped { address, len });
                assert_eq!(at(n, address), unmapped, "{address:#x}");
            }
            assert_eq!(at(n, (END - len as u64) / step * step), Ok(()));
            assert_eq!(at(n, SEAM), Ok(()));
        }
    }
}

#[test]
fn messages_say_what_was_found_and_what_was_expected() {
    let memory = memory();
    let setup = Driver::new(&memory, RING, Shape::split(8).options, 0).setup();
    let message = |setup: QueueSetup| check(&setup, &memory).unwrap_err().to_string();
    let text = "queue size 7; expected a power of two from 1 to 32768";
    assert_eq!(message(QueueSetup { size: 7, ..setup }), text);
    let text = "queue size 0; expected 1 to 32768";
    assert_eq!(message(QueueSetup { size: 0, packed: true, ..setup }), text);
    let text = "a packed ring of 8 cannot go on at descriptor 9";
    assert_eq!(message(QueueSetup { next_available: 0x8009, packed: true, ..setup }), text);
    let text = "the driver area: 22 bytes at 0x300000 are not in one region of guest memory";
    assert_eq!(message(QueueSetup { driver_area: END, ..setup }), text);
}
