//! The recorder in use: one thread writes, another follows.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use burst_trace::file::{Layout, word};
use burst_trace::{
    BurstRecord, Clock, DropCause, DropRecord, Notification, ReadError, Reader, Record, Recorder,
    RecorderError, RecorderOptions, Recording, RecordingWriter,
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

/// A record whose words all follow from its number, so that a mix of two is found.
fn numbered(n: u64) -> BurstRecord {
    BurstRecord {
        first: n * 100,
        last: n * 100 + 21,
        sequence: n,
        stages: [1, 2, 0, 3, 4, 5, 6],
        bytes: u32::try_from(n % 1_000_000).unwrap(),
        packets: u16::try_from(n % 32 + 1).unwrap(),
        ring: 3,
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
    for (kind, count) in Notification::ALL.into_iter().zip(1..) {
        (0..count).for_each(|_| writer.count_notification(3, kind));
    }

    let reader = Reader::open(recorder.path()).unwrap();
    assert_eq!(reader.facts(), r#"{"name":"vm0"}"#);
    assert!(reader.is_running());
    assert!(reader.anchor_latest().realtime_ns > 0);
    assert!(reader.anchor_latest().ticks >= reader.anchor_start().ticks);
    let mut read = Vec::new();
    assert_eq!(reader.read(&mut reader.oldest(1), |record| read.push(*record)), 0);
    assert_eq!(read.len(), 11);
    let of_worker = |n| Record::Burst(BurstRecord { worker: 1, ..numbered(n) });
    assert_eq!(read[..10], (0..10).map(of_worker).collect::<Vec<_>>());
    let dropped =
        DropRecord { at: 77, cause: DropCause::TxTooShort, packets: 4, ring: 3, worker: 1 };
    assert_eq!(read[10], Record::Drop(dropped));
    assert_eq!(reader.totals(3).packets, (1..=10).sum::<u64>());
    assert_eq!(reader.totals(3).bursts, 10);
    assert_eq!(reader.drops(3, DropCause::TxTooShort), 4);
    assert_eq!(reader.drops(1, DropCause::TxTooShort), 0);
    let counted = Notification::ALL.map(|kind| reader.notifications(3).of(kind));
    assert_eq!(counted, [1, 2, 3, 4]);
    assert!(reader.notifications(1).is_empty());
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
                let burst = record.as_burst().expect("a burst");
                assert!(burst.sequence >= seen, "out of order");
                assert_eq!(*burst, numbered(burst.sequence), "a mix of two records");
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

/// Makes word `at` of a recorder's file something else.
fn tamper(options: &RecorderOptions, at: usize, value: u64) {
    let file = fs::OpenOptions::new().write(true).open(&options.path).unwrap();
    file.write_all_at(&value.to_ne_bytes(), 8 * at as u64).unwrap();
}

#[test]
fn nobody_who_may_read_a_recorder_can_hold_up_the_next_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::new();
    let options = options(&dir, 64);
    drop(Recorder::create(&options, &clock).unwrap());
    tamper(&options, word::RUNNING, 1);
    let reader = File::open(&options.path).unwrap();
    rustix::fs::flock(&reader, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let _second = Recorder::create(&options, &clock).unwrap();
    let mode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode();
    assert_eq!((mode("vm0.trace") & 0o777, mode("vm0.lock") & 0o777), (0o640, 0o600));
}

#[test]
fn a_recorder_is_made_at_no_link_fifo_or_file_of_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::new();
    let options = options(&dir, 64);
    let target = dir.path().join("target");
    fs::write(&target, "precious").unwrap();
    let cases: [(&str, &dyn Fn()); 4] = [
        ("found a symbolic link", &|| symlink("target", &options.path).unwrap()),
        ("found a symbolic link", &|| symlink("nowhere", &options.path).unwrap()),
        ("found a FIFO", &|| {
            let mode = rustix::fs::Mode::RWXU;
            rustix::fs::mkfifoat(rustix::fs::CWD, &options.path, mode).unwrap();
        }),
        ("no flight recorder", &|| fs::write(&options.path, "a capture").unwrap()),
    ];
    for (part, make) in cases {
        make();
        let error = Recorder::create(&options, &clock).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("--run-dir"), "{error}");
        fs::remove_file(&options.path).unwrap();
    }
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    assert!(!dir.path().join("nowhere").exists());
    let _recorder = Recorder::create(&options, &clock).unwrap();
}

#[test]
fn a_half_written_anchor_is_waited_for_not_long_and_the_file_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::new();
    let options = options(&dir, 64);
    let recorder = Recorder::create(&options, &clock).unwrap();
    let reader = Reader::open(&options.path).unwrap();
    tamper(&options, word::ANCHOR_VERSION, 3);
    assert!(matches!(Reader::open(&options.path), Err(ReadError::HalfAnchor { .. })));
    assert_eq!(reader.anchor_latest(), reader.anchor_start(), "who reads already goes on");
    drop(recorder);
    tamper(&options, word::RUNNING, 1);
    let _second = Recorder::create(&options, &clock).unwrap();
    assert!(dir.path().join("vm0.trace.crashed").exists());
}

#[test]
fn a_recorder_says_how_exact_its_clock_is_once_it_has_measured_that() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir, 64);
    let clock = Clock::new();
    let recorder = Recorder::create(&options, &clock).unwrap();
    let mut writer = recorder.writer(0, clock);
    let reader = || Reader::open(recorder.path()).unwrap();
    assert_eq!(reader().anchor_error_ns(), None);
    std::thread::sleep(std::time::Duration::from_millis(600));
    // A second of work later.
    let later = clock.now() + 2 * clock.ticks_per_second();
    writer.burst(&BurstRecord { first: later, last: later + 1, ..numbered(1) });
    let error = reader().anchor_error_ns().expect("known");
    assert!((1..100_000).contains(&error), "{error} ns");
    // A line that passes the first anchor in some distance is that much less exact.
    let before = reader();
    let ns = before.anchor_start().monotonic_ns;
    tamper(&options, word::ANCHOR_START + 1, ns - 1_000_000);
    let off = reader().anchor_error_ns().unwrap();
    assert!(off.abs_diff(1_000_000) <= error, "{off} ns");

    let path = dir.path().join("some.rec");
    RecordingWriter::create(&path, &before, "{}").unwrap().finish(&before, true).unwrap();
    assert!(Recording::open(&path).unwrap().anchor_error_ns().is_some());
}

#[test]
fn a_count_of_records_that_makes_no_sense_ends_a_read() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::new();
    let options = options(&dir, 64);
    let recorder = Recorder::create(&options, &clock).unwrap();
    let reader = Reader::open(recorder.path()).unwrap();
    let head = Layout { workers: 2, queue_pairs: 2, capacity: 64 }.head(0);
    let mut cursor = reader.oldest(0);
    for count in [u64::MAX, 5, u64::MAX - 3, 0, 1 << 63] {
        tamper(&options, head, count);
        let mut records = 0;
        reader.read(&mut cursor, |_| records += 1);
        assert!(records <= 64);
        reader.read(&mut reader.oldest(0), |_| records += 1);
        assert!(records <= 128);
        // It goes back while it is read.
        tamper(&options, head, 40);
        let mut oldest = reader.oldest(0);
        reader.read(&mut oldest, |_| tamper(&options, head, 2));
    }
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

#[test]
fn facts_that_are_replaced_are_read_whole() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::create(&options(&dir, 64), &Clock::new()).unwrap();
    let reader = Reader::open(recorder.path()).unwrap();
    let participants = recorder.participants();
    let before = reader.facts_version();
    let is_over = AtomicBool::new(false);
    let mut seen = std::collections::BTreeSet::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in (0..).take_while(|_| !is_over.load(Ordering::Relaxed)) {
                let letter = char::from(b'a' + (n % 26) as u8);
                participants.set_facts(&letter.to_string().repeat(300 + n % 900));
                std::thread::sleep(std::time::Duration::from_micros(20));
            }
        });
        while seen.len() < 20 {
            let facts = reader.facts();
            let mut letters = facts.chars().collect::<Vec<_>>();
            letters.dedup();
            assert!(letters.len() == 1 || facts == r#"{"name":"vm0"}"#, "{facts}");
            seen.insert(letters[0]);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_ne!(reader.facts_version(), before);
}
