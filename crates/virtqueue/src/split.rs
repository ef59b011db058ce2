//! The split ring, device side (virtio 1.2, 2.7).
//!
//! A burst: [`available_descriptors`](crate::Queue::available_descriptors) (one acquire load),
//! [`take`](crate::Queue::take), [`complete_written`](crate::Queue::complete_written),
//! [`publish`](crate::Queue::publish) (one release store), [`needs_notification`](crate::Queue::needs_notification)
//! (one full fence).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use guest_memory::{GuestMemory, GuestSlice, Translator, fence};
use ring_journal::{Entry, Slot};

use crate::chain::{Access, Chain, Chains};
use crate::collect::{Collect, Followed, chain_limit, collect, table_entry};
use crate::error::{ConfigError, RingError, Unfit};
use crate::layout::{
    AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESCRIPTOR_LEN, Descriptor,
    ENTRIES, FLAGS, INDEX, USED_F_NO_NOTIFY, event_passed,
};
use crate::log::{RingLog, runs};
use crate::ring::Ring;
use crate::setup::QueueSetup;

/// Used entries in a cache line.
const USED_A_LINE: usize = 8;
/// Most chains whose cache lines are prefetched together: a burst.
const FETCHED_MAX: usize = 64;

/// A split ring in use.
#[derive(Debug)]
pub struct SplitQueue {
    ring: Ring,
    /// The next entry of the available ring.
    next_available: u16,
    /// The available index that was read last.
    seen_available: u16,
    /// The next entry of the used ring.
    next_used: u16,
    /// The used index at the last [`needs_notification`](crate::Queue::needs_notification). `None` after a start: a
    /// previous back end may have published without a notification.
    signalled_used: Option<u16>,
    pub(crate) journal: Option<Slot>,
}

/// The methods are described at [`Queue`](crate::Queue).
impl SplitQueue {
    pub(crate) fn new(setup: &QueueSetup, memory: &Arc<GuestMemory>) -> Result<Self, ConfigError> {
        let size = setup.size;
        if !size.is_power_of_two() {
            return Err(ConfigError::SplitSize(size));
        }
        let ring = Ring::new(setup, memory)?;
        // The used index continues from the value in the device area, and so does the device, whatever the front end says.
        // Chains come back in the order in which they were taken. So those before the used index are the driver's again,
        // even if the front end read the index too early. Those after it were never returned. DPDK's virtio-user
        // always says 0 to a back end that connects to it, and DPDK's vhost continues at the used index, too
        // (`translate_ring_addresses`, lib/vhost/vhost_user.c).
        let next_used = ring.device.load(INDEX, Ordering::Acquire);
        let next_available = next_used;
        Ok(Self {
            ring,
            next_available,
            seen_available: next_available,
            next_used,
            signalled_used: None,
            journal: None,
        })
    }

    /// Compares what the daemon before noted with the used index, from which the ring continues in any case. Returns the
    /// number of chains that were taken and not given back.
    pub(crate) fn resume(&self, entry: &Entry) -> Result<u16, Unfit> {
        let held = entry.taken.wrapping_sub(entry.used);
        let given_back = self.next_used.wrapping_sub(entry.used);
        // Receive rings note only where they start.
        if entry.taken == entry.used || (held <= self.ring.size && given_back <= held) {
            return Ok(held.saturating_sub(given_back));
        }
        let Entry { used, taken, .. } = *entry;
        Err(Unfit::Used { used, taken, found: self.next_used })
    }

    pub(crate) const fn size(&self) -> u16 {
        self.ring.size
    }

    pub(crate) const fn next_available(&self) -> u16 {
        self.next_available
    }

    #[inline]
    pub(crate) fn available_descriptors(&mut self) -> Result<u16, RingError> {
        let index = self.ring.driver.load(INDEX, Ordering::Acquire);
        let ahead = index.wrapping_sub(self.next_available);
        if ahead > self.ring.size {
            return Err(RingError::AvailableJump { index, ahead, size: self.ring.size });
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
        let mask = self.ring.size - 1;
        let ahead = self.seen_available.wrapping_sub(self.next_available);
        let count = max.min(ahead.into());
        self.prefetch(count);
        let mut translator = memory.translator(self.ring.last_region);
        for _ in 0..count {
            let slot = usize::from(self.next_available & mask);
            let head = u16::from_le(self.ring.driver.read(ENTRIES + 2 * slot));
            let descriptor = self.descriptor(head)?;
            let flags = descriptor.flags & (DESC_F_NEXT | DESC_F_INDIRECT | DESC_F_WRITE);
            let taken = if flags == access.write_flag()
                && let Some(slice) = translator.find(descriptor.address, descriptor.len.into())
                && !slice.is_empty()
            {
                access.prefetch(&slice);
                chains.push_one(head, slice)
            } else {
                self.take_list(&mut translator, access, head, descriptor, chains)?
            };
            if !taken {
                break;
            }
            self.next_available = self.next_available.wrapping_add(1);
        }
        self.ring.last_region = translator.last_region();
        if access == Access::Read
            && let Some(journal) = &self.journal
        {
            journal.taken(self.next_used, self.next_available);
        }
        Ok(())
    }

    /// Prefetches what it takes to take the next `count` chains and to give them back. From a distant CPU, all lines
    /// together arrive as fast as one.
    #[inline]
    fn prefetch(&self, count: usize) {
        let mask = usize::from(self.ring.size - 1);
        let (next, used) = (usize::from(self.next_available), usize::from(self.next_used));
        for n in 0..count.min(FETCHED_MAX) {
            let head: u16 = self.ring.driver.read(ENTRIES + 2 * ((next + n) & mask));
            self.ring
                .descriptors
                .prefetch_to_read(usize::from(u16::from_le(head)) * DESCRIPTOR_LEN);
            if n % USED_A_LINE == 0 {
                self.ring.device.prefetch_to_write(ENTRIES + 8 * ((used + n) & mask));
            }
        }
    }

    #[inline]
    fn descriptor(&self, index: u16) -> Result<Descriptor, RingError> {
        if index >= self.ring.size {
            return Err(RingError::Index { index: index.into(), size: self.ring.size.into() });
        }
        Ok(Descriptor::from_words(self.ring.descriptors.read(usize::from(index) * DESCRIPTOR_LEN)))
    }

    /// Takes the chain that begins with `descriptor` at `head`. Returns whether there was room for it.
    fn take_list<'m>(
        &self,
        translator: &mut Translator<'m>,
        access: Access,
        head: u16,
        descriptor: Descriptor,
        chains: &mut Chains<'m>,
    ) -> Result<bool, RingError> {
        let slots = collect(translator, access, chains, |collect| {
            let walked = self.follow(descriptor, collect)?;
            Ok(Followed { id: head, slots: 1, walked })
        })?;
        Ok(slots > 0)
    }

    /// Follows the chain that begins with `descriptor`. Returns the number of descriptors with buffers.
    fn follow(
        &self,
        mut descriptor: Descriptor,
        collect: &mut Collect<'_, '_>,
    ) -> Result<u32, RingError> {
        let mut left = self.ring.size;
        loop {
            left -= 1;
            if descriptor.flags & DESC_F_INDIRECT != 0 {
                let before = u32::from(self.ring.size - left) - 1;
                return Ok(before + self.follow_indirect(descriptor, before, collect)?);
            }
            collect.buffer(descriptor.address, descriptor.len, descriptor.flags)?;
            if descriptor.flags & DESC_F_NEXT == 0 {
                return Ok(u32::from(self.ring.size - left));
            }
            let next = descriptor.next;
            if next < self.ring.size && left == 0 {
                return Err(RingError::Loop { size: self.ring.size.into() });
            }
            descriptor = self.descriptor(next)?;
        }
    }

    /// Follows an indirect table (2.7.5.3) in guest memory: each descriptor is copied once, and the copy is checked and
    /// used. `before` is the number of descriptors of the chain in the ring's own table. Returns their number in the
    /// indirect table.
    fn follow_indirect(
        &self,
        table: Descriptor,
        before: u32,
        collect: &mut Collect<'_, '_>,
    ) -> Result<u32, RingError> {
        if !self.ring.indirect {
            return Err(RingError::IndirectNotNegotiated);
        }
        if table.flags & DESC_F_NEXT != 0 {
            return Err(RingError::IndirectNested);
        }
        let (table, size): (GuestSlice<'_>, u32) = collect.table(table.address, table.len)?;
        let limit = chain_limit(self.ring.size);
        // The chain may use only a part of the table. More steps than the table has descriptors are a loop.
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
            && self.ring.in_order
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
        let slot = usize::from(self.next_used & (self.ring.size - 1));
        self.ring.device.write(ENTRIES + 8 * slot, [u32::from(head).to_le(), len.to_le()]);
    }

    #[inline]
    pub(crate) fn publish(&mut self) {
        self.ring.device.store(INDEX, self.next_used, Ordering::Release);
    }

    pub(crate) fn set_log(&mut self, log: Option<RingLog>) {
        self.ring.set_log(log, self.next_used);
    }

    pub(crate) const fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Marks the used entries written since the last call, and the used index, if the front end logs.
    #[inline]
    pub(crate) fn mark_used(&mut self) {
        if self.ring.logging.is_some() {
            self.mark_used_entries();
        }
    }

    #[cold]
    fn mark_used_entries(&mut self) {
        let (size, next_used) = (self.ring.size, self.next_used);
        let Some(logging) = &mut self.ring.logging else { return };
        let marked = logging.advance(next_used);
        if marked != next_used {
            let slot = |index: u16| usize::from(index & (size - 1));
            for (first, count) in runs(slot(marked), slot(next_used), size.into()) {
                logging.mark_device(ENTRIES + 8 * first, 8 * count);
            }
        }
        logging.mark_device(INDEX, 2);
    }

    /// 2.7.7, 2.7.10.
    #[inline]
    pub(crate) fn needs_notification(&mut self) -> bool {
        let old = self.signalled_used.replace(self.next_used);
        // The used index must be visible before the driver's setting is read: the driver writes its setting and then
        // reads the used index, so one side sees the other's write.
        fence(Ordering::SeqCst);
        if self.ring.event_index {
            let used_event =
                self.ring.driver.load(ENTRIES + 2 * usize::from(self.ring.size), Ordering::Relaxed);
            old.is_none_or(|old| event_passed(used_event, self.next_used, old))
        } else {
            self.ring.driver.load(FLAGS, Ordering::Relaxed) & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    #[inline]
    pub(crate) fn has_grown(&self) -> bool {
        self.ring.driver.load(INDEX, Ordering::Acquire) != self.seen_available
    }

    #[inline]
    pub(crate) fn enable_notification(&mut self) {
        if self.ring.event_index {
            // Not `next_available`: a queue that sleeps with too few chains for its next frame has read an index past it
            // already, and the driver would not kick for the missing chains.
            let at = ENTRIES + 8 * usize::from(self.ring.size);
            self.ring.device.store(at, self.seen_available, Ordering::Relaxed);
            self.ring.wrote_device(at, 2);
        } else {
            self.ring.device.store(FLAGS, 0, Ordering::Relaxed);
            self.ring.wrote_device(FLAGS, 2);
        }
        // The setting must be visible before the available index is read again (see `needs_notification`).
        fence(Ordering::SeqCst);
    }

    /// With the event index it is enough not to move it.
    #[inline]
    pub(crate) fn disable_notification(&mut self) {
        if !self.ring.event_index {
            self.ring.device.store(FLAGS, USED_F_NO_NOTIFY, Ordering::Relaxed);
            self.ring.wrote_device(FLAGS, 2);
        }
    }
}

/// Ring entries of `chains`: one each.
#[expect(clippy::cast_possible_truncation, reason = "at most CHAINS_MAX")]
const fn entries(chains: &[Chain]) -> u16 {
    chains.len() as u16
}
