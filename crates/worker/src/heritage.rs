//! What a ring leaves to the same ring in another daemon, besides its place.

use virtio_net::MacAddress;

/// What a ring leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heritage {
    /// Frames that were read for its guest and wait for buffers, with their net headers.
    pub frames: Vec<Vec<u8>>,
    /// Addresses that the switch has learned from its guest.
    pub addresses: Vec<MacAddress>,
    /// What the switch's uplink leaves. The first ring of a switch has it.
    pub uplink: Option<UplinkHeritage>,
}

/// What the uplink of a switch leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UplinkHeritage {
    /// Length of the net headers that its datapath is configured for, bytes.
    pub header_len: usize,
    /// Frames that were read and not passed on yet, each with the length of its net header.
    pub frames: Vec<(usize, Vec<u8>)>,
    /// Addresses that the switch has learned from it.
    pub addresses: Vec<MacAddress>,
}
