//! Virtqueues, device side: the split and the packed ring (virtio 1.2, 2.7 and 2.8). Nothing here knows of networks.
//!
//! - [`Queue`]: a ring of either format, set up from a [`QueueSetup`].
//! - [`chain`]: the chains of a burst: copied, checked and translated.
//! - [`layout`]: numbers and structures of the specification.
//! - `driver` (feature `driver`): the guest's side of the same rings.
//!
//! Inside: `split` and `packed` are the two engines, `ring` is what both have in common, `collect` follows chains of
//! several buffers.
//!
//! Errors are named by who is at fault (`error`): [`ChainFault`], the guest with one chain; [`RingError`], the guest with
//! the ring, which stops; [`ConfigError`], the front end, which set the ring up wrongly.

pub mod chain;
mod collect;
#[cfg(feature = "driver")]
pub mod driver;
mod error;
pub mod layout;
mod packed;
mod queue;
mod ring;
mod setup;
mod split;

pub use chain::{Access, Chain, Chains};
pub use error::{ChainFault, ConfigError, RingError};
pub use packed::PackedQueue;
pub use queue::Queue;
pub use setup::QueueSetup;
pub use split::SplitQueue;
