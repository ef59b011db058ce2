//! Receive chains that are cheap to offer and costly to take: a burst ends at its limit, and the next one goes on.

use std::sync::Arc;

use burst_trace::DropCause;
use guest_memory::GuestMemory;
use virtio_net::features::BASE;
use virtio_net::receive::Received;
use virtio_net::{GuestRoom, Negotiated, Placed, ReceiveState};
use virtqueue::chain::{BURST_DESCRIPTORS_MAX, CHAINS_MAX};
use virtqueue::driver::{Buffer, Driver, RingOptions};
use virtqueue::{Chains, Queue};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// `VIRTIO_F_RING_PACKED`, `VIRTIO_F_IN_ORDER`.
const PACKED: u64 = 1 << 34;
const IN_ORDER: u64 = 1 << 35;
const SIZE: u16 = 256;
const TABLE: u64 = 0x10_0000;
const BUFFER: u64 = 0x20_0000;
/// Most descriptors of a chain.
const CHAIN_MAX: u32 = 1024;

/// Places one frame, in as many bursts as it takes, in a ring of these chains (a table each) with a good one at the end.
/// Returns the outcome of each burst.
fn place(packed: bool, chain: &[Buffer]) -> Vec<(Placed, Received)> {
    let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x40_0000)]).unwrap();
    let memory = Arc::new(GuestMemory::new(Arc::new(map)));
    let options = RingOptions { packed, indirect: true, ..RingOptions::of(SIZE) };
    let mut driver = Driver::new(&memory, 0x1000, options, if packed { 0x8000 } else { 0 });
    let mut queue = Queue::new(&driver.setup(), &memory).unwrap();
    for _ in 1..SIZE {
        driver.add_indirect(chain, TABLE).unwrap();
    }
    driver.add(&[Buffer { address: BUFFER, len: 2048, writable: true }]).unwrap();
    driver.publish();
    let features = BASE & !(PACKED | IN_ORDER) | if packed { PACKED } else { 0 };
    let mut state = ReceiveState::default();
    let mut bursts = Vec::new();
    loop {
        assert_ne!(queue.available_descriptors(), Ok(0), "the good chain is lost");
        let mut chains = Chains::new();
        let mut room =
            GuestRoom::open(&mut queue, &memory, &mut chains, &mut state, Negotiated(features));
        room.expect(64);
        let placed = room.place(&[7; 1500]);
        bursts.push((placed, room.close()));
        queue.publish();
        if placed == Placed::Done {
            break;
        }
    }
    assert_eq!(std::iter::from_fn(|| driver.used()).count(), usize::from(SIZE));
    bursts
}

#[test]
fn a_burst_takes_a_limited_number_of_empty_or_faulty_chains_and_the_next_goes_on() {
    let buffer = |address, len, writable| Buffer { address, len, writable };
    for packed in [false, true] {
        for (buffer, count, cause) in [
            (buffer(BUFFER, 0, true), 1024, DropCause::RxEmptyChain),
            (buffer(BUFFER, 0, true), 100, DropCause::RxEmptyChain),
            (buffer(1 << 40, 8, true), 1024, DropCause::RxUnmapped),
            (buffer(BUFFER, 8, false), 300, DropCause::RxDirection),
        ] {
            let bursts = place(packed, &vec![buffer; count]);
            let mut drops = 0;
            for (n, (placed, received)) in bursts.iter().enumerate() {
                let limit = BURST_DESCRIPTORS_MAX + CHAIN_MAX + u32::try_from(CHAINS_MAX).unwrap();
                assert!(received.work < limit, "{cause:?}: {} in a burst", received.work);
                let is_last = n + 1 == bursts.len();
                assert_eq!(*placed == Placed::Done, is_last);
                assert_eq!(received.packets, u16::from(is_last));
                let dropped: Vec<_> = received.drops.iter().collect();
                assert!(dropped.iter().all(|drop| drop.0 == cause), "{dropped:?}");
                // Every burst gets further.
                assert!(is_last || !dropped.is_empty());
                drops += dropped.iter().map(|drop| drop.1).sum::<u16>();
            }
            assert_eq!(drops, SIZE - 1, "{cause:?}");
            assert!(bursts.len() > count / 12, "{cause:?}: {} bursts", bursts.len());
        }
    }
}
