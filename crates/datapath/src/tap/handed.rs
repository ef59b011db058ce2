//! A queue of a tap or macvtap that two daemons have open, while one takes over from the other.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use virtio_net::Offloads;

/// A queue that two daemons have open.
#[derive(Debug)]
pub struct SharedQueue {
    /// The queue.
    pub file: File,
    /// What keeps further processes from the interface, if the queue's daemon has claimed it.
    pub claim: Option<OwnedFd>,
    /// The offloads that the kernel accepts for it.
    pub offloads: Offloads,
    /// Whether the kernel gives it frames.
    pub active: bool,
}

impl SharedQueue {
    /// Another descriptor of each, of a queue that is `active`.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn try_clone(&self, active: bool) -> io::Result<Self> {
        let claim = self.claim.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok(Self { file: self.file.try_clone()?, claim, offloads: self.offloads, active })
    }
}
