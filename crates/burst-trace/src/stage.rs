//! The closed lists: directions, stages, drop causes, socket events. Reports and the command line use the names given
//! here.

/// Which way a packet goes, seen from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Guest to wire: virtio-net's transmit queues (odd virtqueue indices).
    Tx,
    /// Wire to guest: virtio-net's receive queues (even virtqueue indices).
    Rx,
}

impl Direction {
    /// The direction of the virtqueue with index `ring` (virtio 1.2, 5.1.2: receiveq1, transmitq1, ...).
    #[inline]
    #[must_use]
    pub const fn of_ring(ring: u16) -> Self {
        if ring % 2 == 1 { Self::Tx } else { Self::Rx }
    }

    /// `tx` or `rx`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tx => "tx",
            Self::Rx => "rx",
        }
    }

    /// The daemon's own stages of this direction, in the order in which a burst goes through them. A stage's index in this
    /// list is its index in [`BurstRecord::stages`](crate::BurstRecord::stages).
    #[must_use]
    pub const fn stages(self) -> &'static [Stage] {
        match self {
            Self::Tx => &TX_STAGES,
            Self::Rx => &RX_STAGES,
        }
    }

    /// The index of `stage` in [`stages`](Self::stages); `None` when this direction has no such stage.
    #[must_use]
    pub fn position(self, stage: Stage) -> Option<usize> {
        self.stages().iter().position(|it| *it == stage)
    }
}

const TX_STAGES: [Stage; 7] = [
    Stage::Notice,
    Stage::Queued,
    Stage::Limited,
    Stage::Gather,
    Stage::Egress,
    Stage::Complete,
    Stage::Signal,
];
const RX_STAGES: [Stage; 6] =
    [Stage::Notice, Stage::Limited, Stage::Starved, Stage::Place, Stage::Publish, Stage::Signal];

/// Number of stages of the direction that has more of them.
pub const STAGES_MAX: usize =
    if TX_STAGES.len() > RX_STAGES.len() { TX_STAGES.len() } else { RX_STAGES.len() };

/// The time between two neighbouring boundaries, measured by the daemon itself (tier D).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// From the wake-up (epoll returned, or the last empty poll ended) until the work was seen.
    Notice,
    /// TX: from seen until this burst was taken; above 0 when the ring held more than one burst.
    Queued,
    /// The time in which the work was in sight and the guest's limit (`--limit-tx`, `--limit-rx`) let nothing pass; 0 without a
    /// limit. It is no part of the other stages.
    Limited,
    /// TX: from taken until every chain was copied, checked and translated.
    Gather,
    /// TX: from gathered until the datapath took the frames.
    Egress,
    /// TX: from taken by the datapath until the used entries were published.
    Complete,
    /// RX: from seen until guest buffers were at hand; 0 when they were waiting.
    Starved,
    /// RX: from buffers at hand until header and bytes were in guest memory.
    Place,
    /// RX: from placed until the used entries were published.
    Publish,
    /// From published until the call eventfd was written, or signals were found to be disabled.
    Signal,
}

impl Stage {
    /// Every stage: those of TX in their order, then those that only RX has.
    pub const ALL: [Self; 10] = [
        Self::Notice,
        Self::Queued,
        Self::Limited,
        Self::Gather,
        Self::Egress,
        Self::Complete,
        Self::Starved,
        Self::Place,
        Self::Publish,
        Self::Signal,
    ];

    /// The stage's name in reports and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Notice => "notice",
            Self::Queued => "queued",
            Self::Limited => "limited",
            Self::Gather => "gather",
            Self::Egress => "egress",
            Self::Complete => "complete",
            Self::Starved => "starved",
            Self::Place => "place",
            Self::Publish => "publish",
            Self::Signal => "signal",
        }
    }

    /// The stage with this name, if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.name() == name)
    }
}

/// A time in the host kernel (tier K), measured by BPF programs while they are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum KernelStage {
    /// From the wake-up of the worker's thread, by a kick or a frame in the datapath's queue, until it ran.
    Wakeup = 1,
    /// From the datapath taking a frame until a device's driver got it.
    HostTx = 2,
    /// From a device's driver receiving a frame until it was in the datapath's queue.
    HostRx = 3,
    /// From the write to the call eventfd until the guest had its interrupt, or the front end's thread that delivers it
    /// ran.
    Inject = 4,
}

impl KernelStage {
    /// Every stage, in the order of the numbers.
    pub const ALL: [Self; 4] = [Self::Wakeup, Self::HostTx, Self::HostRx, Self::Inject];

    /// The stage's name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wakeup => "wakeup",
            Self::HostTx => "host-tx",
            Self::HostRx => "host-rx",
            Self::Inject => "inject",
        }
    }

    /// The direction of the packets it belongs to. `None` for a wake-up: it has that of the burst it was for.
    #[must_use]
    pub const fn direction(self) -> Option<Direction> {
        match self {
            Self::Wakeup => None,
            Self::HostTx => Some(Direction::Tx),
            Self::HostRx | Self::Inject => Some(Direction::Rx),
        }
    }

    /// Whether a worker takes part: it was woken up, or it sent the frame.
    #[must_use]
    pub const fn is_of_a_worker(self) -> bool {
        matches!(self, Self::Wakeup | Self::HostTx)
    }

    /// The stage with this number, in a record or an event of the BPF programs.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| *stage as u8 == number)
    }
}

macro_rules! drop_causes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a packet or a buffer chain was dropped. Every drop has exactly one cause and is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropCause { $($(#[$doc])* $variant,)* }

        impl DropCause {
            /// Every cause, in the order of the numbers in the file.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The cause with this number in the file.
            #[must_use]
            pub fn from_number(number: u8) -> Option<Self> {
                Self::ALL.get(usize::from(number)).copied()
            }

            /// The cause's name in reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

drop_causes! {
    /// TX: a descriptor points outside guest memory, or its address and length wrap 64 bits.
    TxUnmapped = "tx_unmapped_buffer",
    /// TX: a descriptor that the device may write stands where only readable ones may.
    TxDirection = "tx_wrong_direction",
    /// TX: more segments than the kernel takes in one system call.
    TxSegments = "tx_too_many_segments",
    /// TX: the chain is no longer than the net header.
    TxTooShort = "tx_too_short",
    /// TX: the frame is longer than the datapath can take.
    TxTooLong = "tx_too_long",
    /// TX: the kernel or the datapath refused the frame's virtio-net header or length.
    TxRefused = "tx_refused_by_datapath",
    /// TX: the frame's virtio-net header contradicts itself, or points out of the frame.
    TxBadNetHeader = "tx_bad_net_header",
    /// TX: the frame has not the headers that its virtio-net header names, so it cannot be segmented.
    TxUnsegmentable = "tx_unsegmentable",
    /// TX: the interface is down or gone.
    TxLinkDown = "tx_link_down",
    /// TX: the host had no memory or buffers for the frame.
    TxNoMemory = "tx_host_out_of_memory",
    /// TX: any other error of the datapath.
    TxError = "tx_datapath_error",
    /// TX: the front end disabled the queue; what the guest still sends is discarded.
    TxDisabled = "tx_queue_disabled",
    /// RX: a descriptor points outside guest memory, or its address and length wrap 64 bits.
    RxUnmapped = "rx_unmapped_buffer",
    /// RX: a descriptor that the device may only read stands where only writable ones may.
    RxDirection = "rx_wrong_direction",
    /// RX: more segments than the kernel takes in one system call.
    RxSegments = "rx_too_many_segments",
    /// RX: a buffer chain without any room.
    RxEmptyChain = "rx_empty_buffer",
    /// RX: the frame is larger than the guest's buffer (without mergeable buffers).
    RxTooBig = "rx_frame_larger_than_buffer",
    /// RX: no more guest buffers came for a frame that needs several.
    RxNoBuffers = "rx_guest_buffers_ran_out",
    /// RX: a frame was waiting for buffers when its queue stopped.
    RxStopped = "rx_queue_stopped",
    /// RX: any error of the datapath when a frame was read.
    RxError = "rx_datapath_error",
    /// RX: the AF_XDP receive ring was full: the worker came too late, or the guest had no buffers
    /// (`rx_ring_full`).
    RxRingFull = "rx_af_xdp_ring_full",
    /// RX: the AF_XDP socket had no chunk for the frame, or it did not fit one (`rx_dropped`, of which
    /// `rx_fill_ring_empty_descs` is a part).
    RxNoChunk = "rx_af_xdp_no_chunk",
    /// TX: on a switch, more frames for everyone (groups, or unknown stations) than a port may send; or more announcements
    /// of a guest that migrated (`SEND_RARP`) than its front end may ask for.
    TxFloodLimit = "tx_flood_limit",
    /// TX: on a switch, its uplink took no more frames.
    TxUplinkFull = "tx_uplink_full",
    /// RX: on a switch, more frames for everyone came from its uplink than it may send.
    RxFloodLimit = "rx_flood_limit",
    /// TX: on a switch, nobody else is to have the frame, or there is nobody else.
    TxNoReceiver = "tx_no_receiver",
    /// RX: on a switch, the guest had no receive buffers for the frame.
    RxSwitchFull = "rx_switch_no_buffers",
    /// TX: a planted fault took it.
    TxFault = "tx_dropped_by_fault",
    /// RX: a planted fault took it.
    RxFault = "rx_dropped_by_fault",
    /// TX: on a switch, the guest may not send from the frame's source address.
    TxSpoofedSource = "tx_spoofed_source",
    /// RX: the frame came on a receive queue of the interface that no AF_XDP socket serves, while others were served. The
    /// host's network stack has it.
    RxUnservedQueue = "rx_unserved_queue",
}

/// What the kernel counts for an AF_XDP socket besides lost frames (`struct xdp_statistics` of `linux/if_xdp.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SocketEvent {
    /// RX: the fill ring was empty when a frame came. If the frame was lost, it is counted as a drop as well.
    FillRingEmpty,
    /// RX: the fill ring held an invalid address.
    FillRingInvalid,
    /// TX: the transmit ring was empty when the driver looked.
    TxRingEmpty,
    /// TX: the transmit ring held an invalid descriptor.
    TxRingInvalid,
}

impl SocketEvent {
    /// Every event, in the order of the numbers in the file.
    pub const ALL: [Self; 4] =
        [Self::FillRingEmpty, Self::FillRingInvalid, Self::TxRingEmpty, Self::TxRingInvalid];

    /// The kernel's name for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FillRingEmpty => "rx_fill_ring_empty_descs",
            Self::FillRingInvalid => "rx_invalid_descs",
            Self::TxRingEmpty => "tx_ring_empty_descs",
            Self::TxRingInvalid => "tx_invalid_descs",
        }
    }

    /// The direction in which it delays frames.
    #[must_use]
    pub const fn direction(self) -> Direction {
        match self {
            Self::FillRingEmpty | Self::FillRingInvalid => Direction::Rx,
            Self::TxRingEmpty | Self::TxRingInvalid => Direction::Tx,
        }
    }
}

/// Packets of one burst that were dropped, by cause.
#[derive(Clone, Copy, Debug, Default)]
pub struct DropCounts {
    counts: [u16; DropCause::ALL.len()],
    any: bool,
}

impl DropCounts {
    /// `packets` dropped for `cause`, and none for any other.
    #[cold]
    #[must_use]
    pub fn only(cause: DropCause, packets: usize) -> Self {
        let mut drops = Self::default();
        drops.add_many(cause, packets);
        drops
    }

    /// Adds a packet dropped for `cause`.
    #[cold]
    pub fn add(&mut self, cause: DropCause) {
        self.add_many(cause, 1);
    }

    /// Adds `packets` dropped for `cause`. A count stops at 65 535, more than any burst has.
    #[cold]
    pub fn add_many(&mut self, cause: DropCause, packets: usize) {
        let count = &mut self.counts[cause as usize];
        *count = count.saturating_add(u16::try_from(packets).unwrap_or(u16::MAX));
        self.any |= packets > 0;
    }

    /// Adds the drops of another part of the same burst.
    #[inline]
    pub fn add_all(&mut self, other: &Self) {
        if other.any {
            for (count, more) in self.counts.iter_mut().zip(other.counts) {
                *count = count.saturating_add(more);
            }
            self.any = true;
        }
    }

    /// Whether nothing was dropped.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        !self.any
    }

    /// Number of packets dropped, for all causes.
    #[inline]
    #[must_use]
    pub fn total(&self) -> u16 {
        if self.any { self.counts.iter().sum() } else { 0 }
    }

    /// Number of packets dropped for `cause`.
    #[inline]
    #[must_use]
    pub const fn of(&self, cause: DropCause) -> u16 {
        self.counts[cause as usize]
    }

    /// The causes with drops, and the number of packets of each.
    pub fn iter(&self) -> impl Iterator<Item = (DropCause, u16)> + '_ {
        let counts = self.counts.iter().copied();
        DropCause::ALL.iter().copied().zip(counts).filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_is_found_by_its_name() {
        for stage in Stage::ALL {
            assert_eq!(Stage::from_name(stage.name()), Some(stage));
        }
        assert_eq!(Stage::from_name("wakeup"), None);
    }

    #[test]
    fn both_directions_cover_every_stage() {
        let covered: Vec<_> = [Direction::Tx, Direction::Rx]
            .iter()
            .flat_map(|direction| direction.stages())
            .collect();
        assert!(Stage::ALL.iter().all(|stage| covered.contains(&stage)));
    }

    #[test]
    fn drop_causes_are_numbered_in_their_order() {
        for (number, cause) in (0..).zip(DropCause::ALL) {
            assert_eq!(*cause as u8, number);
            assert_eq!(DropCause::from_number(number), Some(*cause));
        }
        assert_eq!(DropCause::from_number(u8::MAX), None);
    }
}
