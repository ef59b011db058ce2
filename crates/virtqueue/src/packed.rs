//! The packed ring, device side (virtio 1.2, 2.8).
//!
//! Available and used descriptors share one table. Two bits of a descriptor's flags, compared with a wrap counter that
//! flips with each lap, say who owns it. Flags, length and id of a descriptor are one aligned word of 8 bytes: it is
//! read, and written, in one access; the address is read after it.
//!
//! Chains are given back in the order in which they were taken. So when the device holds none, one position says where
//! the ring continues.

#[cfg(test)]
mod kill;
mod position;
mod resume;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use guest_memory::{GuestMemory, Translator, fence};
use ring_journal::{Published, Slot};

use crate::chain::{Access, Chain, Chains};
use crate::collect::{Collect, Followed, chain_limit, collect, table_entry};
use crate::error::{ConfigError, RingError};
use crate::layout::{
    DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESCRIPTOR_LEN, EVENT_DESC, EVENT_DISABLE,
    EVENT_ENABLE, EVENT_FLAGS, EVENT_OFF_WRAP, PACKED_ADDRESS, PACKED_TAIL, PackedDescriptor,
};
use crate::log::{RingLog, runs};
use crate::ring::Ring;
use crate::setup::QueueSetup;
use position::{OWNER, Position};
pub(crate) use resume::Stood;

/// The largest ring (2.8.10.1: `off_wrap` has 15 bits for the offset).
const SIZE_MAX: u16 = 1 << 15;
/// Distance of the second descriptor that is read to see how many are available: a burst.
const BURST: u16 = 64;
/// Descriptors in a cache line. Used descriptors become visible line by line, not all of a burst at once: the guest
/// processes the first frames of a burst while the last ones are copied, and each line moves between CPUs once.
const LINE: u16 = 4;
/// Flags that are compared to recognise a chain of one buffer.
const ONE_BUFFER: u16 = OWNER | DESC_F_NEXT | DESC_F_INDIRECT | DESC_F_WRITE;

/// A packed ring in use.
#[derive(Debug)]
pub struct PackedQueue {
    ring: Ring,
    /// The next descriptor to take.
    next: Position,
    /// The first descriptor that was read as not available, or was not read yet.
    frontier: Position,
    /// The next descriptor to write as used.
    next_used: Position,
    /// Number of descriptors taken and not completed.
    held: u16,
    /// The first used descriptor not published yet. It is written last, because it makes the rest visible.
    first_used: Option<(Position, u64)>,
    /// Number of descriptors used since the last [`needs_notification`](crate::Queue::needs_notification). `None` after
    /// a start: a previous back end may have published without a notification.
    unsignalled: Option<u16>,
    /// The flags in the device area, as the device wrote them last.
    event_flags: u16,
    /// Where the last group of used descriptors begins that was shown to the driver; `None` if that is not known.
    last_published: Option<Position>,
    pub(crate) journal: Option<Slot>,
}

/// The methods are described at [`Queue`](crate::Queue).
impl PackedQueue {
    pub(crate) fn new(setup: &QueueSetup, memory: &Arc<GuestMemory>) -> Result<Self, ConfigError> {
        let size = setup.size;
        if size == 0 || size > SIZE_MAX {
            return Err(ConfigError::PackedSize(size));
        }
        let ring = Ring::new(setup, memory)?;
        let next = Position::from_bits(setup.next_available);
        if next.slot >= size {
            return Err(ConfigError::Position { index: next.slot, size });
        }
        let event_flags = ring.device.load(EVENT_FLAGS, Ordering::Relaxed);
        let mut queue = Self {
            ring,
            next,
            frontier: next,
            next_used: next,
            held: 0,
            first_used: None,
            unsignalled: None,
            event_flags,
            last_published: None,
            journal: None,
        };
        if next == Position::FRESH_WITHOUT_WRAP && queue.is_past() {
            // A ring that was never used: its driver's wrap counters are 1 (2.8.1). User Mode Linux says 0
            // (`vu_setup_vq`, arch/um/drivers/virtio_uml.c).
            let next = Position::FRESH;
            (queue.next, queue.frontier, queue.next_used) = (next, next, next);
        }
        Ok(queue)
    }

    pub(crate) const fn size(&self) -> u16 {
        self.ring.size
    }

    pub(crate) const fn next_available(&self) -> u16 {
        self.next.bits()
    }

    /// Whether the next descriptor is marked as used in this lap. Then the driver is a lap ahead of this position, and
    /// nothing becomes available here: it marks descriptors as the next lap does.
    pub(crate) fn is_past(&self) -> bool {
        self.owner(self.next) == self.next.used()
    }

    #[inline]
    pub(crate) fn available_descriptors(&mut self) -> Result<u16, RingError> {
        if self.held == self.ring.size || !self.is_available(self.next) {
            self.frontier = self.next;
            return Ok(0);
        }
        let room = self.ring.size - self.held;
        let known = if room > BURST && self.is_available(self.next.after(BURST, self.ring.size)) {
            BURST + 1
        } else {
            1
        };
        // Not `known`: while the driver writes a batch, later descriptors become available before the first one. A worker
        // that goes to sleep must get a kick for that batch.
        self.saw(self.next.after(1, self.ring.size));
        Ok(known)
    }

    #[inline]
    pub(crate) fn has_available(&self, entries: usize) -> bool {
        // Descriptors become available in order.
        u16::try_from(entries).is_ok_and(|entries| {
            entries > 0
                && entries <= self.ring.size - self.held
                && self.is_available(self.next.after(entries - 1, self.ring.size))
        })
    }

    #[inline]
    pub(crate) fn take<'m>(
        &mut self,
        memory: &'m GuestMemory,
        access: Access,
        max: usize,
        chains: &mut Chains<'m>,
    ) -> Result<(), RingError> {
        let mut translator = memory.translator(self.ring.last_region);
        let taken = self.take_within(&mut translator, access, max, chains);
        self.ring.last_region = translator.last_region();
        if access == Access::Read
            && let Some(journal) = &self.journal
        {
            journal.taken(self.next_used.bits(), self.next.bits());
        }
        taken
    }

    #[inline]
    fn take_within<'m>(
        &mut self,
        translator: &mut Translator<'m>,
        access: Access,
        max: usize,
        chains: &mut Chains<'m>,
    ) -> Result<(), RingError> {
        let mut left = max;
        loop {
            left -= self.take_plain(translator, access, left, chains);
            if left == 0 || self.held == self.ring.size {
                break;
            }
            let descriptor = self.descriptor(self.next);
            if descriptor.flags & OWNER != self.next.available() {
                self.frontier = self.next;
                return Ok(());
            }
            let slots = self.take_list(translator, access, descriptor, chains)?;
            if slots == 0 {
                break;
            }
            self.next = self.next.after(slots, self.ring.size);
            self.held += slots;
            left -= 1;
        }
        self.saw(self.next);
        Ok(())
    }

    /// Takes up to `max` chains, as long as each is one buffer in one region. Returns their number.
    #[inline]
    fn take_plain<'m>(
        &mut self,
        translator: &mut Translator<'m>,
        access: Access,
        max: usize,
        chains: &mut Chains<'m>,
    ) -> usize {
        let mut taken = 0;
        while taken < max && self.held < self.ring.size {
            // Up to the end of the lap, where the flags of available descriptors change.
            let run = self.ring.size - self.next.slot.max(self.held);
            let run = (max - taken).min(run.into());
            let wanted = self.next.available() | access.write_flag();
            let at = usize::from(self.next.slot) * DESCRIPTOR_LEN;
            let descriptors = self.ring.descriptors.load_pairs(at, run, Ordering::Acquire);
            let mut got = 0;
            for [address, tail] in descriptors {
                let descriptor = PackedDescriptor::new(address, tail);
                if descriptor.flags & ONE_BUFFER != wanted {
                    break;
                }
                let Some(slice) = translator.find(address, descriptor.len.into()) else { break };
                if slice.is_empty() || !chains.push_one(descriptor.id, slice) {
                    break;
                }
                access.prefetch(&slice);
                got += 1;
            }
            self.next = self.next.after(got, self.ring.size);
            self.held += got;
            taken += usize::from(got);
            if usize::from(got) < run {
                break;
            }
        }
        taken
    }

    /// Takes the chain that begins with `descriptor`. Returns the number of its descriptors; 0 if there was no room.
    #[cold]
    fn take_list<'m>(
        &self,
        translator: &mut Translator<'m>,
        access: Access,
        descriptor: PackedDescriptor,
        chains: &mut Chains<'m>,
    ) -> Result<u16, RingError> {
        collect(translator, access, chains, |collect| self.follow(descriptor, collect))
    }

    /// Follows the chain that begins with `descriptor`. Its buffer id is that of its last descriptor.
    fn follow(
        &self,
        mut descriptor: PackedDescriptor,
        collect: &mut Collect<'_, '_>,
    ) -> Result<Followed, RingError> {
        let (mut at, mut slots) = (self.next, 1);
        loop {
            if descriptor.flags & DESC_F_INDIRECT != 0 {
                if slots > 1 || descriptor.flags & DESC_F_NEXT != 0 {
                    return Err(RingError::IndirectNested);
                }
                let walked = self.follow_indirect(descriptor, collect)?;
                return Ok(Followed { id: descriptor.id, slots: 1, walked });
            }
            collect.buffer(descriptor.address, descriptor.len, descriptor.flags)?;
            if descriptor.flags & DESC_F_NEXT == 0 {
                return Ok(Followed { id: descriptor.id, slots, walked: slots.into() });
            }
            if slots == self.ring.size - self.held {
                return Err(RingError::Loop { size: self.ring.size.into() });
            }
            slots += 1;
            at = at.after(1, self.ring.size);
            descriptor = self.descriptor(at);
        }
    }

    /// Follows an indirect table (2.8.7). The whole table is the chain, in order; only WRITE flags count. Returns the number
    /// of descriptors.
    fn follow_indirect(
        &self,
        table: PackedDescriptor,
        collect: &mut Collect<'_, '_>,
    ) -> Result<u32, RingError> {
        if !self.ring.indirect {
            return Err(RingError::IndirectNotNegotiated);
        }
        let (table, size) = collect.table(table.address, table.len)?;
        let limit = chain_limit(self.ring.size);
        if size > limit {
            return Err(RingError::TooManyDescriptors { limit });
        }
        for index in 0..size {
            let [address, tail] = table_entry(&table, index).map(u64::from_le);
            let descriptor = PackedDescriptor::new(address, tail);
            if descriptor.flags & DESC_F_INDIRECT != 0 {
                return Err(RingError::IndirectNested);
            }
            collect.buffer(address, descriptor.len, descriptor.flags)?;
        }
        Ok(size)
    }

    #[inline]
    fn descriptor(&self, at: Position) -> PackedDescriptor {
        let at = usize::from(at.slot) * DESCRIPTOR_LEN;
        let tail = self.ring.descriptors.load_u64(at + PACKED_TAIL, Ordering::Acquire);
        PackedDescriptor::new(u64::from_le(self.ring.descriptors.read(at + PACKED_ADDRESS)), tail)
    }

    #[inline]
    fn is_available(&self, at: Position) -> bool {
        self.owner(at) == at.available()
    }

    /// The bits that say whose the descriptor is.
    #[inline]
    fn owner(&self, at: Position) -> u16 {
        // The flags alone would be enough. One access width for a word lets the CPU forward stores to loads.
        let tail = usize::from(at.slot) * DESCRIPTOR_LEN + PACKED_TAIL;
        let tail = self.ring.descriptors.load_u64(tail, Ordering::Acquire);
        PackedDescriptor::new(0, tail).flags & OWNER
    }

    /// Notes that everything before `position` is available.
    #[inline]
    fn saw(&mut self, position: Position) {
        let ahead = position.distance_from(self.frontier, self.ring.size);
        if ahead <= self.ring.size.into() {
            self.frontier = position;
        }
    }

    #[inline]
    pub(crate) const fn put_back(&mut self, slots: u16) {
        self.next = self.next.before(slots, self.ring.size);
        self.held -= slots;
    }

    #[inline]
    pub(crate) fn complete_read(&mut self, chains: &[Chain]) -> u16 {
        match chains {
            // One descriptor, with the last chain's id, stands for all (2.8.9).
            [.., last] if self.ring.in_order => {
                let slots = chains.iter().map(|chain| chain.slots).sum();
                self.write_used(std::iter::once((last.id, slots, 0, false)))
            }
            _ => self.write_used(chains.iter().map(|chain| (chain.id, chain.slots, 0, false))),
        }
    }

    #[inline]
    pub(crate) fn complete_written(&mut self, chains: &[Chain]) -> u16 {
        let used = |chain: &Chain| (chain.id, chain.slots, chain.len, chain.is_joined());
        self.write_used(chains.iter().map(used))
    }

    /// Writes used descriptors, except the first of each cache line. Of each chain: id, number of descriptors, bytes
    /// written, and whether it is joined to the one before. Returns the number of descriptors.
    #[inline]
    fn write_used(&mut self, chains: impl Iterator<Item = (u16, u16, u32, bool)>) -> u16 {
        let (size, mut next, mut all) = (self.ring.size, self.next_used, 0);
        for (id, slots, len, joined) in chains {
            // Set where the device has written (2.8.4).
            let write = if len > 0 { DESC_F_WRITE } else { 0 };
            let flags = next.used() | write;
            let word = PackedDescriptor { address: 0, len, id, flags }.tail();
            // Not in the middle of a frame: a driver that sees only its first buffers takes the rest for other frames.
            if next.slot.is_multiple_of(LINE) && !joined {
                self.publish_until(next);
            }
            if self.first_used.is_none() {
                self.first_used = Some((next, word));
                if let Some(journal) = &self.journal {
                    #[cfg(test)]
                    kill::step();
                    journal.pending(word);
                }
            } else {
                self.store(next.slot, word, Ordering::Relaxed);
            }
            next = next.after(slots, size);
            all += slots;
        }
        self.next_used = next;
        self.held -= all;
        self.unsignalled = self.unsignalled.map(|count| count.saturating_add(all));
        all
    }

    #[inline]
    fn store(&self, slot: u16, word: u64, order: Ordering) {
        #[cfg(test)]
        kill::step();
        let at = usize::from(slot) * DESCRIPTOR_LEN + PACKED_TAIL;
        self.ring.descriptors.store_u64(at, word, order);
    }

    #[inline]
    pub(crate) fn publish(&mut self) {
        self.publish_until(self.next_used);
    }

    /// Makes the group of used descriptors that ends before `end` visible.
    #[inline]
    fn publish_until(&mut self, end: Position) {
        let Some((first, word)) = self.first_used.take() else { return };
        if let Some(journal) = &self.journal {
            #[cfg(test)]
            kill::step();
            let before = self.last_published.map(Position::bits);
            journal.publishing(Published { before, from: first.bits(), to: end.bits() });
        }
        self.last_published = Some(first);
        self.store(first.slot, word, Ordering::Release);
    }

    pub(crate) fn set_log(&mut self, log: Option<RingLog>) {
        // The first descriptor of a group is written last.
        let next = self.first_used.map_or(self.next_used, |(first, _)| first);
        self.ring.set_log(log, next.bits());
    }

    pub(crate) const fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Marks the used descriptors written since the last call, if the front end logs.
    #[inline]
    pub(crate) fn mark_used(&mut self) {
        if self.ring.logging.is_some() {
            self.mark_used_descriptors();
        }
    }

    #[cold]
    fn mark_used_descriptors(&mut self) {
        let (size, next_used) = (self.ring.size, self.next_used);
        let Some(logging) = &mut self.ring.logging else { return };
        let marked = logging.advance(next_used.bits());
        if marked != next_used.bits() {
            let from = Position::from_bits(marked).slot;
            for (first, count) in runs(from.into(), next_used.slot.into(), size.into()) {
                logging.mark_descriptors(DESCRIPTOR_LEN * first, DESCRIPTOR_LEN * count);
            }
        }
    }

    /// 2.8.10, 2.8.14.
    #[inline]
    pub(crate) fn needs_notification(&mut self) -> bool {
        let used = self.unsignalled.replace(0);
        // As in the split ring: used descriptors must be visible before the driver's setting is read.
        fence(Ordering::SeqCst);
        let setting = self.ring.driver.load_u32(0, Ordering::Relaxed);
        #[expect(clippy::cast_possible_truncation, reason = "two fields of 16 bits")]
        let (off_wrap, flags) = (setting as u16, (setting >> 16) as u16);
        match flags {
            EVENT_DISABLE => false,
            EVENT_DESC if self.ring.event_index => used.is_none_or(|used| {
                let event = Position::from_bits(off_wrap);
                // True if the event is among the descriptors used since. A descriptor outside the ring is not.
                event.slot < self.ring.size
                    && (1..=u32::from(used))
                        .contains(&self.next_used.distance_from(event, self.ring.size))
            }),
            // Also reserved values: an unneeded notification is better than a missing one.
            _ => used != Some(0),
        }
    }

    #[inline]
    pub(crate) fn has_grown(&self) -> bool {
        self.is_available(self.frontier)
    }

    #[inline]
    pub(crate) fn enable_notification(&mut self) {
        let flags = if self.ring.event_index {
            self.ring.device.store(EVENT_OFF_WRAP, self.frontier.bits(), Ordering::Relaxed);
            self.ring.wrote_device(EVENT_OFF_WRAP, 2);
            EVENT_DESC
        } else {
            EVENT_ENABLE
        };
        self.write_event_flags(flags);
        // The setting must be visible before the descriptors are read again (see `needs_notification`).
        fence(Ordering::SeqCst);
    }

    #[inline]
    pub(crate) fn disable_notification(&mut self) {
        self.write_event_flags(EVENT_DISABLE);
    }

    #[inline]
    fn write_event_flags(&mut self, flags: u16) {
        if self.event_flags != flags {
            self.event_flags = flags;
            self.ring.device.store(EVENT_FLAGS, flags, Ordering::Release);
            self.ring.wrote_device(EVENT_FLAGS, 2);
        }
    }
}
