//! How many file descriptors the guests may take.

use std::io;

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::relay::DESCRIPTORS_MAX;

/// Kick and error descriptor, and four for the call descriptor where that is a pipe: twice, while one replaces another.
const OF_A_RING: u64 = 2 + 2 * 4;
/// Regions of guest memory, a descriptor each: as many as `GET_MAX_MEM_SLOTS` answers.
pub const REGIONS_MAX: usize = 509;
/// Descriptors that were given up and are not closed yet: a front end that has more waits, or goes.
pub const UNCLOSED_MAX: usize = 64;
/// Sockets of the connection, and what the threads of a guest open for themselves.
const OTHERS: u64 = 16;

/// The most descriptors that the front end of a guest with `queue_pairs` can have us keep.
#[must_use]
pub const fn descriptors_of(queue_pairs: u16) -> u64 {
    // A message is in two hands for a moment: the relay's and the framework's.
    let in_messages = 2 * DESCRIPTORS_MAX as u64;
    queue_pairs as u64 * 2 * OF_A_RING
        + REGIONS_MAX as u64
        + UNCLOSED_MAX as u64
        + in_messages
        + OTHERS
}

/// Raises this process's limit of open files to what the system allows. Returns that; `u64::MAX` is no limit.
///
/// # Errors
/// When the system refuses.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    Ok(limit.current.unwrap_or(u64::MAX))
}
