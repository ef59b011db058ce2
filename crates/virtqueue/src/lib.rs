//! Ring engines, device side. They know nothing of networks.
//!
//! - [`queue`]: a ring of either format.
//! - [`split`]: the split ring (virtio 1.2, 2.7).
//! - [`packed`]: the packed ring (virtio 1.2, 2.8).
//! - [`chain`]: descriptor chains, copied, checked and translated; how a guest can get them wrong.
//! - [`layout`]: the numbers of the specification.
//! - [`driver`] (feature `driver`): the guest's side of the same rings.
//!
//! Two kinds of error: [`RingError`] is the guest's doing and stops the ring, [`ChainFault`] is the guest's
//! too but costs it only that chain; [`ConfigError`] means that the front end set the ring up wrongly.

pub mod chain;
#[cfg(feature = "driver")]
pub mod driver;
pub mod layout;
pub mod packed;
pub mod queue;
pub mod split;

pub use chain::{Access, Chain, ChainFault, Chains, RingError};
pub use packed::PackedQueue;
pub use queue::{ConfigError, Queue, QueueSetup};
pub use split::SplitQueue;
