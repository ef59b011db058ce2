//! The device that front ends are offered.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use log_limit::LogLimit;
use ring_journal::Journal;
use virtio_net::{ConfigSpace, MacAddress, features};
use worker::Mailbox;

use crate::message::regions;

/// The device, for as long as the daemon runs.
#[derive(Debug)]
pub struct Device {
    /// The log of its guest.
    pub log: Arc<LogLimit>,
    /// The virtio features offered.
    pub features: u64,
    /// The features that the guest of the daemon before negotiated; 0 if that is not known.
    pub before: u64,
    /// The configuration space, for front ends that ask for it.
    pub config: ConfigSpace,
    /// Number of queue pairs.
    pub queue_pairs: u16,
    /// The largest ring a driver may choose.
    pub queue_size: u16,
    /// Where its rings note their positions; `None`: nowhere.
    pub journal: Option<Arc<Journal>>,
    /// The worker of each queue pair.
    pub workers: Vec<Arc<Mailbox>>,
    /// Most bytes of its guest's memory ([`memory_max`](Self::memory_max)).
    pub memory_max: u64,
    /// What moves with its guest to another host; `None`: nothing.
    pub state: Option<Arc<dyn DeviceState>>,
    /// They are informed of front ends that come and go.
    pub witnesses: Vec<Box<dyn Witness>>,
}

/// Is informed which processes are front ends of a device, and what their guests negotiated.
pub trait Witness: fmt::Debug + Send + Sync {
    /// `process` has connected.
    fn connected(&self, process: u32);

    /// `process` is gone.
    fn gone(&self, process: u32);

    /// The guest of the front end has these features; 0 before it has negotiated any.
    fn negotiated(&self, features: u64) {
        let _ = features;
    }
}

/// What a device has that moves with its guest. Its bytes may be any: they come from the front end.
pub trait DeviceState: fmt::Debug + Send + Sync {
    /// A file with what goes to another host, from its beginning on.
    ///
    /// # Errors
    /// What the system answers.
    fn save(&self) -> io::Result<OwnedFd>;

    /// The file for what comes from another host. Another process writes it.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    fn place(&self) -> io::Result<OwnedFd>;

    /// A state has come whole. `put`: how many bytes are at its place now, or why they are not.
    fn has_come(&self, put: io::Result<u64>);

    /// The state has gone to the front end whole, as this many bytes.
    fn has_gone(&self, bytes: u64);
}

impl Device {
    /// The virtio features to offer with those of the datapath.
    #[must_use]
    pub fn features(datapath: u64, queue_pairs: u16, has_mac: bool) -> u64 {
        let multi_queue = if queue_pairs > 1 { features::MULTI_QUEUE } else { 0 };
        let mac = if has_mac { features::MAC } else { 0 };
        features::BASE
            | features::RING_RESET
            | features::ACCESS_PLATFORM
            | features::CONFIG_AND_CONTROL
            | datapath
            | multi_queue
            | mac
    }

    /// Whether its guest may say that it has this address: any, unless the device gives it one.
    #[must_use]
    pub fn may_have(&self, address: MacAddress) -> bool {
        self.features & features::MAC == 0 || self.config.read(0, 6) == address.0
    }

    /// Most bytes of memory for each of `guests` guests: together they fill at most half of this process's address space.
    #[must_use]
    pub const fn memory_max(guests: usize) -> u64 {
        regions::bytes_max(guests)
    }
}
