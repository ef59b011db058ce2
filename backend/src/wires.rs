//! Taps, macvtaps and interfaces with AF_XDP sockets, opened by name or from descriptors that were handed over.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datapath::af_xdp::{Gro, Options};
use datapath::macvtap::{self, MacvtapOptions, Over};
use datapath::tap::{self, TapOptions};
use datapath::{AfXdp, AfXdpError, Macvtap, MacvtapError, TapError, TapQueue};
use vhost_control::SocketError;
use virtio_net::MacAddress;

use crate::error::Error;
use crate::manager;
use crate::plan::{EndpointPlan, GuestPlan, Plan};
use crate::spec::{DatapathSpec, Port};
use crate::sys;
use crate::takeover::give::Wire;
use crate::takeover::take::{Inherited, Taking};

/// Descriptors that the parent process handed over, by their numbers.
#[derive(Debug, Default)]
pub struct Handed {
    parents: Vec<(RawFd, OwnedFd)>,
    /// Sockets that the service manager made, by their paths.
    listening: Vec<(PathBuf, OwnedFd)>,
    /// What the daemon before hands over instead.
    pub taking: Option<Taking>,
    /// The owner of sockets that this daemon makes, if it is another user.
    pub socket_owner: Option<u32>,
}

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
        for fd in manager::listening() {
            if handed.parents.iter().all(|(number, _)| *number != fd) {
                handed.listen(fd)?;
            }
        }
        Ok(handed)
    }

    /// Takes over a socket that the service manager made.
    fn listen(&mut self, fd: RawFd) -> Result<(), Error> {
        let refuse = |found: String| SocketError::Activation { fd, found };
        let socket = sys::take_fd(fd).map_err(|error| refuse(error.to_string()))?;
        let socket = UnixListener::from(socket);
        let address = socket.local_addr().map_err(|error| refuse(error.to_string()))?;
        let path = address.as_pathname().ok_or_else(|| refuse("a socket without a path".into()))?;
        self.listening.push((path.into(), socket.into()));
        Ok(())
    }

    /// The socket at this path, if the service manager made one.
    pub fn listening(&mut self, path: &Path) -> Option<OwnedFd> {
        let at = self.listening.iter().position(|(made, _)| made == path)?;
        Some(self.listening.swap_remove(at).1)
    }

    /// The paths of sockets that the service manager made, and no guest has.
    pub fn spare(&self) -> impl Iterator<Item = &Path> {
        self.listening.iter().map(|(path, _)| path.as_path())
    }

    /// The guests of the daemon before, which has all that the plan names.
    pub const fn from_daemon(taking: Taking) -> Self {
        Self {
            parents: Vec::new(),
            listening: Vec::new(),
            taking: Some(taking),
            socket_owner: None,
        }
    }

    /// What the daemon before hands over of the guest with this name, if there is one.
    pub fn inherited(&mut self, name: &str) -> Option<&mut Inherited> {
        self.taking.as_mut()?.guest(name)
    }

    /// The guest of a switch with which its uplink is handed over: the one that came with it, or the first.
    pub fn owner_of_uplink<'p>(&mut self, guests: &[&'p GuestPlan]) -> &'p GuestPlan {
        let mut has_queues =
            |guest: &&&GuestPlan| self.inherited(&guest.name).is_some_and(|it| it.has_wire());
        guests.iter().find(&mut has_queues).unwrap_or(&guests[0])
    }

    fn add(&mut self, fd: RawFd, refuse: impl FnOnce(String) -> Error) -> Result<(), Error> {
        let taken = sys::take_fd(fd).map_err(|error| refuse(error.to_string()))?;
        self.parents.push((fd, taken));
        Ok(())
    }

    /// Takes the descriptor with this number. Each can be taken once.
    pub fn take(&mut self, fd: RawFd) -> Option<OwnedFd> {
        let at = self.parents.iter().position(|(number, _)| *number == fd)?;
        Some(self.parents.swap_remove(at).1)
    }
}

/// Opens the queues of a tap, or goes on with those of the daemon before for the guest `name`.
///
/// # Errors
/// See [`TapError`].
pub fn open_tap(
    port: &Port,
    handed: &mut Handed,
    queues: usize,
    (napi, gro): (bool, Gro),
    name: &str,
) -> Result<Vec<TapQueue>, TapError> {
    let options = |name: &str| TapOptions { name: name.into(), queues, napi };
    let queues = if let Some(inherited) = handed.inherited(name) {
        tap::go_on(std::mem::take(&mut inherited.queues), port.name().map(options).as_ref())?
    } else {
        match port {
            Port::Name(name) => tap::open(&options(name))?,
            Port::Descriptor(fd) => match handed.take(*fd) {
                Some(open) => vec![tap::open_handed(open)?],
                None => return Err(TapError::Descriptor { fd: *fd, found: "not open".into() }),
            },
        }
    };
    Ok(match gro {
        Gro::On => queues.into_iter().map(TapQueue::with_gro).collect(),
        Gro::Off => queues,
    })
}

/// Opens an interface by AF_XDP, or goes on with that of the daemon before for the guest `name`.
///
/// # Errors
/// See [`AfXdpError`].
pub fn open_af_xdp(
    ifname: &str,
    handed: &mut Handed,
    pairs: usize,
    options: &Options,
    name: &str,
) -> Result<Vec<AfXdp>, AfXdpError> {
    let Some(taking) = &mut handed.taking else { return AfXdp::open(ifname, pairs, options) };
    let shared = taking.guest(name).and_then(|inherited| inherited.interface.take());
    let shared = shared.ok_or_else(|| AfXdpError::Missing(ifname.into()))?;
    let all = AfXdp::go_on(shared, options)?;
    if all.len() != pairs {
        return Err(AfXdpError::Missing(ifname.into()));
    }
    all.first().into_iter().for_each(|first| taking.add_interface(first.estate()));
    Ok(all)
}

/// What another daemon gets of an interface with AF_XDP sockets.
pub fn share_af_xdp(all: &[AfXdp]) -> Wire {
    all.first().map_or(Wire::Nothing, |first| Wire::Interface(Arc::clone(first.estate())))
}

/// The queues, which join frames from the guest or do not.
pub fn join_macvtaps(queues: Vec<Macvtap>, gro: Gro) -> Vec<Macvtap> {
    match gro {
        Gro::On => queues.into_iter().map(Macvtap::with_gro).collect(),
        Gro::Off => queues,
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
    (owner, guest): (Macvtapped, &str),
) -> Result<Vec<Macvtap>, MacvtapError> {
    let mac = match owner {
        Macvtapped::Guest(mac) => mac,
        Macvtapped::Switch => None,
    };
    let options = |name: &str| MacvtapOptions {
        name: name.into(),
        queues,
        over: over.cloned(),
        address: mac.map(|mac| mac.0),
    };
    if let Some(inherited) = handed.inherited(guest) {
        let (shared, made) = (std::mem::take(&mut inherited.queues), inherited.made);
        let queues = macvtap::go_on(shared, port.name().map(options).as_ref(), made)?;
        if let (Some(taking), Some(queue)) = (&mut handed.taking, queues.first()) {
            taking.add_link(queue.link());
        }
        return Ok(queues);
    }
    let queues = match port {
        Port::Name(name) => macvtap::open(&options(name))?,
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

/// What another daemon gets of a tap.
///
/// # Errors
/// When this process has no descriptor left.
pub fn share_taps(queues: &[TapQueue]) -> io::Result<Wire> {
    Ok(Wire::Queues(queues.iter().map(TapQueue::share).collect::<Result<_, _>>()?, None))
}

/// What another daemon gets of a macvtap.
///
/// # Errors
/// As [`share_taps`].
pub fn share_macvtaps(queues: &[Macvtap]) -> io::Result<Wire> {
    let shared = queues.iter().map(Macvtap::share).collect::<Result<_, _>>()?;
    Ok(Wire::Queues(shared, queues.first().and_then(Macvtap::link)))
}
