//! Marks what the device writes to the ring itself, while the front end logs (vhost-user, "Migration").
//!
//! A split ring: used entries, the used index, and the flags or `avail_event`. A packed ring: used descriptors, and the
//! device's event suppression structure. All of it is marked at its own guest-physical address.
//!
//! A front end also gives an address at which the used ring is to be logged (`SET_VRING_ADDR`, `log_guest_addr`). QEMU
//! gives that of the device area in either format (`vhost_virtqueue_set_addr`, hw/virtio/vhost.c). DPDK's vhost takes it
//! for that of the descriptor ring if the ring is packed (`vhost_log_used_vring`, lib/vhost/vhost.h), so with QEMU it marks
//! other pages than it wrote. Here a device area is marked there too, if the address is another one than its own, and
//! used descriptors are marked where they are.

use std::sync::Arc;

use guest_memory::{DirtyLog, Marker};

use crate::setup::QueueSetup;

/// The log of a ring.
#[derive(Clone, Debug)]
pub struct RingLog {
    /// Where pages are marked.
    pub log: Arc<DirtyLog>,
    /// Where the front end wants the device area logged, guest-physical, if it said that.
    pub device_area: Option<u64>,
}

/// The log of a ring, with what has to be marked of its parts.
#[derive(Debug)]
pub(crate) struct Logging {
    log: Arc<DirtyLog>,
    descriptor_table: u64,
    /// Where the device area is logged: at its own address, and perhaps at another one.
    device_areas: [u64; 2],
    /// Up to here used entries are marked: the used index, or the position in a packed ring.
    marked: u16,
}

impl Logging {
    /// For a ring whose used entries before `next_used` are not to be marked.
    pub(crate) fn new(setup: &QueueSetup, log: RingLog, next_used: u16) -> Self {
        let own = setup.device_area;
        Self {
            log: log.log,
            descriptor_table: setup.descriptor_table,
            device_areas: [own, log.device_area.unwrap_or(own)],
            marked: next_used,
        }
    }

    pub(crate) fn marker(&self) -> Marker<'_> {
        self.log.marker()
    }

    /// Marks `len` bytes from `offset` of the device area on.
    #[cold]
    pub(crate) fn mark_device(&self, offset: usize, len: usize) {
        let marker = self.marker();
        for area in self.device_areas {
            marker.mark(area.saturating_add(offset as u64), len as u64);
        }
    }

    /// Marks `len` bytes from `offset` of the descriptor table on.
    #[cold]
    pub(crate) fn mark_descriptors(&self, offset: usize, len: usize) {
        self.marker().mark(self.descriptor_table + offset as u64, len as u64);
    }

    /// Returns up to where used entries are marked, and notes that they are up to `next_used`.
    pub(crate) const fn advance(&mut self, next_used: u16) -> u16 {
        std::mem::replace(&mut self.marked, next_used)
    }
}

/// The entries from slot `from` to before slot `to` of a ring of `size`, as one run or two: first slot and number.
pub(crate) fn runs(from: usize, to: usize, size: usize) -> [(usize, usize); 2] {
    if from < to { [(from, to - from), (0, 0)] } else { [(from, size - from), (0, to)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_that_wrap_are_two_runs() {
        assert_eq!(runs(1, 4, 8), [(1, 3), (0, 0)]);
        assert_eq!(runs(6, 2, 8), [(6, 2), (0, 2)]);
        assert_eq!(runs(6, 0, 8), [(6, 2), (0, 0)]);
        assert_eq!(runs(3, 3, 8), [(3, 5), (0, 3)], "a whole lap");
    }
}
