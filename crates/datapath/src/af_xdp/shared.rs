//! What two daemons have of an interface, while one takes it over from the other.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use super::program::SharedProgram;

/// An interface that two daemons have.
#[derive(Debug)]
pub struct SharedInterface {
    /// Its name and number.
    pub name: String,
    /// As `if_nametoindex(3)` has it.
    pub index: u32,
    /// The program on it.
    pub program: SharedProgram,
    /// What was changed for it.
    pub settings: ChangedSettings,
    /// The sockets of each queue pair.
    pub pairs: Vec<Vec<SharedSocket>>,
    /// Of each queue pair, whether the program directs frames to its sockets.
    pub active: Vec<bool>,
}

/// Settings that were changed, to be put back at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangedSettings {
    /// For busy polling: what `napi_defer_hard_irqs` and `gro_flush_timeout` were before; nothing if they were not changed.
    pub napi: Vec<u64>,
    /// The number and the name of the interface at the other end, and the offloads that were switched off there.
    pub segmentation: Option<(u32, String, Vec<String>)>,
}

/// A socket that two daemons have.
#[derive(Debug)]
pub struct SharedSocket {
    /// The queue that it is bound to.
    pub queue: u32,
    /// Length of its chunks, bytes.
    pub chunk: u32,
    /// Whether the kernel reports when it must be called.
    pub need_wakeup: bool,
    /// Whether a frame may fill several chunks.
    pub multi_buffer: bool,
    /// The socket.
    pub socket: OwnedFd,
    /// The memory of its frames.
    pub frames: File,
}

impl SharedSocket {
    /// The same with other descriptors.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let Self { queue, chunk, need_wakeup, multi_buffer, socket, frames } = self;
        Ok(Self {
            queue: *queue,
            chunk: *chunk,
            need_wakeup: *need_wakeup,
            multi_buffer: *multi_buffer,
            socket: socket.try_clone()?,
            frames: frames.try_clone()?,
        })
    }
}
