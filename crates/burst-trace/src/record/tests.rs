use super::*;
use crate::interruption::{Culprit, InterruptionCause, Subject};
use crate::migration::Clocks;
use crate::milestone::Step;
use crate::restart::Ending;

fn burst(stages: [u64; STAGES_MAX]) -> BurstRecord {
    BurstRecord {
        first: 1000,
        last: 1000 + stages.iter().sum::<u64>(),
        sequence: 7,
        stages,
        bytes: 64 * 32,
        packets: 32,
        ring: 3,
        worker: 6,
        is_polled: true,
        wakeup: None,
    }
}

fn milestone() -> Milestone {
    Milestone { at: 5, step: Step::Announced([1, 2, 3, 4, 5, 6]), writer: 4 }
}

fn migration() -> Migration {
    Migration {
        before: 5,
        stopped: 6,
        left: 0,
        connected: 3,
        started: 7,
        announced: 7,
        after: 8,
        sent: 7 + 1024,
        clocks: Clocks::Within(9),
        writer: 4,
    }
}

/// One of each kind.
fn every_kind() -> [Record; 11] {
    let burst = BurstRecord { wakeup: Some(9), ..burst([1, 2, 0, 3, 4, 5, 6]) };
    let (start, end) = (5, 8);
    [
        Record::Burst(burst),
        Record::Drop(DropRecord {
            at: 5,
            cause: DropCause::TxTooLong,
            packets: 3,
            ring: 1,
            worker: 2,
        }),
        Record::KernelSpan(KernelSpan {
            stage: KernelStage::HostTx,
            start,
            end,
            worker: Some(1),
            writer: 4,
        }),
        Record::KernelSpan(KernelSpan {
            stage: KernelStage::Inject,
            start,
            end,
            worker: None,
            writer: 4,
        }),
        Record::Probe(ProbeRecord { run: 11, sequence: 12, packets: 32, times: burst.times() }),
        Record::Gap(Gap { writer: 3, records: 1000, at: 8 }),
        Record::Restart(Restart {
            before: 5,
            listening: 6,
            started: 7,
            after: 8,
            ending: Ending::Killed,
            processes: [7, 8],
            is_resumed: true,
            writer: 4,
        }),
        Record::Cyclic(CyclicRecord {
            frame: CyclicFrame { description: 5, counter_len: 2, stream: 13, counter: 0xffff },
            packets: 32,
            times: burst.times(),
        }),
        Record::Interruption(Interruption {
            start,
            end,
            subject: Subject::Worker(2),
            thread: 21,
            cause: InterruptionCause::Preempted,
            culprit: Culprit {
                process: 22,
                thread: 23,
                command: *b"abcdefgh\x01\0\0\0\0\0\0\0",
                policy: 1,
                priority: 50,
            },
            detail: 24,
            cpu: 3,
            writer: 4,
        }),
        Record::Milestone(milestone()),
        Record::Migration(migration()),
    ]
}

#[test]
fn a_record_of_each_kind_comes_back_as_it_was() {
    for record in every_kind() {
        assert_eq!(Record::from_words(&record.to_words()), record);
    }
    let record = Record::Burst(burst([1, 2, 0, 3, 4, 5, u64::from(u32::MAX) - 1]));
    assert_eq!(Record::from_words(&record.to_words()), record);
}

/// The numbers in the file: they stay as they are, so that old recordings can be read.
#[test]
fn the_layout_in_the_file_does_not_change() {
    let words = every_kind().map(|record| record.to_words());
    assert_eq!(
        words,
        [
            [
                1000,
                1021,
                7,
                1 | 2 << 32,
                3 | 4 << 32,
                5 | 6 << 32,
                2048 | 32 << 32 | 3 << 48,
                1 | 3 << 8 | 6 << 24 | 9 << 32
            ],
            [5, 5, 0, 0, 0, 0, 3 << 32 | 1 << 48, 2 | 4 << 16 | 2 << 24],
            [5, 8, 0, 0, 0, 0, 1 | 1 << 48, 3 | 2 << 16 | 4 << 24],
            [5, 8, 0, 0, 0, 0, 0, 3 | 4 << 16 | 4 << 24],
            [
                1000,
                1021,
                12,
                1 | 2 << 32,
                3 | 4 << 32,
                5 | 6 << 32,
                11 | 32 << 32 | 3 << 48,
                4 | 3 << 8 | 6 << 24 | 9 << 32
            ],
            [8, 8, 1000, 0, 0, 0, 0, 5 | 3 << 24],
            [5, 8, 6, 7, 7 | 8 << 32, 0, 0, 8 | 3 << 8 | 4 << 24],
            [
                1000,
                1021,
                0xffff,
                1 | 2 << 32,
                3 | 4 << 32,
                5 | 6 << 32,
                13 | 32 << 32 | 3 << 48,
                6 | 3 << 8 | 0x25 << 16 | 6 << 24 | 9 << 32
            ],
            [
                5,
                8,
                u64::from_le_bytes(*b"abcdefgh"),
                1,
                22 | 23 << 32,
                21 | 24 << 32,
                2 | 3 << 32 | 1 << 48 | 50 << 56,
                7 | 1 << 16 | 4 << 24
            ],
            [5, 5, 0, 0, 0, 0, 0x0102_0304_0506, 9 | 4 << 16 | 4 << 24],
            [5, 8, 6, 0, 3, 7, 1 | 2 << 32, 10 | 1 << 8 | 4 << 24 | 9 << 32],
        ]
    );
}

#[test]
fn what_this_version_does_not_know_is_kept_as_it_is() {
    let kind = 77;
    let cause = 2 | 0xff << 16;
    let stage = 3 | 9 << 16;
    let burst_without_packets = 1;
    let counter_without_bytes = 6;
    let counter_too_long = 6 | 9 << 20;
    let interruption_of_nobody = 7 | 3 << 8 | 1 << 16;
    let interruption_without_cause = 7;
    let more_than_its_bytes = 6 | 1 << 20;
    let milestone_without_step = 9 | 5 << 16;
    let migration_without_clocks = 10 | 3 << 8;
    for last in [
        0,
        kind,
        cause,
        stage,
        burst_without_packets,
        counter_without_bytes,
        counter_too_long,
        more_than_its_bytes,
        interruption_of_nobody,
        interruption_without_cause,
        milestone_without_step,
        migration_without_clocks,
    ] {
        let words = [1, 2, 0x100, 4, 5, 6, 0, last | 5 << 24];
        let record = Record::from_words(&words);
        assert_eq!(record, Record::Unknown(words));
        assert_eq!((record.first(), record.last(), record.writer()), (1, 2, 5));
        assert_eq!(record.to_words(), words);
    }
}

#[test]
fn a_recorders_reader_says_whose_a_record_is() {
    for record in every_kind() {
        let read = Record::from_words_of(200, record.to_words());
        assert_eq!(read.writer(), 200);
        assert_eq!((read.first(), read.last()), (record.first(), record.last()));
    }
}

#[test]
fn when_the_first_frame_came_is_kept_if_it_is_known() {
    for wakeup in [None, Some(0), Some(1), Some(u32::MAX)] {
        let record = Record::Burst(BurstRecord { wakeup, ..burst([1, 2, 0, 3, 4, 5, 6]) });
        assert_eq!(Record::from_words(&record.to_words()), record);
    }
}

#[test]
fn a_time_that_the_limit_took_has_the_place_of_a_wakeup() {
    for (ring, stages) in [(3, [1, 2, 9, 3, 4, 5, 6]), (2, [1, 9, 2, 3, 4, 5, 0])] {
        let limited = BurstRecord { ring, ..burst(stages) };
        let record = Record::Burst(BurstRecord { wakeup: Some(7), ..limited });
        let words = record.to_words();
        assert_eq!(Record::from_words(&words), Record::Burst(limited));
        // All other words are as before there was a limit.
        let before = stages.iter().copied().filter(|&stage| stage != 9).collect::<Vec<u64>>();
        let plain = [words[3], words[4], words[5]];
        let pairs = [0, 2, 4].map(|n| before[n] | before[n + 1] << 32);
        assert_eq!((plain, words[7] >> 32, words[7] >> 8 & 7), (pairs, 9, 5));
    }
}

#[test]
fn a_stage_longer_than_32_bits_is_exact() {
    for long in 0..STAGES_MAX {
        let mut stages = [10, 20, 25, 30, 40, 50, 60];
        stages[long] = 90_000_000_000;
        let record = Record::Burst(burst(stages));
        assert_eq!(Record::from_words(&record.to_words()), record);
    }
}

#[test]
fn a_stage_lies_between_its_boundaries() {
    let times = burst([1, 2, 0, 3, 4, 5, 6]).times();
    assert_eq!(times.during(Stage::Notice), (1000, 1001));
    assert_eq!(times.during(Stage::Egress), (1006, 1010));
    assert_eq!(times.during(Stage::Signal), (1015, 1021));
    let forged = BurstTimes { stages: [u64::MAX; STAGES_MAX], ..times };
    assert_eq!(forged.during(Stage::Signal), (u64::MAX, u64::MAX));
}
