//! A ring of either format, and what the front end tells of it.

use std::sync::Arc;

use guest_memory::{Area, AreaError, GuestMemory};

use crate::chain::{Access, Chain, Chains, RingError};
use crate::layout::part_lens;
use crate::packed::PackedQueue;
use crate::split::SplitQueue;

/// What the front end tells of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Number of descriptors: at most 32768; of a split ring a power of two.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptor_table: u64,
    /// Guest-physical address of the driver area ("available ring").
    pub driver_area: u64,
    /// Guest-physical address of the device area ("used ring").
    pub device_area: u64,
    /// Where to go on: the available index (split), or the next descriptor with the driver's wrap
    /// counter in bit 15 (packed). A split ring goes on at its used index if that is ahead of it: what was
    /// returned is not taken again.
    pub next_available: u16,
    /// Whether `VIRTIO_F_RING_PACKED` was negotiated.
    pub packed: bool,
    /// Whether `VIRTIO_F_IN_ORDER` was negotiated.
    pub in_order: bool,
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
    SplitSize(u16),
    /// A packed ring's size is from 1 to 2^15 (2.8.10.1).
    #[error("queue size {0}; expected 1 to 32768")]
    PackedSize(u16),
    /// A packed ring goes on at a descriptor that it does not have.
    #[error("a packed ring of {size} cannot go on at descriptor {index}")]
    Position {
        /// The descriptor.
        index: u16,
        /// The ring's size.
        size: u16,
    },
    /// A part of the ring is not usable.
    #[error("the {part}: {source}")]
    Area {
        /// `descriptor table`, `driver area` or `device area`.
        part: &'static str,
        /// What is wrong with it.
        source: AreaError,
    },
}

/// The three parts of a ring.
pub(crate) struct Parts {
    pub(crate) descriptors: Area,
    pub(crate) driver: Area,
    pub(crate) device: Area,
}

impl Parts {
    /// Translates them.
    pub(crate) fn new(setup: &QueueSetup, memory: &Arc<GuestMemory>) -> Result<Self, ConfigError> {
        let [table, driver, device] = part_lens(setup.packed, setup.size);
        let area = |part, address, (len, align)| {
            Area::new(memory, address, len, align)
                .map_err(|source| ConfigError::Area { part, source })
        };
        Ok(Self {
            descriptors: area("descriptor table", setup.descriptor_table, table)?,
            driver: area("driver area", setup.driver_area, driver)?,
            device: area("device area", setup.device_area, device)?,
        })
    }
}

/// A ring in use. Which format it has is decided once a burst, not once a chain.
#[derive(Debug)]
pub enum Queue {
    /// A split ring.
    Split(SplitQueue),
    /// A packed ring.
    Packed(PackedQueue),
}

/// Calls the method of the engine that is there.
macro_rules! engine {
    ($queue:expr, $engine:ident => $call:expr) => {
        match $queue {
            Queue::Split($engine) => $call,
            Queue::Packed($engine) => $call,
        }
    };
}

impl Queue {
    /// Translates the three parts of the ring once.
    ///
    /// # Errors
    /// When the size is not one that the format allows, or a part is misaligned or not in one region of
    /// memory.
    pub fn new(setup: &QueueSetup, memory: &Arc<GuestMemory>) -> Result<Self, ConfigError> {
        Ok(if setup.packed {
            Self::Packed(PackedQueue::new(setup, memory)?)
        } else {
            Self::Split(SplitQueue::new(setup, memory)?)
        })
    }

    /// The ring's size.
    #[inline]
    #[must_use]
    pub const fn size(&self) -> u16 {
        engine!(self, engine => engine.size())
    }

    /// Where to go on after a stop ([`QueueSetup::next_available`]).
    #[must_use]
    pub const fn next_available(&self) -> u16 {
        engine!(self, engine => engine.next_available())
    }

    /// Looks for chains. Returns how many entries of the ring are seen to be available: all of them in a
    /// split ring; in a packed ring, which has no index to tell, no more than it takes to know whether
    /// they fill a burst. 0 means that there is none.
    ///
    /// # Errors
    /// When the guest broke the ring.
    #[inline]
    pub fn available_descriptors(&mut self) -> Result<u16, RingError> {
        engine!(self, engine => engine.available_descriptors())
    }

    /// Whether so many entries of the ring are known to be available: in a split ring, by the last look.
    #[inline]
    #[must_use]
    pub fn has_available(&self, entries: usize) -> bool {
        engine!(self, engine => engine.has_available(entries))
    }

    /// Takes up to `max` of the available chains: copies their descriptors, checks the copies and adds
    /// them to `chains`. Stops early when there is no room for the next one. [`available_descriptors`](Self::available_descriptors) first.
    ///
    /// `memory` is the memory that the ring was set up with.
    ///
    /// # Errors
    /// When the guest broke the ring. What was taken before must not be completed.
    #[inline]
    pub fn take<'m>(
        &mut self,
        memory: &'m GuestMemory,
        access: Access,
        max: usize,
        chains: &mut Chains<'m>,
    ) -> Result<(), RingError> {
        engine!(self, engine => engine.take(memory, access, max, chains))
    }

    /// Puts the last chains that were taken back, which fill `slots` entries of the ring: they come
    /// again, in the same order.
    #[inline]
    pub const fn put_back(&mut self, slots: u16) {
        engine!(self, engine => engine.put_back(slots));
    }

    /// Gives chains back, in the order in which they were taken, that the device has not written to. The
    /// driver sees them at the latest after [`publish`](Self::publish). Returns how many entries of the ring
    /// they fill.
    #[inline]
    pub fn complete_read(&mut self, chains: &[Chain]) -> u16 {
        engine!(self, engine => engine.complete_read(chains))
    }

    /// Gives chains back, in the order in which they were taken, with [`Chain::len`] bytes written. The
    /// driver sees them at the latest after [`publish`](Self::publish). Returns how many entries of the ring
    /// they fill.
    #[inline]
    pub fn complete_written(&mut self, chains: &[Chain]) -> u16 {
        engine!(self, engine => engine.complete_written(chains))
    }

    /// Shows all completed chains to the driver, with one release store. In a packed ring those in earlier
    /// cache lines are shown already, a line at a time, when the next line is begun.
    #[inline]
    pub fn publish(&mut self) {
        engine!(self, engine => engine.publish());
    }

    /// Whether the driver wants to be told of what was published since it was last told. The first
    /// answer after a start is yes if it depends on what was told before: ask once then.
    #[inline]
    pub fn needs_notification(&mut self) -> bool {
        engine!(self, engine => engine.needs_notification())
    }

    /// Whether the driver made more available than this side has seen.
    #[inline]
    #[must_use]
    pub fn has_grown(&self) -> bool {
        engine!(self, engine => engine.has_grown())
    }

    /// Asks the driver to kick when it makes more available than this side has seen. Look once more
    /// before going to sleep: what came before this call may have come without a kick.
    #[inline]
    pub fn enable_notification(&mut self) {
        engine!(self, engine => engine.enable_notification());
    }

    /// Tells the driver that it need not kick.
    #[inline]
    pub fn disable_notification(&mut self) {
        engine!(self, engine => engine.disable_notification());
    }
}
