//! A recording holds what was pushed, and tells what is missing.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use burst_trace::file::word;
use burst_trace::{
    BurstRecord, Clock, DropCause, Gap, Notification, ReadError, Reader, Record, Recorder,
    RecorderOptions, Recording, RecordingWriter, Source,
};

/// A recorder with two workers.
fn recorder(directory: &Path, clock: &Clock) -> Recorder {
    let options = RecorderOptions {
        path: directory.join("vm0.trace"),
        workers: 2,
        queue_pairs: 1,
        capacity: 64,
        facts: r#"{"name":"vm0"}"#.into(),
    };
    Recorder::create(&options, clock).unwrap()
}

/// A recording of ten bursts that is not finished, with the recorder that it is of.
fn ten_bursts(directory: &Path) -> (Reader, PathBuf, RecordingWriter) {
    let recorder = recorder(directory, &Clock::new());
    let reader = Reader::open(recorder.path()).unwrap();
    let path = directory.join("some.rec");
    let mut writer = RecordingWriter::create(&path, &reader, "{}").unwrap();
    (0..10).for_each(|n| writer.push(&Record::Burst(burst(n, 0))).unwrap());
    (reader, path, writer)
}

fn burst(n: u64, worker: u8) -> BurstRecord {
    BurstRecord {
        first: n * 100,
        last: n * 100 + 21,
        sequence: n,
        stages: [1, 2, 0, 3, 4, 5, 6],
        packets: 1,
        ring: 1,
        worker,
        ..BurstRecord::default()
    }
}

#[test]
fn records_come_back_with_their_worker_and_gaps_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::new();
    let recorder = recorder(directory.path(), &clock);
    let reader = Reader::open(recorder.path()).unwrap();
    let path = directory.path().join("some.rec");
    let mut writer =
        RecordingWriter::create(&path, &reader, r#"{"name":"vm0","host":{}}"#).unwrap();
    let worker = |n| u8::try_from(n % 2).unwrap();
    let records: Vec<_> = (0..100).map(|n| Record::Burst(burst(n, worker(n)))).collect();
    for record in &records[..50] {
        writer.push(record).unwrap();
    }
    writer.push(&Record::Gap(Gap { writer: 1, records: 17, at: 5000 })).unwrap();
    for record in &records[50..] {
        writer.push(record).unwrap();
    }
    assert_eq!(writer.counts(), (100, 17));
    writer.finish(&reader, false).unwrap();

    let source = Source::open(&path).unwrap();
    assert!(matches!(source, Source::Recording(_)));
    let mut read = Vec::new();
    assert_eq!(source.read(|record| read.push(*record)), 17);
    assert_eq!(read, records);
    assert_eq!(source.facts(), r#"{"name":"vm0","host":{}}"#);
    assert_eq!(source.clock(), clock.kind());
    assert!(!source.has_totals());
}

#[test]
fn totals_are_those_of_its_time() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::new();
    let recorder = recorder(directory.path(), &clock);
    let mut worker = recorder.writer(0, clock);
    (0..10).for_each(|n| worker.burst(&burst(n, 0)));
    worker.dropped(1, DropCause::TxTooShort, 3, 1);
    worker.count_notification(1, Notification::CallSent);
    let reader = Reader::open(recorder.path()).unwrap();
    let path = directory.path().join("some.rec");
    let writer = RecordingWriter::create(&path, &reader, "{}").unwrap();
    (0..5).for_each(|n| worker.burst(&burst(n, 0)));
    worker.dropped(1, DropCause::TxTooShort, 4, 1);
    (0..2).for_each(|_| worker.count_notification(1, Notification::CallSent));
    writer.finish(&reader, true).unwrap();
    let source = Source::open(&path).unwrap();
    assert!(source.has_totals());
    assert_eq!(source.totals(1).packets, 5);
    assert_eq!(source.drops(1, DropCause::TxTooShort), 4);
    assert_eq!(source.notifications(1).of(Notification::CallSent), 2);
}

#[test]
fn one_that_was_not_finished_is_read_as_far_as_it_goes() {
    let directory = tempfile::tempdir().unwrap();
    let (reader, path, writer) = ten_bursts(directory.path());
    writer.finish(&reader, false).unwrap();
    // Half a record at its end.
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 32).unwrap();
    let recording = Recording::open(&path).unwrap();
    assert_eq!(recording.len(), 9);
    assert_eq!(recording.record(8), Record::Burst(burst(8, 0)));
}

#[test]
fn one_that_was_cut_ends_with_its_last_whole_record() {
    let directory = tempfile::tempdir().unwrap();
    let (reader, path, mut writer) = ten_bursts(directory.path());
    writer.flush().unwrap();
    assert_eq!(Recording::open(&path).unwrap().len(), 10, "also while it is written");
    writer.push(&Record::Burst(burst(10, 0))).unwrap();
    writer.cut(&reader).unwrap();
    let recording = Recording::open(&path).unwrap();
    assert_eq!((recording.len(), recording.has_totals()), (10, false));
}

#[test]
fn sizes_that_no_daemon_writes_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::new();
    let recorder = recorder(directory.path(), &clock);
    let path = directory.path().join("copy");
    for (at, sizes) in [
        (word::WORKERS, &[0, 1025, 1 << 32, u64::MAX][..]),
        (word::QUEUE_PAIRS, &[0, 1025, 1 << 60, u64::MAX]),
        (word::CAPACITY, &[0, 3, 1 << 24, 1 << 58, u64::MAX]),
        (word::CLOCK, &[0, 4, u64::MAX]),
    ] {
        for &size in sizes {
            fs::copy(recorder.path(), &path).unwrap();
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&size.to_ne_bytes(), 8 * at as u64).unwrap();
            // There is room for whatever it says: holes cost nothing.
            file.set_len(1 << 42).unwrap();
            let opened = Source::open(&path);
            assert!(matches!(opened, Err(ReadError::Format { .. })), "word {at}: {size}");
        }
    }
}

#[test]
fn another_version_of_the_format_is_refused_with_a_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::new();
    let recorder = recorder(directory.path(), &clock);
    let reader = Reader::open(recorder.path()).unwrap();
    let path = directory.path().join("some.rec");
    RecordingWriter::create(&path, &reader, "{}").unwrap().finish(&reader, false).unwrap();
    for file in [recorder.path(), &path] {
        for version in [0_u64, 2, u64::MAX] {
            let at = 8 * word::VERSION as u64;
            let opened = OpenOptions::new().write(true).open(file).unwrap();
            opened.write_all_at(&version.to_ne_bytes(), at).unwrap();
            let error = Source::open(file).unwrap_err();
            assert!(matches!(error, ReadError::Version { found, .. } if found == version));
            let said = format!(
                "expected version 1 of the recorder's file format, found version {version};"
            );
            assert!(error.to_string().contains(&said), "{error}");
        }
    }
}

#[test]
fn anything_else_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("else");
    for bytes in [vec![], vec![0; 100], vec![1; 10_000]] {
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(Source::open(&path), Err(ReadError::Format { .. })));
    }
    let clock = Clock::new();
    let recorder = recorder(directory.path(), &clock);
    assert!(matches!(Source::open(recorder.path()), Ok(Source::Recorder(_))));
    assert!(matches!(Recording::open(recorder.path()), Err(ReadError::Format { .. })));
}
