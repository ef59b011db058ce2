//! The driver of a split ring.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use guest_memory::{Area, GuestMemory, fence};

use crate::driver::{Buffer, Returned, RingOptions, first_of_batch, forget};
use crate::layout::{
    AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESCRIPTOR_LEN, Descriptor,
    ENTRIES, FLAGS, INDEX, USED_F_NO_NOTIFY, descriptor_table_len, device_area_len,
    driver_area_len, event_passed,
};
use crate::setup::QueueSetup;

/// A driver of a split ring.
#[derive(Debug)]
pub struct SplitDriver {
    memory: Arc<GuestMemory>,
    setup: QueueSetup,
    descriptors: Area,
    driver: Area,
    device: Area,
    /// Free descriptors, the next one first. With `VIRTIO_F_IN_ORDER` they are used in ring order.
    free: VecDeque<u16>,
    /// The descriptors of each chain that the device has, by head.
    outstanding: Vec<Vec<u16>>,
    /// The heads of the chains that the device has, oldest first.
    order: VecDeque<u16>,
    /// With `VIRTIO_F_IN_ORDER`: a used entry that stands for several chains, up to this head. The length is that of
    /// the last.
    batch: Option<Returned>,
    next_available: u16,
    kicked_available: u16,
    next_used: u16,
}

impl SplitDriver {
    /// Bytes that a ring of `size` needs, at an address that is a multiple of 4096.
    #[must_use]
    pub fn bytes(size: u16) -> u64 {
        let (device, end) = Self::offsets(size);
        debug_assert!(device < end);
        end
    }

    /// Lays out an empty ring at guest-physical `address`, a multiple of 4096.
    ///
    /// # Panics
    /// When it does not fit guest memory: that is a mistake of the caller.
    #[must_use]
    pub fn new(memory: &Arc<GuestMemory>, address: u64, options: RingOptions) -> Self {
        let size = options.size;
        let table_len = descriptor_table_len(size) as u64;
        let parts = [address, address + table_len, address + Self::offsets(size).0];
        let setup = options.setup(parts, 0);
        let area =
            |at, len, align| Area::new(memory, at, len, align).expect("ring in guest memory");
        let driver = Self {
            memory: Arc::clone(memory),
            setup,
            descriptors: area(setup.descriptor_table, descriptor_table_len(size), 16),
            driver: area(setup.driver_area, driver_area_len(size), 2),
            device: area(setup.device_area, device_area_len(size), 4),
            free: (0..size).collect(),
            outstanding: vec![Vec::new(); usize::from(size)],
            order: VecDeque::new(),
            batch: None,
            next_available: 0,
            kicked_available: 0,
            next_used: 0,
        };
        for at in [FLAGS, INDEX] {
            driver.driver.store(at, 0, Ordering::Relaxed);
            driver.device.store(at, 0, Ordering::Relaxed);
        }
        driver
    }

    /// Makes both indices start at `index`, as after that number of chains.
    #[must_use]
    pub fn starting_at(mut self, index: u16) -> Self {
        self.setup.next_available = index;
        (self.next_available, self.kicked_available, self.next_used) = (index, index, index);
        self.driver.store(INDEX, index, Ordering::Relaxed);
        self.device.store(INDEX, index, Ordering::Relaxed);
        self
    }

    /// The setup of this ring that a front end would send to the device.
    #[must_use]
    pub const fn setup(&self) -> QueueSetup {
        self.setup
    }

    /// Number of free descriptors.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Adds a chain of `buffers` to the available ring, one descriptor each. Returns its head, or `None` if too few
    /// descriptors are free. The device sees it after [`publish`](Self::publish).
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        if buffers.is_empty() || self.free.len() < buffers.len() {
            return None;
        }
        let chain: Vec<u16> = self.free.drain(..buffers.len()).collect();
        for (n, buffer) in buffers.iter().enumerate() {
            let next = chain.get(n + 1).copied();
            self.write_descriptor(chain[n], descriptor(buffer, next));
        }
        Some(self.offer(chain))
    }

    /// Adds a chain of `buffers` to the available ring, as one descriptor with an indirect table at guest-physical
    /// `table`. Returns its head, or `None` if no descriptor is free.
    ///
    /// # Panics
    /// When the table is not in guest memory.
    pub fn add_indirect(&mut self, buffers: &[Buffer], table: u64) -> Option<u16> {
        let head = self.free.pop_front()?;
        let len = descriptor_table_len(u16::try_from(buffers.len()).ok()?);
        let area = Area::new(&self.memory, table, len, 16).expect("table in guest memory");
        for (n, buffer) in (0_u16..).zip(buffers) {
            let next = (usize::from(n) + 1 < buffers.len()).then_some(n + 1);
            let words = descriptor(buffer, next).to_words();
            area.write(usize::from(n) * DESCRIPTOR_LEN, words);
        }
        let len = u32::try_from(len).ok()?;
        let indirect = Descriptor { address: table, len, flags: DESC_F_INDIRECT, next: 0 };
        self.write_descriptor(head, indirect);
        Some(self.offer(vec![head]))
    }

    /// Makes all added chains available to the device.
    pub fn publish(&mut self) {
        self.driver.store(INDEX, self.next_available, Ordering::Release);
    }

    /// Whether the device wants a kick for the chains published since the last call.
    pub fn needs_notification(&mut self) -> bool {
        let old = std::mem::replace(&mut self.kicked_available, self.next_available);
        fence(Ordering::SeqCst);
        if self.setup.event_index {
            let at = ENTRIES + 8 * usize::from(self.setup.size);
            event_passed(self.device.load(at, Ordering::Relaxed), self.next_available, old)
        } else {
            self.device.load(FLAGS, Ordering::Relaxed) & USED_F_NO_NOTIFY == 0
        }
    }

    /// Asks the device to signal with the next used entry. Check [`has_used`](Self::has_used) once more afterwards: the
    /// entry may have come just before.
    pub fn enable_notification(&mut self) {
        if self.setup.event_index {
            let at = ENTRIES + 2 * usize::from(self.setup.size);
            self.driver.store(at, self.next_used, Ordering::Relaxed);
        } else {
            self.driver.store(FLAGS, 0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    /// Asks the device not to signal.
    pub fn disable_notification(&mut self) {
        if !self.setup.event_index {
            self.driver.store(FLAGS, AVAIL_F_NO_INTERRUPT, Ordering::Relaxed);
        }
    }

    /// As [`Driver::position`](crate::driver::Driver::position).
    #[must_use]
    pub fn position(&self) -> u16 {
        self.device.load(INDEX, Ordering::Acquire)
    }

    /// Whether there is a used entry to take.
    #[must_use]
    pub fn has_used(&self) -> bool {
        self.position() != self.next_used
    }

    /// Takes the next used entry and frees the descriptors of its chain.
    pub fn used(&mut self) -> Option<Returned> {
        if !self.has_used() {
            return None;
        }
        let last = self.batch.take().unwrap_or_else(|| self.entry());
        let (returned, left) = first_of_batch(self.setup.in_order, &self.order, last);
        self.batch = left;
        self.next_used = self.next_used.wrapping_add(1);
        if let Some(chain) = self.outstanding.get_mut(usize::from(returned.id)) {
            self.free.extend(chain.drain(..));
            forget(&mut self.order, returned.id);
        }
        Some(returned)
    }

    fn entry(&self) -> Returned {
        let slot = usize::from(self.next_used & (self.setup.size - 1));
        let [head, len] = self.device.read::<[u32; 2]>(ENTRIES + 8 * slot).map(u32::from_le);
        Returned { id: u16::try_from(head).unwrap_or(u16::MAX), len }
    }

    /// Hostile: writes a descriptor of the table unchanged.
    pub fn write_descriptor(&mut self, index: u16, descriptor: Descriptor) {
        self.descriptors.write(usize::from(index) * DESCRIPTOR_LEN, descriptor.to_words());
    }

    /// Hostile: adds `head` to the available ring without checks, and without [`publish`](Self::publish).
    pub fn offer_raw(&mut self, head: u16) {
        let slot = usize::from(self.next_available & (self.setup.size - 1));
        self.driver.write(ENTRIES + 2 * slot, head.to_le());
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Hostile: writes the available index unchanged.
    pub fn write_available_index(&mut self, index: u16) {
        self.driver.store(INDEX, index, Ordering::Release);
    }

    fn offer(&mut self, chain: Vec<u16>) -> u16 {
        let head = chain[0];
        self.outstanding[usize::from(head)] = chain;
        self.order.push_back(head);
        self.offer_raw(head);
        head
    }

    /// Offsets of the device area and of the ring's end, bytes.
    fn offsets(size: u16) -> (u64, u64) {
        let driver_end = (descriptor_table_len(size) + driver_area_len(size)) as u64;
        let device = driver_end.next_multiple_of(64);
        (device, (device + device_area_len(size) as u64).next_multiple_of(4096))
    }
}

fn descriptor(buffer: &Buffer, next: Option<u16>) -> Descriptor {
    let write = if buffer.writable { DESC_F_WRITE } else { 0 };
    let goes_on = if next.is_some() { DESC_F_NEXT } else { 0 };
    Descriptor {
        address: buffer.address,
        len: buffer.len,
        flags: write | goes_on,
        next: next.unwrap_or(0),
    }
}
