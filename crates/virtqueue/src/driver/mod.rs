//! The guest's side of the rings: what a driver does, and what a hostile driver may do.
//!
//! Unit tests, fuzzing, benches and the software front end share it. A driver lays out the parts of its ring in guest
//! memory itself. The caller provides the buffers.

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
    /// Whether the device may only write the buffer (true) or only read it (false).
    pub writable: bool,
}

/// A chain that the device gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returned {
    /// Its id, as returned by [`Driver::add`].
    pub id: u16,
    /// Number of bytes that the device wrote.
    pub len: u32,
}

/// The size and features of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingOptions {
    /// Number of descriptors; for a split ring a power of two.
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
    /// A split ring of `size` without features.
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

/// The driver of a ring of either format.
#[derive(Debug)]
pub enum Driver {
    /// The driver of a split ring.
    Split(SplitDriver),
    /// The driver of a packed ring.
    Packed(PackedDriver),
}

/// Calls a method of the driver for the ring's format.
macro_rules! driver {
    ($self:expr, $driver:ident => $call:expr) => {
        match $self {
            Driver::Split($driver) => $call,
            Driver::Packed($driver) => $call,
        }
    };
}

impl Driver {
    /// Bytes that a ring with these options needs, at an address that is a multiple of 4096.
    #[must_use]
    pub fn bytes(options: &RingOptions) -> u64 {
        if options.packed {
            PackedDriver::bytes(options.size)
        } else {
            SplitDriver::bytes(options.size)
        }
    }

    /// Lays out an empty ring at guest-physical `address`, a multiple of 4096. It starts at `position`: the index in a
    /// split ring, slot and wrap counter (bit 15) in a packed ring.
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
        if options.packed {
            Self::Packed(PackedDriver::new(memory, address, options, position))
        } else {
            Self::Split(SplitDriver::new(memory, address, options).starting_at(position))
        }
    }

    /// The setup of this ring that a front end would send to the device.
    #[must_use]
    pub const fn setup(&self) -> QueueSetup {
        driver!(self, driver => driver.setup())
    }

    /// Number of free descriptors.
    #[must_use]
    pub fn free(&self) -> usize {
        driver!(self, driver => driver.free())
    }

    /// Adds a chain of `buffers`, one descriptor each. Returns its id, or `None` if too few descriptors are free. The
    /// device sees it after [`publish`](Self::publish).
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        driver!(self, driver => driver.add(buffers))
    }

    /// Adds a chain of `buffers` as one descriptor with an indirect table at guest-physical `table`. Returns its id, or
    /// `None` if no descriptor is free.
    ///
    /// # Panics
    /// When the table is not in guest memory.
    pub fn add_indirect(&mut self, buffers: &[Buffer], table: u64) -> Option<u16> {
        driver!(self, driver => driver.add_indirect(buffers, table))
    }

    /// Makes all added chains available to the device.
    pub fn publish(&mut self) {
        driver!(self, driver => driver.publish());
    }

    /// Whether the device wants a kick for the chains published since the last call.
    pub fn needs_notification(&mut self) -> bool {
        driver!(self, driver => driver.needs_notification())
    }

    /// Asks the device to signal when it gives back the next chain. Check [`has_used`](Self::has_used) once more
    /// afterwards: the chain may have come back just before.
    pub fn enable_notification(&mut self) {
        driver!(self, driver => driver.enable_notification());
    }

    /// Asks the device not to signal.
    pub fn disable_notification(&mut self) {
        driver!(self, driver => driver.disable_notification());
    }

    /// The position at which a new device has to continue after the old one went away without reporting its own. All
    /// used chains that the driver sees count as given back. Take every one of them with [`used`](Self::used) first.
    #[must_use]
    pub fn position(&self) -> u16 {
        driver!(self, driver => driver.position())
    }

    /// Whether there is a used chain to take.
    #[must_use]
    pub fn has_used(&self) -> bool {
        driver!(self, driver => driver.has_used())
    }

    /// Takes the next used chain and frees its descriptors.
    pub fn used(&mut self) -> Option<Returned> {
        driver!(self, driver => driver.used())
    }
}

/// The device gave back `last`. With `VIRTIO_F_IN_ORDER` that stands for all chains up to this one (2.7.9, 2.8.9).
/// Returns the chain to return now, and the entry that still stands for the rest.
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

/// Removes `id` from the chains that the device has. Mostly it is the oldest.
fn forget(order: &mut VecDeque<u16>, id: u16) {
    if order.front() == Some(&id) {
        order.pop_front();
    } else {
        order.retain(|other| *other != id);
    }
}
