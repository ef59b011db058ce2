//! The rings that an AF_XDP socket shares with the kernel (kernel `net/xdp/xsk_queue.h`): one side produces, the other
//! consumes, and each publishes its position as a free-running index.
#![allow(unsafe_code, reason = "indices and entries in a mapping that the kernel shares")]

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::MmapRaw;
use rustix::net::xdp::{XdpRingFlags, XdpRingOffset};

/// The mapping of a ring, and the offsets in it.
#[derive(Debug)]
struct Shared<T> {
    map: MmapRaw,
    producer: usize,
    consumer: usize,
    flags: Option<usize>,
    entries: usize,
    /// The number of entries less one: they are a power of two.
    mask: u32,
    of: PhantomData<T>,
}

impl<T: Copy> Shared<T> {
    /// None when the kernel's offsets do not fit the mapping.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "offsets are checked against the mapping's length"
    )]
    fn new(map: MmapRaw, at: &XdpRingOffset, size: u32) -> Option<Self> {
        let index = |offset: u64| {
            let fits = offset.is_multiple_of(4) && offset + 4 <= map.len() as u64;
            fits.then_some(offset as usize)
        };
        let entries = at.desc as usize;
        let fits = size.is_power_of_two()
            && at.desc.is_multiple_of(align_of::<T>() as u64)
            && entries + size as usize * size_of::<T>() <= map.len();
        let (producer, consumer) = (index(at.producer)?, index(at.consumer)?);
        let flags = match at.flags {
            Some(offset) => Some(index(offset)?),
            None => None,
        };
        let mask = size.wrapping_sub(1);
        fits.then_some(Self { map, producer, consumer, flags, entries, mask, of: PhantomData })
    }

    /// The length of the mapping for a ring of `size` entries.
    fn len(at: &XdpRingOffset, size: u32) -> usize {
        usize::try_from(at.desc)
            .unwrap_or(usize::MAX)
            .saturating_add(size as usize * size_of::<T>())
    }

    #[inline]
    fn index(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: aligned and inside the mapping (`new`), which lives as long as `self`; the kernel accesses it by atomic
        // operations only, too.
        unsafe { AtomicU32::from_ptr(self.map.as_mut_ptr().add(offset).cast()) }
    }

    #[inline]
    fn entry(&self, index: u32) -> *mut T {
        let at = self.entries + (index & self.mask) as usize * size_of::<T>();
        // SAFETY: the mask keeps it inside of the mapping (`new`).
        unsafe { self.map.as_mut_ptr().add(at).cast() }
    }

    #[inline]
    fn needs_wakeup(&self) -> bool {
        self.flags.is_some_and(|flags| {
            let flags = self.index(flags).load(Ordering::Relaxed);
            flags & XdpRingFlags::XDP_RING_NEED_WAKEUP.bits() != 0
        })
    }
}

/// A ring into which the daemon produces: fill, or transmit.
#[derive(Debug)]
pub struct Producer<T> {
    ring: Shared<T>,
    /// Index of the next entry to write.
    next: u32,
    /// The kernel's consumer index when it was read last.
    consumed: u32,
}

impl<T: Copy> Producer<T> {
    /// Number of bytes to map for a ring of `size` entries.
    pub fn map_len(at: &XdpRingOffset, size: u32) -> usize {
        Shared::<T>::len(at, size)
    }

    /// The ring of `size` entries in `map`; `None` when it does not fit.
    pub fn new(map: MmapRaw, at: &XdpRingOffset, size: u32) -> Option<Self> {
        let mut new = Self { ring: Shared::new(map, at, size)?, next: 0, consumed: 0 };
        new.resume();
        Some(new)
    }

    /// Goes on where the ring stands: another process may have used this end of it.
    pub fn resume(&mut self) {
        self.next = self.ring.index(self.ring.producer).load(Ordering::Relaxed);
        self.consumed = self.ring.index(self.ring.consumer).load(Ordering::Acquire);
    }

    /// Number of entries that there is room for. The kernel's index is read only if the known room is less than `wanted`.
    #[inline]
    pub fn room(&mut self, wanted: u32) -> u32 {
        let room = |consumed| self.ring.mask + 1 - self.next.wrapping_sub(consumed);
        if room(self.consumed) < wanted {
            // Acquire: an entry is overwritten only after the kernel has read it.
            self.consumed = self.ring.index(self.ring.consumer).load(Ordering::Acquire);
        }
        self.ring.mask + 1 - self.next.wrapping_sub(self.consumed)
    }

    /// Writes an entry. The kernel sees it after [`publish`](Self::publish).
    ///
    /// # Panics
    /// When [`room`](Self::room) did not report room for it. The check reads no memory that the kernel shares.
    #[inline]
    pub fn push(&mut self, entry: T) {
        assert!(self.next.wrapping_sub(self.consumed) <= self.ring.mask, "a full ring");
        self.push_reserved(entry);
    }

    /// As [`push`](Self::push) for a ring that can never be full, because it has an entry for every chunk. So it is not
    /// checked: that would read the kernel's index, which is in another CPU's cache, for every burst.
    #[inline]
    pub fn push_reserved(&mut self, entry: T) {
        // SAFETY: inside of the mapping and aligned; the kernel reads no entry behind the producer index.
        unsafe { self.ring.entry(self.next).write(entry) };
        self.next = self.next.wrapping_add(1);
    }

    /// Makes the written entries visible to the kernel.
    #[inline]
    pub fn publish(&self) {
        self.ring.index(self.ring.producer).store(self.next, Ordering::Release);
    }

    /// Number of entries that the kernel has not consumed yet.
    #[inline]
    pub fn left(&mut self) -> u32 {
        self.consumed = self.ring.index(self.ring.consumer).load(Ordering::Acquire);
        self.next.wrapping_sub(self.consumed)
    }

    /// Whether the kernel must be woken by a call.
    #[inline]
    pub fn needs_wakeup(&self) -> bool {
        self.ring.needs_wakeup()
    }
}

/// A ring from which the daemon consumes: receive, or completion.
#[derive(Debug)]
pub struct Consumer<T> {
    ring: Shared<T>,
    /// Index of the next entry to read.
    next: u32,
    /// The kernel's producer index when it was read last.
    produced: u32,
}

impl<T: Copy> Consumer<T> {
    /// Number of bytes to map for a ring of `size` entries.
    pub fn map_len(at: &XdpRingOffset, size: u32) -> usize {
        Shared::<T>::len(at, size)
    }

    /// The ring of `size` entries in `map`; `None` when it does not fit.
    pub fn new(map: MmapRaw, at: &XdpRingOffset, size: u32) -> Option<Self> {
        let mut new = Self { ring: Shared::new(map, at, size)?, next: 0, produced: 0 };
        new.resume();
        Some(new)
    }

    /// Goes on where the ring stands: another process may have used this end of it.
    pub fn resume(&mut self) {
        self.next = self.ring.index(self.ring.consumer).load(Ordering::Relaxed);
        self.produced = self.ring.index(self.ring.producer).load(Ordering::Acquire);
    }

    /// Number of entries. The kernel's index is read only if no entry is known.
    #[inline]
    pub fn available(&mut self) -> u32 {
        if self.produced == self.next {
            self.refresh();
        }
        self.produced.wrapping_sub(self.next)
    }

    /// Reads the kernel's index. Returns the number of entries.
    #[inline]
    pub fn refresh(&mut self) -> u32 {
        // Acquire: the kernel wrote the entries, and the frames that they name, before the index.
        self.produced = self.ring.index(self.ring.producer).load(Ordering::Acquire);
        self.produced.wrapping_sub(self.next).min(self.ring.mask + 1)
    }

    /// Whether there is an entry now.
    #[inline]
    pub fn has_entries(&self) -> bool {
        self.ring.index(self.ring.producer).load(Ordering::Relaxed) != self.next
    }

    /// The entry `ahead` places after the next one. More than `ahead` entries must be [`available`](Self::available).
    #[inline]
    pub fn peek(&self, ahead: u32) -> T {
        // SAFETY: inside of the mapping and aligned; the kernel writes no entry before it is released.
        unsafe { self.ring.entry(self.next.wrapping_add(ahead)).read() }
    }

    /// Consumes `count` entries. The kernel sees it after [`release`](Self::release).
    ///
    /// # Panics
    /// When fewer were reported [`available`](Self::available).
    #[inline]
    pub fn skip(&mut self, count: u32) {
        assert!(count <= self.produced.wrapping_sub(self.next), "more entries than there are");
        self.next = self.next.wrapping_add(count);
    }

    /// Gives the consumed entries back to the kernel.
    #[inline]
    pub fn release(&self) {
        self.ring.index(self.ring.consumer).store(self.next, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memmap2::MmapOptions;

    const AT: XdpRingOffset =
        XdpRingOffset { producer: 0, consumer: 64, desc: 128, flags: Some(8) };

    /// Both ends of one ring, as the kernel and we have them.
    fn ends(size: u32) -> (Producer<u64>, Consumer<u64>) {
        let file = tempfile::tempfile().unwrap();
        let len = Producer::<u64>::map_len(&AT, size);
        file.set_len(len as u64).unwrap();
        let map = || MmapOptions::new().len(len).map_raw(&file).unwrap();
        (Producer::new(map(), &AT, size).unwrap(), Consumer::new(map(), &AT, size).unwrap())
    }

    #[test]
    fn what_is_produced_is_consumed_in_order_round_and_round() {
        let (mut producer, mut consumer) = ends(4);
        let (mut sent, mut received) = (0, 0);
        for round in 0..20 {
            let count = producer.room(4).min(1 + round % 4);
            for _ in 0..count {
                producer.push(sent);
                sent += 1;
            }
            assert!(!consumer.has_entries());
            producer.publish();
            assert_eq!(consumer.available(), count);
            for ahead in 0..count {
                assert_eq!(consumer.peek(ahead), received);
                received += 1;
            }
            consumer.skip(count);
            assert_eq!(producer.left(), count);
            consumer.release();
            assert_eq!(producer.left(), 0);
        }
    }

    #[test]
    fn a_full_ring_has_no_room_until_something_is_released() {
        let (mut producer, mut consumer) = ends(2);
        assert_eq!(producer.room(2), 2);
        producer.push(1);
        producer.push(2);
        producer.publish();
        assert_eq!(producer.room(1), 0);
        assert_eq!(consumer.available(), 2);
        consumer.skip(1);
        assert_eq!(producer.room(1), 0);
        consumer.release();
        assert_eq!(producer.room(1), 1);
    }

    #[test]
    fn offsets_outside_of_the_mapping_are_refused() {
        let map = || MmapRaw::from(MmapOptions::new().len(4096).map_anon().unwrap());
        assert!(Producer::<u64>::new(map(), &AT, 256).is_some());
        assert!(Producer::<u64>::new(map(), &AT, 512).is_none());
        assert!(Producer::<u64>::new(map(), &XdpRingOffset { producer: 4094, ..AT }, 4).is_none());
        assert!(Producer::<u64>::new(map(), &XdpRingOffset { desc: 4, ..AT }, 4).is_none());
    }
}
