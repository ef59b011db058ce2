//! The packed ring, device side (virtio 1.2, 2.8).
//!
//! One table holds what is available and what is used. Whose a descriptor is, is said by two bits of its
//! flags, compared with a counter that turns over with each lap. Flags, length and id of a descriptor are
//! one aligned word of 8 bytes: they are read, and written, in one go, and the address is read after.
//!
//! Chains are given back in the order in which they were taken, so whenever nothing is under way what is
//! used ends where what is available begins: one position says where the ring goes on.

mod position;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use guest_memory::{Area, Cursor, GuestMemory, fence};

use crate::chain::{Access, Chain, Chains, Collect, RingError, chain_limit, table_entry};
use crate::layout::{
    DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESCRIPTOR_LEN, EVENT_DESC, EVENT_DISABLE,
    EVENT_ENABLE, EVENT_FLAGS, EVENT_OFF_WRAP, PACKED_ADDRESS, PACKED_TAIL, PackedDescriptor,
};
use crate::queue::{ConfigError, Parts, QueueSetup};
use position::{OWNER, Position};

/// The largest ring (2.8.10.1: `off_wrap` has 15 bits for the offset).
const SIZE_MAX: u16 = 1 << 15;
/// How far ahead a look reaches: a burst.
const LOOK_AHEAD: u16 = 64;
/// Descriptors in a cache line. The guest is shown what is used line by line, not all of a burst at once:
/// so it works on the first frames of a burst while the last ones are under way, and no line changes
/// hands twice.
const LINE: u16 = 4;
/// All bits that must be right in a descriptor that is a chain of one buffer.
const ONE_BUFFER: u16 = OWNER | DESC_F_NEXT | DESC_F_INDIRECT | DESC_F_WRITE;

/// A packed ring in use.
#[derive(Debug)]
pub struct PackedQueue {
    descriptors: Area,
    driver: Area,
    device: Area,
    size: u16,
    /// The descriptor that is taken next.
    next: Position,
    /// The first descriptor that was seen not to be available, or that nobody looked at yet.
    frontier: Position,
    /// The descriptor that is written as used next.
    next_used: Position,
    /// How many descriptors are taken and not completed.
    held: u16,
    /// The first used descriptor of those not published yet: written last, because it shows the rest.
    first_used: Option<(u16, u64)>,
    /// How many descriptors were used since the driver was last told, or found not to want to be. `None`
    /// after a start: whoever served the ring before may have published without telling.
    unsignalled: Option<u16>,
    /// The flags in the device area, as this side last wrote them.
    event_flags: u16,
    in_order: bool,
    event_index: bool,
    indirect: bool,
    cursor: Cursor,
}

/// The methods are described at [`Queue`](crate::Queue).
impl PackedQueue {
    pub(crate) fn new(setup: &QueueSetup, memory: &Arc<GuestMemory>) -> Result<Self, ConfigError> {
        let size = setup.size;
        if size == 0 || size > SIZE_MAX {
            return Err(ConfigError::PackedSize(size));
        }
        let Parts { descriptors, driver, device } = Parts::new(setup, memory)?;
        let next = Position::from_bits(setup.next_available);
        if next.slot >= size {
            return Err(ConfigError::Position { index: next.slot, size });
        }
        let event_flags = device.load(EVENT_FLAGS, Ordering::Relaxed);
        Ok(Self {
            descriptors,
            driver,
            device,
            size,
            next,
            frontier: next,
            next_used: next,
            held: 0,
            first_used: None,
            unsignalled: None,
            event_flags,
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
        self.next.bits()
    }

    #[inline]
    pub(crate) fn available_descriptors(&mut self) -> Result<u16, RingError> {
        if self.held == self.size || !self.is_available(self.next) {
            self.frontier = self.next;
            return Ok(0);
        }
        let room = self.size - self.held;
        let known =
            if room > LOOK_AHEAD && self.is_available(self.next.after(LOOK_AHEAD, self.size)) {
                LOOK_AHEAD + 1
            } else {
                1
            };
        // Not `known`: of a batch that is being written, the descriptors behind the first look available
        // before it is. Whoever goes to sleep must be kicked for that batch.
        self.saw(self.next.after(1, self.size));
        Ok(known)
    }

    #[inline]
    pub(crate) fn has_available(&self, entries: usize) -> bool {
        // Descriptors become available in order.
        u16::try_from(entries).is_ok_and(|entries| {
            entries > 0
                && entries <= self.size - self.held
                && self.is_available(self.next.after(entries - 1, self.size))
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
        let mut left = max;
        loop {
            left -= self.take_plain(memory, access, left, chains);
            if left == 0 || self.held == self.size {
                break;
            }
            let descriptor = self.descriptor(self.next);
            if descriptor.flags & OWNER != self.next.available() {
                self.frontier = self.next;
                return Ok(());
            }
            let slots = self.take_list(memory, access, descriptor, chains)?;
            if slots == 0 {
                break;
            }
            self.next = self.next.after(slots, self.size);
            self.held += slots;
            left -= 1;
        }
        self.saw(self.next);
        Ok(())
    }

    /// Takes up to `max` chains, as long as they are one buffer in one region. Returns how many.
    #[inline]
    fn take_plain<'m>(
        &mut self,
        memory: &'m GuestMemory,
        access: Access,
        max: usize,
        chains: &mut Chains<'m>,
    ) -> usize {
        let mut taken = 0;
        while taken < max && self.held < self.size {
            // To the end of the lap: so far the flags of what is available stay the same.
            let run = self.size - self.next.slot.max(self.held);
            let run = (max - taken).min(run.into());
            let wanted = self.next.available() | access.write_flag();
            let at = usize::from(self.next.slot) * DESCRIPTOR_LEN;
            let descriptors = self.descriptors.load_pairs(at, run, Ordering::Acquire);
            let mut window = memory.window(self.cursor);
            let mut got = 0;
            for [address, tail] in descriptors {
                let descriptor = PackedDescriptor::new(address, tail);
                if descriptor.flags & ONE_BUFFER != wanted {
                    break;
                }
                let Some(slice) = window.find(address, descriptor.len.into()) else { break };
                if slice.is_empty() || !chains.push_one(descriptor.id, slice) {
                    break;
                }
                access.prefetch(&slice);
                got += 1;
            }
            self.cursor = window.cursor();
            self.next = self.next.after(got, self.size);
            self.held += got;
            taken += usize::from(got);
            if usize::from(got) < run {
                break;
            }
        }
        taken
    }

    /// Follows the chain that begins with `descriptor`. Returns how many descriptors it fills: 0 if it
    /// was not taken.
    #[cold]
    fn take_list<'m>(
        &mut self,
        memory: &'m GuestMemory,
        access: Access,
        descriptor: PackedDescriptor,
        chains: &mut Chains<'m>,
    ) -> Result<u16, RingError> {
        if chains.is_spent() {
            return Ok(0);
        }
        let mut cursor = self.cursor;
        let mut collect = Collect::new(memory, &mut cursor, chains, access);
        let (id, slots, walked) = match self.follow(descriptor, &mut collect) {
            Ok(followed) => followed,
            Err(broken) => {
                collect.forget();
                return Err(broken);
            }
        };
        let taken = collect.finish(id, slots, walked);
        self.cursor = cursor;
        Ok(if taken { slots } else { 0 })
    }

    /// Returns the buffer id, which is that of the last descriptor, the number of ring descriptors, and the number of
    /// descriptors with buffers.
    fn follow(
        &self,
        mut descriptor: PackedDescriptor,
        collect: &mut Collect<'_, '_>,
    ) -> Result<(u16, u16, u32), RingError> {
        let (mut at, mut slots) = (self.next, 1);
        loop {
            if descriptor.flags & DESC_F_INDIRECT != 0 {
                if slots > 1 || descriptor.flags & DESC_F_NEXT != 0 {
                    return Err(RingError::IndirectNested);
                }
                let walked = self.follow_indirect(descriptor, collect)?;
                return Ok((descriptor.id, 1, walked));
            }
            collect.buffer(descriptor.address, descriptor.len, descriptor.flags)?;
            if descriptor.flags & DESC_F_NEXT == 0 {
                return Ok((descriptor.id, slots, slots.into()));
            }
            if slots == self.size - self.held {
                return Err(RingError::Loop { size: self.size.into() });
            }
            slots += 1;
            at = at.after(1, self.size);
            descriptor = self.descriptor(at);
        }
    }

    /// Follows an indirect table (2.8.7): its descriptors stand in order, and only their WRITE flags
    /// count. Returns their number: the whole table is the chain.
    fn follow_indirect(
        &self,
        table: PackedDescriptor,
        collect: &mut Collect<'_, '_>,
    ) -> Result<u32, RingError> {
        if !self.indirect {
            return Err(RingError::IndirectNotNegotiated);
        }
        let (table, size) = collect.table(table.address, table.len)?;
        let limit = chain_limit(self.size);
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
        let tail = self.descriptors.load_u64(at + PACKED_TAIL, Ordering::Acquire);
        PackedDescriptor::new(u64::from_le(self.descriptors.read(at + PACKED_ADDRESS)), tail)
    }

    #[inline]
    fn is_available(&self, at: Position) -> bool {
        // The flags alone would do; one width for all accesses to a word suits the CPU's store buffer.
        let tail = usize::from(at.slot) * DESCRIPTOR_LEN + PACKED_TAIL;
        let tail = self.descriptors.load_u64(tail, Ordering::Acquire);
        PackedDescriptor::new(0, tail).flags & OWNER == at.available()
    }

    /// Everything before `position` is known to be available.
    #[inline]
    fn saw(&mut self, position: Position) {
        let ahead = position.distance_from(self.frontier, self.size);
        if ahead <= self.size.into() {
            self.frontier = position;
        }
    }

    #[inline]
    pub(crate) const fn put_back(&mut self, slots: u16) {
        self.next = self.next.before(slots, self.size);
        self.held -= slots;
    }

    #[inline]
    pub(crate) fn complete_read(&mut self, chains: &[Chain]) -> u16 {
        match chains {
            // One descriptor, with the last chain's id, stands for all (2.8.9).
            [.., last] if self.in_order => {
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

    /// Writes used descriptors, all but the first one of a cache line: id, number of descriptors that the chain fills, bytes
    /// written, and whether it is joined to the one before. Returns the number of descriptors.
    #[inline]
    fn write_used(&mut self, chains: impl Iterator<Item = (u16, u16, u32, bool)>) -> u16 {
        let (size, mut next, mut all) = (self.size, self.next_used, 0);
        for (id, slots, len, joined) in chains {
            // Set where the device has written (2.8.4).
            let write = if len > 0 { DESC_F_WRITE } else { 0 };
            let flags = next.used() | write;
            let word = PackedDescriptor { address: 0, len, id, flags }.tail();
            // Not in the middle of a frame: a driver that finds its first buffers only takes the rest for other frames.
            if next.slot.is_multiple_of(LINE) && !joined {
                self.publish();
            }
            if self.first_used.is_none() {
                self.first_used = Some((next.slot, word));
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
        let at = usize::from(slot) * DESCRIPTOR_LEN + PACKED_TAIL;
        self.descriptors.store_u64(at, word, order);
    }

    #[inline]
    pub(crate) fn publish(&mut self) {
        if let Some((slot, word)) = self.first_used.take() {
            self.store(slot, word, Ordering::Release);
        }
    }

    /// 2.8.10, 2.8.14.
    #[inline]
    pub(crate) fn needs_notification(&mut self) -> bool {
        let used = self.unsignalled.replace(0);
        // As in the split ring: what is used must be visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let wish = self.driver.load_u32(0, Ordering::Relaxed);
        #[expect(clippy::cast_possible_truncation, reason = "two fields of 16 bits")]
        let (off_wrap, flags) = (wish as u16, (wish >> 16) as u16);
        match flags {
            EVENT_DISABLE => false,
            EVENT_DESC if self.event_index => used.is_none_or(|used| {
                let event = Position::from_bits(off_wrap);
                // Among those used since. One that the ring does not have is not.
                event.slot < self.size
                    && (1..=u32::from(used))
                        .contains(&self.next_used.distance_from(event, self.size))
            }),
            // Also what is reserved: rather a signal too many than one that is waited for in vain.
            _ => used != Some(0),
        }
    }

    #[inline]
    pub(crate) fn has_grown(&self) -> bool {
        self.is_available(self.frontier)
    }

    #[inline]
    pub(crate) fn enable_notification(&mut self) {
        let flags = if self.event_index {
            self.device.store(EVENT_OFF_WRAP, self.frontier.bits(), Ordering::Relaxed);
            EVENT_DESC
        } else {
            EVENT_ENABLE
        };
        self.write_event_flags(flags);
        // The wish must be visible before the descriptors are read again (see `needs_notification`).
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
            self.device.store(EVENT_FLAGS, flags, Ordering::Release);
        }
    }
}
