//! The split ring, device side (virtio 1.2, 2.7).
//!
//! The order of things, once a burst: [`available_descriptors`](crate::Queue::available_descriptors) (one acquire load),
//! [`take`](crate::Queue::take), [`complete_written`](crate::Queue::complete_written),
//! [`publish`](crate::Queue::publish) (one release store), [`needs_notification`](crate::Queue::needs_notification)
//! (one full fence).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use guest_memory::{Area, Cursor, GuestMemory, GuestSlice, fence};

use crate::chain::{Access, Chain, Chains, Collect, RingError, chain_limit, table_entry};
use crate::layout::{
    AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESCRIPTOR_LEN, Descriptor,
    ENTRIES, FLAGS, INDEX, USED_F_NO_NOTIFY, event_passed,
};
use crate::queue::{ConfigError, Parts, QueueSetup};

/// Used entries in a cache line.
const USED_A_LINE: usize = 8;
/// The most chains whose lines are fetched at once: a burst.
const FETCHED_MAX: usize = 64;

/// A split ring in use.
#[derive(Debug)]
pub struct SplitQueue {
    descriptors: Area,
    driver: Area,
    device: Area,
    size: u16,
    /// The entry of the available ring that is taken next.
    next_available: u16,
    /// The available index that was last read: entries before it may be taken.
    seen_available: u16,
    /// The entry of the used ring that is written next.
    next_used: u16,
    /// The used index when the driver was last told, or found not to want to be. `None` after a start:
    /// whoever served the ring before may have published without telling.
    signalled_used: Option<u16>,
    in_order: bool,
    event_index: bool,
    indirect: bool,
    cursor: Cursor,
}

/// The methods are described at [`Queue`](crate::Queue).
impl SplitQueue {
    pub(crate) fn new(setup: &QueueSetup, memory: &Arc<GuestMemory>) -> Result<Self, ConfigError> {
        let size = setup.size;
        if !size.is_power_of_two() {
            return Err(ConfigError::SplitSize(size));
        }
        let Parts { descriptors, driver, device } = Parts::new(setup, memory)?;
        // The used index goes on from where the device area says.
        let next_used = device.load(INDEX, Ordering::Acquire);
        let next_available = behind_used(setup.next_available, next_used, size);
        Ok(Self {
            descriptors,
            driver,
            device,
            size,
            next_available,
            seen_available: next_available,
            next_used,
            signalled_used: None,
            in_order: setup.in_order,
            event_index: setup.event_index,
            indirect: setup.indirect,
            cursor: Cursor::default(),
        })
    }

    pub(crate) const fn size(&self) -> u16 {
        self.size
    }

    pub(crate) const fn next_available(&self) -> u16 {
        self.next_available
    }

    #[inline]
    pub(crate) fn available_descriptors(&mut self) -> Result<u16, RingError> {
        let index = self.driver.load(INDEX, Ordering::Acquire);
        let ahead = index.wrapping_sub(self.next_available);
        if ahead > self.size {
            return Err(RingError::AvailableJump { index, ahead, size: self.size });
        }
        self.seen_available = index;
        Ok(ahead)
    }

    #[inline]
    pub(crate) fn has_available(&self, entries: usize) -> bool {
        usize::from(self.seen_available.wrapping_sub(self.next_available)) >= entries
    }

    #[inline]
    pub(crate) fn take<'m>(
        &mut self,
        memory: &'m GuestMemory,
        access: Access,
        max: usize,
        chains: &mut Chains<'m>,
    ) -> Result<(), RingError> {
        let mask = self.size - 1;
        let ahead = self.seen_available.wrapping_sub(self.next_available);
        let count = max.min(ahead.into());
        self.fetch(count);
        let mut window = memory.window(self.cursor);
        for _ in 0..count {
            let slot = usize::from(self.next_available & mask);
            let head = u16::from_le(self.driver.read(ENTRIES + 2 * slot));
            let descriptor = self.descriptor(head)?;
            let flags = descriptor.flags & (DESC_F_NEXT | DESC_F_INDIRECT | DESC_F_WRITE);
            let taken = if flags == access.write_flag()
                && let Some(slice) = window.find(descriptor.address, descriptor.len.into())
                && !slice.is_empty()
            {
                access.prefetch(&slice);
                chains.push_one(head, slice)
            } else {
                self.take_list(memory, access, head, descriptor, chains)?
            };
            if !taken {
                break;
            }
            self.next_available = self.next_available.wrapping_add(1);
        }
        self.cursor = window.cursor();
        Ok(())
    }

    /// Has the CPU fetch what it takes to take the next `count` chains and to give them back: from the CPU of a driver
    /// that is far away, all lines take no longer together than one does alone.
    #[inline]
    fn fetch(&self, count: usize) {
        let mask = usize::from(self.size - 1);
        let (next, used) = (usize::from(self.next_available), usize::from(self.next_used));
        for n in 0..count.min(FETCHED_MAX) {
            let head: u16 = self.driver.read(ENTRIES + 2 * ((next + n) & mask));
            self.descriptors.prefetch_to_read(usize::from(u16::from_le(head)) * DESCRIPTOR_LEN);
            if n % USED_A_LINE == 0 {
                self.device.prefetch_to_write(ENTRIES + 8 * ((used + n) & mask));
            }
        }
    }

    #[inline]
    fn descriptor(&self, index: u16) -> Result<Descriptor, RingError> {
        if index >= self.size {
            return Err(RingError::Index { index: index.into(), size: self.size.into() });
        }
        Ok(Descriptor::from_words(self.descriptors.read(usize::from(index) * DESCRIPTOR_LEN)))
    }

    /// Follows the chain that begins with `descriptor` at `head`. Returns whether it was taken.
    fn take_list<'m>(
        &mut self,
        memory: &'m GuestMemory,
        access: Access,
        head: u16,
        descriptor: Descriptor,
        chains: &mut Chains<'m>,
    ) -> Result<bool, RingError> {
        if chains.is_spent() {
            return Ok(false);
        }
        let mut cursor = self.cursor;
        let mut collect = Collect::new(memory, &mut cursor, chains, access);
        let walked = match self.follow(descriptor, &mut collect) {
            Ok(walked) => walked,
            Err(broken) => {
                collect.forget();
                return Err(broken);
            }
        };
        let taken = collect.finish(head, 1, walked);
        self.cursor = cursor;
        Ok(taken)
    }

    /// Returns the number of descriptors with buffers.
    fn follow(
        &self,
        mut descriptor: Descriptor,
        collect: &mut Collect<'_, '_>,
    ) -> Result<u32, RingError> {
        let mut left = self.size;
        loop {
            left -= 1;
            if descriptor.flags & DESC_F_INDIRECT != 0 {
                let before = u32::from(self.size - left) - 1;
                return Ok(before + self.follow_indirect(descriptor, before, collect)?);
            }
            collect.buffer(descriptor.address, descriptor.len, descriptor.flags)?;
            if descriptor.flags & DESC_F_NEXT == 0 {
                return Ok(u32::from(self.size - left));
            }
            let next = descriptor.next;
            if next < self.size && left == 0 {
                return Err(RingError::Loop { size: self.size.into() });
            }
            descriptor = self.descriptor(next)?;
        }
    }

    /// Follows an indirect table (2.7.5.3). The table is read where it lies: each descriptor is copied
    /// once, checked and used. `before` is the number of descriptors of the chain in the ring's own table. Returns their
    /// number in the indirect table.
    fn follow_indirect(
        &self,
        table: Descriptor,
        before: u32,
        collect: &mut Collect<'_, '_>,
    ) -> Result<u32, RingError> {
        if !self.indirect {
            return Err(RingError::IndirectNotNegotiated);
        }
        if table.flags & DESC_F_NEXT != 0 {
            return Err(RingError::IndirectNested);
        }
        let (table, size): (GuestSlice<'_>, u32) = collect.table(table.address, table.len)?;
        let limit = chain_limit(self.size);
        // The chain may use a part of the table only. A walk of more steps than the table has descriptors is a loop.
        let most = size.min(limit - before);
        let (mut index, mut walked) = (0_u32, 0);
        loop {
            if index >= size {
                return Err(RingError::Index { index, size });
            }
            if walked == most {
                let loops = most == size;
                let too_many = RingError::TooManyDescriptors { limit };
                return Err(if loops { RingError::Loop { size } } else { too_many });
            }
            walked += 1;
            let descriptor = Descriptor::from_words(table_entry(&table, index));
            if descriptor.flags & DESC_F_INDIRECT != 0 {
                return Err(RingError::IndirectNested);
            }
            collect.buffer(descriptor.address, descriptor.len, descriptor.flags)?;
            if descriptor.flags & DESC_F_NEXT == 0 {
                return Ok(walked);
            }
            index = descriptor.next.into();
        }
    }

    #[inline]
    pub(crate) const fn put_back(&mut self, slots: u16) {
        self.next_available = self.next_available.wrapping_sub(slots);
    }

    #[inline]
    pub(crate) fn complete_read(&mut self, chains: &[Chain]) -> u16 {
        if let [.., last] = chains
            && self.in_order
        {
            // One entry, with the last chain's head, stands for all (2.7.9).
            self.write_used(last.id, 0);
            let slots = entries(chains);
            self.next_used = self.next_used.wrapping_add(slots);
            return slots;
        }
        for chain in chains {
            self.write_used(chain.id, 0);
            self.next_used = self.next_used.wrapping_add(1);
        }
        entries(chains)
    }

    #[inline]
    pub(crate) fn complete_written(&mut self, chains: &[Chain]) -> u16 {
        for chain in chains {
            self.write_used(chain.id, chain.len);
            self.next_used = self.next_used.wrapping_add(1);
        }
        entries(chains)
    }

    #[inline]
    fn write_used(&self, head: u16, len: u32) {
        let slot = usize::from(self.next_used & (self.size - 1));
        self.device.write(ENTRIES + 8 * slot, [u32::from(head).to_le(), len.to_le()]);
    }

    #[inline]
    pub(crate) fn publish(&mut self) {
        self.device.store(INDEX, self.next_used, Ordering::Release);
    }

    /// 2.7.7, 2.7.10.
    #[inline]
    pub(crate) fn needs_notification(&mut self) -> bool {
        let old = self.signalled_used.replace(self.next_used);
        // The used index must be visible before the driver's wish is read: the driver writes its wish
        // and then looks at the used index, so one of the two sees the other.
        fence(Ordering::SeqCst);
        if self.event_index {
            let used_event =
                self.driver.load(ENTRIES + 2 * usize::from(self.size), Ordering::Relaxed);
            old.is_none_or(|old| event_passed(used_event, self.next_used, old))
        } else {
            self.driver.load(FLAGS, Ordering::Relaxed) & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    #[inline]
    pub(crate) fn has_grown(&self) -> bool {
        self.driver.load(INDEX, Ordering::Acquire) != self.seen_available
    }

    #[inline]
    pub(crate) fn enable_notification(&mut self) {
        if self.event_index {
            // Not `next_available`: a queue that sleeps on chains too few for its next frame has seen
            // the index pass that already, and the driver would not kick for the missing ones.
            let at = ENTRIES + 8 * usize::from(self.size);
            self.device.store(at, self.seen_available, Ordering::Relaxed);
        } else {
            self.device.store(FLAGS, 0, Ordering::Relaxed);
        }
        // The wish must be visible before the available index is read again (see `needs_notification`).
        fence(Ordering::SeqCst);
    }

    /// With the event index, not moving it on is enough.
    #[inline]
    pub(crate) fn disable_notification(&mut self) {
        if !self.event_index {
            self.device.store(FLAGS, USED_F_NO_NOTIFY, Ordering::Relaxed);
        }
    }
}

/// How many entries of the ring chains fill: one each.
#[expect(clippy::cast_possible_truncation, reason = "at most CHAINS_MAX")]
const fn entries(chains: &[Chain]) -> u16 {
    chains.len() as u16
}

/// Where a ring goes on whose front end says `base`, and whose used index is `used`. What was returned may
/// be in the driver's hands again, so it is not taken a second time, even where the front end looked at
/// the used index before the last back end's last word (DPDK goes on at the used index, too).
const fn behind_used(base: u16, used: u16, size: u16) -> u16 {
    if used.wrapping_sub(base) <= size { used } else { base }
}
