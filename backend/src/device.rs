//! The device that front ends of a guest are offered.

use std::sync::Arc;

use datapath::Capabilities;
use log_limit::LogLimit;
use vhost_control::{Device, Witness};
use virtio_net::{ConfigSpace, features};
use worker::Mailbox;

use crate::error::Error;
use crate::link_speed;
use crate::plan::GuestPlan;

/// The capabilities of the guest's datapath, with the MTU that the guest is given.
pub fn with_mtu(plan: &GuestPlan, capabilities: &Capabilities) -> Result<Capabilities, Error> {
    let mtu = plan.mtu.unwrap_or(capabilities.mtu);
    if mtu > capabilities.mtu {
        let (datapath, found) = (plan.datapath.to_string(), capabilities.mtu);
        return Err(Error::Mtu { datapath, asked: mtu, found });
    }
    Ok(Capabilities { mtu, ..*capabilities })
}

/// The device. `mailboxes`: one for each worker of the guest.
pub fn device(
    plan: &GuestPlan,
    log: Arc<LogLimit>,
    capabilities: &Capabilities,
    mailboxes: &[Arc<Mailbox>],
    witnesses: Vec<Box<dyn Witness>>,
) -> Device {
    let offloads = capabilities.from_guest.from_guest() | capabilities.to_guest.to_guest();
    // Without an interface nothing limits the MTU.
    let has_mtu = plan.mtu.is_some() || capabilities.mtu < u16::MAX;
    let mtu = if has_mtu { features::MTU } else { 0 };
    let offered = Device::features(offloads, plan.queue_pairs, plan.mac.is_some()) | mtu;
    let mailbox = |pair| Arc::clone(&mailboxes[usize::from(pair) % mailboxes.len()]);
    let link = link_speed::of(&plan.datapath);
    Device {
        log,
        features: features::without(offered, plan.withheld),
        before: 0,
        journal: None,
        state: None,
        config: ConfigSpace::new(plan.mac, plan.queue_pairs, capabilities.mtu, link),
        queue_pairs: plan.queue_pairs,
        queue_size: plan.queue_size,
        workers: (0..plan.queue_pairs).map(mailbox).collect(),
        memory_max: Device::memory_max(1),
        witnesses,
    }
}
