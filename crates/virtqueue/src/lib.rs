//! Ring engines, device side. They know nothing of networks.
//!
//! - [`split`]: the split ring (virtio 1.2, 2.7).
//! - [`chain`]: a descriptor chain, copied, checked and translated; how a guest can get it wrong.
//! - [`layout`]: the numbers of the specification.
//! - [`driver`] (feature `driver`): the guest's side of the same rings.
//!
//! Two kinds of error: [`Broken`] is the guest's doing and stops the ring, [`ChainFault`] is the guest's
//! too but costs it only that chain; [`ConfigError`] means that the front end set the ring up wrongly.

pub mod chain;
#[cfg(feature = "driver")]
pub mod driver;
pub mod layout;
pub mod split;

pub use chain::{Access, Broken, Chain, ChainFault, SLICES_MAX, Slices, Taken};
pub use split::{ConfigError, QueueSetup, SplitQueue};
