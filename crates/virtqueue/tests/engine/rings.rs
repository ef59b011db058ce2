//! The engines against their driver's side: what goes in comes out, whatever the format and the order.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::common::{
    DATA, Outcome, Ring, SEAM, Shape, gather, memory, read, readable, scatter, shapes, snapshot,
    writable, write,
};
use virtqueue::chain::{CHAIN_SLICES_MAX, CHAINS_MAX, SLICES_MAX};
use virtqueue::driver::{Buffer, Returned};
use virtqueue::{Access, ChainFault, Chains};

/// Bytes that say where they belong.
fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (seed * 31 + at * 7 + at / 251) as u8).collect()
}

/// Writes `bytes` to the guest in pieces of these lengths, with gaps. Returns the buffers.
fn pieces(ring: &Ring, at: u64, lens: &[u32], bytes: &[u8]) -> Vec<Buffer> {
    let (mut address, mut done) = (at, 0);
    lens.iter()
        .map(|&len| {
            let piece = readable(address, len);
            write(&ring.memory, address, &bytes[done..done + len as usize]);
            done += len as usize;
            address += u64::from(len) + 13;
            piece
        })
        .collect()
}

#[test]
fn direct_and_indirect_chains_arrive_as_they_were_sent() {
    let lists: [&[u32]; 5] = [&[1], &[12, 60], &[0, 5, 0], &[1; 8], &[4000, 3, 0, 0, 1, 90, 7, 2]];
    for shape in shapes(8) {
        let mut ring = Ring::new(shape);
        for (n, lens) in lists.into_iter().enumerate() {
            let bytes = pattern(n, lens.iter().sum::<u32>() as usize);
            let buffers = pieces(&ring, DATA, lens, &bytes);
            for is_indirect in [false, true] {
                let id = match is_indirect {
                    false => ring.driver.add(&buffers).unwrap(),
                    true => ring.driver.add_indirect(&buffers, DATA + 0x8000).unwrap(),
                };
                let (outcome, chain) = ring.outcome_and_chain(Access::Read).unwrap();
                assert_eq!(outcome, Outcome::Bytes(bytes.clone()), "{lens:?} {shape:?}");
                assert_eq!(chain.id, id);
                ring.give_back(chain, 0);
                assert_eq!(ring.driver.free(), 8);
            }
        }
    }
}

#[test]
fn direct_descriptors_of_a_split_ring_may_end_in_an_indirect_table() {
    let mut ring = Ring::new(Shape::split(8));
    write(&ring.memory, DATA, b"headtail");
    let tail = [readable(DATA + 4, 1), readable(DATA + 5, 3)];
    assert_eq!(ring.driver.add_indirect(&tail, DATA + 0x1000), Some(0));
    // Put another descriptor before the table's.
    ring.split().write_descriptor(5, crate::common::goes_on(DATA, 4, 0));
    ring.split().offer_raw(5);
    ring.driver.publish();
    let memory = Arc::clone(&ring.memory);
    let chains = ring.take_all(&memory, Access::Read).unwrap();
    let chain = chains.all().last().unwrap();
    assert_eq!((chain.id, chain.fault), (5, None));
    assert_eq!(gather(chains.buffers(chain)), b"headtail");
}

#[test]
fn chains_of_one_byte_descriptors_are_put_together() {
    for shape in shapes(256) {
        let mut ring = Ring::new(shape.ending_in(100));
        let bytes = pattern(3, 256);
        let buffers = pieces(&ring, DATA, &[1; 256], &bytes);
        ring.driver.add(&buffers).unwrap();
        let (outcome, chain) = ring.outcome_and_chain(Access::Read).unwrap();
        assert_eq!(outcome, Outcome::Bytes(bytes));
        ring.give_back(chain, 0);
        assert_eq!(ring.driver.free(), 256);
        // As many in one table as a chain may have.
        let len = CHAIN_SLICES_MAX;
        let bytes = pattern(4, len);
        let buffers = pieces(&ring, DATA, &vec![1; len], &bytes);
        ring.driver.add_indirect(&buffers, DATA + 0x8_0000);
        assert_eq!(ring.outcome(Access::Read), Ok(Outcome::Bytes(bytes)));
    }
}

#[test]
fn a_buffer_over_two_adjacent_regions_is_delivered_whole() {
    for (before, after) in [(1, 1), (1, 4000), (1500, 3), (0, 16), (16, 0)] {
        for shape in shapes(8) {
            let mut ring = Ring::new(shape);
            let bytes = pattern(9, before + after);
            let at = SEAM - before as u64;
            write(&ring.memory, at, &bytes);
            ring.driver.add(&[readable(at, bytes.len() as u32)]).unwrap();
            let (outcome, chain) = ring.outcome_and_chain(Access::Read).unwrap();
            assert_eq!(outcome, Outcome::Bytes(bytes.clone()));
            ring.give_back(chain, 0);
            // And what the device writes lands on both sides, and nowhere else.
            write(&ring.memory, at - 8, &vec![0xee; bytes.len() + 16]);
            ring.driver.add(&[writable(at, bytes.len() as u32)]).unwrap();
            ring.driver.publish();
            let memory = Arc::clone(&ring.memory);
            let (chain, chains) = ring.take_one(&memory, Access::Write).unwrap();
            assert_eq!(scatter(chains.buffers(&chain), &bytes), bytes.len());
            let around = read(&memory, at - 8, bytes.len() + 16);
            assert_eq!(around, [&[0xee; 8][..], &bytes, &[0xee; 8]].concat());
        }
    }
}

/// Through all indices of a split ring, and many laps of a packed one, in bursts that do not divide the ring's size. The
/// device stops and starts several times.
#[test]
fn indices_wrap_and_nothing_is_lost() {
    let odd = [1, 2, 3, 7, 33, 1000].map(Shape::packed);
    for shape in shapes(8).chain(odd).chain(odd.map(Shape::in_order)) {
        let size = usize::from(shape.options.size);
        let mut ring = Ring::new(shape.ending_in(6));
        let memory = Arc::clone(&ring.memory);
        let (mut sent, mut seen) = (0_u32, 0_u32);
        let mut outstanding = VecDeque::new();
        let largest = (size * 5).div_ceil(8);
        for burst in (1..=largest).cycle() {
            for _ in 0..burst {
                let at = DATA + u64::from(sent) % size as u64 * 64;
                write(&memory, at, &sent.to_le_bytes());
                let Some(id) = ring.driver.add(&[readable(at, 4)]) else { break };
                outstanding.push_back(Returned { id, len: sent });
                sent += 1;
            }
            ring.driver.publish();
            let mut chains = ring.take_all(&memory, Access::Read).unwrap();
            for n in 0..chains.len() {
                let chain = chains.all()[n];
                assert_eq!(gather(chains.buffers(&chain)), seen.to_le_bytes());
                chains.set_written(n, seen);
                seen += 1;
            }
            ring.queue.complete_written(chains.all());
            ring.queue.publish();
            for used in ring.reap() {
                assert_eq!(Some(used), outstanding.pop_front());
            }
            if burst % 3 == 0 {
                ring.restart();
            }
            if seen > 70_000 {
                break;
            }
        }
        assert_eq!(sent, seen);
        assert_eq!(ring.driver.free(), size);
        assert_eq!(ring.queue.next_available(), ring.driver.position());
    }
}

#[test]
fn a_ring_goes_on_where_it_stopped() {
    for shape in shapes(8).chain([1, 2, 3, 7].map(Shape::packed)) {
        let mut ring = Ring::new(shape.ending_in(2));
        for n in 0..40_u32 {
            let id = ring.driver.add(&[writable(DATA, n)]).unwrap();
            ring.driver.publish();
            // A new engine for every chain, set up with what the last one said on stopping.
            ring.restart();
            let memory = Arc::clone(&ring.memory);
            let (chain, _) = ring.take_one(&memory, Access::Write).unwrap();
            assert_eq!((chain.id, chain.len, chain.fault), (id, n, None));
            ring.give_back(chain, n);
        }
    }
}

/// A front end that lost its back end has only the used index to go by, and may look at it too early. DPDK's virtio-user
/// does not look at it: it always says 0, which may be anywhere before or after.
#[test]
fn a_split_ring_continues_at_its_used_index_wherever_the_front_end_says() {
    for back in [0, 1, 3, 8, 9, 0x7fff, 0x8000, 0xfff8, 0xffff] {
        let mut ring = Ring::new(Shape::split(8).ending_in(2));
        let memory = Arc::clone(&ring.memory);
        let serve = |ring: &mut Ring, n| {
            let id = ring.driver.add(&[writable(DATA, n)]).unwrap();
            ring.driver.publish();
            let (chain, _) = ring.take_one(&memory, Access::Write).unwrap();
            assert_eq!((chain.id, chain.len), (id, n));
            ring.give_back(chain, n);
        };
        (1..=8).for_each(|n| serve(&mut ring, n));
        ring.restart_at(ring.queue.next_available().wrapping_sub(back));
        assert_eq!(ring.queue.available_descriptors(), Ok(0));
        (9..=20).for_each(|n| serve(&mut ring, n));
    }
}

#[test]
fn what_is_put_back_comes_again_in_order() {
    for shape in shapes(8).chain([Shape::packed(7), Shape::packed(6)]) {
        let mut ring = Ring::new(shape.ending_in(3));
        let memory = Arc::clone(&ring.memory);
        // The third chain is one of two descriptors, where the ring ends.
        let buffers = [writable(DATA, 9), writable(DATA + 64, 9)];
        let mut ids: Vec<u16> = [1, 1, 2, 1]
            .into_iter()
            .map(|count| ring.driver.add(&buffers[..count]).unwrap())
            .collect();
        ring.driver.publish();
        let take = |ring: &mut Ring| -> (Vec<u16>, Vec<u16>) {
            let chains = ring.take_all(&memory, Access::Write).unwrap();
            chains.all().iter().map(|chain| (chain.id, chain.slots)).unzip()
        };
        let (taken, slots) = take(&mut ring);
        assert_eq!(taken, ids);
        assert_eq!(ring.queue.available_descriptors(), Ok(0));
        ring.queue.put_back(slots[2..].iter().sum());
        assert_ne!(ring.queue.available_descriptors(), Ok(0));
        assert_eq!(take(&mut ring).0, ids[2..]);
        ring.queue.put_back(slots.iter().sum());
        ids.push(ring.driver.add(&buffers[..1]).unwrap());
        ring.driver.publish();
        assert_eq!(take(&mut ring).0, ids, "{shape:?}");
    }
}

#[test]
fn the_last_of_a_burst_is_not_seen_before_it_is_published() {
    for shape in shapes(8) {
        let mut ring = Ring::new(shape.ending_in(2));
        let memory = Arc::clone(&ring.memory);
        for len in 1..4 {
            ring.driver.add(&[readable(DATA, len), readable(DATA, 1)]);
        }
        assert_eq!(ring.queue.available_descriptors(), Ok(0));
        assert!(!ring.queue.has_grown());
        let mut chains = Chains::new();
        ring.queue.take(&memory, Access::Read, 8, &mut chains).unwrap();
        assert!(chains.is_empty());
        ring.driver.publish();
        assert!(ring.queue.has_grown());
        let chains = ring.take_all(&memory, Access::Read).unwrap();
        assert_eq!(chains.len(), 3);
        let mut early = Vec::new();
        for complete in [1, 2] {
            match complete {
                1 => ring.queue.complete_read(&chains.all()[..1]),
                _ => ring.queue.complete_written(&chains.all()[1..]),
            };
            early.extend(ring.reap());
            // A packed ring shows full cache lines, but never the last one.
            assert!(early.len() < if shape.options.packed { 3 } else { 1 });
        }
        ring.queue.publish();
        early.extend(ring.reap());
        let lens: Vec<u32> = early.iter().map(|used| used.len).collect();
        assert_eq!(lens, [0, 3, 4]);
        assert_eq!(ring.driver.free(), 8);
    }
}

/// Adds chains of `count` buffers in tables of their own.
fn add_tables(ring: &mut Ring, tables: &[(u32, usize)]) {
    for (at, &(len, count)) in (0..).zip(tables) {
        let table = DATA + 0x1_0000 + at * 0x1_0000;
        ring.driver.add_indirect(&vec![readable(DATA, len); count], table).unwrap();
    }
    ring.driver.publish();
}

#[test]
fn a_burst_that_is_full_takes_the_chain_next_time() {
    for shape in shapes(8) {
        let mut ring = Ring::new(shape);
        let memory = Arc::clone(&ring.memory);
        let most = CHAIN_SLICES_MAX;
        // Length 0 needs no slices; the third of the others does not fit beside the two before it.
        add_tables(&mut ring, &[(0, most), (1, most), (2, most), (3, most), (4, 1)]);
        let chains = ring.take_all(&memory, Access::Read).unwrap();
        assert_eq!(chains.len(), 3);
        let slices = chains.buffers_between(0, usize::MAX).len();
        assert_eq!(slices, 2 * most, "nothing of the chain that did not fit is left");
        let chains = ring.take_all(&memory, Access::Read).unwrap();
        let lens: Vec<u32> = chains.all().iter().map(|chain| chain.len).collect();
        assert_eq!(lens, [3 * most as u32, 4]);
    }
}

#[test]
fn a_burst_has_no_more_chains_than_it_may() {
    for shape in shapes(4096) {
        let mut ring = Ring::new(shape.ending_in(1000));
        let memory = Arc::clone(&ring.memory);
        for n in 0..1200 {
            let buffers = [readable(DATA, n), readable(DATA, 0)];
            ring.driver.add(&buffers[..1 + n as usize % 2]).unwrap();
        }
        ring.driver.publish();
        let mut next = 0;
        for expected in [CHAINS_MAX, 1200 - CHAINS_MAX] {
            let chains = ring.take_all(&memory, Access::Read).unwrap();
            assert_eq!(chains.len(), expected);
            for chain in chains.all() {
                assert_eq!((chain.len, chain.fault), (next, None));
                next += 1;
            }
            ring.queue.complete_read(chains.all());
        }
        ring.queue.publish();
        assert_eq!(ring.reap().len(), 1200);
        assert_eq!(ring.driver.free(), 4096);
    }
}

#[test]
fn a_chain_of_too_many_slices_is_refused_however_full_the_burst() {
    let most = CHAIN_SLICES_MAX;
    for already in [0, 1, 500, most, 1500, SLICES_MAX - 2] {
        for over in [1, 100, 1200] {
            for shape in shapes(4096) {
                let mut ring = Ring::new(shape);
                let memory = Arc::clone(&ring.memory);
                let (first, second) = (already.min(most), already.saturating_sub(most));
                let before: Vec<_> =
                    [(1, first), (1, second)].into_iter().filter(|chain| chain.1 > 0).collect();
                add_tables(&mut ring, &[&before[..], &[(1, most + over), (7, 1)]].concat());
                let mut all = Vec::new();
                for burst in 0..4 {
                    let chains = ring.take_all(&memory, Access::Read).unwrap();
                    assert!(burst > 0 || !chains.is_empty(), "an empty burst is never full");
                    all.extend_from_slice(chains.all());
                }
                let (good, rest) = all.split_at(before.len());
                assert!(good.iter().all(|chain| chain.fault.is_none()));
                assert_eq!(good.iter().map(|chain| chain.len as usize).sum::<usize>(), already);
                let rest: Vec<_> = rest.iter().map(|chain| (chain.fault, chain.len)).collect();
                assert_eq!(rest, [(Some(ChainFault::TooManySlices), 0), (None, 7)]);
            }
        }
    }
}

#[test]
fn the_largest_ring_works() {
    let size = 32768;
    for shape in shapes(size) {
        let mut ring = Ring::over(memory(), shape.ending_in(5536));
        for n in 0..u32::from(size) {
            ring.driver.add(&[writable(DATA + 0x8_0000, n)]).unwrap();
        }
        assert_eq!(ring.driver.add(&[writable(DATA, 1)]), None);
        ring.driver.publish();
        match shape.options.packed {
            false => assert_eq!(ring.queue.available_descriptors(), Ok(size)),
            true => assert_ne!(ring.queue.available_descriptors(), Ok(0)),
        }
        let memory = Arc::clone(&ring.memory);
        let mut next = 0;
        while next < u32::from(size) {
            let chains = ring.take_all(&memory, Access::Write).unwrap();
            assert_eq!(chains.len(), CHAINS_MAX);
            for chain in chains.all() {
                assert_eq!(chain.len, next);
                next += 1;
            }
            ring.queue.complete_written(chains.all());
        }
        ring.queue.publish();
        assert_eq!(ring.queue.available_descriptors(), Ok(0));
        let lens: Vec<u32> = ring.reap().iter().map(|used| used.len).collect();
        assert!(lens.into_iter().eq(0..u32::from(size)));
        assert_eq!(ring.driver.free(), usize::from(size));
    }
}

/// In order, a burst that was only read goes back as one used entry, or one used descriptor, and the
/// driver frees all of it (2.7.9, 2.8.9).
#[test]
fn in_order_a_burst_goes_back_as_one() {
    for shape in [Shape::split(16), Shape::packed(16), Shape::packed(11)] {
        let mut ring = Ring::new(shape.in_order().ending_in(6));
        for _lap in 0..5 {
            let ids: Vec<u16> = (1..=5)
                .map(|n| ring.driver.add(&[readable(DATA, n), readable(DATA, 1)]).unwrap())
                .collect();
            ring.driver.publish();
            let memory = Arc::clone(&ring.memory);
            let chains = ring.take_all(&memory, Access::Read).unwrap();
            let before = snapshot(&memory);
            ring.queue.complete_read(chains.all());
            ring.queue.publish();
            let after = snapshot(&memory);
            let changed: Vec<usize> =
                (0..before.len()).filter(|&at| before[at] != after[at]).collect();
            let setup = ring.driver.setup();
            let index = setup.device_area as usize + 2..setup.device_area as usize + 4;
            let words: Vec<usize> = changed
                .iter()
                .filter(|&at| shape.options.packed || !index.contains(at))
                .map(|at| (at - if shape.options.packed { 0 } else { 4 }) / 8)
                .collect();
            assert!(words.windows(2).all(|pair| pair[0] == pair[1]), "{changed:x?}");
            let expected: Vec<Returned> = ids.iter().map(|&id| Returned { id, len: 0 }).collect();
            assert_eq!(ring.reap(), expected);
            assert_eq!(ring.driver.free(), usize::from(shape.options.size));
        }
    }
}

/// The buffers of one frame become visible together, however many cache lines they lie in: a driver that finds the first
/// of them takes all (5.1.6.4). Frames of one buffer may become visible line by line.
#[test]
fn the_chains_of_one_frame_come_back_together() {
    for shape in [Shape::split(32), Shape::packed(32), Shape::packed(27)] {
        let mut ring = Ring::new(shape);
        for _lap in 0..9 {
            for _ in 0..16 {
                ring.driver.add(&[writable(DATA, 64)]).unwrap();
            }
            ring.driver.publish();
            let memory = Arc::clone(&ring.memory);
            let mut chains = ring.take_all(&memory, Access::Write).unwrap();
            (1..13).for_each(|n| chains.join(n));
            ring.queue.complete_written(&chains.all()[..13]);
            assert!(!ring.driver.has_used(), "a part of the frame is visible");
            ring.queue.complete_written(&chains.all()[13..]);
            ring.queue.publish();
            assert_eq!(ring.reap().len(), 16);
        }
    }
}

/// A request and room for its answer, as on a control queue.
#[test]
fn a_request_and_its_answer_are_one_chain() {
    for shape in shapes(8) {
        let mut ring = Ring::new(shape);
        let memory = Arc::clone(&ring.memory);
        let bytes = pattern(3, 12);
        let request = pieces(&ring, DATA, &[2, 0, 10], &bytes);
        let answer = [writable(DATA + 0x1000, 1), writable(DATA + 0x1100, 4)];
        let chains: [(Vec<Buffer>, &[u8], usize); 4] = [
            ([&request[..], &answer].concat(), &bytes, 5),
            (request.clone(), &bytes, 0),
            (answer.to_vec(), &[], 5),
            (request[..1].to_vec(), &bytes[..2], 0),
        ];
        for (buffers, read, room) in chains {
            for is_indirect in [false, true] {
                let added = match is_indirect {
                    false => ring.driver.add(&buffers),
                    true => ring.driver.add_indirect(&buffers, DATA + 0x8000),
                };
                added.unwrap();
                ring.driver.publish();
                let (chain, chains) = ring.take_one(&memory, Access::ReadThenWrite).unwrap();
                assert_eq!(chain.fault, None);
                let (to_read, to_write) = chains.request();
                assert_eq!((gather(to_read), gather(to_write).len()), (read.to_vec(), room));
                ring.give_back(chain, 0);
            }
        }
        // What is to be read comes first.
        ring.driver.add(&[answer[0], request[0]]).unwrap();
        let (outcome, chain) = ring.outcome_and_chain(Access::ReadThenWrite).unwrap();
        assert_eq!(outcome, Outcome::Refused(ChainFault::WrongDirection));
        ring.give_back(chain, 0);
    }
}
