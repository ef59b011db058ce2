//! The network device (virtio 1.2, 5.1) over the rings: what a frame and its net header mean.
//!
//! - [`features`]: feature bits, and what was negotiated.
//! - [`header`]: the net header, with the offloads pending for a frame.
//! - [`config`]: the device configuration space.
//! - [`control`]: commands of the control queue.
//! - [`announcement`]: the frame that says where a guest is after a live migration.
//! - [`transmit`]: a burst of frames from the guest.
//! - [`receive`]: room for a burst of frames to the guest, mergeable or not.
//! - [`offload`]: software GSO and checksum offload, done while a frame is copied.
//! - [`arrival`]: offloads pending for a received frame that has no net header.
//! - `gro`: when frames of one TCP or UDP flow become one packet.
//! - `packet`: offsets of a frame's headers.

pub mod announcement;
pub mod arrival;
pub mod config;
pub mod control;
pub mod features;
mod gro;
pub mod header;
pub mod held;
pub mod offload;
pub mod packet;
pub mod receive;
mod run;
pub mod transmit;

pub use config::{ConfigSpace, LinkSpeed, MacAddress};
pub use features::{Negotiated, Offloads};
pub use gro::Link;
pub use header::NetHeader;
pub use held::HeldChains;
pub use offload::{SegmentProgress, SoftwareOffload};
pub use receive::{GuestRoom, Placed, ReceiveState};
pub use transmit::{Frame, Frames, GroBurst, GroStep, TransmitBurst, TransmitGro};

/// Largest number of packets in a burst.
pub const BURST_MAX: usize = 64;
/// Longest frame that is carried, bytes without the net header: a 64 KiB packet, its link header, and VLAN tags.
pub const FRAME_LEN_MAX: usize = 65_536 + 64;
