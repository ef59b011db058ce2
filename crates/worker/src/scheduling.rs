//! Where a worker's thread runs.

/// Where and how urgently a worker's thread runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scheduling {
    /// The CPU that it is pinned to.
    pub cpu: Option<usize>,
    /// The priority in the real-time class `SCHED_FIFO`, 1 to 99.
    pub fifo: Option<u8>,
}
