//! The driver of a packed ring.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use guest_memory::{Area, GuestMemory, fence};

use crate::driver::{Buffer, Returned, RingOptions, first_of_batch, forget};
use crate::layout::{
    DESC_F_AVAIL, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_USED, DESC_F_WRITE, DESCRIPTOR_LEN,
    EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE, EVENT_FLAGS, EVENT_LEN, EVENT_OFF_WRAP,
    PACKED_ADDRESS, PACKED_TAIL, PackedDescriptor, descriptor_table_len,
};
use crate::setup::QueueSetup;

/// A driver of a packed ring.
#[derive(Debug)]
pub struct PackedDriver {
    memory: Arc<GuestMemory>,
    setup: QueueSetup,
    descriptors: Area,
    driver: Area,
    device: Area,
    /// Free ids for chains, the next one first.
    free_ids: VecDeque<u16>,
    free: usize,
    /// Number of descriptors that a chain fills, by id; 0 if the device does not have it.
    outstanding: Vec<u16>,
    /// The ids of the chains that the device has, oldest first.
    order: VecDeque<u16>,
    /// With `VIRTIO_F_IN_ORDER`: a used descriptor that stands for several chains, up to this id. The length is that of
    /// the last.
    batch: Option<Returned>,
    next_available: (u16, bool),
    /// Slot and tail of the first descriptor added since the last publication. Writing its flags publishes all of them.
    unpublished: Option<(u16, u64)>,
    /// Number of descriptors added since [`needs_notification`](Self::needs_notification) was last called.
    unkicked: u16,
    next_used: (u16, bool),
}

impl PackedDriver {
    /// Bytes that a ring of `size` needs, at an address that is a multiple of 4096.
    #[must_use]
    pub const fn bytes(size: u16) -> u64 {
        (descriptor_table_len(size) as u64 + 2 * 64).next_multiple_of(4096)
    }

    /// Lays out an empty ring at guest-physical `address`, a multiple of 4096. It starts at `position`: slot, and wrap
    /// counter in bit 15.
    ///
    /// # Panics
    /// When it does not fit guest memory: that is a mistake of the caller.
    #[must_use]
    pub fn new(
        memory: &Arc<GuestMemory>,
        address: u64,
        options: RingOptions,
        position: u16,
    ) -> Self {
        let size = options.size;
        let table_len = descriptor_table_len(size) as u64;
        let driver_area = (address + table_len).next_multiple_of(64);
        let parts = [address, driver_area, driver_area + 64];
        let area =
            |at, len, align| Area::new(memory, at, len, align).expect("ring in guest memory");
        let at = (position & 0x7fff, position & 0x8000 != 0);
        let mut driver = Self {
            memory: Arc::clone(memory),
            setup: options.setup(parts, position),
            descriptors: area(parts[0], descriptor_table_len(size), 16),
            driver: area(parts[1], EVENT_LEN, 4),
            device: area(parts[2], EVENT_LEN, 4),
            free_ids: (0..size).collect(),
            free: size.into(),
            outstanding: vec![0; size.into()],
            order: VecDeque::new(),
            batch: None,
            next_available: at,
            unpublished: None,
            unkicked: 0,
            next_used: at,
        };
        for part in [&driver.driver, &driver.device] {
            part.store(EVENT_OFF_WRAP, 0, Ordering::Relaxed);
            part.store(EVENT_FLAGS, EVENT_ENABLE, Ordering::Relaxed);
        }
        // All descriptors are used: those before the position in this lap, the others in the lap before.
        for slot in 0..size {
            let wrap = if slot < at.0 { at.1 } else { !at.1 };
            let flags = if wrap { DESC_F_AVAIL | DESC_F_USED } else { 0 };
            driver.write_raw(slot, PackedDescriptor { address: 0, len: 0, id: 0, flags });
        }
        driver
    }

    /// The setup of this ring that a front end would send to the device.
    #[must_use]
    pub const fn setup(&self) -> QueueSetup {
        self.setup
    }

    /// Number of free descriptors.
    #[must_use]
    pub const fn free(&self) -> usize {
        self.free
    }

    /// As [`Driver::add`](crate::driver::Driver::add).
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        if buffers.is_empty() || self.free < buffers.len() {
            return None;
        }
        let id = self.free_ids.pop_front()?;
        for (n, buffer) in buffers.iter().enumerate() {
            let next = if n + 1 < buffers.len() { DESC_F_NEXT } else { 0 };
            let descriptor = PackedDescriptor {
                address: buffer.address,
                len: buffer.len,
                id,
                flags: next | write_flag(buffer),
            };
            self.offer_raw(descriptor);
        }
        self.has(id, buffers.len());
        Some(id)
    }

    /// As [`Driver::add_indirect`](crate::driver::Driver::add_indirect).
    ///
    /// # Panics
    /// When the table is not in guest memory.
    pub fn add_indirect(&mut self, buffers: &[Buffer], table: u64) -> Option<u16> {
        if self.free == 0 {
            return None;
        }
        let id = self.free_ids.pop_front()?;
        let len = u32::try_from(buffers.len() * DESCRIPTOR_LEN).ok()?;
        let area = Area::new(&self.memory, table, len as usize, 16).expect("table in memory");
        for (n, buffer) in buffers.iter().enumerate() {
            let flags = write_flag(buffer);
            let tail = PackedDescriptor { address: 0, len: buffer.len, id: 0, flags }.tail();
            let words = [buffer.address.to_le(), tail.to_le()];
            area.write(n * DESCRIPTOR_LEN, words);
        }
        self.offer_raw(PackedDescriptor { address: table, len, id, flags: DESC_F_INDIRECT });
        self.has(id, 1);
        Some(id)
    }

    fn has(&mut self, id: u16, slots: usize) {
        self.outstanding[usize::from(id)] = u16::try_from(slots).expect("a chain in the ring");
        self.order.push_back(id);
        self.free -= slots;
    }

    /// As [`Driver::publish`](crate::driver::Driver::publish).
    pub fn publish(&mut self) {
        if let Some((slot, tail)) = self.unpublished.take() {
            self.store(slot, tail, Ordering::Release);
        }
    }

    /// As [`Driver::needs_notification`](crate::driver::Driver::needs_notification).
    pub fn needs_notification(&mut self) -> bool {
        let published = std::mem::take(&mut self.unkicked);
        fence(Ordering::SeqCst);
        let wish = self.device.load_u32(0, Ordering::Relaxed).to_le_bytes();
        let flags = u16::from_le_bytes([wish[2], wish[3]]);
        if flags != EVENT_DESC {
            return flags != EVENT_DISABLE;
        }
        let off_wrap = u16::from_le_bytes([wish[0], wish[1]]);
        let (slot, wrap) = self.next_available;
        let lap = if wrap == (off_wrap & 0x8000 != 0) { 0 } else { i32::from(self.setup.size) };
        let back = i32::from(slot) + lap - i32::from(off_wrap & 0x7fff);
        (1..=i32::from(published)).contains(&back)
    }

    /// As [`Driver::enable_notification`](crate::driver::Driver::enable_notification).
    pub fn enable_notification(&mut self) {
        if self.setup.event_index {
            let (slot, wrap) = self.next_used;
            self.write_event(slot | u16::from(wrap) << 15, EVENT_DESC);
        } else {
            self.write_event(0, EVENT_ENABLE);
        }
        fence(Ordering::SeqCst);
    }

    /// As [`Driver::disable_notification`](crate::driver::Driver::disable_notification).
    pub fn disable_notification(&mut self) {
        self.write_event(0, EVENT_DISABLE);
    }

    /// As [`Driver::position`](crate::driver::Driver::position).
    #[must_use]
    pub fn position(&self) -> u16 {
        self.next_used.0 | u16::from(self.next_used.1) << 15
    }

    /// As [`Driver::has_used`](crate::driver::Driver::has_used).
    #[must_use]
    pub fn has_used(&self) -> bool {
        self.batch.is_some() || self.used_here().is_some()
    }

    /// As [`Driver::used`](crate::driver::Driver::used).
    pub fn used(&mut self) -> Option<Returned> {
        let last = match self.batch.take() {
            Some(batch) => batch,
            None => self.used_here()?,
        };
        let (returned, left) = first_of_batch(self.setup.in_order, &self.order, last);
        self.batch = left;
        let slots = self.outstanding.get_mut(usize::from(returned.id)).map_or(0, std::mem::take);
        if slots > 0 {
            self.free += usize::from(slots);
            self.free_ids.push_back(returned.id);
            forget(&mut self.order, returned.id);
        }
        self.next_used = self.after(self.next_used, slots.max(1));
        Some(returned)
    }

    fn used_here(&self) -> Option<Returned> {
        let (slot, wrap) = self.next_used;
        let at = usize::from(slot) * DESCRIPTOR_LEN + PACKED_TAIL;
        let tail = self.descriptors.load_u64(at, Ordering::Acquire);
        let PackedDescriptor { len, id, flags, .. } = PackedDescriptor::new(0, tail);
        let bits = [flags & DESC_F_AVAIL != 0, flags & DESC_F_USED != 0];
        // Without the flag the length has no meaning, and DPDK leaves the driver's own there (2.8.5).
        let len = if flags & DESC_F_WRITE != 0 { len } else { 0 };
        (bits == [wrap, wrap]).then_some(Returned { id, len })
    }

    /// Hostile: adds one descriptor without checks. Only its AVAIL and USED bits are set as they have to be.
    pub fn offer_raw(&mut self, descriptor: PackedDescriptor) {
        let (slot, wrap) = self.next_available;
        let owner = if wrap { DESC_F_AVAIL } else { DESC_F_USED };
        let flags = descriptor.flags & !(DESC_F_AVAIL | DESC_F_USED) | owner;
        let descriptor = PackedDescriptor { flags, ..descriptor };
        let at = usize::from(slot) * DESCRIPTOR_LEN;
        self.descriptors.write(at + PACKED_ADDRESS, descriptor.address.to_le());
        if self.unpublished.is_none() {
            self.unpublished = Some((slot, descriptor.tail()));
        } else {
            self.store(slot, descriptor.tail(), Ordering::Release);
        }
        self.next_available = self.after(self.next_available, 1);
        self.unkicked = self.unkicked.saturating_add(1);
    }

    /// Hostile: writes a descriptor unchanged.
    pub fn write_raw(&mut self, slot: u16, descriptor: PackedDescriptor) {
        let at = usize::from(slot) * DESCRIPTOR_LEN;
        self.descriptors.write(at + PACKED_ADDRESS, descriptor.address.to_le());
        self.store(slot, descriptor.tail(), Ordering::Release);
    }

    /// Hostile: writes the driver's event suppression structure unchanged.
    pub fn write_event(&mut self, off_wrap: u16, flags: u16) {
        self.driver.store(EVENT_OFF_WRAP, off_wrap, Ordering::Relaxed);
        self.driver.store(EVENT_FLAGS, flags, Ordering::Release);
    }

    fn store(&self, slot: u16, tail: u64, order: Ordering) {
        let at = usize::from(slot) * DESCRIPTOR_LEN + PACKED_TAIL;
        self.descriptors.store_u64(at, tail, order);
    }

    const fn after(&self, (slot, wrap): (u16, bool), count: u16) -> (u16, bool) {
        let next = slot as u32 + count as u32;
        if next >= self.setup.size as u32 {
            #[expect(clippy::cast_possible_truncation, reason = "below the ring's size")]
            return ((next - self.setup.size as u32) as u16, !wrap);
        }
        #[expect(clippy::cast_possible_truncation, reason = "below the ring's size")]
        (next as u16, wrap)
    }
}

const fn write_flag(buffer: &Buffer) -> u16 {
    if buffer.writable { DESC_F_WRITE } else { 0 }
}
