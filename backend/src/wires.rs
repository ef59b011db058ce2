//! Taps and macvtaps, opened by name or from descriptors that were handed over.

use std::os::fd::{OwnedFd, RawFd};

use datapath::macvtap::{self, MacvtapOptions, Over};
use datapath::tap::{self, TapOptions};
use datapath::{Macvtap, MacvtapError, TapError, TapQueue};
use vhost_control::SocketError;
use virtio_net::MacAddress;

use crate::error::Error;
use crate::plan::{EndpointPlan, Plan};
use crate::spec::{DatapathSpec, Port};
use crate::sys;

/// Descriptors that the parent process handed over, by their numbers.
#[derive(Debug, Default)]
pub struct Handed(Vec<(RawFd, OwnedFd)>);

impl Handed {
    /// Takes over the descriptors of the plan. Must be called before anything is opened: a file that is opened before could
    /// get such a number, and be taken for a descriptor that was handed over.
    ///
    /// # Errors
    /// When a descriptor is not open.
    pub fn take_over(plan: &Plan) -> Result<Self, Error> {
        let mut handed = Self::default();
        for guest in &plan.guests {
            if let EndpointPlan::Descriptor(fd) = guest.endpoint {
                handed.add(fd, |found| SocketError::Descriptor { fd, found }.into())?;
            }
        }
        for wire in plan.wires() {
            let Some(fd) = wire.descriptor() else { continue };
            handed.add(fd, |found| match wire {
                DatapathSpec::Macvtap { .. } => MacvtapError::Descriptor { fd, found }.into(),
                _ => TapError::Descriptor { fd, found }.into(),
            })?;
        }
        Ok(handed)
    }

    fn add(&mut self, fd: RawFd, refuse: impl FnOnce(String) -> Error) -> Result<(), Error> {
        let taken = sys::take_fd(fd).map_err(|error| refuse(error.to_string()))?;
        self.0.push((fd, taken));
        Ok(())
    }

    /// Takes the descriptor with this number. Each can be taken once.
    pub fn take(&mut self, fd: RawFd) -> Option<OwnedFd> {
        let at = self.0.iter().position(|(number, _)| *number == fd)?;
        Some(self.0.swap_remove(at).1)
    }
}

/// Opens the queues of a tap.
///
/// # Errors
/// See [`TapError`].
pub fn open_tap(
    port: &Port,
    handed: &mut Handed,
    queues: usize,
    napi: bool,
) -> Result<Vec<TapQueue>, TapError> {
    match port {
        Port::Name(name) => tap::open(&TapOptions { name: name.clone(), queues, napi }),
        Port::Descriptor(fd) => match handed.take(*fd) {
            Some(open) => Ok(vec![tap::open_handed(open)?]),
            None => Err(TapError::Descriptor { fd: *fd, found: "not open".into() }),
        },
    }
}

/// The user of a macvtap.
#[derive(Clone, Copy, Debug)]
pub enum Macvtapped {
    /// A guest, with its `--mac`.
    Guest(Option<MacAddress>),
    /// The guests of a switch.
    Switch,
}

/// Opens the queues of a macvtap, and logs which frames it accepts.
///
/// # Errors
/// See [`MacvtapError`].
pub fn open_macvtap(
    port: &Port,
    over: Option<&Over>,
    handed: &mut Handed,
    queues: usize,
    owner: Macvtapped,
) -> Result<Vec<Macvtap>, MacvtapError> {
    let mac = match owner {
        Macvtapped::Guest(mac) => mac,
        Macvtapped::Switch => None,
    };
    let queues = match port {
        Port::Name(name) => macvtap::open(&MacvtapOptions {
            name: name.clone(),
            queues,
            over: over.cloned(),
            address: mac.map(|mac| mac.0),
        })?,
        Port::Descriptor(fd) => match handed.take(*fd) {
            Some(open) => vec![macvtap::open_handed(open)?],
            None => return Err(MacvtapError::Descriptor { fd: *fd, found: "not open".into() }),
        },
    };
    if let Ok(address) = queues[0].address().map(MacAddress) {
        let differs = mac.is_some_and(|mac| mac != address);
        log::log!(
            if differs { log::Level::Warn } else { log::Level::Info },
            "macvtap '{}' accepts only frames to {address} (except in mode passthru): {}{}",
            queues[0].name(),
            match owner {
                Macvtapped::Guest(_) => "the guest needs this address",
                Macvtapped::Switch =>
                    "guests of the switch with other addresses need mode passthru",
            },
            if differs { ", but --mac is another one" } else { "" }
        );
    }
    Ok(queues)
}
