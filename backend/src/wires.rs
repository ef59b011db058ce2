//! What was handed over open, and the wires that are opened with or without that.

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

/// What whoever started us left open for us, by its number.
#[derive(Debug, Default)]
pub struct Handed(Vec<(RawFd, OwnedFd)>);

impl Handed {
    /// Takes the descriptors that the plan names. To be called before anything is opened: it could get such a
    /// number, and be taken for what was handed over.
    ///
    /// # Errors
    /// When there is no such descriptor.
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

    /// What was handed over under this number. Each is there for one who asks.
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

/// Whom a macvtap is for.
#[derive(Clone, Copy, Debug)]
pub enum Macvtapped {
    /// A guest, with this address if it was given one.
    Guest(Option<MacAddress>),
    /// The guests of a switch.
    Switch,
}

/// Opens the queues of a macvtap, and tells which frames it lets in.
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
            "macvtap '{}' lets in frames to {address} only (but for mode passthru): {}{}",
            queues[0].name(),
            match owner {
                Macvtapped::Guest(_) => "the guest needs this address",
                Macvtapped::Switch => "guests of a switch with other addresses need that mode",
            },
            if differs { ", and --mac is another one" } else { "" }
        );
    }
    Ok(queues)
}
