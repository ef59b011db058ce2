//! The records of a flight recorder: 64 bytes each in the file, a [`Record`] everywhere else.
//!
//! Only this module knows how a record is laid out, in eight 64-bit words:
//!
//! ```text
//! word  bits     burst      drop     kernel span  probe            gap            cyclic
//! 0              first      at       start        first            at             first
//! 1              last       at       end          last             at             last
//! 2              sequence                         probe's number   records lost   counter
//! 3-5   32 each  stages                           stages                          stages
//! 6     0-31     bytes               worker       probe's run                     stream
//! 6     32-47    packets    packets               packets                         packets
//! 6     48-63    ring       ring     1: tx        ring                            ring
//! 7     0-7      kind: 1    2        3            4                5              6
//! 7     8-15     flags                            flags                           flags
//! 7     16-23               cause    stage                                        description
//! 7     24-31    writer; 0 in a recorder, where its place says it
//! 7     32-63    wake-up; or `limited`            the same                        the same
//! ```
//!
//! What has no entry is 0. Flags: 1, the worker was polling; 2, the record has a wake-up; 4, it has a time in the stage `limited` in
//! its place. The words 3 to 5 have the other stages. The description of a cyclic frame is its number, and from bit 20 on the
//! length of its counter in bytes. Kind 7, an interruption, kind 8, a restart, kind 9, a milestone, and kind 10, a migration, have
//! layouts of their own ([`interruption`](crate::interruption), [`restart`](crate::restart), [`milestone`](crate::milestone),
//! [`migration`](crate::migration)).

mod fields;

use fields::{COUNTER_LEN_SHIFT, Fields, Kind, flags};

use crate::cyclic::CyclicFrame;
use crate::interruption::Interruption;
use crate::migration::Migration;
use crate::milestone::Milestone;
use crate::restart::Restart;
use crate::stage::{Direction, DropCause, KernelStage, STAGES_MAX, Stage};

/// A record's length in 64-bit words.
pub const RECORD_WORDS: usize = 8;

/// One record of a flight recorder or a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// A burst of packets that went through a ring.
    Burst(BurstRecord),
    /// Packets that went no further.
    Drop(DropRecord),
    /// A time in the host kernel.
    KernelSpan(KernelSpan),
    /// A time in which a thread that packets wait for did not run.
    Interruption(Interruption),
    /// A packet with a probe, in a burst.
    Probe(ProbeRecord),
    /// A layer-2 frame with a counter of its own, in a burst.
    Cyclic(CyclicRecord),
    /// Records that are missing. In recordings only.
    Gap(Gap),
    /// A time in which no burst passed, because the daemon was started again.
    Restart(Restart),
    /// What happened to the guest's connection.
    Milestone(Milestone),
    /// A time in which no burst passed, because the guest moved here from another host.
    Migration(Migration),
    /// A record that this version cannot read, as it is in the file: its kind, cause or stage is unknown, or it is a burst
    /// without packets.
    Unknown([u64; RECORD_WORDS]),
}

/// One burst's way through one ring.
///
/// Time stamps are ticks of the recorder's clock ([`Clock`](crate::Clock)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BurstRecord {
    /// The first boundary (`wake`), ticks.
    pub first: u64,
    /// The last boundary (`signalled`), ticks.
    pub last: u64,
    /// The sequence number, in its ring, of the burst's first packet.
    pub sequence: u64,
    /// Ticks in each stage, in the order of [`Direction::stages`]. At most one is saturated (`u32::MAX`) in the file;
    /// reading computes its exact value, so the sum is always `last - first`.
    pub stages: [u64; STAGES_MAX],
    /// Bytes of the burst's frames, without net headers.
    pub bytes: u32,
    /// Packets in the burst.
    pub packets: u16,
    /// The virtqueue index: even receives, odd transmits.
    pub ring: u16,
    /// The worker's number. A [`Writer`](crate::Writer) does not store it; a reader fills it in.
    pub worker: u8,
    /// The worker was polling, so `notice` counts from the last look and is an upper bound.
    pub is_polled: bool,
    /// Ticks from the first frame's arrival, as the host kernel stamped it, to the first boundary; `None` without a
    /// stamp. At most `u32::MAX`.
    pub wakeup: Option<u32>,
}

/// Packets of one ring that went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropRecord {
    /// When they were dropped, ticks.
    pub at: u64,
    /// Why.
    pub cause: DropCause,
    /// Number of packets.
    pub packets: u16,
    /// The virtqueue index.
    pub ring: u16,
    /// The worker's number, as in [`BurstRecord::worker`].
    pub worker: u8,
}

/// A time in the host kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelSpan {
    /// Which stage.
    pub stage: KernelStage,
    /// When it began, ticks.
    pub start: u64,
    /// When it ended, ticks.
    pub end: u64,
    /// The worker that was woken up or sent the frame. `None` for [`KernelStage::HostRx`] and [`KernelStage::Inject`], in
    /// which no worker takes part.
    pub worker: Option<u32>,
    /// The number of the recorder's writer that stored it, after those of the workers.
    pub writer: u8,
}

/// A packet with a probe ([`Probe`](crate::Probe)), and the times of the burst that carried it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeRecord {
    /// The probe's run.
    pub run: u32,
    /// The probe's own number in its run.
    pub sequence: u64,
    /// Packets in the burst.
    pub packets: u16,
    /// When the burst crossed its boundaries.
    pub times: BurstTimes,
}

/// A layer-2 frame with a counter of its own ([`CyclicFrames`](crate::CyclicFrames)), and the times of the burst that carried
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CyclicRecord {
    /// The frame's stream and counter.
    pub frame: CyclicFrame,
    /// Packets in the burst.
    pub packets: u16,
    /// When the burst crossed its boundaries.
    pub times: BurstTimes,
}

/// Records of one writer that were overwritten before they could be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The writer's number.
    pub writer: u8,
    /// Number of records.
    pub records: u64,
    /// The end of the newest record that was read, ticks.
    pub at: u64,
}

/// When a burst crossed its boundaries. The fields are those of [`BurstRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BurstTimes {
    /// The virtqueue index.
    pub ring: u16,
    /// The worker's number.
    pub worker: u8,
    /// The first boundary, ticks.
    pub first: u64,
    /// The last boundary, ticks.
    pub last: u64,
    /// Ticks in each stage.
    pub stages: [u64; STAGES_MAX],
    /// The worker was polling.
    pub is_polled: bool,
    /// Ticks from the first frame's arrival to the first boundary, where the host kernel stamped it.
    pub wakeup: Option<u32>,
}

impl Record {
    /// The first boundary of a burst, probe or cyclic frame, the start of a kernel span or interruption, the end of the last burst
    /// before a restart or migration, or the time of a drop, gap or milestone; ticks.
    #[must_use]
    pub const fn first(&self) -> u64 {
        match self {
            Self::Burst(burst) => burst.first,
            Self::Drop(drop) => drop.at,
            Self::KernelSpan(span) => span.start,
            Self::Interruption(interruption) => interruption.start,
            Self::Probe(probe) => probe.times.first,
            Self::Cyclic(cyclic) => cyclic.times.first,
            Self::Gap(gap) => gap.at,
            Self::Restart(restart) => restart.before,
            Self::Milestone(milestone) => milestone.at,
            Self::Migration(migration) => migration.before,
            Self::Unknown(words) => words[0],
        }
    }

    /// The last boundary of a burst, probe or cyclic frame, the end of a kernel span or interruption, the end of the first burst after
    /// a restart or migration, or the time of a drop, gap or milestone; ticks.
    #[must_use]
    pub const fn last(&self) -> u64 {
        match self {
            Self::Burst(burst) => burst.last,
            Self::Drop(drop) => drop.at,
            Self::KernelSpan(span) => span.end,
            Self::Interruption(interruption) => interruption.end,
            Self::Probe(probe) => probe.times.last,
            Self::Cyclic(cyclic) => cyclic.times.last,
            Self::Gap(gap) => gap.at,
            Self::Restart(restart) => restart.after,
            Self::Milestone(milestone) => milestone.at,
            Self::Migration(migration) => migration.after,
            Self::Unknown(words) => words[1],
        }
    }

    /// The number of the writer in whose part of the recorder the record is: a worker's, or after those the number of the
    /// writer that adds times in the host kernel.
    #[must_use]
    pub fn writer(&self) -> u8 {
        match self {
            Self::Burst(burst) => burst.worker,
            Self::Drop(drop) => drop.worker,
            Self::KernelSpan(span) => span.writer,
            Self::Interruption(interruption) => interruption.writer,
            Self::Probe(probe) => probe.times.worker,
            Self::Cyclic(cyclic) => cyclic.times.worker,
            Self::Gap(gap) => gap.writer,
            Self::Restart(restart) => restart.writer,
            Self::Milestone(milestone) => milestone.writer,
            Self::Migration(migration) => migration.writer,
            Self::Unknown(words) => Fields::of(words).writer,
        }
    }

    /// The burst, if the record is one.
    #[inline]
    #[must_use]
    pub const fn as_burst(&self) -> Option<&BurstRecord> {
        match self {
            Self::Burst(burst) => Some(burst),
            _ => None,
        }
    }

    /// The record as it is laid out in the file.
    #[must_use]
    pub fn to_words(&self) -> [u64; RECORD_WORDS] {
        match self {
            Self::Burst(burst) => burst.to_words(),
            Self::Drop(drop) => drop.to_words(),
            Self::KernelSpan(span) => span.to_words(),
            Self::Interruption(interruption) => interruption.to_words(),
            Self::Probe(probe) => probe.to_words(),
            Self::Cyclic(cyclic) => cyclic.to_words(),
            Self::Gap(gap) => gap.to_words(),
            Self::Restart(restart) => restart.to_words(),
            Self::Milestone(milestone) => milestone.to_words(),
            Self::Migration(migration) => migration.to_words(),
            Self::Unknown(words) => *words,
        }
    }

    /// The record that `words` hold.
    #[inline]
    #[must_use]
    pub fn from_words(words: &[u64; RECORD_WORDS]) -> Self {
        let fields = Fields::of(words);
        let record = match fields.kind {
            Interruption::KIND => Interruption::from_words(words).map(Self::Interruption),
            Restart::KIND => Restart::from_words(words).map(Self::Restart),
            Milestone::KIND => Milestone::from_words(words).map(Self::Milestone),
            Migration::KIND => Migration::from_words(words).map(Self::Migration),
            _ => fields.record(),
        };
        record.unwrap_or(Self::Unknown(*words))
    }

    /// The record that `words` hold in the part of `writer` of a recorder.
    #[inline]
    #[must_use]
    pub(crate) fn from_words_of(writer: u8, mut words: [u64; RECORD_WORDS]) -> Self {
        words[7] = words[7] & !(0xff << 24) | u64::from(writer) << 24;
        Self::from_words(&words)
    }
}

impl BurstRecord {
    /// Which way the burst went.
    #[inline]
    #[must_use]
    pub const fn direction(&self) -> Direction {
        Direction::of_ring(self.ring)
    }

    /// Last boundary minus first, ticks.
    #[inline]
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.last.wrapping_sub(self.first)
    }

    /// When it crossed its boundaries.
    #[must_use]
    pub const fn times(&self) -> BurstTimes {
        let &Self { ring, worker, first, last, stages, is_polled, wakeup, .. } = self;
        BurstTimes { ring, worker, first, last, stages, is_polled, wakeup }
    }

    #[inline]
    pub(crate) fn to_words(self) -> [u64; RECORD_WORDS] {
        Fields {
            first: self.first,
            last: self.last,
            number: self.sequence,
            stages: self.stages,
            amount: self.bytes,
            packets: self.packets,
            ring: self.ring,
            kind: Kind::Burst as u8,
            flags: flags(self.is_polled, self.wakeup),
            cause: 0,
            writer: self.worker,
            wakeup: self.wakeup.unwrap_or(0),
        }
        .to_words()
    }
}

impl DropRecord {
    pub(crate) fn to_words(self) -> [u64; RECORD_WORDS] {
        Fields {
            first: self.at,
            last: self.at,
            packets: self.packets,
            ring: self.ring,
            kind: Kind::Drop as u8,
            cause: self.cause as u8,
            writer: self.worker,
            ..Fields::default()
        }
        .to_words()
    }
}

impl KernelSpan {
    /// How long it took, ticks.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    pub(crate) fn to_words(self) -> [u64; RECORD_WORDS] {
        Fields {
            first: self.start,
            last: self.end,
            amount: self.worker.unwrap_or(0),
            ring: u16::from(self.stage == KernelStage::HostTx),
            kind: Kind::KernelSpan as u8,
            cause: self.stage as u8,
            writer: self.writer,
            ..Fields::default()
        }
        .to_words()
    }
}

impl ProbeRecord {
    pub(crate) fn to_words(self) -> [u64; RECORD_WORDS] {
        let Self { run, sequence, packets, times } = self;
        Fields {
            first: times.first,
            last: times.last,
            number: sequence,
            stages: times.stages,
            amount: run,
            packets,
            ring: times.ring,
            kind: Kind::Probe as u8,
            flags: flags(times.is_polled, times.wakeup),
            cause: 0,
            writer: times.worker,
            wakeup: times.wakeup.unwrap_or(0),
        }
        .to_words()
    }
}

impl CyclicRecord {
    pub(crate) fn to_words(self) -> [u64; RECORD_WORDS] {
        let Self { frame, packets, times } = self;
        Fields {
            first: times.first,
            last: times.last,
            number: frame.counter,
            stages: times.stages,
            amount: frame.stream,
            packets,
            ring: times.ring,
            kind: Kind::Cyclic as u8,
            flags: flags(times.is_polled, times.wakeup),
            cause: frame.description | frame.counter_len << COUNTER_LEN_SHIFT,
            writer: times.worker,
            wakeup: times.wakeup.unwrap_or(0),
        }
        .to_words()
    }
}

impl Gap {
    fn to_words(self) -> [u64; RECORD_WORDS] {
        Fields {
            first: self.at,
            last: self.at,
            number: self.records,
            kind: Kind::Gap as u8,
            writer: self.writer,
            ..Fields::default()
        }
        .to_words()
    }
}

impl BurstTimes {
    /// Which way the burst went.
    #[must_use]
    pub const fn direction(&self) -> Direction {
        Direction::of_ring(self.ring)
    }

    /// The boundary before the stage with this index in its direction, ticks. Saturates: a file may hold any numbers.
    #[must_use]
    pub fn boundary(&self, stage: usize) -> u64 {
        let stages = &self.stages[..stage];
        stages.iter().fold(self.first, |at, ticks| at.saturating_add(*ticks))
    }

    /// When the burst was in `stage`, ticks: from one boundary to the next.
    ///
    /// # Panics
    /// When its direction has no such stage.
    #[must_use]
    pub fn during(&self, stage: Stage) -> (u64, u64) {
        let at = self.direction().position(stage).expect("a stage of the burst's direction");
        (self.boundary(at), self.boundary(at + 1))
    }
}

#[cfg(test)]
mod tests;
