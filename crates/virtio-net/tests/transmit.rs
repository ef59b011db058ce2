//! Frames from a guest, good ones and others.

use std::sync::Arc;

use burst_trace::{DropCause, DropCounts};
use guest_memory::GuestMemory;
use virtio_net::features::BASE;
use virtio_net::{Frames, Negotiated, TransmitBurst};
use virtqueue::driver::{Buffer, Driver, RingOptions};
use virtqueue::{Chains, Queue};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const NEGOTIATED: Negotiated = Negotiated(BASE);

fn ring(options: RingOptions) -> (Arc<GuestMemory>, Driver, Queue) {
    let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap();
    let memory = Arc::new(GuestMemory::new(Arc::new(map)));
    let start = if options.packed { 0x8000 } else { 0 };
    let driver = Driver::new(&memory, 0x1000, options, start);
    let queue = Queue::new(&driver.setup(), &memory).unwrap();
    (memory, driver, queue)
}

fn readable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: false }
}

#[test]
fn a_burst_holds_its_frames_and_gives_faulty_chains_back_in_order() {
    for (packed, in_order) in [(false, false), (false, true), (true, false), (true, true)] {
        faulty_chains_come_back(RingOptions { packed, in_order, ..RingOptions::of(64) });
    }
}

fn faulty_chains_come_back(options: RingOptions) {
    let (memory, mut driver, mut queue) = ring(options);
    memory.contiguous(0x1_0000, 64).unwrap().write(0, &[9; 64]);
    let heads = [
        driver.add(&[readable(0x1_0000, 12), readable(0x1_0000, 60)]).unwrap(),
        driver.add(&[readable(0x1_0000, 12)]).unwrap(),
        driver.add(&[Buffer { address: 0x1_0000, len: 100, writable: true }]).unwrap(),
        driver.add(&[readable(0xfff_0000, 100)]).unwrap(),
        driver.add(&[readable(0x1_0000, 100_000)]).unwrap(),
        driver.add(&[readable(0x1_0000, 72)]).unwrap(),
    ];
    driver.publish();
    let mut chains = Chains::new();
    // A packed ring has no index: a look knows of one entry at least, or of more than a burst.
    assert_eq!(queue.available_descriptors(), Ok(if options.packed { 1 } else { 6 }));
    let burst = TransmitBurst::gather(&mut queue, &memory, NEGOTIATED, &mut chains).unwrap();
    let frames = burst.frames();
    assert_eq!(frames.iter().map(|frame| frame.len()).collect::<Vec<_>>(), [60, 60]);
    let mut copy = [0; 100];
    assert_eq!(frames.iter().next().unwrap().copy_to(&mut copy), 60);
    assert_eq!(copy[..60], [9; 60]);

    // The datapath takes the first frame only; the second comes again.
    let mut drops = DropCounts::default();
    // The first chain has two descriptors, each of which is an entry of a packed ring.
    let slots = if options.packed { 6 } else { 5 };
    assert_eq!(burst.complete(&mut queue, 1, &mut drops), slots);
    queue.publish();
    let used: Vec<_> = std::iter::from_fn(|| driver.used()).map(|used| used.id).collect();
    assert_eq!(used, heads[..5]);
    let expected = [
        (DropCause::TxUnmapped, 1),
        (DropCause::TxDirection, 1),
        (DropCause::TxTooShort, 1),
        (DropCause::TxTooLong, 1),
    ];
    assert_eq!(drops.iter().collect::<Vec<_>>(), expected);
    assert_eq!(queue.available_descriptors(), Ok(1));
    let mut chains = Chains::new();
    let again = TransmitBurst::gather(&mut queue, &memory, NEGOTIATED, &mut chains).unwrap();
    assert_eq!(again.frames().len(), 1);
}

#[test]
fn a_part_of_the_frames_is_what_it_says_with_and_without_faulty_chains() {
    for faulty in [false, true] {
        let (memory, mut driver, mut queue) = ring(RingOptions::of(64));
        for len in 1..=6 {
            driver.add(&[readable(0x1_0000, 12 + len)]).unwrap();
            if faulty {
                driver.add(&[readable(0xfff_0000, 100)]).unwrap();
            }
        }
        driver.publish();
        queue.available_descriptors().unwrap();
        let mut chains = Chains::new();
        let burst = TransmitBurst::gather(&mut queue, &memory, NEGOTIATED, &mut chains).unwrap();
        let lens = |frames: Frames<'_, '_>| -> Vec<usize> {
            assert_eq!(frames.iter().count(), frames.len());
            if let Some(plain) = frames.plain(12) {
                assert_eq!(plain.len(), frames.len());
                assert!(
                    plain.iter().zip(frames.iter()).all(|(it, frame)| it.len() == frame.len() + 12)
                );
            } else {
                assert!(faulty);
            }
            frames.iter().map(|frame| frame.len()).collect()
        };
        let frames = burst.frames();
        assert_eq!(lens(frames.skip(0).take(6)), [1, 2, 3, 4, 5, 6]);
        assert_eq!(lens(frames.skip(0).take(100)), [1, 2, 3, 4, 5, 6]);
        assert_eq!(lens(frames.skip(2).take(3)), [3, 4, 5]);
        assert_eq!(lens(frames.skip(2).take(3).skip(1).take(2)), [4, 5]);
        assert_eq!(lens(frames.skip(5).take(2)), [6]);
        assert_eq!(lens(frames.skip(3).take(0)), Vec::<usize>::new());
        assert_eq!(lens(frames.skip(6).take(1)), Vec::<usize>::new());
        assert_eq!(lens(frames.skip(100).take(1)), Vec::<usize>::new());
    }
}
