//! The guest's receive ring and the sender's transmit ring, in one memory.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use arbitrary::Arbitrary;
use guest_memory::GuestMemory;
use guest_memory::memory::Mapping;
use virtio_net::features::HEADER_LEN;
use virtio_net::receive::Received;
use virtio_net::{Frames, GuestRoom, Negotiated, NetHeader, ReceiveState, TransmitBurst};
use virtqueue::driver::{Buffer, Driver, RingOptions};
use virtqueue::{Chains, Queue, RingError};
use vm_memory::GuestAddress;

const SIZE: u16 = 128;
const BYTES: u64 = 0x40_0000;
/// Addresses of the two rings, and of the buffers of each.
const RINGS: [u64; 2] = [0x1000, 0x8000];
const BUFFERS: [u64; 2] = [0x1_0000, BYTES / 2];
/// Bytes after every buffer that must not change.
const MARGIN: u64 = 8;
const CANARY: [u8; MARGIN as usize] = [0xa5; MARGIN as usize];
const LENS_MAX: usize = 8;

fn memory() -> &'static Arc<GuestMemory> {
    static MEMORY: OnceLock<Arc<GuestMemory>> = OnceLock::new();
    MEMORY.get_or_init(|| {
        let map = Mapping::from_ranges(&[(GuestAddress(0), BYTES as usize)]).unwrap();
        Arc::new(GuestMemory::new(Arc::new(map)))
    })
}

/// Chains that a guest offers for receiving. Each consists of buffers with these lengths.
#[derive(Arbitrary, Clone, Debug)]
pub struct Offer {
    lens: Vec<u16>,
    more: u8,
}

/// A ring of a guest.
pub struct Ring {
    driver: Driver,
    queue: Queue,
    state: ReceiveState,
    negotiated: Negotiated,
    side: usize,
    next: u64,
    /// Chains that the device holds: the driver's id, and the buffers.
    out: VecDeque<(u16, Vec<Buffer>)>,
}

impl Ring {
    /// An empty ring, for receiving or for sending.
    pub fn new(negotiated: Negotiated, sends: bool, position: u16) -> Self {
        let packed = negotiated.packed();
        let options =
            RingOptions { packed, in_order: negotiated.in_order(), ..RingOptions::of(SIZE) };
        // Of a packed ring: slot and wrap counter.
        let position = if packed { position & 0x8000 | position % SIZE } else { position };
        let side = usize::from(sends);
        let driver = Driver::new(memory(), RINGS[side], options, position);
        let queue = Queue::new(&driver.setup(), memory()).unwrap();
        let (state, next) = (ReceiveState::default(), BUFFERS[side]);
        Self { driver, queue, state, negotiated, side, next, out: VecDeque::new() }
    }

    /// Adds a chain. Returns whether there was room.
    fn add(&mut self, lens: &[usize], contents: Option<&[u8]>) -> bool {
        let end = if self.side == 0 { BUFFERS[1] } else { BYTES };
        let len: u64 = lens.iter().map(|len| *len as u64 + MARGIN).sum();
        if lens.is_empty() || lens.len() > self.driver.free() || self.next + len > end {
            return false;
        }
        let mut buffers = Vec::new();
        let mut left = contents.unwrap_or_default();
        for &len in lens {
            buffers.push(Buffer {
                address: self.next,
                len: len as u32,
                writable: contents.is_none(),
            });
            let (piece, rest) = left.split_at(len.min(left.len()));
            memory().write(self.next, piece).unwrap();
            left = rest;
            self.next += len as u64;
            memory().write(self.next, &CANARY).unwrap();
            self.next += MARGIN;
        }
        let id = self.driver.add(&buffers).expect("as many descriptors as were free");
        self.out.push_back((id, buffers));
        true
    }

    /// Offers chains for receiving, as many as there is room for. Returns whether any were offered.
    pub fn offer(&mut self, offers: &[Offer]) -> bool {
        let mut any = false;
        if self.out.is_empty() {
            self.next = BUFFERS[self.side];
        }
        for offer in offers.iter().take(8) {
            let lens: Vec<_> = offer.lens.iter().take(LENS_MAX).map(|&len| len.into()).collect();
            for _ in 0..=offer.more {
                if !self.add(&lens, None) {
                    break;
                }
                any = true;
            }
        }
        self.driver.publish();
        any
    }

    /// Sends a frame with its net header, in buffers of these lengths. Returns whether there was room.
    pub fn send(&mut self, header: &NetHeader, frame: &[u8], cuts: &[u16]) -> bool {
        let bytes = [&header.to_bytes()[..self.negotiated.header_len()], frame].concat();
        let mut lens = Vec::new();
        let mut left = bytes.len();
        for cut in cuts.iter().take(LENS_MAX).filter(|&&cut| cut > 0) {
            let len = usize::from(*cut).min(left);
            if len < left {
                lens.push(len);
                left -= len;
            }
        }
        lens.push(left);
        self.add(&lens, Some(&bytes))
    }

    /// Runs `work` on the frames sent, in one burst.
    pub fn with_sent<T>(&mut self, work: impl FnOnce(Frames<'_, '_>) -> T) -> Result<T, RingError> {
        self.driver.publish();
        let mut chains = Chains::new();
        self.queue.available_descriptors()?;
        let burst = TransmitBurst::gather(&mut self.queue, memory(), self.negotiated, &mut chains)?;
        Ok(work(burst.frames()))
    }

    /// Runs `work` on the room for frames, in one burst.
    pub fn with_room<T>(
        &mut self,
        work: impl FnOnce(&mut GuestRoom<'_, '_>) -> T,
    ) -> Result<(T, Received), RingError> {
        let mut chains = Chains::new();
        self.queue.available_descriptors()?;
        let Self { queue, state, negotiated, .. } = self;
        let mut room = GuestRoom::open(queue, memory(), &mut chains, state, *negotiated);
        let done = work(&mut room);
        let received = room.close();
        if let Some(broken) = received.broken {
            return Err(broken);
        }
        self.queue.publish();
        Ok((done, received))
    }

    /// Whether a frame waits for buffers.
    pub fn is_holding(&self) -> bool {
        self.state.is_holding()
    }

    /// Takes the next buffer that came back with something in it.
    fn came_in_buffer(&mut self) -> Option<Vec<u8>> {
        loop {
            let used = self.driver.used()?;
            let at = self.out.iter().position(|(id, _)| *id == used.id).expect("a chain of ours");
            assert_eq!(at, 0, "chains come back in order");
            let (_, buffers) = self.out.pop_front().expect("a chain");
            let mut bytes = Vec::new();
            for Buffer { address, len, .. } in buffers {
                let start = bytes.len();
                bytes.resize(start + len as usize, 0);
                memory().read(address, &mut bytes[start..]).unwrap();
                let mut canary = [0; MARGIN as usize];
                memory().read(address + u64::from(len), &mut canary).unwrap();
                assert_eq!(canary, CANARY, "the bytes after a buffer");
            }
            assert!(used.len as usize <= bytes.len(), "more than the chain holds");
            bytes.truncate(used.len as usize);
            if !bytes.is_empty() {
                return Some(bytes);
            }
        }
    }

    /// Takes the next frame received, with its net header.
    pub fn came(&mut self) -> Option<(NetHeader, Vec<u8>)> {
        let mut bytes = self.came_in_buffer()?;
        let header_len = self.negotiated.header_len();
        let mut header = [0; HEADER_LEN];
        // A short buffer may end within the header, but not before the field with the number of buffers.
        let mut buffers = 1;
        while bytes.len() < header_len {
            bytes.extend(self.came_in_buffer().expect("the rest of a header"));
            buffers += 1;
        }
        header[..header_len].copy_from_slice(&bytes[..header_len]);
        let header = NetHeader::from_bytes(&header);
        let count = if header_len == HEADER_LEN { header.num_buffers } else { 1 };
        assert!(count >= buffers && (count == 1 || self.negotiated.mergeable()), "{count} buffers");
        for _ in buffers..count {
            bytes.extend(self.came_in_buffer().expect("as many buffers as the header says"));
        }
        Some((header, bytes.split_off(header_len)))
    }
}
