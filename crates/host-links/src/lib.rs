//! The host's network interfaces, asked of the kernel by netlink. The daemon and the tool both use it.
//!
//! - [`link`]: one interface as `ip -d link show` has it.
//! - [`macvtap`]: makes and removes a macvtap.
//! - [`watch`]: reports when one interface goes down, comes up, or is removed.
//! - [`notices`]: reports that any interface has changed.
//! - [`ethtool`]: channels, ring sizes and offloads.
//! - [`holder`]: the processes that keep an XDP program on an interface, or use a tap.
//! - [`xdp`]: what the driver can do for XDP and AF_XDP.
//! - `socket`, `family`, `attributes`: requests and answers, for all of the above.
//!
//! Messages are written and read by `netlink-packet-route` and `netlink-packet-generic`. No crate knows the `netdev`
//! family, and `ethtool` 0.3 leaves out the feature with bit 0 (`tx-scatter-gather`); of these two families the
//! attribute numbers stand here.

mod attributes;
pub mod ethtool;
mod family;
pub mod holder;
pub mod link;
pub mod macvtap;
pub mod notices;
mod socket;
pub mod watch;
pub mod xdp;
