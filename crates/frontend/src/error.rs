//! Errors, and who caused them: the system, the back end, or the options.

use std::io;
use std::path::PathBuf;

/// Why the guest cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// No back end at the socket.
    #[error("no vhost-user back end at {path}: {source}; is it running?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// No back end came to our socket.
    #[error("no vhost-user back end connected to {path} within {seconds} s")]
    NobodyCame {
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The back end refused a message, or the conversation broke.
    #[error("the back end did not accept {message}: {source}")]
    Refused {
        /// The message's name in the vhost-user specification.
        message: &'static str,
        /// What came instead of a good answer.
        source: vhost::Error,
    },
    /// The back end does not offer enough.
    #[error("the back end offers {offered} queue pairs; {wanted} are wanted")]
    QueuePairs {
        /// What it offers.
        offered: u64,
        /// What is wanted.
        wanted: u16,
    },
    /// The options do not fit together.
    #[error("{0}")]
    Options(String),
    /// Guest memory is too small for the rings and buffers.
    #[error("{wanted} bytes do not fit what is left of guest memory; give it larger regions")]
    MemoryFull {
        /// What was wanted, in bytes.
        wanted: u64,
    },
    /// Not guest memory.
    #[error("{len} bytes at {address:#x} are not guest memory")]
    Unmapped {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A chain has more pieces than the ring has descriptors.
    #[error("a chain of {pieces} pieces in a ring of {size}")]
    ChainTooLong {
        /// How many pieces it has.
        pieces: usize,
        /// How many there may be.
        size: usize,
    },
    /// The back end used a chain that it was not given, or gave it back twice.
    #[error("ring {ring}: the back end returned descriptor {head}, which it does not have")]
    NotOffered {
        /// The ring's index.
        ring: u16,
        /// The head it returned.
        head: u16,
    },
    /// The back end reports more bytes than the chain has room for.
    #[error("ring {ring}: the back end says it wrote {len} bytes into a chain of {room}")]
    UsedTooLong {
        /// The ring's index.
        ring: u16,
        /// What it says it wrote.
        len: u32,
        /// What the chain had room for.
        room: u32,
    },
    /// A received frame is shorter than its header.
    #[error("a received frame of {len} bytes; its net header alone has {header}")]
    NoHeader {
        /// What was received.
        len: u32,
        /// The header's length.
        header: usize,
    },
    /// A received frame's `num_buffers` does not hold (virtio 1.2, 5.1.6.4).
    #[error("a received frame says it has {said} buffers; {found} were used")]
    NumBuffers {
        /// What the header says.
        said: u16,
        /// How many there are.
        found: u16,
    },
    /// Bytes between the buffers changed.
    #[error("the back end wrote outside the buffers it was given, at {address:#x}")]
    Canary {
        /// The first such byte, guest-physical.
        address: u64,
    },
}

impl Error {
    /// Whether the back end closed the connection before it had answered anything.
    pub(crate) const fn is_closed_at_once(&self) -> bool {
        use vhost::vhost_user::Error::{Disconnected, PartialMessage, SocketBroken};
        let Self::Refused { message, source: vhost::Error::VhostUserProtocol(source) } = self
        else {
            return false;
        };
        let first = matches!(message.as_bytes(), b"SET_OWNER" | b"GET_FEATURES");
        first && matches!(source, Disconnected | PartialMessage | SocketBroken(_))
    }

    /// For `map_err`: a system call failed.
    pub(crate) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { what, source: source.into() }
    }

    /// For `map_err`: the back end did not accept a message.
    pub(crate) fn refused(message: &'static str) -> impl FnOnce(vhost::Error) -> Self {
        move |source| Self::Refused { message, source }
    }
}

impl From<guest_memory::Unmapped> for Error {
    fn from(unmapped: guest_memory::Unmapped) -> Self {
        Self::Unmapped { address: unmapped.address, len: unmapped.len }
    }
}
