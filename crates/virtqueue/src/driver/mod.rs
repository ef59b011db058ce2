//! The guest's side of the same rings: what a driver does, and what a hostile one may do.
//!
//! Shared by unit tests, fuzzing, benches and the software front end. A driver places the ring's parts
//! itself and leaves buffers to the caller.

use std::collections::VecDeque;
use std::sync::Arc;

use guest_memory::GuestMemory;

use crate::setup::QueueSetup;

pub mod packed;
pub mod split;

pub use packed::PackedDriver;
pub use split::SplitDriver;

/// A buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device may write it (and only write), or read it (and only read).
    pub writable: bool,
}

/// A chain that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returned {
    /// What [`Driver::add`] called it.
    pub id: u16,
    /// How many bytes the device wrote.
    pub len: u32,
}

/// What a ring is to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingOptions {
    /// How many descriptors: of a split ring a power of two.
    pub size: u16,
    /// `VIRTIO_F_RING_PACKED`.
    pub packed: bool,
    /// `VIRTIO_F_IN_ORDER`.
    pub in_order: bool,
    /// `VIRTIO_F_EVENT_IDX`.
    pub event_index: bool,
    /// `VIRTIO_F_INDIRECT_DESC`.
    pub indirect: bool,
}

impl RingOptions {
    /// A split ring with no options.
    #[must_use]
    pub const fn of(size: u16) -> Self {
        Self { size, packed: false, in_order: false, event_index: false, indirect: false }
    }

    const fn setup(self, parts: [u64; 3], next_available: u16) -> QueueSetup {
        let [descriptor_table, driver_area, device_area] = parts;
        let Self { size, packed, in_order, event_index, indirect } = self;
        QueueSetup {
            size,
            descriptor_table,
            driver_area,
            device_area,
            next_available,
            packed,
            in_order,
            event_index,
            indirect,
        }
    }
}

/// A driver of a ring of either format.
#[derive(Debug)]
pub enum Driver {
    /// Of a split ring.
    Split(SplitDriver),
    /// Of a packed ring.
    Packed(PackedDriver),
}

/// Calls the method of the driver that is there.
macro_rules! driver {
    ($self:expr, $driver:ident => $call:expr) => {
        match $self {
            Driver::Split($driver) => $call,
            Driver::Packed($driver) => $call,
        }
    };
}

impl Driver {
    /// Bytes that such a ring needs, at an address that is a multiple of 4096.
    #[must_use]
    pub fn bytes(options: &RingOptions) -> u64 {
        if options.packed {
            PackedDriver::bytes(options.size)
        } else {
            SplitDriver::bytes(options.size)
        }
    }

    /// Lays an empty ring out at guest-physical `address`, a multiple of 4096. It starts at `position`:
    /// the index of a split ring, slot and wrap counter (bit 15) of a packed one.
    ///
    /// # Panics
    /// When it does not fit guest memory: this is the test's own mistake.
    #[must_use]
    pub fn new(
        memory: &Arc<GuestMemory>,
        address: u64,
        options: RingOptions,
        position: u16,
    ) -> Self {
        if options.packed {
            Self::Packed(PackedDriver::new(memory, address, options, position))
        } else {
            Self::Split(SplitDriver::new(memory, address, options).starting_at(position))
        }
    }

    /// What the front end would tell the device of this ring.
    #[must_use]
    pub const fn setup(&self) -> QueueSetup {
        driver!(self, driver => driver.setup())
    }

    /// How many descriptors are free.
    #[must_use]
    pub fn free(&self) -> usize {
        driver!(self, driver => driver.free())
    }

    /// Adds a chain of `buffers`, one descriptor each. Returns its id, or `None` when there are too few
    /// free descriptors. The device sees it after [`publish`](Self::publish).
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        driver!(self, driver => driver.add(buffers))
    }

    /// Adds a chain of `buffers` as one descriptor and an indirect table at guest-physical `table`.
    /// Returns its id, or `None` when no descriptor is free.
    ///
    /// # Panics
    /// When the table is not in guest memory.
    pub fn add_indirect(&mut self, buffers: &[Buffer], table: u64) -> Option<u16> {
        driver!(self, driver => driver.add_indirect(buffers, table))
    }

    /// Shows all added chains to the device.
    pub fn publish(&mut self) {
        driver!(self, driver => driver.publish());
    }

    /// Whether the device wants a kick for what was published since the last one.
    pub fn needs_notification(&mut self) -> bool {
        driver!(self, driver => driver.needs_notification())
    }

    /// Asks the device to signal with the next chain that comes back; look for it once more afterwards.
    pub fn enable_notification(&mut self) {
        driver!(self, driver => driver.enable_notification());
    }

    /// Asks the device not to signal.
    pub fn disable_notification(&mut self) {
        driver!(self, driver => driver.disable_notification());
    }

    /// Where the device goes on when it went away without a word, having given back what the driver sees:
    /// every chain that came back must have been taken.
    #[must_use]
    pub fn position(&self) -> u16 {
        driver!(self, driver => driver.position())
    }

    /// Whether a chain came back.
    #[must_use]
    pub fn has_used(&self) -> bool {
        driver!(self, driver => driver.has_used())
    }

    /// Takes the next chain that came back, and frees its descriptors.
    pub fn used(&mut self) -> Option<Returned> {
        driver!(self, driver => driver.used())
    }
}

/// The chain to return now, and what is left for later, when the device gave back `last`: with
/// `VIRTIO_F_IN_ORDER` that stands for all chains up to its own (2.7.9, 2.8.9).
fn first_of_batch(
    in_order: bool,
    order: &VecDeque<u16>,
    last: Returned,
) -> (Returned, Option<Returned>) {
    match order.front() {
        Some(&oldest) if in_order && oldest != last.id => {
            (Returned { id: oldest, len: 0 }, Some(last))
        }
        _ => (last, None),
    }
}

/// Takes `id` out of the chains that the device has, where it mostly is the oldest.
fn forget(order: &mut VecDeque<u16>, id: u16) {
    if order.front() == Some(&id) {
        order.pop_front();
    } else {
        order.retain(|other| *other != id);
    }
}
