//! A recorder that begins with the records of the daemon before it, whatever that left.

use std::fs;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use burst_trace::file::{HEADER_WORDS, Layout, RING_FIRST, RING_PACKETS, WORKER_BEFORE, word};
use burst_trace::{Before, BurstRecord, Clock, Ending, Reader, Record, Recorder, RecorderOptions};
use host_files::FileId;
use proptest::prelude::*;

const LAYOUT: Layout = Layout { workers: 2, queue_pairs: 1, capacity: 64 };

/// One for all: to make one takes 20 ms.
static CLOCK: LazyLock<Clock> = LazyLock::new(Clock::new);

struct Bench {
    _directory: tempfile::TempDir,
    options: RecorderOptions,
    clock: Clock,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let Layout { workers, queue_pairs, capacity } = LAYOUT;
        let path = directory.path().join("vm0.trace");
        let options =
            RecorderOptions { path, workers, queue_pairs, capacity, facts: "{}".to_owned() };
        Self { _directory: directory, options, clock: *CLOCK }
    }

    /// What the next daemon makes.
    fn next(&self) -> Recorder {
        Recorder::create(&self.options, &self.clock).unwrap()
    }

    /// The same, with the records of the daemon before.
    fn next_with_before(&self) -> Recorder {
        let recorder = self.next();
        recorder.copy_before();
        recorder
    }

    /// Has `recorder` end: in order, or by SIGKILL.
    fn end(&self, recorder: Recorder, killed: bool) {
        drop(recorder);
        if killed {
            self.tamper(word::RUNNING, 1);
        }
    }

    fn tamper(&self, at: usize, value: u64) {
        let file = fs::File::options().write(true).open(&self.options.path).unwrap();
        file.write_all_at(&value.to_ne_bytes(), 8 * at as u64).unwrap();
    }

    fn beside(&self, extension: &str) -> PathBuf {
        let mut path = self.options.path.as_os_str().to_owned();
        path.push(extension);
        path.into()
    }

    /// A burst that ends now.
    fn burst(&self, sequence: u64) -> BurstRecord {
        let last = self.clock.now();
        BurstRecord { first: last - 21, last, sequence, packets: 1, ring: 1, ..Default::default() }
    }

    /// Has `worker` of `recorder` write these bursts.
    fn write(&self, recorder: &Recorder, worker: usize, sequences: std::ops::Range<u64>) {
        let mut writer = recorder.writer(worker, self.clock);
        sequences.for_each(|sequence| writer.burst(&self.burst(sequence)));
    }
}

/// The sequence numbers in the part of `worker`.
fn sequences(path: &Path, worker: usize) -> Vec<u64> {
    let reader = Reader::open(path).unwrap();
    let mut found = Vec::new();
    let lost = reader.read(&mut reader.oldest(worker), |record| match record {
        Record::Burst(burst) => found.push(burst.sequence),
        other => assert!(matches!(other, Record::Restart(_)), "{other:?}"),
    });
    assert_eq!(lost, 0);
    found
}

#[test]
fn the_records_of_the_daemon_before_come_first() {
    for killed in [false, true] {
        let bench = Bench::new();
        let first = bench.next();
        assert_eq!(first.copy_before(), Before::Nothing);
        bench.write(&first, 0, 0..10);
        bench.write(&first, 1, 10..13);
        let old = Reader::open(first.path()).unwrap();
        bench.end(first, killed);

        let second = bench.next();
        assert_eq!(second.copy_before(), Before::Continued(13));
        bench.write(&second, 0, 100..103);
        assert_eq!(sequences(second.path(), 0), (0..10).chain(100..103).collect::<Vec<_>>());
        assert_eq!(sequences(second.path(), 1), [10, 11, 12]);
        let reader = Reader::open(second.path()).unwrap();
        assert_eq!(reader.totals(1).bursts, 3, "the counters are those of the new daemon");
        assert_eq!((reader.first_sequence(0), reader.first_sequence(1)), (0, 13));
        assert_eq!(second.writer(0, bench.clock).first_sequence(1), 13);
        let mut own = 0;
        for worker in 0..2 {
            reader.read(&mut reader.oldest_of_last_daemon(worker), |_| own += 1);
        }
        assert_eq!(own, 4, "three bursts and the restart");
        // Who has the old file open sees it end.
        assert_ne!(FileId::of_path(second.path()), Some(old.file()));
        assert_eq!(old.held(0), 10);
        assert_eq!(bench.beside(".crashed").exists(), killed);
        assert!(!bench.beside(".new").exists());
    }
}

#[test]
fn a_recorder_that_was_full_goes_on_and_on() {
    let bench = Bench::new();
    let mut expected = Vec::new();
    for life in 0..5 {
        let recorder = bench.next_with_before();
        let own = life * 1000..life * 1000 + 40;
        bench.write(&recorder, 0, own.clone());
        let mut written = 40;
        expected.extend(own.map(Some));
        if life > 0 {
            // The restart is after its first burst.
            expected.insert(expected.len() - 39, None);
            written += 1;
        }
        let mut held = Vec::new();
        let reader = Reader::open(recorder.path()).unwrap();
        reader.read(&mut reader.oldest(0), |record| {
            held.push(record.as_burst().map(|burst| burst.sequence));
        });
        assert_eq!(held, expected[expected.len() - expected.len().min(LAYOUT.capacity - 1)..]);
        bench.end(recorder, true);
        // It was killed while it wrote a record.
        bench.tamper(LAYOUT.record(0, written), u64::MAX);
    }
}

#[test]
fn times_in_the_host_kernel_may_begin_or_end_with_a_daemon() {
    let mut bench = Bench::new();
    for (n, writers) in (0..).zip([2, 3, 2, 1]) {
        bench.options.workers = writers;
        let next = bench.next_with_before();
        bench.write(&next, 0, n..n + 1);
        assert_eq!(sequences(next.path(), 0), (0..=n).collect::<Vec<_>>());
    }
}

#[test]
fn what_cannot_be_continued_is_said_in_one_sentence() {
    let other_size = |change: fn(&mut RecorderOptions)| {
        let mut bench = Bench::new();
        let first = bench.next();
        bench.write(&first, 0, 0..3);
        drop(first);
        change(&mut bench.options);
        bench.next().copy_before()
    };
    let tampered = |at: usize, value: u64| {
        let bench = Bench::new();
        let first = bench.next();
        bench.write(&first, 0, 0..3);
        drop(first);
        bench.tamper(at, value);
        let second = bench.next();
        assert!(sequences(second.path(), 0).is_empty(), "nothing of it is in the new one");
        assert_eq!(second.writer(0, bench.clock).first_sequence(0), 0);
        second.copy_before()
    };
    let second = |at| LAYOUT.record(0, 1) + at;
    for (part, before) in [
        ("expected 4 writers, found 2", other_size(|options| options.workers = 4)),
        ("expected 2 queue pairs, found 1", other_size(|options| options.queue_pairs = 2)),
        ("expected 128 records", other_size(|options| options.capacity = 128)),
        ("found version 9", tampered(word::VERSION, 9)),
        ("the host was booted since", tampered(word::BOOT, 7)),
        ("expected the clock", tampered(word::CLOCK, (CLOCK.kind() as u64) % 3 + 1)),
        ("its clock jumped", tampered(word::ANCHOR_LATEST, 5)),
        ("its clock jumped", tampered(word::ANCHOR_LATEST, u64::MAX)),
        ("its clock jumped", tampered(word::ANCHOR_LATEST + 1, u64::MAX)),
        ("half written", tampered(word::ANCHOR_VERSION, 1)),
        ("record 1 of its writer 0 is damaged", tampered(second(7), 0)),
        ("record 1 of its writer 0 is damaged", tampered(second(7), 5)),
        ("record 1 of its writer 0 is damaged", tampered(second(0), u64::MAX)),
        ("record 1 of its writer 0 is damaged", tampered(second(1), u64::MAX)),
        ("record 1 of its writer 0 is damaged", tampered(second(6), 1 << 32 | 2 << 48)),
        ("record 3 of its writer 0 is damaged", tampered(LAYOUT.head(0), 4)),
        ("writer 0 is damaged", tampered(LAYOUT.head(0), u64::MAX)),
        ("sizes that fit", tampered(word::CAPACITY, 63)),
        ("the counters of its queue 1", tampered(LAYOUT.ring(1) + RING_PACKETS, 1 << 63)),
        ("the counters of its queue 0", tampered(LAYOUT.ring(0) + RING_FIRST, u64::MAX)),
    ] {
        let Before::Unfit(why) = &before else { panic!("{part}: {before:?}") };
        assert!(why.contains(part) && !why.contains('\n'), "{part}: {why}");
    }
}

#[test]
fn a_file_without_records_is_nothing_and_one_that_was_cut_is_unfit() {
    let bench = Bench::new();
    drop(bench.next());
    assert_eq!(bench.next().copy_before(), Before::Nothing);
    bench.tamper(word::MAGIC, 0);
    assert_eq!(bench.next().copy_before(), Before::Nothing);
    fs::write(&bench.options.path, "").unwrap();
    assert_eq!(bench.next().copy_before(), Before::Nothing);
    let cut = fs::File::options().write(true).open(&bench.options.path).unwrap();
    cut.set_len(HEADER_WORDS as u64 * 8 + 64).unwrap();
    assert!(matches!(bench.next().copy_before(), Before::Unfit(_)));
}

#[test]
fn a_daemon_that_was_killed_while_it_made_its_recorder_is_in_nobodys_way() {
    let bench = Bench::new();
    let first = bench.next();
    bench.write(&first, 0, 0..3);
    drop(first);
    fs::write(bench.beside(".new"), "half").unwrap();
    let second = bench.next_with_before();
    assert_eq!(sequences(second.path(), 0), [0, 1, 2]);
    drop(second);
    symlink("/dev/null", bench.beside(".new")).unwrap();
    let error = Recorder::create(&bench.options, &bench.clock).unwrap_err().to_string();
    assert!(error.contains("found a symbolic link"), "{error}");
    assert_eq!(sequences(&bench.options.path, 0), [0, 1, 2], "the old one is still there");
}

/// What a word of the file may be changed to.
fn words() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), 0..70_u64, Just(u64::MAX), (0..64_u32).prop_map(|bit| 1 << bit)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn a_recorder_of_arbitrary_words_is_refused_or_makes_sense(
        written in 0..100_u64,
        changes in prop::collection::vec((0..LAYOUT.words_with_before(), words()), 0..12),
        in_header in prop::collection::vec((0..word::FACTS, words()), 0..2),
        len in prop::option::weighted(0.1, 0..LAYOUT.words_with_before() as u64 * 8),
    ) {
        let bench = Bench::new();
        bench.write(&bench.next(), 0, 0..written);
        let first = bench.next();
        bench.write(&first, 0, 0..written);
        bench.write(&first, 1, 0..written / 2);
        drop(first);
        for (at, value) in changes.into_iter().chain(in_header) {
            // A version that is odd is waited for.
            if at != word::ANCHOR_VERSION {
                bench.tamper(at, value);
            }
        }
        if let Some(len) = len {
            fs::File::options().write(true).open(&bench.options.path).unwrap().set_len(len).unwrap();
        }
        let Ok(recorder) = Recorder::create(&bench.options, &bench.clock) else { return Ok(()) };
        let before = recorder.copy_before();
        bench.write(&recorder, 0, 0..5);
        let reader = Reader::open(recorder.path()).unwrap();
        let mut sound = 0;
        for worker in 0..LAYOUT.workers {
            prop_assert_eq!(reader.read(&mut reader.oldest(worker), |record| {
                let is_odd = matches!(record, Record::Unknown(_) | Record::Gap(_));
                sound += u64::from(!is_odd && record.last() <= reader_limit(&bench));
            }), 0);
        }
        let held = reader.held(0) + reader.held(1);
        prop_assert_eq!(sound, held);
        match before {
            Before::Continued(records) => prop_assert!(records + 6 >= held),
            // With the restart, if its last burst was sound.
            Before::Unfit(_) => prop_assert!(held == 5 || held == 6),
            Before::Nothing | Before::OtherFlags => prop_assert_eq!(held, 5),
        }
    }
}

fn reader_limit(bench: &Bench) -> u64 {
    bench.clock.now() + bench.clock.ticks_per_second()
}

#[test]
fn the_number_of_records_before_is_bounded_by_what_is_there() {
    let bench = Bench::new();
    let first = bench.next();
    bench.write(&first, 0, 0..5);
    drop(first);
    let second = bench.next();
    bench.write(&second, 0, 0..2);
    let read = |read_before: bool| {
        let reader = Reader::open(second.path()).unwrap();
        let last = reader.oldest_of_last_daemon(0);
        let mut cursor = if read_before { reader.oldest(0) } else { last };
        let mut records = 0;
        assert_eq!(reader.read(&mut cursor, |_| records += 1), 0);
        records
    };
    // Without their part of the file there are none.
    bench.tamper(LAYOUT.head(0) + WORKER_BEFORE, 5);
    bench.tamper(word::BEFORE, 1);
    assert_eq!((read(true), read(false)), (3, 3));
    second.copy_before();
    assert_eq!((read(true), read(false)), (8, 3));
    bench.tamper(LAYOUT.head(0) + WORKER_BEFORE, u64::MAX);
    assert_eq!((read(true), read(false)), (LAYOUT.capacity - 1, 3));
}

/// The records of the daemon before come while a worker overruns all of its own and readers come and go.
#[test]
fn a_reader_has_all_records_of_the_daemon_before_or_none() {
    let bench = Bench::new();
    let first = bench.next();
    bench.write(&first, 0, 0..63);
    bench.write(&first, 1, 0..40);
    drop(first);
    let second = bench.next();
    std::thread::scope(|scope| {
        scope.spawn(|| bench.write(&second, 0, 1000..5000));
        scope.spawn(|| second.copy_before());
        loop {
            let reader = Reader::open(second.path()).unwrap();
            let mut found = [Vec::new(), Vec::new()];
            for (worker, found) in found.iter_mut().enumerate() {
                reader.read(&mut reader.oldest(worker), |record| match record {
                    Record::Burst(burst) => found.push(burst.sequence),
                    other => assert!(matches!(other, Record::Restart(_)), "{other:?}"),
                });
            }
            let [of_first, of_second] = found;
            assert!(of_first.is_sorted(), "{of_first:?}");
            let of_before = of_first.iter().filter(|&&sequence| sequence < 1000).count() as u64;
            let own = of_first.last().map_or(0, |&last| last.saturating_sub(999));
            match of_second.len() {
                0 => assert_eq!(of_before, 0, "none of either worker"),
                40 => {
                    // As many as come before those that the worker had written by then, at most.
                    assert!(of_before <= 63 && (of_before > 0 || own >= 60), "{of_first:?}");
                    assert_eq!(of_second, (0..40).collect::<Vec<_>>());
                }
                some => panic!("{some} of 40"),
            }
            if of_first.last() == Some(&4999) && of_second.len() == 40 {
                break;
            }
        }
    });
}

#[test]
fn a_daemon_goes_on_with_the_records_of_another_version_but_not_of_other_flags() {
    let with_stages = |poll, stages, version| {
        format!(
            r#"{{"control":"/c","kernel_stages":{stages},"poll":"{poll}","version":"{version}"}}"#
        )
    };
    let facts = |poll, version| with_stages(poll, "null", version);
    let mut bench = Bench::new();
    bench.options.facts = facts("never", "0.1.0");
    let first = bench.next();
    bench.write(&first, 0, 0..3);
    bench.end(first, false);
    bench.options.facts = facts("never", "0.2.0");
    let second = bench.next();
    assert!(matches!(second.copy_before(), Before::Continued(3)));
    let stages = r#"{"a":"n/a: \"}, [","b":"on"}"#;
    let for_a_time = format!(r#"{stages},"kernel_windows":[[1,2]]"#);
    second.participants().set_facts(&with_stages("never", &for_a_time, "0.2.0"));
    bench.end(second, true);
    assert!(matches!(bench.next().copy_before(), Before::Continued(3)));
    bench.options.facts = facts("always", "0.2.0");
    let third = bench.next();
    assert_eq!(third.copy_before(), Before::OtherFlags);
    assert_eq!(Reader::open(third.path()).unwrap().held(0), 0);
    bench.end(third, true);
    bench.options.facts = with_stages("always", stages, "0.2.0");
    assert_eq!(bench.next().copy_before(), Before::OtherFlags);
}

#[test]
fn the_first_burst_after_a_restart_is_followed_by_its_times() {
    for killed in [false, true] {
        let bench = Bench::new();
        let first = bench.next();
        bench.write(&first, 1, 0..3);
        let mut last_burst = 0;
        let reader = Reader::open(first.path()).unwrap();
        reader.read(&mut reader.oldest(1), |record| last_burst = record.last());
        bench.end(first, killed);

        let second = bench.next();
        let listening = bench.clock.now();
        second.listens(listening);
        let mut writers = [0, 1].map(|worker| second.writer(worker, bench.clock));
        // One ring continues; another one starts at its beginning.
        writers[0].ring_started(None);
        writers[1].ring_started(killed.then_some(5));
        writers[1].ring_started(killed.then_some(2));
        let bursts = [0, 1, 2].map(|n| bench.burst(100 + n));
        writers[1].burst(&bursts[0]);
        writers[0].burst(&bursts[1]);
        writers[1].burst(&bursts[2]);
        let reader = Reader::open(second.path()).unwrap();
        let mut records = [Vec::new(), Vec::new()];
        for (worker, records) in records.iter_mut().enumerate() {
            let mut own = reader.oldest_of_last_daemon(worker);
            reader.read(&mut own, |record| records.push(*record));
        }
        let [of_first, of_second] = &records;
        assert!(matches!(of_first[..], [Record::Burst(_)]), "{of_first:?}");
        let [Record::Burst(_), Record::Restart(restart), Record::Burst(_)] = of_second[..] else {
            panic!("{of_second:?}");
        };
        assert_eq!((restart.before, restart.after), (last_burst, bursts[0].last));
        assert_eq!(restart.listening, listening);
        assert!(restart.started > listening && restart.started < restart.after);
        let ending = if killed { Ending::Killed } else { Ending::Ended };
        assert_eq!((restart.ending, restart.is_resumed, restart.writer), (ending, killed, 1));
        assert_eq!(restart.processes, [std::process::id(); 2]);
        let counted = (reader.restarts(), reader.sent_twice_max());
        assert_eq!(counted, if killed { (1, 7) } else { (0, 0) });
        drop(second);
        // They are counted on.
        let third = bench.next();
        third.writer(0, bench.clock).ring_started(Some(1));
        let reader = Reader::open(third.path()).unwrap();
        let counted = (reader.restarts(), reader.sent_twice_max());
        assert_eq!(counted, if killed { (2, 8) } else { (1, 1) });
    }
}

#[test]
fn without_a_burst_before_there_is_no_restart() {
    let bench = Bench::new();
    drop(bench.next());
    let second = bench.next();
    second.listens(bench.clock.now());
    bench.write(&second, 0, 0..3);
    assert_eq!(sequences(second.path(), 0), [0, 1, 2]);
}

#[test]
fn a_daemon_that_takes_over_counts_on_and_has_the_records_of_the_one_before() {
    let bench = Bench::new();
    let first = bench.next();
    bench.write(&first, 0, 0..10);
    let lock = first.share_lock().unwrap();
    let second = Recorder::create_beside(&bench.options, &bench.clock, lock).unwrap();
    let mut writer = second.writer(0, bench.clock);
    assert_eq!(second.copy_before(), Before::Nothing, "the daemon before is served");
    bench.write(&first, 1, 10..17);
    assert_eq!(writer.first_sequence(1), 0);

    let stopped = bench.clock.anchor();
    second.succeed(stopped.monotonic_ns);
    assert_eq!(writer.first_sequence(1), 17);
    writer.ring_started(None);
    let bursts = [17, 18].map(|sequence| bench.burst(sequence));
    writer.burst(&bursts[0]);
    writer.burst(&bursts[1]);
    second.take_place().unwrap();
    first.leave();
    drop(first);
    assert!(matches!(second.copy_before(), Before::Continued(17)));
    assert_eq!(sequences(second.path(), 0), (0..10).chain(17..19).collect::<Vec<_>>());
    assert_eq!(sequences(second.path(), 1), (10..17).collect::<Vec<_>>());
    let reader = Reader::open(second.path()).unwrap();
    let mut own = Vec::new();
    reader.read(&mut reader.oldest_of_last_daemon(0), |record| own.push(*record));
    let [_, Record::Restart(restart), _] = own[..] else { panic!("{own:?}") };
    // An anchor converts a time with an error of less than a microsecond.
    let error = restart.before.abs_diff(stopped.ticks);
    assert!(error < bench.clock.ticks_per_second() / 1_000_000, "{error} ticks");
    assert_eq!((restart.ending, restart.after), (Ending::TakenOver, bursts[0].last));
    assert!(restart.is_resumed && restart.listening == restart.started);
}

#[test]
fn a_daemon_that_did_not_take_over_leaves_the_recorder_as_it_was() {
    let bench = Bench::new();
    let first = bench.next();
    bench.write(&first, 0, 0..10);
    let lock = first.share_lock().unwrap();
    drop(Recorder::create_beside(&bench.options, &bench.clock, lock).unwrap());
    bench.write(&first, 1, 10..12);
    assert_eq!(sequences(first.path(), 1), [10, 11]);
    assert!(!bench.beside(".next").exists());
}
