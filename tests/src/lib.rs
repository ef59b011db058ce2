//! End to end: the parts that tests put together.
//!
//! - [`dpdk`]: DPDK as the peer, as a guest or as a back end.

pub mod dpdk;
