//! Guest-physical addresses to checked host bytes.
//!
//! The only crate that dereferences guest memory. Other crates hold a [`GuestSlice`], which was checked once against the
//! region table and cannot outlive the mapping, or an [`Area`] (a part of a ring), which keeps the mapping alive itself.
//!
//! The guest may write any byte at any time. So no Rust reference into guest memory exists outside of this crate: bytes
//! are copied, by volatile or atomic accesses, and the copy is checked and used.
//!
//! - [`memory`]: the region table and translation.
//! - [`slice`](mod@slice): a checked run of guest bytes, laid out as an `iovec`.
//! - [`dirty`]: which pages were written, for a live migration.
//! - `summed_copy`: copies that also sum the bytes.
//! - [`sum`]: the Internet checksum.
//! - `spare`: host bytes at the end of a scatter list.
//! - [`host`]: host pages shared with the kernel.
//! - [`area`]: long-lived access to ring structures.
//! - `prefetch`: prefetching cache lines.
//! - `modelled`, `words`: ring structures under loom (`--cfg loom`), for tests of notification.

pub mod area;
pub mod dirty;
pub mod host;
pub mod memory;
#[cfg(loom)]
mod modelled;
mod prefetch;
pub mod slice;
mod spare;
pub mod sum;
mod summed_copy;
#[cfg(loom)]
mod words;

#[cfg(not(loom))]
pub use area::Area;
pub use area::AreaError;
pub use dirty::{DirtyLog, Marker};
/// Changes when the memory of a guest ([`GuestMemory::is_torn`]) or any other mapped file is torn.
pub use file_mapping::generation;
pub use host::HostMemory;
pub use memory::{GuestMemory, LastRegion, Translator, Unmapped};
#[cfg(loom)]
pub use modelled::ModelledArea as Area;
pub use slice::GuestSlice;
pub use spare::Spare;
pub use sum::Sum;

/// The fence between publishing entries and reading the other side's notification setting.
#[cfg(loom)]
pub use loom::sync::atomic::fence;
/// The fence between publishing entries and reading the other side's notification setting.
#[cfg(not(loom))]
pub use std::sync::atomic::fence;
