//! Frames from a guest, good ones and others.

use std::sync::Arc;

use burst_trace::{DropCause, DropCounts};
use guest_memory::GuestMemory;
use virtio_net::features::BASE;
use virtio_net::{Negotiated, TransmitBurst};
use virtqueue::driver::{Buffer, SplitDriver};
use virtqueue::{Slices, SplitQueue};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const NEGOTIATED: Negotiated = Negotiated(BASE);

fn ring(size: u16) -> (Arc<GuestMemory>, SplitDriver, SplitQueue) {
    let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap();
    let memory = Arc::new(GuestMemory::new(Arc::new(map)));
    let driver = SplitDriver::new(&memory, 0x1000, size, false, true);
    let queue = SplitQueue::new(&driver.setup(), &memory).unwrap();
    (memory, driver, queue)
}

fn readable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, writable: false }
}

#[test]
fn a_burst_holds_its_frames_and_gives_faulty_chains_back_in_order() {
    let (memory, mut driver, mut queue) = ring(64);
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
    let (mut burst, mut slices) = (TransmitBurst::default(), Slices::new());
    assert_eq!(queue.available(), Ok(6));
    burst.gather(&mut queue, &memory, NEGOTIATED, &mut slices).unwrap();
    let frames = burst.frames(&slices, NEGOTIATED);
    assert_eq!(frames.iter().map(|frame| frame.len()).collect::<Vec<_>>(), [60, 60]);
    let mut copy = [0; 100];
    assert_eq!(frames.iter().next().unwrap().copy_to(&mut copy), 60);
    assert_eq!(copy[..60], [9; 60]);

    // The datapath takes the first frame only; the second comes again.
    let mut drops = DropCounts::default();
    assert_eq!(burst.complete(&mut queue, 1, &mut drops), 5);
    queue.publish();
    let used: Vec<_> = std::iter::from_fn(|| driver.used()).map(|used| used.head).collect();
    assert_eq!(used, heads[..5]);
    let expected = [
        (DropCause::TxUnmapped, 1),
        (DropCause::TxDirection, 1),
        (DropCause::TxTooShort, 1),
        (DropCause::TxTooLong, 1),
    ];
    assert_eq!(drops.iter().collect::<Vec<_>>(), expected);
    assert_eq!(queue.available(), Ok(1));
    let mut again = TransmitBurst::default();
    let mut slices = Slices::new();
    again.gather(&mut queue, &memory, NEGOTIATED, &mut slices).unwrap();
    assert_eq!(again.frames(&slices, NEGOTIATED).len(), 1);
}
