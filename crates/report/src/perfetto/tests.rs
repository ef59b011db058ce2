use std::path::Path;

use burst_trace::fixture::{culprit, preempted};
use burst_trace::{
    Clock, Culprit, Gap, InterruptionCause, Reader, Recorder, RecorderOptions, RecordingWriter,
    Stage,
};

use super::*;

/// A slice or an instant (`end` is none) as the trace processor makes it of events.
#[derive(Clone, Debug, PartialEq)]
struct Slice {
    track: String,
    name: String,
    category: String,
    start: u64,
    end: Option<u64>,
    /// The slice around it.
    parent: Option<usize>,
    notes: Vec<(String, u64)>,
}

/// A recording of `records`.
fn recording(directory: &Path, records: &[Record]) -> Source {
    let options = RecorderOptions {
        path: directory.join("vm0.trace"),
        workers: 1,
        queue_pairs: 1,
        capacity: 64,
        facts: String::new(),
    };
    let recorder = Recorder::create(&options, &Clock::new()).unwrap();
    let reader = Reader::open(recorder.path()).unwrap();
    let path = directory.join("vm0.rec");
    let mut writer = RecordingWriter::create(&path, &reader, r#"{"name":"vm0"}"#).unwrap();
    records.iter().for_each(|record| writer.push(record).unwrap());
    writer.finish(&reader, true).unwrap();
    Source::open(&path).unwrap()
}

fn written(source: &Source) -> (proto::Trace, u64) {
    let mut out = Vec::new();
    let lost = write_perfetto(&mut out, source, "other", |_| ()).unwrap();
    (proto::Trace::decode(out.as_slice()).unwrap(), lost)
}

fn name_of(names: &[InternedName], iid: u64) -> String {
    let found = names.iter().find(|name| name.iid == Some(iid)).expect("a name that was given");
    found.name.clone().unwrap()
}

/// Puts events together: in the order of time, those of one time in the file's, each track a stack.
fn slices(trace: &proto::Trace) -> Vec<Slice> {
    let names = trace.packet.iter().find_map(|packet| packet.interned_data.as_ref()).unwrap();
    let tracks: HashMap<_, _> = trace
        .packet
        .iter()
        .filter_map(|packet| packet.track_descriptor.clone())
        .map(|track| (track.uuid, track.name.unwrap_or_default()))
        .collect();
    let mut events: Vec<_> =
        trace.packet.iter().filter(|packet| packet.track_event.is_some()).collect();
    events.sort_by_key(|packet| packet.timestamp);
    let (mut slices, mut open) = (Vec::<Slice>::new(), HashMap::<_, Vec<usize>>::new());
    for packet in events {
        assert_eq!(packet.timestamp_clock_id, Some(BUILTIN_CLOCK_MONOTONIC));
        let (at, event) = (packet.timestamp.unwrap(), packet.track_event.as_ref().unwrap());
        let stack = open.entry(event.track_uuid).or_default();
        if event.r#type == Some(TYPE_SLICE_END) {
            slices[stack.pop().expect("a slice that is open")].end = Some(at);
            continue;
        }
        if event.r#type == Some(TYPE_SLICE_BEGIN) {
            stack.push(slices.len());
        }
        let value = |note: &DebugAnnotation| note.uint_value.or(note.bool_value.map(u64::from));
        slices.push(Slice {
            track: tracks[&event.track_uuid].clone(),
            name: match event.name_iid {
                Some(iid) => name_of(&names.event_names, iid),
                None => event.name.clone().unwrap(),
            },
            category: name_of(&names.event_categories, event.category_iids[0]),
            start: at,
            end: None,
            parent: stack.iter().rev().find(|slice| **slice != slices.len()).copied(),
            notes: event
                .debug_annotations
                .iter()
                .map(|note| {
                    let name = name_of(&names.debug_annotation_names, note.name_iid.unwrap());
                    (name, value(note).unwrap())
                })
                .collect(),
        });
    }
    assert!(open.values().all(Vec::is_empty), "every slice ends");
    slices
}

/// A burst that begins at `first`. `stages`: the ticks in each stage. No limit held it back.
fn burst(ring: u16, sequence: u64, first: u64, stages: &[u64]) -> BurstRecord {
    let mut record = BurstRecord {
        first,
        last: first + stages.iter().sum::<u64>(),
        sequence,
        bytes: 120,
        packets: 2,
        ring,
        ..BurstRecord::default()
    };
    let its = record.direction().stages().iter().enumerate();
    for ((at, _), ticks) in its.filter(|(_, it)| **it != Stage::Limited).zip(stages) {
        record.stages[at] = *ticks;
    }
    record
}

#[test]
fn each_burst_is_a_slice_with_its_stages_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let now = Clock::new().now();
    let tx = burst(1, 7, now, &[10_000, 0, 20_000, 300_000, 5_000, 700]);
    let rx = BurstRecord {
        is_polled: true,
        wakeup: Some(9_000),
        ..burst(0, 9, now + 1_000, &[40_000, 50_000, 0, 60_000, 70_000])
    };
    let source = recording(directory.path(), &[Record::Burst(tx), Record::Burst(rx)]);
    let (trace, lost) = written(&source);
    assert_eq!(lost, 0);
    let (when, rate) = (When::of(&source), TickRate::new(source.ticks_per_second()));
    let slices = slices(&trace);
    for (record, track) in [(tx, "tx 1"), (rx, "rx 0")] {
        let whole = slices.iter().position(|it| it.track == track && it.name == "burst").unwrap();
        let found = &slices[whole];
        assert_eq!((found.category.as_str(), found.parent), ("burst", None));
        assert_eq!(found.start, when.monotonic_ns(record.first));
        assert_eq!(found.end, Some(when.monotonic_ns(record.last)));
        let note = |name: &str| found.notes.iter().find(|(known, _)| known == name).map(|it| it.1);
        assert_eq!(note("packets"), Some(record.packets.into()));
        assert_eq!(note("bytes"), Some(record.bytes.into()));
        assert_eq!(note("sequence"), Some(record.sequence));
        assert_eq!(note("polled"), Some(u64::from(record.is_polled)));
        assert_eq!(note("wakeup_ns"), record.wakeup.map(|ticks| rate.ns(ticks.into())));
        let inner: Vec<_> = slices.iter().filter(|it| it.parent == Some(whole)).collect();
        let mut expected = Vec::new();
        let mut at = record.first;
        for (stage, ticks) in record.direction().stages().iter().zip(record.stages) {
            let (from, to) = (when.monotonic_ns(at), when.monotonic_ns(at + ticks));
            if ticks > 0 {
                expected.push((stage.name(), "stage", from, Some(to)));
            }
            at += ticks;
        }
        let inner: Vec<_> = inner
            .iter()
            .map(|it| (it.name.as_str(), it.category.as_str(), it.start, it.end))
            .collect();
        assert_eq!(inner, expected);
    }
    assert_eq!(slices.len(), 2 + 5 + 4);
}

#[test]
fn bursts_that_overlap_are_on_as_many_tracks_as_it_takes() {
    let directory = tempfile::tempdir().unwrap();
    let now = Clock::new().now();
    // Three that were seen together and taken one after the other; then two that follow one upon the other.
    let mut records: Vec<_> = (0..3)
        .map(|n| burst(1, n, now, &[1_000, 50_000 * n, 20_000, 20_000, 5_000, 5_000]))
        .collect();
    let last = records[2].last;
    records.push(burst(1, 3, last, &[10_000, 0, 10_000, 10_000, 10_000, 10_000]));
    records.push(burst(1, 4, records[3].last, &[10_000, 0, 10_000, 10_000, 10_000, 10_000]));
    let bursts: Vec<_> = records.iter().copied().map(Record::Burst).collect();
    let (trace, _) = written(&recording(directory.path(), &bursts));
    let tracks: Vec<_> =
        trace.packet.iter().filter_map(|packet| packet.track_descriptor.as_ref()).collect();
    let process = tracks[0].process.as_ref().unwrap();
    assert_eq!(process.process_name.as_deref(), Some("ringscoped vm0"));
    assert_eq!(process.pid, i32::try_from(std::process::id()).ok());
    let lanes: Vec<_> = tracks[1..].iter().map(|it| (it.name.as_deref(), it.parent_uuid)).collect();
    assert_eq!(lanes, [(Some("tx 1"), Some(PROCESS)); 3]);
    let slices = slices(&trace);
    let whole: Vec<_> = slices.iter().filter(|slice| slice.name == "burst").collect();
    assert_eq!(whole.len(), records.len());
    assert!(whole.iter().all(|slice| slice.parent.is_none()), "no burst within another");
}

#[test]
fn drops_have_their_cause_and_kernel_times_a_track_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let now = Clock::new().now();
    let (at, cause) = (now, DropCause::TxTooLong);
    let span = |stage, worker| {
        Record::KernelSpan(KernelSpan { stage, start: now, end: now + 80_000, worker, writer: 0 })
    };
    let records = [
        Record::Drop(DropRecord { at, cause, packets: 3, ring: 1, worker: 0 }),
        span(KernelStage::Inject, None),
        span(KernelStage::Wakeup, Some(3)),
        Record::Unknown([now, now, 0, 0, 0, 0, 0, 99]),
        Record::Gap(Gap { writer: 0, records: 12, at: now }),
    ];
    let source = recording(directory.path(), &records);
    let (trace, missing) = written(&source);
    assert_eq!(missing, 12);
    let when = When::of(&source);
    let mut found = slices(&trace);
    found.sort_by(|one, other| one.track.cmp(&other.track));
    let slice = |track: &str, name: &str, category: &str, end, notes: &[(&str, u64)]| Slice {
        track: track.into(),
        name: name.into(),
        category: category.into(),
        start: when.monotonic_ns(now),
        end,
        parent: None,
        notes: notes.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
    };
    let end = Some(when.monotonic_ns(now + 80_000));
    let cause = format!("drop {}", cause.name());
    let expected = [
        slice("kernel", "inject", "kernel", end, &[]),
        slice("kernel 3", "wakeup", "kernel", end, &[]),
        slice("tx 1", &cause, "drop", None, &[("packets", 3)]),
    ];
    assert_eq!(found, expected);
}

#[test]
fn interruptions_are_slices_named_after_the_culprit_on_the_tracks_of_their_threads() {
    let directory = tempfile::tempdir().unwrap();
    let now = Clock::new().now();
    let culprit = Culprit { thread: 72, ..culprit("hog", 71) };
    let subject = Subject::Worker(3);
    let hog = Interruption { subject, culprit, ..preempted(now, now + 80_000) };
    let nobody = Interruption { culprit: Culprit::default(), ..hog };
    let (cause, end) = (InterruptionCause::Printk, now);
    let printk = Interruption { start: now, end, cause, ..nobody };
    let (cause, subject) = (InterruptionCause::Throttled, Subject::FrontEnd);
    let throttled = Interruption { cause, subject, ..nobody };
    let records = [hog, throttled, Interruption { thread: 6, ..throttled }, printk];
    let source = recording(directory.path(), &records.map(Record::Interruption));
    let (trace, _) = written(&source);
    let (when, rate) = (When::of(&source), TickRate::new(source.ticks_per_second()));
    let mut found = slices(&trace);
    found.sort_by(|one, other| (&one.track, &one.name).cmp(&(&other.track, &other.name)));
    let slice = |track: &str, name: &str, interruption: &Interruption, culprit: &[u32]| Slice {
        track: format!("CPU of {track}: who ran"),
        name: name.into(),
        category: "interruption".into(),
        start: when.monotonic_ns(now),
        end: (interruption.end > now).then(|| when.monotonic_ns(interruption.end)),
        parent: None,
        notes: [("cpu", 1), ("not_running_ns", rate.ns(interruption.total()))]
            .into_iter()
            .chain(culprit.iter().map(|thread| ("culprit_thread", u64::from(*thread))))
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    };
    let expected = [
        slice("front-end thread 5", "throttled", &throttled, &[]),
        slice("front-end thread 6", "throttled", &throttled, &[]),
        slice("worker 3", "hog (preempted)", &hog, &[72]),
        // Within the other, which is first in the file.
        Slice { parent: Some(0), ..slice("worker 3", "printk", &printk, &[]) },
    ];
    assert_eq!(found, expected);
}
