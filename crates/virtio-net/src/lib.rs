//! What a frame means: virtio-net (virtio 1.2, 5.1) over the rings.
//!
//! - [`features`]: feature bits, and what was negotiated.
//! - [`header`]: the net header, which says what is left to do to a frame.
//! - [`config`]: the device configuration space.
//! - [`transmit`]: a burst of frames from the guest.
//! - [`receive`]: room for a burst of frames to the guest, mergeable or not.
//! - [`offload`]: checksums and segments, done with the copy of a frame.
//! - [`arrival`]: what is left to do to a frame that does not say so.
//! - `merge`: TCP segments that came one by one, as one packet.
//! - `packet`: where a frame's headers are.

pub mod arrival;
pub mod config;
pub mod features;
pub mod header;
pub mod held;
mod merge;
pub mod offload;
pub mod packet;
pub mod receive;
mod run;
pub mod transmit;

pub use config::{ConfigSpace, MacAddress};
pub use features::{Negotiated, Offloads};
pub use header::NetHeader;
pub use held::HeldChains;
pub use merge::Link;
pub use offload::SoftwareOffload;
pub use receive::{GuestRoom, Placed, ReceiveState};
pub use transmit::{Frame, Frames, TransmitBurst};

/// The most packets in one burst.
pub const BURST_MAX: usize = 64;
/// The longest frame that is carried, net header not counted: a 64 KiB segment with its link header and
/// some room for tags.
pub const FRAME_LEN_MAX: usize = 65_536 + 64;
