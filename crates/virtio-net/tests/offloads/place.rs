//! Frames with their net headers, or finished, into the buffers of a guest.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use burst_trace::DropCause;
use guest_memory::memory::Mapping;
use guest_memory::{DirtyLog, GuestMemory};
use virtio_net::features::{BASE, HEADER_LEN};
use virtio_net::receive::Received;
use virtio_net::{
    BURST_MAX, Frames, GuestRoom, Negotiated, NetHeader, Placed, ReceiveState, SoftwareOffload,
    TransmitBurst,
};
use virtqueue::driver::{Buffer, Driver, RingOptions};
use virtqueue::{Chains, Queue, RingLog};
use vm_memory::GuestAddress;

use crate::packets::{Checksum, tcp4};
use crate::runs::Run;

/// `VIRTIO_NET_F_MRG_RXBUF`.
const MERGEABLE: u64 = 1 << 15;
const SIZE: u16 = 256;
/// Bytes of its memory, and of a page.
const MEMORY: usize = 0x80_0000;
const PAGE: usize = 4096;

/// A guest's ring.
pub struct Ring {
    memory: Arc<GuestMemory>,
    driver: Driver,
    queue: Queue,
    state: ReceiveState,
    negotiated: Negotiated,
    next_address: u64,
    offered: Vec<(u64, u32)>,
}

impl Ring {
    pub fn new(features: u64) -> Self {
        Self::of_size(features, SIZE)
    }

    fn of_size(features: u64, size: u16) -> Self {
        let negotiated = Negotiated(features);
        let map = Mapping::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let memory = Arc::new(GuestMemory::new(Arc::new(map)));
        let packed = negotiated.packed();
        let options = RingOptions { packed, ..RingOptions::of(size) };
        let driver = Driver::new(&memory, 0x1000, options, if packed { 0x8000 } else { 0 });
        let queue = Queue::new(&driver.setup(), &memory).unwrap();
        let state = ReceiveState::default();
        let (next_address, offered) = (0x10_0000, Vec::new());
        Self { memory, driver, queue, state, negotiated, next_address, offered }
    }

    fn add(&mut self, lens: &[u32], writable: bool) -> u64 {
        let first = self.next_address;
        let mut buffers = Vec::new();
        for &len in lens {
            buffers.push(Buffer { address: self.next_address, len, writable });
            self.next_address += u64::from(len);
        }
        self.driver.add(&buffers).unwrap();
        self.driver.publish();
        first
    }

    /// Offers chains for receiving.
    pub fn offer(&mut self, chains: &[&[u32]]) {
        for lens in chains {
            let first = self.add(lens, true);
            self.offered.push((first, lens.iter().sum()));
        }
    }

    /// What `work` does with the room, in a burst of its own.
    pub fn with_room<T>(
        &mut self,
        work: impl FnOnce(&mut GuestRoom<'_, '_>) -> T,
    ) -> (T, Received) {
        let memory = Arc::clone(&self.memory);
        let mut chains = Chains::new();
        self.queue.available_descriptors().unwrap();
        let Self { queue, state, negotiated, .. } = self;
        let mut room = GuestRoom::open(queue, &memory, &mut chains, state, *negotiated);
        let result = work(&mut room);
        let received = room.close();
        self.queue.publish();
        (result, received)
    }

    /// Has what the device writes from now on logged. Returns the file of the log.
    pub fn log(&mut self) -> File {
        let file = tempfile::tempfile().unwrap();
        let len = MEMORY / PAGE / 8;
        file.set_len(len as u64).unwrap();
        let log = Arc::new(DirtyLog::map(file.as_fd(), 0, len).unwrap());
        self.queue.set_log(Some(RingLog { log, device_area: None }));
        file
    }

    /// The guest's memory, page by page.
    pub fn pages(&self) -> Vec<Vec<u8>> {
        let mut bytes = vec![0; MEMORY];
        self.memory.read(0, &mut bytes).unwrap();
        bytes.chunks(PAGE).map(<[u8]>::to_vec).collect()
    }

    fn came_in_buffer(&mut self) -> Option<Vec<u8>> {
        let used = self.driver.used()?;
        let (address, len) = self.offered.remove(0);
        assert!(used.len <= len);
        let mut bytes = vec![0; used.len as usize];
        self.memory.read(address, &mut bytes).unwrap();
        Some(bytes)
    }

    /// The next frame that came, and its net header.
    pub fn came(&mut self) -> Option<(NetHeader, Vec<u8>)> {
        let mut bytes = self.came_in_buffer()?;
        for _ in 1..u16::from_le_bytes([bytes[10], bytes[11]]) {
            bytes.extend(self.came_in_buffer().unwrap());
        }
        let frame = bytes.split_off(HEADER_LEN);
        Some((NetHeader::from_bytes(&bytes.try_into().unwrap()), frame))
    }
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 13 + n / 256) as u8).collect()
}

#[test]
fn a_frame_comes_with_the_net_header_that_it_was_given() {
    let frame = tcp4().with(&payload(5000), Checksum::Partial);
    let header = tcp4().needs_segments(1000);
    for features in [BASE, BASE & !(1 << 34)] {
        for (offered, buffers) in [
            (vec![&[6000][..]], 1),
            (vec![&[2000], &[2000], &[2000]], 3),
            (vec![&[5, 100], &[1, 3000, 50], &[9000]], 3),
        ] {
            let mut ring = Ring::new(features);
            ring.offer(&offered);
            let from = Run::of(&[&[0; 4], &frame[..]].concat(), &[1, 700]);
            let (placed, received) =
                ring.with_room(|room| room.place_run(&header, &from.slices(), 4));
            assert_eq!((placed, received.packets), (Placed::Done, 1));
            assert_eq!(received.bytes as usize, frame.len());
            let (came, bytes) = ring.came().unwrap();
            assert_eq!(came, NetHeader { num_buffers: buffers, ..header });
            assert_eq!(bytes, frame);
        }
    }
}

#[test]
fn segments_go_on_in_the_next_burst_where_room_ended() {
    let (shape, payload) = (tcp4(), payload(20_000));
    let frame = shape.with(&payload, Checksum::Partial);
    let from = Run::of(&frame, &[333]);
    let from = from.slices();
    for buffers in [&[&[2000][..]; 7], &[&[600]; 7]] {
        let mut ring = Ring::new(BASE);
        let header = shape.needs_segments(1000);
        let mut offload = SoftwareOffload::plan(&header, &from, 0, frame.len()).unwrap();
        let mut came = Vec::new();
        for round in 0..20 {
            ring.offer(buffers);
            let before = offload.count();
            let (placed, received) =
                ring.with_room(|room| room.place_offloaded(&mut offload, &from));
            assert_eq!(usize::from(received.packets), before - offload.count());
            assert_eq!(placed == Placed::Done, offload.count() == 0, "round {round}");
            while let Some((header, segment)) = ring.came() {
                assert!(header.is_plain());
                came.push(segment);
            }
        }
        assert_eq!(came, shape.segments(&payload, 1000));
    }
}

#[test]
fn segments_that_fit_no_buffer_are_dropped_one_by_one() {
    let (shape, payload) = (tcp4(), payload(60_000));
    let frame = shape.with(&payload, Checksum::Partial);
    let from = Run::of(&frame, &[5000]);
    let from = from.slices();
    let mut ring = Ring::new(BASE & !MERGEABLE);
    ring.offer(&[&[600][..]; 3]);
    let mut offload =
        SoftwareOffload::plan(&shape.needs_segments(700), &from, 0, frame.len()).unwrap();
    assert_eq!(offload.count(), 86);
    let ((), received) = ring
        .with_room(|room| assert_eq!(room.place_offloaded(&mut offload, &from), Placed::NoRoom));
    assert_eq!((received.drops.of(DropCause::RxTooBig), offload.count()), (64, 86 - BURST_MAX));
    let (placed, received) = ring.with_room(|room| room.place_offloaded(&mut offload, &from));
    // The last one is short enough.
    assert_eq!((placed, received.packets), (Placed::Done, 1));
    assert_eq!(ring.came().unwrap().1, shape.segments(&payload, 700)[85]);
}

/// Sends these frames after their net headers, in buffers of these lengths, over and over, and does `work` with the burst.
pub fn with_frames<T>(
    features: u64,
    frames: &[(NetHeader, Vec<u8>)],
    cuts: &[usize],
    work: impl FnOnce(Frames<'_, '_>) -> T,
) -> T {
    let mut sender = Ring::of_size(features, 8192);
    let header_len = sender.negotiated.header_len();
    for (header, frame) in frames {
        let bytes = [&header.to_bytes()[..header_len], frame].concat();
        let mut lens = Vec::new();
        let mut left = bytes.len();
        while left > 0 {
            let len = cuts[lens.len() % cuts.len()].clamp(1, left);
            lens.push(u32::try_from(len).unwrap());
            left -= len;
        }
        let at = sender.add(&lens, false);
        sender.memory.write(at, &bytes).unwrap();
    }
    sender.queue.available_descriptors().unwrap();
    let mut chains = Chains::new();
    let Ring { queue, memory, negotiated, .. } = &mut sender;
    work(TransmitBurst::gather(queue, memory, *negotiated, &mut chains).unwrap().frames())
}

/// Sends frames of these lengths and does `work` with the burst; a length of 0 is a chain with a fault.
fn with_sent(lens: &[u32], work: impl FnOnce(Frames<'_, '_>)) {
    let mut sender = Ring::new(BASE);
    for &len in lens {
        sender.add(&[12 + len], false);
    }
    sender.queue.available_descriptors().unwrap();
    let mut chains = Chains::new();
    let Ring { queue, memory, negotiated, .. } = &mut sender;
    work(TransmitBurst::gather(queue, memory, *negotiated, &mut chains).unwrap().frames());
}

#[test]
fn a_part_of_a_burst_is_a_burst() {
    let lens = |frames: Frames<'_, '_>| frames.iter().map(|it| it.len()).collect::<Vec<_>>();
    for sent in [vec![60, 61, 62, 63, 64], vec![0, 60, 0, 0, 61, 62, 0, 63, 64, 0]] {
        let has_faults = sent.len() > 5;
        with_sent(&sent, |all| {
            let good: Vec<usize> = (60..65).collect();
            for from in 0..7 {
                for count in 0..7 {
                    let part = all.skip(from).take(count);
                    let expected = &good[from.min(5)..(from + count).min(5).max(from.min(5))];
                    assert_eq!((lens(part), part.len()), (expected.to_vec(), expected.len()));
                    assert_eq!(part.is_empty(), expected.is_empty());
                    let plain = part.plain(HEADER_LEN);
                    if !has_faults {
                        let buffers = plain.unwrap();
                        assert!(
                            buffers.iter().map(|it| it.len() - 12).eq(expected.iter().copied())
                        );
                    }
                    if let Some(buffers) = plain {
                        assert_eq!(buffers.len(), expected.len());
                    }
                    assert_eq!(lens(all.take(from + count).skip(from)), expected);
                }
            }
        });
    }
}

#[test]
fn parts_of_a_burst_go_to_different_rings() {
    with_sent(&[60, 61, 0, 62, 63], |frames| {
        for (part, expected) in [(frames.take(2), 121), (frames.skip(2), 125)] {
            let mut ring = Ring::new(BASE);
            ring.offer(&[&[100][..]; 4]);
            assert_eq!(ring.with_room(|room| room.forward(part)).0, (2, expected));
        }
    });
}

#[test]
fn the_net_header_of_a_frame_is_read_however_it_is_cut() {
    let header = tcp4().needs_segments(1448);
    for cuts in [&[12, 60][..], &[72], &[5, 7, 60], &[1; 72]] {
        let mut ring = Ring::new(BASE);
        let at = ring.add(cuts, false);
        ring.memory.write(at, &header.to_bytes()).unwrap();
        ring.queue.available_descriptors().unwrap();
        let mut chains = Chains::new();
        let Ring { queue, memory, negotiated, .. } = &mut ring;
        let burst = TransmitBurst::gather(queue, memory, *negotiated, &mut chains).unwrap();
        let frame = burst.frames().iter().next().unwrap();
        assert_eq!((frame.header(), frame.len()), (header, 60));
    }
}
