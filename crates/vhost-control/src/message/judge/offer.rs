//! What a device offers its front ends, and whether they take no more than that.

use std::ops::RangeInclusive;

use log_limit::LogLimit;
use virtio_net::Negotiated;
use virtio_net::features::{ACCESS_PLATFORM, NOT_FOR_QEMU, Names};

/// The MTUs that a device may have, bytes (virtio 1.2, 5.1.4.1, and the width of the field).
const MTUS: RangeInclusive<u64> = 68..=u16::MAX as u64;

/// What front ends may choose from.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// The virtio features offered.
    pub features: u64,
    /// The largest ring.
    pub queue_size: u16,
    /// The MTU of the device, bytes.
    pub mtu: u16,
}

impl Offer {
    /// Those of the features `all` that are for QEMU, or for any other front end.
    pub const fn for_front_end(all: u64, is_qemu: bool) -> u64 {
        all & !if is_qemu { NOT_FOR_QEMU } else { ACCESS_PLATFORM }
    }

    /// Checks that only what is offered was negotiated. With anything else the rings could not be read, so the connection
    /// ends.
    ///
    /// # Errors
    /// Which features are wrong, and what to do.
    pub fn expect(&self, negotiated: Negotiated) -> Result<(), String> {
        if negotiated.has(ACCESS_PLATFORM) {
            return Err("a virtual IOMMU translates the addresses of its guest's device, which this daemon cannot do; start \
                        QEMU without intel-iommu or virtio-iommu, or leave out iommu_platform=on"
                .into());
        }
        let lacking = negotiated.0 & !self.features;
        if lacking == 0 {
            return Ok(());
        }
        Err(format!(
            "its guest negotiated features that are not offered: {}; a guest that goes on after a restart needs the same \
             datapath and --features as before; otherwise restart the guest",
            Names(lacking)
        ))
    }

    /// Checks the MTU that the front end gives its guest (QEMU's `host_mtu=`). With a larger one than the device's a guest
    /// works as far as its frames are carried, so that is logged only.
    ///
    /// # Errors
    /// When no device may have that MTU.
    pub fn expect_mtu(&self, mtu: u64, log: Option<&LogLimit>) -> Result<(), String> {
        if !MTUS.contains(&mtu) {
            let (min, max) = (MTUS.start(), MTUS.end());
            return Err(format!("the MTU is {mtu} bytes; expected {min} to {max}"));
        }
        if mtu > self.mtu.into()
            && let Some(log) = log
        {
            log_limit::warn!(
                log,
                "the front end gives the guest an MTU of {mtu} bytes (QEMU: host_mtu=), and this device has {}: longer frames \
                 may be dropped; use the same MTU for both",
                self.mtu
            );
        }
        Ok(())
    }
}
