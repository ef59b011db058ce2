//! A second thread rewrites descriptors while the engine takes, uses and completes chains. The engine uses the values that
//! it checked. It writes only to the ring and to buffers that a descriptor named at some time.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::{
    DATA, END, RING, Ring, SEAM, Shape, assert_unchanged_but, gather, memory, snapshot, write,
};
use guest_memory::{Area, GuestMemory, GuestSlice};
use virtqueue::driver::Driver;
use virtqueue::layout::{
    DESC_F_AVAIL, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_USED, DESC_F_WRITE, Descriptor, EVENT_LEN,
    PackedDescriptor, device_area_len, driver_area_len,
};
use virtqueue::{Access, Chains, RingError};

const SIZE: u16 = 8;
/// An indirect table, as long as the ring's.
const TABLE: u64 = DATA + 0x2000;
/// Where buffers may lie: the last one in two regions.
const TARGETS: [u64; 4] = [DATA + 0x4000, DATA + 0x5000, DATA + 0x6003, SEAM - 20];
/// The most bytes that a buffer may have.
const TARGET_LEN: u32 = 64;
/// What the device writes. As an address it is not mapped: for a guest may name a target as a table.
const WRITTEN: u8 = 0x5a;
const CANARY: u8 = 0xee;

/// Numbers without end (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.next() as usize % all.len()]
    }

    /// More good addresses than evil ones.
    fn address(&mut self) -> u64 {
        match self.next() % 12 {
            0 => self.one_of(&[END, END + 0x1000, 1 << 40, u64::MAX - 3, u64::MAX]),
            _ => self.one_of(&TARGETS),
        }
    }

    /// A length that fits a target, or leads out of guest memory from there.
    fn len(&mut self) -> u32 {
        match self.next() % 20 {
            0 => self.one_of(&[0, 0xffff_fff0, u32::MAX, 1 << 31, 0x4000_0000]),
            1 => 64,
            _ => self.next() as u32 % (TARGET_LEN + 1),
        }
    }

    fn flags(&mut self, area: u64) -> u16 {
        let next = if self.next().is_multiple_of(3) { DESC_F_NEXT } else { 0 };
        // In the table it breaks the ring.
        let one_in = if area == TABLE { 60 } else { 6 };
        let indirect = if self.next().is_multiple_of(one_in) { DESC_F_INDIRECT } else { 0 };
        // Mostly one direction: chains of several descriptors must have a chance.
        let write = if self.next().is_multiple_of(8) { DESC_F_WRITE } else { 0 };
        next | indirect | write
    }

    /// A descriptor of the ring or of the indirect table, as two words.
    fn descriptor(&mut self, shape: Shape, access: Access, area: u64) -> [u64; 2] {
        let flags = self.flags(area) ^ if access == Access::Write { DESC_F_WRITE } else { 0 };
        let (mut address, mut len) = (self.address(), self.len());
        if flags & DESC_F_INDIRECT != 0 && !self.next().is_multiple_of(4) {
            (address, len) = (TABLE, 16 * (1 + self.next() as u32 % u32::from(SIZE)));
        }
        if shape.options.packed {
            let owner = self.one_of(&[DESC_F_AVAIL, DESC_F_USED, DESC_F_AVAIL, DESC_F_USED, 0]);
            let id = self.next() as u16;
            let descriptor = PackedDescriptor { address, len, id, flags: flags | owner };
            return [address.to_le(), descriptor.tail().to_le()];
        }
        let next = self.next() as u16 % (SIZE + 1);
        Descriptor { address, len, flags, next }.to_words()
    }
}

/// Rewrites descriptors of the ring and of the indirect table, whole or by halves, until told to stop.
fn flip(memory: &Arc<GuestMemory>, shape: Shape, access: Access, stop: &AtomicBool) -> u64 {
    let areas = [RING, TABLE].map(|at| Area::new(memory, at, 16 * SIZE as usize, 16).unwrap());
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut flips = 0;
    while !stop.load(Ordering::Relaxed) {
        let (area, slot) = (random.one_of(&[0, 1]), random.next() as usize % usize::from(SIZE));
        let words = random.descriptor(shape, access, [RING, TABLE][area]);
        let (area, at) = (&areas[area], slot * 16);
        match random.next() % 3 {
            0 => area.store_u64(at, u64::from_le(words[0]), Ordering::Relaxed),
            1 => area.store_u64(at + 8, u64::from_le(words[1]), Ordering::Relaxed),
            _ => area.write(at, words),
        }
        flips += 1;
    }
    flips
}

#[derive(Debug, Default)]
struct Outcomes {
    chains: u64,
    several: u64,
    refused: u64,
    broken: u64,
}

/// Has every descriptor offered as a head that is not yet: a packed ring's say that themselves.
fn offer(ring: &mut Ring, offered: &mut u16) {
    if let Driver::Split(driver) = &mut ring.driver {
        let pending = offered.wrapping_sub(ring.queue.next_available());
        (pending..SIZE).for_each(|head| driver.offer_raw(head));
        *offered = offered.wrapping_add(SIZE - pending);
        driver.publish();
    }
}

/// Writes over a buffer. Returns its length. The halves of two descriptors may make the indirect table one:
/// it stays as it is, or it would soon name what no descriptor here did.
fn overwrite(memory: &GuestMemory, buffer: &GuestSlice<'_>) -> usize {
    let table = memory.contiguous(TABLE, 16).unwrap();
    let [at, table] = [*buffer, table].map(|slice| GuestSlice::as_iovecs(&[slice])[0].iov_base);
    if at == table {
        return buffer.len();
    }
    buffer.write(0, &[WRITTEN; 2 * TARGET_LEN as usize])
}

/// Takes a burst, uses its buffers, and gives it back.
fn serve(ring: &mut Ring, access: Access, outcomes: &mut Outcomes) -> Result<(), RingError> {
    let memory = Arc::clone(&ring.memory);
    let mut chains = Chains::new();
    if ring.queue.available_descriptors()? > 0 {
        ring.queue.take(&memory, access, 2, &mut chains)?;
    }
    for n in 0..chains.len() {
        let chain = chains.all()[n];
        let buffers = chains.buffers(&chain);
        let bytes = match access {
            Access::Read => gather(buffers).len(),
            Access::Write | Access::ReadThenWrite => {
                buffers.iter().map(|buffer| overwrite(&memory, buffer)).sum()
            }
        };
        assert_eq!(bytes, chain.len as usize, "the slices are what was counted");
        assert!(chain.fault.is_none() || bytes == 0);
        outcomes.chains += u64::from(chain.fault.is_none());
        outcomes.several += u64::from(buffers.len() > 1);
        outcomes.refused += u64::from(chain.fault.is_some());
        // In a packed ring it becomes the length of a descriptor, which may be followed as a list's next.
        chains.set_written(n, chain.len.min(TARGET_LEN));
    }
    // Now and then one is put back, which may have become another chain meanwhile.
    if outcomes.chains.is_multiple_of(7) {
        let last = chains.len().saturating_sub(1);
        ring.queue.put_back(chains.truncate(last));
    }
    match access {
        Access::Read => ring.queue.complete_read(chains.all()),
        Access::Write | Access::ReadThenWrite => ring.queue.complete_written(chains.all()),
    };
    ring.queue.publish();
    let _ = ring.queue.needs_notification();
    ring.queue.enable_notification();
    let _ = ring.queue.has_grown();
    ring.queue.disable_notification();
    Ok(())
}

/// A driver would reset the ring. Here it goes on where the device was: a split one at its used index, so that a chain that
/// was taken and not given back comes again.
fn restart(ring: &mut Ring) {
    let setup = ring.driver.setup();
    if setup.packed {
        return ring.restart();
    }
    let mut used = [0; 2];
    ring.memory.read(setup.device_area + 2, &mut used).unwrap();
    ring.restart_at(u16::from_le_bytes(used));
}

/// All that the flipping thread, the driver and the device may write.
fn writable(ring: &Ring) -> Vec<Range<u64>> {
    let setup = ring.driver.setup();
    let mut ranges: Vec<Range<u64>> =
        TARGETS.iter().map(|&at| at..at + u64::from(TARGET_LEN)).collect();
    ranges.extend([RING, TABLE].map(|at| at..at + 16 * u64::from(SIZE)));
    if setup.packed {
        ranges.push(setup.device_area..setup.device_area + EVENT_LEN as u64);
    } else {
        let (driver, device) = (driver_area_len(SIZE), device_area_len(SIZE));
        ranges.push(setup.driver_area..setup.driver_area + driver as u64);
        ranges.push(setup.device_area..setup.device_area + device as u64);
    }
    ranges
}

fn serve_while_flipping(shape: Shape, access: Access) {
    let memory = memory();
    write(&memory, 0, &vec![CANARY; END as usize]);
    for at in TARGETS.into_iter().chain([TABLE]) {
        write(&memory, at, &[WRITTEN; TARGET_LEN as usize]);
    }
    let mut ring = Ring::over(Arc::clone(&memory), shape);
    let before = snapshot(&memory);
    let stop = Arc::new(AtomicBool::new(false));
    let flipper = std::thread::spawn({
        let (memory, stop) = (Arc::clone(&memory), Arc::clone(&stop));
        move || flip(&memory, shape, access, &stop)
    });
    let mut outcomes = Outcomes::default();
    let mut offered = shape.start;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        offer(&mut ring, &mut offered);
        if serve(&mut ring, access, &mut outcomes).is_err() {
            outcomes.broken += 1;
            restart(&mut ring);
        }
    }
    stop.store(true, Ordering::Relaxed);
    assert!(flipper.join().unwrap() > 0);
    assert_unchanged_but(&memory, &before, &writable(&ring));
    let Outcomes { chains, several, refused, broken } = outcomes;
    assert!([chains, several, refused, broken].iter().all(|&count| count > 0), "{outcomes:?}");
}

#[test]
fn a_split_ring_is_read_as_it_was_checked() {
    serve_while_flipping(Shape::split(SIZE).with_event_index(), Access::Read);
}

#[test]
fn a_split_ring_is_written_as_it_was_checked() {
    serve_while_flipping(Shape::split(SIZE).starting_at(65530), Access::Write);
}

#[test]
fn a_packed_ring_is_read_as_it_was_checked() {
    serve_while_flipping(Shape::packed(SIZE).in_order(), Access::Read);
}

#[test]
fn a_packed_ring_is_written_as_it_was_checked() {
    serve_while_flipping(Shape::packed(SIZE).with_event_index(), Access::Write);
}
