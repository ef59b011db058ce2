//! The properties of a guest.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use virtio_net::features::{
    BASE, CONFIG_AND_CONTROL, EVENT_IDX, IN_ORDER, INDIRECT_DESC, MAC, MRG_RXBUF, MULTI_QUEUE,
    Negotiated, Offloads, RING_PACKED, VERSION_1,
};
use virtqueue::driver::RingOptions;

use crate::Error;

/// A region of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionOptions {
    /// Guest-physical address: a multiple of 4096.
    pub address: u64,
    /// Length in bytes: a multiple of 4096.
    pub len: u64,
}

/// A part of any file, offered as a region of guest memory.
#[derive(Clone, Copy, Debug)]
pub struct FileRegion<'f> {
    /// Address and length.
    pub region: RegionOptions,
    /// The file.
    pub file: &'f File,
    /// Offset in the file, bytes.
    pub offset: u64,
}

/// The properties of a guest.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Queue pairs; each has a receive and a transmit ring.
    pub queue_pairs: u16,
    /// Whether the guest has a control queue, if the back end offers one. It is ring `2 * queue_pairs`, which must be all
    /// pairs of the device, or one (virtio 1.2, 5.1.2).
    pub control: bool,
    /// Size of each ring: a power of two for split rings, any number up to 32768 for packed ones.
    pub queue_size: u16,
    /// The features that are accepted if the back end offers them. Without `VIRTIO_F_VERSION_1` the guest is a legacy one.
    pub features: u64,
    /// Regions of guest memory. Empty: one region at 0 that is large enough. Rings lie in one region; buffers may cross
    /// adjacent ones.
    pub regions: Vec<RegionOptions>,
    /// The file that holds guest memory; `None`: a memory file.
    pub file: Option<Arc<File>>,
    /// Map guest memory privately, as QEMU does without `share=on`: the back end does not see the guest's writes.
    pub private: bool,
    /// Length of each buffer, net header included.
    pub buffer_len: u32,
    /// Number of buffers in a receive chain, one descriptor each.
    pub receive_pieces: u16,
    /// Number of canary bytes between buffers, which nobody may write;
    /// [`Guest::check_canaries`](crate::Guest::check_canaries) checks them.
    pub canary_len: u32,
    /// Start position of each ring, in descriptors, as if that many had been used before.
    pub start_index: u16,
    /// After a lost connection, say that each split ring continues at 0, as DPDK's virtio-user does
    /// (`virtio_user_start_device`, drivers/net/virtio/virtio_user/virtio_user_dev.c), and each packed ring where it
    /// began, as QEMU does (`virtio_queue_packed_restore_last_avail_idx`, hw/virtio/virtio.c).
    pub forgetful: bool,
    /// Have pages that are written logged from the beginning, before there is a log, as QEMU does when a device starts during a
    /// migration.
    pub log_all: bool,
    /// How long to wait for the back end.
    pub patience: Duration,
}

impl Default for GuestOptions {
    fn default() -> Self {
        Self {
            queue_pairs: 1,
            control: false,
            queue_size: 256,
            features: BASE & !(RING_PACKED | IN_ORDER) | MAC | MULTI_QUEUE,
            regions: Vec::new(),
            file: None,
            private: false,
            buffer_len: 2048,
            receive_pieces: 1,
            canary_len: 4096,
            start_index: 0,
            forgetful: false,
            log_all: false,
            patience: Duration::from_secs(5),
        }
    }
}

impl GuestOptions {
    /// With this many queue pairs.
    #[must_use]
    pub const fn queue_pairs(mut self, count: u16) -> Self {
        self.queue_pairs = count;
        self
    }

    /// With a control queue, and all features that go with it.
    #[must_use]
    pub const fn control(mut self) -> Self {
        self.control = true;
        self.accept(CONFIG_AND_CONTROL, true)
    }

    /// With rings of this size.
    #[must_use]
    pub const fn queue_size(mut self, size: u16) -> Self {
        self.queue_size = size;
        self
    }

    /// Accepting `VIRTIO_F_RING_EVENT_IDX` or not.
    #[must_use]
    pub const fn event_index(self, accept: bool) -> Self {
        self.accept(EVENT_IDX, accept)
    }

    /// Accepting `VIRTIO_F_INDIRECT_DESC` or not.
    #[must_use]
    pub const fn indirect(self, accept: bool) -> Self {
        self.accept(INDIRECT_DESC, accept)
    }

    /// Accepting `VIRTIO_NET_F_MRG_RXBUF` or not.
    #[must_use]
    pub const fn mergeable(self, accept: bool) -> Self {
        self.accept(MRG_RXBUF, accept)
    }

    /// Accepting `VIRTIO_F_VERSION_1` or not.
    #[must_use]
    pub const fn version_1(self, accept: bool) -> Self {
        self.accept(VERSION_1, accept)
    }

    /// Accepting `VIRTIO_F_RING_PACKED` or not.
    #[must_use]
    pub const fn packed(self, accept: bool) -> Self {
        self.accept(RING_PACKED, accept)
    }

    /// Accepting `VIRTIO_F_IN_ORDER` or not.
    #[must_use]
    pub const fn in_order(self, accept: bool) -> Self {
        self.accept(IN_ORDER, accept)
    }

    /// Accepting all checksum and segmentation offloads, in both directions. Receive buffers must then
    /// hold 64 KiB in one chain, unless they are mergeable.
    #[must_use]
    pub const fn offloads(self) -> Self {
        self.accept(Offloads::ALL.from_guest() | Offloads::ALL.to_guest(), true)
    }

    const fn accept(mut self, bits: u64, accept: bool) -> Self {
        self.features = if accept { self.features | bits } else { self.features & !bits };
        self
    }

    /// How many rings there are.
    pub(crate) const fn rings(&self) -> u16 {
        2 * self.queue_pairs + self.control as u16
    }

    /// Checks that the options fit together.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let wrong = |text: String| Err(Error::Options(text));
        if self.queue_pairs == 0 || self.queue_pairs > 128 {
            return wrong(format!("{} queue pairs; expected 1 to 128", self.queue_pairs));
        }
        if self.receive_pieces == 0 || self.receive_pieces > self.queue_size {
            let pieces = self.receive_pieces;
            return wrong(format!("{pieces} buffers a chain; expected 1 to the queue size"));
        }
        if self.buffer_len < 64 {
            return wrong(format!("buffers of {} bytes; expected 64 or more", self.buffer_len));
        }
        let paged = |n: u64| n.is_multiple_of(4096);
        if let Some(region) = self.regions.iter().find(|r| !paged(r.address) || !paged(r.len)) {
            let RegionOptions { address, len } = region;
            return wrong(format!("region {address:#x} of {len:#x} bytes; expected whole pages"));
        }
        Ok(())
    }

    /// Checks that the negotiated format allows rings of this size.
    pub(crate) fn check_rings(&self, features: Negotiated) -> Result<(), Error> {
        let size = self.queue_size;
        let (fits, expected) = if features.packed() {
            ((1..=1 << 15).contains(&size), "1 to 32768")
        } else {
            (size.is_power_of_two(), "a power of two")
        };
        let wrong = || Error::Options(format!("queue size {size}; expected {expected}"));
        if fits { Ok(()) } else { Err(wrong()) }
    }

    /// The options of each ring, as negotiated.
    pub(crate) const fn ring(&self, features: Negotiated) -> RingOptions {
        RingOptions {
            size: self.queue_size,
            packed: features.packed(),
            in_order: features.in_order(),
            event_index: features.event_index(),
            indirect: features.indirect(),
        }
    }

    /// The start position of each ring. The wrap counter of a packed ring starts at 1 and flips with each lap (virtio 1.2,
    /// 2.8.1).
    pub(crate) const fn start_position(&self, features: Negotiated) -> u16 {
        if !features.packed() {
            return self.start_index;
        }
        let (lap, slot) = (self.start_index / self.queue_size, self.start_index % self.queue_size);
        if lap.is_multiple_of(2) { slot | 1 << 15 } else { slot }
    }

    /// The features of `offered` that are accepted.
    pub(crate) fn accepted(&self, offered: u64) -> Negotiated {
        let mut features = self.features & offered;
        if self.queue_pairs == 1 {
            features &= !MULTI_QUEUE;
        }
        Negotiated(features)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_ring_starts_in_the_lap_of_its_index() {
        let start = |size, index, packed| {
            let options = GuestOptions { start_index: index, ..GuestOptions::default() };
            let options = options.queue_size(size).packed(packed);
            options.start_position(Negotiated(options.features))
        };
        assert_eq!(start(7, 0, true), 0x8000);
        assert_eq!(start(7, 6, true), 0x8006);
        assert_eq!(start(7, 7, true), 0);
        assert_eq!(start(7, 15, true), 0x8001);
        assert_eq!(start(1 << 15, 0xffff, true), 0x7fff);
        assert_eq!(start(256, 0xffff, false), 0xffff);
    }

    #[test]
    fn a_ring_has_a_size_that_its_format_allows() {
        for (size, split, packed) in
            [(0, false, false), (1, true, true), (7, false, true), (256, true, true)]
        {
            let options = GuestOptions::default().queue_size(size);
            let check = |packed| {
                let options = options.clone().packed(packed);
                options.check_rings(Negotiated(options.features)).is_ok()
            };
            assert_eq!((check(false), check(true)), (split, packed), "{size}");
        }
        assert!(
            GuestOptions::default()
                .queue_size(40_000)
                .packed(true)
                .check_rings(Negotiated(RING_PACKED))
                .is_err()
        );
    }
}
