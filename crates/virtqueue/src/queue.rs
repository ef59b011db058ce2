//! A ring of either format.

use std::sync::Arc;

use guest_memory::{GuestMemory, Marker};
use ring_journal::Slot;

use crate::chain::{Access, Chain, Chains};
use crate::error::{ConfigError, RingError};
use crate::log::RingLog;
use crate::packed::PackedQueue;
use crate::setup::QueueSetup;
use crate::split::SplitQueue;

/// A ring in use. Its format is looked up once a burst, not once a chain.
#[derive(Debug)]
pub enum Queue {
    /// A split ring.
    Split(SplitQueue),
    /// A packed ring.
    Packed(PackedQueue),
}

/// Calls a method of the ring's engine.
macro_rules! engine {
    ($queue:expr, $engine:ident => $call:expr) => {
        match $queue {
            Queue::Split($engine) => $call,
            Queue::Packed($engine) => $call,
        }
    };
}

impl Queue {
    /// Translates the three parts of the ring.
    ///
    /// # Errors
    /// When the format does not allow the size, or a part is misaligned or not in one region of guest memory.
    pub fn new(setup: &QueueSetup, memory: &Arc<GuestMemory>) -> Result<Self, ConfigError> {
        Ok(if setup.packed {
            Self::Packed(PackedQueue::new(setup, memory)?)
        } else {
            Self::Split(SplitQueue::new(setup, memory)?)
        })
    }

    /// The journal in which each burst notes its position, if there is one.
    #[must_use]
    pub const fn journal(&mut self) -> &mut Option<Slot> {
        engine!(self, engine => &mut engine.journal)
    }

    /// Number of descriptors.
    #[inline]
    #[must_use]
    pub const fn size(&self) -> u16 {
        engine!(self, engine => engine.size())
    }

    /// Where the device continues after a stop ([`QueueSetup::next_available`]).
    #[must_use]
    pub const fn next_available(&self) -> u16 {
        engine!(self, engine => engine.next_available())
    }

    /// Whether the driver of a packed ring is a lap ahead of [`next_available`](Self::next_available), so that no descriptor
    /// can become available there: the position was wrong. To be asked after a start; never true of a split ring.
    #[must_use]
    pub fn is_past(&self) -> bool {
        match self {
            Self::Split(_) => false,
            Self::Packed(engine) => engine.is_past(),
        }
    }

    /// Reads what the driver made available. Returns the number of available ring entries, 0 if there are none. In a
    /// packed ring, which has no index, only the next descriptor and the one a burst later are read: the result is 0,
    /// 1, or more than a burst.
    ///
    /// # Errors
    /// When the guest broke the ring.
    #[inline]
    pub fn available_descriptors(&mut self) -> Result<u16, RingError> {
        engine!(self, engine => engine.available_descriptors())
    }

    /// Whether at least this many entries are available; in a split ring, by the index read last.
    #[inline]
    #[must_use]
    pub fn has_available(&self, entries: usize) -> bool {
        engine!(self, engine => engine.has_available(entries))
    }

    /// Takes up to `max` available chains: copies their descriptors, checks the copies, and adds them to `chains`. Stops
    /// early when `chains` is full. Call [`available_descriptors`](Self::available_descriptors) first.
    ///
    /// `memory` is the memory that the ring was set up with.
    ///
    /// # Errors
    /// When the guest broke the ring. Chains taken before must not be completed.
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

    /// Puts back the chains taken last, which fill `slots` entries of the ring. They come again, in the same order.
    #[inline]
    pub const fn put_back(&mut self, slots: u16) {
        engine!(self, engine => engine.put_back(slots));
    }

    /// Gives chains back that the device has not written to, in the order in which they were taken. The driver sees them
    /// after [`publish`](Self::publish) at the latest. Returns the number of ring entries.
    #[inline]
    pub fn complete_read(&mut self, chains: &[Chain]) -> u16 {
        engine!(self, engine => engine.complete_read(chains))
    }

    /// Gives chains back with [`Chain::len`] bytes written, in the order in which they were taken. The driver sees them
    /// after [`publish`](Self::publish) at the latest. Returns the number of ring entries.
    #[inline]
    pub fn complete_written(&mut self, chains: &[Chain]) -> u16 {
        engine!(self, engine => engine.complete_written(chains))
    }

    /// Makes all completed chains visible to the driver, with one release store. A packed ring shows each cache line of
    /// used descriptors as soon as the next line begins.
    #[inline]
    pub fn publish(&mut self) {
        engine!(self, engine => engine.publish());
        engine!(self, engine => engine.mark_used());
    }

    /// From now on, marks what the device writes to the ring itself, or no longer. To be called between bursts. Buffers are
    /// marked by their writer ([`marker`](Self::marker)).
    pub fn set_log(&mut self, log: Option<RingLog>) {
        engine!(self, engine => engine.set_log(log));
    }

    /// Whether the front end logs.
    #[inline]
    #[must_use]
    pub const fn is_logging(&self) -> bool {
        engine!(self, engine => engine.ring().logging.is_some())
    }

    /// To mark what was written to buffers of this ring before this call, if the front end logs.
    #[inline]
    #[must_use]
    pub fn marker(&self) -> Option<Marker<'_>> {
        engine!(self, engine => engine.ring().logging.as_ref()).map(|logging| logging.marker())
    }

    /// Marks all that the device ever writes to the ring itself, if the front end logs: for a ring that breaks in the middle
    /// of a burst.
    #[cold]
    pub fn mark_all(&self) {
        engine!(self, engine => engine.ring()).mark_all();
    }

    /// Whether the driver needs a notification for what was published since the last call. The first call after a start
    /// returns true if the answer depends on notifications sent before the start.
    #[inline]
    pub fn needs_notification(&mut self) -> bool {
        engine!(self, engine => engine.needs_notification())
    }

    /// Whether the driver made more available than the device has read.
    #[inline]
    #[must_use]
    pub fn has_grown(&self) -> bool {
        engine!(self, engine => engine.has_grown())
    }

    /// Asks the driver for a kick when it makes more available than the device has read. Check once more before going to
    /// sleep: what came before this call may have come without a kick.
    #[inline]
    pub fn enable_notification(&mut self) {
        engine!(self, engine => engine.enable_notification());
    }

    /// Tells the driver that no kick is needed.
    #[inline]
    pub fn disable_notification(&mut self) {
        engine!(self, engine => engine.disable_notification());
    }
}
