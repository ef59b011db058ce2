//! The 64 bytes that one burst leaves behind.

use crate::stage::{Direction, KernelStage, STAGES_MAX};

/// A record's length in 64-bit words.
pub const RECORD_WORDS: usize = 8;

/// What a record tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// A burst of packets that went through.
    Burst = 1,
    /// Packets that went no further; [`BurstRecord::cause`] says why.
    Drop = 2,
    /// A time in the host kernel, from [`BurstRecord::first`] to [`BurstRecord::last`];
    /// [`BurstRecord::cause`] says which ([`KernelStage`]).
    Kernel = 3,
    /// A packet that carries a probe: the times are its burst's, [`BurstRecord::sequence`] is the probe's own number
    /// and [`BurstRecord::bytes`] its run's.
    Probe = 4,
    /// In a recording: so many records ([`BurstRecord::sequence`]) of this worker were overwritten before they could be
    /// kept.
    Gap = 5,
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
    /// Ticks in each stage, in the order of [`Direction::stages`]. At most one is saturated
    /// (`u32::MAX`) in the file; [`BurstRecord::from_words`] gives its exact value back, so the sum is
    /// always `last - first`.
    pub stages: [u64; STAGES_MAX],
    /// Bytes of the burst's frames, without net headers.
    pub bytes: u32,
    /// Packets in the burst, or packets dropped.
    pub packets: u16,
    /// The virtqueue index: even receives, odd transmits.
    pub ring: u16,
    /// [`RecordKind`] as a number.
    pub kind: u8,
    /// [`BurstRecord::POLLED`].
    pub flags: u8,
    /// For [`RecordKind::Drop`]: the [`DropCause`](crate::DropCause) as a number; for [`RecordKind::Kernel`], the
    /// [`KernelStage`].
    pub cause: u8,
    /// Which worker's it is. A reader fills it in; in a recording it is part of the record.
    pub worker: u8,
    /// Ticks from the first frame's arrival, as the host kernel stamped it, to the first boundary; none when it
    /// did not. At most `u32::MAX`.
    pub wakeup: Option<u32>,
}

impl BurstRecord {
    /// Flag: the worker was polling, so `notice` counts from the last look and is an upper bound.
    pub const POLLED: u8 = 1;
    /// Flag, in the file only: the record has a [`wakeup`](Self::wakeup).
    const ARRIVED: u8 = 2;

    /// What stands for `lost` records of `worker` that were overwritten before they could be read, at `ticks`.
    #[must_use]
    pub fn gap(worker: u8, lost: u64, ticks: u64) -> Self {
        let kind = RecordKind::Gap as u8;
        Self { first: ticks, last: ticks, sequence: lost, kind, worker, ..Self::default() }
    }

    /// Which way the burst went.
    #[inline]
    #[must_use]
    pub const fn direction(&self) -> Direction {
        Direction::of_ring(self.ring)
    }

    /// The time in the kernel that a record tells of, if it does.
    #[must_use]
    pub fn kernel_stage(&self) -> Option<KernelStage> {
        let is_kernel = self.kind == RecordKind::Kernel as u8;
        KernelStage::from_number(self.cause).filter(|_| is_kernel)
    }

    /// Last boundary minus first, ticks.
    #[inline]
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.last.wrapping_sub(self.first)
    }

    /// The record as it stands in the file.
    #[inline]
    #[must_use]
    pub fn to_words(&self) -> [u64; RECORD_WORDS] {
        let stage = |n: usize| self.stages[n].min(u64::from(u32::MAX));
        [
            self.first,
            self.last,
            self.sequence,
            stage(0) | stage(1) << 32,
            stage(2) | stage(3) << 32,
            stage(4) | stage(5) << 32,
            u64::from(self.bytes) | u64::from(self.packets) << 32 | u64::from(self.ring) << 48,
            u64::from(self.kind)
                | u64::from(self.flags | if self.wakeup.is_some() { Self::ARRIVED } else { 0 })
                    << 8
                | u64::from(self.cause) << 16
                | u64::from(self.worker) << 24
                | u64::from(self.wakeup.unwrap_or(0)) << 32,
        ]
    }

    /// The record that `words` hold.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of packed words")]
    pub fn from_words(words: &[u64; RECORD_WORDS]) -> Self {
        let mut stages = [0; STAGES_MAX];
        for (n, stage) in stages.iter_mut().enumerate() {
            *stage = u64::from((words[3 + n / 2] >> (32 * (n % 2))) as u32);
        }
        let total = words[1].wrapping_sub(words[0]);
        if let Some(long) = stages.iter().position(|&stage| stage == u64::from(u32::MAX)) {
            let rest: u64 = stages.iter().sum::<u64>() - stages[long];
            stages[long] = total.saturating_sub(rest);
        }
        let flags = (words[7] >> 8) as u8;
        Self {
            first: words[0],
            last: words[1],
            sequence: words[2],
            stages,
            bytes: words[6] as u32,
            packets: (words[6] >> 32) as u16,
            ring: (words[6] >> 48) as u16,
            kind: words[7] as u8,
            flags: flags & !Self::ARRIVED,
            cause: (words[7] >> 16) as u8,
            worker: (words[7] >> 24) as u8,
            wakeup: (flags & Self::ARRIVED != 0).then_some((words[7] >> 32) as u32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(stages: [u64; STAGES_MAX]) -> BurstRecord {
        BurstRecord {
            first: 1000,
            last: 1000 + stages.iter().sum::<u64>(),
            sequence: 7,
            stages,
            bytes: 64 * 32,
            packets: 32,
            ring: 3,
            kind: RecordKind::Burst as u8,
            flags: BurstRecord::POLLED,
            cause: 5,
            worker: 6,
            wakeup: None,
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let record = record([1, 2, 3, 4, 5, u64::from(u32::MAX) - 1]);
        assert_eq!(BurstRecord::from_words(&record.to_words()), record);
    }

    #[test]
    fn when_the_first_frame_came_is_kept_if_it_is_known() {
        for wakeup in [None, Some(0), Some(1), Some(u32::MAX)] {
            let record = BurstRecord { wakeup, ..record([1, 2, 3, 4, 5, 6]) };
            assert_eq!(BurstRecord::from_words(&record.to_words()), record);
        }
    }

    #[test]
    fn a_stage_longer_than_32_bits_is_exact() {
        for long in 0..STAGES_MAX {
            let mut stages = [10, 20, 30, 40, 50, 60];
            stages[long] = 90_000_000_000;
            let record = record(stages);
            assert_eq!(BurstRecord::from_words(&record.to_words()), record);
        }
    }
}
