//! While the front end logs, every page that a burst writes to is marked: the whole memory is compared before and after.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use guest_memory::{DirtyLog, GuestMemory, GuestSlice};
use proptest::prelude::*;
use virtio_net::features::{BASE, MRG_RXBUF};
use virtio_net::{GuestRoom, Negotiated, ReceiveState};
use virtqueue::driver::{Buffer, Driver, RingOptions};
use virtqueue::{Chains, Queue, RingLog};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const PACKED: u64 = 1 << 34;
const IN_ORDER: u64 = 1 << 35;
const PAGE: usize = 4096;
/// Two adjacent regions: buffers cross from one into the other.
const REGION: usize = 0x8_0000;
const BUFFERS: u64 = 0x4_0000;
const BUFFERS_END: u64 = 0xf_0000;

/// What the datapath does.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Places a frame of this many bytes.
    Place(usize),
    /// Reads a frame of this many bytes, its header included.
    Read(usize),
    /// A read that fails after this many bytes.
    Fail(usize),
    /// Asks for kicks, or for none.
    Kicks(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..9000_usize).prop_map(Step::Place),
        (0..9000_usize).prop_map(Step::Read),
        (60_000..70_000_usize).prop_map(Step::Read),
        (1..3000_usize).prop_map(Step::Fail),
        any::<bool>().prop_map(Step::Kicks),
    ]
}

/// How the guest is made: ring format, completion in order, event index, mergeable buffers, ring size, length of a
/// buffer, and buffers in a chain.
type Shape = (bool, bool, bool, bool, u16, u32, usize);

fn shape() -> impl Strategy<Value = Shape> {
    let flag = any::<bool>;
    (flag(), flag(), flag(), flag(), 3..9_u32, 16..6000_u32, 1..4_usize)
        .prop_map(|(p, i, e, m, size, len, pieces)| (p, i, e, m, 1 << size, len, pieces))
}

struct Scene {
    memory: Arc<GuestMemory>,
    driver: Driver,
    queue: Queue,
    negotiated: Negotiated,
    file: File,
    next: u64,
    buffer_len: u32,
    pieces: usize,
}

impl Scene {
    fn new((packed, in_order, event_index, mergeable, size, buffer_len, pieces): Shape) -> Self {
        let ranges = [0, REGION].map(|at| (GuestAddress(at as u64), REGION));
        let map = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let memory = Arc::new(GuestMemory::new(Arc::new(map)));
        let options = RingOptions { packed, in_order, event_index, ..RingOptions::of(size) };
        // Near the end of a lap.
        let position = if packed { 0x8000 | (size - 2) } else { u16::MAX - 2 };
        let driver = Driver::new(&memory, 0x1000, options, position);
        let mut queue = Queue::new(&driver.setup(), &memory).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let log = Arc::new(DirtyLog::map(file.as_fd(), 0, 4096).unwrap());
        queue.set_log(Some(RingLog { log, device_area: None }));
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        let features = BASE & !(PACKED | IN_ORDER | MRG_RXBUF)
            | bit(packed, PACKED)
            | bit(in_order, IN_ORDER)
            | bit(mergeable, MRG_RXBUF);
        let negotiated = Negotiated(features);
        Self { memory, driver, queue, negotiated, file, next: BUFFERS, buffer_len, pieces }
    }

    /// The guest takes what came, and offers as much as it can.
    fn refill(&mut self) {
        while self.driver.used().is_some() {}
        loop {
            let len = self.buffer_len;
            let room = u64::from(len) * self.pieces as u64;
            if self.next + room > BUFFERS_END {
                self.next = BUFFERS;
            }
            let at = |n: usize| self.next + u64::from(len) * n as u64;
            let chain: Vec<_> =
                (0..self.pieces).map(|n| Buffer { address: at(n), len, writable: true }).collect();
            if self.driver.add(&chain).is_none() {
                break;
            }
            // At any alignment, and over each other's pages.
            self.next += room + 13;
        }
        self.driver.publish();
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut bytes = vec![0; 2 * REGION];
        self.memory.read(0, &mut bytes).unwrap();
        bytes
    }

    fn marked(&self) -> BTreeSet<usize> {
        let mut bytes = [0; 4096];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        (0..bytes.len() * 8).filter(|page| bytes[page / 8] & 1 << (page % 8) != 0).collect()
    }

    fn burst(&mut self, state: &mut ReceiveState, steps: &[Step], fill: u8) {
        let _ = self.queue.available_descriptors();
        let mut chains = Chains::new();
        let Self { queue, memory, negotiated, .. } = self;
        let mut room = GuestRoom::open(queue, memory, &mut chains, state, *negotiated);
        for step in steps {
            match *step {
                Step::Place(len) => {
                    let _ = room.place(&vec![fill; len]);
                }
                Step::Read(len) => {
                    let _ = room.scatter(|slices| Ok(read(slices, len, fill)));
                }
                Step::Fail(len) => {
                    let _ = room.scatter(|slices| {
                        read(slices, len, fill);
                        Err(io::ErrorKind::Other.into())
                    });
                }
                Step::Kicks(_) => {}
            }
        }
        room.close();
        self.queue.publish();
        for step in steps {
            match step {
                Step::Kicks(true) => self.queue.enable_notification(),
                Step::Kicks(false) => self.queue.disable_notification(),
                _ => {}
            }
        }
    }
}

/// Reads as `readv(2)` does: fills the front of the list. Returns the number of bytes.
fn read(slices: &[GuestSlice<'_>], len: usize, fill: u8) -> usize {
    let mut left = len;
    for slice in slices {
        left -= slice.write(0, &vec![fill; left]);
    }
    len - left
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    #[cfg_attr(miri, ignore = "files cannot be mapped there")]
    fn every_page_that_a_burst_changes_is_marked(
        shape in shape(),
        bursts in prop::collection::vec(prop::collection::vec(step(), 0..12), 1..12),
    ) {
        let mut scene = Scene::new(shape);
        let mut state = ReceiveState::default();
        for (fill, steps) in (1..).zip(&bursts) {
            scene.refill();
            scene.file.write_all_at(&[0; 4096], 0).unwrap();
            let before = scene.snapshot();
            scene.burst(&mut state, steps, fill);
            let after = scene.snapshot();
            let changed: BTreeSet<_> = (0..2 * REGION / PAGE)
                .filter(|n| before[n * PAGE..][..PAGE] != after[n * PAGE..][..PAGE])
                .collect();
            let marked = scene.marked();
            prop_assert!(
                changed.is_subset(&marked),
                "{:x?} of {:x?}", changed.difference(&marked), changed
            );
        }
    }
}
