//! Guest-physical addresses to checked host bytes.
//!
//! The only crate that dereferences guest memory. Everything above it holds a [`GuestSlice`], which was
//! checked once against the region table and cannot outlive the mapping, or an [`Area`], which keeps the
//! mapping alive itself (the three parts of a ring).
//!
//! The guest may write any byte at any time. So nothing here hands out a Rust reference into guest
//! memory: bytes are copied, volatile or atomic, and what was copied is what gets checked and used.
//!
//! - [`memory`]: the region table and translation.
//! - [`slice`](mod@slice): a checked run of guest bytes; what the kernel takes as an `iovec`.
//! - [`host`]: pages of our own that the kernel shares.
//! - [`sum`]: the Internet checksum, added up while bytes are copied.
//! - [`area`]: long-lived access to ring structures.
//! - `prefetch`: asking the CPU for cache lines early.
//! - `modelled`: the same under loom (`--cfg loom`), for tests of notification.

pub mod area;
pub mod host;
pub mod memory;
#[cfg(loom)]
mod modelled;
mod prefetch;
pub mod slice;
pub mod sum;

#[cfg(not(loom))]
pub use area::Area;
pub use area::AreaError;
/// Changes when the memory of a guest ([`GuestMemory::is_torn`]) or any other mapped file is torn.
pub use file_mapping::generation;
pub use host::HostMemory;
pub use memory::{Cursor, GuestMemory, Unmapped, Window};
#[cfg(loom)]
pub use modelled::ModelledArea as Area;
pub use slice::{GuestSlice, Spare};
pub use sum::Sum;

/// The fence between what one side shows and what it reads of the other's wishes.
#[cfg(loom)]
pub use loom::sync::atomic::fence;
/// The fence between what one side shows and what it reads of the other's wishes.
#[cfg(not(loom))]
pub use std::sync::atomic::fence;
