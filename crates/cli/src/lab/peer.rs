//! The flags of a far host.

use clap::Args;
use lab::far_host::Peer;

/// A far host as the talker.
#[derive(Debug, Args)]
pub struct PeerFlags {
    /// The talker is this host, and the wire is --iface: ssh:[USER@]HOST[:PORT]
    #[arg(long, value_name = "ssh:HOST", requires_all = ["iface", "peer_iface"])]
    peer: Option<String>,
    /// With --peer: the interface at the wire; the lab uses all of it
    #[arg(long, value_name = "NIC", requires = "peer")]
    iface: Option<String>,
    /// With --peer: the far host's interface at the wire
    #[arg(long, value_name = "NIC", requires = "peer")]
    peer_iface: Option<String>,
}

impl PeerFlags {
    /// The far host, if there is one.
    pub fn peer(&self) -> Option<Peer> {
        let Self { peer: Some(host), iface: Some(iface), peer_iface: Some(peer_iface) } = self
        else {
            return None;
        };
        Some(Peer { host: host.clone(), iface: iface.clone(), peer_iface: peer_iface.clone() })
    }
}
