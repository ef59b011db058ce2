//! How the front end sets a ring up.

use ring_journal::RingIdentity;

/// The parameters of a ring, as the front end sends them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Number of descriptors: at most 32768; of a split ring a power of two.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptor_table: u64,
    /// Guest-physical address of the driver area ("available ring").
    pub driver_area: u64,
    /// Guest-physical address of the device area ("used ring").
    pub device_area: u64,
    /// Where the device continues: the available index (split), or the next descriptor with the driver's wrap counter in
    /// bit 15 (packed). A split ring continues at its used index instead, and a new packed ring with wrap counter 1.
    pub next_available: u16,
    /// Whether `VIRTIO_F_RING_PACKED` was negotiated.
    pub packed: bool,
    /// Whether `VIRTIO_F_IN_ORDER` was negotiated.
    pub in_order: bool,
    /// Whether `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_index: bool,
    /// Whether `VIRTIO_F_INDIRECT_DESC` was negotiated.
    pub indirect: bool,
}

impl QueueSetup {
    /// What makes this ring the same as one that was noted.
    #[must_use]
    pub const fn identity(&self) -> RingIdentity {
        let &Self { size, next_available, packed, in_order, event_index, indirect, .. } = self;
        RingIdentity {
            parts: [self.descriptor_table, self.driver_area, self.device_area],
            size,
            said: next_available,
            packed,
            in_order,
            event_index,
            indirect,
        }
    }
}
