//! What both ring formats have in common.

use std::sync::Arc;

use guest_memory::{Area, GuestMemory, LastRegion};

use crate::error::ConfigError;
use crate::layout::part_lens;
use crate::log::{Logging, RingLog};
use crate::setup::QueueSetup;

/// The translated parts of a ring, its negotiated features, and the region of its last buffer.
#[derive(Debug)]
pub(crate) struct Ring {
    pub(crate) descriptors: Area,
    pub(crate) driver: Area,
    pub(crate) device: Area,
    /// Number of descriptors.
    pub(crate) size: u16,
    /// `VIRTIO_F_IN_ORDER`.
    pub(crate) in_order: bool,
    /// `VIRTIO_F_EVENT_IDX`.
    pub(crate) event_index: bool,
    /// `VIRTIO_F_INDIRECT_DESC`.
    pub(crate) indirect: bool,
    /// Where the translation of the next burst begins.
    pub(crate) last_region: LastRegion,
    setup: QueueSetup,
    /// Boxed, because it is there only during a migration.
    pub(crate) logging: Option<Box<Logging>>,
}

impl Ring {
    /// Translates the parts. The caller has checked the size.
    pub(crate) fn new(setup: &QueueSetup, memory: &Arc<GuestMemory>) -> Result<Self, ConfigError> {
        let [table, driver, device] = part_lens(setup.packed, setup.size);
        let area = |part, address, (len, align)| {
            Area::new(memory, address, len, align)
                .map_err(|source| ConfigError::Area { part, source })
        };
        Ok(Self {
            descriptors: area("descriptor table", setup.descriptor_table, table)?,
            driver: area("driver area", setup.driver_area, driver)?,
            device: area("device area", setup.device_area, device)?,
            size: setup.size,
            in_order: setup.in_order,
            event_index: setup.event_index,
            indirect: setup.indirect,
            last_region: LastRegion::default(),
            setup: *setup,
            logging: None,
        })
    }

    /// From now on, marks what is written, or no longer. Used entries before `next_used` were written before.
    pub(crate) fn set_log(&mut self, log: Option<RingLog>, next_used: u16) {
        self.logging = log.map(|log| Box::new(Logging::new(&self.setup, log, next_used)));
    }

    /// Marks `len` bytes from `offset` of the device area on, which were written, if the front end logs.
    #[inline]
    pub(crate) fn wrote_device(&self, offset: usize, len: usize) {
        if let Some(logging) = &self.logging {
            logging.mark_device(offset, len);
        }
    }

    /// Marks all that the device ever writes, if the front end logs.
    #[cold]
    pub(crate) fn mark_all(&self) {
        if let Some(logging) = &self.logging {
            let [(table, _), _, (device, _)] = part_lens(self.setup.packed, self.size);
            logging.mark_device(0, device);
            if self.setup.packed {
                logging.mark_descriptors(0, table);
            }
        }
    }
}
