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
//! - [`area`]: long-lived access to ring structures.

pub mod area;
pub mod memory;
pub mod slice;

pub use area::{Area, AreaError};
pub use memory::{Cursor, GuestMemory, Unmapped};
pub use slice::{GuestSlice, Spare};
