//! Limits of file descriptors and regions.

use std::io;

use rustix::process::{Resource, getrlimit, setrlimit};
use vhost::vhost_user::message::MAX_ATTACHED_FD_ENTRIES;

/// Most descriptors of one message, as the framework takes. It drops the rest, and with more than its buffer holds it loses
/// its place in the stream.
pub const DESCRIPTORS_MAX: usize = MAX_ATTACHED_FD_ENTRIES;
/// Descriptors of one ring: the kick, the error descriptor, and four for a call descriptor that is a pipe. All of them
/// twice, while new ones replace old ones. And the three as they came, for another daemon that goes on.
const OF_A_RING: u64 = 2 + 2 * 4 + 3;
/// Number of control queues.
const CONTROL_QUEUES: u64 = 1;
/// Most regions of guest memory, two descriptors each (the framework's, and the one that came, for another daemon): the answer to `GET_MAX_MEM_SLOTS`.
pub const REGIONS_MAX: usize = 509;
/// Most descriptors that were given up and are not closed yet. With more, the front end waits and is then disconnected.
pub const UNCLOSED_MAX: usize = 64;
/// Descriptors of a message with too many, beyond [`DESCRIPTORS_MAX`]: the kernel takes 253 in one message.
const SURPLUS: u64 = 253 - DESCRIPTORS_MAX as u64;
/// The connection's sockets, what its thread waits for, and descriptors that a guest's threads open.
const OTHERS: u64 = 18;

/// Most descriptors that this process holds for the front end of a guest with `queue_pairs`.
#[must_use]
pub const fn descriptors_of(queue_pairs: u16) -> u64 {
    // The relay and the framework hold those of a message at the same time.
    let in_messages = 2 * DESCRIPTORS_MAX as u64;
    (queue_pairs as u64 * 2 + CONTROL_QUEUES) * OF_A_RING
        + 2 * REGIONS_MAX as u64
        + UNCLOSED_MAX as u64
        + in_messages
        + SURPLUS
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
