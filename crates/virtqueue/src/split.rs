//! The split ring, device side (virtio 1.2, 2.7).
//!
//! The order of things, once a burst: [`available`](SplitQueue::available) (one acquire load),
//! [`take`](SplitQueue::take) for each chain, [`complete`](SplitQueue::complete) for each,
//! [`publish`](SplitQueue::publish) (one release store), [`wants_signal`](SplitQueue::wants_signal) (one
//! full fence).

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use guest_memory::{Area, AreaError, Cursor, GuestMemory};

use crate::chain::{Access, Broken, Slices, Taken, Walk};
use crate::layout::{
    AVAIL_F_NO_INTERRUPT, DESCRIPTOR_LEN, Descriptor, ENTRIES, FLAGS, INDEX, USED_F_NO_NOTIFY,
    descriptor_table_len, device_area_len, driver_area_len, event_passed,
};

/// What the front end tells of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Number of descriptors: a power of two, at most 32768.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptor_table: u64,
    /// Guest-physical address of the driver area ("available ring").
    pub driver_area: u64,
    /// Guest-physical address of the device area ("used ring").
    pub device_area: u64,
    /// The available index to go on from.
    pub next_available: u16,
    /// Whether `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_index: bool,
    /// Whether `VIRTIO_F_INDIRECT_DESC` was negotiated.
    pub indirect: bool,
}

/// The front end set a ring up wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A split ring's size must be a power of two (2.7).
    #[error("queue size {0}; expected a power of two from 1 to 32768")]
    Size(u16),
    /// A part of the ring is not usable.
    #[error("the {part}: {source}")]
    Area {
        /// `descriptor table`, `driver area` or `device area`.
        part: &'static str,
        /// What is wrong with it.
        source: AreaError,
    },
}

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
    event_index: bool,
    indirect: bool,
    cursor: Cursor,
}

impl SplitQueue {
    /// Translates the three parts of the ring once. The used index goes on from where the device area
    /// says.
    ///
    /// # Errors
    /// When the size is not a power of two, or a part is misaligned or not in one region of memory.
    pub fn new(setup: &QueueSetup, memory: &Arc<GuestMemory>) -> Result<Self, ConfigError> {
        let size = setup.size;
        if !size.is_power_of_two() {
            return Err(ConfigError::Size(size));
        }
        let area = |part, address, len, align| {
            Area::new(memory, address, len, align)
                .map_err(|source| ConfigError::Area { part, source })
        };
        let descriptors =
            area("descriptor table", setup.descriptor_table, descriptor_table_len(size), 16)?;
        let driver = area("driver area", setup.driver_area, driver_area_len(size), 2)?;
        let device = area("device area", setup.device_area, device_area_len(size), 4)?;
        let next_used = device.load(INDEX, Ordering::Acquire);
        Ok(Self {
            descriptors,
            driver,
            device,
            size,
            next_available: setup.next_available,
            seen_available: setup.next_available,
            next_used,
            signalled_used: None,
            event_index: setup.event_index,
            indirect: setup.indirect,
            cursor: Cursor::default(),
        })
    }

    /// The ring's size.
    #[must_use]
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// The available index to go on from after a stop.
    #[must_use]
    pub const fn next_available(&self) -> u16 {
        self.next_available
    }

    /// How many chains can be taken, with one acquire load.
    ///
    /// # Errors
    /// When the index jumped by more than the ring's size.
    #[inline]
    pub fn available(&mut self) -> Result<u16, Broken> {
        let index = self.driver.load(INDEX, Ordering::Acquire);
        let ahead = index.wrapping_sub(self.next_available);
        if ahead > self.size {
            return Err(Broken::AvailableJump { index, ahead, size: self.size });
        }
        self.seen_available = index;
        Ok(ahead)
    }

    /// Takes the next chain that [`available`](Self::available) saw: copies its descriptors, checks the
    /// copies and appends its buffers to `slices`. `None` when there is no more.
    ///
    /// `memory` is the memory that the ring was set up with.
    ///
    /// # Errors
    /// When the guest broke the ring.
    #[inline]
    pub fn take<'m>(
        &mut self,
        memory: &'m GuestMemory,
        access: Access,
        slices: &mut Slices<'m>,
    ) -> Result<Option<Taken>, Broken> {
        if self.next_available == self.seen_available {
            return Ok(None);
        }
        let slot = usize::from(self.next_available & (self.size - 1));
        let head = u16::from_le(self.driver.read(ENTRIES + 2 * slot));
        let walk = Walk {
            memory,
            cursor: &mut self.cursor,
            slices,
            access,
            indirect_negotiated: self.indirect,
        };
        let descriptors = &self.descriptors;
        let taken = walk.follow(head, self.size, |index| {
            Descriptor::from_words(descriptors.read(usize::from(index) * DESCRIPTOR_LEN))
        })?;
        if taken != Taken::Full {
            self.next_available = self.next_available.wrapping_add(1);
        }
        Ok(Some(taken))
    }

    /// Puts the last `count` chains that were taken back: they come again, in the same order.
    #[inline]
    pub const fn put_back(&mut self, count: u16) {
        self.next_available = self.next_available.wrapping_sub(count);
    }

    /// Writes a used entry. The driver sees it after [`publish`](Self::publish).
    #[inline]
    pub fn complete(&mut self, head: u16, len: u32) {
        let slot = usize::from(self.next_used & (self.size - 1));
        self.device.write(ENTRIES + 8 * slot, [u32::from(head).to_le(), len.to_le()]);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows all completed entries to the driver, with one release store.
    #[inline]
    pub fn publish(&mut self) {
        self.device.store(INDEX, self.next_used, Ordering::Release);
    }

    /// Whether the driver wants to be told of what was published since it was last told (2.7.7, 2.7.10).
    /// With the event index, the first answer after a start is always yes: ask once then.
    #[inline]
    pub fn wants_signal(&mut self) -> bool {
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

    /// Asks the driver to kick when it adds a chain to those that [`available`](Self::available) saw
    /// last. Look once more before going to sleep: what came before this call may have come without a
    /// kick.
    #[inline]
    pub fn arm_kick(&mut self) {
        if self.event_index {
            // Not `next_available`: a queue that sleeps on chains too few for its next frame has seen
            // the index pass that already, and the driver would not kick for the missing ones.
            let at = ENTRIES + 8 * usize::from(self.size);
            self.device.store(at, self.seen_available, Ordering::Relaxed);
        } else {
            self.device.store(FLAGS, 0, Ordering::Relaxed);
        }
        // The wish must be visible before the available index is read again (see `wants_signal`).
        fence(Ordering::SeqCst);
    }

    /// Tells the driver that it need not kick. With the event index, not moving it on is enough.
    #[inline]
    pub fn disarm_kick(&mut self) {
        if !self.event_index {
            self.device.store(FLAGS, USED_F_NO_NOTIFY, Ordering::Relaxed);
        }
    }
}
