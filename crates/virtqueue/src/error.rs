//! Errors, by who is at fault: the guest with one chain, the guest with the ring, or the front end.

use guest_memory::AreaError;

/// The guest made a chain that cannot be used: it goes back with length 0, and the ring continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainFault {
    /// A buffer is not entirely guest memory, or its address and length wrap 64 bits.
    Unmapped,
    /// A buffer has the wrong direction.
    WrongDirection,
    /// More than [`CHAIN_SLICES_MAX`](crate::chain::CHAIN_SLICES_MAX) slices.
    TooManySlices,
}

/// The guest broke the ring, which stops until the driver resets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The available index is further ahead than the ring is large.
    #[error("the available index moved to {index}, {ahead} entries ahead in a ring of {size}")]
    AvailableJump {
        /// The index that the driver wrote.
        index: u16,
        /// Distance from the device's own index.
        ahead: u16,
        /// The ring's size.
        size: u16,
    },
    /// A head or next index outside the descriptor table.
    #[error("descriptor index {index} in a table of {size}")]
    Index {
        /// The index.
        index: u32,
        /// Number of descriptors in the table.
        size: u32,
    },
    /// A chain of more descriptors than its table has: it loops.
    #[error("a descriptor chain longer than its table of {size}: it loops")]
    Loop {
        /// Number of descriptors in the table.
        size: u32,
    },
    /// A chain of too many descriptors, direct and indirect ones together.
    #[error(
        "a descriptor chain of more than {limit} descriptors; expected no more than the ring has, or 1024 in a smaller \
         ring"
    )]
    TooManyDescriptors {
        /// The limit.
        limit: u32,
    },
    /// A chain of 2^32 bytes or more (forbidden by 2.7.5).
    #[error("a descriptor chain of {len} bytes; the limit is 2^32")]
    TooLong {
        /// Sum of the buffers' lengths, bytes.
        len: u64,
    },
    /// An indirect descriptor without the feature negotiated.
    #[error("an indirect descriptor without VIRTIO_F_INDIRECT_DESC negotiated")]
    IndirectNotNegotiated,
    /// An indirect descriptor with NEXT, or inside an indirect table (forbidden by 2.7.5.3.1).
    #[error("an indirect descriptor inside a table, or together with NEXT")]
    IndirectNested,
    /// An indirect table whose length is 0 or not a multiple of 16.
    #[error("an indirect table of {len} bytes; expected a multiple of 16, not 0")]
    IndirectLength {
        /// The table's length in bytes.
        len: u32,
    },
    /// An indirect table that is not in one region of guest memory.
    #[error("an indirect table at {address:#x} with {len} bytes, which is not guest memory")]
    IndirectUnmapped {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        len: u32,
    },
}

/// The front end set a ring up wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A split ring's size must be a power of two (2.7).
    #[error("queue size {0}; expected a power of two from 1 to 32768")]
    SplitSize(u16),
    /// A packed ring's size is from 1 to 2^15 (2.8.10.1).
    #[error("queue size {0}; expected 1 to 32768")]
    PackedSize(u16),
    /// A packed ring whose next descriptor is outside the ring.
    #[error("a packed ring of {size} cannot go on at descriptor {index}")]
    Position {
        /// The descriptor.
        index: u16,
        /// The ring's size.
        size: u16,
    },
    /// A part of the ring is not usable.
    #[error("the {part}: {source}")]
    Area {
        /// `descriptor table`, `driver area` or `device area`.
        part: &'static str,
        /// The reason.
        source: AreaError,
    },
}

/// Why a ring does not continue where the daemon before noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is of another ring.
    #[error("the ring was set up differently then")]
    Setup,
    /// The front end says another position than at the last start, and than was noted.
    #[error("the front end says {said:#x}, which is news")]
    Said {
        /// What it says.
        said: u16,
    },
    /// A position is not in the ring, or two are too far from each other.
    #[error("what was noted fits no ring of this size")]
    Outside,
    /// The used index is not between the noted positions.
    #[error("the used index was noted to be between {used} and {taken}, and is {found}")]
    Used {
        /// The least.
        used: u16,
        /// The most.
        taken: u16,
        /// What it is.
        found: u16,
    },
    /// No descriptor was ever used: the driver reset the ring.
    #[error("the driver has reset the ring since")]
    Reset,
    /// The descriptors do not look as the noted position demands.
    #[error("the descriptors do not agree with it")]
    Descriptors,
}
