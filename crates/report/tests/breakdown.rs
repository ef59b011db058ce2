//! A breakdown of recorders whose every burst is known.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use burst_trace::{
    BurstRecord, Clock, Direction, DropCause, KernelSpan, KernelStage, Notification, Reader,
    Record, Recorder, RecorderOptions, RecordingWriter, Source, Stage, Totals, Writer,
};
use report::breakdown::WindowEnd;
use report::figures::TickRate;
use report::round_trip::{Exchanges, Measured};
use report::{Breakdown, DirectionBreakdown, Follower, Initiator, Window, json, table};
use serde_json::Value;

struct Synthetic {
    dir: tempfile::TempDir,
    recorder: Recorder,
    clock: Clock,
}

impl Synthetic {
    fn new(workers: usize, capacity: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::new();
        let options = RecorderOptions {
            path: dir.path().join("vm0.trace"),
            workers,
            queue_pairs: 1,
            capacity,
            facts: r#"{"name":"vm0","datapath":"tap:ifname=tap0","poll":"never"}"#.into(),
        };
        let recorder = Recorder::create(&options, &clock).unwrap();
        Self { dir, recorder, clock }
    }

    fn writer(&self, worker: usize) -> Writer {
        self.recorder.writer(worker, self.clock)
    }

    fn reader(&self) -> Reader {
        Reader::open(self.recorder.path()).unwrap()
    }

    fn ticks(&self, ns: u64) -> u64 {
        self.clock.ticks_in(Duration::from_nanos(ns))
    }

    fn read(&self, window: Window) -> Breakdown {
        Breakdown::read(&self.reader().into(), "file-stem", window)
    }
}

/// A burst that ends at `last`, its stages being `scale` times 1, 2, 3, ... ticks. No limit held it back.
fn burst(ring: u16, last: u64, packets: u16, scale: u64) -> BurstRecord {
    let mut stages = [0; burst_trace::stage::STAGES_MAX];
    let its = Direction::of_ring(ring).stages().iter().enumerate();
    for ((at, _), n) in its.filter(|(_, it)| **it != Stage::Limited).zip(1..) {
        stages[at] = n * scale;
    }
    BurstRecord {
        first: last - stages.iter().sum::<u64>(),
        last,
        stages,
        bytes: 100 * u32::from(packets),
        packets,
        ring,
        ..BurstRecord::default()
    }
}

#[test]
fn known_bursts_give_known_figures() {
    let synthetic = Synthetic::new(1, 64);
    let mut writer = synthetic.writer(0);
    let start = synthetic.clock.now();
    let scale = synthetic.ticks(1_000_000);
    writer.burst(&burst(1, start + 1000, 3, scale));
    writer.burst(&burst(1, start + 2000, 1, 5 * scale));
    let breakdown = synthetic.read(Window::Held);
    let tx = &breakdown.tx;
    assert_eq!((tx.packets, tx.bytes, tx.bursts), (4, 400, 2));
    let measured = Direction::Tx.stages().iter().filter(|it| **it != Stage::Limited);
    for (n, stage) in (1..).zip(measured) {
        let row = tx.stage(stage.name()).unwrap();
        let figures = row.figures.unwrap();
        let base = f64::from(n) * 1e6;
        let close = |found: f64, expected: f64| (found / expected - 1.0).abs() < 1e-3;
        assert_eq!(row.count, Some(4));
        assert!(close(figures.mean_ns, 2.0 * base), "{figures:?}");
        assert!(close(figures.min_ns as f64, base), "{figures:?}");
        assert!(close(figures.p50_ns as f64, base), "{figures:?}");
        assert!(close(figures.p90_ns as f64, 5.0 * base), "{figures:?}");
        assert!(close(figures.max_ns as f64, 5.0 * base), "{figures:?}");
    }
    assert_eq!(breakdown.rx.total.count, Some(0));
    assert_eq!(breakdown.rx.total.figures, None);
}

#[test]
fn the_stages_means_sum_to_the_totals_mean() {
    let synthetic = Synthetic::new(2, 4096);
    let mut writers = [synthetic.writer(0), synthetic.writer(1)];
    let start = synthetic.clock.now();
    for n in 0..4000_u64 {
        let packets = u16::try_from(n % 64 + 1).unwrap();
        let record = burst(u16::from(n % 3 == 0), start + n * 10_000, packets, n * n % 977);
        writers[usize::from(n % 2 == 0)].burst(&record);
    }
    let breakdown = synthetic.read(Window::Held);
    for way in breakdown.directions() {
        let sum: f64 =
            way.stages.iter().filter_map(|row| row.figures).map(|figures| figures.mean_ns).sum();
        let total = way.total.figures.unwrap().mean_ns;
        assert!((sum - total).abs() < total * 1e-12, "{sum} against {total}");
        assert!(way.stages.iter().all(|row| row.count.is_none_or(|count| count == way.packets)));
    }
}

#[test]
fn a_window_holds_what_ended_in_it_and_its_own_drops() {
    let synthetic = Synthetic::new(1, 64);
    let mut writer = synthetic.writer(0);
    let now = synthetic.clock.now();
    let ago = |seconds: u64| now - seconds * synthetic.clock.ticks_per_second();
    writer.burst(&burst(0, ago(100), 1, 10));
    writer.dropped(0, DropCause::RxNoBuffers, 5, ago(90));
    writer.burst(&burst(0, ago(2), 2, 10));
    writer.dropped(0, DropCause::RxNoBuffers, 7, ago(1));

    let held = synthetic.read(Window::Held);
    assert_eq!((held.rx.packets, held.rx.dropped()), (3, 12));
    assert!((held.window_s - 99.0).abs() < 0.1, "{}", held.window_s);
    let last = synthetic.read(Window::Last(Duration::from_secs(10)));
    assert_eq!((last.rx.packets, last.rx.dropped()), (2, 7));
    assert_eq!((last.window_end, last.is_cut), (WindowEnd::Now, false));
    assert!((last.window_s - 10.0).abs() < f64::EPSILON);
}

#[test]
fn after_the_daemons_end_the_window_ends_with_the_newest_record() {
    let synthetic = Synthetic::new(1, 64);
    let mut writer = synthetic.writer(0);
    let second = synthetic.clock.ticks_per_second();
    writer.burst(&burst(1, 1000 * second, 1, 10));
    writer.burst(&burst(1, 1005 * second, 2, 10));
    let reader = synthetic.reader();
    drop(synthetic);
    let breakdown = Breakdown::read(&reader.into(), "vm0", Window::Last(Duration::from_secs(1)));
    assert_eq!((breakdown.tx.packets, breakdown.window_end), (2, WindowEnd::NewestRecord));
}

#[test]
fn a_window_that_the_recorder_no_longer_holds_is_cut() {
    let synthetic = Synthetic::new(1, 64);
    let mut writer = synthetic.writer(0);
    let (now, second) = (synthetic.clock.now(), synthetic.clock.ticks_per_second());
    for n in 0..200 {
        writer.burst(&burst(1, now - 2 * second + n * second / 200, 1, 1));
    }
    let breakdown = synthetic.read(Window::Last(Duration::from_secs(100)));
    assert!(breakdown.is_cut);
    assert!((1.2..1.5).contains(&breakdown.window_s), "{}", breakdown.window_s);
    let text = table::to_table(&breakdown, None);
    assert!(text.contains("100 s were asked for, the recorder holds 1."), "{text}");
}

#[test]
fn a_window_is_cut_also_where_records_are_lost_while_it_is_read() {
    let synthetic = Synthetic::new(1, 64);
    let mut writer = synthetic.writer(0);
    let done = AtomicBool::new(false);
    let write = |writer: &mut Writer| writer.burst(&burst(1, synthetic.clock.now(), 1, 1));
    (0..100).for_each(|_| write(&mut writer));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                write(&mut writer);
            }
        });
        let cut: Vec<_> = (0..20)
            .map(|_| synthetic.read(Window::Last(Duration::from_secs(100))))
            .filter(|breakdown| breakdown.tx.packets > 0)
            .map(|breakdown| (breakdown.is_cut, breakdown.lost_records))
            .collect();
        done.store(true, Ordering::Relaxed);
        assert!(cut.iter().all(|(is_cut, _)| *is_cut), "{cut:?}");
    });
}

#[test]
fn the_object_has_the_fields_that_are_promised() {
    let synthetic = Synthetic::new(1, 64);
    let mut writer = synthetic.writer(0);
    writer.burst(&burst(1, synthetic.clock.now(), 4, 100));
    (0..2).for_each(|_| writer.count_notification(1, Notification::CallRefused));
    (0..2).for_each(|_| writer.count_gro(1, 1, 5));
    let text = json::to_json(&synthetic.read(Window::Held));
    let object: Value = serde_json::from_str(&text).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let of_object = "clock cyclic features interruptions kvm migrations name queues restarted restarts rx sent_twice_max tx window_s";
    assert_eq!(keys(&object).join(" "), of_object);
    assert_eq!(keys(&object["cyclic"]), ["groups", "left_out", "lost_records", "unseen"]);
    let kinds = ["calls_refused", "calls_sent", "calls_suppressed", "direction", "kicks", "queue"];
    assert_eq!(keys(&object["queues"][0]), kinds);
    assert_eq!(object["queues"].as_array().unwrap().len(), 1, "those with any");
    let queue = &object["queues"][0];
    assert_eq!((&queue["queue"], &queue["direction"]), (&1.into(), &"tx".into()));
    assert_eq!((&queue["kicks"], &queue["calls_refused"]), (&0.into(), &2.into()));
    assert_eq!(object["name"], "vm0");
    let gro = ["gro_frames", "gro_segments", "gro_mean_segments"];
    assert_eq!(gro.map(|name| object["tx"][name].as_f64()), [2.0, 10.0, 5.0].map(Some));
    assert_eq!(gro.map(|name| object["rx"][name].as_f64()), [Some(0.0), Some(0.0), None]);
    for way in [&object["tx"], &object["rx"]] {
        let of_way = "bursts bytes counted drops gro_frames gro_mean_segments gro_segments packets stages total";
        assert_eq!(keys(way).join(" "), of_way);
        assert_eq!(keys(&way["counted"]), ["bursts", "bytes", "packets"]);
    }
    let names = |way: &str| -> Vec<String> {
        let stages = object[way]["stages"].as_array().unwrap();
        stages.iter().map(|stage| stage["stage"].as_str().unwrap().to_owned()).collect()
    };
    let tx = "guest-send wakeup notice queued limited gather egress complete signal host-tx";
    let rx = "host-rx wakeup notice limited starved place publish signal inject guest-receive";
    assert_eq!(names("tx").join(" "), tx);
    assert_eq!(names("rx").join(" "), rx);
    let measured =
        "count max_ns mean_ns min_ns not_running_mean_ns p50_ns p90_ns p999_ns p99_ns stage tier";
    assert_eq!(keys(&object["tx"]["stages"][2]).join(" "), measured);
    assert_eq!(keys(&object["tx"]["total"]).join(" "), measured);
    assert_eq!(object["tx"]["total"]["count"], 4);
    assert_eq!(object["tx"]["drops"]["tx_too_short"], 0);
    assert_eq!(object["tx"]["drops"]["rx_datapath_error"], Value::Null);

    let not_measured = &object["tx"]["stages"][0];
    assert_eq!(keys(not_measured).join(" "), "count not_running_mean_ns stage tier");
    assert_eq!((&not_measured["count"], &not_measured["tier"]), (&Value::Null, &"G".into()));
    let without_packets = &object["rx"]["stages"][2];
    assert_eq!(keys(without_packets), keys(not_measured));
    assert_eq!(without_packets["count"], 0);
}

#[test]
fn what_was_overwritten_is_still_counted() {
    let synthetic = Synthetic::new(1, 64);
    let mut writer = synthetic.writer(0);
    let start = synthetic.clock.now();
    for n in 0..100 {
        writer.burst(&burst(1, start + 1000 * n, 2, 10));
    }
    for window in [Window::Held, Window::Last(Duration::from_nanos(1))] {
        let breakdown = synthetic.read(window);
        assert!(breakdown.tx.packets < 200, "{window:?}");
        let counted = Totals { packets: 200, bytes: 20_000, bursts: 100 };
        assert_eq!(breakdown.tx.counted, Some(counted), "{window:?}");
        assert_eq!(breakdown.rx.counted, Some(Totals::default()));
        let object: Value = serde_json::from_str(&json::to_json(&breakdown)).unwrap();
        assert_eq!(object["tx"]["counted"]["packets"], 200);
    }
}

#[test]
fn features_are_named_in_every_report_of_recorder_and_recording() {
    let synthetic = Synthetic::new(1, 64);
    let reader = synthetic.reader();
    let mut read = vec![synthetic.read(Window::Held)];
    assert_eq!(json_features(&read[0]), Value::Array(Vec::new()));
    assert!(!table::to_table(&read.remove(0), None).contains("negotiated"));
    let path = synthetic.dir.path().join("vm0.rec");
    let recording = RecordingWriter::create(&path, &reader, "{}").unwrap();
    let participants = synthetic.recorder.participants();
    participants.set_features_before(1);
    assert_eq!((reader.features(), reader.features_ever()), (0, 1));
    participants.set_features(1 << 34 | 1 << 29 | 1 << 41);
    assert_eq!(reader.features_ever(), reader.features());
    recording.finish(&reader, true).unwrap();
    read.push(synthetic.read(Window::Held));
    let recording = Source::open(&path).unwrap();
    read.push(Breakdown::read(&recording, "vm0", Window::Held));
    for breakdown in &read {
        assert_eq!(json_features(breakdown), serde_json::json!(["event_idx", "packed", "bit_41"]));
        let table = table::to_table(breakdown, None);
        assert!(table.contains("\nthe guest negotiated: event_idx packed bit_41\n"), "{table}");
    }
    let mut page = Vec::new();
    report::html::write_html(&mut page, &recording, None, None, "vm0", || {}).unwrap();
    assert!(
        String::from_utf8(page).unwrap().contains(r#""features":["event_idx","packed","bit_41"]"#)
    );
}

fn json_features(breakdown: &Breakdown) -> Value {
    let object: Value = serde_json::from_str(&json::to_json(breakdown)).unwrap();
    object["features"].clone()
}

#[test]
fn the_table_says_what_is_known_and_what_is_not() {
    let synthetic = Synthetic::new(1, 64);
    let mut writer = synthetic.writer(0);
    let start = synthetic.clock.now();
    writer.burst(&burst(1, start, 8, synthetic.ticks(1000)));
    let polled = burst(0, start + 9000, 1, synthetic.ticks(500));
    writer.burst(&BurstRecord { is_polled: true, ..polled });
    writer.dropped(1, DropCause::TxLinkDown, 3, start);
    let none = table::to_table(&synthetic.read(Window::Held), None);
    assert!(!none.contains("notifications"), "an older daemon counted none");
    (0..2).for_each(|_| writer.count_notification(1, Notification::CallSuppressed));
    let text = table::to_table(&synthetic.read(Window::Held), None);
    let line = |begin: &str| {
        let found = text.lines().find(|line| line.trim_start().starts_with(begin));
        found.unwrap_or_else(|| panic!("no line {begin} in\n{text}"))
    };
    assert!(line("vm0").contains("tap:ifname=tap0") && line("vm0").contains("poll never"));
    assert_eq!(line("guest-send").matches("n/a").count(), 6);
    assert!(line("egress").contains("4.00 µs"), "{text}");
    assert!(line("bursts hold").contains("8.00 packets"));
    assert!(line("notice ≤").contains("500 ns"));
    assert!(line("≤ upper bound").contains("100.0 %"));
    assert!(line("tx_link_down").ends_with(" 3") && !text.contains("memory-backend-ram"));
    writer.dropped(1, DropCause::TxUnmapped, 2, start);
    let text = table::to_table(&synthetic.read(Window::Held), None);
    assert!(text.contains("memory-backend-ram"));
    assert!(line("notifications").ends_with("since the daemon's start"));
    let counted: Vec<_> = line("1 tx").split_whitespace().collect();
    assert_eq!(counted, ["1", "tx", "0", "0", "2", "0"]);
    assert!(!text.contains("refused: "));
    assert!(line("(a)").ends_with("n/a: host-rx not known"));
    assert!(line("(b)").ends_with("n/a: wakeup not known; notice = 500 ns"));
    assert!(
        line("(c)")
            .contains("n/a: inject not known; limited + starved + place + publish + signal =")
    );
    assert!(!text.contains("round trip"));
}

#[test]
fn the_round_trip_is_taken_apart_below_the_table() {
    let synthetic = Synthetic::new(1, 256);
    let mut writer = synthetic.writer(0);
    let start = synthetic.clock.now();
    for n in 1..=100 {
        let at = start + n * synthetic.ticks(1_000_000);
        writer.burst(&burst(0, at, 1, synthetic.ticks(1_000)));
        writer.burst(&burst(1, at + synthetic.ticks(60_000), 1, synthetic.ticks(1_000)));
    }
    let measured: Measured =
        serde_json::from_str(r#"{"mean_ns": 100000, "max_ns": 200000, "received": 50}"#).unwrap();
    let reader = synthetic.reader();
    let rate = TickRate::new(reader.ticks_per_second());
    let mut exchanges = Exchanges::new(Initiator::Host, 1, rate, measured.max_ns);
    let breakdown =
        Breakdown::read_with(&reader.into(), "vm0", Window::Held, |record| exchanges.add(record));
    let text = table::to_table(&breakdown, Some(&exchanges.explain(measured)));
    for part in [
        "round trip from the host: mean 100 µs, 50 answers",
        "our RX            15.0 µs   15.0 %",
        "guest's turn      39.0 µs   39.0 %",
        "our TX            21.0 µs   21.0 %",
        "host's own share  25.0 µs   25.0 %",
        "the records show 100 exchanges, the sender counted 50",
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
}

#[test]
fn records_of_unknown_kinds_are_counted_and_nothing_else() {
    let synthetic = Synthetic::new(1, 64);
    let path = synthetic.dir.path().join("vm0.rec");
    let reader = synthetic.reader();
    let mut recording = RecordingWriter::create(&path, &reader, "{}").unwrap();
    // A kind, a drop cause and a kernel stage that do not exist.
    for last in [77, 2 | 200 << 16, 3 | 9 << 16] {
        let words = [1_000_000, 1_000_100, 0, 0, 0, 0, 1 << 32, last];
        recording.push(&Record::Unknown(words)).unwrap();
    }
    recording.finish(&reader, false).unwrap();
    let breakdown = Breakdown::read(&Source::open(&path).unwrap(), "vm0", Window::Held);
    assert_eq!((breakdown.malformed_records, breakdown.tx.packets), (3, 0));
    assert!(breakdown.window_s.abs() < f64::EPSILON);
}

#[test]
fn times_in_the_kernel_have_rows_of_their_own_and_are_nobodys_packets() {
    let synthetic = Synthetic::new(2, 64);
    let (mut worker, mut kernel) = (synthetic.writer(0), synthetic.writer(1));
    let start = synthetic.clock.now();
    let us = |n: u64| synthetic.ticks(n * 1000);
    let span = |stage: KernelStage, from, to| {
        let (start, end) = (start + us(from), start + us(to));
        KernelSpan { stage, start, end, worker: stage.is_of_a_worker().then_some(0), writer: 0 }
    };
    let tx = burst(1, start + us(1000), 3, us(10));
    worker.burst(&tx);
    worker.burst(&burst(0, start + us(2000), 2, us(10)));
    worker.probe(&tx, 7, 3);
    // The first boundary of the burst to the wire is 210 us before its last one.
    kernel.kernel(&span(KernelStage::Wakeup, 750, 760));
    kernel.kernel(&span(KernelStage::HostTx, 900, 903));
    kernel.kernel(&span(KernelStage::HostRx, 1500, 1504));
    kernel.kernel(&span(KernelStage::HostRx, 1500, 1506));
    let breakdown = synthetic.read(Window::Held);
    assert_eq!(
        (breakdown.malformed_records, breakdown.tx.packets, breakdown.rx.packets),
        (0, 3, 2)
    );
    let found = |way: &DirectionBreakdown, stage| {
        let row = way.stage(stage).unwrap();
        row.figures.map(|it| (row.count.unwrap(), (it.mean_ns / 1000.0).round() as u64))
    };
    assert_eq!(found(&breakdown.tx, "wakeup"), Some((3, 40)));
    assert_eq!(found(&breakdown.tx, "host-tx"), Some((1, 3)));
    assert_eq!(found(&breakdown.rx, "host-rx"), Some((2, 5)));
    assert_eq!(found(&breakdown.rx, "wakeup"), None, "that wake-up was for the other burst");
    assert_eq!(breakdown.rx.stage("inject").unwrap().count, None);
    let text = table::to_table(&breakdown, None);
    assert!(text.contains("host-tx lies within egress"), "{text}");
}

#[test]
fn a_follower_tells_each_interval_once_and_what_it_lost() {
    let synthetic = Synthetic::new(1, 64);
    let mut writer = synthetic.writer(0);
    let start = synthetic.clock.now();
    writer.burst(&burst(1, start, 9, 1));
    writer.count_notification(1, Notification::Kick);
    let mut follower = Follower::new(synthetic.reader());
    writer.burst(&burst(1, start + 100, 2, 1));
    (0..3).for_each(|_| writer.count_notification(1, Notification::Kick));
    writer.dropped(1, DropCause::TxTooLong, 4, start + 150);
    follower.poll();
    writer.burst(&burst(0, start + 200, 3, 1));
    let interval = follower.take();
    assert_eq!((interval.tx.totals.packets, interval.rx.totals.packets), (2, 3));
    assert_eq!((interval.tx.records.packets, interval.tx.dropped), (2, 4));
    assert_eq!(interval.queues[1].totals.bytes, 200);
    assert_eq!(interval.queues[1].notifications.of(Notification::Kick), 3);
    assert!(interval.queues[1].total.is_some());

    for n in 0..1000 {
        writer.burst(&burst(1, start + 300 + n * 100, 1, 1));
    }
    let interval = follower.take();
    assert_eq!(interval.tx.totals.packets, 1000);
    assert_eq!(interval.tx.records.packets + interval.lost, 1000);
    assert!(interval.lost > 900);
    assert_eq!(follower.take().tx.totals.packets, 0);
    assert_eq!(follower.take().lost_in_all, interval.lost);
}
