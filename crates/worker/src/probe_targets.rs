//! Which packets are recorded one by one.

use burst_trace::CyclicFrames;

/// Packets that are recorded one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeTargets {
    /// Probe packets to or from these UDP ports.
    pub udp_ports: Vec<u16>,
    /// Layer-2 frames with a counter, at most [`CYCLIC_MAX`](burst_trace::cyclic::CYCLIC_MAX) descriptions. The first one
    /// that fits a frame counts.
    pub cyclic: Vec<CyclicFrames>,
}

impl ProbeTargets {
    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.udp_ports.is_empty() && self.cyclic.is_empty()
    }
}
