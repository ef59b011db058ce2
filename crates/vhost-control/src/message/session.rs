//! One front end's view of the device, on which the framework acts: features, memory, the configuration space.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guest_memory::GuestMemory;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::VhostUserBackend;
use virtio_net::Negotiated;
use virtio_net::control::Command;
use virtio_net::features::{self, Names};
use vm_memory::{GuestAddressSpace as _, GuestMemoryBackend as _, GuestMemoryRegion as _};
use vmm_sys_util::epoll::EventSet;
use worker::{Custody, Mailbox};

use super::judge::Offer;
use super::regions::Limits;
use super::transfer::Transfers;
use super::vring::{Memory, Vring};
use crate::announcer::Announcer;
use crate::control::{ControlQueue, Settings};
use crate::device::Device;
use crate::ring::RingControl;
use crate::sharing::{PrivateMemory, Sharing};

/// One front end's view of the device, from its connection to its end.
#[derive(Debug)]
pub struct Session {
    device: Arc<Device>,
    /// The front end's process, where it is known.
    peer: Option<u32>,
    rings: Vec<Arc<RingControl>>,
    /// What the guest negotiated last.
    features: AtomicU64,
    /// Whether pages that are written are logged.
    logging: AtomicBool,
    control: Arc<ControlQueue>,
    sharing: Arc<Sharing>,
    /// The guest's memory. Held as long as the framework may have it mapped, because the framework reads it too.
    memory: Mutex<Option<Arc<GuestMemory>>>,
    refused: Mutex<Option<PrivateMemory>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(peer) = self.peer {
            self.device.witnesses.iter().for_each(|witness| witness.gone(peer));
        }
    }
}

impl Session {
    /// For a new connection, whose descriptors `custody` closes.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn new(
        device: &Arc<Device>,
        peer: Option<u32>,
        front: BorrowedFd<'_>,
        custody: &Arc<Custody>,
    ) -> io::Result<Self> {
        let control = Arc::new(ControlQueue::new(&device.log, device.queue_pairs)?);
        let announcer = Arc::new(Announcer::new(&device.log, device.workers.first()));
        let ring = |index: u16| {
            let mailbox = device.workers.get(usize::from(index / 2)).cloned();
            Arc::new(RingControl::new(device, index, mailbox, &control, &announcer, custody))
        };
        // The last one can only be the control queue (virtio 1.2, 5.1.2).
        let rings = (0..=device.queue_pairs * 2).map(ring).collect();
        if let Some(peer) = peer {
            device.witnesses.iter().for_each(|witness| witness.connected(peer));
        }
        Ok(Self {
            device: Arc::clone(device),
            peer,
            rings,
            features: AtomicU64::new(0),
            logging: AtomicBool::new(false),
            control,
            sharing: Arc::new(Sharing::new(peer, Some(front.try_clone_to_owned()?))),
            memory: Mutex::default(),
            refused: Mutex::default(),
        })
    }

    /// What front ends may choose from.
    #[must_use]
    pub fn offer(&self) -> Offer {
        let Device { features, queue_size, config, .. } = &*self.device;
        Offer { features: *features, queue_size: *queue_size, mtu: config.mtu() }
    }

    /// The limits of its guest's memory.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits { bytes_max: self.device.memory_max, peer: self.peer }
    }

    /// The transfers of what moves with its guest.
    #[must_use]
    pub fn transfers(&self) -> Transfers {
        Transfers::of(self.device.state.clone())
    }

    /// How its front end maps files.
    #[must_use]
    pub const fn sharing(&self) -> &Arc<Sharing> {
        &self.sharing
    }

    /// The rings by index.
    #[must_use]
    pub fn rings(&self) -> &[Arc<RingControl>] {
        &self.rings
    }

    /// Readable when the control queue has work.
    #[must_use]
    pub fn control_events(&self) -> BorrowedFd<'_> {
        self.control.events()
    }

    /// Carries out commands of the guest's control queue. Returns when to look at it again, if no event reports that.
    pub fn serve_control(&self) -> Option<Duration> {
        // It may have been started or stopped.
        let _ = self.follow_settings();
        self.control.turn(|command| self.carry_out(command))
    }

    /// Returns whether it has done it.
    fn carry_out(&self, command: Command) -> bool {
        log_limit::debug!(self.device.log, "the guest sends the command {command:?}");
        let before = self.control.settings();
        let after = match command {
            Command::Announced => before,
            Command::SetPairs(pairs) => Settings { pairs, ..before },
            Command::SwitchOff(switched_off) => Settings { switched_off, ..before },
            Command::SetAddress(address) if self.device.may_have(address) => {
                Settings { address: Some(address), ..before }
            }
            Command::SetAddress(address) => {
                log_limit::warn!(
                    self.device.log,
                    "the guest may not have the address {address}, because --mac is another one"
                );
                return false;
            }
        };
        self.control.set(after);
        let result = self.follow_settings();
        if let Err(error) = &result {
            log_limit::warn!(self.device.log, "the command {command:?} failed: {error}");
            self.control.set(before);
            let _ = self.follow_settings();
        }
        result.is_ok()
    }

    /// Pages are logged from now on, or no longer.
    fn set_logging(&self, all: bool) {
        self.rings.iter().for_each(|ring| ring.set_logging(all));
        if self.logging.swap(all, Ordering::Relaxed) != all {
            let what = if all { "logs" } else { "no longer logs" };
            log_limit::info!(
                self.device.log,
                "the front end {what} which pages of its guest's memory are written, for a migration"
            );
        }
    }

    fn follow_settings(&self) -> io::Result<()> {
        self.rings.iter().try_for_each(|ring| ring.follow_settings())
    }

    /// What the guest set by commands.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.control.settings()
    }

    /// What the guest had set by commands in the daemon before.
    pub fn set_settings(&self, settings: Settings) {
        self.control.set(settings);
        let _ = self.follow_settings();
    }

    /// Why this front end cannot be served at all, if that came up.
    #[must_use]
    pub fn refused(&self) -> Option<PrivateMemory> {
        lock(&self.refused).take()
    }

    /// Closes the copies of the connection to the front end. It itself is closed last, elsewhere.
    pub fn leave_connection(&self) {
        self.sharing.leave_connection();
    }

    /// Ends it, because the front end is gone: the workers let go of its rings and memory.
    pub fn end(&self) {
        self.rings.iter().for_each(|ring| ring.reset());
        self.control.set_negotiated(Negotiated::default());
    }
}

impl VhostUserBackend for Session {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.rings.len()
    }

    fn max_queue_size(&self) -> usize {
        self.device.queue_size.into()
    }

    fn features(&self) -> u64 {
        let vhost = VhostUserVirtioFeatures::PROTOCOL_FEATURES | VhostUserVirtioFeatures::LOG_ALL;
        self.device.features | vhost.bits()
    }

    fn acked_features(&self, features: u64) {
        let (protocol, all) =
            (VhostUserVirtioFeatures::PROTOCOL_FEATURES, VhostUserVirtioFeatures::LOG_ALL);
        // Before features are: a ring that the next message starts must log from the beginning.
        self.set_logging(features & all.bits() != 0);
        let features = features & !(protocol | all).bits();
        // The relay's own message has none. A guest that starts again mostly has the same as before.
        if self.features.swap(features, Ordering::Relaxed) != features {
            log_limit::info!(self.device.log, "the guest negotiated: {}", Names(features));
        }
        self.device.witnesses.iter().for_each(|witness| witness.negotiated(features));
        self.control.set_negotiated(Negotiated(features));
        self.rings.iter().for_each(|ring| ring.set_negotiated(Negotiated(features)));
    }

    /// `DEVICE_STATE` is among them only if the operator asks for it. QEMU 10.0 and newer use it for network devices: it adds a section
    /// to the migration (`vhost_user_net_backend_state`, hw/net/virtio-net.c), which a QEMU whose back end does not offer the
    /// feature cannot load. So a daemon that offers it sends its guests only to others that do.
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        // User Mode Linux handles no interrupt without a channel for requests. We make none.
        let mut offered = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::RARP;
        offered.set(VhostUserProtocolFeatures::DEVICE_STATE, self.device.state.is_some());
        // Only with the feature (vhost-user, "VHOST_USER_NET_SET_MTU").
        offered.set(VhostUserProtocolFeatures::MTU, self.device.features & features::MTU != 0);
        offered
    }

    fn set_event_idx(&self, _: bool) {
        // `acked_features` has this bit too.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.control.settings().config(self.device.config);
        config.read(offset as usize, size as usize)
    }

    fn set_config(&self, _: u32, _: &[u8]) -> io::Result<()> {
        // The judge refuses it before.
        Err(io::ErrorKind::Unsupported.into())
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        let map = memory.memory().clone().into_inner();
        let files = map.iter().filter_map(|region| Some(region.file_offset()?.file()));
        if let Some(private) = self.sharing.find_private(files) {
            let refusal = io::Error::new(io::ErrorKind::InvalidInput, private.to_string());
            *lock(&self.refused) = Some(private);
            return Err(refusal);
        }
        let mut current = lock(&self.memory);
        let memory = Arc::new(GuestMemory::guarded(map, current.as_deref())?);
        // The previous table stays guarded until its last user drops it.
        let _before = current.replace(Arc::clone(&memory));
        log_limit::debug!(self.device.log, "the guest has {} MiB of memory", memory.len() >> 20);
        let mut informed: Vec<&Arc<Mailbox>> = Vec::new();
        for mailbox in &self.device.workers {
            if !informed.iter().any(|other| Arc::ptr_eq(other, mailbox)) {
                mailbox.set_memory(Arc::clone(&memory)).map_err(io::Error::other)?;
                informed.push(mailbox);
            }
        }
        self.rings.iter().for_each(|ring| ring.set_memory(&memory));
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        // The framework runs no event loop: each ring's worker sleeps on its kick itself.
        Vec::new()
    }

    fn reset_device(&self) {
        self.end();
        self.rings.iter().for_each(|ring| ring.forget());
    }

    fn handle_event(&self, _: u16, _: EventSet, _: &[Vring], _: usize) -> io::Result<()> {
        // Never called, because there is no event loop.
        Ok(())
    }
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}
