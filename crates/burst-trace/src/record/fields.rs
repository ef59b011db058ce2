//! The words of a record, taken apart and put together.

use super::{
    BurstRecord, BurstTimes, CyclicRecord, DropRecord, Gap, KernelSpan, ProbeRecord, RECORD_WORDS,
    Record,
};
use crate::cyclic::{CYCLIC_MAX, CyclicFrame};
use crate::stage::{Direction, DropCause, KernelStage, STAGES_MAX};

/// Flag in the file: the worker was polling.
const POLLED: u8 = 1;
/// Flag in the file: the record has a wake-up.
const ARRIVED: u8 = 2;
/// Flag in the file: word 7 has the time in the stage `limited`, in the place of a wake-up.
const LIMITED: u8 = 4;

/// Where the length of a cyclic frame's counter begins in the byte of its description.
pub const COUNTER_LEN_SHIFT: u8 = 4;
const _: () = assert!(CYCLIC_MAX <= 1 << COUNTER_LEN_SHIFT, "a description's number fits its bits");

/// The kinds of records, by their numbers in the file.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Kind {
    Burst = 1,
    Drop = 2,
    KernelSpan = 3,
    Probe = 4,
    Gap = 5,
    Cyclic = 6,
}

impl Kind {
    const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Burst),
            2 => Some(Self::Drop),
            3 => Some(Self::KernelSpan),
            4 => Some(Self::Probe),
            5 => Some(Self::Gap),
            6 => Some(Self::Cyclic),
            _ => None,
        }
    }
}

/// The words of a record taken apart, before its kind says what they mean.
#[derive(Clone, Copy, Default)]
pub struct Fields {
    pub first: u64,
    pub last: u64,
    pub number: u64,
    pub stages: [u64; STAGES_MAX],
    pub amount: u32,
    pub packets: u16,
    pub ring: u16,
    pub kind: u8,
    pub flags: u8,
    pub cause: u8,
    pub writer: u8,
    pub wakeup: u32,
}

// Two stages a word, in words 3 to 5, and `limited` in word 7: it came later than all others, and is mostly 0.
const _: () = assert!(STAGES_MAX == 2 * 3 + 1, "the stages fill their words");

/// Where `limited` is among the stages of virtqueue `ring`.
const fn limited_at(ring: u16) -> usize {
    match Direction::of_ring(ring) {
        Direction::Tx => 2,
        Direction::Rx => 1,
    }
}

/// The other stages of virtqueue `ring` in their order, by their places.
const fn others(ring: u16) -> [usize; 6] {
    match Direction::of_ring(ring) {
        Direction::Tx => [0, 1, 3, 4, 5, 6],
        Direction::Rx => [0, 2, 3, 4, 5, 6],
    }
}

impl Fields {
    #[inline]
    pub fn to_words(self) -> [u64; RECORD_WORDS] {
        let others = others(self.ring);
        let stage = |n: usize| self.stages[others[n]].min(u64::from(u32::MAX));
        let limited = self.stages[limited_at(self.ring)].min(u64::from(u32::MAX));
        let (flags, late) = match limited {
            0 => (self.flags, u64::from(self.wakeup)),
            // A time from before the limit let it pass says nothing of a wake-up.
            limited => (self.flags & !ARRIVED | LIMITED, limited),
        };
        [
            self.first,
            self.last,
            self.number,
            stage(0) | stage(1) << 32,
            stage(2) | stage(3) << 32,
            stage(4) | stage(5) << 32,
            u64::from(self.amount) | u64::from(self.packets) << 32 | u64::from(self.ring) << 48,
            u64::from(self.kind)
                | u64::from(flags) << 8
                | u64::from(self.cause) << 16
                | u64::from(self.writer) << 24
                | late << 32,
        ]
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of packed words")]
    pub fn of(words: &[u64; RECORD_WORDS]) -> Self {
        let ring = (words[6] >> 48) as u16;
        let flags = (words[7] >> 8) as u8;
        let late = (words[7] >> 32) as u32;
        let mut stages = [0; STAGES_MAX];
        for (n, at) in others(ring).into_iter().enumerate() {
            stages[at] = u64::from((words[3 + n / 2] >> (32 * (n % 2))) as u32);
        }
        let is_limited = flags & LIMITED != 0;
        if is_limited {
            stages[limited_at(ring)] = u64::from(late);
        }
        let total = words[1].wrapping_sub(words[0]);
        if let Some(long) = stages.iter().position(|&stage| stage == u64::from(u32::MAX)) {
            let rest: u64 = stages.iter().sum::<u64>() - stages[long];
            stages[long] = total.saturating_sub(rest);
        }
        Self {
            first: words[0],
            last: words[1],
            number: words[2],
            stages,
            amount: words[6] as u32,
            packets: (words[6] >> 32) as u16,
            ring,
            kind: words[7] as u8,
            flags: if is_limited { flags & !ARRIVED } else { flags },
            cause: (words[7] >> 16) as u8,
            writer: (words[7] >> 24) as u8,
            wakeup: if is_limited { 0 } else { late },
        }
    }

    /// What they mean; `None` when this version does not know.
    #[inline]
    pub fn record(self) -> Option<Record> {
        let Self { packets, ring, writer, .. } = self;
        Some(match Kind::from_number(self.kind)? {
            Kind::Burst if packets == 0 => return None,
            Kind::Burst => {
                let BurstTimes { first, last, stages, is_polled, wakeup, .. } = self.times();
                Record::Burst(BurstRecord {
                    first,
                    last,
                    sequence: self.number,
                    stages,
                    bytes: self.amount,
                    packets,
                    ring,
                    worker: writer,
                    is_polled,
                    wakeup,
                })
            }
            Kind::Drop => {
                let cause = DropCause::from_number(self.cause)?;
                Record::Drop(DropRecord { at: self.first, cause, packets, ring, worker: writer })
            }
            Kind::KernelSpan => {
                let stage = KernelStage::from_number(self.cause)?;
                let worker = stage.is_of_a_worker().then_some(self.amount);
                let (start, end) = (self.first, self.last);
                Record::KernelSpan(KernelSpan { stage, start, end, worker, writer })
            }
            Kind::Probe => {
                let (run, sequence, times) = (self.amount, self.number, self.times());
                Record::Probe(ProbeRecord { run, sequence, packets, times })
            }
            Kind::Cyclic => {
                let counter_len = self.cause >> COUNTER_LEN_SHIFT;
                let bits = 8 * u32::from(counter_len);
                // A counter of 1 to 8 bytes, no longer than it says.
                let is_sane = (1..=8).contains(&counter_len)
                    && self.number.checked_shr(bits).is_none_or(|rest| rest == 0);
                if !is_sane {
                    return None;
                }
                let (stream, counter) = (self.amount, self.number);
                let description = self.cause & ((1 << COUNTER_LEN_SHIFT) - 1);
                let frame = CyclicFrame { description, counter_len, stream, counter };
                Record::Cyclic(CyclicRecord { frame, packets, times: self.times() })
            }
            Kind::Gap => Record::Gap(Gap { writer, records: self.number, at: self.first }),
        })
    }

    #[inline]
    fn times(&self) -> BurstTimes {
        BurstTimes {
            ring: self.ring,
            worker: self.writer,
            first: self.first,
            last: self.last,
            stages: self.stages,
            is_polled: self.flags & POLLED != 0,
            wakeup: (self.flags & ARRIVED != 0).then_some(self.wakeup),
        }
    }
}

#[inline]
pub const fn flags(is_polled: bool, wakeup: Option<u32>) -> u8 {
    (if is_polled { POLLED } else { 0 }) | if wakeup.is_some() { ARRIVED } else { 0 }
}
