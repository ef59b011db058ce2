//! The newest records of a recorder as a recorder of their own.

use std::fs;
use std::path::Path;

use burst_trace::{BurstRecord, Clock, Reader, Record, Recorder, RecorderOptions};

/// Records that a worker has places for.
const CAPACITY: usize = 64;

/// Everything that a recorder holds of a worker.
fn held(path: &Path, worker: usize) -> Vec<Record> {
    let reader = Reader::open(path).unwrap();
    let mut found = Vec::new();
    assert_eq!(reader.read(&mut reader.oldest(worker), |record| found.push(*record)), 0);
    found
}

fn write(recorder: &Recorder, clock: Clock, worker: usize, sequences: std::ops::Range<u64>) {
    let mut writer = recorder.writer(worker, clock);
    for sequence in sequences {
        let last = clock.now();
        let burst = BurstRecord {
            first: last - 21,
            last,
            sequence,
            packets: 1,
            ring: 1,
            ..Default::default()
        };
        writer.burst(&burst);
    }
}

#[test]
fn a_tail_has_the_newest_records_and_all_totals() {
    let clock = Clock::new();
    for (before, own) in [(0, 0), (0, 5), (0, 500), (5, 3), (100, 3), (100, 40), (100, 500)] {
        let directory = tempfile::tempdir().unwrap();
        let options = RecorderOptions {
            path: directory.path().join("vm0.trace"),
            workers: 2,
            queue_pairs: 1,
            capacity: CAPACITY,
            facts: "{}".to_owned(),
        };
        let first = Recorder::create(&options, &clock).unwrap();
        write(&first, clock, 0, 0..before);
        drop(first);
        let second = Recorder::create(&options, &clock).unwrap();
        second.copy_before();
        write(&second, clock, 0, before..before + own);
        write(&second, clock, 1, 0..2);

        let all = held(second.path(), 0);
        let reader = Reader::of(&second.share().unwrap(), second.path()).unwrap();
        for records in [1, 8, 40, 64, 1000] {
            let path = directory.path().join("tail");
            let tail = reader.tail(records);
            fs::write(&path, &tail).unwrap();
            let copy = Reader::open(&path).unwrap();
            let newest = held(&path, 0);
            // Of each worker one fewer than it has places for, a power of two.
            let places = 1 << (records / 2).clamp(2, CAPACITY).ilog2();
            assert_eq!(newest.len(), all.len().min(places - 1), "{before}, {own}, {records}");
            assert_eq!(newest, all[all.len() - newest.len()..], "{before}, {own}, {records}");
            assert_eq!(held(&path, 1).len(), 2.min(places - 1));
            assert!(
                tail.len() <= 4096 + 2 * 512 + 2 * 64 + records.max(4) * 2 * 64,
                "{}",
                tail.len()
            );
            assert_eq!(copy.totals(1), reader.totals(1));
            assert_eq!(copy.first_sequence(1), reader.first_sequence(1));
            assert_eq!(copy.facts(), reader.facts());
            assert_eq!(copy.anchor_latest(), reader.anchor_latest());
            assert!(!copy.is_running(), "its daemon is not that of this host");
        }
    }
}
