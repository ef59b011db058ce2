//! The split engine against its driver's side: what goes in comes out.

mod common;

use std::sync::Arc;

use common::{
    DATA, Outcome, Ring, SEAM, Shape, chain, gather, memory, read, readable, scatter, writable,
    write,
};
use virtqueue::chain::CHAIN_SLICES_MAX;
use virtqueue::driver::Buffer;
use virtqueue::{Access, ChainFault, SLICES_MAX, Slices, SplitQueue, Taken};

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
    let shapes: [&[u32]; 5] = [&[1], &[12, 60], &[0, 5, 0], &[1; 8], &[4000, 3, 0, 0, 1, 90, 7, 2]];
    let mut ring = Ring::new(Shape::of(8));
    for (n, lens) in shapes.into_iter().enumerate() {
        let bytes = pattern(n, lens.iter().sum::<u32>() as usize);
        let buffers = pieces(&ring, DATA, lens, &bytes);
        for is_indirect in [false, true] {
            let head = match is_indirect {
                false => ring.driver.add(&buffers).unwrap(),
                true => ring.driver.add_indirect(&buffers, DATA + 0x8000).unwrap(),
            };
            assert_eq!(ring.outcome(Access::Read), Ok(Outcome::Bytes(bytes.clone())), "{lens:?}");
            ring.give_back(head, 0);
            assert_eq!(ring.driver.free(), 8);
        }
    }
}

#[test]
fn direct_descriptors_may_end_in_an_indirect_table() {
    let mut ring = Ring::new(Shape::of(8));
    write(&ring.memory, DATA, b"headtail");
    ring.driver.add_indirect(&[readable(DATA + 4, 1), readable(DATA + 5, 3)], DATA + 0x1000);
    // The table's descriptor was the last of the free list: 0. Put another before it.
    ring.driver.write_descriptor(5, common::goes_on(DATA, 4, 0));
    ring.driver.offer_raw(5);
    assert_eq!(ring.outcome_of_last(), Outcome::Bytes(b"headtail".into()));
}

impl Ring {
    /// What becomes of the last of all chains offered; the others are dropped.
    fn outcome_of_last(&mut self) -> Outcome {
        self.driver.publish();
        let memory = Arc::clone(&self.memory);
        let mut slices = Slices::new();
        let last = *self.take_all(&memory, Access::Read, &mut slices).unwrap().last().unwrap();
        Outcome::Bytes(gather(chain(last).of(&slices)))
    }
}

#[test]
fn chains_of_one_byte_descriptors_are_put_together() {
    let mut ring = Ring::new(Shape::of(256));
    let bytes = pattern(3, 256);
    let buffers = pieces(&ring, DATA, &[1; 256], &bytes);
    let head = ring.driver.add(&buffers).unwrap();
    assert_eq!(ring.outcome(Access::Read), Ok(Outcome::Bytes(bytes.clone())));
    ring.give_back(head, 0);
    // As many in one table as a chain may have.
    let len = CHAIN_SLICES_MAX;
    let bytes = pattern(4, len);
    let buffers = pieces(&ring, DATA, &vec![1; len], &bytes);
    ring.driver.add_indirect(&buffers, DATA + 0x8_0000);
    assert_eq!(ring.outcome(Access::Read), Ok(Outcome::Bytes(bytes)));
}

#[test]
fn a_buffer_over_two_adjacent_regions_is_delivered_whole() {
    for (before, after) in [(1, 1), (1, 4000), (1500, 3), (0, 16), (16, 0)] {
        let mut ring = Ring::new(Shape::of(8));
        let bytes = pattern(9, before + after);
        let at = SEAM - before as u64;
        write(&ring.memory, at, &bytes);
        let head = ring.driver.add(&[readable(at, bytes.len() as u32)]).unwrap();
        assert_eq!(ring.outcome(Access::Read), Ok(Outcome::Bytes(bytes.clone())));
        ring.give_back(head, 0);
        // And what the device writes lands on both sides, and nowhere else.
        write(&ring.memory, at - 8, &vec![0xee; bytes.len() + 16]);
        ring.driver.add(&[writable(at, bytes.len() as u32)]).unwrap();
        ring.driver.publish();
        let memory = Arc::clone(&ring.memory);
        let mut slices = Slices::new();
        let taken = chain(ring.take_one(&memory, Access::Write, &mut slices).unwrap());
        assert_eq!(scatter(taken.of(&slices), &bytes), bytes.len());
        let around = read(&memory, at - 8, bytes.len() + 16);
        assert_eq!(around, [&[0xee; 8][..], &bytes, &[0xee; 8]].concat());
    }
}

#[test]
fn indices_wrap_and_nothing_is_lost() {
    let mut ring = Ring::new(Shape::of(8).starting_at(65530));
    let memory = Arc::clone(&ring.memory);
    let (mut sent, mut seen) = (0_u32, 0_u32);
    let mut outstanding = std::collections::VecDeque::new();
    // Once round all 65536 indices, in bursts that do not divide the ring's size.
    for burst in (1..=5).cycle() {
        for _ in 0..burst {
            let at = DATA + u64::from(sent % 8) * 64;
            write(&memory, at, &sent.to_le_bytes());
            let Some(head) = ring.driver.add(&[readable(at, 4)]) else { break };
            outstanding.push_back(head);
            sent += 1;
        }
        ring.driver.publish();
        let mut slices = Slices::new();
        for taken in ring.take_all(&memory, Access::Read, &mut slices).unwrap() {
            let taken = chain(taken);
            assert_eq!(gather(taken.of(&slices)), seen.to_le_bytes());
            ring.queue.complete(taken.head, seen);
            seen += 1;
        }
        ring.queue.publish();
        while let Some(used) = ring.driver.used() {
            assert_eq!(Some(used.head), outstanding.pop_front());
        }
        if seen > 70_000 {
            break;
        }
    }
    assert_eq!(sent, seen);
    assert_eq!(ring.driver.free(), 8);
    assert_eq!(ring.queue.next_available(), 65530_u16.wrapping_add(seen as u16));
}

#[test]
fn a_ring_goes_on_where_it_stopped() {
    let mut ring = Ring::new(Shape::of(8).starting_at(65534));
    for n in 0..40_u32 {
        let head = ring.driver.add(&[readable(DATA, n)]).unwrap();
        ring.driver.publish();
        // A new engine for every chain, set up with what the last one said on stopping.
        let setup = virtqueue::QueueSetup {
            next_available: ring.queue.next_available(),
            ..ring.driver.setup()
        };
        ring.queue = SplitQueue::new(&setup, &ring.memory).unwrap();
        let memory = Arc::clone(&ring.memory);
        let taken = chain(ring.take_one(&memory, Access::Read, &mut Slices::new()).unwrap());
        assert_eq!((taken.head, taken.len), (head, n));
        ring.give_back(head, n);
    }
}

#[test]
fn what_is_put_back_comes_again_in_order() {
    let mut ring = Ring::new(Shape::of(8).starting_at(65533));
    let memory = Arc::clone(&ring.memory);
    let heads: Vec<u16> =
        (1..=5).map(|len| ring.driver.add(&[writable(DATA, len)]).unwrap()).collect();
    ring.driver.publish();
    let take = |ring: &mut Ring| -> Vec<u16> {
        let mut slices = Slices::new();
        let all = ring.take_all(&memory, Access::Write, &mut slices).unwrap();
        all.into_iter().map(|taken| chain(taken).head).collect()
    };
    assert_eq!(take(&mut ring), heads);
    ring.queue.put_back(3);
    assert_eq!(ring.queue.available(), Ok(3));
    assert_eq!(take(&mut ring), heads[2..]);
    ring.queue.put_back(5);
    ring.driver.add(&[writable(DATA, 6)]).unwrap();
    ring.driver.publish();
    assert_eq!(ring.queue.available(), Ok(6));
    assert_eq!(take(&mut ring)[..5], heads);
}

#[test]
fn nothing_is_seen_before_it_is_published() {
    let mut ring = Ring::new(Shape::of(8));
    let memory = Arc::clone(&ring.memory);
    ring.driver.add(&[readable(DATA, 1)]);
    assert_eq!(ring.queue.available(), Ok(0));
    assert!(ring.queue.take(&memory, Access::Read, &mut Slices::new()).unwrap().is_none());
    ring.driver.publish();
    let taken = chain(ring.take_one(&memory, Access::Read, &mut Slices::new()).unwrap());
    ring.queue.complete(taken.head, 0);
    assert_eq!(ring.driver.used(), None);
    ring.queue.publish();
    assert!(ring.driver.used().is_some());
}

#[test]
fn a_burst_that_is_full_takes_the_chain_next_time() {
    let mut ring = Ring::new(Shape::of(8));
    let memory = Arc::clone(&ring.memory);
    let count = SLICES_MAX / 2 - 1;
    for n in 0..3 {
        let buffers = vec![readable(DATA, n); count];
        ring.driver.add_indirect(&buffers, DATA + 0x1_0000 + u64::from(n) * 0x8000).unwrap();
    }
    ring.driver.publish();
    let mut slices = Slices::new();
    // Length 0 needs no slices; the third does not fit beside the second and 1026 others.
    slices.extend((0..1026).map(|_| memory.contiguous(DATA, 1).unwrap()));
    let all = ring.take_all(&memory, Access::Read, &mut slices).unwrap();
    assert!(matches!(all[..], [Taken::Chain(_), Taken::Full]), "{all:?}");
    assert_eq!(slices.len(), 1026, "nothing of the chain that did not fit is left");
    slices.clear();
    let all = ring.take_all(&memory, Access::Read, &mut slices).unwrap();
    assert!(matches!(all[..], [Taken::Chain(_), Taken::Chain(_)]), "{all:?}");
    assert_eq!(slices.len(), 2 * count);
}

#[test]
fn a_chain_of_too_many_slices_is_refused_however_full_the_burst() {
    for already in [0, 1, 500, 1024, 1500, SLICES_MAX - 1, SLICES_MAX] {
        for over in [1, 100, 1200] {
            let mut ring = Ring::new(Shape::of(8));
            let memory = Arc::clone(&ring.memory);
            ring.driver
                .add_indirect(&vec![readable(DATA, 1); CHAIN_SLICES_MAX + over], DATA + 0x1000);
            ring.driver.publish();
            let mut slices = Slices::new();
            slices.extend((0..already).map(|_| memory.contiguous(DATA, 1).unwrap()));
            let mut taken = ring.take_one_or_full(&memory, &mut slices);
            assert_eq!(slices.len(), already);
            if taken == Taken::Full {
                assert!(already > 0, "an empty burst is never full");
                slices.clear();
                taken = ring.take_one_or_full(&memory, &mut slices);
            }
            let fault = ChainFault::TooManySlices;
            assert_eq!(taken, Taken::Refused { head: 0, fault }, "{already} {over}");
        }
    }
}

impl Ring {
    fn take_one_or_full<'m>(
        &mut self,
        memory: &'m guest_memory::GuestMemory,
        slices: &mut Slices<'m>,
    ) -> Taken {
        self.take_all(memory, Access::Read, slices).unwrap()[0]
    }
}

#[test]
fn the_largest_ring_works() {
    let size = 32768;
    let mut ring = Ring::over(memory(), Shape::of(size).starting_at(60_000));
    for n in 0..u32::from(size) {
        ring.driver.add(&[readable(DATA + 0x8_0000, n)]).unwrap();
    }
    assert_eq!(ring.driver.add(&[readable(DATA, 1)]), None);
    ring.driver.publish();
    assert_eq!(ring.queue.available(), Ok(size));
    let memory = Arc::clone(&ring.memory);
    for n in 0..u32::from(size) {
        let mut slices = Slices::new();
        let taken = ring.queue.take(&memory, Access::Read, &mut slices).unwrap().unwrap();
        assert_eq!(chain(taken).len, n);
        ring.queue.complete(chain(taken).head, n);
    }
    ring.queue.publish();
    assert_eq!(std::iter::from_fn(|| ring.driver.used()).count(), usize::from(size));
}
