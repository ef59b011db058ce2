//! End to end: the parts that tests put together.
//!
//! - [`daemon`]: the daemon under test.
//! - [`dpdk`]: DPDK as the peer, as a guest or as a back end.
//! - [`frames`]: frames that a reflecting back end must return.
//! - [`packets`]: packets that a kernel answers.
//! - [`trace`]: what the daemon recorded, and what must hold of it.

pub mod daemon;
pub mod dpdk;
pub mod frames;
pub mod packets;
pub mod trace;
