//! Frames of two senders through a datapath that cuts each into segments, and has no room for all.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use datapath::{Datapath, Interface, Look};
use guest_memory::{GuestMemory, GuestSlice};
use virtio_net::TransmitBurst;
use virtio_net::features::BASE;
use virtqueue::driver::{Buffer, Driver, RingOptions};
use virtqueue::{Chains, Queue};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;

/// Segments of each frame.
const SEGMENTS: usize = 4;

/// Sends segments while there is room.
#[derive(Debug, Default)]
struct Cutter {
    room: usize,
    progress: SegmentProgress,
    /// Each segment: the first byte of its frame, and its number.
    sent: Vec<(u8, usize)>,
}

impl Interface for Cutter {
    fn capabilities(&self) -> Capabilities {
        let none = Offloads::default();
        Capabilities { name: "cutter", from_guest: none, to_guest: none, mtu: 1500 }
    }

    fn set_active(&mut self, _active: bool) -> io::Result<()> {
        Ok(())
    }

    fn has_frames(&self) -> bool {
        false
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Datapath for Cutter {
    fn transmit(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        let mut done = Transmitted::default();
        for frame in frames.iter() {
            let mut first = [0];
            frame.copy_to(&mut first);
            for segment in self.progress.written()..SEGMENTS {
                if self.room == 0 {
                    self.progress = SegmentProgress::after(segment);
                    return done;
                }
                self.room -= 1;
                self.sent.push((first[0], segment));
            }
            self.progress.reset();
            done.taken += 1;
        }
        done
    }

    fn receive(&mut self, _room: &mut GuestRoom<'_, '_>) -> io::Result<Look> {
        Ok(Look::Drained)
    }
}

impl FrameReader for Cutter {
    fn receive_frame(&mut self, _to: GuestSlice<'_>) -> io::Result<Option<usize>> {
        Ok(None)
    }

    fn transmit_progress(&mut self) -> Option<&mut SegmentProgress> {
        Some(&mut self.progress)
    }
}

#[test]
fn a_frame_that_waits_goes_on_where_it_was_and_nobody_elses_does() {
    let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2_0000)]).unwrap();
    let memory = Arc::new(GuestMemory::new(Arc::new(map)));
    let mut rings = [0x1000, 0x8000].map(|at| {
        let driver = Driver::new(&memory, at, RingOptions::of(8), 0);
        let queue = Queue::new(&driver.setup(), &memory).unwrap();
        (driver, queue)
    });
    // The first sender has frames 1 and 2, the second one frame 3.
    for (of, name) in [(0, 1), (0, 2), (1, 3)] {
        let address = 0x1_0000 + u64::from(name) * 100;
        memory.contiguous(address, 72).unwrap().write(HEADER_LEN, &[name]);
        rings[of].0.add(&[Buffer { address, len: 72, writable: false }]).unwrap();
    }
    let [mut first, mut second] = [Chains::new(), Chains::new()];
    let [first, second] = [(0, &mut first), (1, &mut second)].map(|(at, chains)| {
        let (driver, queue) = &mut rings[at];
        driver.publish();
        queue.available_descriptors().unwrap();
        let burst = TransmitBurst::gather(queue, &memory, Negotiated(BASE), chains).unwrap();
        burst.frames()
    });
    let mut uplink = Uplink::new(Cutter { room: SEGMENTS + 1, ..Cutter::default() });
    let mut waiting = Share { left: 0b11, progress: SegmentProgress::default() };
    assert!(uplink.send(first, &mut waiting).is_empty());
    assert_eq!((waiting.left, waiting.progress.written()), (0b10, 1));
    assert!(uplink.is_blocked());

    uplink.datapath().room = 2 * SEGMENTS;
    let mut other = Share { left: 1, progress: SegmentProgress::default() };
    assert!(uplink.send(second, &mut other).is_empty());
    assert_eq!((other.left, other.progress.written()), (0, 0));
    assert!(uplink.send(first, &mut waiting).is_empty());
    assert_eq!((waiting.left, waiting.progress.written()), (0, 0));
    let whole = |name: u8, segments: std::ops::Range<usize>| segments.map(move |n| (name, n));
    let expected = whole(1, 0..4).chain(whole(2, 0..1)).chain(whole(3, 0..4)).chain(whole(2, 1..4));
    assert_eq!(uplink.datapath().sent, expected.collect::<Vec<_>>());
}
