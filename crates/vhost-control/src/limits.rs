//! Limits of file descriptors and regions.

use std::io;

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::relay::DESCRIPTORS_MAX;

/// Kick and error descriptor, and four for the call descriptor where that is a pipe: twice, while one replaces another.
const OF_A_RING: u64 = 2 + 2 * 4;
/// Most regions of guest memory, a descriptor each: the answer to `GET_MAX_MEM_SLOTS`.
pub const REGIONS_MAX: usize = 509;
/// Most descriptors that were dropped and are not closed yet. Above it the front end waits, and then is sent away.
pub const UNCLOSED_MAX: usize = 64;
/// Sockets of the connection, and descriptors that the threads of a guest open themselves.
const OTHERS: u64 = 16;

/// Most descriptors that this process holds for the front end of a guest with `queue_pairs`.
#[must_use]
pub const fn descriptors_of(queue_pairs: u16) -> u64 {
    // For a moment both the relay and the framework hold those of a message.
    let in_messages = 2 * DESCRIPTORS_MAX as u64;
    queue_pairs as u64 * 2 * OF_A_RING
        + REGIONS_MAX as u64
        + UNCLOSED_MAX as u64
        + in_messages
        + OTHERS
}

/// Raises this process's limit of open files to its hard limit. Returns the limit; `u64::MAX` is no limit.
///
/// # Errors
/// When the system refuses.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    Ok(limit.current.unwrap_or(u64::MAX))
}
