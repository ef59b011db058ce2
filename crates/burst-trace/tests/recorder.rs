//! The recorder as its two users see it: one thread writes, another follows.

use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use burst_trace::{
    BurstRecord, Clock, DropCause, Reader, RecordKind, Recorder, RecorderError, RecorderOptions,
};

fn options(dir: &tempfile::TempDir, capacity: usize) -> RecorderOptions {
    RecorderOptions {
        path: dir.path().join("vm0.trace"),
        workers: 2,
        queue_pairs: 2,
        capacity,
        facts: r#"{"name":"vm0"}"#.into(),
    }
}

/// A record whose words all follow from its number, so that a torn one shows.
fn numbered(n: u64) -> BurstRecord {
    BurstRecord {
        first: n * 100,
        last: n * 100 + 21,
        sequence: n,
        stages: [1, 2, 3, 4, 5, 6],
        bytes: u32::try_from(n % 1_000_000).unwrap(),
        packets: u16::try_from(n % 32 + 1).unwrap(),
        ring: 3,
        kind: RecordKind::Burst as u8,
        ..BurstRecord::default()
    }
}

#[test]
fn what_was_written_is_read_with_its_totals_and_drops() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::new();
    let recorder = Recorder::create(&options(&dir, 64), &clock).unwrap();
    let mut writer = recorder.writer(1, clock);
    for n in 0..10 {
        writer.burst(&numbered(n));
    }
    writer.dropped(3, DropCause::TxTooShort, 4, 77);

    let reader = Reader::open(recorder.path()).unwrap();
    assert_eq!(reader.facts(), r#"{"name":"vm0"}"#);
    assert!(reader.is_running());
    assert!(reader.anchor_latest().realtime_ns > 0);
    assert!(reader.anchor_latest().ticks >= reader.anchor_start().ticks);
    let mut read = Vec::new();
    assert_eq!(reader.read(&mut reader.oldest(1), |record| read.push(*record)), 0);
    assert_eq!(read.len(), 11);
    let of_worker = |n| BurstRecord { worker: 1, ..numbered(n) };
    assert_eq!(read[..10], (0..10).map(of_worker).collect::<Vec<_>>());
    assert_eq!((read[10].kind, read[10].packets), (RecordKind::Drop as u8, 4));
    assert_eq!(reader.totals(3).packets, (1..=10).sum::<u64>());
    assert_eq!(reader.totals(3).bursts, 10);
    assert_eq!(reader.drops(3, DropCause::TxTooShort), 4);
    assert_eq!(reader.drops(1, DropCause::TxTooShort), 0);
    drop(recorder);
    assert!(!reader.is_running());
}

#[test]
fn a_follower_gets_whole_records_in_order_and_counts_the_rest() {
    const RECORDS: u64 = 2_000_000;
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::new();
    let recorder = Recorder::create(&options(&dir, 1024), &clock).unwrap();
    let reader = Reader::open(recorder.path()).unwrap();
    let mut writer = recorder.writer(0, clock);
    let done = AtomicBool::new(false);
    let (mut seen, mut lost) = (0, 0);
    let mut cursor = reader.oldest(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..RECORDS {
                writer.burst(&numbered(n));
            }
            done.store(true, Ordering::Release);
        });
        loop {
            let last_round = done.load(Ordering::Acquire);
            lost += reader.read(&mut cursor, |record| {
                assert!(record.sequence >= seen, "out of order");
                assert_eq!(*record, numbered(record.sequence), "torn record");
                seen += 1;
            });
            if last_round {
                break;
            }
        }
    });
    assert_eq!(seen + lost, RECORDS);
    assert!(seen > 0);
}

#[test]
fn a_crashed_daemons_recorder_is_kept_aside() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::new();
    let options = options(&dir, 64);
    let recorder = Recorder::create(&options, &clock).unwrap();
    let Err(RecorderError::InUse { pid, .. }) = Recorder::create(&options, &clock) else {
        panic!("it is being written");
    };
    assert_eq!(pid, u64::from(std::process::id()));
    drop(recorder);
    // What a daemon that was killed leaves: its process is gone, and nobody marked the end.
    let file = std::fs::OpenOptions::new().write(true).open(&options.path).unwrap();
    file.write_all_at(&1_u64.to_le_bytes(), 8 * burst_trace::file::word::RUNNING as u64).unwrap();
    let _second = Recorder::create(&options, &clock).unwrap();
    assert!(dir.path().join("vm0.trace.crashed").exists());
}

#[test]
fn a_run_directory_that_cannot_be_made_is_said_in_one_sentence() {
    let clock = Clock::new();
    let mut options = options(&tempfile::tempdir().unwrap(), 64);
    options.path = "/proc/no/such/vm0.trace".into();
    let error = Recorder::create(&options, &clock).unwrap_err();
    assert!(matches!(error, RecorderError::Io { .. }));
    assert!(error.to_string().contains("--run-dir"), "{error}");
}

#[test]
fn a_recorder_that_is_truncated_ends_neither_who_writes_it_nor_who_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::new();
    let recorder = Recorder::create(&options(&dir, 1024), &clock).unwrap();
    let reader = Reader::open(recorder.path()).unwrap();
    let mut writer = recorder.writer(1, clock);
    (0..100).for_each(|n| writer.burst(&numbered(n)));
    let mut cursor = reader.oldest(1);
    assert_eq!(reader.read(&mut cursor, |_| {}), 0);
    std::fs::OpenOptions::new().write(true).open(recorder.path()).unwrap().set_len(0).unwrap();
    (0..3000).for_each(|n| writer.burst(&numbered(n)));
    let mut read = 0;
    assert_eq!(reader.read(&mut cursor, |_| read += 1), 0);
    assert_eq!((read, reader.totals(3).packets, reader.anchor_latest().ticks), (0, 0, 0));
    assert!(writer.is_torn() && reader.is_torn());
}
