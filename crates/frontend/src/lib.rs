//! A guest in software: vhost-user front end and virtio-net driver in one process, over a socket to any
//! vhost-user network back end.
//!
//! - [`guest`]: the guest as a whole: connects, negotiates, sets rings up, stops and starts them.
//! - `control`: commands on the control queue.
//! - [`options`]: the properties of the guest.
//! - [`pair`]: a queue pair: frames out and in.
//! - [`ring`]: one ring of a pair: driver, kick and call, counters.
//! - [`buffers`]: the buffers of a ring, with canaries between them.
//! - [`dirty`]: the dirty log of a live migration.
//! - [`memory`]: guest memory that the back end can map.
//! - [`link`](mod@link): the conversation over the socket.
//! - [`raw`]: messages as bytes and descriptors, for front ends that misbehave.
//! - [`error`]: errors, and who caused them.

pub mod buffers;
mod control;
pub mod dirty;
pub mod error;
pub mod guest;
pub mod link;
pub mod memory;
pub mod options;
pub mod pair;
#[cfg(test)]
mod pair_tests;
pub mod raw;
pub mod ring;
mod signal;

pub use dirty::DirtyFile;
pub use error::Error;
pub use guest::{Guest, Listener};
pub use options::{FileRegion, GuestOptions, RegionOptions};
pub use pair::{Frame, Pair};
pub use ring::{Counters, Ring};
/// The driver's side of a ring and the numbers of its format, for guests that misbehave.
pub use virtqueue::{driver, layout};
