//! The guest's memory and its rings.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};

use arbitrary::Arbitrary;
use frontend::RegionOptions;
use frontend::memory::SharedMemory;
use guest_memory::GuestMemory;
use rustix::event::{EventfdFlags, eventfd};
use virtio_net::Negotiated;
use virtqueue::QueueSetup;
use virtqueue::driver::{Buffer, Driver, RingOptions};

use super::front::Descriptor;
use crate::frames::packets::{Header, Source};

/// Number of rings that fit in the guest's memory: more than any device has.
pub const RINGS: u8 = 6;
/// Address of the first ring; the others follow.
const RING_AT: u64 = 0x1000;
const RING_LEN: u64 = 0x3000;
/// Addresses of buffers.
const DATA: std::ops::Range<u64> = 0x1_4000..0x4_0000;
const TABLE: u64 = RING_AT + RING_LEN * RINGS as u64;
const REGIONS: [RegionOptions; 3] = [
    RegionOptions { address: 0, len: 0x2_0000 },
    RegionOptions { address: 0x2_0000, len: 0x2_0000 },
    RegionOptions { address: 0x10_0000, len: 0x1_0000 },
];
/// Most regions of a table: more than the number of descriptors that the back end accepts.
const REGIONS_MAX: usize = 40;
const CHAINS_MAX: u8 = 64;
const BUFFERS_MAX: usize = 8;

fn memory() -> &'static SharedMemory {
    static MEMORY: OnceLock<SharedMemory> = OnceLock::new();
    MEMORY.get_or_init(|| SharedMemory::new(&REGIONS).expect("guest memory"))
}

fn bytes() -> &'static Arc<GuestMemory> {
    memory().guest()
}

/// A region of a memory table: an existing one, and what is wrong about it.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Region {
    number: u8,
    lie: Lie,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Lie {
    None,
    Address(u64),
    /// The length is wrong by this number of pages. The region can be longer than the file.
    Length(i8),
    Offset(u64),
    User(u64),
    /// Another file.
    File(Descriptor),
}

impl Region {
    /// The correct table.
    pub const ALL: [Self; 3] = [
        Self { number: 0, lie: Lie::None },
        Self { number: 1, lie: Lie::None },
        Self { number: 2, lie: Lie::None },
    ];
}

/// The setup of a ring: mostly as negotiated.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct RingShape {
    log_size: u8,
    position: u16,
    /// If 255, the ring has another format than negotiated.
    other: u8,
}

/// A guest, with its knowledge of its rings.
pub struct Guest {
    /// The features that the front end last acknowledged.
    pub negotiated: Negotiated,
    rings: [Option<Ring>; RINGS as usize],
    next: u64,
}

struct Ring {
    driver: Driver,
    kick: OwnedFd,
    call: OwnedFd,
}

impl Guest {
    /// A guest without rings.
    #[must_use]
    pub fn new() -> Self {
        let zeroes = [0; 0x1000];
        (0..DATA.start).step_by(0x1000).for_each(|at| memory().guest().write(at, &zeroes).unwrap());
        Self {
            negotiated: Negotiated(0),
            rings: [const { None }; RINGS as usize],
            next: DATA.start,
        }
    }

    /// Translates a guest-physical address to the front end's address space. Addresses in no region stay unchanged.
    #[must_use]
    pub fn user_address(&self, address: u64) -> u64 {
        memory().user_address(address).unwrap_or(address)
    }

    fn region(&self, region: &Region, own: &UnixStream) -> ([u64; 4], OwnedFd) {
        let regions = memory().regions();
        let info = &regions[usize::from(region.number) % regions.len()];
        let mut words =
            [info.guest_phys_addr, info.memory_size, info.userspace_addr, info.mmap_offset];
        let mut file = None;
        match region.lie {
            Lie::None => {}
            Lie::Address(address) => words[0] = address,
            Lie::Length(pages) => {
                words[1] = words[1].saturating_add_signed(i64::from(pages) * 4096);
            }
            Lie::User(address) => words[2] = address,
            Lie::Offset(offset) => words[3] = offset % 0x2_0000,
            Lie::File(kind) => {
                words[1] = if let Descriptor::Memory(pages) = kind {
                    words[3] = 0;
                    u64::from(pages) * 4096
                } else {
                    words[1]
                };
                file = Some(kind.make(own));
            }
        }
        let file =
            file.unwrap_or_else(|| memory().file().try_clone().expect("a descriptor").into());
        (words, file)
    }

    /// Payload and descriptors of a memory table.
    #[must_use]
    pub fn table(&self, regions: &[Region], own: &UnixStream) -> (Vec<u8>, Vec<OwnedFd>) {
        let regions: Vec<_> =
            regions.iter().take(REGIONS_MAX).map(|region| self.region(region, own)).collect();
        let mut payload = (regions.len() as u64).to_ne_bytes().to_vec();
        regions.iter().for_each(|(words, _)| payload.extend(words.map(u64::to_ne_bytes).concat()));
        (payload, regions.into_iter().map(|(_, file)| file).collect())
    }

    /// Payload and descriptor of a region that is added or removed.
    #[must_use]
    pub fn one_region(&self, region: &Region, own: &UnixStream) -> (Vec<u8>, OwnedFd) {
        let (words, file) = self.region(region, own);
        let [a, b, c, d] = words;
        ([0, a, b, c, d].map(u64::to_ne_bytes).concat(), file)
    }

    /// Lays out a ring. Returns its setup, its kick and its call.
    pub fn lay_out(&mut self, ring: u8, shape: &RingShape) -> (QueueSetup, OwnedFd, OwnedFd) {
        let ring = ring % RINGS;
        let size = 1_u16 << (shape.log_size % 8);
        let negotiated = self.negotiated;
        let packed = negotiated.packed() != (shape.other == 255);
        let options = RingOptions {
            packed,
            in_order: negotiated.in_order(),
            event_index: negotiated.event_index(),
            indirect: negotiated.indirect(),
            ..RingOptions::of(size)
        };
        assert!(Driver::bytes(&options) <= RING_LEN);
        let position = match packed {
            true => shape.position & 0x8000 | shape.position % size,
            false => shape.position,
        };
        let address = RING_AT + u64::from(ring) * RING_LEN;
        let driver = Driver::new(bytes(), address, options, position);
        let setup = driver.setup();
        let event =
            || eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("an eventfd");
        let (kick, call) = (event(), event());
        let copy = |it: &OwnedFd| it.try_clone().expect("a descriptor");
        let ours = Ring { driver, kick: copy(&kick), call: copy(&call) };
        self.rings[usize::from(ring)] = Some(ours);
        (setup, kick, call)
    }

    /// Sends frames, each in one chain.
    pub fn send(&mut self, ring: u8, source: &Source, header: &Header, cuts: &[u16]) {
        let header = header.of(source).to_bytes();
        for frame in source.frames(8) {
            let frame = [&header[..], &frame].concat();
            let mut lens = Vec::new();
            let mut left = frame.len();
            for cut in cuts.iter().take(BUFFERS_MAX - 1) {
                lens.push(usize::from(*cut).min(left));
                left -= lens[lens.len() - 1];
            }
            lens.push(left);
            let buffers = self.buffers(&lens, false);
            let mut from = &frame[..];
            for buffer in &buffers {
                let (piece, rest) = from.split_at(buffer.len as usize);
                bytes().write(buffer.address, piece).unwrap();
                from = rest;
            }
            self.add(ring, &buffers, false);
        }
        self.kick(ring);
    }

    /// Offers chains of buffers with these lengths, to be written. A short one before others is a command, to be read.
    pub fn offer(&mut self, ring: u8, lens: &[u16], more: u8, indirect: bool) {
        let lens: Vec<_> = lens.iter().take(BUFFERS_MAX).map(|&len| usize::from(len)).collect();
        for n in 0..=more.min(CHAINS_MAX) {
            let mut buffers = self.buffers(&lens, true);
            if let [command, _, ..] = &mut buffers[..]
                && (2..=10).contains(&command.len)
            {
                command.writable = false;
                // Class, number, and a value: of pairs, offloads or an address.
                let whole = [n % 6, n / 6 % 2, n / 12 % 4, 0, 0, 0, 0, 0, 0, 0];
                let part = &whole[..command.len as usize];
                bytes().write(command.address, part).unwrap();
            }
            self.add(ring, &buffers, indirect);
        }
        self.kick(ring);
    }

    fn buffers(&mut self, lens: &[usize], writable: bool) -> Vec<Buffer> {
        let mut buffers = Vec::new();
        for &len in lens {
            let len = len.min((DATA.end - DATA.start) as usize / 2) as u64;
            if self.next + len > DATA.end {
                self.next = DATA.start;
            }
            buffers.push(Buffer { address: self.next, len: len as u32, writable });
            self.next += len;
        }
        buffers
    }

    fn add(&mut self, ring: u8, buffers: &[Buffer], indirect: bool) {
        let Some(ring) = &mut self.rings[usize::from(ring % RINGS)] else { return };
        if buffers.is_empty() || buffers.len() > ring.driver.free() {
            return;
        }
        if indirect {
            ring.driver.add_indirect(buffers, TABLE);
        } else {
            ring.driver.add(buffers);
        }
    }

    /// Publishes what was added and kicks, whether the device wants that or not.
    pub fn kick(&mut self, ring: u8) {
        let Some(ring) = &mut self.rings[usize::from(ring % RINGS)] else { return };
        ring.driver.publish();
        // A full counter means that a kick is already pending.
        let _ = rustix::io::write(&ring.kick, &1_u64.to_ne_bytes());
    }

    /// Fills the call's counter, so that the next writer waits.
    pub fn fill_call(&self, ring: u8) {
        let Some(ring) = &self.rings[usize::from(ring % RINGS)] else { return };
        // Both calls may fail: an empty counter cannot be read, and a counter that has grown meanwhile is full enough.
        let _ = rustix::io::read(&ring.call, &mut [0; 8]);
        let _ = rustix::io::write(&ring.call, &(u64::MAX - 1).to_ne_bytes());
        rustix::io::ioctl_fionbio(&ring.call, false).expect("an eventfd");
    }

    /// Takes back used buffers.
    pub fn take(&mut self, ring: u8) {
        let Some(ring) = &mut self.rings[usize::from(ring % RINGS)] else { return };
        for _ in 0..256 {
            if ring.driver.used().is_none() {
                break;
            }
        }
    }

    /// Writes two bytes somewhere in the rings, repeatedly.
    pub fn scribble(&self, at: u16, value: u16, more: u8) {
        let at = RING_AT + u64::from(at) % (RING_LEN * u64::from(RINGS) + 0x400 - 1);
        for n in 0..=u16::from(more) {
            bytes().write(at, &value.wrapping_add(n).to_ne_bytes()).unwrap();
        }
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}
