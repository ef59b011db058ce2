//! What is offered to front ends, and what one connection has made of it.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_memory::GuestMemory;
use log_limit::LogLimit;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::VhostUserBackend;
use virtio_net::{ConfigSpace, Negotiated, features};
use vm_memory::{GuestAddressSpace as _, GuestMemoryBackend as _, GuestMemoryRegion as _};
use vmm_sys_util::epoll::EventSet;
use worker::{Custody, Mailbox};

use crate::regions::{self, Limits};
use crate::ring::RingControl;
use crate::sharing::{PrivateMemory, Sharing};
use crate::vring::{Memory, Vring};

/// The device, for as long as the daemon runs.
#[derive(Debug)]
pub struct Device {
    /// Where messages about it go.
    pub log: Arc<LogLimit>,
    /// The virtio features offered.
    pub features: u64,
    /// The configuration space, for front ends that ask for it.
    pub config: ConfigSpace,
    /// How many queue pairs there are.
    pub queue_pairs: u16,
    /// The largest ring a driver may choose.
    pub queue_size: u16,
    /// For each queue pair, the worker that serves it.
    pub workers: Vec<Arc<Mailbox>>,
    /// The most bytes of memory of its guest ([`memory_max`](Self::memory_max)).
    pub memory_max: u64,
    /// Who else wants to know of front ends.
    pub witnesses: Vec<Box<dyn Witness>>,
}

/// Is told which processes are the front ends of a device.
pub trait Witness: fmt::Debug + Send + Sync {
    /// `process` has connected.
    fn connected(&self, process: u32);

    /// It is gone.
    fn gone(&self, process: u32);
}

impl Device {
    /// The most queue pairs: the protocol names rings by one byte.
    pub const QUEUE_PAIRS_MAX: u16 = 128;

    /// A device with everything that `datapath` features and `queue_pairs` allow.
    #[must_use]
    pub fn features(datapath: u64, queue_pairs: u16, has_mac: bool) -> u64 {
        let multi_queue = if queue_pairs > 1 { features::MULTI_QUEUE } else { 0 };
        let mac = if has_mac { features::MAC } else { 0 };
        features::BASE | datapath | multi_queue | mac
    }

    /// Most bytes of memory for each of `guests` guests: together they fill at most half of this process's address space.
    #[must_use]
    pub const fn memory_max(guests: usize) -> u64 {
        regions::bytes_max(guests)
    }
}

/// One front end's view of the device, from its connection to its end.
#[derive(Debug)]
pub struct Session {
    device: Arc<Device>,
    /// The front end's process, where it is known.
    peer: Option<u32>,
    rings: Vec<Arc<RingControl>>,
    sharing: Mutex<Sharing>,
    /// The guest's memory while the framework may have it mapped: the framework reads it itself.
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
    /// A new connection's view; `custody` closes its descriptors.
    #[must_use]
    pub fn new(device: &Arc<Device>, peer: Option<u32>, custody: &Arc<Custody>) -> Self {
        let ring = |index: u16| {
            let mailbox = &device.workers[usize::from(index / 2)];
            Arc::new(RingControl::new(&device.log, index, Arc::clone(mailbox), custody))
        };
        let rings = (0..device.queue_pairs * 2).map(ring).collect();
        if let Some(peer) = peer {
            device.witnesses.iter().for_each(|witness| witness.connected(peer));
        }
        Self {
            device: Arc::clone(device),
            peer,
            rings,
            sharing: Mutex::new(Sharing::new(peer)),
            memory: Mutex::default(),
            refused: Mutex::default(),
        }
    }

    /// What its guest's memory may be.
    #[must_use]
    pub(crate) fn limits(&self) -> Limits {
        Limits { bytes_max: self.device.memory_max, peer: self.peer }
    }

    /// The rings by index.
    #[must_use]
    pub fn rings(&self) -> &[Arc<RingControl>] {
        &self.rings
    }

    /// Why this front end cannot be served at all, if that came up.
    #[must_use]
    pub fn refused(&self) -> Option<PrivateMemory> {
        lock(&self.refused).take()
    }

    /// The front end is gone: every worker lets go of its rings and memory.
    pub fn end(&self) {
        self.rings.iter().for_each(|ring| ring.reset());
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
        self.device.features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&self, features: u64) {
        log::debug!(
            "{}the front end acknowledged the features {features:#x}",
            self.device.log.prefix()
        );
        self.rings.iter().for_each(|ring| ring.set_negotiated(Negotiated(features)));
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let mut offered = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        // QEMU warns of a configuration space that it does not ask for; it is of use for the address only.
        offered.set(VhostUserProtocolFeatures::CONFIG, self.device.features & features::MAC != 0);
        offered
    }

    fn set_event_idx(&self, _: bool) {
        // Comes with the features.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.device.config.read(offset as usize, size as usize)
    }

    fn set_config(&self, _: u32, _: &[u8]) -> io::Result<()> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the configuration space of a network device is read-only (virtio 1.2, 5.1.4)",
        ))
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        let map = memory.memory().clone().into_inner();
        let files = map.iter().filter_map(|region| Some(region.file_offset()?.file()));
        if let Some(private) = lock(&self.sharing).find_private(files) {
            let refusal = io::Error::new(io::ErrorKind::InvalidInput, private.to_string());
            *lock(&self.refused) = Some(private);
            return Err(refusal);
        }
        let mut current = lock(&self.memory);
        let memory = Arc::new(GuestMemory::guarded(map, current.as_deref())?);
        // The previous table stays guarded until its last user drops it.
        let _before = current.replace(Arc::clone(&memory));
        let label = self.device.log.prefix();
        log::debug!("{label}the guest has {} MiB of memory", memory.len() >> 20);
        let mut told: Vec<&Arc<Mailbox>> = Vec::new();
        for mailbox in &self.device.workers {
            if !told.iter().any(|other| Arc::ptr_eq(other, mailbox)) {
                mailbox.set_memory(Arc::clone(&memory)).map_err(io::Error::other)?;
                told.push(mailbox);
            }
        }
        self.rings.iter().for_each(|ring| ring.set_memory(&memory));
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        // No event loop of the framework: each ring's worker sleeps on its kick itself.
        Vec::new()
    }

    fn reset_device(&self) {
        self.end();
    }

    fn handle_event(&self, _: u16, _: EventSet, _: &[Vring], _: usize) -> io::Result<()> {
        // Never called without an event loop; an error would end one.
        Ok(())
    }
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}
