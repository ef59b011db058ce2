//! What a frame means: virtio-net (virtio 1.2, 5.1) over the rings.
//!
//! - [`features`]: feature bits, and what was negotiated.
//! - [`config`]: the device configuration space.
//! - [`transmit`]: a burst of frames from the guest.
//! - [`receive`]: room for a burst of frames to the guest, mergeable or not.

pub mod config;
pub mod features;
pub mod receive;
mod run;
pub mod transmit;

pub use config::{ConfigSpace, MacAddress};
pub use features::{Negotiated, Offloads};
pub use receive::{GuestRoom, Placed, ReceiveState};
pub use transmit::{Frame, Frames, TransmitBurst};

/// The most packets in one burst.
pub const BURST_MAX: usize = 64;
/// The longest frame that is carried, net header not counted: a 64 KiB segment with its link header and
/// some room for tags.
pub const FRAME_LEN_MAX: usize = 65_536 + 64;
