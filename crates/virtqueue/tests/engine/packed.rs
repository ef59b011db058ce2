//! What only a packed ring has: descriptors that say themselves whose they are, on any number of slots.

use std::sync::Arc;

use crate::common::{DATA, Ring, Shape, gather, read, readable, writable, write};
use virtqueue::layout::{DESC_F_AVAIL, DESC_F_USED, DESC_F_WRITE, PACKED_TAIL, PackedDescriptor};
use virtqueue::{Access, QueueSetup};

/// Sizes that are no powers of two are as good.
const SIZES: [u16; 7] = [1, 2, 3, 7, 8, 1000, 32768];

/// A descriptor as it lies in memory.
fn in_memory(ring: &Ring, slot: u16) -> PackedDescriptor {
    let at = ring.driver.setup().descriptor_table + u64::from(slot) * 16;
    let bytes = read(&ring.memory, at, 16);
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    PackedDescriptor::new(word(0), word(PACKED_TAIL))
}

#[test]
fn lists_of_every_length_go_over_the_end_of_the_ring() {
    for size in SIZES {
        let shape = Shape::packed(size);
        for before in [0, 1, 2, size / 2, size - 1] {
            for start in [before % size, (before % size) | 0x8000] {
                let mut ring = Ring::new(shape.starting_at(start));
                for count in [1, 2, size / 2 + 1, size] {
                    let count = count.min(size).min(1000);
                    let buffers: Vec<_> =
                        (0..u64::from(count)).map(|n| readable(DATA + n * 3, 2)).collect();
                    let bytes: Vec<u8> = (0..3 * count).map(|n| n as u8).collect();
                    write(&ring.memory, DATA, &bytes);
                    let id = ring.driver.add(&buffers).unwrap();
                    ring.driver.publish();
                    let memory = Arc::clone(&ring.memory);
                    let (chain, chains) = ring.take_one(&memory, Access::Read).unwrap();
                    assert_eq!((chain.id, chain.slots, chain.fault), (id, count, None));
                    let expected: Vec<u8> =
                        bytes.chunks(3).flat_map(|piece| [piece[0], piece[1]]).collect();
                    assert_eq!(gather(chains.buffers(&chain)), expected);
                    ring.give_back(chain, 0);
                    assert_eq!(ring.driver.free(), usize::from(size));
                    assert_eq!(ring.queue.next_available(), ring.driver.position());
                }
            }
        }
    }
}

#[test]
fn a_used_descriptor_says_what_was_written_at_the_chains_first_slot() {
    for (start, wrap) in [(0x8005, true), (0x0005, false)] {
        let mut ring = Ring::new(Shape::packed(7).starting_at(start));
        let memory = Arc::clone(&ring.memory);
        let buffers = [writable(DATA, 64), writable(DATA + 64, 64)];
        let ids = [1, 2, 2].map(|count| ring.driver.add(&buffers[..count]).unwrap());
        ring.driver.publish();
        let mut chains = ring.take_all(&memory, Access::Write).unwrap();
        let lens: Vec<u32> = chains.all().iter().map(|chain| chain.len).collect();
        assert_eq!(lens, [64, 128, 128], "offered: what the buffers hold");
        for (n, len) in [1, 0, 100].into_iter().enumerate() {
            chains.set_written(n, len);
        }
        let before: Vec<_> = (0..7).map(|slot| in_memory(&ring, slot)).collect();
        ring.queue.complete_written(chains.all());
        ring.queue.publish();
        // The chains begin at 5, at 6 (and go on at 0), and at 1: in the next lap.
        for (slot, id, len, wrap) in
            [(5, ids[0], 1, wrap), (6, ids[1], 0, wrap), (1, ids[2], 100, !wrap)]
        {
            let used = in_memory(&ring, slot);
            let owner = if wrap { DESC_F_AVAIL | DESC_F_USED } else { 0 };
            let flags = owner | if len > 0 { DESC_F_WRITE } else { 0 };
            assert_eq!((used.id, used.len, used.flags), (id, len, flags), "slot {slot}");
        }
        for slot in [0, 2, 3, 4] {
            assert_eq!(in_memory(&ring, slot), before[usize::from(slot)], "slot {slot}");
        }
        let lens: Vec<u32> = ring.reap().iter().map(|used| used.len).collect();
        assert_eq!(lens, [1, 0, 100]);
    }
}

#[test]
fn a_ring_that_is_full_starts_its_next_lap_only_with_what_came_back() {
    for size in [1, 2, 3, 7, 1000] {
        let mut ring = Ring::new(Shape::packed(size));
        let memory = Arc::clone(&ring.memory);
        for _lap in 0..5 {
            while ring.driver.add(&[readable(DATA, 1)]).is_some() {}
            ring.driver.publish();
            let chains = ring.take_all(&memory, Access::Read).unwrap();
            assert_eq!(chains.len(), usize::from(size));
            assert_eq!(ring.queue.available_descriptors(), Ok(0), "all is held");
            assert!(!ring.queue.has_grown());
            // All of it put back comes again, all but one also.
            for keep in [0, 1] {
                ring.queue.put_back(size - keep);
                let again = ring.take_all(&memory, Access::Read).unwrap();
                assert_eq!(again.all().len(), usize::from(size - keep));
                let same = again.all().iter().zip(&chains.all()[usize::from(keep)..]);
                assert!(same.into_iter().all(|(one, other)| one.id == other.id));
            }
            ring.queue.complete_read(chains.all());
            ring.queue.publish();
            assert_eq!(ring.reap().len(), usize::from(size));
        }
    }
}

#[test]
fn the_wrap_counter_goes_on_where_it_stopped() {
    for size in [1, 2, 3, 7] {
        let mut ring = Ring::new(Shape::packed(size));
        let memory = Arc::clone(&ring.memory);
        for n in 0..=5 * u32::from(size) {
            let lap = n / u32::from(size);
            let expected = (n % u32::from(size)) as u16 | if lap % 2 == 0 { 0x8000 } else { 0 };
            assert_eq!(ring.queue.next_available(), expected);
            ring.driver.add(&[writable(DATA, n + 1)]).unwrap();
            ring.driver.publish();
            // The other wrap counter sees nothing: what is there was used a lap ago, or is yet to be.
            let wrong = QueueSetup { next_available: expected ^ 0x8000, ..ring.driver.setup() };
            assert_eq!(
                virtqueue::Queue::new(&wrong, &memory).unwrap().available_descriptors(),
                Ok(0)
            );
            ring.restart();
            let (chain, _) = ring.take_one(&memory, Access::Write).unwrap();
            ring.give_back(chain, n + 1);
        }
    }
}

/// As User Mode Linux says it. In the second lap the same position is right.
#[test]
fn a_new_ring_begins_with_wrap_counter_1_though_the_front_end_says_0() {
    for size in [1, 3, 256] {
        let mut ring = Ring::new(Shape::packed(size));
        let memory = Arc::clone(&ring.memory);
        ring.restart_at(0);
        assert_eq!(ring.queue.next_available(), 0x8000);
        for n in 1..=2 * u32::from(size) {
            assert!(!ring.queue.is_past());
            ring.driver.add(&[writable(DATA, n)]).unwrap();
            ring.driver.publish();
            let (chain, _) = ring.take_one(&memory, Access::Write).unwrap();
            ring.give_back(chain, n);
            let position = ring.queue.next_available();
            ring.restart();
            assert_eq!(ring.queue.next_available(), position);
        }
    }
}

#[test]
fn a_position_where_nothing_can_become_available_is_known() {
    let mut ring = Ring::new(Shape::packed(4));
    let memory = Arc::clone(&ring.memory);
    for n in 1..=7 {
        ring.driver.add(&[writable(DATA, n)]).unwrap();
        ring.driver.publish();
        let (chain, _) = ring.take_one(&memory, Access::Write).unwrap();
        ring.give_back(chain, n);
    }
    // Slots 0 to 2 were used in the second lap, slot 3 in the first one.
    for (position, is_past) in [(3, false), (0x8003, true), (1, true), (2, true), (0x8001, false)] {
        ring.restart_at(position);
        assert_eq!(ring.queue.is_past(), is_past, "{position:#x}");
        assert_eq!(ring.queue.next_available(), position);
    }
}

#[test]
fn what_was_taken_and_not_completed_comes_again_after_a_stop() {
    for shape in [Shape::packed(7), Shape::packed(7).in_order()] {
        let mut ring = Ring::new(shape.ending_in(3));
        let memory = Arc::clone(&ring.memory);
        let ids: Vec<u16> = (0..3)
            .map(|_| ring.driver.add(&[readable(DATA, 1), readable(DATA, 2)]).unwrap())
            .collect();
        ring.driver.publish();
        let chains = ring.take_all(&memory, Access::Read).unwrap();
        ring.queue.complete_read(&chains.all()[..1]);
        ring.queue.publish();
        ring.queue.put_back(chains.all()[1..].iter().map(|chain| chain.slots).sum());
        ring.restart();
        assert_eq!(ring.reap().len(), 1);
        assert_eq!(ring.queue.next_available(), ring.driver.position());
        let chains = ring.take_all(&memory, Access::Read).unwrap();
        let again: Vec<u16> = chains.all().iter().map(|chain| chain.id).collect();
        assert_eq!(again, ids[1..]);
    }
}
