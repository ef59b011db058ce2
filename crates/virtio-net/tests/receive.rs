//! Frames to a guest whose buffers come in every shape.

use std::io;
use std::sync::Arc;

use burst_trace::DropCause;
use guest_memory::{GuestMemory, GuestSlice};
use virtio_net::features::{BASE, HEADER_LEN, NUM_BUFFERS};
use virtio_net::receive::{Mark, Received};
use virtio_net::{
    BURST_MAX, Frame, Frames, GuestRoom, Negotiated, Placed, ReceiveState, TransmitBurst,
};
use virtqueue::driver::{Buffer, Driver, RingOptions};
use virtqueue::{Chains, Queue};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// `VIRTIO_F_RING_PACKED`.
const PACKED: u64 = 1 << 34;
const BUFFERS: u64 = 0x10_0000;
/// A canary between any two buffers.
const GAP: u64 = 64;

struct Ring {
    memory: Arc<GuestMemory>,
    driver: Driver,
    queue: Queue,
    state: ReceiveState,
    negotiated: Negotiated,
    next_address: u64,
}

impl Ring {
    fn new(size: u16, negotiated: Negotiated) -> Self {
        let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x80_0000)]).unwrap();
        let memory = Arc::new(GuestMemory::new(Arc::new(map)));
        let packed = negotiated.packed();
        let options = RingOptions { packed, in_order: packed, ..RingOptions::of(size) };
        let driver = Driver::new(&memory, 0x1000, options, if packed { 0x8000 } else { 0 });
        let queue = Queue::new(&driver.setup(), &memory).unwrap();
        let state = ReceiveState::default();
        Self { memory, driver, queue, state, negotiated, next_address: BUFFERS }
    }

    /// A split ring and a packed one.
    fn mergeable(size: u16) -> [Self; 2] {
        [Self::new(size, Negotiated(BASE & !PACKED)), Self::new(size, Negotiated(BASE))]
    }

    /// Offers a chain of buffers of these lengths; returns their addresses.
    fn offer(&mut self, lens: &[u32]) -> Vec<u64> {
        let mut buffers = Vec::new();
        for &len in lens {
            buffers.push(Buffer { address: self.next_address, len, writable: true });
            self.next_address += u64::from(len) + GAP;
        }
        self.driver.add(&buffers).unwrap();
        self.driver.publish();
        buffers.iter().map(|buffer| buffer.address).collect()
    }

    fn with_room<T>(&mut self, work: impl FnOnce(&mut GuestRoom<'_, '_>) -> T) -> (T, Received) {
        let memory = Arc::clone(&self.memory);
        let mut chains = Chains::new();
        self.queue.available_descriptors().unwrap();
        let mut room = GuestRoom::open(
            &mut self.queue,
            &memory,
            &mut chains,
            &mut self.state,
            self.negotiated,
        );
        let result = work(&mut room);
        let received = room.close();
        self.queue.publish();
        (result, received)
    }

    /// Scatters `frames`, each as the kernel would: header of zeroes, then the bytes.
    fn scatter(&mut self, frames: &[Vec<u8>]) -> (Vec<Placed>, Received) {
        self.with_room(|room| {
            frames
                .iter()
                .map(|frame| room.scatter(|list| Ok(fill(list, &with_header(frame)))).unwrap())
                .collect()
        })
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.contiguous(address, len as u64).unwrap().read(0, &mut bytes);
        bytes
    }
}

fn with_header(frame: &[u8]) -> Vec<u8> {
    [&[0; HEADER_LEN], frame].concat()
}

fn fill(list: &[GuestSlice<'_>], mut bytes: &[u8]) -> usize {
    let len = bytes.len();
    for slice in list {
        bytes = &bytes[slice.write(0, bytes)..];
    }
    len - bytes.len()
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 256) as u8).collect()
}

fn drops(received: &Received) -> Vec<(DropCause, u16)> {
    received.drops.iter().collect()
}

#[test]
fn a_frame_that_fits_one_buffer_is_in_it_with_its_header() {
    for mut ring in Ring::mergeable(8) {
        let at = ring.offer(&[1526])[0];
        let (placed, received) = ring.scatter(&[frame(60)]);
        assert_eq!((placed[0], received.packets, received.bytes), (Placed::Done, 1, 60));
        let used = ring.driver.used().unwrap();
        assert_eq!(used.len, 72);
        let bytes = ring.bytes(at, 72);
        assert_eq!(bytes[10..12], [1, 0], "num_buffers");
        assert_eq!(bytes[12..], frame(60));
    }
}

#[test]
fn a_frame_over_several_buffers_is_whole_and_says_how_many() {
    for mut ring in Ring::mergeable(16) {
        let at: Vec<_> = (0..10).map(|_| ring.offer(&[1000])[0]).collect();
        // The first such frame spills, the second is expected.
        for round in 0..2 {
            let (_, received) = ring.scatter(&[frame(4000)]);
            assert_eq!(received.packets, 1);
            let lens: Vec<_> =
                std::iter::from_fn(|| ring.driver.used()).map(|used| used.len).collect();
            assert_eq!(lens, [1000, 1000, 1000, 1000, 12]);
            let whole: Vec<u8> =
                (0..5).flat_map(|n| ring.bytes(at[round * 5 + n], lens[n] as usize)).collect();
            assert_eq!(whole[10..12], [5, 0]);
            assert_eq!(whole[12..], frame(4000));
            assert_eq!(ring.bytes(at[round * 5 + 4] + 12, 900), [0; 900], "past the frame");
        }
    }
}

#[test]
fn a_frame_waits_whole_until_the_guest_has_buffers_for_it() {
    for mut ring in Ring::mergeable(16) {
        ring.offer(&[1000]);
        ring.offer(&[1000]);
        let (placed, received) = ring.scatter(&[frame(3000), frame(60)]);
        assert_eq!((placed, received.packets), (vec![Placed::NoRoom, Placed::NoRoom], 0));
        assert!(ring.state.is_holding());
        assert_eq!(ring.driver.used(), None);
        let third = ring.offer(&[1000])[0];
        ring.offer(&[1000]);
        ring.offer(&[1000]);
        let (placed, received) = ring.scatter(&[frame(60)]);
        assert_eq!((placed[0], received.packets), (Placed::Done, 2));
        assert_eq!(ring.bytes(BUFFERS, 1000), with_header_merged(&frame(3000), 4)[..1000]);
        assert_eq!(ring.bytes(third, 1000), with_header(&frame(3000))[2000..3000]);
        assert!(!ring.state.is_holding());
    }
}

fn with_header_merged(frame: &[u8], buffers: u8) -> Vec<u8> {
    let mut bytes = with_header(frame);
    bytes[10] = buffers;
    bytes
}

#[test]
fn a_frame_no_ring_of_this_guest_could_take_is_dropped() {
    for mut ring in Ring::mergeable(4) {
        for _ in 0..4 {
            ring.offer(&[100]);
        }
        let (_, received) = ring.scatter(&[frame(1000), frame(60)]);
        assert_eq!(drops(&received), [(DropCause::RxNoBuffers, 1)]);
        assert_eq!(received.packets, 1);
    }
}

#[test]
fn without_mergeable_buffers_a_frame_larger_than_its_buffer_is_dropped_and_the_buffer_kept() {
    let mut ring = Ring::new(8, Negotiated(1 << 32));
    let at = ring.offer(&[12, 1514])[0];
    ring.offer(&[1526]);
    let (_, received) = ring.scatter(&[frame(1515), frame(1514)]);
    assert_eq!(drops(&received), [(DropCause::RxTooBig, 1)]);
    assert_eq!((received.packets, received.bytes), (1, 1514));
    assert_eq!(ring.bytes(at, 12)[10..], [1, 0], "num_buffers is 1 without mergeable buffers");
    assert_eq!(ring.bytes(at + 12 + GAP, 1514), frame(1514));
}

#[test]
fn a_header_over_one_byte_buffers_is_written_where_it_belongs() {
    for mut ring in Ring::mergeable(32) {
        let at = ring.offer(&[1; 14]);
        ring.offer(&[100]);
        ring.scatter(&[frame(50)]);
        assert_eq!(at[10..12].iter().map(|&at| ring.bytes(at, 1)[0]).collect::<Vec<_>>(), [2, 0]);
        assert_eq!(ring.bytes(at[13], 1)[0], frame(2)[1]);
    }
}

#[test]
fn buffers_with_faults_come_back_empty_in_their_order() {
    for mut ring in Ring::mergeable(16) {
        let bad = |address, writable| Buffer { address, len: 100, writable };
        ring.driver.add(&[bad(0xffff_0000, true)]).unwrap();
        ring.offer(&[600]);
        ring.driver.add(&[bad(BUFFERS, false)]).unwrap();
        ring.offer(&[0]);
        ring.offer(&[600]);
        let (_, received) = ring.scatter(&[frame(1000)]);
        let expected =
            [(DropCause::RxUnmapped, 1), (DropCause::RxDirection, 1), (DropCause::RxEmptyChain, 1)];
        assert_eq!(drops(&received), expected);
        let lens: Vec<_> = std::iter::from_fn(|| ring.driver.used()).map(|used| used.len).collect();
        assert_eq!(lens, [0, 600, 0, 0, 412]);
    }
}

#[test]
fn an_error_of_the_kernel_leaves_every_buffer_with_the_guest() {
    for mut ring in Ring::mergeable(8) {
        ring.offer(&[1526]);
        let (result, received) =
            ring.with_room(|room| room.scatter(|_| Err(io::ErrorKind::WouldBlock.into())));
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!((received.packets, ring.driver.used()), (0, None));
        assert_eq!(ring.scatter(&[frame(60)]).1.packets, 1);
    }
}

#[test]
fn a_guest_without_checksum_offload_is_told_nothing_of_checksums() {
    for (offload, flags) in [(0, 0), (1 << 1, 2)] {
        let mut ring = Ring::new(8, Negotiated(BASE | offload));
        let at = ring.offer(&[1526])[0];
        let data_valid = [&[2][..], &with_header(&frame(60))[1..]].concat();
        let (placed, _) = ring.with_room(|room| room.scatter(|list| Ok(fill(list, &data_valid))));
        assert_eq!(placed.unwrap(), Placed::Done);
        assert_eq!(ring.bytes(at, 1), [flags]);
    }
}

#[test]
fn frames_handed_in_are_placed_or_left() {
    for mut ring in Ring::mergeable(8) {
        let at = ring.offer(&[1526])[0];
        let (placed, received) =
            ring.with_room(|room| [room.place(&frame(64)), room.place(&frame(64))]);
        assert_eq!((placed, received.packets), ([Placed::Done, Placed::NoRoom], 1));
        assert_eq!(ring.bytes(at, 76), with_header_merged(&frame(64), 1));
    }
}

#[test]
fn a_burst_of_frames_that_do_not_fit_ends() {
    let mut ring = Ring::new(8, Negotiated(BASE & !(1 << 15)));
    ring.offer(&[2048]);
    let (tries, received) = ring.with_room(|room| {
        let frame = [0x55; 4000];
        (0..10_000).take_while(|_| room.place(&frame) == Placed::Done).count()
    });
    assert_eq!((tries, received.packets), (BURST_MAX, 0));
    assert_eq!(received.drops.iter().collect::<Vec<_>>(), [(DropCause::RxTooBig, 64)]);
    assert_eq!(ring.scatter(&[vec![1; 60]]).1.packets, 1, "the buffer is still there");
}

#[test]
fn a_frame_goes_from_the_buffers_of_one_ring_into_those_of_another_however_they_are_cut() {
    for (sent, received) in [
        (vec![12, 400], vec![2000]),
        (vec![412], vec![412]),
        (vec![1, 12, 99, 300], vec![5, 6, 1, 100, 1, 299]),
    ] {
        for mut ring in Ring::mergeable(16) {
            let (header, bytes) = (vec![0; HEADER_LEN], frame(400));
            let mut whole = [header, bytes.clone()].concat();
            let mut sender = Ring::new(16, Negotiated(BASE));
            let mut buffers = Vec::new();
            for len in sent.iter().copied() {
                let address = sender.next_address;
                let rest = whole.split_off(whole.len().min(len));
                sender.memory.write(address, &whole).unwrap();
                whole = rest;
                let len = u32::try_from(len).unwrap();
                buffers.push(Buffer { address, len, writable: false });
                sender.next_address += u64::from(len) + GAP;
            }
            sender.driver.add(&buffers).unwrap();
            sender.driver.publish();
            sender.queue.available_descriptors().unwrap();
            let mut chains = Chains::new();
            let negotiated = sender.negotiated;
            let burst =
                TransmitBurst::gather(&mut sender.queue, &sender.memory, negotiated, &mut chains);
            let at: Vec<_> = received.iter().flat_map(|&len| ring.offer(&[len])).collect();
            let (placed, done) = ring.with_room(|room| room.forward(burst.unwrap().frames()));
            assert_eq!((placed, done.packets, done.bytes), ((1, 400), 1, 400));
            let lens: Vec<_> =
                std::iter::from_fn(|| ring.driver.used()).map(|used| used.len as usize).collect();
            let came: Vec<u8> =
                at.iter().zip(lens).flat_map(|(&at, len)| ring.bytes(at, len)).collect();
            let count = u8::try_from(received.len()).unwrap();
            assert_eq!(came, with_header_merged(&bytes, count));
        }
    }
}

/// Offers chains of buffers of these lengths, and returns what came back in each of them, in order.
fn forwarded(ring: &mut Ring, offered: &[&[u32]], frames: Frames<'_, '_>) -> (usize, Vec<Vec<u8>>) {
    let at: Vec<_> = offered.iter().map(|lens| ring.offer(lens)).collect();
    let ((taken, bytes), received) = ring.with_room(|room| room.forward(frames));
    assert_eq!((taken, bytes), (received.packets.into(), received.bytes));
    let used = std::iter::from_fn(|| ring.driver.used()).collect::<Vec<_>>();
    let came = used.iter().zip(offered.iter().zip(at)).map(|(used, (lens, at))| {
        let mut bytes: Vec<u8> =
            lens.iter().zip(at).flat_map(|(&len, at)| ring.bytes(at, len as usize)).collect();
        bytes.truncate(used.len as usize);
        bytes
    });
    (taken, came.collect())
}

#[test]
fn a_burst_goes_from_ring_to_ring_whatever_is_in_its_way() {
    let plain: &[u32] = &[2000];
    let cases: [(&[&[u32]], usize); 5] = [
        (&[plain; 12], 10),
        // Fewer buffers than frames; one too small for its frame; chains of several buffers.
        (&[plain; 7], 7),
        (&[plain, plain, plain, plain, plain, &[80], plain, plain, plain, plain, plain, plain], 10),
        (
            &[
                plain,
                &[12, 500],
                plain,
                plain,
                &[5, 7, 100, 400],
                plain,
                plain,
                plain,
                plain,
                plain,
            ],
            10,
        ),
        (&[&[30, 40, 50, 60]], 1),
    ];
    for (offered, expected) in cases {
        for mut ring in Ring::mergeable(16) {
            let mut sender = Ring::new(16, Negotiated(BASE));
            let sent: Vec<_> = (0..10_u8).map(|n| [n].repeat(60 + 40 * usize::from(n))).collect();
            for frame in &sent {
                let bytes = with_header(frame);
                sender.memory.write(sender.next_address, &bytes).unwrap();
                let len = u32::try_from(bytes.len()).unwrap();
                let buffer = Buffer { address: sender.next_address, len, writable: false };
                sender.driver.add(&[buffer]).unwrap();
                sender.next_address += u64::from(len) + GAP;
            }
            sender.driver.publish();
            sender.queue.available_descriptors().unwrap();
            let mut chains = Chains::new();
            let Ring { queue, memory, negotiated, .. } = &mut sender;
            let burst = TransmitBurst::gather(queue, memory, *negotiated, &mut chains).unwrap();
            let (taken, came) = forwarded(&mut ring, offered, burst.frames());
            assert_eq!(taken, expected, "{offered:?}");
            let mut came = came.into_iter();
            for frame in &sent[..taken] {
                let mut bytes = came.next().unwrap();
                let count = bytes[NUM_BUFFERS];
                (1..count).for_each(|_| bytes.extend(came.next().unwrap()));
                assert_eq!(bytes, with_header_merged(frame, count), "{offered:?}");
            }
            assert_eq!(came.next(), None, "{offered:?}");
        }
    }
}

fn seen(room: &GuestRoom<'_, '_>, mark: Mark) -> Vec<Vec<u8>> {
    let copy = |frame: Frame<'_, '_>| {
        let mut bytes = vec![0; frame.len()];
        assert_eq!(frame.copy_to(&mut bytes), frame.len());
        bytes
    };
    room.placed_since(mark).map(copy).collect()
}

#[test]
fn who_looks_on_sees_every_frame_that_was_placed_and_the_guest_none_of_them_yet() {
    for mut ring in Ring::mergeable(32) {
        let wrong = Buffer { address: 0xffff_0000, len: 100, writable: true };
        for len in [1000, 300, 300] {
            ring.offer(&[len / 2, len / 2]);
            ring.driver.add(&[wrong]).unwrap();
        }
        (0..20).for_each(|_| drop(ring.offer(&[1000])));
        let sent = [frame(2000), frame(60), frame(61), frame(62), frame(1500), frame(63)];
        let ((), received) = ring.with_room(|room| {
            room.keep();
            let mark = room.mark();
            for frame in &sent[..2] {
                room.scatter(|list| Ok(fill(list, &with_header(frame)))).unwrap();
            }
            assert_eq!(seen(room, mark), sent[..2]);
            let mark = room.mark();
            for frame in &sent[2..] {
                assert_eq!(room.place(frame), Placed::Done);
            }
            assert_eq!(seen(room, mark), sent[2..]);
            assert_eq!(seen(room, room.mark()), Vec::<Vec<u8>>::new());
        });
        assert_eq!((received.packets, received.drops.total()), (6, 3));
    }
}

#[test]
fn a_kept_packed_ring_shows_the_guest_nothing_before_the_room_is_closed() {
    let mut ring = Ring::new(16, Negotiated(BASE));
    (0..16).for_each(|_| drop(ring.offer(&[1000])));
    let driver = std::cell::RefCell::new(&mut ring.driver);
    let mut chains = Chains::new();
    ring.queue.available_descriptors().unwrap();
    let (state, negotiated) = (&mut ring.state, ring.negotiated);
    let mut room = GuestRoom::open(&mut ring.queue, &ring.memory, &mut chains, state, negotiated);
    room.keep();
    (0..12).for_each(|_| assert_eq!(room.place(&frame(60)), Placed::Done));
    assert_eq!(driver.borrow_mut().used(), None);
    room.close();
    ring.queue.publish();
    assert_eq!(std::iter::from_fn(|| driver.borrow_mut().used()).count(), 12);
}

#[test]
fn a_frame_that_is_to_be_lost_is_counted_and_ends_the_burst() {
    for mut ring in Ring::mergeable(32) {
        let at: Vec<_> = (0..20).map(|_| ring.offer(&[1000])[0]).collect();
        let ((), received) = ring.with_room(|room| {
            room.lose_after(1);
            assert_eq!(room.place(&frame(60)), Placed::Done);
            assert!(!room.is_full());
            assert_eq!(room.place(&frame(61)), Placed::Done);
            assert_eq!(room.place(&frame(62)), Placed::NoRoom);
            assert!(room.is_full() && room.lose_none() && !room.is_full());
            room.lose_after(0);
            let mut scatter =
                |bytes: &[u8]| room.scatter(|list| Ok(fill(list, &with_header(bytes)))).unwrap();
            assert_eq!(scatter(&frame(63)), Placed::Done);
            assert_eq!(scatter(&frame(64)), Placed::NoRoom);
            assert!(room.lose_none());
            room.lose_after(BURST_MAX);
            assert_eq!(room.place(&frame(65)), Placed::Done);
            assert!(!room.lose_none(), "there was none to be lost");
            assert_eq!(room.frames(), 4);
        });
        assert_eq!((received.packets, drops(&received)), (2, vec![(DropCause::RxFault, 2)]));
        assert_eq!(ring.bytes(at[0] + 12, 60), frame(60));
        assert_eq!(ring.bytes(at[1] + 12, 65), frame(65));
    }
}
