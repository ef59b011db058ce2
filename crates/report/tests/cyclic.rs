//! Cyclic frames whose every record is known.

use std::time::Duration;

use burst_trace::{
    BurstRecord, Clock, CyclicFrame, Direction, KernelSpan, KernelStage, Reader, Recorder,
    RecorderOptions, Stage, Writer,
};
use report::cyclic::{CyclicTraffic, EventKind, Group, STREAMS_MAX};
use report::{Breakdown, Window, json, table};

const FRAMES: &str = "ethertype:0x8892,counter@2/2,stream@0/2";

struct Known {
    _dir: tempfile::TempDir,
    recorder: Recorder,
    /// The worker's.
    writer: Writer,
    clock: Clock,
    zero: u64,
}

impl Known {
    fn new(descriptions: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::new();
        let options = RecorderOptions {
            path: dir.path().join("vm0.trace"),
            workers: 2,
            queue_pairs: 1,
            capacity: 4096,
            facts: format!(r#"{{"name":"vm0","trace_probe":{descriptions:?}}}"#),
        };
        let recorder = Recorder::create(&options, &clock).unwrap();
        let (writer, zero) = (recorder.writer(0, clock), clock.now());
        Self { _dir: dir, recorder, writer, clock, zero }
    }

    fn ticks(&self, us: u64) -> u64 {
        self.clock.ticks_in(Duration::from_micros(us))
    }

    /// A burst of `ring` that begins at a moment, with 10 µs in each stage; microseconds since the beginning.
    fn burst(&self, ring: u16, first_us: u64) -> BurstRecord {
        let mut stages = [0; burst_trace::stage::STAGES_MAX];
        let count = Direction::of_ring(ring).stages().len();
        stages[..count].fill(self.ticks(10));
        stages[Direction::of_ring(ring).position(Stage::Limited).unwrap()] = 0;
        let first = self.zero + self.ticks(first_us);
        let last = first + stages.iter().sum::<u64>();
        BurstRecord { first, last, stages, packets: 1, bytes: 64, ring, ..BurstRecord::default() }
    }

    /// A burst with one frame of `stream`.
    fn frame(&mut self, ring: u16, first_us: u64, stream: u32, counter: u64) {
        self.counted(
            ring,
            first_us,
            CyclicFrame { description: 0, counter_len: 2, stream, counter },
        );
    }

    fn counted(&mut self, ring: u16, first_us: u64, frame: CyclicFrame) {
        let burst = self.burst(ring, first_us);
        self.writer.burst(&burst);
        self.writer.cyclic(&burst, frame);
    }

    fn breakdown(&self) -> Breakdown {
        let reader = Reader::open(self.recorder.path()).unwrap();
        Breakdown::read(&reader.into(), "vm0", Window::Held)
    }

    fn traffic(&self) -> CyclicTraffic {
        self.breakdown().cyclic
    }

    fn group(&self) -> Group {
        let mut groups = self.traffic().groups;
        assert_eq!(groups.len(), 1, "{groups:?}");
        groups.remove(0)
    }
}

/// Whether two times are the same, but for the rounding to ticks.
fn is_close(found: f64, expected: f64) -> bool {
    (found - expected).abs() < 20.0
}

#[test]
fn the_period_is_that_of_consecutive_counters_and_stages_begin_with_the_arrival() {
    let mut known = Known::new(&["7010", FRAMES]);
    // Intervals of 1000 and 1200 µs; the one across the gap does not count.
    for (at, counter) in [(0, 65534), (1000, 65535), (2200, 0), (5200, 3), (6200, 4)] {
        known.frame(1, at, 0x8000, counter);
    }
    let mut kernel = known.recorder.writer(1, known.clock);
    // The worker was woken up 7 µs before the last burst, and the kernel took its frame during egress for 4 µs.
    let at = |us: u64| known.zero + known.ticks(us);
    let span = |stage, start, end, worker| KernelSpan { stage, start, end, worker, writer: 1 };
    kernel.kernel(&span(KernelStage::Wakeup, at(6193), at(6199), Some(0)));
    kernel.kernel(&span(KernelStage::HostTx, at(6235), at(6239), None));
    let group = known.group();
    assert_eq!((group.direction, group.frames, group.stamped), (Direction::Tx, 5, 0));
    assert_eq!(group.description, FRAMES);
    let stream = &group.streams[0];
    assert_eq!((stream.stream.as_str(), stream.first, stream.newest), ("0x8000", 65534, 65540));
    assert_eq!((stream.lost, stream.duplicates, stream.late, stream.jumps), (2, 0, 0, 0));
    let period = stream.period.unwrap();
    assert_eq!(period.count, 3);
    assert!(is_close(period.mean_ns, 1_066_666.0), "{period:?}");
    assert!(is_close(period.jitter_ns, 94_281.0), "{period:?}");
    assert!(is_close(period.min_ns as f64, 1e6) && is_close(period.max_ns as f64, 1.2e6));
    // The frame arrives at the end of notice: five stages of 10 µs are left.
    assert!(is_close(stream.mean_ns, 50_000.0), "{stream:?}");
    assert_eq!(stream.events.len(), 1);
    let event = stream.events[0];
    assert_eq!((event.kind, event.counter, event.lost), (EventKind::Gap, 3, 2));
    let row = |stage: &str| group.stages.iter().find(|row| row.stage == stage).unwrap();
    assert_eq!(row("egress").count, Some(5));
    assert!(is_close(row("egress").figures.unwrap().mean_ns, 10_000.0));
    assert!(is_close(row("wakeup").figures.unwrap().mean_ns, 7_000.0));
    assert!(is_close(row("host-tx").figures.unwrap().mean_ns, 4_000.0));
    assert_eq!((row("wakeup").count, row("host-tx").count), (Some(1), Some(1)));
    assert!(group.stages.iter().all(|row| row.stage != "guest-send"));
    let of_last = group.slowest.iter().find(|slow| slow.counter == 4).unwrap();
    let stages: Vec<_> = of_last.stages_ns.iter().map(|(stage, _)| *stage).collect();
    let all = [
        "wakeup", "notice", "queued", "limited", "gather", "egress", "complete", "signal",
        "host-tx",
    ];
    assert_eq!(stages, all);
}

#[test]
fn a_stamped_arrival_begins_the_time_of_a_frame() {
    let mut known = Known::new(&[FRAMES]);
    for n in 0..4 {
        let wakeup = u32::try_from(known.ticks(25 * n)).unwrap();
        let burst =
            BurstRecord { wakeup: Some(wakeup), packets: 2, ..known.burst(0, 1000 * (n + 1)) };
        known.writer.burst(&burst);
        // Two frames of one burst share its times.
        for counter in [2 * n, 2 * n + 1] {
            known
                .writer
                .cyclic(&burst, CyclicFrame { description: 0, counter_len: 2, stream: 1, counter });
        }
    }
    let group = known.group();
    assert_eq!((group.direction, group.frames, group.stamped), (Direction::Rx, 8, 8));
    // 975 µs between bursts, as each arrived 25 µs earlier than the one before, and 0 within a burst.
    let period = group.streams[0].period.unwrap();
    assert!(period.count == 7 && period.min_ns == 0, "{period:?}");
    assert!(is_close(period.max_ns as f64, 975_000.0), "{period:?}");
    assert!(is_close(group.streams[0].max_ns as f64, 125_000.0), "{group:?}");
    assert_eq!(group.slowest[0].counter, 6);
    assert!(group.slowest[0].stamped);
    let wakeup = group.stages.iter().find(|row| row.stage == "wakeup").unwrap();
    assert_eq!(wakeup.count, Some(8));
}

#[test]
fn a_counter_that_does_not_fit_its_description_is_explained() {
    let notes = |counters: &[u64]| {
        let mut known = Known::new(&["ethertype:0x8892,counter@2/2"]);
        for (n, counter) in counters.iter().enumerate() {
            known.frame(1, 1000 * n as u64, 0, *counter);
        }
        table::to_table(&known.breakdown(), None)
    };
    let of_step = |step: u64| (0..20).map(|n| n * step).collect::<Vec<_>>();
    assert!(!notes(&of_step(1)).contains("note: the counter"));
    assert!(notes(&of_step(32)).contains("mostly moves by 32: add step=32"));
    assert!(notes(&of_step(256)).contains("is it little endian (le)"));
    assert!(notes(&of_step(0)).contains("stays the same in most frames"));
}

#[test]
fn streams_without_end_are_limited_and_shown_as_far_as_they_fit() {
    let mut known = Known::new(&[FRAMES]);
    for n in 0..STREAMS_MAX as u32 + 10 {
        known.frame(0, u64::from(n), n, 7);
    }
    let breakdown = known.breakdown();
    assert_eq!(breakdown.cyclic.groups[0].streams.len(), STREAMS_MAX);
    assert_eq!(breakdown.cyclic.left_out, 10);
    let text = table::to_table(&breakdown, None);
    for part in ["and 216 more streams", "10 cyclic frames of further streams were left out"] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let json: serde_json::Value = serde_json::from_str(&json::to_json(&breakdown)).unwrap();
    let streams = json["cyclic"]["groups"][0]["streams"].as_array().unwrap();
    assert_eq!((streams.len(), &streams[255]["stream"]), (STREAMS_MAX, &"0x00ff".into()));
}

#[test]
fn counters_of_64_bits_are_exact_in_every_report() {
    let mut known = Known::new(&["ethertype:0x8892,counter@0/8"]);
    for (n, counter) in [u64::MAX - 4, u64::MAX - 2].into_iter().enumerate() {
        let frame = CyclicFrame { description: 0, counter_len: 8, stream: 0, counter };
        known.counted(0, 1000 * n as u64, frame);
    }
    let source = Reader::open(known.recorder.path()).unwrap().into();
    let mut page = Vec::new();
    report::html::write_html(&mut page, &source, None, None, "vm0", || ()).unwrap();
    let page = String::from_utf8(page).unwrap();
    let (_, data) = page.split_once("type=\"application/json\">").unwrap();
    let data: serde_json::Value =
        serde_json::from_str(data.split_once("</script>").unwrap().0).unwrap();
    let group = &data["cyclic"]["groups"][0];
    assert_eq!(group["streams"][0]["events"][0]["counter"], "18446744073709551613");
    assert_eq!(group["slowest"].as_array().unwrap().len(), 2);
    assert!(group["slowest"][0]["counter"].is_string(), "{group}");
    let json = json::to_json(&known.breakdown());
    assert!(json.contains("\"counter\": 18446744073709551613"), "{json}");
}

#[test]
fn a_recorder_without_cyclic_frames_has_no_such_section() {
    let mut known = Known::new(&["7010"]);
    known.writer.burst(&known.burst(1, 0));
    assert!(known.traffic().is_empty());
    assert!(!table::to_table(&known.breakdown(), None).contains("cyclic"));
    let text = table::to_table(&Known::new(&[FRAMES]).breakdown(), None);
    assert!(text.contains("cyclic frames ethertype:0x8892,counter@2/2,stream@0/2: none"), "{text}");
}
