//! Virtqueues, device side: the split and the packed ring (virtio 1.2, 2.7 and 2.8). Nothing here knows of networks.
//!
//! - [`Queue`]: a ring of either format, set up from a [`QueueSetup`].
//! - [`chain`]: the chains of a burst: copied, checked and translated.
//! - [`RingLog`]: which pages the device writes, for a live migration.
//! - [`layout`]: numbers and structures of the specification.
//! - `driver` (feature `driver`): the guest's side of the same rings.
//!
//! Inside: `split` and `packed` are the two engines, `ring` is what both have in common, `collect` follows chains of
//! several buffers. `resume` continues a ring where a daemon before this one stood.
//!
//! # A burst, seen from both sides
//!
//! ```
//! use std::sync::Arc;
//!
//! use guest_memory::GuestMemory;
//! use guest_memory::memory::Mapping;
//! use virtqueue::driver::{Buffer, Driver, RingOptions};
//! use virtqueue::{Access, Chains, Queue};
//! use vm_memory::GuestAddress;
//!
//! // One region of guest memory. The ring is at 0; the driver writes a packet to 0x8000.
//! let map = Mapping::from_ranges(&[(GuestAddress(0), 0x10000)])?;
//! let memory = Arc::new(GuestMemory::new(Arc::new(map)));
//! let mut driver = Driver::new(&memory, 0, RingOptions::of(256), 0);
//! memory.write(0x8000, b"ping").unwrap();
//!
//! // The front end passes the ring to the device, which asks for kicks before it sleeps.
//! let mut queue = Queue::new(&driver.setup(), &memory)?;
//! queue.enable_notification();
//! assert!(!queue.has_grown(), "nothing came meanwhile: the device sleeps");
//!
//! // The driver offers the packet, publishes it, and kicks if the device asked for it.
//! driver.add(&[Buffer { address: 0x8000, len: 4, writable: false }]).unwrap();
//! driver.publish();
//! assert!(driver.needs_notification());
//!
//! // The device takes a burst, uses the copied and checked buffers, and gives the chains back.
//! queue.disable_notification();
//! assert_eq!(queue.available_descriptors()?, 1);
//! let mut chains = Chains::new();
//! queue.take(&memory, Access::Read, 64, &mut chains)?;
//! for chain in chains.all() {
//!     let mut bytes = [0; 4];
//!     chains.buffers(chain)[0].read(0, &mut bytes);
//!     assert_eq!(&bytes, b"ping");
//! }
//! queue.complete_read(chains.all());
//! queue.publish();
//! assert!(queue.needs_notification(), "the device writes the call eventfd");
//!
//! // The driver gets its buffer back.
//! assert_eq!(driver.used().map(|used| used.len), Some(0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Errors are named by who is at fault (`error`): [`ChainFault`], the guest with one chain; [`RingError`], the guest with
//! the ring, which stops; [`ConfigError`], the front end, which set the ring up wrongly.

pub mod chain;
mod collect;
#[cfg(feature = "driver")]
pub mod driver;
mod error;
pub mod layout;
mod log;
mod packed;
mod queue;
mod resume;
mod ring;
mod setup;
mod split;

pub use chain::{Access, Chain, Chains};
pub use error::{ChainFault, ConfigError, RingError, Unfit};
pub use log::RingLog;
pub use packed::PackedQueue;
pub use queue::Queue;
pub use resume::Resumed;
pub use setup::QueueSetup;
pub use split::SplitQueue;
