//! A far host as the talker (`--peer`).

use serde::{Deserialize, Serialize};

/// A far host, and the wire to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// `ssh:[USER@]HOST[:PORT]`.
    pub host: String,
    /// This host's interface at the wire.
    pub iface: String,
    /// The far host's interface at the wire.
    pub peer_iface: String,
}

impl Peer {
    /// The options of `qemu-scripts/variant`.
    #[must_use]
    pub fn to_args(&self) -> [&str; 6] {
        ["--peer", &self.host, "--iface", &self.iface, "--peer-iface", &self.peer_iface]
    }
}
